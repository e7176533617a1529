"""Probabilities that mean what they say: a strictly increasing map, fitted on rows that trained nothing.

Executors apply it, so nothing that only fitting needs (scikit-learn) is imported at the top.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit, logit

from pipelines.steps.errors import BundleError, TrainingError

AMPLE_POSITIVES = 1_000
"""Positives from which on isotonic regression is the better choice (Niculescu-Mizil and Caruana, 2005)."""
MIN_ROWS_OF_A_STEP = 100
"""Isotonic steps of fewer rows than this are joined: their rate is mostly chance."""
EDGE = 1e-7
"""Probabilities nearer to 0 or 1 than this have no finite logit in float32."""


@dataclass(frozen=True)
class Calibration:
    """Logit → logit, linear between knots, with slope 1 beyond them: it never makes two scores equal.

    Attributes:
        method: "isotonic" or "platt".
        logits: float64, strictly increasing, of what the model says.
        calibrated: float64, strictly increasing, of what is true.
    """

    method: str
    logits: tuple[float, ...]
    calibrated: tuple[float, ...]

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """float32 [rows] → float32 [rows]; each row's alone decides its value."""
        given = logit(np.clip(probabilities.astype(np.float64), EDGE, 1 - EDGE))
        knots, values = np.asarray(self.logits), np.asarray(self.calibrated)
        inside = np.interp(given, knots, values)
        beyond = np.minimum(given - knots[0], 0) + np.maximum(given - knots[-1], 0)
        return np.asarray(expit(inside + beyond), dtype=np.float32)

    def after_sampling(self, negatives_kept: float) -> "Calibration":
        """The same map of what `correct_for_sampling` makes of a model's answer: a shift of the logits."""
        shift = float(np.log(negatives_kept))
        return replace(self, logits=tuple(given - shift for given in self.logits))

    def to_dict(self) -> dict[str, Any]:
        return {"method": self.method, "logits": list(self.logits), "calibrated": list(self.calibrated)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Calibration":
        """
        Raises:
            BundleError: It is no strictly increasing map.
        """
        logits, calibrated = tuple(plain.get("logits", ())), tuple(plain.get("calibrated", ()))
        found = cls(str(plain.get("method")), logits, calibrated)
        increasing = all(
            len(values) > 1 and np.isfinite(values).all() and (np.diff(values) > 0).all()
            for values in (found.logits, found.calibrated)
        )
        if not increasing or len(found.logits) != len(found.calibrated):
            raise BundleError(
                "a calibration is no strictly increasing map",
                found=plain,
                expected="as many finite, increasing values as knots, two at least",
                remedy="restore the bundle, or train again",
            )
        return found


def correct_for_sampling(probabilities: np.ndarray, negatives_kept: float) -> np.ndarray:
    """p / (p + (1 - p) / w): undoes training on a share w of the negatives.

    Args:
        probabilities: [rows], of the model.
        negatives_kept: w, above 0 and at most 1.

    Returns:
        [rows], of a world with all negatives (Elkan, 2001).
    """
    return probabilities / (probabilities + (1 - probabilities) / negatives_kept)


def fit_calibration(labels: np.ndarray, probabilities: np.ndarray) -> Calibration:
    """Isotonic regression where positives are ample, else Platt's two parameters.

    Args:
        labels: [rows], 0 or 1, of rows that the model was not trained on.
        probabilities: [rows], the model's.

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
    if positives >= AMPLE_POSITIVES:
        found = _isotonic(labels, given)
        if found is not None:
            return found
    return _platt(labels, given)


def _isotonic(labels: np.ndarray, given: np.ndarray) -> Calibration | None:
    """The centres of the steps as knots; None where there is one step only."""
    from sklearn.isotonic import isotonic_regression

    order = np.argsort(given, kind="stable")
    steps = isotonic_regression(labels[order].astype(np.float64))
    starts = np.concatenate([[0], np.flatnonzero(np.diff(steps)) + 1, [len(steps)]])
    starts = _joined(starts)
    if len(starts) < 3:
        return None
    rows = np.diff(starts)
    sums = np.add.reduceat(labels[order].astype(np.float64), starts[:-1])
    centres = np.add.reduceat(given[order], starts[:-1]) / rows
    rates = (sums + 0.5) / (rows + 1)  # so that a step without a positive has a logit
    kept = _strictly_increasing(centres, rates)
    if len(kept) < 2:
        return None
    return Calibration("isotonic", tuple(centres[kept].tolist()), tuple(logit(rates[kept]).tolist()))


def _joined(starts: np.ndarray) -> np.ndarray:
    """Borders of the steps, less those that would leave one too short."""
    kept = [int(starts[0])]
    for border in starts[1:-1].tolist():
        if border - kept[-1] >= MIN_ROWS_OF_A_STEP and starts[-1] - border >= MIN_ROWS_OF_A_STEP:
            kept.append(border)
    return np.asarray([*kept, int(starts[-1])])


def _strictly_increasing(centres: np.ndarray, rates: np.ndarray) -> Sequence[int]:
    kept = [0]
    for place in range(1, len(centres)):
        if centres[place] > centres[kept[-1]] and rates[place] > rates[kept[-1]]:
            kept.append(place)
    return kept


def _platt(labels: np.ndarray, given: np.ndarray) -> Calibration:
    """Two parameters, with Platt's own smoothed targets (Platt, 1999)."""
    from scipy.optimize import minimize

    positives = np.count_nonzero(labels)
    negatives = len(labels) - positives
    targets = np.where(labels > 0, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        # The slope as its logarithm: a model that ranks worse than chance must not be turned around.
        slope, shift = np.exp(parameters[0]), parameters[1]
        z = slope * given + shift
        error = expit(z) - targets
        value = float(np.mean(np.logaddexp(0, z) - targets * z))
        return value, np.array([np.mean(error * given) * slope, np.mean(error)])

    fitted = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-3, 3), (-30, 30)]).x
    low, high = float(given.min()), float(given.max())
    knots = np.array([low, high]) if high - low > 1e-3 else np.array([low - 1, low + 1])
    calibrated = np.exp(fitted[0]) * knots + fitted[1]
    return Calibration("platt", tuple(knots.tolist()), tuple(calibrated.tolist()))
