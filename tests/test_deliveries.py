"""Deliveries: a file and the manifest that vouches for it, sent once, replaced whole, never half."""

import hashlib
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from pipelines.steps.deliveries import Manifest, count_rows, sha256, stage_segment
from pipelines.steps.errors import DataError
from pipelines.steps.project import FolderDestination
from resources.destinations import ABANDONED_AGE_SECONDS, MANIFEST, STAGING, Delivery, Destinations

REPOSITORY = Path(__file__).parent.parent
CSV = FolderDestination(type="folder", path="out", format="csv")
PARQUET = FolderDestination(type="folder", path="out", format="parquet")
TOP = {"a": 0.75, "b": 0.5, "c": 0.25}


def segment_file(path: Path, segments: dict[str, dict[str, float]]) -> Path:
    """A file as the lake has it: several segments, ordered by segment and device."""
    rows = [
        {"segment": segment, "device_id": device, "probability": probability, "day": "2025-03-10"}
        for segment, devices in sorted(segments.items())
        for device, probability in sorted(devices.items())
    ]
    text = pa.string()
    types: dict[str, pa.DataType] = {
        "segment": text, "device_id": text, "probability": pa.float32(), "day": text,
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(types)), path)
    return path


@pytest.fixture
def destinations(tmp_path: Path) -> Destinations:
    return Destinations(root=str(tmp_path))


@pytest.fixture
def delivery(tmp_path: Path) -> Delivery:
    file = segment_file(tmp_path / "segments.parquet", {"top": TOP, "other": {"z": 0.9}})
    return Delivery("buyers", "top", "2025-03-10", [file], rows=len(TOP), model_version="v1")


def changed(delivery: Delivery, tmp_path: Path) -> Delivery:
    file = segment_file(tmp_path / "changed.parquet", {"top": {"a": 0.75, "d": 0.125}})
    return replace(delivery, files=[file], rows=2)


def devices_in(path: Path) -> dict[str, float]:
    table = pq.read_table(path) if path.suffix == ".parquet" else pa_csv.read_csv(path)
    return {row["device_id"]: row["probability"] for row in table.to_pylist()}


def delivered(
    destinations: Destinations, delivery: Delivery, destination: FolderDestination
) -> dict[str, float]:
    """What a reader finds who follows the manifest."""
    place = destinations.place(delivery.audience, delivery.segment, delivery.day, destination)
    manifest = destinations.published(place)
    assert manifest is not None
    file = place / manifest.file
    assert (count_rows(file), sha256(file)) == (manifest.rows, manifest.sha256)
    return devices_in(file)


# --- the staged file ------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_segment_is_staged_without_the_others(delivery: Delivery, tmp_path: Path, format: str) -> None:
    path, rows = stage_segment(delivery.files, "top", format, tmp_path)
    assert (path, rows) == (tmp_path / f"devices.{format}", 3)
    assert devices_in(path) == TOP
    assert count_rows(path) == 3


def test_a_csv_file_reads_like_this(delivery: Delivery, tmp_path: Path) -> None:
    path, _ = stage_segment(delivery.files, "top", "csv", tmp_path)
    assert path.read_text() == '"device_id","probability"\n"a",0.75\n"b",0.5\n"c",0.25\n'


def test_ids_with_quotes_commas_and_line_ends_are_counted_as_rows(tmp_path: Path) -> None:
    odd = {'say "hi"': 0.5, "a,b": 0.25, "two\nlines": 0.125}
    path, _ = stage_segment([segment_file(tmp_path / "odd.parquet", {"top": odd})], "top", "csv", tmp_path)
    assert count_rows(path) == 3


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_an_empty_segment_is_a_file_without_rows(tmp_path: Path, format: str) -> None:
    path, rows = stage_segment([], "top", format, tmp_path)
    assert (rows, count_rows(path)) == (0, 0)


