"""Calibrated probabilities mean what they say, and rank as before."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from pipelines.steps.errors import BundleError, TrainingError
from pipelines.steps.models import calibration_fit
from pipelines.steps.models.calibration import Calibration, correct_for_sampling
from pipelines.steps.models.calibration_fit import fit_calibration
from pipelines.steps.models.metrics import compute_metrics


def overconfident(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities whose logits are three times too large."""
    random = np.random.default_rng(seed)
    logits = random.normal(-1, 1, rows)
    labels = (random.random(rows) < expit(logits)).astype(np.float32)
    return labels, expit(3 * logits).astype(np.float32)


def timid_at_the_top(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities that are true up to 0.12 and too low above, and the true ones."""
    random = np.random.default_rng(seed)
    said = random.normal(-3.5, 1.1, rows)
    true = expit(said + 1.5 * np.maximum(said + 2, 0))
    labels = (random.random(rows) < true).astype(np.float32)
    return labels, expit(said).astype(np.float32), true


@pytest.mark.parametrize("rows", [40_000, 1_500])
def test_overconfident_probabilities_are_calibrated_on_rows_not_seen(rows: int) -> None:
    calibration = fit_calibration(*overconfident(rows))
    labels, probabilities = overconfident(40_000, seed=1)
    before, after = (
        compute_metrics(labels, probabilities),
        compute_metrics(labels, calibration.apply(probabilities)),
    )
    assert before.calibration_error > 0.1 > 0.02 > after.calibration_error
    assert after.log_loss < before.log_loss
    assert after.brier < before.brier
    assert after.auc == pytest.approx(before.auc, abs=1e-6)


@pytest.mark.parametrize("rows", [2_000, 8_000, 20_000])
def test_a_top_that_a_line_cannot_follow_is_calibrated(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's network promised .329 of its top twentieth, of which .438 bought."""
    labels, probabilities, _ = timid_at_the_top(rows)
    _, unseen, true = timid_at_the_top(20_000, seed=1)
    top = np.argsort(-unseen)[:200]

    def promised() -> float:
        return float(fit_calibration(labels, probabilities).apply(unseen[top]).mean())

    assert promised() == pytest.approx(true[top].mean(), rel=0.1)
    monkeypatch.setattr(calibration_fit, "BENDS", (0.0,))
    assert promised() < 0.82 * true[top].mean()  # Platt's line


def test_where_a_line_is_right_hardly_anything_is_bent() -> None:
    labels, probabilities = overconfident(4_000)
    calibration = fit_calibration(labels, probabilities)
    tenths = np.quantile(probabilities, np.linspace(0.05, 0.95, 10)).astype(np.float32)
    true = expit(logit(tenths.astype(np.float64)) / 3)
    np.testing.assert_allclose(calibration.apply(tenths), true, atol=0.04)


@pytest.mark.parametrize("positives", [1, 3, 10, 30])
def test_few_positives_teach_a_base_rate_and_no_shape(positives: int) -> None:
    random = np.random.default_rng(positives)
    given_logits = np.sort(random.normal(-4, 1, 2_000))
    labels = np.zeros(2_000, dtype=np.float32)
    labels[
        random.choice(2_000, positives, replace=False, p=expit(given_logits) / expit(given_logits).sum())
    ] = 1
    calibrated = fit_calibration(labels, expit(given_logits)).apply(expit(given_logits))
    assert calibrated.mean() == pytest.approx(positives / 2_000, rel=0.01)
    assert (np.diff(calibrated) > 0).all()
    slopes = np.diff(logit(calibrated[::100].astype(np.float64))) / np.diff(given_logits[::100])
    assert slopes.min() > 0.3
    assert slopes.max() < 2.5


def test_days_of_one_device_are_one_witness() -> None:
    """Rows alone would confirm any bend: what a device did is found again on its other days."""
    grid = np.linspace(-4, 1, 50)

    def error(calibration: Calibration) -> float:
        return float(np.abs(logit(calibration.apply(expit(grid)).astype(np.float64)) - grid).mean())

    by_device, by_row = [], []
    for seed in range(6):
        random = np.random.default_rng(seed)
        true = random.normal(-2, 1, 300)
        converted = (random.random(300) < expit(true)).astype(np.float32)
        devices, labels, probabilities = (
            np.repeat(each, 20) for each in (range(300), converted, expit(true))
        )
        by_device.append(error(fit_calibration(labels, probabilities, devices)))
        by_row.append(error(fit_calibration(labels, probabilities)))
    assert np.mean(by_device) < 0.9 * np.mean(by_row)


def test_the_very_top_keeps_its_order() -> None:
    """Beyond the last knot, where isotonic regression alone would make all scores equal."""
    labels, probabilities = overconfident(40_000)
    calibration = fit_calibration(labels, probabilities)
    top = np.linspace(probabilities.max(), 0.9999999, 5).astype(np.float32)
    assert (np.diff(calibration.apply(top)) > 0).all()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 1e-9, 0.001, 0.2, 0.2000001, 0.5, 0.999, 1.0]), st.booleans()),
        min_size=2,
        max_size=40,
    ).filter(lambda rows: len({label for _, label in rows}) == 2)
)
def test_ties_and_extremes_give_a_strictly_increasing_map(rows: list[tuple[float, bool]]) -> None:
    probabilities, labels = (np.array(column, dtype=np.float32) for column in zip(*rows, strict=True))
    calibration = fit_calibration(labels, probabilities)
    assert Calibration.from_dict(calibration.to_dict()) == calibration  # which refuses any other
    assert np.isfinite(calibration.apply(probabilities)).all()


def test_equal_probabilities_become_the_base_rate() -> None:
    labels = np.array([1, 0, 0, 0, 0], dtype=np.float32)
    calibration = fit_calibration(labels, np.full(5, 0.9, dtype=np.float32))
    assert calibration.apply(np.array([0.9], dtype=np.float32))[0] == pytest.approx(0.2, abs=1e-6)


def test_the_same_rows_give_the_same_calibration_in_any_order() -> None:
    labels, probabilities, _ = timid_at_the_top(3_000)
    shuffled = np.random.default_rng(0).permutation(3_000)
    grid = np.linspace(0.01, 0.9, 50).astype(np.float32)
    first, second = (
        fit_calibration(labels[rows], probabilities[rows], np.arange(3_000)[rows]).apply(grid)
        for rows in (np.arange(3_000), shuffled)
    )
    np.testing.assert_allclose(first, second, atol=1e-5)


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=30))
def test_no_order_is_ever_turned_around(values: list[float]) -> None:
    calibration = Calibration("spline", (-3.0, 0.0, 2.0), (-2.5, -2.0, 4.0))
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
