"""Codes and tokens of behaviour, the words and docs of the list; on Spark rows depend on no buckets."""

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.steps.config.behaviour import BehaviourSection
from pipelines.steps.config.behaviour_names import BEHAVIOUR
from pipelines.steps.config.signals import EventCondition, Signal
from pipelines.steps.features.behaviour_codes import (
    CODES,
    EDGES_HASH,
    LABELS,
    NONE,
    ZERO,
    behaviour_tokens,
    codes_of,
    in_words,
    parsed_token,
    token_in_words,
)
from pipelines.steps.features.behaviour_tokens import collect_behaviour
from pipelines.steps.features.behaviours import (
    Behaviour,
    Layout,
    device_behaviours,
    documented,
    found_behaviour,
    signal_behaviours,
)
from pipelines.steps.features.token_fields import BehaviourField
from tests.conftest import Frame

ACTIVE = Behaviour("active_days_7d", "activity", "days with an event in the last 7 days", "days", BEHAVIOUR)
EVENTS = Behaviour("events_7d", "activity", "events in the last 7 days", "events", BEHAVIOUR)


# --- codes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "label"),
    [
        (math.nan, "none"),
        (0, "0"),
        (1, "1"),
        (3, "3"),
        (4, "4"),
        (5, "4"),
        (6, "6"),
        (-5, "-4"),
        (0.3, "0.25"),
        (1e-9, "0.015625"),
        (-1e-9, "-0.015625"),
        (math.inf, f"{1.5 * 2**31:g}"),
        (-math.inf, f"-{1.5 * 2**31:g}"),
    ],
)
def test_a_number_has_the_label_of_its_edge_nearest_to_0(number: float, label: str) -> None:
    assert LABELS[codes_of(np.array([float(number)]))[0]] == label


@given(st.lists(st.floats(allow_nan=False), min_size=2))
def test_codes_are_monotone_in_the_number(numbers: list[float]) -> None:
    codes = codes_of(np.sort(np.array(numbers)))
    assert (np.diff(codes.astype(int)) >= 0).all()
    assert codes.min() > NONE


def test_codes_fit_a_byte_and_the_edges_are_frozen() -> None:
    assert (CODES, ZERO, len(set(LABELS))) == (154, 77, CODES)
    assert EDGES_HASH.startswith("93d965fbbd06")


def test_tokens_are_parsed_to_what_they_were_made_of() -> None:
    table = pa.table({"active_days_7d": [3.0, None], "events_7d": [5.0, 0.0]})
    tokens = behaviour_tokens(table, [ACTIVE, EVENTS]).to_pylist()
    assert tokens == [["active_days_7d=3", "events_7d=4"], ["active_days_7d=none", "events_7d=0"]]
    assert parsed_token("active_days_7d=3") == ("active_days_7d", codes_of(np.array([3.0]))[0])
    assert (parsed_token("active_days_7d=none"), parsed_token("events_7d=5")) == (("active_days_7d", 0), None)


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words"),
    [(3, "3"), (5, "4 to 5"), (0, "0"), (math.nan, "never"), (2.0**32, "3.22123e+09 or beyond")],
)
def test_a_code_in_words(number: float, words: str) -> None:
    code = int(codes_of(np.array([float(number)]))[0])
    assert in_words(EVENTS, code) == f"events in the last 7 days: {words}"


def test_a_share_in_words() -> None:
    share = Behaviour("night_share", "hours", "share of hours at night", "share", BEHAVIOUR)
    assert (
        in_words(share, int(codes_of(np.array([0.3]))[0])) == "share of hours at night: 0.25 to below 0.375"
    )


@pytest.mark.parametrize(
    ("field", "token", "words"),
    [
        ("behaviour", "active_days_7d=4", "days with an event in the last 7 days: 4 to 5"),
        ("apps_distinct", "distinct_apps_1d=3", "distinct raw values of apps on the as-of day: 3"),
        ("revenue_amounts", "revenue_sum_all=0", "sum of revenue in all history: 0"),
        (
            "revenue_amounts",
            "revenue_recency=none",
            "days since the last day with a revenue other than 0: never",
        ),
        ("buys_past", "times_90d=1", "buys: events that satisfy the signal, in the last 90 days: 1"),
        ("apps", "times_90d=1", "times_90d=1"),
        ("behaviour", "mood=1", "mood=1"),
        ("behaviour", "events_soon=1", "events_soon=1"),
    ],
)
def test_a_token_in_words(field: str, token: str, words: str) -> None:
    assert token_in_words(field, token) == words


