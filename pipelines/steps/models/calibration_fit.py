"""Fitting a calibration: Platt's line, bent as far as devices held out confirm it.

A line has two parameters, which few positives can carry, but it cannot follow a model that errs at its top
alone. A spline can, and errs by itself where positives are few. So splines of several stiffnesses are fitted,
each is judged on devices that it was not fitted on, and they are averaged by what was found. Nothing here
runs where devices are scored: what is fitted is a `Calibration`, knots and values.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit, xlogy
from threadpoolctl import threadpool_limits

from pipelines.steps.errors import TrainingError
from pipelines.steps.models.calibration import EDGE, Calibration

BENDS = (0.0, 0.05, 0.1, 0.2, 0.4)
"""Prior standard deviations of the change of slope from one knot to the next; 0 is Platt's line."""
KNOTS = 12
SLOPES = (0.1, 10.0)
"""Bounds of a spline's slope, of Platt's: above 0, so that no two scores become equal."""
SLOPE_STD = 0.5
"""Prior standard deviation of the logarithm of Platt's slope: three positives tell little of it."""
CUTS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of the most probable rows whose mean probability is held against what happened."""
FOLDS = 5
BINS = 400
"""Rows are summed up in so many bins at most: a million rows take as long to fit as ten thousand."""
LEAST_WEIGHT = 1e-3
"""Splines of less weight than this in the average are left out."""


def fit_calibration(
    labels: np.ndarray, probabilities: np.ndarray, devices: np.ndarray | None = None
) -> Calibration:
    """Fits a strictly increasing map from what a model says to what is true.

    Args:
        labels: [rows], 0 or 1, of rows that the model was not trained on.
        probabilities: [rows], the model's.
        devices: [rows], whose row it is; None: each row is of a device of its own.

    Raises:
        TrainingError: One class only.
    """
    positives = int(np.count_nonzero(labels))
    if not 0 < positives < len(labels):
        raise TrainingError(
            "probabilities cannot be calibrated on one class",
            found=f"{positives} positives in {len(labels)} rows",
            expected="both classes",
            remedy="add as-of days, or widen the audience's label",
        )
    given = logit(np.clip(probabilities.astype(np.float64), EDGE, 1 - EDGE))
    if given.max() - given.min() < 1e-3:  # nothing to tell rows apart by
        centre, rate = float(given.mean()), float(logit(positives / len(labels)))
        return Calibration("platt", (centre - 1, centre + 1), (rate - 1, rate + 1))
    # One thread: vectors of a dozen numbers (measured on 2 shared cores: 0.1 s with one, 1.7 s with two).
    with threadpool_limits(1):
        splines, shares = _weighted_splines(given, labels, devices)
    used = [(share, spline) for share, spline in zip(shares, splines, strict=True) if share]
    knots = np.unique(np.concatenate([[given.min(), given.max()], *(spline.knots for _, spline in used)]))
    values = np.sum([share * spline.at(knots) for share, spline in used], axis=0)
    return Calibration("platt" if shares[0] == 1 else "spline", tuple(knots.tolist()), tuple(values.tolist()))


def _weighted_splines(
    given: np.ndarray, labels: np.ndarray, devices: np.ndarray | None
) -> "tuple[Sequence[_Spline], Sequence[float]]":
    """A spline of each stiffness, and its share in the average."""
    folds = _Folds.of(labels, devices)
    counts = _Counts.of(given, labels, folds.rows)
    splines = [_fit(counts.total(), bend) for bend in BENDS]
    if folds.rarer_devices < FOLDS:  # some fold would have nothing to confirm a bend with
        return splines, [1.0] + [0.0] * (len(BENDS) - 1)
    losses = np.array([_held_out_loss(counts, bend) for bend in BENDS])
    return splines, _shares(losses * folds.devices / len(labels))


@dataclass(frozen=True)
class _Folds:
    """Rows in FOLDS parts, all rows of a device in one.

    Attributes:
        rows: [rows], the fold of each.
        devices: How many there are.
        rarer_devices: Those that converted, or those that did not, whichever are fewer.
    """

    rows: np.ndarray
    devices: int
    rarer_devices: int

    @classmethod
    def of(cls, labels: np.ndarray, devices: np.ndarray | None) -> "_Folds":
        """Deals out the devices at random, so that each fold gets its share of those that converted."""
        owners = np.arange(len(labels)) if devices is None else np.unique(devices, return_inverse=True)[1]
        count = int(owners.max()) + 1
        converted = np.bincount(owners, weights=labels, minlength=count) > 0
        shuffled = np.random.default_rng(0).permutation(count)
        dealt = shuffled[np.argsort(converted[shuffled], kind="stable")]
        fold = np.empty(count, dtype=np.int64)
        fold[dealt] = np.arange(count) % FOLDS
        positive = int(np.count_nonzero(converted))
        return cls(fold[owners], count, min(positive, count - positive))


@dataclass(frozen=True)
class _Counts:
    """Rows summed up by their logit.

    Attributes:
        logits: [bins], increasing; the mean of a bin's rows.
        positives: [folds, bins].
        rows: [folds, bins].
    """

    logits: np.ndarray
    positives: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, given: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> "_Counts":
        """Bins of equal weight, where positives weigh as much as negatives: fine where they are."""
        order = np.argsort(given, kind="stable")
        balanced = np.where(labels > 0, 1 / np.count_nonzero(labels), 1 / np.count_nonzero(labels == 0))
        reached = np.cumsum(balanced[order]) / 2
        places = np.searchsorted(reached, np.linspace(0, 1, BINS + 1)[1:-1])
        borders = np.unique(given[order][places])
        bins = np.unique(np.searchsorted(borders, given), return_inverse=True)[1]
        count = int(bins.max()) + 1
        cells = folds * count + bins
        rows = np.bincount(cells, minlength=FOLDS * count).reshape(FOLDS, count)
        positives = np.bincount(cells, weights=labels > 0, minlength=FOLDS * count).reshape(FOLDS, count)
        return cls(np.bincount(bins, weights=given) / rows.sum(0), positives, rows.astype(np.float64))

    def total(self) -> "_Sample":
        return _Sample(self.logits, self.positives.sum(0), self.rows.sum(0))

    def without(self, fold: int) -> "_Sample":
        total = self.total()
        return _Sample(self.logits, total.positives - self.positives[fold], total.rows - self.rows[fold])


@dataclass(frozen=True)
class _Sample:
    """Rows to fit on: `logits`, `positives` and `rows`, each [bins]."""

    logits: np.ndarray
    positives: np.ndarray
    rows: np.ndarray

    def knots(self) -> np.ndarray:
        """Quantiles of the logits, where positives weigh as much as negatives."""
        negatives = self.rows - self.positives
        balanced = self.positives / self.positives.sum() + negatives / negatives.sum()
        reached = (np.cumsum(balanced) - balanced / 2) / 2
        return np.unique(np.interp((np.arange(KNOTS) + 0.5) / KNOTS, reached, self.logits))


@dataclass(frozen=True)
class _Spline:
    """Logit → logit: linear between knots, and on with the last slope beyond them.

    Attributes:
        knots: [knots], increasing.
        slopes: [knots - 1], above 0.
        start: The value at the first knot.
    """

    knots: np.ndarray
    slopes: np.ndarray
    start: float

    def at(self, logits: np.ndarray) -> np.ndarray:
        return np.asarray(_lengths(logits, self.knots) @ self.slopes + self.start)


def _lengths(logits: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """[logits, knots - 1]: the way from the first knot to each logit, by the pieces that it crosses."""
    low = np.concatenate([[-np.inf], knots[1:-1]])
    high = np.concatenate([knots[1:-1], [np.inf]])
    starts = knots[:-1]
    return np.asarray(np.clip(logits[:, None], low, high) - starts)


def _fit(sample: _Sample, bend: float) -> _Spline:
    """Fits Platt's line, and where `bend` is above 0 lets its slope change from knot to knot."""
    line = _fit_line(sample)
    return line if not bend else _bend(sample, line, bend)


