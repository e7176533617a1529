"""Scoring on Spark, in one pass, and its comparison with plain in-process scoring."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.steps.feature_vocabulary import (
    MISSING_ID,
    RESERVED_IDS,
    UNKNOWN_ID,
    EncodedRows,
    Ragged,
    Vocabulary,
)
from pipelines.steps.model_bundle import Scorer, load_bundle

MAX_PARITY_DIFFERENCE = 1e-6
"""Spark's answer and plain PyTorch's may differ by this much at most."""


@lru_cache(maxsize=32)
def load_bundle_once(directory: Path) -> Scorer:
    """A bundle, loaded once per worker process: the directory of a version never changes."""
    return load_bundle(directory)


def score_devices(feature_tokens: DataFrame, bundles: Mapping[str, Path]) -> DataFrame:
    """Scores every row for every audience: no shuffle, tokens → ids → probabilities in the worker.

    Args:
        feature_tokens: `device_id`, `day` and the fields' tokens.
        bundles: Audience → directory of its champion's bundle, readable by the executors.

    Returns:
        `audience`, `device_id`, `day`, `probability` (float32 in [0, 1]); one row per audience and input row.
    """
    directories = {audience: str(path) for audience, path in bundles.items()}

    def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        scorers = {audience: load_bundle_once(Path(path)) for audience, path in directories.items()}
        for batch in batches:
            for audience, probabilities in _score_batch(batch, scorers).items():
                names = pa.array([audience]).take(pa.array(np.zeros(batch.num_rows, dtype=np.int32)))
                columns = [names, batch.column("device_id"), batch.column("day"), pa.array(probabilities)]
                yield pa.RecordBatch.from_arrays(
                    columns, names=["audience", "device_id", "day", "probability"]
                )

    return feature_tokens.mapInArrow(score, "audience string, device_id string, day date, probability float")


def _score_batch(batch: pa.RecordBatch, scorers: Mapping[str, Scorer]) -> dict[str, np.ndarray]:
    """Encodes once per vocabulary, not once per audience."""
    encoded = {s.vocabulary.hash: s.vocabulary for s in scorers.values()}
    rows = {key: vocabulary.encode(batch) for key, vocabulary in encoded.items()}
    return {audience: s.score(rows[s.vocabulary.hash]) for audience, s in scorers.items()}


@dataclass(frozen=True)
class Parity:
    """How far Spark's probabilities lie from plain in-process ones: |difference| over `count` devices."""

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
    local = scorer.score(_encode_plainly(sample, scorer.vocabulary)).astype(np.float64)
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


def _encode_plainly(sample: pa.Table, vocabulary: Vocabulary) -> EncodedRows:
    """What `Vocabulary.encode` must equal, the slow way: shares no code with it."""
    rows = {}
    for field in vocabulary.fields:
        ids = {token: place + RESERVED_IDS for place, token in enumerate(field.tokens)}
        bags = (tokens or [] for tokens in sample.column(field.name).to_pylist())
        rows[field.name] = Ragged.from_lists(
            [ids.get(token, UNKNOWN_ID) for token in bag[: field.max_length]] or [MISSING_ID] for bag in bags
        )
    return rows


def sample_scored(predictions: DataFrame, feature_tokens: DataFrame, devices: int, wanted: int) -> pa.Table:
    """About `wanted` of `devices` devices, chosen by a hash of their id: stored probability and tokens."""
    one_in = max(1, devices // wanted)
    chosen = F.pmod(F.xxhash64("device_id"), F.lit(one_in)) == 0
    scored = predictions.where(chosen).select("device_id", "day", "probability")
    return scored.join(feature_tokens.where(chosen), ["device_id", "day"]).toArrow()
