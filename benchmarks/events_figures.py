"""Figures of models on one day's devices, and what of their differences is more than chance.

What does not belong here: who scored, and where the labels come from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import ceil

import numpy as np

from pipelines.steps.config.audience import SegmentSpec

FIGURES = ("auc", "average_precision", "precision_in_top_tenth", "log_loss")
LOWER_IS_BETTER = frozenset({"log_loss"})
RESAMPLES = 2_000
SMALLEST_PROBABILITY = 1e-15
"""A certain prediction that is wrong costs its log-loss this much and no more."""

Draws = Mapping[str, np.ndarray]
"""Model → [resamples, figures]."""


class Measured:
    """One model's figures on any resample of the devices, [figures], without sorting them again."""

    def __init__(self, labels: np.ndarray, probabilities: np.ndarray) -> None:
        self._order = np.argsort(-probabilities, kind="stable")
        ranked = np.asarray(probabilities, dtype=np.float64)[self._order]
        self._positive = (labels[self._order] == 1).astype(np.float64)
        self._ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of equal scores, the last
        certain = np.clip(ranked, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
        self._losses = -np.where(self._positive == 1, np.log(certain), np.log1p(-certain))

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        drawn = weights[self._order].astype(np.float64)
        rows, positives = np.cumsum(drawn), np.cumsum(drawn * self._positive)
        loss = drawn @ self._losses / rows[-1]
        return np.array([*self._curves(rows, positives), self._top(rows, positives), loss])

    def _curves(self, rows: np.ndarray, positives: np.ndarray) -> tuple[float, float]:
        """AUC and average precision; NaN where a resample has one class only."""
        found, above = positives[self._ends], rows[self._ends]
        everyone, converted = found[-1], above[-1]
        if not 0 < everyone < converted:
            return float("nan"), float("nan")
        new_found, new_above = np.diff(found, prepend=0.0), np.diff(above, prepend=0.0)
        missed = new_above - new_found
        # Of equal scores, half count as below.
        below = (converted - everyone) - np.cumsum(missed) + missed / 2
        auc = new_found @ below / (everyone * (converted - everyone))
        precision = found / np.maximum(above, 1)
        return float(auc), float(new_found @ precision / everyone)

    def _top(self, rows: np.ndarray, positives: np.ndarray) -> float:
        """Precision of the most probable tenth, as many as 10 goes into whole."""
        most = rows[-1] // 10
        if most == 0:
            return float("nan")
        last = int(np.searchsorted(rows, most))  # drawn several times, a device may be in it in part
        beyond = rows[last] - most
        return float((positives[last] - beyond * self._positive[last]) / most)


def figures_of(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The figures of one model.

    Args:
        labels: [devices], 0 or 1.
        probabilities: [devices]; of equal ones, the first is delivered first.
    """
    values = Measured(labels, probabilities)(np.ones(len(labels)))
    return dict(zip(FIGURES, values.tolist(), strict=True))


def draw(
    labels: np.ndarray,
    models: Mapping[str, Sequence[np.ndarray]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Draws:
    """The figures of every model on the same resamples of the devices, with replacement.

    Args:
        labels: [devices], 0 or 1.
        models: Model → its probabilities [devices], one array a training; its figures are their mean.
        resamples: How many.
        seed: Of the resamples; those of equally many devices are the same.
    """
    measured = {name: [Measured(labels, each) for each in trainings] for name, trainings in models.items()}
    random, count = np.random.default_rng(seed), len(labels)
    draws: dict[str, list[np.ndarray]] = {name: [] for name in models}
    for _ in range(resamples):
        weights = np.bincount(random.integers(0, count, count), minlength=count)
        for name, trainings in measured.items():
            draws[name].append(np.mean([measure(weights) for measure in trainings], axis=0))
    return {name: np.array(values) for name, values in draws.items()}


@dataclass(frozen=True)
class Compared:
    """One model's figure less another's.

    Attributes:
        value: On the devices as they are.
        low: Of the 95% bootstrap interval.
        high: Of it.
        share_not_better: Share of the resamples in which the one is no better than the other.
    """

    value: float
    low: float
    high: float
    share_not_better: float


def compare(
    ours: Mapping[str, float], theirs: Mapping[str, float], our_draws: np.ndarray, their_draws: np.ndarray
) -> dict[str, Compared]:
    """Figure → the difference, paired resample by resample."""
    differences = our_draws - their_draws
    return {
        name: _compared(ours[name] - theirs[name], differences[:, place], lower=name in LOWER_IS_BETTER)
        for place, name in enumerate(FIGURES)
    }


def average(
    compared: Sequence[Mapping[str, Compared]], differences: Sequence[np.ndarray]
) -> dict[str, Compared]:
    """The mean of several audiences' differences.

    Args:
        compared: What `compare` found, one an audience.
        differences: [resamples, figures], one an audience; of equally many devices, drawn alike.
    """
    drawn = np.mean(differences, axis=0)
    return {
        name: _compared(
            float(np.mean([each[name].value for each in compared])),
            drawn[:, place],
            lower=name in LOWER_IS_BETTER,
        )
        for place, name in enumerate(FIGURES)
    }


def _compared(value: float, drawn: np.ndarray, *, lower: bool) -> Compared:
    known = drawn[~np.isnan(drawn)]  # a resample of one class has no AUC
    if not len(known):
        return Compared(value, float("nan"), float("nan"), float("nan"))
    low, high = np.percentile(known, [2.5, 97.5])
    not_better = known >= 0 if lower else known <= 0
    return Compared(value, float(low), float(high), float(not_better.mean()))


@dataclass(frozen=True)
class SegmentFigures:
    """What a segment would have held.

    Attributes:
        devices: In it.
        precision: Share of them that converted; None of an empty one.
    """

    devices: int
    precision: float | None


def segment_figures(
    segment: SegmentSpec,
    labels: np.ndarray,
    probabilities: np.ndarray,
    threshold: float | None,
    instead: int | None = None,
) -> SegmentFigures:
    """The segment that a model's probabilities cut.

    Args:
        segment: How it is cut.
        labels: [devices], 0 or 1.
        probabilities: [devices]; of equal ones, the first is taken first.
        threshold: Of a segment by precision, the one that reached it on validation devices.
        instead: Devices to take of such a segment where the model has no thresholds at all.
    """
    if segment.min_precision is None:
        share = Decimal(str(segment.top_fraction or 0))
        size = segment.size if segment.size is not None else ceil(share * len(labels))
    elif threshold is not None:
        size = int(np.count_nonzero(probabilities.astype(np.float32) >= np.float32(threshold)))
    else:
        size = instead or 0
    size = min(size, len(labels))
    taken = labels[np.argsort(-probabilities, kind="stable")[:size]]
    return SegmentFigures(size, float(taken.mean()) if size else None)
