"""The lake: partitions are replaced whole or not at all, and what is missing is said."""

import time
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession

from pipelines.steps.errors import DataError
from resources.lake import ORPHAN_AGE_SECONDS, Lake
from resources.snapshots import Partition
from tests.conftest import Frame

MONDAY, TUESDAY, WEDNESDAY = "2025-03-10", "2025-03-11", "2025-03-12"
DDL = "device_id string, day date, score double"
Row = tuple[str, str, float]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(root=str(tmp_path / "lake"))


@pytest.fixture
def scores(frame: Frame) -> "Scores":
    return Scores(frame)


class Scores:
    """Makes the one kind of table that these tests write."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def __call__(self, *rows: Row) -> DataFrame:
        return self._frame(DDL, [(device, date.fromisoformat(day), score) for device, day, score in rows])


def read(lake: Lake, spark: SparkSession, *keys: str) -> list[Row]:
    rows = lake.read(spark, "scores", keys).toArrow().to_pylist()
    return sorted((row["device_id"], row["day"].isoformat(), row["score"]) for row in rows)


def write(lake: Lake, rows: DataFrame, *keys: str, **options: object) -> dict[str, Partition]:
    return lake.write(rows, "scores", by=["day"], keys=keys, sort=["device_id"], **options)  # type: ignore[arg-type]


def versions(lake: Lake) -> list[str]:
    return sorted(path.name for path in (Path(lake.root) / "scores/data").iterdir())


# --- writing and reading --------------------------------------------------------------------------


def test_rows_are_read_as_they_were_written(lake: Lake, spark: SparkSession, frame: Frame) -> None:
    ddl = (
        "day date, n tinyint, big bigint, score float, at timestamp, tokens array<string>, ids array<int>, "
        "text string"
    )
    at = datetime(2025, 3, 10, 23, 59, 59, 999_999, tzinfo=UTC)
    rows = [
        (date(2025, 3, 10), 1, 2**40, 0.1, at, ["b", "a"], [3, 1], "é"),
        (date(2025, 3, 10), None, None, None, None, None, None, None),
    ]
    written = frame(ddl, rows)
    lake.write(written, "all_types", by=["day"], keys=[MONDAY])
    found = lake.read(spark, "all_types", [MONDAY])
    assert found.schema.simpleString() == written.schema.simpleString()
    assert sorted(found.toArrow().to_pylist(), key=repr) == sorted(written.toArrow().to_pylist(), key=repr)


def test_each_day_is_a_partition_of_its_own(lake: Lake, spark: SparkSession, scores: Scores) -> None:
    rows: list[Row] = [("b", MONDAY, 1.0), ("a", MONDAY, 2.0), ("a", TUESDAY, 3.0)]
    written = write(lake, scores(*rows), MONDAY, TUESDAY)
    assert {key: partition.rows for key, partition in written.items()} == {MONDAY: 2, TUESDAY: 1}
    assert lake.partition_keys("scores") == [MONDAY, TUESDAY]
    assert read(lake, spark, TUESDAY) == [("a", TUESDAY, 3.0)]
    assert read(lake, spark, MONDAY, TUESDAY) == sorted(rows)


def test_a_partition_may_have_two_columns(lake: Lake, spark: SparkSession, frame: Frame) -> None:
    rows = frame(
        "audience string, day date, n int",
        [("buyers", date(2025, 3, 10), 1), ("readers", date(2025, 3, 10), 2)],
    )
    keys = [f"buyers/{MONDAY}", f"readers/{MONDAY}"]
    lake.write(rows, "predictions", by=["audience", "day"], keys=keys)
    assert lake.partition_keys("predictions") == keys
    assert lake.partition_keys("predictions", within="readers") == [
        key.removeprefix("readers/") for key in keys if key.startswith("readers/")
    ]
    assert lake.partition_keys("predictions", within="nobody") == []
    [row] = lake.read(spark, "predictions", [f"readers/{MONDAY}"]).toArrow().to_pylist()
    assert row == {"audience": "readers", "day": date(2025, 3, 10), "n": 2}


def test_a_partition_without_rows_is_known_and_empty(lake: Lake, spark: SparkSession, scores: Scores) -> None:
    write(lake, scores(("a", MONDAY, 1.0)), MONDAY, TUESDAY)
    assert lake.partition("scores", TUESDAY).rows == 0
    assert lake.files("scores", [TUESDAY]) == []
    assert read(lake, spark, TUESDAY) == []
    assert read(lake, spark, MONDAY, TUESDAY) == [("a", MONDAY, 1.0)]
    assert lake.read(spark, "scores", [TUESDAY]).schema.simpleString() == scores().schema.simpleString()


def test_rows_of_a_file_are_sorted(lake: Lake, scores: Scores) -> None:
    # Deliveries rely on it: files of a segment are streamed in their order.
    unsorted: list[Row] = [(device, day, 1.0) for device in "cabd" for day in (TUESDAY, MONDAY)]
    write(lake, scores(*unsorted), MONDAY, TUESDAY)
    for day in (MONDAY, TUESDAY):
        [file] = lake.files("scores", [day])
        assert pq.ParquetFile(file).read().column("device_id").to_pylist() == ["a", "b", "c", "d"]


def test_a_partition_may_be_spread_over_files(lake: Lake, spark: SparkSession, scores: Scores) -> None:
    rows: list[Row] = [(f"device-{number:02}", MONDAY, 1.0) for number in range(40)]
    write(lake, scores(*rows), MONDAY, files_per_partition=4)
    assert read(lake, spark, MONDAY) == rows
    # Spark's adaptive execution may join small ones, so that at most 4 are left.
    assert 1 <= len(lake.files("scores", [MONDAY])) <= 4


def test_what_the_writer_wants_to_remember_is_kept(lake: Lake, scores: Scores) -> None:
    properties = {"vocabulary_hash": "ab12", "as_of_days": [MONDAY]}
    write(lake, scores(("a", MONDAY, 1.0)), MONDAY, TUESDAY, properties=properties)
    assert lake.partition("scores", MONDAY).properties == properties
    assert lake.partition("scores", TUESDAY).properties == properties


# --- replacing ------------------------------------------------------------------------------------


def test_writing_again_replaces_its_partitions_and_no_other(
    lake: Lake, spark: SparkSession, scores: Scores
) -> None:
    first = write(
        lake,
        scores(("a", MONDAY, 1.0), ("a", TUESDAY, 1.0), ("a", WEDNESDAY, 1.0)),
        MONDAY,
        TUESDAY,
        WEDNESDAY,
    )
    second = write(lake, scores(("b", TUESDAY, 2.0)), TUESDAY, WEDNESDAY)
    assert read(lake, spark, MONDAY, TUESDAY, WEDNESDAY) == [("a", MONDAY, 1.0), ("b", TUESDAY, 2.0)]
    assert lake.partition("scores", MONDAY) == first[MONDAY]
    assert lake.partition("scores", TUESDAY) == second[TUESDAY]
    assert first[TUESDAY].version != second[TUESDAY].version


def test_a_table_may_be_rewritten_from_itself(lake: Lake, spark: SparkSession, scores: Scores) -> None:
    write(lake, scores(("a", MONDAY, 1.0)), MONDAY)
    doubled = lake.read(spark, "scores", [MONDAY]).selectExpr("device_id", "day", "score * 2 AS score")
    write(lake, doubled, MONDAY)
    assert read(lake, spark, MONDAY) == [("a", MONDAY, 2.0)]


def test_a_write_that_fails_midway_leaves_the_old_rows(
    lake: Lake, spark: SparkSession, scores: Scores
) -> None:
    write(lake, scores(("a", MONDAY, 1.0), ("b", TUESDAY, 1.0)), MONDAY, TUESDAY)
    # A task fails on the second partition, after Spark has begun to write the first.
    broken = scores(("new", MONDAY, 2.0), ("new", TUESDAY, 0.0)).selectExpr(
        "device_id", "day", f"IF(day = '{TUESDAY}', raise_error('worker lost'), score) AS score"
    )
    with pytest.raises(Exception, match="worker lost"):
        write(lake, broken, MONDAY, TUESDAY)
    assert read(lake, spark, MONDAY, TUESDAY) == [("a", MONDAY, 1.0), ("b", TUESDAY, 1.0)]


def test_rows_of_a_partition_not_named_are_refused_and_nothing_is_replaced(
    lake: Lake, spark: SparkSession, scores: Scores
) -> None:
    write(lake, scores(("a", MONDAY, 1.0)), MONDAY)
    before = versions(lake)
    with pytest.raises(DataError) as raised:
        write(lake, scores(("b", MONDAY, 2.0), ("b", WEDNESDAY, 2.0)), MONDAY, TUESDAY)
    assert str(raised.value) == (
        "rows of other partitions than asked for were about to be written to scores\n"
        "  found:    2025-03-12\n"
        "  expected: 2025-03-10, 2025-03-11\n"
        "  remedy:   this is a fault of the step that made the rows; nothing was replaced"
    )
    assert read(lake, spark, MONDAY) == [("a", MONDAY, 1.0)]
    assert (lake.partition_keys("scores"), versions(lake)) == ([MONDAY], before)


def test_rows_that_were_lost_on_the_way_are_missed_and_nothing_is_replaced(
    lake: Lake, spark: SparkSession, scores: Scores
) -> None:
    write(lake, scores(("a", MONDAY, 1.0)), MONDAY)
    expected = {MONDAY: 2, TUESDAY: 1}
    with pytest.raises(DataError) as raised:
        write(lake, scores(("b", MONDAY, 2.0)), MONDAY, TUESDAY, expected_rows=expected)
    assert str(raised.value).startswith(
        "other rows of scores were written than expected\n"
        "  found:    1 rows of 2025-03-10, 0 rows of 2025-03-11\n"
        "  expected: 2 rows of 2025-03-10, 1 rows of 2025-03-11\n"
        "  remedy:   nothing was replaced: run again"
    )
    assert read(lake, spark, MONDAY) == [("a", MONDAY, 1.0)]
    assert lake.partition_keys("scores") == [MONDAY]
    written = write(lake, scores(("b", MONDAY, 2.0), ("c", MONDAY, 2.0)), MONDAY, expected_rows={MONDAY: 2})
    assert written[MONDAY].rows == 2


def test_rows_without_a_day_are_refused(lake: Lake, frame: Frame) -> None:
    undated = frame(DDL, [("a", None, 1.0)])
    with pytest.raises(DataError, match="__HIVE_DEFAULT_PARTITION__"):
        write(lake, undated, MONDAY)


# --- what is missing, or no longer fits -----------------------------------------------------------


def test_partitions_never_written_are_named(lake: Lake, spark: SparkSession, scores: Scores) -> None:
    write(lake, scores(("a", MONDAY, 1.0)), MONDAY)
    with pytest.raises(DataError) as raised:
        lake.read(spark, "scores", [MONDAY, WEDNESDAY, TUESDAY])
    assert str(raised.value) == (
        "scores of 2025-03-11 to 2025-03-12 was never made\n"
        "  found:    2025-03-10\n"
        "  expected: 2025-03-10 to 2025-03-12\n"
        "  remedy:   materialize scores for 2025-03-11 to 2025-03-12 first"
    )


def test_a_partition_never_written_has_no_description(lake: Lake) -> None:
    with pytest.raises(DataError) as raised:
        lake.partition("scores", MONDAY)
    assert str(raised.value) == (
        "scores of 2025-03-10 was never made\n"
        "  found:    no partition at all\n"
        "  expected: 2025-03-10\n"
        "  remedy:   materialize scores for 2025-03-10 first"
    )


@pytest.mark.parametrize(
    ("table", "keys", "remedy"),
    [
        ("daily_fields", [MONDAY, TUESDAY], "run ingestion_job for 2025-03-10 to 2025-03-11"),
        ("feature_tokens", [MONDAY, WEDNESDAY], "run features_job for 2025-03-10, 2025-03-12"),
        ("predictions", [f"car_buyers/{MONDAY}"], "run daily_job for 2025-03-10"),
        ("training_set", ["car_buyers"], "run training_job"),
    ],
)
def test_the_job_that_makes_what_is_missing_is_named(
    lake: Lake, table: str, keys: Sequence[str], remedy: str
) -> None:
    with pytest.raises(DataError) as raised:
        lake.snapshot(table, keys)
    assert raised.value.remedy == remedy


def test_a_table_never_written_has_no_partitions(lake: Lake) -> None:
    assert lake.partition_keys("scores") == []


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([], "a partition at least"),
        ([f"2025-03-{day:02}" for day in range(1, 10)], "2025-03-01 to 2025-03-09"),
    ],
)
def test_long_lists_are_ranges_and_empty_ones_refused(
    lake: Lake, spark: SparkSession, keys: Sequence[str], expected: str
) -> None:
    with pytest.raises(DataError) as raised:
        lake.read(spark, "scores", keys)
    assert raised.value.expected == expected


def test_partitions_with_other_columns_are_refused(lake: Lake, spark: SparkSession, scores: Scores) -> None:
    # As after a field was added to fields.yaml: read as nulls, the old days would lose their devices.
    write(lake, scores(("a", MONDAY, 1.0)), MONDAY)
    write(lake, scores(("a", TUESDAY, 1.0)).selectExpr("*", "array('x') AS apps"), TUESDAY)
    with pytest.raises(DataError) as raised:
        lake.read(spark, "scores", [MONDAY, TUESDAY])
    assert str(raised.value) == (
        "partitions 2025-03-10 of scores have other columns than 2025-03-11\n"
        "  found:    struct<device_id:string,day:date,score:double>\n"
        "  expected: struct<device_id:string,day:date,score:double,apps:array<string>>\n"
        "  remedy:   materialize scores for these partitions again (a backfill over the range does it)"
    )


def test_an_empty_partition_of_other_columns_is_no_obstacle(
    lake: Lake, spark: SparkSession, scores: Scores
) -> None:
    write(lake, scores().selectExpr("*", "array('x') AS apps"), MONDAY)
    write(lake, scores(("a", TUESDAY, 1.0)), TUESDAY)
    assert read(lake, spark, TUESDAY, MONDAY) == [("a", TUESDAY, 1.0)]


# --- orphans --------------------------------------------------------------------------------------


def orphan(lake: Lake, age_seconds: float) -> str:
    """What a write leaves that was killed before it named a partition."""
    name = f"{int((time.time() - age_seconds) * 1e9):x}-0123abcd"
    directory = Path(lake.root) / "scores/data" / name
    directory.mkdir(parents=True)
    (directory / "part-0.parquet").write_bytes(b"half")
    return name


def test_unnamed_data_are_removed_once_nobody_can_need_them(lake: Lake, scores: Scores) -> None:
    write(lake, scores(("a", MONDAY, 1.0)), MONDAY)
    first = lake.partition("scores", MONDAY).version
    old, young = orphan(lake, ORPHAN_AGE_SECONDS + 60), orphan(lake, ORPHAN_AGE_SECONDS - 60)
    write(lake, scores(("a", MONDAY, 2.0)), MONDAY)
    second = lake.partition("scores", MONDAY).version
    assert old not in versions(lake)
    # A run that began before may still read the version that was just replaced.
    assert versions(lake) == sorted([first, second, young])


def test_an_old_version_that_a_partition_still_names_stays(
    lake: Lake, spark: SparkSession, scores: Scores
) -> None:
    written = write(lake, scores(("a", MONDAY, 1.0)), MONDAY)[MONDAY]
    aged = orphan(lake, ORPHAN_AGE_SECONDS + 60)
    data = Path(lake.root) / "scores/data"
    # The partition, as if written long ago.
    (data / aged / "part-0.parquet").unlink()
    (data / written.version / f"by_day={MONDAY}").rename(data / aged / f"by_day={MONDAY}")
    pointer = Path(lake.root) / f"scores/partitions/{MONDAY}.json"
    pointer.write_text(pointer.read_text().replace(written.version, aged))
    write(lake, scores(("a", TUESDAY, 2.0)), TUESDAY)
    assert read(lake, spark, MONDAY) == [("a", MONDAY, 1.0)]
