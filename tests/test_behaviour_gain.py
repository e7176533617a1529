"""The gain by behaviour in the demo's report: the same rows, with and without its fields."""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from pipelines.behaviour_gain import BehaviourGain, gains_table, knows_behaviour, measure_gains
from pipelines.steps.features.encoded_rows import EncodedRows
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.labels.training_rows import TrainingRows

APPS = FieldVocabulary("apps", 10, ("com.maps", "com.news"), weighted=True)
BEHAVIOUR = FieldVocabulary("behaviour", 10, ("events_7d=0", "events_7d=4"))
PAST = FieldVocabulary("car_buyers_past", 10, ("times_all=0",))
EVERYTHING = Vocabulary((APPS, BEHAVIOUR, PAST))


class BusyDevices:
    """A scorer that knows the answer: who is busy converts."""

    vocabulary = EVERYTHING

    def score(self, rows: EncodedRows) -> np.ndarray:
        return np.asarray(rows["behaviour"].values == 3, dtype=np.float32)


def later_tokens(busy: list[bool]) -> pa.Table:
    apps = [["com.maps"] if row % 3 else ["com.news"] for row in range(len(busy))]
    return pa.table(
        {
            "device_id": [f"device {row}" for row in range(len(busy))],
            "apps": apps,
            "apps_weights": [bytes([5]) if one else bytes([0]) for one in busy],
            "behaviour": [["events_7d=4" if one else "events_7d=0"] for one in busy],
            "car_buyers_past": [["times_all=0"] for _ in busy],
        }
    )


def test_models_are_compared_with_ones_that_know_tokens_alone() -> None:
    """Apps say nothing, behaviour and weights everything: by tokens alone, nobody beats chance."""
    busy = [row % 2 == 0 for row in range(240)]
    bags = EVERYTHING.encode(later_tokens(busy))
    split = np.asarray([row // 120 for row in range(240)], dtype=np.int8)  # TRAIN, then VALIDATION
    rows = TrainingRows(np.asarray(busy, dtype=np.float32), split, bags)

    gains = measure_gains(
        rows,
        EVERYTHING,
        {"xgboost": BusyDevices(), "logistic": BusyDevices()},  # type: ignore[dict-item]
        later_tokens([True, True, False, False, False, True]),
        np.asarray([True, True, False, False, False, True]),
    )

    assert [gain.model for gain in gains] == ["xgboost", "logistic"]
    for gain in gains:
        assert gain.with_behaviour == 1.0
        assert 0.3 < gain.tokens_only < 0.7


def test_a_vocabulary_knows_behaviour_by_the_names_of_its_fields() -> None:
    assert knows_behaviour(EVERYTHING)
    assert knows_behaviour(Vocabulary((APPS, PAST)))
    assert knows_behaviour(Vocabulary((APPS,)))  # whose tokens weigh
    assert not knows_behaviour(Vocabulary((replace(APPS, weighted=False),)))


def test_the_report_shows_both_and_the_difference() -> None:
    assert gains_table([BehaviourGain("xgboost", 0.75, 0.8125)]) == (
        "| AUC     |   tokens only |   with behaviour |   gain |\n"
        "|:--------|--------------:|-----------------:|-------:|\n"
        "| xgboost |         0.750 |            0.812 |  0.062 |"
    )
