"""Deliveries: a file and the manifest that vouches for it, sent once, replaced whole, never half."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.steps.config.audience import FolderDestination
from pipelines.steps.errors import DataError
from pipelines.steps.targeting.deliveries import Manifest, count_rows, parse_manifest, sha256, stage_segment
from resources import destinations as destinations_module
from resources.destinations import LOCK, MANIFEST, SET_ASIDE, STAGING, Delivery, Destinations, Published
from tests.publishing_steps import DAY, DISTURBED, KILLED, REFUSED, UNDISTURBED

REPOSITORY = Path(__file__).parent.parent
CSV = FolderDestination(type="folder", path="out", format="csv")
PARQUET = FolderDestination(type="folder", path="out", format="parquet")
TOP = {"a": 0.75, "b": 0.5, "c": 0.25}
OTHER = {"a": 0.75, "d": 0.125}
PLACE = Path("out/buyers/top") / DAY
NEXT_DAY = "2025-03-11"


def segment_file(path: Path, segments: dict[str, dict[str, float]]) -> Path:
    """A file as the lake has it: several segments, ordered by segment and device."""
    rows = [
        {"segment": segment, "device_id": device, "probability": probability, "day": DAY}
        for segment, devices in sorted(segments.items())
        for device, probability in sorted(devices.items())
    ]
    text = pa.string()
    types: dict[str, pa.DataType] = {
        "segment": text, "device_id": text, "probability": pa.float32(), "day": text,
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(types)), path)
    return path


@pytest.fixture(autouse=True)
def disk_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here cuts the power: what is synced, and when, is counted by those that ask for it."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def destinations(tmp_path: Path) -> Destinations:
    return Destinations(root=str(tmp_path))


@pytest.fixture
def delivery(tmp_path: Path) -> Delivery:
    return delivery_in(tmp_path)


def delivery_in(directory: Path) -> Delivery:
    file = segment_file(directory / "segments.parquet", {"top": TOP, "other": {"z": 0.9}})
    return Delivery("buyers", "top", DAY, [file], len(TOP), "v1", "s1", "p1")


def changed(delivery: Delivery, directory: Path) -> Delivery:
    file = segment_file(directory / "changed.parquet", {"top": OTHER})
    return replace(delivery, files=[file], rows=2, segments_version="s2", predictions_version="p2")


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


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


@settings(deadline=timedelta(seconds=2), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.sets(st.text('"\n\r,a\\é', max_size=9), max_size=5), read_bytes=st.integers(1, 9))
def test_whatever_the_ids_and_the_blocks_every_row_is_counted(
    tmp_path: Path, ids: set[str], read_bytes: int
) -> None:
    file = segment_file(tmp_path / "any.parquet", {"top": dict.fromkeys(ids, 0.5)})
    path, _ = stage_segment([file], "top", "csv", tmp_path)
    assert count_rows(path, read_bytes) == len(ids)


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_an_id_of_a_megabyte_is_a_row(tmp_path: Path, format: str) -> None:
    long = {"a" * 1_000_000: 0.5, "b,\n" * 250_000: 0.25}
    path, _ = stage_segment([segment_file(tmp_path / "l.parquet", {"top": long})], "top", format, tmp_path)
    assert count_rows(path) == 2


def test_a_row_without_its_end_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "cut.csv").write_text('"device_id","probability"\n"a",0.75\n"b",0.')
    assert count_rows(tmp_path / "cut.csv") == 1


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1 and more, but no footer PAR1"])
def test_a_damaged_parquet_file_has_no_rows_but_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cut.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"the delivered file .*cut.parquet is damaged"):
        count_rows(tmp_path / "cut.parquet")


def test_devices_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="the devices of segment top cannot be read") as raised:
        stage_segment([tmp_path / "cut.parquet"], "top", "csv", tmp_path)
    assert raised.value.remedy == "materialize segments of that day again; nothing was published"


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
    published = destinations.publish(delivery, destination)
    manifest = published.manifest
    place = tmp_path / "out/buyers/top/2025-03-10"
    digest = sha256(place / manifest.file)
    assert (published.sent, published.repaired) == (True, None)
    assert manifest == Manifest(
        audience="buyers",
        segment="top",
        day="2025-03-10",
        file=f"devices-{digest[:12]}.{destination.format}",
        format=destination.format,
        rows=3,
        sha256=digest,
        model_version="v1",
        segments_version="s1",
        predictions_version="p1",
    )
    assert names_in(place) == [manifest.file, MANIFEST]
    assert delivered(destinations, delivery, destination) == TOP
    assert names_in(place.parent) == [LOCK, DAY]  # no staging left


@pytest.mark.parametrize("destination", [CSV, PARQUET], ids=["csv", "parquet"])
def test_delivering_twice_sends_nothing_new(
    destinations: Destinations, delivery: Delivery, destination: FolderDestination
) -> None:
    first = destinations.publish(delivery, destination)
    place = destinations.place("buyers", "top", DAY, destination)
    written = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in place.iterdir()}
    assert destinations.publish(delivery, destination) == Published(first.manifest, sent=False, repaired=None)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in place.iterdir()} == written


def test_equal_devices_of_another_write_are_not_sent_again(
    destinations: Destinations, delivery: Delivery, tmp_path: Path
) -> None:
    first = destinations.publish(delivery, CSV)
    written = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / PLACE).iterdir()}
    rerun = replace(delivery, segments_version="s2", predictions_version="p2")
    assert destinations.publish(rerun, CSV) == Published(first.manifest, sent=False, repaired=None)
    assert {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / PLACE).iterdir()
    } == written


def test_changed_devices_replace_the_file(
    destinations: Destinations, delivery: Delivery, tmp_path: Path
) -> None:
    destinations.publish(delivery, CSV)
    later = changed(delivery, tmp_path)
    published = destinations.publish(later, CSV)
    assert (published.sent, published.repaired, published.manifest.rows) == (True, None, 2)
    assert (published.manifest.segments_version, published.manifest.predictions_version) == ("s2", "p2")
    assert delivered(destinations, later, CSV) == OTHER
    assert names_in(tmp_path / PLACE) == [published.manifest.file, MANIFEST]


def test_another_format_replaces_the_file(
    destinations: Destinations, delivery: Delivery, tmp_path: Path
) -> None:
    destinations.publish(delivery, CSV)
    published = destinations.publish(delivery, PARQUET)
    assert names_in(tmp_path / PLACE) == [published.manifest.file, MANIFEST]
    assert delivered(destinations, delivery, PARQUET) == TOP


def test_another_model_with_the_same_devices_renews_the_manifest(
    destinations: Destinations, delivery: Delivery
) -> None:
    old = destinations.publish(delivery, CSV).manifest
    published = destinations.publish(replace(delivery, model_version="v2"), CSV)
    assert published == Published(replace(old, model_version="v2"), sent=True, repaired=None)
    assert delivered(destinations, delivery, CSV) == TOP


def test_segments_days_and_audiences_have_places_of_their_own(
    destinations: Destinations, delivery: Delivery, tmp_path: Path
) -> None:
    for other in (
        delivery,
        replace(delivery, segment="other", rows=1),
        replace(delivery, day=NEXT_DAY),
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


# --- what lies in a place is not believed ---------------------------------------------------------

ARBITRARY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def rewritten(**changes: object) -> Callable[[Path], None]:
    """Changes keys of the manifest; None takes one out."""

    def rewrite(path: Path) -> None:
        manifest = {**json.loads(path.read_bytes()), **changes}
        path.write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))

    return rewrite


def content(content: bytes) -> Callable[[Path], None]:
    return lambda path: cast("None", path.write_bytes(content))


def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else where the file was."""

    def replace_by(path: Path) -> None:
        path.unlink()
        make(path)

    return replace_by