def test_every_behaviour_is_found_by_its_name() -> None:
    layout = Layout(90, ("apps",), {"revenue": True})
    for each in device_behaviours(layout):
        assert found_behaviour(each.field, each.name) == each
    for each in signal_behaviours(layout):
        found = found_behaviour("buys_past", each.name)
        assert found is not None
        assert found.words == f"buys: {each.words}"


def test_each_name_is_used_once() -> None:
    names = [
        b.name for b in device_behaviours(Layout(90, ("apps", "shops"), {"revenue": True, "time": False}))
    ]
    assert len(names) == len(set(names))
    assert "time_max_7d" not in names


def test_the_docs_hold_the_list() -> None:
    assert documented() in Path("docs/features.md").read_text()


def test_a_group_that_is_none_is_refused_with_the_groups() -> None:
    assert BehaviourSection(without=("hours",)).without == ("hours",)
    with pytest.raises(ValidationError, match="one of activity, distinct, amounts, signals"):
        BehaviourSection.model_validate({"without": ["hour"]})


# --- on Spark -------------------------------------------------------------------------------------

DAYS = [date(2025, 3, 30), date(2025, 3, 31)]
DAILY = (
    "device_id string, day date, events bigint, last_event_time timestamp, hours int, "
    "apps array<struct<value: string, events: bigint>>, "
    "revenue struct<sum: decimal(38,6), max: decimal(38,6), events: bigint, nonzero: bigint>"
)
SIGNALS = "signal string, device_id string, day date, events bigint, last_event_time timestamp"


LAYOUT = Layout(30, ("apps",), {"revenue": True})
BUYS = Signal("buys", EventCondition(where="price > 0"), Path("fields.yaml"), "signals.buys")
OF_EVENTS = device_behaviours(LAYOUT)
FIELDS = [
    *(
        BehaviourField(name, tuple(b for b in OF_EVENTS if b.field == name))
        for name in (BEHAVIOUR, "apps_distinct", "revenue_amounts")
    ),
    BehaviourField("buys_past", tuple(signal_behaviours(LAYOUT)), BUYS),
]


@pytest.mark.slow
def test_rows_do_not_depend_on_buckets(frame: Frame) -> None:
    noon = [datetime(day.year, day.month, day.day, 12, tzinfo=UTC) for day in DAYS]
    money = {"sum": Decimal("2.5"), "max": Decimal("2.5"), "events": 1, "nonzero": 1}
    app = [{"value": "x", "events": 2}]
    daily = frame(
        DAILY,
        [(d, DAYS[n], 2, noon[n], 1 << 12, app, money) for d, n in (("a", 0), ("a", 1), ("b", 0), ("c", 1))],
    )
    bought = frame(SIGNALS, [("buys", "b", DAYS[0], 1, noon[0]), ("other", "a", DAYS[0], 1, noon[0])])
    layout = LAYOUT
    one, many = [
        collect_behaviour(daily, bought, FIELDS, layout, DAYS, buckets).toArrow().sort_by(
            [("day", "ascending"), ("device_id", "ascending")]
        )
        for buckets in (1, 5)
    ]  # fmt: skip
    assert one.equals(many)
    assert [(row["device_id"], row["day"]) for row in one.to_pylist()] == [
        ("a", DAYS[0]), ("b", DAYS[0]), ("a", DAYS[1]), ("b", DAYS[1]), ("c", DAYS[1]),
    ]  # fmt: skip
    b = one.to_pylist()[3]
    assert {"events_7d=2", "active_days_1d=0"} <= set(b["behaviour"])
    assert "distinct_apps_30d=1" in b["apps_distinct"]
    assert "revenue_sum_all=2" in b["revenue_amounts"]
    assert {"times_7d=1", "recency=1.5", "gap_mean=none"} <= set(b["buys_past"])
