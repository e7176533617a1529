"""Calibrated probabilities mean what they say, and rank as before."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from pipelines.steps.errors import BundleError, TrainingError
from pipelines.steps.models.calibration import (
    AMPLE_POSITIVES,
    Calibration,
    correct_for_sampling,
    fit_calibration,
)
from pipelines.steps.models.metrics import compute_metrics


def overconfident(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities whose logits are three times too large."""
    random = np.random.default_rng(seed)
    logits = random.normal(-1, 1, rows)
    labels = (random.random(rows) < expit(logits)).astype(np.float32)
    return labels, expit(3 * logits).astype(np.float32)


@pytest.mark.parametrize(("rows", "method"), [(40_000, "isotonic"), (1_500, "platt")])
def test_overconfident_probabilities_are_calibrated_on_rows_not_seen(rows: int, method: str) -> None:
    calibration = fit_calibration(*overconfident(rows))
    labels, probabilities = overconfident(40_000, seed=1)
    before, after = (
        compute_metrics(labels, probabilities),
        compute_metrics(labels, calibration.apply(probabilities)),
    )
    assert calibration.method == method
    assert before.calibration_error > 0.1 > 0.02 > after.calibration_error
    assert after.log_loss < before.log_loss
    assert after.brier < before.brier
    assert after.auc == pytest.approx(before.auc, abs=1e-6)


def test_isotonic_needs_ample_positives() -> None:
    labels, probabilities = overconfident(40_000)
    few = np.flatnonzero(labels)[: AMPLE_POSITIVES - 1]
    rows = np.concatenate([few, np.flatnonzero(labels == 0)])
    assert fit_calibration(labels[rows], probabilities[rows]).method == "platt"


def test_the_very_top_keeps_its_order() -> None:
    """Beyond the last knot, where isotonic regression alone would make all scores equal."""
    labels, probabilities = overconfident(40_000)
    calibration = fit_calibration(labels, probabilities)
    top = np.linspace(probabilities.max(), 0.9999999, 5).astype(np.float32)
    assert (np.diff(calibration.apply(top)) > 0).all()


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=30))
def test_no_order_is_ever_turned_around(values: list[float]) -> None:
    calibration = Calibration("isotonic", (-3.0, 0.0, 2.0), (-2.5, -2.0, 4.0))
    ranked = np.sort(np.asarray(values, dtype=np.float32))
    calibrated = calibration.apply(ranked)
    assert (np.diff(calibrated) >= 0).all()
    assert ((calibrated >= 0) & (calibrated <= 1)).all()


def test_a_row_is_calibrated_alike_in_any_company() -> None:
    labels, probabilities = overconfident(5_000)
    calibration = fit_calibration(labels, probabilities)
    whole = calibration.apply(probabilities)
    alone = np.concatenate([calibration.apply(probabilities[row : row + 1]) for row in range(100)])
    assert whole[:100].tolist() == alone.tolist()


def test_it_survives_being_written() -> None:
    calibration = fit_calibration(*overconfident(5_000))
    assert Calibration.from_dict(calibration.to_dict()) == calibration


def test_a_model_worse_than_chance_is_not_turned_around() -> None:
    labels, probabilities = overconfident(2_000)
    calibration = fit_calibration(1 - labels, probabilities)
    assert (np.diff(calibration.apply(np.array([0.1, 0.5, 0.9], dtype=np.float32))) > 0).all()


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_refused(label: int) -> None:
    with pytest.raises(TrainingError, match="cannot be calibrated on one class"):
        fit_calibration(np.full(5, label), np.linspace(0.1, 0.9, 5, dtype=np.float32))


@pytest.mark.parametrize(
    ("logits", "calibrated"),
    [
        ([0.0, 1.0], [1.0, 0.0]),
        ([1.0, 1.0], [0.0, 1.0]),
        ([0.0], [0.0]),
        ([0.0, 1.0], [0.0]),
        ([0.0, 1.0], [0.0, float("nan")]),
    ],
)
def test_a_damaged_calibration_is_refused(logits: list[float], calibrated: list[float]) -> None:
    with pytest.raises(BundleError, match="no strictly increasing map"):
        Calibration.from_dict({"method": "platt", "logits": logits, "calibrated": calibrated})


@pytest.mark.parametrize("kept", [1.0, 0.5, 0.03])
def test_sampling_is_corrected_exactly(kept: float) -> None:
    # Of 1,000 rows with p positives, 1,000 p and kept × 1,000 (1 - p) are left.
    true = np.array([0.001, 0.2, 0.9])
    sampled = true / (true + kept * (1 - true))
    np.testing.assert_allclose(correct_for_sampling(sampled, kept), true, rtol=1e-12)


def test_a_calibration_after_sampling_is_that_of_corrected_probabilities() -> None:
    labels, probabilities = overconfident(3_000)
    probabilities = np.clip(probabilities, 1e-5, 1 - 1e-5)  # nearer to 0, float32 has no logit
    corrected = correct_for_sampling(probabilities.astype(np.float64), 0.1)
    calibration = fit_calibration(labels, corrected)
    np.testing.assert_allclose(
        calibration.after_sampling(0.1).apply(probabilities), calibration.apply(corrected), atol=1e-6
    )
