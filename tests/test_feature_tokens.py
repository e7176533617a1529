"""Feature tokens: what is in a window and what is not, which tokens are kept, and in which order."""

import random
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta

import numpy as np
import pytest
from pyspark.sql import DataFrame

from pipelines.steps.config.fields import FieldSpec
from pipelines.steps.features.feature_tokens import collect_tokens, files_of, window
from pipelines.steps.features.token_weights import codes_of
from tests.conftest import Frame

DAY = date(2025, 3, 10)
WINDOW_DAYS = 7

MODEL = FieldSpec(name="model", column="device_model", kind="single", normalizer="device_model")
APPS = FieldSpec(name="apps", column="app_package", kind="multi", normalizer="package", max_length=3)
FIELDS = [MODEL, APPS]
VALUES = "array<struct<value: string, events: bigint>>"
DAILY = f"device_id string, day date, last_event_time timestamp, model {VALUES}, apps {VALUES}"
Row = dict[str, object]


def days_before(count: int) -> date:
    return DAY - timedelta(days=count)


def noon(day: date) -> datetime:
    return datetime.combine(day, time(12), UTC)


def device_day(
    day: date,
    model: Sequence[str | tuple[str, int]] = (),
    apps: Sequence[str | tuple[str, int]] = (),
    device_id: str = "phone",
) -> tuple[object, ...]:
    def counted(values: Sequence[str | tuple[str, int]]) -> list[dict[str, object]]:
        pairs = [(value, 1) if isinstance(value, str) else value for value in values]
        return [{"value": value, "events": events} for value, events in pairs]

    return (device_id, day, noon(day), counted(model), counted(apps))


def collect(
    daily: DataFrame, as_of_days: Sequence[date] = (DAY,), window_days: int = WINDOW_DAYS
) -> list[Row]:
    tokens = collect_tokens(daily, FIELDS, as_of_days, window_days)
    return list(tokens.orderBy("day", "device_id").toArrow().to_pylist())


# --- the window -----------------------------------------------------------------------------------


def test_a_window_ends_with_the_as_of_day_and_is_as_long_as_it_says(frame: Frame) -> None:
    edges = {
        "as-of day": DAY,
        "first day": days_before(WINDOW_DAYS - 1),
        "day before the first": days_before(WINDOW_DAYS),
        "day after": DAY + timedelta(days=1),
    }
    rows = collect(frame(DAILY, [device_day(day, device_id=edge) for edge, day in edges.items()]))
    assert [row["device_id"] for row in rows] == ["as-of day", "first day"]


def test_a_window_names_its_days_oldest_first_and_none_before_the_first_day() -> None:
    assert window(DAY, 3, date(2025, 1, 1)) == [days_before(2), days_before(1), DAY]
    assert window(DAY, 3, days_before(1)) == [days_before(1), DAY]


def test_a_window_of_one_day_holds_that_day_only(frame: Frame) -> None:
    daily = frame(DAILY, [device_day(DAY, apps=["today"]), device_day(days_before(1), apps=["yesterday"])])
    assert [row["apps"] for row in collect(daily, window_days=1)] == [["today"]]


def test_the_last_event_is_the_newest_of_the_window(frame: Frame) -> None:
    daily = frame(DAILY, [device_day(days_before(back), apps=["a"]) for back in (5, 2, WINDOW_DAYS)])
    [row] = collect(daily)
    assert (row["day"], row["last_event_time"]) == (DAY, noon(days_before(2)))


def test_many_as_of_days_at_once_equal_one_at_a_time(frame: Frame) -> None:
    rng = random.Random(5)
    models = ["Pixel 8", "samsung SM-A5", "SM_A5", "unknown", ""]
    apps = ["com.a", "COM.A", "com.b:push", "com.b", "com.c", "com.d", "null"]
    rows = []
    for device in range(20):
        for back in range(-2, 12):
            if rng.random() < 0.4:  # most windows have days without the device
                model, seen = (
                    rng.sample(models, rng.randint(0, 2)),
                    [(app, rng.randint(1, 40)) for app in sorted(rng.sample(apps, rng.randint(0, 4)))],
                )
                rows.append(device_day(days_before(back), model, seen, f"device-{device}"))
    daily = frame(DAILY, rows).cache()
    as_of_days = [days_before(3), days_before(1), DAY]
    one_at_a_time = [row for day in as_of_days for row in collect(daily, [day])]
    assert collect(daily, as_of_days) == one_at_a_time
    assert len(one_at_a_time) > len(as_of_days)
    daily.unpersist()


# --- which tokens, in which order -----------------------------------------------------------------

Seen = dict[int, list[str | tuple[str, int]]]
"""Days before the as-of day → raw values of that day, each once or with its number of events."""

