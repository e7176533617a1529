"""Promised and happened: a segment's mean probability beside the share of it that converted.

The rate of all rows moves from day to day, which no model of earlier days can know, and it takes every
segment with it. So it is told apart: one shift of all logits sets it right, and each segment is shown before
and after.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit
from tabulate import tabulate

from pipelines.steps.promotion.model_report import EDGE, Share

TOPS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of the most probable rows that are looked at, whatever segments an audience has."""
FURTHEST_SHIFT = 40.0
"""Logits: beyond all that float32 probabilities can be apart."""


@dataclass(frozen=True)
class Promise:
    """A segment's mean probability, and what happened.

    Attributes:
        segment: Its name.
        rows: Devices in it.
        promised: Their mean probability.
        at_base_rate: The same, once the rate of all rows is set right.
        happened: The share of them that converted.
    """

    segment: str
    rows: int
    promised: float
    at_base_rate: float
    happened: Share

    @property
    def kept(self) -> bool:
        """Whether what happened could be chance, given the rate of all rows."""
        return self.happened.low <= self.at_base_rate <= self.happened.high


@dataclass(frozen=True)
class Promises:
    """All rows' mean probability and what happened, and each segment's.

    Attributes:
        rows: All there are.
        promised: Their mean probability.
        happened: The share of them that converted.
        base_rate_shift: Added to every logit, it makes the two equal; 0 where all or none converted.
        segments: In the order given.
    """

    rows: int
    promised: float
    happened: Share
    base_rate_shift: float
    segments: Sequence[Promise]

    def to_markdown(self) -> str:
        """A table, and the move of the base rate in a sentence before it."""
        lines = [
            [s.segment, f"{s.rows:,}", f"{s.promised:.3f}", f"{s.at_base_rate:.3f}", s.happened, _mark(s)]
            for s in self.segments
        ]
        headers = ["segment", "devices", "promised", "at the true base rate", "happened", "within 95 %"]
        table = str(tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True))
        return (
            f"All {self.rows:,} devices: {self.promised:.4f} promised, {self.happened.value:.4f} converted. "
            f"A shift of all logits by {self.base_rate_shift:+.3f} sets this base rate right.\n\n{table}"
        )


def measure_promises(
    labels: np.ndarray, probabilities: np.ndarray, segments: Mapping[str, np.ndarray]
) -> Promises:
    """Holds mean probabilities against what happened.

    Args:
        labels: [rows], 0 or 1.
        probabilities: [rows].
        segments: Name → bool [rows], who is in it; empty ones are left out.
    """
    happened = Share.of(int(labels.sum()), len(labels))
    logits = logit(np.clip(probabilities.astype(np.float64), EDGE, 1 - EDGE))
    shift = _base_rate_shift(logits, happened.value)
    moved = expit(logits + shift)
    found = [
        Promise(
            name,
            int(chosen.sum()),
            float(probabilities[chosen].mean(dtype=np.float64)),
            float(moved[chosen].mean()),
            Share.of(int(labels[chosen].sum()), int(chosen.sum())),
        )
        for name, chosen in segments.items()
        if chosen.any()
    ]
    mean = float(probabilities.mean(dtype=np.float64)) if len(labels) else float("nan")
    return Promises(len(labels), mean, happened, shift, found)


def top_segments(probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """The most probable rows, by some shares: name → bool [rows]."""
    place = _places(probabilities)
    return {f"top {share:.0%}": place < ceil(share * len(place)) for share in TOPS}


def tenths(probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """All rows by their probability, in ten parts, the most probable first: name → bool [rows]."""
    place = _places(probabilities)
    return {f"tenth {part + 1}": place * 10 // len(place) == part for part in range(10)}


def _places(probabilities: np.ndarray) -> np.ndarray:
    """[rows], from 0, the most probable first."""
    place = np.empty(len(probabilities), dtype=np.int64)
    place[np.argsort(-probabilities, kind="stable")] = np.arange(len(probabilities))
    return place


def _base_rate_shift(logits: np.ndarray, rate: float) -> float:
    if not 0 < rate < 1:  # no finite shift
        return 0.0
    return float(brentq(lambda shift: expit(logits + shift).mean() - rate, -FURTHEST_SHIFT, FURTHEST_SHIFT))


def _mark(promise: Promise) -> str:
    return "yes" if promise.kept else "no"
