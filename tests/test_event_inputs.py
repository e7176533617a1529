"""Odd inputs of real people: ids, bytes, columns that come and go, and names like ours."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG
from pyspark.sql import DataFrame, SparkSession

from pipelines.definitions import build_definitions
from pipelines.steps.config.fields import EventSource, FieldSpec
from pipelines.steps.config.project import Project, load_project
from pipelines.steps.errors import ConfigError, DataError
from pipelines.steps.events.app_events import accept_events, label_rejections, read_raw_events
from pipelines.steps.events.event_columns import check_event_columns
from pipelines.steps.events.event_names import REASON, named_columns, source_columns
from pipelines.steps.features.daily_fields import aggregate_days
from resources.spark import Spark

DAY = date(2025, 3, 10)
DAY_AFTER = DAY + timedelta(days=1)
NOON = datetime(2025, 3, 10, 12, tzinfo=UTC)
TIME = pa.timestamp("us", "UTC")
Columns = Mapping[str, "pa.Array[Any] | Sequence[object]"]


def land(path: Path, columns: Columns) -> Path:
    """Writes events of noon: whatever `columns` leaves out is as usual."""
    rows = len(next(iter(columns.values())))
    usual: dict[str, Any] = {
        "id": pa.array([f"phone {row}" for row in range(rows)]),
        "at": pa.array([NOON] * rows, TIME),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(usual | dict(columns)), path)
    return path


def source(path: Path | str, **changes: object) -> EventSource:
    settings = {"path": str(path), "id_column": "id", "time_column": "at", "first_day": date(2025, 1, 1)}
    return EventSource.model_validate(settings | changes)


def read(
    spark: SparkSession, events: EventSource, columns: Sequence[str] = (), days: Sequence[date] = (DAY,)
) -> DataFrame:
    return label_rejections(read_raw_events(spark, events, days, columns), events)


def rows_of(frame: DataFrame) -> list[dict[str, Any]]:
    return sorted(frame.toArrow().to_pylist(), key=lambda row: repr(sorted(row.items(), key=str)))


def once(value: str) -> list[dict[str, Any]]:
    """A field of a device-day with one event of this value."""
    return [{"value": value, "events": 1}]


def values(frame: DataFrame, column: str) -> list[Any]:
    return sorted((row[column] for row in rows_of(frame)), key=str)


# --- ids ------------------------------------------------------------------------------------------

IDS: Mapping[str, tuple[str, str | None]] = {
    "as long as may be": ("x" * 256, None),
    "longer": ("x" * 257, "overlong_id"),
    "a megabyte": ("x" * 1_000_000, "overlong_id"),
    "NUL": ("a\x00b", "control_character_in_id"),
    "nothing but NUL": ("\x00", "control_character_in_id"),
    "new line": ("a\nb", "control_character_in_id"),
    "tab": ("a\tb", "control_character_in_id"),
    "next line, of Latin-1": ("a\x85b", "control_character_in_id"),
    "delete": ("a\x7fb", "control_character_in_id"),
    "control characters around it": ("\t ab \r\n", None),
    "not ASCII": ("gerät-😀", None),
    "decoded wrongly before us": ("ger\ufffdt", "undecodable_id"),
}


@pytest.fixture(scope="module")
def id_reasons(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    columns = {"id": [raw for raw, _ in IDS.values()], "note": list(IDS)}
    path = land(tmp_path_factory.mktemp("ids") / "events.parquet", columns)
    return {row["note"]: row[REASON] for row in rows_of(read(spark, source(path)))}


@pytest.mark.parametrize("note", IDS)
def test_an_id_that_cannot_be_delivered_is_rejected(note: str, id_reasons: dict[str, str | None]) -> None:
    assert id_reasons[note] == IDS[note][1]


UUID = bytes.fromhex("0f8fad5bd9cb469fa16570867728950e")
UUID_TEXT = "0f8fad5b-d9cb-469f-a165-70867728950e"


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (pa.array([UUID], pa.binary(16)), (UUID_TEXT, None)),
        (pa.array([b"ABCDEFGHIJKLMNOP"], pa.binary(16)), ("41424344-4546-4748-494a-4b4c4d4e4f50", None)),
        (pa.array([UUID], pa.binary()), (UUID_TEXT, None)),
        # 16 letters in bytes of any length are an Android id.
        (pa.array([b"9774d56d682e549c"], pa.binary()), ("9774d56d682e549c", None)),
        (pa.array([b"DEV-1"], pa.large_binary()), ("DEV-1", None)),
        (pa.array([b"DEV\xff"], pa.binary()), ("DEV\ufffd", "undecodable_id")),
        (pa.array(["101"]).dictionary_encode(), ("101", None)),
    ],
)
def test_ids_in_bytes_become_text(
    spark: SparkSession, tmp_path: Path, raw: "pa.Array[Any]", found: tuple[str, str | None]
) -> None:
    path = land(tmp_path / "events.parquet", {"id": raw})
    [row] = rows_of(read(spark, source(path)))
    assert (row["device_id"], row[REASON]) == found


def test_an_id_in_another_encoding_is_rejected(spark: SparkSession, tmp_path: Path) -> None:
    latin = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\4\0\0\0"), pa.py_buffer(b"ger\xe4"))
    [row] = rows_of(read(spark, source(land(tmp_path / "events.parquet", {"id": latin}))))
    assert row[REASON] == "undecodable_id"


# --- bytes in fields ------------------------------------------------------------------------------


def test_text_in_bytes_or_in_another_encoding_is_one_odd_token(spark: SparkSession, tmp_path: Path) -> None:
    latin = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\4\0\0\0"), pa.py_buffer(b"caf\xe9"))
    land(tmp_path / "a.parquet", {"id": ["a"], "app": latin})
    land(tmp_path / "b.parquet", {"id": ["b"], "app": pa.array([b"cafe"], pa.binary())})
    events = source(tmp_path, filters={"drinks": "app like 'caf%'"})
    app = FieldSpec(name="app", column="app", kind="single", normalizer="text")
    days = aggregate_days(accept_events(read(spark, events, ["app"])), [app])
    assert values(days, "app") == [once("cafe"), once("caf\ufffd")]


# --- columns that come and go ---------------------------------------------------------------------


def test_a_named_column_that_some_files_lack_is_null_there(spark: SparkSession, tmp_path: Path) -> None:
    land(tmp_path / "a.parquet", {"id": ["with"], "app": ["shop"]})
    land(tmp_path / "b.parquet", {"id": ["without"]})
    found = {row["device_id"]: row["app"] for row in rows_of(read(spark, source(tmp_path), ["app"]))}
    assert found == {"with": "shop", "without": None}


def test_a_filter_on_a_column_that_a_day_lacks_sees_nulls(spark: SparkSession, tmp_path: Path) -> None:
    land(tmp_path / "day=2025-03-10/a.parquet", {"id": ["early"]})
    land(tmp_path / "day=2025-03-12/a.parquet", {"id": ["later"], "price": [1]})
    events = source(f"{tmp_path}/day={{day}}", filters={"cheap": "coalesce(price, 0) < 5"})
    assert values(read(spark, events), REASON) == [None]


def test_a_day_alone_equals_the_same_day_in_a_range(spark: SparkSession, tmp_path: Path) -> None:
    """A column that appears later, one that some files lack, one that changes its type, one nobody names."""
    land(tmp_path / "day=2025-03-10/a.parquet", {"app": ["shop"], "code": pa.array([101], pa.int32())})
    land(tmp_path / "day=2025-03-10/b.parquet", {"id": ["other"]})
    later = {"id": ["late"], "at": pa.array([NOON + timedelta(days=1)], TIME), "app": ["bank"]}
    land(tmp_path / "day=2025-03-11/a.parquet", later | {"campaign": [7], "code": [101.0], "new": [True]})
    events, named = source(f"{tmp_path}/day={{day}}"), ["app", "campaign", "code"]

    def stored(days: Sequence[date], day: date) -> tuple[list[tuple[str, str]], list[Any]]:
        one = accept_events(read(spark, events, named, days)).where(f"day = '{day}'").drop("new")
        return sorted(one.dtypes), rows_of(one)

    for day in (DAY, DAY_AFTER):
        assert stored([day], day) == stored([DAY, DAY_AFTER], day)
    types, rows = stored([DAY_AFTER], DAY_AFTER)
    assert {("campaign", "bigint"), ("code", "bigint")} <= set(types)
    assert [(row["campaign"], row["code"]) for row in rows] == [(7, 101)]


def test_a_value_that_its_column_cannot_hold_rejects_its_row(spark: SparkSession, tmp_path: Path) -> None:
    """Read as null it would be lost without a word."""
    land(tmp_path / "a.parquet", {"id": ["whole", "null"], "price": [10, None]})
    land(tmp_path / "b.parquet", {"id": ["same", "broken", "none"], "price": [10.0, 10.5, float("nan")]})
    land(tmp_path / "c.parquet", {"id": ["digits", "word"], "price": ["10", "ten"]})
    found = {
        row["device_id"]: (row["price"], row[REASON])
        for row in rows_of(read(spark, source(tmp_path), ["price"]))
    }
    assert found == {
        "whole": (10, None),
        "null": (None, None),
        "same": (10, None),
        "broken": (None, "mistyped:price"),
        "none": (None, None),
        "digits": (10, None),
        "word": (None, "mistyped:price"),
    }


def test_columns_that_nobody_names_may_be_of_any_type(spark: SparkSession, tmp_path: Path) -> None:
    odd = {
        "precise": pa.array([1, 1], pa.timestamp("ns")),
        "clock": pa.array([1, 1], pa.time64("us")),
        "half": pa.array([1.0, 1.0], pa.float16()),
        "nothing": pa.nulls(2),
        "big": pa.array([2**64 - 1] * 2, pa.uint64()),
        "properties": pa.array(
            [[("a", "1"), ("b", "2")], [("b", "2"), ("a", "1")]], pa.map_(pa.string(), pa.string())
        ),
        "Twin": ["x", "x"],
        "twin": ["y", "y"],
        "changes": [1, 1],
    }
    land(tmp_path / "a.parquet", {"id": ["same", "same"]} | odd)
    land(tmp_path / "b.parquet", {"id": ["other"], "changes": ["text"]})
    found = {row["device_id"]: row["copies"] for row in rows_of(accept_events(read(spark, source(tmp_path))))}
    assert found == {"same": 2, "other": 1}


def test_rows_that_differ_in_nanoseconds_alone_are_two(spark: SparkSession, tmp_path: Path) -> None:
    path = land(tmp_path / "a.parquet", {"id": ["a", "a"], "precise": pa.array([1, 2], pa.timestamp("ns"))})
    assert values(accept_events(read(spark, source(path))), "copies") == [1, 1]


def test_times_as_spark_used_to_write_them_are_read(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"id": ["a"], "at": pa.array([NOON.replace(tzinfo=None)], pa.timestamp("us"))})
    pq.write_table(table, path, use_deprecated_int96_timestamps=True)
    [row] = rows_of(read(spark, source(path)))
    assert (row["event_time"], row["day"], row[REASON]) == (NOON, DAY, None)


def test_columns_of_folders_are_read(spark: SparkSession, tmp_path: Path) -> None:
    folder = tmp_path / "day=2025-03-10"
    land(folder / "city=São Paulo+%2F" / "x {1}.parquet", {"id": ["a"]})
    land(folder / "city=__HIVE_DEFAULT_PARTITION__" / "x [2].parquet", {"id": ["b"]})
    found = {row["device_id"]: row["city"] for row in rows_of(read(spark, source(f"{tmp_path}/day={{day}}")))}
    assert found == {"a": "São Paulo+/", "b": None}


def test_names_with_dots_are_names(spark: SparkSession, tmp_path: Path) -> None:
    path = land(tmp_path / "a.parquet", {"app.package": ["shop"]})
    events = source(path, filters={"shop": "`app.package` = 'shop'"}, deduplicate_by=["app.package"])
    apps = FieldSpec(name="apps", column="app.package", kind="multi", normalizer="package")
    kept = accept_events(read(spark, events, ["app.package"]), events)
    assert values(aggregate_days(kept, [apps]), "apps") == [once("shop")]


# --- days without events --------------------------------------------------------------------------


def test_a_folder_without_a_file_is_a_day_without_events(spark: SparkSession, tmp_path: Path) -> None:
    land(tmp_path / "day=2025-03-10/a.parquet", {"app": ["shop"]})
    empty = tmp_path / "day=2025-03-11"
    empty.mkdir()
    (empty / "_SUCCESS").touch()
    (empty / "part-0.parquet").touch()
    events = source(f"{tmp_path}/day={{day}}", arrival_column="at", filters={"f": "app = 'shop'"})
    alone = accept_events(read(spark, events, ["app"], [DAY_AFTER]))
    assert rows_of(alone) == []
    assert alone.dtypes == accept_events(read(spark, events, ["app"])).dtypes


def test_a_file_without_rows_is_read(spark: SparkSession, tmp_path: Path) -> None:
    path = land(tmp_path / "a.parquet", {"app": pa.array([], pa.string())})
    assert rows_of(read(spark, source(path))) == []


def test_a_file_that_is_no_parquet_is_named(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "half.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"(?s)holds a file that is no Parquet.*half\.parquet"):
        read(spark, source(f"{tmp_path}"))


def test_checks_warn_of_a_day_without_events_and_of_folders_of_another_zone(
    spark: SparkSession, tmp_path: Path
) -> None:
    """A third of the rows lies in folders that end 8 hours later, as days of the Pacific coast do."""
    hours = pa.array([NOON + timedelta(hours=28 + hour) for hour in range(12)], TIME)
    land(tmp_path / "events/day=2025-03-11/a.parquet", {"app": ["shop"] * 12, "at": hours})
    (tmp_path / "events/day=2025-03-12").mkdir()
    fields = (FIELDS % "").replace("path: events", f"path: '{tmp_path}/events/day={{day}}'")
    made = project(tmp_path, fields=fields)
    definitions = build_definitions(made.directory, tmp_path / "data", {"spark": Spark(master="local[2]")})
    tags = {ASSET_PARTITION_RANGE_START_TAG: "2025-03-11", ASSET_PARTITION_RANGE_END_TAG: "2025-03-12"}

    result = definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        asset_selection=[dg.AssetKey("app_events")], tags=tags
    )

    failed = {e.check_name: str(e.description) for e in result.get_asset_check_evaluations() if not e.passed}
    assert failed.keys() == {"no_unusual_share_is_rejected", "number_of_events_is_usual"}
    assert (
        "misfiled_event: 33.3% of the rows of 2025-03-11 (are the folders named"
        in failed["no_unusual_share_is_rejected"]
    )
    assert "no events yet for 2025-03-12" in failed["number_of_events_is_usual"]


# --- raw columns that bear our names --------------------------------------------------------------


def test_a_raw_column_of_our_name_is_kept_beside_ours(spark: SparkSession, tmp_path: Path) -> None:
    names: dict[str, list[Any]] = {
        "device_id": ["hw"],
        "day": [15],
        "event_time": ["noon"],
        "copies": [3],
        "rejected_because": ["x"],
    }
    path = land(tmp_path / "a.parquet", {"id": ["phone"]} | names)
    [row] = rows_of(accept_events(read(spark, source(path))))
    assert (row["device_id"], row["day"], row["event_time"], row["copies"]) == ("phone", DAY, NOON, 1)
    assert {name: row[f"raw:{name}"] for name in names} == {name: value[0] for name, value in names.items()}


def test_an_arrival_column_may_be_called_event_time(spark: SparkSession, tmp_path: Path) -> None:
    arrivals = [NOON, NOON - timedelta(seconds=1), NOON + timedelta(hours=3)]
    path = land(tmp_path / "a.parquet", {"event_time": pa.array(arrivals, TIME)})
    events = source(path, arrival_column="event_time")
    assert values(read(spark, events), REASON) == [None, "future_event", "late_event"]


def test_a_filter_means_the_raw_column(spark: SparkSession, tmp_path: Path) -> None:
    path = land(tmp_path / "a.parquet", {"day": [15, 16], "device_id": ["hw", "hw"]})
    events = source(path, filters={"early": "day <= 15", "hw": "device_id = 'hw'"})
    assert values(read(spark, events), REASON) == [None, "filter:early"]


def test_a_filter_means_ours_where_there_is_no_raw_column(spark: SparkSession, tmp_path: Path) -> None:
    path = land(tmp_path / "a.parquet", {"id": ["a", "b"]})
    events = source(path, filters={"a": "device_id = 'a' and day = '2025-03-10' and event_time is not null"})
    assert values(read(spark, events), REASON) == [None, "filter:a"]


def test_a_field_means_the_raw_column(spark: SparkSession, tmp_path: Path) -> None:
    path = land(tmp_path / "a.parquet", {"id": ["advertising"], "device_id": ["hardware"], "day": [15]})
    fields = [
        FieldSpec(name=f"f_{c}", column=c, kind="multi", normalizer="text") for c in ("device_id", "day")
    ]
    kept = accept_events(read(spark, source(path), ["device_id", "day"]))
    [row] = rows_of(aggregate_days(kept, fields))
    assert (row["device_id"], row["f_device_id"], row["f_day"]) == (
        "advertising",
        once("hardware"),
        once("15"),
    )


def test_a_field_may_take_the_time_of_the_event(spark: SparkSession, tmp_path: Path) -> None:
    path = land(tmp_path / "a.parquet", {"event_time": pa.array([NOON], TIME)})
    events = source(path, time_column="event_time")
    assert "raw:event_time" not in read(spark, events).columns
    assert values(read(spark, events, ["event_time"]), "raw:event_time") == [NOON]


# --- duplicates -----------------------------------------------------------------------------------


def test_columns_may_say_which_rows_are_one_event(spark: SparkSession, tmp_path: Path) -> None:
    table = {"id": ["a"] * 4, "name": ["open", "open", "open", "buy"], "seen": [3, 1, 2, 9]}
    path = land(tmp_path / "a.parquet", table)
    events = source(path, deduplicate_by=["name", "id", "at"])
    found = [
        (row["name"], row["seen"], row["copies"])
        for row in rows_of(accept_events(read(spark, events), events))
    ]
    assert sorted(found) == [("buy", 9, 1), ("open", 1, 3)]


def test_all_columns_say_so_where_none_are_named(spark: SparkSession, tmp_path: Path) -> None:
    path = land(tmp_path / "a.parquet", {"id": ["a"] * 3, "unnamed": [1, 1, 2]})
    events = source(path)
    assert events.deduplicate_by == "all"
    assert values(accept_events(read(spark, events), events), "copies") == [1, 2]


# --- refused by name, before Spark starts ---------------------------------------------------------

FIELDS = """
events: {path: events, id_column: id, time_column: at, first_day: 2025-01-01%s}
window_days: 2
fields:
  apps: {column: app, kind: multi, normalizer: package}
