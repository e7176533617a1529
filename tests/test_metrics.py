"""Metrics against hand-counted values, their intervals, the table, and thresholds."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pipelines.steps.errors import DataError, TrainingError
from pipelines.steps.models.metrics import (
    Metrics,
    Threshold,
    compare_auc,
    comparison_table,
    compute_metrics,
    measure_auc,
    threshold_for_precision,
)

LABELS = np.array([1, 0, 1, 1, 0, 0, 1, 0])
PROBABILITIES = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], dtype=np.float32)
# precision from the top: 1/1, 1/2, 2/3, 3/4, 3/5, 3/6, 4/7, 4/8


def metrics(auc: float, average_precision: float = 0.5, rows: int = 100) -> Metrics:
    return Metrics(
        auc, average_precision, 0.4, 0.9, 0.7, 0.5, 0.1, 0.2, 0.01, rows, positives=20, base_rate=0.2
    )


def test_metrics_equal_hand_counted_values() -> None:
    measured = compute_metrics(LABELS, PROBABILITIES)
    assert measured.auc == pytest.approx(11 / 16)
    assert measured.average_precision == pytest.approx((1 + 2 / 3 + 3 / 4 + 4 / 7) / 4)
    chances = np.where(LABELS == 1, PROBABILITIES, 1 - PROBABILITIES)
    assert measured.log_loss == pytest.approx(-np.log(chances).mean(), rel=1e-5)
    assert measured.recall_at_precision_50 == 1.0
    assert measured.recall_at_precision_70 == 0.75
    assert measured.recall_at_precision_80 == 0.25
    assert measured.recall_at_precision_90 == 0.25
    assert (measured.rows, measured.positives, measured.base_rate) == (8, 4, 0.5)


def test_recall_is_zero_where_no_threshold_reaches_the_precision() -> None:
    measured = compute_metrics(np.array([0, 1, 0]), np.array([0.9, 0.5, 0.1]))
    assert measured.recall_at_precision_50 == 1.0
    assert measured.recall_at_precision_70 == 0.0


def test_probabilities_of_exactly_zero_and_one_have_a_finite_log_loss() -> None:
    assert np.isfinite(compute_metrics(np.array([0, 1]), np.array([1.0, 0.0], dtype=np.float32)).log_loss)


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        ([0.1, np.nan], "no probabilities"),
        ([0.1, np.inf], "no probabilities"),
        ([0.1, 1.5], r"(?s)no probabilities.*1 of 2, the first 1\.5"),
        ([0.1], "do not pair up"),
    ],
)
def test_what_is_no_probability_is_refused(probabilities: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        compute_metrics(np.array([0, 1]), np.array(probabilities))


def test_one_class_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"(?s)one class.*0 positives in 2 rows"):
        compute_metrics(np.array([0, 0]), np.array([0.1, 0.2]))


def test_the_bootstrap_measures_auc_as_scikit_learn_does() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 500)
    first, second = np.round(random.random(500), 1), np.round(random.random(500) + labels, 1) / 2  # with ties
    difference = compare_auc(labels, second, first)
    assert difference.value == pytest.approx(roc_auc_score(labels, second) - roc_auc_score(labels, first))
    assert 0 < difference.low < difference.value < difference.high
    assert compare_auc(labels, first, first).high == 0
    found = measure_auc(labels, second)
    assert found.value == pytest.approx(roc_auc_score(labels, second))
    assert found.low < found.value < found.high


def test_a_device_is_drawn_whole_so_that_its_repetition_makes_nothing_surer() -> None:
    random = np.random.default_rng(0)
    labels, probabilities = random.integers(0, 2, 200), random.random(200)
    once = measure_auc(labels, probabilities, devices=np.arange(200))
    tenfold = np.repeat(np.arange(200), 10)
    again = measure_auc(labels[tenfold], probabilities[tenfold], devices=tenfold)
    assert again == once == measure_auc(labels, probabilities)
    pretended = measure_auc(labels[tenfold], probabilities[tenfold])
    assert pretended.high - pretended.low < 0.4 * (once.high - once.low)
    worse = np.zeros(200)
    assert compare_auc(labels[tenfold], probabilities[tenfold], worse[tenfold], devices=tenfold) == (
        compare_auc(labels, probabilities, worse)
    )


def test_the_table_has_a_line_per_model() -> None:
    table = comparison_table({"dnn": metrics(0.81234, rows=12_345), "xgboost": metrics(0.8)})
    assert table.splitlines() == [
        "| model | AUC | average precision | log-loss | recall at precision 0.5 | 0.7 | 0.8 | 0.9 | Brier"
        " | calibration error | rows | positives | base rate |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        "| dnn | 0.8123 | 0.5000 | 0.4000 | 0.9000 | 0.7000 | 0.5000 | 0.1000 | 0.2000 | 0.0100 | 12,345"
        " | 20 | 0.2000 |",
        "| xgboost | 0.8000 | 0.5000 | 0.4000 | 0.9000 | 0.7000 | 0.5000 | 0.1000 | 0.2000 | 0.0100 | 100"
        " | 20 | 0.2000 |",
    ]


def test_the_threshold_is_the_lowest_that_reaches_the_precision() -> None:
    assert threshold_for_precision(LABELS, PROBABILITIES, 0.7) == Threshold(
        value=float(np.float32(0.6)), precision=0.75, recall=0.75, rows=4
    )
    assert threshold_for_precision(LABELS, PROBABILITIES, 0.5) == Threshold(
        value=float(np.float32(0.2)), precision=0.5, recall=1.0, rows=8
    )


def test_rows_with_equal_probabilities_are_selected_together() -> None:
    threshold = threshold_for_precision(np.array([1, 0, 1, 0]), np.array([0.9, 0.9, 0.9, 0.1]), 0.6)
    assert threshold == Threshold(value=0.9, precision=2 / 3, recall=1.0, rows=3)


def test_an_unreachable_precision_has_no_threshold() -> None:
    assert threshold_for_precision(np.array([0, 1, 0]), np.array([0.9, 0.5, 0.1]), 0.8) is None
