"""Figures of a ranking, against scikit-learn's and by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from pipelines.steps.config.metric import Metric, PrecisionAt
from pipelines.steps.models.ranking import Ranking, measure

LABELS = np.array([1, 0, 1, 0, 0])
SCORES = np.array([4.0, 3.0, 2.0, 2.0, -1.0])


def test_metrics_of_hand_counted_rows() -> None:
    auc, precision = 4.5 / 6, (1 + 2 / 4) / 2
    assert measure("auc", LABELS, SCORES) == pytest.approx(auc)
    assert measure("average_precision", LABELS, SCORES) == pytest.approx(precision)
    assert measure("auc_and_average_precision", LABELS, SCORES) == pytest.approx((auc + precision) / 2)


@pytest.mark.parametrize(("share", "precision"), [(0.2, 1), (0.4, 1 / 2), (0.6, 1.5 / 3), (0.8, 2 / 4)])
def test_of_rows_that_share_a_score_the_precision_takes_as_many_as_are_wanted(
    share: float, precision: float
) -> None:
    assert measure(PrecisionAt(precision_at=share), LABELS, SCORES) == pytest.approx(precision)


@pytest.mark.parametrize("metric", ["auc", "average_precision", PrecisionAt(precision_at=0.1)])
def test_a_row_that_counts_twice_is_as_good_as_two(metric: Metric) -> None:
    random = np.random.default_rng(0)
    labels, scores = random.integers(0, 2, 200), np.round(random.random(200), 1)  # with ties
    weights = random.integers(0, 3, 200)
    repeated = np.repeat(np.arange(200), weights)
    found = Ranking(labels, scores).measure(metric, weights)
    assert found == pytest.approx(measure(metric, labels[repeated], scores[repeated]))
    if metric == "auc":
        assert found == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights))
    if metric == "average_precision":
        assert found == pytest.approx(average_precision_score(labels, scores, sample_weight=weights))


def test_rows_of_one_class_have_no_figure() -> None:
    assert math.isnan(measure("auc", np.ones(3), np.arange(3)))