def _fit_line(sample: _Sample) -> _Spline:
    low, high = float(sample.logits[0]), float(sample.logits[-1])

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        # The slope as its logarithm: a model that ranks worse than chance must not be turned around.
        slope, value = np.exp(parameters[0]), parameters[1]
        z = slope * (sample.logits - low) + value
        error = sample.rows * expit(z) - sample.positives
        prior = parameters[0] / SLOPE_STD
        return (
            float(np.sum(sample.rows * np.logaddexp(0, z) - sample.positives * z) + prior**2 / 2),
            np.array([np.sum(error * (sample.logits - low)) * slope + prior / SLOPE_STD, np.sum(error)]),
        )

    start = np.array([0.0, low])
    fitted = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(-3, 3), (-60, 60)]).x
    return _Spline(np.array([low, high]), np.exp(fitted[:1]), float(fitted[1]))


def _bend(sample: _Sample, line: _Spline, bend: float) -> _Spline:
    knots = sample.knots()
    if len(knots) < 3:
        return line
    lengths, usual = _lengths(sample.logits, knots), line.slopes[0]
    pieces = len(knots) - 1

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slopes, value = parameters[:-1], parameters[-1]
        z = usual * (lengths @ slopes) + value
        error = sample.rows * expit(z) - sample.positives
        changes = np.diff(slopes) / bend
        pull = np.diff(changes, prepend=0, append=0) / bend
        return (
            float(np.sum(sample.rows * np.logaddexp(0, z) - sample.positives * z) + np.sum(changes**2) / 2),
            np.append(usual * (error @ lengths) - pull, np.sum(error)),
        )

    start = np.append(np.ones(pieces), line.at(knots[:1]))
    bounds = [SLOPES] * pieces + [(-60.0, 60.0)]
    fitted = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500}).x
    return _Spline(knots, usual * fitted[:-1], float(fitted[-1]))


def _held_out_loss(counts: _Counts, bend: float) -> float:
    """Nats lost on rows that were not fitted on: their log-loss, and once more what the cuts get wrong."""
    said = np.stack([_fit(counts.without(fold), bend).at(counts.logits) for fold in range(FOLDS)])
    log_loss = np.sum(counts.rows * np.logaddexp(0, said) - counts.positives * said)
    expected = np.sum(counts.rows * expit(said), axis=0)
    return float(log_loss) + _loss_of_cuts(expected, counts.positives.sum(0), counts.rows.sum(0))


def _loss_of_cuts(expected: np.ndarray, positives: np.ndarray, rows: np.ndarray) -> float:
    """By how many nats the rate of each cut is likelier than the mean probability said of it."""
    ends = np.searchsorted(np.cumsum(rows[::-1]), np.asarray(CUTS) * rows.sum())
    own, happened, said = (np.cumsum(each[::-1])[ends] for each in (rows, positives, expected))
    happened, said = happened / own, np.clip(said / own, EDGE, 1 - EDGE)
    return float(
        np.sum(own * (xlogy(happened, happened / said) + xlogy(1 - happened, (1 - happened) / (1 - said))))
    )


def _shares(losses: np.ndarray) -> Sequence[float]:
    """The weight of each spline in the average: as likely as it was (pseudo-BMA, Yao et al., 2018)."""
    likely = np.exp(losses.min() - losses)
    likely[likely < LEAST_WEIGHT * likely.sum()] = 0
    return list(likely / likely.sum())