"""
AUDIENCE = """
label: {where: "app = 'shop'"}
horizon_days: 1
as_of_days: [2025-03-10]
segments: [{name: top, size: 1}]
deliver_to: [{type: folder, path: deliveries}]
"""


def project(root: Path, *, fields: str = FIELDS % "", audience: str = AUDIENCE) -> Project:
    directory = root / "audiences"
    directory.mkdir()
    (directory / "fields.yaml").write_text(fields.replace("path: events", f"path: {root}/events"))
    (directory / "buyers.yaml").write_text(audience)
    return load_project(directory)


def test_fields_and_labels_name_columns(tmp_path: Path) -> None:
    audience = AUDIENCE.replace("app = 'shop'", "name = 'x' and event_time is not null and id = 'y'")
    assert named_columns(project(tmp_path, audience=audience)) == ["app", "name"]


def test_measures_and_signals_name_columns(tmp_path: Path) -> None:
    more = "\nmeasures: {spent: {column: day}, revenue: {sql: price * pieces}}\n"
    more += "signals: {late: {where: day > event_time and city is null}, gift: {event: {kind: g}}}\n"
    fields = FIELDS % "" + more
    assert named_columns(project(tmp_path, fields=fields)) == [
        "app",
        "day",
        "pieces",
        "price",
        "city",
        "kind",
    ]


def test_a_measure_is_a_column_of_numbers_before_the_jvm_starts(tmp_path: Path) -> None:
    land(tmp_path / "events/a.parquet", {"app": ["shop"], "paid": pa.array([1.5], pa.float32())})
    fields = FIELDS % "" + "\nmeasures: {paid: {column: paid}, shops: {column: app}}\n"
    with pytest.raises(ConfigError) as caught:
        check_event_columns(project(tmp_path, fields=fields))
    assert str(caught.value).endswith(
        "fields.yaml: `measures.shops.column` names a column that holds no numbers\n"
        "  found:    'app' of type string\n"
        "  expected: whole numbers, floats or decimals\n"
        "  remedy:   name a column of numbers, or make them of it: `sql: try_cast(app as double)`"
    )


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("measures: {m: {column: prize}}", r"(?s)`measures.m.column` names a column.*'prize'.*`price`"),
        ("measures: {m: {sql: prize * 2}}", r"(?s)`measures.m.sql` names a column.*'prize' in 'prize \* 2'"),
        ("signals: {s: {where: prize > 2}}", r"(?s)`signals.s.where` names a column.*'prize' in 'prize > 2'"),
        ("signals: {s: {event: {prize: 2}}}", r"(?s)`signals.s.event.prize` names a column.*did you mean"),
        (
            "signals: {s: {event: {price: no}}}",
            r"(?s)fields.yaml: `signals.s.event.price` does not fit.*no for",
        ),
        ("measures: {m: {sql: day + 1}}", r"(?s)`measures.m.sql`.*the raw events have, too.*'day'"),
        ("signals: {s: {where: day > 1}}", r"(?s)`signals.s.where`.*the raw events have, too.*'day'"),
    ],
)
def test_columns_of_measures_and_signals_are_held_against_the_events(
    tmp_path: Path, section: str, message: str
) -> None:
    land(tmp_path / "events/a.parquet", {"app": ["shop"], "price": [1], "day": [15]})
    with pytest.raises(ConfigError, match=message):
        check_event_columns(project(tmp_path, fields=FIELDS % "" + f"\n{section}\n"))


def test_the_source_names_columns_too(tmp_path: Path) -> None:
    events = source(tmp_path, filters={"f": "price > 0 and id = 'x'"}, deduplicate_by=["kind"])
    assert source_columns(events) == ["at", "price", "kind"]


def test_a_column_that_appears_later_is_known(tmp_path: Path) -> None:
    land(tmp_path / "events/a.parquet", {"id": ["a"]})
    land(tmp_path / "events/b.parquet", {"app": ["shop"]})
    check_event_columns(project(tmp_path))


def test_names_that_differ_in_case_only_are_refused_with_both(tmp_path: Path) -> None:
    land(tmp_path / "events/a.parquet", {"app": ["shop"], "App": ["shop"]})
    with pytest.raises(ConfigError, match=r"(?s)`fields.apps.column`.*cannot tell.*'app', 'App'.*case"):
        check_event_columns(project(tmp_path))


def test_the_id_in_another_spelling_is_no_feature(tmp_path: Path) -> None:
    fields = (FIELDS % "").replace("column: app", "column: ID")
    with pytest.raises(ConfigError, match=r"(?s)`fields.apps.column`.*ID.*an id is never a feature"):
        project(tmp_path, fields=fields)


def test_a_label_on_a_name_that_is_raw_and_ours_is_refused(tmp_path: Path) -> None:
    land(tmp_path / "events/a.parquet", {"app": ["shop"], "day": [15]})
    audience = AUDIENCE.replace("app = 'shop'", "day = 15")
    with pytest.raises(ConfigError, match=r"(?s)buyers.yaml: `label.where`.*the raw events have, too.*'day'"):
        check_event_columns(project(tmp_path, audience=audience))


def test_a_named_column_that_spark_cannot_read_is_refused(tmp_path: Path) -> None:
    land(tmp_path / "events/a.parquet", {"app": pa.array([1], pa.timestamp("ns"))})
    with pytest.raises(
        ConfigError, match=r"(?s)`fields.apps.column`.*cannot read.*'app' of type timestamp\[ns\]"
    ):
        check_event_columns(project(tmp_path))


def test_an_unknown_column_to_deduplicate_by_is_refused(tmp_path: Path) -> None:
    land(tmp_path / "events/a.parquet", {"app": ["shop"]})
    fields = FIELDS % ", deduplicate_by: [ap]"
    with pytest.raises(ConfigError, match=r"(?s)`events.deduplicate_by`.*'ap'.*did you mean `app`"):
        check_event_columns(project(tmp_path, fields=fields))


@pytest.mark.parametrize("value", ["some", "[]", "[1]", "7"])
def test_deduplicate_by_is_all_or_a_list_of_columns(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)`events.deduplicate_by`.*`all`, or a list of raw columns"):
        project(tmp_path, fields=FIELDS % f", deduplicate_by: {value}")
