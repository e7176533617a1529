"""The comparison of what Spark scored with plain in-process scoring of the same rows.

What belongs here: the sample, the distances, and a plain encoder that shares no code with
`Vocabulary.encode`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.steps.config.behaviour_names import is_behaviour, weights_column
from pipelines.steps.features.behaviour_codes import LABELS
from pipelines.steps.features.encoded_rows import MISSING_ID, RESERVED_IDS, UNKNOWN_ID, EncodedRows, Ragged
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.features.token_weights import PLAIN
from pipelines.steps.models.bundle import Scorer

MAX_PARITY_DIFFERENCE = 1e-6
"""Spark's answer and plain PyTorch's may differ by this much at most."""


@dataclass(frozen=True)
class Parity:
    """Distance of Spark's probabilities from plain in-process ones: |difference| over `count` devices."""

    count: int
    mean: float
    std: float
    p25: float
    p50: float
    p75: float
    p99: float
    max: float

    @property
    def passed(self) -> bool:
        return self.count > 0 and self.max <= MAX_PARITY_DIFFERENCE

    def as_metadata(self) -> dict[str, float | str]:
        """Its figures; those that are not finite as text, which JSON has no number for."""
        return {name: value if isfinite(value) else str(value) for name, value in asdict(self).items()}


def compare_with_local(sample: pa.Table, scorer: Scorer) -> Parity:
    """Scores a sample again in this process, with ids looked up one by one, and compares.

    Args:
        sample: `probability`, as stored, beside the device's feature tokens.
        scorer: The bundle that the probabilities were made with.
    """
    if sample.num_rows == 0:
        return Parity(0, *[float("nan")] * 7)
    local = scorer.score(encode_plainly(sample, scorer.vocabulary)).astype(np.float64)
    stored = sample.column("probability").to_numpy().astype(np.float64)
    difference = np.abs(stored - local)
    # A comparison with NaN is always false; it must count as a difference, not as none.
    difference = np.where(np.isnan(difference), np.inf, difference)
    # Differences that occurred: to interpolate between infinite ones has no answer.
    p25, p50, p75, p99 = (float(q) for q in np.percentile(difference, [25, 50, 75, 99], method="higher"))
    spread = float(difference.std()) if np.isfinite(difference).all() else float("inf")
    return Parity(
        len(difference), float(difference.mean()), spread, p25, p50, p75, p99, float(difference.max())
    )


def encode_plainly(sample: pa.Table, vocabulary: Vocabulary) -> EncodedRows:
    """What `Vocabulary.encode` must equal, the slow way: shares no code with it."""
    rows = {}
    for field in vocabulary.fields:
        ids = {token: place + RESERVED_IDS for place, token in enumerate(field.tokens)}
        bags = (tokens or [] for tokens in sample.column(field.name).to_pylist())
        weights: list[list[int]] | None = None
        if field.weighted:
            column = sample.column(weights_column(field.name)).to_pylist()
            weights = [list(each or b"")[: field.max_length] or [PLAIN] for each in column]
        rows[field.name] = Ragged.from_lists(
            (
                [_id_plainly(field.name, token, ids) for token in bag[: field.max_length]] or [MISSING_ID]
                for bag in bags
            ),
            weights,
        )
    return rows


def _id_plainly(field: str, token: str | None, ids: Mapping[str, int]) -> int:
    """The id of a token; of a number of behaviour that is unknown, that of the nearest one's bucket."""
    if token is not None and token in ids:
        return ids[token]
    name, _, label = (token or "").rpartition("=")
    if not is_behaviour(field) or label not in LABELS[1:]:
        return UNKNOWN_ID
    place, zero = LABELS.index(label), LABELS.index("0")
    for distance in range(1, len(LABELS)):
        towards_zero = place - distance if place > zero else place + distance
        for near in (towards_zero, 2 * place - towards_zero):
            if 0 < near < len(LABELS) and f"{name}={LABELS[near]}" in ids:
                return ids[f"{name}={LABELS[near]}"]
    return UNKNOWN_ID


def sample_scored(
    predictions: DataFrame, feature_tokens: DataFrame, devices: Mapping[str, int], wanted: int
) -> pa.Table:
    """Stored probability and tokens of a sample of each day, chosen by a hash of the device's id.

    Args:
        predictions: `device_id`, `day`, `probability`.
        feature_tokens: What they were made from.
        devices: Day, ISO → its devices.
        wanted: Devices of each day, about.
    """
    one_in = F.create_map(
        *[F.lit(each) for day, rows in devices.items() for each in (day, max(1, rows // wanted))]
    )
    chosen = F.pmod(F.xxhash64("device_id"), F.try_element_at(one_in, F.col("day").cast("string"))) == 0
    scored = predictions.where(chosen).select("device_id", "day", "probability")
    return scored.join(feature_tokens.where(chosen), ["device_id", "day"]).toArrow()
