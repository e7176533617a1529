"""Scoring on Spark, in one pass, and its comparison with plain in-process scoring."""

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from pipelines.steps.models.bundle import BundleRef, Scorer
from pipelines.steps.models.bundle_loader import load_bundle
from pipelines.steps.row_groups import (
    ROWS_PER_TASK,
    list_row_groups,
    plan_tasks,
    read_row_group,
    require_columns,
)
from pipelines.steps.scoring.scoring_threads import count_threads, limit_threads, require_threads
from pipelines.steps.table_columns import Shown, TableColumn, audience_name, device_id

SCORED = "audience string, device_id string, day date, probability float"
"""Columns of what is scored."""
PARQUET_OPTIONS = {"parquet.enable.dictionary#device_id": "false"}
"""Options of the scores' writer: no two rows of a day share a device, so a dictionary is lost work (8%)."""
ENCODED_ROWS = 32_768
"""Rows encoded at once, at least, where Spark hands over the rows: each look-up builds a hash table of the
vocabulary, and Spark's own batches hold 10,000 rows at most."""
OUTPUT_ROWS = 32_768
"""Rows handed to Spark at once, at most: they are copied into its heap."""


def table_columns(fields: Sequence[str]) -> dict[str, TableColumn]:
    """The columns of `predictions`; a champion may have been trained on fewer fields than there are."""
    return {
        "audience": audience_name(),
        "device_id": device_id("feature_tokens"),
        "day": TableColumn("date", "The as-of day.", {"feature_tokens": ["day"]}, Shown.EVERYTHING),
        "probability": TableColumn(
            "float",
            "How likely the device is to convert within the horizon, says the champion.",
            {"feature_tokens": list(fields)},
            Shown.EVERYTHING,
        ),
    }


@lru_cache(maxsize=32)
def load_bundle_once(bundle: BundleRef, threads: int = 1) -> Scorer:
    """A bundle, loaded and verified once per worker process: the directory of a version never changes."""
    return load_bundle(bundle.path, expected_version=bundle.version, threads=threads)


def score_devices(
    feature_tokens: DataFrame, bundles: Mapping[str, BundleRef | Path], *, threads: int | None = None
) -> DataFrame:
    """Scores every row of any frame for every audience: tokens → ids → probabilities, without a shuffle.

    Args:
        feature_tokens: `device_id`, `day`, the fields' tokens and what they weigh.
        bundles: Audience → its champion's bundle; of a directory alone, the version that the driver finds.
        threads: Threads of each task; `spark.task.cpus` where none are named.

    Returns:
        `audience`, `device_id`, `day`, `probability` (float32 in [0, 1]); one row per audience and input row.

    Raises:
        BundleError: A bundle is missing, damaged or not the version named. In the job, wrapped by Spark's
            own error: where a worker finds another content than the driver.
        DataError: The rows lack a field of a bundle.
    """
    score = _Score.planned(feature_tokens.sparkSession, bundles, threads)
    require_columns(feature_tokens.columns, score.columns)
    columns = feature_tokens.select(*score.columns)  # so that Spark reads no others

    def score_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return score(_gathered(batches))

    return columns.mapInArrow(score_batches, SCORED)