def folder_with_a_file(path: Path) -> None:
    path.mkdir()
    (path / "theirs").write_text("keep")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def same_size(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.99"))


BAD_MANIFESTS: list[tuple[str, Callable[[Path], None], str]] = [
    ("empty", content(b""), "an empty file"),
    ("half", cut, "no JSON: "),
    ("no text", content(b"\xff\xfe"), "no JSON: "),
    ("deep", content(b"[" * 60_000), "no JSON: "),
    ("large", content(b" " * 70_000), "more than 65536 bytes"),
    ("null", content(b"null"), "JSON, but a NoneType instead of an object"),
    ("a list", content(b"[]"), "JSON, but a list instead of an object"),
    ("a number", content(b"7"), "JSON, but a int instead of an object"),
    ("no keys", content(b"{}"), "no audience, segment, day, file, format, rows"),
    ("before versions", rewritten(segments_version=None, predictions_version=None),
     "no segments_version, predictions_version"),
    ("another key", rewritten(owner="me"), "1 unknown keys"),
    ("rows as text", rewritten(rows="3"), "another type of rows"),
    ("rows as truth", rewritten(rows=True), "another type of rows"),
    ("rows as float", rewritten(rows=3.0), "another type of rows"),
    ("a list of days", rewritten(day=[DAY]), "another type of day"),
    ("a file elsewhere", rewritten(file="../../../../secrets"), "a file name that does not tell"),
    ("another hash", rewritten(sha256="0" * 64), "a file name that does not tell"),
    ("of another place", rewritten(segment="other"), "the manifest of another place"),
    ("a folder", instead(Path.mkdir), "a folder"),
    ("a full folder", instead(folder_with_a_file), "a folder"),
    ("a link", instead(lambda path: path.symlink_to("nowhere")), "a link"),
    ("a pipe", instead(os.mkfifo), "no regular file"),
]  # fmt: skip

BAD_FILES: list[tuple[str, Callable[[Path], None], str]] = [
    ("missing", Path.unlink, "missing"),
    ("empty", content(b""), "other content than its manifest's hash (0 bytes)"),
    ("cut", cut, "other content than its manifest's hash (49 bytes)"),
    ("of the same size", same_size, "other content than its manifest's hash (52 bytes)"),
    ("a folder", instead(Path.mkdir), "a folder"),
    ("a full folder", instead(folder_with_a_file), "a folder"),
    ("a link", instead(lambda path: path.symlink_to("nowhere")), "a link"),
    ("a pipe", instead(os.mkfifo), "no regular file"),
]


@pytest.mark.parametrize(
    ("damage", "said"), [case[1:] for case in BAD_MANIFESTS], ids=[case[0] for case in BAD_MANIFESTS]
)
def test_a_bad_manifest_is_told_replaced_and_said_so(
    destinations: Destinations,
    delivery: Delivery,
    tmp_path: Path,
    damage: Callable[[Path], None],
    said: str,
) -> None:
    manifest = destinations.publish(delivery, CSV).manifest
    damage(tmp_path / PLACE / MANIFEST)
    with pytest.raises(DataError, match=r"the manifest .*/manifest.json is damaged") as raised:
        destinations.published(tmp_path / PLACE)
    assert str(raised.value.found).startswith(said)

    published = destinations.publish(delivery, CSV)
    assert (published.manifest, published.sent) == (manifest, True)
    assert str(published.repaired).startswith(f"{MANIFEST}: {said}")
    assert delivered(destinations, delivery, CSV) == TOP


@pytest.mark.parametrize(
    ("damage", "said"), [case[1:] for case in BAD_FILES], ids=[case[0] for case in BAD_FILES]
)
def test_a_damaged_file_is_replaced_and_said_so(
    destinations: Destinations,
    delivery: Delivery,
    tmp_path: Path,
    damage: Callable[[Path], None],
    said: str,
) -> None:
    manifest = destinations.publish(delivery, CSV).manifest
    damage(tmp_path / PLACE / manifest.file)
    published = destinations.publish(delivery, CSV)
    assert published == Published(manifest, sent=True, repaired=f"{manifest.file}: {said}")
    assert delivered(destinations, delivery, CSV) == TOP


def test_a_damaged_manifest_is_told_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        parse_manifest(b"[1]", Path("place/manifest.json"))
    assert str(raised.value) == (
        "the manifest place/manifest.json is damaged\n"
        "  found:    JSON, but a list instead of an object\n"
        "  expected: a JSON object with audience, segment, day, file, format, rows, sha256, model_version, "
        "segments_version, predictions_version\n"
        "  remedy:   materialize deliveries of that day again: it replaces file and manifest"
    )


def test_what_a_damaged_manifest_holds_is_not_repeated(tmp_path: Path) -> None:
    for content in (b'"device-17"', b'{"device-17": 1}', b"device-17,0.5"):
        with pytest.raises(DataError) as raised:
            parse_manifest(content, Path("manifest.json"))
        assert "device-17" not in str(raised.value)


@given(content=st.binary() | ARBITRARY_JSON.map(lambda value: json.dumps(value).encode()))
def test_no_content_of_a_manifest_ends_in_another_error(content: bytes) -> None:
    with pytest.raises(DataError):
        parse_manifest(content, Path("manifest.json"))


@given(key=st.sampled_from(sorted(Manifest.__annotations__)), value=ARBITRARY_JSON)
def test_no_value_in_a_manifest_ends_in_another_error(key: str, value: Any) -> None:
    digest = "0123456789ab" + "0" * 52
    right = Manifest("buyers", "top", DAY, "devices-0123456789ab.csv", "csv", 3, digest, "v1", "s1", "p1")
    text = json.dumps({**asdict(right), key: value}).encode()
    if type(value) is type(getattr(right, key)) and key not in ("file", "format", "sha256"):
        assert parse_manifest(text, Path("manifest.json")) == replace(right, **{key: value})
        return
    with pytest.raises(DataError):
        parse_manifest(text, Path("manifest.json"))


@pytest.mark.parametrize("part", ["manifest", "file"])
def test_wherever_it_is_cut_or_changed_a_delivery_is_whole_after_the_next_publish(
    destinations: Destinations, delivery: Delivery, tmp_path: Path, part: str
) -> None:
    manifest = destinations.publish(delivery, CSV).manifest
    path = tmp_path / PLACE / {"manifest": MANIFEST, "file": manifest.file}[part]
    whole = path.read_bytes()
    # Primes, so that each key and value of the manifest is hit somewhere.
    for position in range(0, len(whole), {"manifest": 11, "file": 3}[part]):
        for damaged in (whole[:position], whole[:position] + b"#" + whole[position + 1 :]):
            path.write_bytes(damaged)
            published = destinations.publish(delivery, CSV)
            assert delivered(destinations, delivery, CSV) == TOP, (position, damaged)
            assert names_in(tmp_path / PLACE) == [manifest.file, MANIFEST]
            # A changed version in the manifest names another write of the same content; all else is said.
            assert published.sent or b"_version" in whole[:position].splitlines()[-1]
            assert part == "manifest" or published.repaired is not None


def test_repairs_are_logged(
    destinations: Destinations, delivery: Delivery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    logger = SimpleNamespace(warning=logged.append)
    monkeypatch.setattr("dagster.get_dagster_logger", lambda: logger)
    destinations.publish(delivery, CSV)
    assert logged == []
    (tmp_path / PLACE / MANIFEST).write_bytes(b"")
    destinations.publish(delivery, CSV)
    assert logged == [f"repaired the delivery {tmp_path / PLACE}: {MANIFEST}: an empty file"]


# --- what is ours, and what is not ----------------------------------------------------------------


@pytest.mark.parametrize("sent", [True, False], ids=["sent", "nothing new"])
def test_files_that_no_manifest_names_are_removed(
    destinations: Destinations, delivery: Delivery, tmp_path: Path, sent: bool
) -> None:
    destinations.publish(delivery, CSV)
    for left in ("devices-0123456789ab.csv", "devices-0123456789ab.parquet"):
        (tmp_path / PLACE / left).write_text("yesterday's")
    published = destinations.publish(changed(delivery, tmp_path) if sent else delivery, CSV)
    assert published.sent == sent
    assert names_in(tmp_path / PLACE) == [published.manifest.file, MANIFEST]


@pytest.mark.parametrize("sent", [True, False], ids=["sent", "nothing new"])
def test_what_is_not_ours_stays(
    destinations: Destinations, delivery: Delivery, tmp_path: Path, sent: bool
) -> None:
    destinations.publish(delivery, CSV)
    theirs = ["_SUCCESS", "devices-of-mine.csv", "manifest.json.old", "notes.txt"]
    for name in theirs:
        (tmp_path / PLACE / name).write_text("keep")
    folder_with_a_file(tmp_path / PLACE / "devices-0123456789ab.csv")
    (tmp_path / PLACE.parent / f"{STAGING}file").write_text("keep")
    published = destinations.publish(changed(delivery, tmp_path) if sent else delivery, CSV)
    ours = [published.manifest.file, MANIFEST]
    assert names_in(tmp_path / PLACE) == sorted([*theirs, *ours, "devices-0123456789ab.csv"])
    assert names_in(tmp_path / PLACE.parent) == [LOCK, f"{STAGING}file", DAY]


@pytest.mark.parametrize("name", [MANIFEST, "the file"])
def test_a_folder_in_the_way_is_set_aside_with_what_it_holds(
    destinations: Destinations, delivery: Delivery, tmp_path: Path, name: str
) -> None:
    manifest = destinations.publish(delivery, CSV).manifest
    path = tmp_path / PLACE / (name if name == MANIFEST else manifest.file)
    path.unlink()
    folder_with_a_file(path)
    destinations.publish(delivery, CSV)
    assert delivered(destinations, delivery, CSV) == TOP
    [aside] = (tmp_path / PLACE).glob(f"{SET_ASIDE}*")
    assert aside.name.endswith(f"-{path.name}")
    assert (aside / "theirs").read_text() == "keep"


def test_abandoned_staging_goes_with_the_next_publish_whatever_its_age(
    destinations: Destinations, delivery: Delivery, tmp_path: Path
) -> None:
    segment = tmp_path / PLACE.parent
    folder_with_a_file_of = [f"{STAGING}{DAY}-0123", f"{STAGING}0123", f"{STAGING}..-0123"]
    segment.mkdir(parents=True)
    for name in folder_with_a_file_of:
        folder_with_a_file(segment / name)
    destinations.publish(delivery, CSV)
    assert names_in(segment) == [LOCK, DAY]


# --- where deliveries may go ----------------------------------------------------------------------


def linked_out(root: Path, outside: Path) -> str:
    (root / "out").symlink_to(outside)
    return "out"


def linked_below(root: Path, outside: Path) -> str:
    (root / PLACE.parent).mkdir(parents=True)
    (root / PLACE).symlink_to(outside)
    return "out"


@pytest.mark.parametrize(
    "lead_out",
    [
        linked_out,
        linked_below,
        lambda root, outside: f"../{outside.name}",
        lambda root, outside: str(outside),
    ],
    ids=["a link", "a link below", "dots", "absolute"],
)
def test_a_place_outside_the_data_is_refused(
    tmp_path: Path, delivery: Delivery, lead_out: Callable[[Path, Path], str]
) -> None:
    root, outside = tmp_path / "data", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    # Loading a project refuses dots and absolute paths already.
    destination = FolderDestination.model_construct(path=lead_out(root, outside))
    with pytest.raises(DataError, match="lies outside DATA_DIR") as raised:
        Destinations(root=str(root)).publish(delivery, destination)
    assert raised.value.expected == f"a folder within {root}"
    assert raised.value.remedy == (
        "take `..` or the link out of deliver_to.path, or say `outside_data_dir: true` beside it"
    )
    assert names_in(outside) == []


def test_a_place_outside_the_data_is_fine_where_it_is_asked_for(tmp_path: Path, delivery: Delivery) -> None:
    root, outside = tmp_path / "data", tmp_path / "outside"
    destination = FolderDestination(type="folder", path=str(outside), outside_data_dir=True)
    published = Destinations(root=str(root)).publish(delivery, destination)
    assert names_in(outside / "buyers/top" / DAY) == [published.manifest.file, MANIFEST]


def test_a_data_directory_behind_a_link_is_no_other_place(tmp_path: Path, delivery: Delivery) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to("disk")
    assert Destinations(root=str(tmp_path / "data")).publish(delivery, CSV).sent


def test_links_in_a_circle_are_refused(tmp_path: Path, delivery: Delivery) -> None:
    (tmp_path / "out").symlink_to("out")
    with pytest.raises(DataError, match=r"cannot be resolved|cannot be read or written"):
        Destinations(root=str(tmp_path)).publish(delivery, CSV)


@pytest.mark.parametrize("taken", [PLACE, PLACE.parent, PLACE.parents[2]], ids=["day", "segment", "folder"])
def test_a_file_where_the_folder_belongs_is_refused_and_kept(
    destinations: Destinations, delivery: Delivery, tmp_path: Path, taken: Path
) -> None:
    (tmp_path / taken).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / taken).write_text("keep")
    with pytest.raises(DataError, match=r"the delivery .* cannot be read or written") as raised:
        destinations.publish(delivery, CSV)
    assert str(raised.value.remedy).startswith("move away what lies where our folder belongs, then")
    assert (tmp_path / taken).read_text() == "keep"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "let the user who runs this read and write there"),
        (errno.ENOSPC, "make room there"),
        (errno.ENOLCK, "mount that file system with file locks"),
        (errno.EIO, "look at that storage"),
    ],
)
def test_an_error_of_the_file_system_is_told_with_its_remedy(
    destinations: Destinations,
    delivery: Delivery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    remedy: str,
) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number), "the/file")

    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(DataError) as raised:
        destinations.publish(delivery, CSV)
    assert str(raised.value) == (
        f"the delivery {tmp_path / PLACE} cannot be read or written\n"
        f"  found:    {os.strerror(number)} (the/file)\n"
        "  expected: a folder that can be read and written, with room for the file\n"
        f"  remedy:   {remedy}, then materialize deliveries again"
    )