SINGLE_CASES: Mapping[str, tuple[Seen, list[str]]] = {
    "newest day": ({1: ["old"], 0: ["new"]}, ["new"]),
    "newest of the day": ({0: ["newest", "older"]}, ["newest"]),
    "unknown today": ({1: ["known"], 0: ["unknown"]}, ["known"]),
    "unknown at last": ({0: ["(null)", "Samsung SM_A5"]}, ["sm-a5"]),
    "never known": ({1: [""], 0: ["unknown"]}, []),
}
MULTI_CASES: Mapping[str, tuple[Seen, list[str]]] = {
    "most days first": ({1: ["a", "b"], 0: ["b"]}, ["b", "a"]),
    "then the newest": ({1: ["a"], 0: ["z"]}, ["z", "a"]),
    "then in lexical order": ({0: ["c", "a", "b"]}, ["a", "b", "c"]),
    "as many as max_length": ({0: ["d", "b", "a", "c"]}, ["a", "b", "c"]),
    "the last ones are cut": ({2: ["d"], 1: ["d", "a"], 0: ["d", "a", "b", "c"]}, ["d", "a", "b"]),
    "several spellings of one token": ({1: ["a"], 0: ["B", "b", "b:push"]}, ["b", "a"]),
    "spellings count once a day": ({2: ["a"], 1: ["a"], 0: ["b", "B:x"]}, ["a", "b"]),
    "nothing said": ({0: ["null", ""]}, []),
}
WEIGHT_CASES: Mapping[str, tuple[Seen, list[tuple[int, int, int]]]] = {
    "once, today": ({0: ["a"]}, [(1, 1, 0)]),
    "events of all days": ({5: [("a", 3)], 1: [("a", 61), ("b", 2)]}, [(64, 2, 1), (2, 1, 1)]),
    "spellings add their events and count a day once": (
        {2: [("a", 4), ("A", 4), ("a:push", 1)], 3: ["A"]},
        [(10, 2, 2)],
    ),
    "weights are cut with their tokens": (
        {6: [("a", 9), ("b", 99)], 3: ["a"], 0: ["c", "d", "z"]},
        [(10, 2, 3), (1, 1, 0), (1, 1, 0)],
    ),
    "beyond the window is not counted": ({7: [("a", 70)], 4: ["a"]}, [(1, 1, 4)]),
    "no bytes without tokens": ({0: ["null", ""]}, []),
}
"""Raw values of `apps` → events, days and age of each of its tokens."""


@pytest.fixture(scope="module")
def tokens(frame: Frame) -> dict[str, Row]:
    """All cases in one Spark job, a device each."""
    single = [
        device_day(days_before(back), model=values, device_id=case)
        for case, (seen, _) in SINGLE_CASES.items()
        for back, values in seen.items()
    ]
    multi = [
        device_day(days_before(back), apps=values, device_id=case)
        for case, (seen, _) in MULTI_CASES.items()
        for back, values in seen.items()
    ]
    weighted = [
        device_day(days_before(back), model=values, apps=values, device_id=case)
        for case, (seen, _) in WEIGHT_CASES.items()
        for back, values in seen.items()
    ]
    return {str(row["device_id"]): row for row in collect(frame(DAILY, [*single, *multi, *weighted]))}


@pytest.mark.parametrize("case", SINGLE_CASES)
def test_a_single_valued_field_has_the_newest_value_that_says_something(
    case: str, tokens: dict[str, Row]
) -> None:
    assert tokens[case]["model"] == SINGLE_CASES[case][1]


@pytest.mark.parametrize("case", MULTI_CASES)
def test_a_multi_valued_field_has_its_tokens_by_days_then_age_then_name(
    case: str, tokens: dict[str, Row]
) -> None:
    assert tokens[case]["apps"] == MULTI_CASES[case][1]


@pytest.mark.parametrize("case", WEIGHT_CASES)
def test_each_token_has_a_byte_that_says_events_days_and_age(case: str, tokens: dict[str, Row]) -> None:
    expected = WEIGHT_CASES[case][1]
    events, days, ages = np.array(expected, dtype=np.int64).reshape(-1, 3).T
    assert tokens[case]["apps_weights"] == codes_of(events, days, ages).tobytes()


def test_a_single_valued_field_has_the_byte_of_its_one_token(tokens: dict[str, Row]) -> None:
    # the newest day's first value, seen 61 times then and 3 times before
    assert tokens["events of all days"]["model"] == ["a"]
    assert tokens["events of all days"]["model_weights"] == tokens["events of all days"]["apps_weights"][:1]  # type: ignore[index]
    assert tokens["no bytes without tokens"]["model_weights"] == b""


def test_a_device_without_tokens_is_kept_with_empty_lists(frame: Frame) -> None:
    assert collect(frame(DAILY, [device_day(DAY)])) == [
        {
            "device_id": "phone",
            "day": DAY,
            "last_event_time": noon(DAY),
            "model": [],
            "apps": [],
            "model_weights": b"",
            "apps_weights": b"",
        }
    ]


def test_devices_and_fields_do_not_mix(frame: Frame) -> None:
    daily = frame(
        DAILY,
        [device_day(DAY, ["same"], ["other"]), device_day(DAY, ["other"], ["same"], device_id="tablet")],
    )
    assert [(row["device_id"], row["model"], row["apps"]) for row in collect(daily)] == [
        ("phone", ["same"], ["other"]),
        ("tablet", ["other"], ["same"]),
    ]


@pytest.mark.parametrize(
    ("daily_devices", "files"),
    [([], 4), ([0, 20_000], 4), ([4_000_000, 1], 4), ([4_000_001], 5), ([90_000_000, 400_000_000], 400)],
)
def test_a_large_day_is_written_to_more_files(daily_devices: list[int], files: int) -> None:
    assert files_of(daily_devices) == files