def score_files(
    spark: SparkSession,
    files: Sequence[Path],
    bundles: Mapping[str, BundleRef | Path],
    *,
    threads: int | None = None,
    rows_per_task: int = ROWS_PER_TASK,
) -> DataFrame:
    """Scores the rows of Parquet files, which the workers read themselves; equal to `score_devices` of them.

    Spark plans and retries the reading of row groups and writes the result; no token crosses its JVM.

    Args:
        spark: The session.
        files: Files of `feature_tokens`, readable by driver and executors.
        bundles: Audience → its champion's bundle; of a directory alone, the version that the driver finds.
        threads: Threads of each task; `spark.task.cpus` where none are named.
        rows_per_task: Smaller row groups are read by one task, up to this many rows.

    Raises:
        BundleError: As for `score_devices`.
        DataError: A file cannot be read, or lacks a field of a bundle. In the job, wrapped by Spark's own
            error: a row group cannot be read; the message names it.
    """
    score = _Score.planned(spark, bundles, threads)
    tasks = plan_tasks(list_row_groups(files, score.columns), rows_per_task)

    def score_tasks(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        numbers = (number for batch in batches for number in batch.column("id").to_pylist())
        return score(read_row_group(r, score.columns) for number in numbers for r in tasks[number])

    return spark.range(0, len(tasks), numPartitions=max(1, len(tasks))).mapInArrow(score_tasks, SCORED)


def worker_threads(
    spark: SparkSession, bundles: Mapping[str, BundleRef | Path], *, threads: int | None = None
) -> dict[str, int]:
    """Library → threads, counted in a worker that has loaded the bundles; what every task asserts of itself.

    Raises:
        BundleError: As for `score_devices`; or, wrapped by Spark's own error, a library would use more
            threads than asked for.
    """
    score = _Score.planned(spark, bundles, threads)

    def count(_: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        score.ready()
        counts = count_threads()
        yield pa.RecordBatch.from_pydict({"library": list(counts), "threads": list(counts.values())})

    counted = spark.range(0, 1, numPartitions=1).mapInArrow(count, "library string, threads long").toArrow()
    return dict(zip(*(column.to_pylist() for column in counted.columns), strict=True))


@dataclass(frozen=True)
class _Score:
    """What each task does to its tables of feature tokens; sent to the workers."""

    bundles: Mapping[str, BundleRef]
    columns: tuple[str, ...]
    threads: int

    @classmethod
    def planned(
        cls, spark: SparkSession, bundles: Mapping[str, BundleRef | Path], threads: int | None
    ) -> "_Score":
        """Refuses what cannot be scored before any row is read."""
        if threads is None:
            threads = int(spark.conf.get("spark.task.cpus", "1") or 1)
        refs = {audience: BundleRef.of(bundle) for audience, bundle in bundles.items()}
        for ref in refs.values():
            ref.verify()  # again where it is loaded already: workers load it from the directory as it is now
        loaded = [load_bundle_once(ref, threads) for ref in refs.values()]
        columns = dict.fromkeys(name for scorer in loaded for name in scorer.vocabulary.columns)
        return cls(refs, ("device_id", "day", *columns), threads)

    def ready(self) -> dict[str, Scorer]:
        """The scorers of each audience, in a worker that uses no more threads than it may."""
        loaded_before = load_bundle_once.cache_info().misses
        scorers = {a: load_bundle_once(bundle, self.threads) for a, bundle in self.bundles.items()}
        if load_bundle_once.cache_info().misses > loaded_before:
            # Spark's daemon collects garbage after every task; not all of the bundles again
            gc.collect()
            gc.freeze()
        limit_threads(self.threads)  # of the libraries that the bundles have loaded
        require_threads(self.threads)
        return scorers

    def __call__(self, tables: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
        scorers = self.ready()
        for table in tables:
            for audience, probabilities in _score_table(table, scorers).items():
                audiences = pa.repeat(audience, table.num_rows)
                scored = pa.table(
                    [audiences, table.column("device_id"), table.column("day"), pa.array(probabilities)],
                    names=["audience", "device_id", "day", "probability"],
                )
                yield from scored.to_batches(OUTPUT_ROWS)


def _score_table(table: pa.Table, scorers: Mapping[str, Scorer]) -> dict[str, np.ndarray]:
    """Encodes once per vocabulary, not once per audience."""
    encoded = {s.vocabulary.hash: s.vocabulary for s in scorers.values()}
    rows = {key: vocabulary.encode(table) for key, vocabulary in encoded.items()}
    return {audience: s.score(rows[s.vocabulary.hash]) for audience, s in scorers.items()}


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The rows of small batches in tables of at least ENCODED_ROWS rows, but for the last."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(b.num_rows for b in waiting) >= ENCODED_ROWS:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)
