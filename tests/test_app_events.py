"""Raw events: which day a row belongs to, why it is rejected, and that every row is accounted for."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession

from pipelines.steps.config.fields import EventSource
from pipelines.steps.errors import DataError
from pipelines.steps.events.app_events import (
    accept_events,
    account_rows,
    count_undated,
    label_rejections,
    quarantine_events,
    read_raw_events,
)
from pipelines.steps.events.event_names import REASON

DAY = date(2025, 3, 10)
DAY_BEFORE, DAY_AFTER = DAY - timedelta(days=1), DAY + timedelta(days=1)
NOON = datetime(2025, 3, 10, 12, tzinfo=UTC)
MIDNIGHT = datetime(2025, 3, 11, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
LATE = timedelta(hours=2)

UTC_TIME = pa.timestamp("us", tz="UTC")
COLUMNS: dict[str, pa.DataType] = {
    "note": pa.string(),
    "gaid": pa.string(),
    "happened_at": UTC_TIME,
    "received_at": UTC_TIME,
    "model": pa.string(),
    "price": pa.int64(),
}
SCHEMA = pa.schema(COLUMNS)
Row = dict[str, object]


def event(note: str = "", **changes: object) -> Row:
    """A row that is accepted, but for the changes."""
    happened_at = changes.get("happened_at", NOON)
    arrival = happened_at + timedelta(minutes=1) if isinstance(happened_at, datetime) else NOON
    kept = {"gaid": "phone", "happened_at": happened_at, "received_at": arrival, "model": "pixel", "price": 1}
    return {"note": note} | kept | changes


def land(path: Path, rows: Sequence[Row], schema: pa.Schema = SCHEMA) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
    return path


def source(path: Path | str, **changes: object) -> EventSource:
    settings = {
        "path": str(path),
        "id_column": "gaid",
        "time_column": "happened_at",
        "arrival_column": "received_at",
        "id_normalizer": "lower",
        "filters": {"no_emulator": "model <> 'emulator'", "paid": "price > 0"},
        "first_day": date(2025, 1, 1),
    }
    return EventSource.model_validate(settings | changes)


def read(spark: SparkSession, events: EventSource, days: Sequence[date]) -> DataFrame:
    return label_rejections(read_raw_events(spark, events, days), events)


def rows_of(frame: DataFrame) -> list[Row]:
    return sorted(frame.toArrow().to_pylist(), key=repr)


def account_of(spark: SparkSession, events: EventSource, days: Sequence[date]) -> dict[date, dict[str, int]]:
    labelled = read(spark, events, days).cache()
    account = account_rows(labelled, accept_events(labelled), quarantine_events(labelled), days)
    lines = {line.pop("day"): line for line in account.toArrow().to_pylist()}
    labelled.unpersist()
    return lines


# --- why a row is rejected ------------------------------------------------------------------------

ACCEPTED = None
CASES: Mapping[str, tuple[Row, str | None]] = {
    "good": ({}, ACCEPTED),
    "received when it happened": ({"received_at": NOON}, ACCEPTED),
    "late to the hour": ({"received_at": NOON + LATE}, ACCEPTED),
    "null id": ({"gaid": None}, "missing_id"),
    "empty id": ({"gaid": ""}, "missing_id"),
    "blank id": ({"gaid": " \t "}, "missing_id"),
    "zero": ({"gaid": "0"}, "zero_id"),
    "zero advertising id": ({"gaid": "00000000-0000-0000-0000-000000000000"}, "zero_id"),
    "id with a zero": ({"gaid": "10000000-0000-0000-0000-000000000000"}, ACCEPTED),
    "no time": ({"happened_at": None}, "missing_time"),
    "no arrival": ({"received_at": None}, "missing_arrival"),
    "before it happened": ({"received_at": NOON - MICROSECOND}, "future_event"),
    "too late": ({"received_at": NOON + LATE + MICROSECOND}, "late_event"),
    "filtered": ({"model": "emulator"}, "filter:no_emulator"),
    "filter on a null": ({"model": None}, "filter:no_emulator"),
    "second filter": ({"price": 0}, "filter:paid"),
    "id before all else": (
        {"gaid": None, "received_at": NOON - LATE, "model": "emulator", "price": 0},
        "missing_id",
    ),
    "zero id before late": ({"gaid": "0", "received_at": NOON + 2 * LATE}, "zero_id"),
    "late before filtered": ({"received_at": NOON + 2 * LATE, "model": "emulator"}, "late_event"),
    "first filter before second": ({"model": "emulator", "price": 0}, "filter:no_emulator"),
}


@pytest.fixture(scope="module")
def reasons(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    rows = [event(note, **changes) for note, (changes, _) in CASES.items()]
    path = land(tmp_path_factory.mktemp("cases") / "events.parquet", rows)
    return {str(row["note"]): row[REASON] for row in rows_of(read(spark, source(path), [DAY]))}  # type: ignore[misc]


@pytest.mark.parametrize("note", CASES)
def test_a_row_is_rejected_for_the_first_reason_that_holds(note: str, reasons: dict[str, str | None]) -> None:
    assert reasons[note] == CASES[note][1]


def test_quarantined_rows_are_kept_as_they_came(spark: SparkSession, tmp_path: Path) -> None:
    path = land(tmp_path / "events.parquet", [event("good"), event("bad", gaid="Phone", price=0)])
    [row] = rows_of(quarantine_events(read(spark, source(path), [DAY])))
    assert row == {
        "note": "bad",
        "device_id": "phone",
        "event_time": NOON,
        "day": DAY,
        "happened_at": NOON,
        "received_at": NOON + timedelta(minutes=1),
        "model": "pixel",
        "price": 0,
        REASON: "filter:paid",
    }


# --- which day a row belongs to -------------------------------------------------------------------

ONE_HOUR = timedelta(hours=1)
DAY_CASES: Mapping[str, tuple[Row, date]] = {
    "first moment": ({"happened_at": datetime(2025, 3, 10, tzinfo=UTC)}, DAY),
    "last moment": ({"happened_at": MIDNIGHT - MICROSECOND}, DAY),
    "midnight": ({"happened_at": MIDNIGHT}, DAY_AFTER),
    "received after midnight": (
        {"happened_at": MIDNIGHT - MICROSECOND, "received_at": MIDNIGHT + ONE_HOUR},
        DAY,
    ),
    "too late": ({"happened_at": NOON, "received_at": MIDNIGHT}, DAY_AFTER),
    "from the future": ({"happened_at": MIDNIGHT, "received_at": NOON}, DAY),
    "no time": ({"happened_at": None, "received_at": NOON}, DAY),
    "no arrival": ({"happened_at": NOON, "received_at": None}, DAY),
}


@pytest.fixture(scope="module")
def days(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[str, date]:
    rows = [event(note, **changes) for note, (changes, _) in DAY_CASES.items()]
    path = land(tmp_path_factory.mktemp("days") / "events.parquet", rows)
    found = rows_of(read_raw_events(spark, source(path), [DAY_BEFORE, DAY, DAY_AFTER]))
    assert len(found) == len(DAY_CASES)
    return {str(row["note"]): row["day"] for row in found}  # type: ignore[misc]


@pytest.mark.parametrize("note", DAY_CASES)
def test_a_row_belongs_to_one_day(note: str, days: dict[str, date]) -> None:
    assert days[note] == DAY_CASES[note][1]


def test_only_the_days_asked_for_are_read(spark: SparkSession, tmp_path: Path) -> None:
    rows = [event(str(day), happened_at=NOON + timedelta(days=day)) for day in range(3)]
    path = land(tmp_path / "events.parquet", rows)
    read_rows = rows_of(read_raw_events(spark, source(path), [DAY, DAY + timedelta(days=2)]))
    assert [row["note"] for row in read_rows] == ["0", "2"]


def test_times_without_a_zone_are_utc(spark: SparkSession, tmp_path: Path) -> None:
    schema = pa.schema([(f.name, pa.timestamp("us") if f.type == UTC_TIME else f.type) for f in SCHEMA])
    last = MIDNIGHT - MICROSECOND
    naive = {"happened_at": last.replace(tzinfo=None), "received_at": last.replace(tzinfo=None)}
    path = land(tmp_path / "events.parquet", [event(**naive)], schema)  # type: ignore[arg-type]
    [row] = rows_of(read(spark, source(path), [DAY]))
    assert (row["event_time"], row["day"], row[REASON]) == (last, DAY, None)


def test_without_an_arrival_column_the_event_time_decides(spark: SparkSession, tmp_path: Path) -> None:
    rows = [event("kept", received_at=NOON - LATE), event("undated", happened_at=None)]
    events = source(land(tmp_path / "events.parquet", rows), arrival_column=None)
    assert [(row["note"], row[REASON]) for row in rows_of(read(spark, events, [DAY]))] == [("kept", None)]
    assert count_undated(spark, events, [DAY]) == 1


def test_rows_with_neither_time_nor_arrival_are_counted(spark: SparkSession, tmp_path: Path) -> None:
    lost = event(happened_at=None, received_at=None)
    events = source(land(tmp_path / "events.parquet", [lost, lost, event(happened_at=None), event()]))
    assert count_undated(spark, events, [DAY]) == 2


# --- ids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("normalizer", "raw", "device_id"),
    [
        ("none", " Ab-C\n", "Ab-C"),
        ("lower", " Ab-C ", "ab-c"),
        ("integer", "17850.0", "17850"),
        ("integer", "17850", "17850"),
        ("integer", "1.2345678E7", "12345678"),
        ("integer", "1780.5", "1780.5"),
    ],
)
def test_ids_are_normalized(
    spark: SparkSession, tmp_path: Path, normalizer: str, raw: str, device_id: str
) -> None:
    events = source(land(tmp_path / "events.parquet", [event(gaid=raw)]), id_normalizer=normalizer)
    assert [row["device_id"] for row in rows_of(read_raw_events(spark, events, [DAY]))] == [device_id]


def test_integer_ids_stored_as_floats_are_read_as_integers(spark: SparkSession, tmp_path: Path) -> None:
    schema = pa.schema([(f.name, pa.float64() if f.name == "gaid" else f.type) for f in SCHEMA])
    rows = [event(gaid=17850.0), event(gaid=12345678.0), event(gaid=None), event(gaid=float("nan"))]
    events = source(land(tmp_path / "events.parquet", rows, schema), id_normalizer="integer")
    found = [(row["device_id"], row[REASON]) for row in rows_of(read(spark, events, [DAY]))]
    assert sorted(found, key=str) == [
        ("12345678", None),
        ("17850", None),
        (None, "missing_id"),
        (None, "missing_id"),
    ]


def test_an_id_column_may_differ_from_device_id_in_case_only(spark: SparkSession, tmp_path: Path) -> None:
    path = land(tmp_path / "events.parquet", [event()])
    table = pq.read_table(path)
    pq.write_table(
        table.rename_columns(["Device_ID" if n == "gaid" else n for n in table.column_names]), path
    )
    [row] = rows_of(read_raw_events(spark, source(path, id_column="Device_ID"), [DAY]))
    assert row["device_id"] == "phone"


# --- duplicates and the account -------------------------------------------------------------------


def test_equal_rows_are_kept_once_with_their_number(spark: SparkSession, tmp_path: Path) -> None:
    rows = [event("twice"), event("twice"), event("once"), event("once", price=2)]
    path = land(tmp_path / "events.parquet", rows)
    accepted = rows_of(accept_events(read(spark, source(path), [DAY])))
    assert [(row["note"], row["price"], row["copies"]) for row in accepted] == [
        ("once", 1, 1),
        ("once", 2, 1),
        ("twice", 1, 2),
    ]


def test_every_day_has_an_account_even_one_without_rows(spark: SparkSession, tmp_path: Path) -> None:
    rows = [event(), event(), event("other"), event(gaid="0")]
    events = source(land(tmp_path / "events.parquet", rows))
    assert account_of(spark, events, [DAY, DAY_AFTER]) == {
        DAY: {"raw": 4, "accepted": 2, "duplicate": 1, "rejected": 1, "unaccounted": 0},
        DAY_AFTER: {"raw": 0, "accepted": 0, "duplicate": 0, "rejected": 0, "unaccounted": 0},
    }


def test_a_row_lost_after_reading_shows_as_unaccounted(spark: SparkSession, tmp_path: Path) -> None:
    events = source(land(tmp_path / "events.parquet", [event("kept"), event("lost")]))
    labelled = read(spark, events, [DAY])
    stored = accept_events(labelled).where("note <> 'lost'")
    [line] = account_rows(labelled, stored, quarantine_events(labelled), [DAY]).toArrow().to_pylist()
    assert line["unaccounted"] == 1


def dirty_rows(seed: int, count: int) -> list[Row]:
    """Rows around three midnights with every kind of dirt, many of them equal."""
    rng = random.Random(seed)
    times = [NOON + timedelta(days=day, hours=hour) for day in (-1, 0, 1) for hour in (-12, 0, 11, 12)]
    times += [time - MICROSECOND for time in times]
    delays = [
        timedelta(0),
        timedelta(minutes=30),
        LATE,
        LATE + MICROSECOND,
        timedelta(hours=30),
        -MICROSECOND,
    ]
    rows = []
    for _ in range(count):
        happened_at = rng.choice([*times, None])
        arrival = (happened_at or rng.choice(times)) + rng.choice(delays)
        rows.append(
            event(
                gaid=rng.choice(["phone", "Phone", "tablet", "", None, "0-0"]),
                happened_at=happened_at,
                received_at=rng.choice([arrival] * 9 + [None]),
                model=rng.choice(["pixel"] * 4 + ["emulator", None]),
            )
        )
    return rows


def day_of(row: Row) -> date | None:
    """The day of a row, said a second time and without Spark."""
    happened_at, arrival = row["happened_at"], row["received_at"]
    if isinstance(arrival, datetime):
        on_time = isinstance(happened_at, datetime) and timedelta(0) <= arrival - happened_at <= LATE
        return happened_at.date() if on_time and isinstance(happened_at, datetime) else arrival.date()
    return happened_at.date() if isinstance(happened_at, datetime) else None


def test_every_raw_row_is_accounted_for_once_on_one_day(spark: SparkSession, tmp_path: Path) -> None:
    rows = dirty_rows(seed=1, count=500)
    events = source(land(tmp_path / "events.parquet", rows))
    days = [DAY + timedelta(days=shift) for shift in range(-3, 5)]
    account = account_of(spark, events, days)
    expected = Counter(day_of(row) for row in rows)
    assert {day: line["raw"] for day, line in account.items()} == {day: expected[day] for day in days}
    assert all(
        line["accepted"] + line["duplicate"] + line["rejected"] == line["raw"] for line in account.values()
    )
    undated = count_undated(spark, events, days)
    assert undated == expected[None] > 0
    assert sum(line["raw"] for line in account.values()) + undated == len(rows)


# --- one folder per day of arrival ----------------------------------------------------------------


def land_by_arrival(root: Path, rows: Sequence[Row]) -> str:
    """Writes one folder per day of arrival; returns the source's path."""
    arrivals: dict[date, list[Row]] = {}
    for row in rows:
        landed = row["received_at"] or row["happened_at"]
        assert isinstance(landed, datetime)
        arrivals.setdefault(landed.date(), []).append(row)
    for day, landed_rows in arrivals.items():
        land(root / f"day={day}" / "part-0.parquet", landed_rows)
    return str(root / "day={day}")


