"""Checkpoints of a training: one that cannot be read or written costs epochs, never the training."""

import errno
import logging
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.steps.models.dnn_config import DnnConfig
from pipelines.steps.models.dnn_model import EpochReport, TrainedDnn
from pipelines.steps.models.dnn_training import train_dnn
from tests.test_dnn_model import SIZES, SMALL, KilledError, simulated_rows

ROWS = simulated_rows(120)
CONFIG = replace(SMALL, max_epochs=3)
EPOCHS = 3


def train(
    checkpoint: Path | None,
    config: DnnConfig = CONFIG,
    progress: Callable[[EpochReport], None] = lambda _: None,
) -> TrainedDnn:
    return train_dnn(ROWS, SIZES, config, progress, checkpoint=checkpoint)


@pytest.fixture(scope="module")
def undisturbed() -> bytes:
    return train(None).weights()


def kill(checkpoint: Path, after: int, config: DnnConfig = CONFIG) -> None:
    """Leaves the checkpoint of a training that was killed after so many epochs."""

    def stop(report: EpochReport) -> None:
        if report.epoch > after:
            raise KilledError

    with pytest.raises(KilledError):
        train(checkpoint, config, stop)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- reading --------------------------------------------------------------------------------------


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def alter_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    content[largest.header_offset + 200] ^= 1
    path.write_bytes(content)


def foreign(path: Path) -> None:
    path.write_text("epoch,loss\n1,0.5\n")


def foreign_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


class Unsafe:
    """Makes a folder where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def unsafe(path: Path) -> None:
    torch.save({"fingerprint": Unsafe(path.parent / "executed"), "members": {}}, path)


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Unsafe(path.parent / "executed")))


def other_content(path: Path) -> None:
    torch.save([1, 2, 3], path)


def members_missing(path: Path) -> None:
    torch.save({"fingerprint": torch.load(path)["fingerprint"]}, path)


def altered(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Changes what the checkpoint says of member 1."""

    def alter(path: Path) -> None:
        content = torch.load(path)
        change(content["members"][1])
        torch.save(content, path)

    return alter


def other_tensors(state: dict[str, Any]) -> None:
    auc, epoch, best = state["best"]
    state["best"] = auc, epoch, {name: torch.zeros(1) for name in best}


UNREADABLE = {
    "empty": empty,
    "cut": cut,
    "a weight altered": alter_a_weight,
    "foreign": foreign,
    "a foreign archive": foreign_archive,
    "a directory": directory,
    "unsafe": unsafe,
    "a pickle": plain_pickle,
    "other content": other_content,
    "no members": members_missing,
    "no curve": altered(lambda state: state.pop("curve")),
    "another curve": altered(lambda state: state.update(curve=[{"epoch": 1}])),
    "no network": altered(lambda state: state.pop("network")),
    "other tensors": altered(other_tensors),
    "other random numbers": altered(lambda state: state.update(torch_random="none")),
}


@pytest.mark.parametrize("spoil", UNREADABLE.values(), ids=UNREADABLE)
def test_a_checkpoint_that_cannot_be_read_counts_as_absent(
    tmp_path: Path,
    undisturbed: bytes,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
) -> None:
    checkpoint = tmp_path / "dnn.pt"
    kill(checkpoint, after=1)
    spoil(checkpoint)
    told: list[EpochReport] = []
    assert train(checkpoint, progress=told.append).weights() == undisturbed
    assert len(told) == EPOCHS
    first = warnings_of(caplog)[0]
    assert first.startswith(f"the checkpoint {checkpoint} cannot be read (")
    assert first.endswith("): training starts anew")
    assert len(first.splitlines()) == 1
    assert "weights_only" not in caplog.text
    assert not (tmp_path / "executed").exists()


