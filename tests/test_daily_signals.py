"""Signals: their events, counted for each device and day; and what is told of one that no event satisfies."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pyspark.sql import SparkSession

from assets.daily_signals import TABLE
from pipelines.steps.config.signals import EventCondition, Signal
from pipelines.steps.errors import ConfigError
from pipelines.steps.features.daily_signals import count_signals, signal_columns
from tests.conftest import Frame
from tests.small_project import (
    FIRST_DAY,
    LAST_DAY,
    SCORED_DAY,
    SIGNALS,
    Chain,
    day_keys,
    failures,
    materialize,
    materialized,
    verdicts,
)

DAY = date(2025, 3, 10)
NOON = datetime(2025, 3, 10, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
EVENTS = "device_id string, day date, event_time timestamp, kind string, pieces bigint"
FILE = Path("audiences/fields.yaml")


def signal(name: str, **condition: Any) -> Signal:
    return Signal(name, EventCondition.model_validate(condition), FILE, f"signals.{name}")


BOUGHT = signal("bought", event={"kind": "sale", "pieces": "2"})
RETURNED = signal("returned", where="pieces < 0")
ROWS = [
    ("phone", DAY, NOON, "sale", 2),
    ("phone", DAY, NOON + MINUTE, "sale", 2),
    ("phone", DAY, NOON + 2 * MINUTE, "sale", 1),
    ("phone", DAY, NOON + 3 * MINUTE, "refund", -1),
    ("phone", DAY + timedelta(days=1), NOON + timedelta(days=1), "sale", 2),
    ("tablet", DAY, NOON, None, None),
]


def count(frame: Frame, *signals: Signal) -> list[tuple[object, ...]]:
    counts = count_signals(frame(EVENTS, ROWS), signals)
    return sorted(tuple(row.values()) for row in counts.toArrow().to_pylist())


def test_each_signal_counts_its_events_by_device_and_day(frame: Frame) -> None:
    bought = [
        ("bought", "phone", DAY, 2, NOON + MINUTE),
        ("bought", "phone", DAY + timedelta(days=1), 1, NOON + timedelta(days=1)),
    ]
    assert count(frame, BOUGHT) == bought
    # Another one changes nothing; a null is neither true nor false, and satisfies none.
    assert count(frame, BOUGHT, RETURNED, signal("never", where="pieces > 9")) == [
        *bought,
        ("returned", "phone", DAY, 1, NOON + 3 * MINUTE),
    ]


def test_a_signal_reads_only_the_columns_that_it_names() -> None:
    assert signal_columns([RETURNED, signal("early", where="day < '2025-01-01' and size is null")]) == [
        "device_id", "day", "event_time", "pieces", "size"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "what", "found"),
    [
        (
            signal("s", where="pieces + 1"),
            "audiences/fields.yaml: `signals.s` is no condition",
            "'pieces + 1' of type bigint",
        ),
        (
            signal("s", where="pieces = array(1)"),
            "audiences/fields.yaml: `signals.s` does not fit the columns of the events",
            "'pieces = array(1)': [DATATYPE_MISMATCH",
        ),
        (
            signal("s", event={"pieces": "two"}),
            "audiences/fields.yaml: `signals.s.event.pieces` does not fit its column",
            "two for the column 'pieces' of type bigint",
        ),
        (
            signal("s", event={"size": "2"}),
            "audiences/fields.yaml: `signals.s.event` names a column that the events do not have",
            "'size'",
        ),
    ],
)
def test_a_signal_that_fits_no_event_is_refused_before_any_row_is_read(
    frame: Frame, wrong: Signal, what: str, found: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        count_signals(frame(EVENTS, []), [BOUGHT, wrong])
    assert caught.value.what == what
    assert str(caught.value.found).startswith(found)


# --- in the chain -------------------------------------------------------------------------------------

CONDITIONS = {
    "car_pages": lambda events: events["app_package"].str.startswith("com.cars."),
    "car_buyers": lambda events: events["product"] == "car",
    "bike_buyers": lambda events: events["product"].isin(["bike", "e-bike"]),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_the_past_of_every_signal_is_there_after_ingestion(
    spark: SparkSession, chain: Chain, name: str
) -> None:
    rows = chain.project.rows(spark, TABLE, day_keys(FIRST_DAY, LAST_DAY, f"{name}/"))

    events = chain.project.accepted
    expected = events[CONDITIONS[name](events)].groupby(["device_id", "day"]).size()
    assert rows.set_index(["device_id", "day"])["events"].to_dict() == expected.to_dict()
    assert len(rows) == len(expected) > 0


@pytest.fixture
def instance(chain: Chain, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with chain.history(tmp_path / "home") as instance:
        yield instance


def test_a_new_signal_is_made_alone_and_warns_where_no_event_satisfies_it(
    chain: Chain, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    project = chain.project.copied_to(tmp_path / "data")
    lake = project.lake
    before = {key: lake.partition(TABLE, key) for key in lake.partition_keys(TABLE)}
    more = replace(project, audiences_dir=shutil.copytree(project.audiences_dir, tmp_path / "new"))
    fields = more.audiences_dir / "fields.yaml"
    never = "signals:\n  boat_pages: {where: app_package = 'com.boats'}\n"
    fields.write_text(fields.read_text().replace("signals:\n", never))

    result = materialize(more.definitions(), instance, ["signals/boat_pages"], SCORED_DAY)

    assert result.success, failures(result)
    assert materialized(result) == {"signals/boat_pages"}
    after: Mapping[str, object] = {key: lake.partition(TABLE, key) for key in lake.partition_keys(TABLE)}
    assert {key for key in after if after[key] != before.get(key)} == {f"boat_pages/{SCORED_DAY}"}
    passed = verdicts(result)
    assert len(passed) == 5
    assert [check for check, ok in passed.items() if not ok] == ["signals/boat_pages:an_event_satisfies_it"]
