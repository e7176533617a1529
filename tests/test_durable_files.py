"""Durable files: whole or not at all, drafts that nobody finished go."""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resources import durable_files
from resources.durable_files import (
    draft_beside,
    remove_abandoned_drafts,
    replace_durably,
    sync_directory,
    sync_tree,
    write_durably,
)


def age(path: Path, hours: float) -> None:
    written = time.time() - hours * 3600
    os.utime(path, (written, written))


def test_a_file_takes_the_place_of_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "manifest.json"
    replace_durably(path, "né")
    assert path.read_bytes() == b"n\xc3\xa9"
    replace_durably(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_what_was_written_is_on_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.json"
    synced: list[tuple[bool, bool]] = []

    def record(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").resolve().is_dir(), path.exists()))

    monkeypatch.setattr(os, "fsync", record)
    replace_durably(path, "content")
    assert synced == [(False, False), (True, True)]


def test_a_write_that_fails_leaves_the_former_file_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.json"
    replace_durably(path, "first")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_durably(path, "second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_many_writers_never_meet_in_one_draft(tmp_path: Path) -> None:
    path = tmp_path / "pointer"
    contents = [f"{number}" * 10_000 for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: replace_durably(path, content), contents))
    assert path.read_text() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_as_long_as_names_can_be_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 127)
    replace_durably(path, "content")
    assert path.read_text() == "content"


def test_drafts_that_nobody_finished_are_removed_after_a_day(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    old, young, folder, being_written = [draft_beside(path) for _ in range(4)]
    for file in [path, old, young]:
        write_durably(file, "content")
    for made in [folder, being_written]:
        made.mkdir()
        write_durably(made / "weights", "content")
    for each in [path, old, folder / "weights", folder, being_written]:
        age(each, hours=25)
    age(young, hours=23)
    assert sorted(remove_abandoned_drafts(tmp_path)) == sorted([old, folder])
    assert sorted(tmp_path.iterdir()) == sorted([path, young, being_written])
    assert remove_abandoned_drafts(tmp_path / "nowhere") == []


def test_all_that_a_directory_holds_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "members" / "dnn").mkdir(parents=True)
    write_durably(tmp_path / "members" / "dnn" / "weights", "content")
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").resolve()))
    sync_tree(tmp_path)
    everything = ["members", "members/dnn", "members/dnn/weights", "."]
    assert sorted(synced) == sorted((tmp_path / name).resolve() for name in everything)


@pytest.mark.parametrize("answer", durable_files.NO_SYNC_OF_DIRECTORIES)
def test_a_file_system_that_cannot_sync_directories_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    def refuse(_: int) -> None:
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(os, "fsync", refuse)
    sync_directory(tmp_path)
