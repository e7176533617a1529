"""Figures of a ranking that choose: by which of them, an audience's `metric` says.

Everything here reads labels and scores alone, which need be no probabilities, and lets rows count several
times, so that a bootstrap need not sort them again.
"""

import numpy as np

from pipelines.steps.config.metric import Metric, PrecisionAt


class Ranking:
    """Rows in the order of their scores; of equal scores, none comes first.

    Args:
        labels: [rows], 0 or 1.
        scores: [rows], the higher, the likelier.
    """

    def __init__(self, labels: np.ndarray, scores: np.ndarray) -> None:
        self._order = np.argsort(scores, kind="stable")
        ranked = scores[self._order]
        self._positive = labels[self._order] == 1
        self._starts = np.concatenate([[0], np.flatnonzero(np.diff(ranked)) + 1])

    def measure(self, metric: Metric, weights: np.ndarray | None = None) -> float:
        """One figure, the higher, the better; NaN where the rows that count are of one class.

        Args:
            metric: Which.
            weights: [rows], the number of times that each counts; each once where None is given.
        """
        positives, negatives = self._counts(weights)
        if not (positives.any() and negatives.any()):
            return float("nan")
        if isinstance(metric, PrecisionAt):
            return _precision_at(metric.precision_at, positives, negatives)
        if metric == "auc":
            return _auc(positives, negatives)
        if metric == "average_precision":
            return _average_precision(positives, negatives)
        return (_auc(positives, negatives) + _average_precision(positives, negatives)) / 2

    def _counts(self, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Positives and negatives of each score, ascending."""
        ranked = np.ones(len(self._order)) if weights is None else weights[self._order].astype(np.float64)
        positives = np.add.reduceat(np.where(self._positive, ranked, 0.0), self._starts)
        return positives, np.add.reduceat(ranked, self._starts) - positives


def measure(metric: Metric, labels: np.ndarray, scores: np.ndarray) -> float:
    """One figure of a model's ranking, the higher, the better.

    Args:
        metric: Which.
        labels: [rows], 0 or 1.
        scores: [rows], the model's.
    """
    return Ranking(labels, scores).measure(metric)


def _auc(positives: np.ndarray, negatives: np.ndarray) -> float:
    below = np.cumsum(negatives) - negatives / 2  # of equal scores, half count as below
    return float((positives * below).sum() / (positives.sum() * negatives.sum()))


def _average_precision(positives: np.ndarray, negatives: np.ndarray) -> float:
    found, selected = np.cumsum(positives[::-1]), np.cumsum((positives + negatives)[::-1])
    precision = np.divide(found, selected, out=np.zeros_like(found), where=selected > 0)
    return float((positives[::-1] * precision).sum() / found[-1])


def _precision_at(share: float, positives: np.ndarray, negatives: np.ndarray) -> float:
    """Precision of the highest scores; of the rows that share the last one, as many as are still wanted."""
    rows = (positives + negatives)[::-1]
    wanted = share * rows.sum()
    taken = np.clip(wanted - (np.cumsum(rows) - rows), 0, rows)
    rates = np.divide(positives[::-1], rows, out=np.zeros_like(rows), where=rows > 0)
    return float((taken * rates).sum() / wanted)
