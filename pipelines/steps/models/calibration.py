"""Probabilities that mean what they say: a strictly increasing map, fitted on rows that trained nothing.

Executors apply it, so nothing that only fitting needs belongs here (`calibration_fit`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit, logit

from pipelines.steps.errors import BundleError

EDGE = 1e-7
"""Probabilities nearer to 0 or 1 than this have no finite logit in float32."""


@dataclass(frozen=True)
class Calibration:
    """Logit → logit, linear between knots, with slope 1 beyond them: it never makes two scores equal.

    Attributes:
        method: "spline", or "platt" where a straight line is what was fitted. Nothing goes by it.
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
