"""Segments: whom an advertiser gets by each rule, and how right that turned out to be."""

from collections.abc import Mapping
from datetime import date, timedelta
from math import isnan

import pytest
from pyspark.sql import DataFrame

from pipelines.steps.config.audience import SegmentSpec
from pipelines.steps.targeting.segments import (
    SegmentOutcome,
    measure_segments,
    select_segments,
    why_withheld,
    withheld_segments,
)
from tests.conftest import Frame

DAY = date(2025, 3, 10)
PREDICTIONS = "audience string, device_id string, day date, probability float"
SCORES = {"a": 0.5, "b": 0.9, "c": 0.5, "d": 0.1, "e": 0.5}
NO_THRESHOLDS: Mapping[str, float | None] = {}


@pytest.fixture
def predictions(frame: Frame) -> DataFrame:
    return frame(PREDICTIONS, [("buyers", device, DAY, score) for device, score in SCORES.items()])


def members(segments: DataFrame) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in segments.orderBy("segment", "device_id").toArrow().to_pylist():
        found.setdefault(row["segment"], []).append(row["device_id"])
    return found


def test_each_rule_selects_its_devices(predictions: DataFrame) -> None:
    rules = [
        SegmentSpec(name="two", size=2),
        SegmentSpec(name="all_there_are", size=99),
        SegmentSpec(name="forty_percent", top_fraction=0.4),
        SegmentSpec(name="rounded_up", top_fraction=0.41),
        SegmentSpec(name="precise", min_precision=0.7),
    ]
    # Ties (a, c and e) go to the smaller id; the threshold itself is in.
    assert members(select_segments(predictions, rules, {"precise": 0.5})) == {
        "two": ["a", "b"],
        "all_there_are": ["a", "b", "c", "d", "e"],
        "forty_percent": ["a", "b"],
        "rounded_up": ["a", "b", "c"],
        "precise": ["a", "b", "c", "e"],
    }


def test_a_segment_has_these_columns(predictions: DataFrame) -> None:
    segment = select_segments(predictions, [SegmentSpec(name="one", size=1)], NO_THRESHOLDS)
    assert segment.schema.simpleString() == (
        "struct<audience:string,segment:string,day:date,device_id:string,probability:float>"
    )
    [row] = segment.toArrow().to_pylist()
    assert (row["audience"], row["segment"], row["day"], row["device_id"]) == ("buyers", "one", DAY, "b")


def test_seven_percent_of_a_hundred_devices_are_seven(frame: Frame) -> None:
    # 0.07 * 100 is 7.000000000000001 in floating point.
    hundred = frame(PREDICTIONS, [("buyers", f"{number:03}", DAY, number / 100) for number in range(100)])
    segment = select_segments(hundred, [SegmentSpec(name="top", top_fraction=0.07)], NO_THRESHOLDS)
    assert members(segment) == {"top": [f"{number:03}" for number in range(93, 100)]}


def test_a_threshold_found_on_stored_scores_selects_the_device_that_set_it(frame: Frame) -> None:
    # 0.1 as float32 is 0.10000000149: a comparison in double precision would let it through or not by chance.
    predictions = frame(PREDICTIONS, [("buyers", "edge", DAY, 0.1), ("buyers", "below", DAY, 0.0999999)])
    rule = SegmentSpec(name="precise", min_precision=0.7)
    assert members(select_segments(predictions, [rule], {"precise": 0.1})) == {"precise": ["edge"]}


@pytest.mark.parametrize(
    ("thresholds", "reason"),
    [
        (
            {"precise": None},
            "no threshold reached a precision of 0.99 on validation devices: ask for a lower one, or for a "
            "top_fraction or size; then train again",
        ),
        ({}, "no threshold for a precision of 0.99 was ever computed: run training_job"),
    ],
)
def test_a_precision_never_reached_withholds_its_segment_and_no_other(
    predictions: DataFrame, thresholds: Mapping[str, float | None], reason: str
) -> None:
    segments = [SegmentSpec(name="precise", min_precision=0.99), SegmentSpec(name="two", size=2)]
    assert withheld_segments(segments, thresholds) == {"precise": reason}
    assert members(select_segments(predictions, segments, thresholds)) == {"two": ["a", "b"]}


@pytest.mark.parametrize(
    ("devices", "scored", "uncut", "reason"),
    [
        (1, 2, None, None),
        (0, 2, None, "none of the 2 scored devices is in it"),
        (2, 2, None, "all 2 scored devices are in it"),
        (0, 0, None, "no device was scored: the look-back window holds no event"),
        (0, 2, "no threshold", "no threshold"),
    ],
)
def test_a_segment_that_must_not_go_out_says_why(
    devices: int, scored: int, uncut: str | None, reason: str | None
) -> None:
    assert why_withheld(devices, scored, uncut) == reason


# --- what became of them --------------------------------------------------------------------------


def test_a_segment_is_measured_against_all_scored_devices(frame: Frame) -> None:
    segments = frame(
        "segment string, device_id string, day date",
        [("small", "a", DAY), ("large", "a", DAY), ("large", "b", DAY)],
    )
    labelled = frame(
        "device_id string, day date, label int",
        [("a", DAY, 1), ("b", DAY, 0), ("c", DAY, 0), ("d", DAY, 0)],
    )
    assert measure_segments(segments, labelled) == [
        SegmentOutcome("large", devices=2, converted=1, base_rate=0.25),
        SegmentOutcome("small", devices=1, converted=1, base_rate=0.25),
    ]


def test_a_conversion_on_another_as_of_day_does_not_count(frame: Frame) -> None:
    segments = frame("segment string, device_id string, day date", [("top", "a", DAY)])
    other_day = DAY - timedelta(days=1)
    labelled = frame("device_id string, day date, label int", [("a", DAY, 0), ("a", other_day, 1)])
    assert [outcome.converted for outcome in measure_segments(segments, labelled)] == [0]


def test_precision_and_lift_follow_from_the_counts() -> None:
    outcome = SegmentOutcome("top", devices=10, converted=4, base_rate=0.1)
    assert outcome.precision == 0.4
    assert outcome.lift == pytest.approx(4.0)


def test_where_nobody_converted_the_lift_is_unknown() -> None:
    assert isnan(SegmentOutcome("top", devices=10, converted=0, base_rate=0.0).lift)