def test_a_day_is_found_in_the_folders_of_that_day_and_the_next(spark: SparkSession, tmp_path: Path) -> None:
    last = MIDNIGHT - MICROSECOND
    rows = [
        event("same day"),
        event("after midnight", happened_at=last, received_at=MIDNIGHT + timedelta(hours=1)),
        event("next day", happened_at=MIDNIGHT),
    ]
    events = source(land_by_arrival(tmp_path, rows))
    notes = {row["note"] for row in rows_of(read_raw_events(spark, events, [DAY]))}
    assert notes == {"after midnight", "same day"}


def test_folders_by_day_one_at_a_time_equal_one_folder_at_once(spark: SparkSession, tmp_path: Path) -> None:
    rows = [row for row in dirty_rows(3, 300) if row["received_at"] or row["happened_at"]]
    by_day = source(land_by_arrival(tmp_path / "events", rows))
    one_folder = source(tmp_path / "events")
    # The days on which something arrived; a day's folder is there before the day can be read.
    days = sorted(date.fromisoformat(p.name.removeprefix("day=")) for p in (tmp_path / "events").iterdir())
    at_once = rows_of(read(spark, one_folder, days))
    assert sorted((row for day in days for row in rows_of(read(spark, by_day, [day]))), key=repr) == at_once
    assert len(at_once) == len(rows)


