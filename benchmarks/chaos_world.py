"""The lake that is scored under faults: the job, what must come of it, and a reader of what is visible."""

import hashlib
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from benchmarks.chaos_clusters import SLOTS, Clusters
from pipelines.steps.errors import AudienceFactoryError
from pipelines.steps.features.feature_tokens import PARQUET_OPTIONS as TOKENS_PARQUET_OPTIONS
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.models.bundle import write_bundle
from pipelines.steps.models.bundle_loader import load_bundle
from pipelines.steps.row_groups import RowGroup, list_row_groups
from pipelines.steps.scoring.predictions import PARQUET_OPTIONS, score_files
from pipelines.steps.scoring.scoring_threads import limit_threads
from resources.lake import Lake

DAY = date(2025, 5, 30)
AUDIENCES = ("car_buyers", "readers")
KEYS = tuple(f"{audience}/{DAY}" for audience in AUDIENCES)
COLUMNS = ["audience", "device_id", "day", "probability"]
FIELDS = (("device_model", 1, 200), ("apps", 20, 500))
"""Name, most tokens a row, size of the vocabulary; a tenth of the tokens that occur are not in it."""
FILES = 8
HIDDEN = (256, 128)
"""So large that a task takes a tenth of a second, which is time enough to be hit in."""
OLD, NEW = "the old rows", "the new rows"
READER_SECONDS = 0.05


@dataclass(frozen=True)
class WriteTokens:
    """Writes the feature tokens as the factory does, but for smaller row groups."""

    root: str
    source: str
    row_group_rows: int

    def __call__(self, spark: SparkSession) -> None:
        Lake(root=self.root).write(
            spark.read.parquet(self.source),
            "feature_tokens",
            by=["day"],
            keys=[str(DAY)],
            sort=["device_id"],
            files_per_partition=FILES,
            options=TOKENS_PARQUET_OPTIONS | {"parquet.block.row.count.limit": str(self.row_group_rows)},
        )


@dataclass(frozen=True)
class Score:
    """The job that the faults are thrown at: that of the asset `predictions`, one row group a task."""

    root: str
    bundles: Mapping[str, Path]

    def __call__(self, spark: SparkSession) -> None:
        lake = Lake(root=self.root)
        files = lake.files("feature_tokens", [str(DAY)])
        devices = lake.partition("feature_tokens", str(DAY)).rows
        lake.write(
            score_files(spark, files, self.bundles, rows_per_task=1),
            "predictions",
            by=["audience", "day"],
            keys=KEYS,
            files_per_partition=None,
            options=PARQUET_OPTIONS,
            expected_rows=dict.fromkeys(KEYS, devices),
        )


@dataclass(frozen=True)
class World:
    """A lake with feature tokens and the old predictions, and what the new ones must be.

    Attributes:
        lake: It; never written to again.
        copies: Folder of its copies, which jobs write to.
        bundles: Audience → the new bundle.
        expected: OLD or NEW → key → its rows, in order of their device.
        tasks: Of the job.
        job_seconds: What it takes undisturbed.
    """

    lake: Lake
    copies: Path
    bundles: Mapping[str, Path]
    expected: Mapping[str, Mapping[str, pa.Table]]
    tasks: int
    job_seconds: float

    @classmethod
    def made(
        cls, home: Path, clusters: Clusters, *, row_groups: int, row_group_rows: int, seed: int
    ) -> "World":
        lake = Lake(root=str(home / "lake"))
        tokens = _feature_tokens(row_groups * row_group_rows, seed)
        pq.write_table(tokens, home / "tokens.parquet")
        bundles = {
            name: {a: _write_bundle(home / "bundles" / name / a, f"{name} {a}") for a in AUDIENCES}
            for name in (OLD, NEW)
        }
        cluster = clusters.get("steady")
        cluster.prepare(WriteTokens(lake.root, str(home / "tokens.parquet"), row_group_rows))
        cluster.prepare(Score(lake.root, bundles[OLD]))
        started = time.monotonic()
        cluster.prepare(Score(lake.root, bundles[OLD]))  # by workers that have the bundles by now
        seconds = time.monotonic() - started
        expected = {name: _expected(tokens, bundles[name]) for name in (OLD, NEW)}
        world = cls(lake, home / "copies", bundles[NEW], expected, 0, seconds)
        states = {key: world.state(lake, key) for key in KEYS}
        if set(states.values()) != {OLD}:
            raise SystemExit(f"the undisturbed job gave {states}")
        return cls(lake, home / "copies", bundles[NEW], expected, len(world.row_groups(lake)), seconds)

    @property
    def task_seconds(self) -> float:
        return self.job_seconds * SLOTS / self.tasks

    def copy(self, name: str) -> Lake:
        root = self.copies / name
        shutil.copytree(self.lake.root, root)
        return Lake(root=str(root))

    def restore(self, lake: Lake) -> None:
        """Materializes the feature tokens again, as an error about them tells to do."""
        shutil.copytree(
            Path(self.lake.root) / "feature_tokens", Path(lake.root) / "feature_tokens", dirs_exist_ok=True
        )

    def order(self, lake: Lake) -> Score:
        return Score(lake.root, self.bundles)

    def row_groups(self, lake: Lake) -> list[RowGroup]:
        return list_row_groups(lake.files("feature_tokens", [str(DAY)]), ["device_id"])

    def state(self, lake: Lake, key: str) -> str:
        """OLD, NEW, or what is wrong with the rows that are visible."""
        try:
            files = lake.files("predictions", [key])
            found = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])
        except (AudienceFactoryError, OSError, pa.ArrowException) as error:
            return f"no rows that can be read: {error}"
        found = found.select(COLUMNS).sort_by("device_id")
        for name, rows in self.expected.items():
            if found.equals(rows[key]):
                return name
        return " and ".join(
            f"{_difference(found, rows[key])} against {name}" for name, rows in self.expected.items()
        )


