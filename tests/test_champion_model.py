"""Which model serves: the best candidate, where rows that chose nothing say that it may."""

import numpy as np
import pytest
from scipy.special import expit

from pipelines.steps.errors import TrainingError
from pipelines.steps.models.metrics import Metrics
from pipelines.steps.promotion.candidate_models import BLEND
from pipelines.steps.promotion.champion_model import (
    ENOUGH_DEVICES,
    Former,
    PromotionRows,
    choose,
    choose_champion,
    decide_promotion,
)

# --- the choice -----------------------------------------------------------------------------------


def metrics(auc: float, average_precision: float = 0.5, rows: int = 100) -> Metrics:
    return Metrics(
        auc, average_precision, 0.4, 0.9, 0.7, 0.5, 0.1, 0.2, 0.01, rows, positives=20, base_rate=0.2
    )


def test_the_champion_has_the_highest_auc() -> None:
    assert choose_champion({"dnn": metrics(0.7, 0.9), "xgboost": metrics(0.8), "logistic": metrics(0.6)}) == (
        "xgboost"
    )


def test_ties_go_to_average_precision_then_to_the_name() -> None:
    assert choose_champion({"dnn": metrics(0.8, 0.4), "xgboost": metrics(0.8, 0.5)}) == "xgboost"
    assert choose_champion({"xgboost": metrics(0.8), "dnn": metrics(0.8)}) == "dnn"


def test_candidates_measured_on_other_rows_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"(?s)different rows.*'dnn': \(100, 20\), 'xgboost': \(99, 20\)"):
        choose_champion({"dnn": metrics(0.8), "xgboost": metrics(0.9, rows=99)})


def test_no_candidate_is_refused() -> None:
    with pytest.raises(TrainingError, match="no candidate"):
        choose_champion({})


def noisy(labels: np.ndarray, noise: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.asarray(expit(labels * 2 + random.normal(0, noise, len(labels))), dtype=np.float32)


def test_a_blend_that_is_better_beyond_chance_serves() -> None:
    labels = np.tile([0, 1, 0], 1_000)
    found = {name: noisy(labels, 2, seed) for seed, name in enumerate(["dnn", "xgboost", "logistic"])}
    found[BLEND] = np.mean(list(found.values()), axis=0)
    choice = choose(labels, found)
    assert choice.name == BLEND
    assert choice.blend_gain.low > 0


def test_a_blend_that_may_be_no_better_does_not() -> None:
    labels = np.tile([0, 1, 0], 1_000)
    found = {"dnn": noisy(labels, 3, 0), "xgboost": noisy(labels, 1, 1), "logistic": noisy(labels, 3, 2)}
    found[BLEND] = found["xgboost"] + np.float32(1e-6) * found["dnn"]
    assert choose(labels, {k: np.clip(v, 0, 1) for k, v in found.items()}).name == "xgboost"


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