def test_rows_in_a_folder_of_another_day_are_rejected_there(spark: SparkSession, tmp_path: Path) -> None:
    """Else a day run alone would miss them: it reads the folders of its own day and the next only."""
    land(
        tmp_path / DAY.isoformat() / "part-0.parquet",
        [
            event("good"),
            event("no arrival", happened_at=NOON - timedelta(days=5), received_at=None),
            event("neither", happened_at=None, received_at=None),
            event("of another day", happened_at=NOON + timedelta(days=3)),
        ],
    )
    events = source(f"{tmp_path}/{{day}}")
    reasons = {row["note"]: row[REASON] for row in rows_of(read(spark, events, [DAY]))}
    assert reasons == {
        "good": ACCEPTED,
        "no arrival": "missing_arrival",
        "neither": "missing_time",
        "of another day": "misfiled_event",
    }
    assert account_of(spark, events, [DAY])[DAY]["raw"] == 4
    assert count_undated(spark, events, [DAY]) == 0


def test_a_day_without_a_folder_is_an_error(spark: SparkSession, tmp_path: Path) -> None:
    events = source(land_by_arrival(tmp_path, [event()]))
    with pytest.raises(DataError) as raised:
        read_raw_events(spark, events, [DAY, DAY_AFTER])
    assert str(raised.value) == (
        "no events arrived on 1 of the 2 days asked for\n"
        f"  found:    no {tmp_path}/day={{day}} for 2025-03-11\n"
        "  expected: one directory per day of arrival\n"
        "  remedy:   let the events land first, or correct events.path in fields.yaml"
    )


def test_an_error_names_the_first_absent_days_only(spark: SparkSession, tmp_path: Path) -> None:
    days = [datetime.combine(DAY, time(), UTC).date() + timedelta(days=shift) for shift in range(7)]
    with pytest.raises(DataError, match=r"for 2025-03-10, .*, 2025-03-14 …"):
        read_raw_events(spark, source(tmp_path / "day={day}"), days)