class Reader:
    """Reads what is visible, again and again, as one does who uses the predictions."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._seen: dict[str, list[str]] = {key: [] for key in KEYS}
        self._troubles: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="reader")
        self.reads = 0

    def __enter__(self) -> "Reader":
        self._read()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._read()

    def violations(self, states: Mapping[str, str]) -> Iterator[str]:
        """What it saw that it must not; `states` say what it saw at first and last."""
        yield from self._troubles
        for key, contents in self._seen.items():
            if len(contents) != (1 if states[key] == OLD else 2):
                yield f"a reader of {key} saw {len(contents)} contents, in the end {states[key]}"

    def _poll(self) -> None:
        while not self._ended.wait(READER_SECONDS):
            self._read()

    def _read(self) -> None:
        for key, contents in self._seen.items():
            digest = hashlib.sha256()
            try:
                for file in self._lake.files("predictions", [key]):
                    digest.update(file.read_bytes())
            except (AudienceFactoryError, OSError) as error:
                self._troubles.append(f"a reader could not read {key}: {error}")
                continue
            if not contents or contents[-1] != digest.hexdigest():
                contents.append(digest.hexdigest())
        self.reads += 1


def _difference(found: pa.Table, expected: pa.Table) -> str:
    rows, wanted = (Counter(table.column("device_id").to_pylist()) for table in (found, expected))
    right = Counter(map(tuple, (row.values() for row in expected.to_pylist())))
    equal = (Counter(map(tuple, (row.values() for row in found.to_pylist()))) & right).total()
    missing, duplicate = (wanted - rows).total(), (rows - wanted).total()
    return f"{missing} missing, {duplicate} duplicate, {len(expected) - missing - equal} altered rows"


def _feature_tokens(rows: int, seed: int) -> pa.Table:
    random = Random(seed)
    columns: dict[str, pa.Array] = {
        "device_id": pa.array([f"device-{number:09}" for number in range(rows)]),
        "day": pa.array([DAY] * rows, pa.date32()),
    }
    for name, most, size in FIELDS:
        tokens = [f"{name}-{number:04}" for number in range(size * 11 // 10)]
        columns[name] = pa.array([random.choices(tokens, k=random.randint(0, most)) for _ in range(rows)])
    return pa.table(columns)


def _write_bundle(directory: Path, seed: str) -> Path:
    import torch

    from pipelines.steps.models.dnn_config import DnnConfig
    from pipelines.steps.models.dnn_model import AudienceNet, TrainedDnn

    vocabulary = Vocabulary(
        tuple(
            FieldVocabulary(name, most, tuple(f"{name}-{number:04}" for number in range(size)))
            for name, most, size in FIELDS
        )
    )
    config = DnnConfig.published(embedding_dim=32, hidden=HIDDEN)
    torch.manual_seed(Random(seed).getrandbits(63))
    network = AudienceNet(
        list(vocabulary.sizes.values()), embedding_dim=32, hidden=HIDDEN, embedding_init_std=1.0
    )
    model = TrainedDnn(network.state_dict(), config, curves=(), best_epochs=())
    write_bundle(directory, model, vocabulary, training_days=[str(DAY)], code_version="benchmark", metrics={})
    return directory


def _expected(tokens: pa.Table, bundles: Mapping[str, Path]) -> dict[str, pa.Table]:
    """Scored in this process, all rows at once; in order of their device, as the tokens are."""
    expected = {}
    for audience, directory in bundles.items():
        scorer = load_bundle(directory, threads=1)
        limit_threads(1)
        probabilities = pa.array(scorer.score(scorer.vocabulary.encode(tokens)))
        columns = [pa.array([audience] * len(tokens)), tokens["device_id"], tokens["day"], probabilities]
        expected[f"{audience}/{DAY}"] = pa.table(columns, names=COLUMNS)
    return expected
