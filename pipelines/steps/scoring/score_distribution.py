"""How a day's probabilities are spread, and how far that moved since the day before.

Counted by their leading bits, so that a day of any size takes the same memory; what is read off the counts
is right to one part in 2,000.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.steps.row_groups import list_row_groups, read_row_group

DROPPED_BITS = 12
"""Of a float32's 23 bits of fraction; the order of its bits is the order of probabilities."""
BINS = (int(np.float32(1).view(np.uint32)) >> DROPPED_BITS) + 1
TENTHS = tuple(tenth / 10 for tenth in range(1, 10))
SMALLEST_SHARE = 1e-4
"""Stands for a share of 0, whose logarithm there is none of."""


@dataclass(frozen=True)
class ScoreDistribution:
    """Probabilities of many devices.

    Attributes:
        counts: [BINS] devices by the leading bits of their probability.
        total: Sum of the probabilities.
    """

    counts: np.ndarray
    total: float

    @classmethod
    def of(cls, parts: Iterable[np.ndarray]) -> "ScoreDistribution":
        """Counts float32 probabilities that come in parts; what is none is left out, for a check to find."""
        counts, total = np.zeros(BINS, dtype=np.int64), 0.0
        for part in parts:
            probabilities = part[(part >= 0) & (part <= 1)].astype(np.float32)
            probabilities += 0  # a negative zero becomes a positive one
            counts += np.bincount(probabilities.view(np.uint32) >> DROPPED_BITS, minlength=BINS)
            total += float(probabilities.sum(dtype=np.float64))
        return cls(counts, total)

    @property
    def devices(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        return self.total / self.devices

    def quantiles(self, shares: Sequence[float] = TENTHS) -> list[float]:
        """The probabilities that so many of the devices have at most."""
        bits = self._bins_of(shares).astype(np.uint32) << DROPPED_BITS
        return [float(value) for value in bits.view(np.float32)]

    def psi(self, before: "ScoreDistribution") -> float:
        """The population stability index against an earlier day, over its deciles; 0 where both are alike.

        Commonly, above 0.1 a shift is worth a look, above 0.25 worth an explanation.
        """
        last_bins = np.unique(np.append(before._bins_of(TENTHS), BINS - 1))
        now, then = (np.diff(each.counts.cumsum()[last_bins], prepend=0) for each in (self, before))
        now, then = (np.maximum(each / each.sum(), SMALLEST_SHARE) for each in (now, then))
        return float(((now - then) * np.log(now / then)).sum())

    def _bins_of(self, shares: Sequence[float]) -> np.ndarray:
        reached = np.ceil(np.asarray(shares) * self.devices).clip(min=1)
        found: np.ndarray = np.searchsorted(self.counts.cumsum(), reached)
        return found


def read_distribution(files: Sequence[Path]) -> ScoreDistribution:
    """The distribution of the scores in Parquet files, of which one column is read.

    Raises:
        DataError: A file cannot be read.
    """
    columns = ["probability"]
    tables = (read_row_group(row_group, columns) for row_group in list_row_groups(files, columns))
    return ScoreDistribution.of(table.column("probability").to_numpy() for table in tables)