def test_one_warning_is_enough(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint, config = tmp_path / "dnn.pt", replace(CONFIG, members=2)
    checkpoint.write_bytes(b"")
    train(checkpoint, config)
    assert warnings_of(caplog) == [
        f"the checkpoint {checkpoint} cannot be read (BadZipFile): training starts anew"
    ]


def test_a_training_without_a_checkpoint_or_with_another_ones_warns_of_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "new" / "dnn.pt"
    kill(checkpoint, after=1)
    train(checkpoint, replace(CONFIG, seed=1))
    assert warnings_of(caplog) == []


# --- two at once ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [CONFIG.seed, CONFIG.seed + 1], ids=["the same training", "another one"])
def test_two_trainings_with_one_checkpoint_both_end_right(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    undisturbed: bytes,
    seed: int,
) -> None:
    """The second runs from its start to its end while the first has written, and not yet kept, an epoch."""
    checkpoint, other = tmp_path / "dnn.pt", replace(CONFIG, seed=seed)
    saves: list[bytes] = []
    save = torch.save

    def interrupted_save(*content: Any) -> None:
        save(*content)
        if len(saves) == 0:
            saves.append(b"")
            saves.append(train(checkpoint, other).weights())

    monkeypatch.setattr(torch, "save", interrupted_save)
    assert train(checkpoint).weights() == undisturbed
    assert saves[1] == train(None, other).weights()
    assert warnings_of(caplog) == []
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_a_training_never_goes_on_from_another_ones_checkpoint(tmp_path: Path, undisturbed: bytes) -> None:
    """The other one saves after every epoch of this one, which is then killed and run again."""
    checkpoint, other = tmp_path / "dnn.pt", replace(CONFIG, seed=1)

    def progress(report: EpochReport) -> None:
        if report.epoch == 2:
            kill(checkpoint, after=1, config=other)
            raise KilledError

    with pytest.raises(KilledError):
        train(checkpoint, progress=progress)
    assert train(checkpoint).weights() == undisturbed


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_checkpoint_that_cannot_be_written_is_done_without(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    undisturbed: bytes,
    code: int,
) -> None:
    """The disk is full when half of the second epoch is written."""
    checkpoint = tmp_path / "dnn.pt"
    calls: list[int] = []
    save = torch.save

    def fail_at_second(content: Any, file: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            return save(content, file)
        file.write(b"half")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(torch, "save", fail_at_second)
    assert train(checkpoint).weights() == undisturbed
    assert warnings_of(caplog) == [
        f"the checkpoint {checkpoint} cannot be written ({os.strerror(code)}): training goes on without it"
    ]
    assert len(calls) == 2  # each attempt would fill the disk again, for others, too
    assert list(tmp_path.iterdir()) == [checkpoint]  # no half one; that of the first epoch


def test_a_disk_that_is_full_within_torch_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, undisturbed: bytes
) -> None:
    """PyTorch hides the system's error behind one of its own where it fails in the midst of a tensor."""
    checkpoint = tmp_path / "dnn.pt"
    save = torch.save

    def save_on_a_full_disk(content: Any, _: Any) -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            save(content, full)

    monkeypatch.setattr(torch, "save", save_on_a_full_disk)
    assert train(checkpoint).weights() == undisturbed
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"the checkpoint {checkpoint} cannot be written (")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_whose_directory_cannot_be_made_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, undisturbed: bytes
) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    checkpoint = tmp_path / "checkpoints" / "dnn.pt"
    assert train(checkpoint).weights() == undisturbed
    (warning,) = warnings_of(caplog)
    assert "cannot be written" in warning


def test_what_was_saved_before_the_disk_was_full_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: bytes
) -> None:
    checkpoint = tmp_path / "dnn.pt"
    kill(checkpoint, after=2)
    with monkeypatch.context() as full:
        full.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))

        def stop(_: EpochReport) -> None:
            raise KilledError

        with pytest.raises(KilledError):
            train(checkpoint, progress=stop)
    told: list[EpochReport] = []
    assert train(checkpoint, progress=told.append).weights() == undisturbed
    assert [report.epoch for report in told] == [3]
