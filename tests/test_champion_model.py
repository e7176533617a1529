"""Which model serves: the best candidate or the mean of its equals, where rows that chose nothing say so."""

import json

import numpy as np
import pytest
from scipy.special import expit

from pipelines.steps.config.metric import PrecisionAt
from pipelines.steps.errors import TrainingError
from pipelines.steps.promotion.candidate_models import BLEND
from pipelines.steps.promotion.champion_model import (
    ENOUGH_DEVICES,
    Choice,
    Former,
    PromotionRows,
    choose,
    decide_promotion,
)

# --- the choice -----------------------------------------------------------------------------------


def noisy(labels: np.ndarray, noise: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.asarray(expit(labels * 2 + random.normal(0, noise, len(labels))), dtype=np.float32)


VALIDATION_LABELS = np.tile([0, 1, 0], 300)
GOOD_ONE, AS_GOOD, BAD = (noisy(VALIDATION_LABELS, noise, seed) for seed, noise in enumerate([2, 2, 8]))


def test_a_candidate_that_is_better_than_all_others_beyond_chance_serves_alone() -> None:
    choice = choose(VALIDATION_LABELS, {"dnn": BAD, "xgboost": GOOD_ONE})
    assert (choice.name, choice.best, choice.members) == ("xgboost", "xgboost", ("xgboost",))
    assert choice.behind["dnn"].low > 0
    assert str(choice) == (
        f"xgboost; auc_and_average_precision: xgboost is best with {choice.figures['xgboost']:.4f}; "
        f"dnn is behind by {choice.behind['dnn']}"
    )


def test_candidates_that_cannot_be_told_apart_serve_together_without_the_others() -> None:
    choice = choose(VALIDATION_LABELS, {"dnn": AS_GOOD, "xgboost": GOOD_ONE, "logistic": BAD})
    assert (choice.name, choice.members) == (BLEND, ("dnn", "xgboost"))
    assert str(choice).startswith("the mean of dnn, xgboost; auc_and_average_precision: ")
    assert Choice.from_dict(json.loads(json.dumps(choice.to_dict()))) == choice


def test_the_choice_goes_by_the_metric_named() -> None:
    """One ranks the top well and the rest badly, the other the other way round."""
    labels = np.repeat([1, 0, 1, 0], [100, 20, 100, 780])
    top, random = np.linspace(1, 0, 1_000), np.random.default_rng(0)
    whole = np.where(labels == 1, 0.5 + random.random(1_000) / 4, np.where(top > 0.88, 0.9, top / 2))
    top = np.where(np.arange(1_000) < 100, 1.0, random.random(1_000) / 2)
    found = {"top": top, "whole": whole}
    assert choose(labels, found, "auc").members == ("whole",)
    assert choose(labels, found, PrecisionAt(precision_at=0.1)).members == ("top",)


def test_a_device_seen_often_makes_no_difference_surer() -> None:
    random, tenfold = np.random.default_rng(1), np.repeat(np.arange(60), 10)
    labels = random.integers(0, 2, 60)
    better = {"dnn": noisy(labels, 4, 2)[tenfold], "xgboost": noisy(labels, 2, 3)[tenfold]}
    assert choose(labels[tenfold], better).members == ("xgboost",)
    assert choose(labels[tenfold], better, devices=tenfold).members == ("dnn", "xgboost")


def test_of_equals_the_first_is_the_best() -> None:
    choice = choose(VALIDATION_LABELS, {"dnn": GOOD_ONE, "xgboost": GOOD_ONE})
    assert (choice.best, choice.members) == ("dnn", ("dnn", "xgboost"))


def test_no_candidate_is_refused() -> None:
    with pytest.raises(TrainingError, match="no candidate"):
        choose(VALIDATION_LABELS, {})


# --- the promotion --------------------------------------------------------------------------------

LABELS = np.tile([1, 0, 0, 0], 50)
ROWS = PromotionRows(LABELS, np.arange(200))
CHANCE = np.random.default_rng(3).random(200)
"""Its AUC is 0.535."""
GOOD = np.asarray(expit(LABELS + np.random.default_rng(1).normal(0, 1, 200)))
BEST = np.where(LABELS == 1, 0.9, 0.1)
WORSE_THAN_CHANCE = 1 - GOOD


def test_a_first_champion_that_is_better_beyond_chance_serves() -> None:
    promotion = decide_promotion(ROWS, GOOD, None, 0.01)
    assert promotion.accepted
    assert promotion.reason == "its AUC on 200 promotion rows (50 positives) is 0.8143 (0.7440 to 0.8815)"
    assert promotion.to_dict() == {
        "accepted": True,
        "reason": promotion.reason,
        "former": None,
        "auc_behind": 0.0,
        "max_auc_loss": 0.01,
        "rows": 200,
        "positives": 50,
        "rarer_devices": 50,
        "auc": promotion.auc.value if promotion.auc else None,
        "auc_low": promotion.auc.low if promotion.auc else None,
        "auc_high": promotion.auc.high if promotion.auc else None,
        "gain_low": None,
        "gain_high": None,
        "former_may_have_seen_rows": False,
    }


@pytest.mark.parametrize("probabilities", [CHANCE, WORSE_THAN_CHANCE, np.full(200, 0.25)])
def test_a_first_champion_that_may_be_no_better_than_chance_does_not(probabilities: np.ndarray) -> None:
    promotion = decide_promotion(ROWS, probabilities, None, 0.01)
    assert not promotion.accepted
    assert (
        "may be no better than chance: its AUC on 200 promotion rows (50 positives) is 0." in promotion.reason
    )
    assert "raise training.promotion_fraction" in promotion.reason


def test_a_challenger_that_may_be_no_better_than_chance_does_not_though_the_former_is_worse() -> None:
    promotion = decide_promotion(ROWS, CHANCE, Former("v1", WORSE_THAN_CHANCE, False), 0.01)
    assert promotion.auc_behind < 0
    assert not promotion.accepted


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize(("devices", "accepted"), [(ENOUGH_DEVICES - 1, False), (ENOUGH_DEVICES, True)])
def test_too_few_devices_of_a_label_cannot_tell_however_well_they_are_ranked(
    label: int, devices: int, accepted: bool
) -> None:
    labels = np.where(np.arange(200) < devices, label, 1 - label)
    promotion = decide_promotion(PromotionRows(labels, np.arange(200)), labels * 0.5, None, 0.01)
    assert promotion.accepted is accepted
    if not accepted:
        assert promotion.reason == (
            "too few devices to tell whether it is better than chance: of the rarer label, the 200 promotion "
            f"rows ({labels.sum()} positives) hold {devices} devices, where {ENOUGH_DEVICES} are needed; add "
            "as-of days, raise training.promotion_fraction, or widen the label or its horizon"
        )


def test_a_device_that_is_positive_on_many_days_is_one_device() -> None:
    devices = np.concatenate([np.zeros(50), np.arange(1, 151)]).astype(np.int64)
    promotion = decide_promotion(
        PromotionRows(np.sort(LABELS)[::-1], devices), np.sort(BEST)[::-1], None, 0.01
    )
    assert (promotion.positives, promotion.rarer_devices, promotion.accepted) == (50, 1, False)


@pytest.mark.parametrize("labels", [np.zeros(5), np.ones(5), np.empty(0)])
def test_rows_of_one_class_or_none_tell_nothing(labels: np.ndarray) -> None:
    former = Former("v1", np.full(len(labels), 0.5), False)
    promotion = decide_promotion(
        PromotionRows(labels, np.arange(len(labels))), np.full(len(labels), 0.5), former, 0.01
    )
    assert (promotion.auc, promotion.gain, promotion.auc_behind) == (None, None, 0)
    assert not promotion.accepted
    assert "too few devices to tell" in promotion.reason


def test_a_new_champion_may_lack_a_little_and_no_more() -> None:
    refused = decide_promotion(ROWS, GOOD, Former("v1", BEST, False), 0.01)
    assert not refused.accepted
    assert refused.auc_behind > 0.01
    assert refused.gain is not None
    assert refused.gain.low < refused.gain.value < refused.gain.high < 0
    assert refused.reason == (
        f"it ranks the promotion rows worse than the former champion v1 by {refused.auc_behind:.4f}, where "
        "training.max_auc_loss allows 0.01; `./run python -m pipelines.models promote` overrules"
    )
    assert decide_promotion(ROWS, GOOD, Former("v1", BEST, False), 0.4).accepted
    assert decide_promotion(ROWS, BEST, Former("v1", GOOD, False), 0.0).accepted
    assert decide_promotion(ROWS, GOOD, Former("v1", GOOD, False), 0.0).accepted


def test_a_refusal_says_that_the_former_may_have_been_trained_on_these_devices() -> None:
    refused = decide_promotion(ROWS, GOOD, Former("v1", BEST, True), 0.01)
    assert "the former may have been trained on these devices, which favours it" in refused.reason
    assert refused.to_dict()["former_may_have_seen_rows"] is True


def test_a_former_champion_that_cannot_be_asked_is_no_obstacle() -> None:
    promotion = decide_promotion(ROWS, GOOD, Former("v1", None, False), 0.0)
    assert (promotion.accepted, promotion.former, promotion.gain) == (True, "v1", None)
