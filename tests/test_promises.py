"""Promised and happened: the mean probability of a segment beside what became of it."""

import numpy as np
import pandas as pd
import pytest

from pipelines import demo
from pipelines.steps.promotion.model_report import Share
from pipelines.steps.promotion.promises import Promise, measure_promises, tenths, top_segments

EVERYBODY = np.ones(400, dtype=bool)


def test_a_base_rate_that_moved_is_told_apart() -> None:
    """All logits are right but for one shift: ln 2 doubles the odds."""
    odds = np.repeat([1 / 9, 1.0], 200)  # probabilities .1 and .5
    labels = np.concatenate([[1] * 20, [0] * 180, [1] * 100, [0] * 100]).astype(np.float32)
    said = (2 * odds / (1 + 2 * odds)).astype(np.float32)
    top = np.arange(400) >= 200

    promises = measure_promises(labels, said, {"top": top, "all": EVERYBODY})

    assert promises.base_rate_shift == pytest.approx(-np.log(2), abs=1e-5)
    assert (promises.promised, promises.happened.value) == pytest.approx((0.4242424, 0.3))
    [found, everybody] = promises.segments
    assert (found.rows, found.promised, found.at_base_rate) == pytest.approx((200, 2 / 3, 0.5), abs=1e-6)
    assert found.happened == Share.of(100, 200)
    assert found.kept
    assert everybody.at_base_rate == pytest.approx(0.3, abs=1e-6)


@pytest.mark.parametrize(("said", "kept"), [(0.44, True), (0.42, False), (0.56, True), (0.58, False)])
def test_a_promise_is_kept_within_the_interval_of_what_happened(said: float, kept: bool) -> None:
    # Wilson's interval of 100 of 200 is .4313 to .5687
    assert Promise("top", 200, 0.9, said, Share.of(100, 200)).kept is kept


@pytest.mark.parametrize("label", [0, 1])
def test_where_all_are_alike_no_base_rate_can_be_set(label: int) -> None:
    promises = measure_promises(np.full(3, label), np.array([0.1, 0.2, 0.3]), {"all": np.ones(3, dtype=bool)})
    assert promises.base_rate_shift == 0
    assert promises.segments[0].at_base_rate == pytest.approx(0.2)


def test_a_segment_of_nobody_is_left_out() -> None:
    promises = measure_promises(np.array([0, 1]), np.array([0.1, 0.2]), {"none": np.zeros(2, dtype=bool)})
    assert promises.segments == []


def test_tops_are_of_the_most_probable() -> None:
    tops = top_segments(np.linspace(0, 1, 50))
    assert {name: int(chosen.sum()) for name, chosen in tops.items()} == {
        "top 1%": 1,
        "top 2%": 1,
        "top 5%": 3,
        "top 10%": 5,
        "top 20%": 10,
    }
    assert np.flatnonzero(tops["top 10%"]).tolist() == [45, 46, 47, 48, 49]


def test_tenths_are_all_rows_once_the_most_probable_first() -> None:
    parts = tenths(np.linspace(0, 1, 25))
    assert np.flatnonzero(parts["tenth 1"]).tolist() == [22, 23, 24]
    assert [int(chosen.sum()) for chosen in parts.values()] == [3, 2, 3, 2, 3, 2, 3, 2, 3, 2]
    assert np.sum(list(parts.values()), axis=0).tolist() == [1] * 25


def test_the_demo_tells_what_its_segments_promised() -> None:
    devices = [f"d{n}" for n in range(400)]
    labels = [1] * 20 + [0] * 180 + [1] * 100 + [0] * 100
    scored = pd.DataFrame(
        {
            "device_id": devices,
            "probability": np.array([0.1] * 200 + [0.4] * 200, dtype=np.float32),
            "label": labels,
        }
    )
    segments = pd.DataFrame({"segment": "likely", "device_id": devices[200:]})

    told = demo._promises(scored, segments)

    assert "All 400 devices: 0.2500 promised, 0.3000 converted. A shift of all logits by +0.2" in told
    assert "| likely    | 200       | 0.400      |" in told
    assert "0.500 (0.431 to 0.569)" in told
    assert "| top 1%" in told