def test_a_staged_file_is_described_by_its_hash(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert sha256(tmp_path / "file") == hashlib.sha256(b"content").hexdigest()


# --- publishing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("destination", [CSV, PARQUET], ids=["csv", "parquet"])
def test_a_delivery_is_a_file_and_its_manifest(
    destinations: Destinations, delivery: Delivery, tmp_path: Path, destination: FolderDestination
) -> None:
    manifest, new = destinations.publish(delivery, destination)
    place = tmp_path / "out/buyers/top/2025-03-10"
    digest = sha256(place / manifest.file)
    assert new
    assert manifest == Manifest(
        audience="buyers",
        segment="top",
        day="2025-03-10",
        file=f"devices-{digest[:12]}.{destination.format}",
        format=destination.format,
        rows=3,
        sha256=digest,
        model_version="v1",
    )
    assert sorted(path.name for path in place.iterdir()) == sorted([MANIFEST, manifest.file])
    assert delivered(destinations, delivery, destination) == TOP
    assert [path.name for path in place.parent.iterdir()] == ["2025-03-10"]  # no staging left


@pytest.mark.parametrize("destination", [CSV, PARQUET], ids=["csv", "parquet"])
def test_delivering_twice_sends_nothing_new(
    destinations: Destinations, delivery: Delivery, destination: FolderDestination
) -> None:
    first, _ = destinations.publish(delivery, destination)
    place = destinations.place("buyers", "top", "2025-03-10", destination)
    written = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    again, new = destinations.publish(delivery, destination)
    assert (again, new) == (first, False)
    assert {path: path.stat().st_mtime_ns for path in place.iterdir()} == written


def test_changed_devices_replace_the_file(
    destinations: Destinations, delivery: Delivery, tmp_path: Path
) -> None:
    old, _ = destinations.publish(delivery, CSV)
    later = changed(delivery, tmp_path)
    manifest, new = destinations.publish(later, CSV)
    place = destinations.place("buyers", "top", "2025-03-10", CSV)
    assert (new, manifest.rows) == (True, 2)
    assert delivered(destinations, later, CSV) == {"a": 0.75, "d": 0.125}
    assert not (place / old.file).exists()


def test_another_model_with_the_same_devices_renews_the_manifest(
    destinations: Destinations, delivery: Delivery
) -> None:
    old, _ = destinations.publish(delivery, CSV)
    manifest, new = destinations.publish(replace(delivery, model_version="v2"), CSV)
    assert (new, manifest) == (True, replace(old, model_version="v2"))
    assert delivered(destinations, delivery, CSV) == TOP


def test_a_file_that_was_taken_away_is_sent_again(destinations: Destinations, delivery: Delivery) -> None:
    manifest, _ = destinations.publish(delivery, CSV)
    (destinations.place("buyers", "top", "2025-03-10", CSV) / manifest.file).unlink()
    assert destinations.publish(delivery, CSV) == (manifest, True)
    assert delivered(destinations, delivery, CSV) == TOP


def test_segments_days_and_audiences_have_places_of_their_own(
    destinations: Destinations, delivery: Delivery, tmp_path: Path
) -> None:
    for other in (
        delivery,
        replace(delivery, segment="other", rows=1),
        replace(delivery, day="2025-03-11"),
        replace(delivery, audience="readers"),
    ):
        destinations.publish(other, CSV)
    manifests = sorted(
        path.parent.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob(MANIFEST)
    )
    assert manifests == [
        "buyers/other/2025-03-10",
        "buyers/top/2025-03-10",
        "buyers/top/2025-03-11",
        "readers/top/2025-03-10",
    ]


def test_nothing_was_published_where_nothing_was(destinations: Destinations, tmp_path: Path) -> None:
    assert destinations.published(tmp_path) is None


def test_what_a_killed_publish_left_is_removed_a_day_later(
    destinations: Destinations, delivery: Delivery
) -> None:
    segment = destinations.place(delivery.audience, delivery.segment, delivery.day, CSV).parent
    abandoned, recent = segment / f"{STAGING}abandoned", segment / f"{STAGING}recent"
    for staging, age in ((abandoned, ABANDONED_AGE_SECONDS + 60), (recent, 60)):
        staging.mkdir(parents=True)
        os.utime(staging, (time.time() - age, time.time() - age))
    destinations.publish(delivery, CSV)
    assert not abandoned.exists()
    assert recent.exists()  # another run may be at work in it


@pytest.mark.parametrize("rows", [2, 4])
def test_other_rows_than_the_segment_has_are_not_published(
    destinations: Destinations, delivery: Delivery, tmp_path: Path, rows: int
) -> None:
    destinations.publish(delivery, CSV)
    with pytest.raises(DataError) as raised:
        destinations.publish(replace(changed(delivery, tmp_path), rows=rows + 1), CSV)
    assert str(raised.value) == (
        "the staged file of buyers/top 2025-03-10 is incomplete\n"
        "  found:    2 rows\n"
        f"  expected: {rows + 1} rows\n"
        "  remedy:   materialize segments again; nothing was published"
    )
    assert delivered(destinations, delivery, CSV) == TOP


# --- interrupted ----------------------------------------------------------------------------------

PUBLISH_AND_DIE = """
import os, sys
from pathlib import Path
from pipelines.steps.project import FolderDestination
from resources.destinations import Delivery, Destinations

root, file, last_rename = sys.argv[1:]

def die(event, arguments):
    if event == "os.rename" and Path(str(arguments[1])).name.startswith(last_rename):
        os._exit(9)  # as SIGKILL: no handler, no cleaning up

sys.addaudithook(die)
delivery = Delivery("buyers", "top", "2025-03-10", [Path(file)], 2, "v1")
Destinations(root=root).publish(delivery, FolderDestination(type="folder", path="out", format="csv"))
"""


@pytest.mark.parametrize("last_rename", ["devices-", MANIFEST])
def test_a_publish_killed_midway_leaves_the_previous_delivery(
    destinations: Destinations, delivery: Delivery, tmp_path: Path, last_rename: Literal["devices-"]
) -> None:
    destinations.publish(delivery, CSV)
    later = changed(delivery, tmp_path)
    command = [sys.executable, "-c", PUBLISH_AND_DIE, str(tmp_path), str(later.files[0]), last_rename]
    killed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert killed.returncode == 9, killed.stderr
    assert delivered(destinations, delivery, CSV) == TOP

    assert destinations.publish(later, CSV)[1]
    assert delivered(destinations, later, CSV) == {"a": 0.75, "d": 0.125}
    place = destinations.place("buyers", "top", "2025-03-10", CSV)
    assert len(list(place.glob("devices-*"))) == 1