# --- on disk, before it is named ------------------------------------------------------------------


def test_file_and_folders_are_on_disk_before_the_manifest_names_them(
    destinations: Destinations, delivery: Delivery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, str]] = []
    replace_file = Path.replace

    def synced(descriptor: int) -> None:
        done.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name))

    def renamed(path: Path, target: Path) -> Path:
        done.append(("rename", target.name))
        return replace_file(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    file = destinations.publish(delivery, CSV).manifest.file
    by_file, by_manifest = done.index(("rename", file)), done.index(("rename", MANIFEST))
    folders = {("sync", name) for name in (tmp_path.name, "out", "buyers", "top")}
    assert {("sync", "devices.csv"), ("sync", MANIFEST), *folders} <= set(done[:by_file])
    assert done[by_file + 1 : by_manifest] == [("sync", DAY)]
    assert done[by_manifest + 1 :] == [("sync", DAY)]


# --- interrupted, failing, and meeting another run ------------------------------------------------

OTHER_DEVICES, EQUAL, CUT_MANIFEST = "other devices", "equal devices", "a cut manifest"
EARLIER: dict[str, dict[str, float] | str] = {
    "nothing": "nothing",
    OTHER_DEVICES: OTHER,
    EQUAL: TOP,
    CUT_MANIFEST: CUT_MANIFEST,
}
"""What is in the place before TOP is published → what a reader finds there."""
ENDING = [
    *(("kill", start) for start in EARLIER),
    ("fail", OTHER_DEVICES),
]
MEETING = [("meet", "nothing"), ("meet", OTHER_DEVICES)]
Disturbed = Callable[[str, str], list[tuple[Path, list[int]]]]
"""Mode and start → root and exit codes of each publish, disturbed one step later than the one before."""


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    """One program makes them all: it takes longer to start than a hundred publishes."""
    folder = tmp_path_factory.mktemp("disturbed")
    delivery = delivery_in(folder)
    other = changed(delivery, folder)
    for mode, start in ENDING + MEETING:
        before = folder / mode / start / "before"
        before.mkdir(parents=True)
        if start == "nothing":
            continue
        Destinations(root=str(before)).publish(other if start == OTHER_DEVICES else delivery, CSV)
        if start == CUT_MANIFEST:
            cut(before / PLACE / MANIFEST)
    files = [str(delivery.files[0]), str(delivery.rows), str(other.files[0]), str(other.rows)]
    cases = [f"{mode}={folder / mode / start}" for mode, start in ENDING + MEETING]
    command = [sys.executable, "-m", "tests.publishing_steps", *files, *cases]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    def runs(mode: str, start: str) -> list[tuple[Path, list[int]]]:
        lines = (folder / mode / start / "ends").read_text().splitlines()
        assert len(lines) > (5 if start == EQUAL else 20)
        return [
            (folder / mode / start / str(step), [int(end) for end in line.split()])
            for step, line in enumerate(lines, start=1)
        ]

    return runs


def readable(root: Path, delivery: Delivery) -> dict[str, float] | str:
    """What a reader finds: devices, or what is wrong with them."""
    destinations = Destinations(root=str(root))
    try:
        if destinations.published(root / PLACE) is None:
            return "nothing"
    except DataError:
        return CUT_MANIFEST
    return delivered(destinations, delivery, CSV)


@pytest.mark.parametrize(("mode", "start"), ENDING)
def test_a_publish_that_ends_at_any_step_leaves_the_earlier_delivery_or_the_new_one(
    disturbed: Disturbed, delivery: Delivery, mode: str, start: str
) -> None:
    ended = {"kill": KILLED, "fail": REFUSED}[mode]
    for root, ends in disturbed(mode, start):
        # Making a folder may fail where it is there already: then the step did not matter.
        assert ends in ([ended], [UNDISTURBED], [DISTURBED] if mode == "fail" else [ended])
        found = readable(root, delivery)
        assert found in ([EARLIER[start], TOP] if ends == [ended] else [TOP]), root

        another_day = root.with_name(f"{root.name} another day")
        shutil.copytree(root, another_day)
        Destinations(root=str(another_day)).publish(replace(delivery, day=NEXT_DAY), CSV)
        assert readable(another_day, delivery) == found
        assert names_in(another_day / PLACE.parent)[:2] in ([LOCK, DAY], [LOCK, NEXT_DAY])
        if found != CUT_MANIFEST:  # it does not tell what is to stay
            left = list((another_day / PLACE).glob("*"))
            assert len(left) == (0 if found == "nothing" else 2), left

        manifest = Destinations(root=str(root)).publish(delivery, CSV).manifest
        assert readable(root, delivery) == TOP
        assert names_in(root / PLACE) == [manifest.file, MANIFEST], root
        assert names_in(root / PLACE.parent) == [LOCK, DAY], root


@pytest.mark.parametrize(("mode", "start"), MEETING)
def test_two_runs_that_meet_at_any_step_leave_one_of_both_whole(
    disturbed: Disturbed, delivery: Delivery, mode: str, start: str
) -> None:
    for root, ends in disturbed(mode, start):
        assert ends in ([DISTURBED, UNDISTURBED], [UNDISTURBED, UNDISTURBED])
        assert readable(root, delivery) in (TOP, OTHER), root
        assert len(names_in(root / PLACE)) == 2, root
        assert names_in(root / PLACE.parent) == [LOCK, DAY], root


def test_a_run_waits_for_another_one_no_longer_than_its_limit(
    destinations: Destinations, delivery: Delivery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destinations_module, "LOCK_WAIT_SECONDS", 0.1)
    destinations.publish(delivery, CSV)
    segment = tmp_path / PLACE.parent
    with (segment / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError) as raised:
            destinations.publish(delivery, CSV)
    assert str(raised.value) == (
        f"another run has been publishing to {segment} for 0.1 s\n"
        "  found:    its lock on .lock\n"
        "  expected: a run that ends\n"
        "  remedy:   see whether that run hangs, end it, and materialize deliveries again"
    )
    assert not destinations.publish(delivery, CSV).sent
