"""Does a Python worker's memory stay flat? Rows of all lengths, scored over and over in one Spark session.

A worker is sampled between jobs, when it holds nothing but what it keeps, and its peak while it works.
Samples are compared with those after the same kind of job: what allocators keep depends on what came last.
"""

import argparse
import json
import math
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from tabulate import tabulate

from benchmarks.measure import machine
from pipelines.steps.errors import DataError
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.labels.training_rows import TRAIN, VALIDATION, TrainingRows
from pipelines.steps.models.bundle import TrainedModel, write_bundle
from pipelines.steps.models.dnn_config import DnnConfig
from pipelines.steps.models.dnn_model import AudienceNet, TrainedDnn
from pipelines.steps.models.xgboost_model import XGBoostConfig, train_xgboost
from pipelines.steps.scoring import worker_daemon
from pipelines.steps.scoring.predictions import score_devices, score_files
from resources.spark import Spark

TARGET_MIB = 1.0
"""Growth allowed per SLOPE_ROWS rows that a worker has scored."""
SLOPE_ROWS = 10_000_000
WARM_UP_SHARE = 1 / 3
"""Share of the time: bundles, code and buffers are loaded at first use, and allocators find their level."""
REST_SECONDS = 0.3
PEAK_SECONDS = 0.1
PROGRESS_SECONDS = 10
CONFIDENCE_Z = 1.96
MEASURES = {"rss": "RSS", "pss": "PSS", "uss": "USS", "peak_rss": "peak RSS"}
FEWEST_SAMPLES = 4
"""Samples of a worker after a kind of job: fewer tell nothing of a slope."""

DAY = date(2025, 5, 30)
TOKENS = tuple(f"com.vendor{n % 97}.app{n:05}" for n in range(5_000))
MODELS = tuple(f"sm-{n:04}u" for n in range(500))
KNOWN_SHARE = 0.8
"""Share of the tokens that occur that is in the vocabulary."""
GIANT_BAGS = (100_000, 1_000_000)
WHOLE_BAG = 2 * max(GIANT_BAGS)


@dataclass(frozen=True)
class Job:
    """One kind of scoring.

    Attributes:
        rows_like: Name of the files it reads: "short", "mixed" or "giant".
        reader: `row_groups`, the tasks read files themselves, or `map_in_arrow`, Spark hands over rows.
        audiences: The bundles it scores with.
        times: How often it reads the files.
    """

    rows_like: str
    reader: Literal["row_groups", "map_in_arrow"]
    audiences: tuple[str, ...]
    times: int = 1

    def __str__(self) -> str:
        return f"{self.rows_like}, {self.reader}"


ALL = ("first_tokens", "whole_bags", "trees")
ROUND = (
    Job("short", "row_groups", ("first_tokens",), times=4),
    Job("mixed", "row_groups", ALL),
    Job("short", "map_in_arrow", ("first_tokens",)),
    Job("giant", "row_groups", ALL),
    Job("mixed", "map_in_arrow", ALL),
    Job("giant", "map_in_arrow", ALL),
)
FILES = 4
"""Number of each kind; a job has a task for each."""


@dataclass(frozen=True)
class World:
    """Files of feature tokens of each kind, their rows together, and the bundles."""

    files: Mapping[str, tuple[Path, ...]]
    rows: Mapping[str, int]
    bundles: Mapping[str, Path]


@dataclass(frozen=True)
class Sample:
    """A worker's memory, in MiB.

    Attributes:
        job: What it was sampled after.
        seconds: Since the start.
        rows: That it had scored by then.
        rss: Resident.
        pss: Resident, shared pages counted in part: those of mapped weights by the number of workers.
        uss: Of no other process.
        virtual: Address space, which is what `spark.executor.pyspark.memory` limits.
        peak_rss: The most during the job.
    """

    job: str
    seconds: float
    rows: float
    rss: float
    pss: float
    uss: float
    virtual: float
    peak_rss: float


@dataclass(frozen=True)
class Slope:
    """MiB per SLOPE_ROWS rows: Theil and Sen's median of all pairs, and its interval of 95 %."""

    median: float
    low: float
    high: float


@dataclass
class Watch:
    """Spark's Python workers, watched from outside.

    Attributes:
        samples: Process id → its samples.
        rows: Process id → rows it has scored. A job's rows are shared out by the CPU time they took.
    """

    started: float
    samples: dict[int, list[Sample]] = field(default_factory=dict)
    rows: dict[int, float] = field(default_factory=dict)
    limits: set[int] = field(default_factory=set)
    _peaks: dict[int, float] = field(default_factory=dict)
    _seconds: dict[int, float] = field(default_factory=dict)

    @contextmanager
    def during(self, job: Job, rows: int) -> Iterator[None]:
        """Samples every worker after the job, once it rests."""
        ended = threading.Event()
        watching = threading.Thread(target=self._watch_peaks, args=[ended])
        self._peaks.clear()
        watching.start()
        try:
            yield
        finally:
            ended.set()
            watching.join()
        time.sleep(REST_SECONDS)
        worked = {}
        for worker in python_workers():
            times = worker.cpu_times()
            seconds = times.user + times.system
            worked[worker.pid] = seconds - self._seconds.get(worker.pid, 0)
            self._seconds[worker.pid] = seconds
            self._limit(worker)
        for worker in python_workers():
            share = worked.get(worker.pid, 0) / max(sum(worked.values()), 1e-9)
            self.rows[worker.pid] = self.rows.get(worker.pid, 0) + rows * share
            self._sample(worker, job)

    def _limit(self, worker: psutil.Process) -> None:
        self.limits.add(worker.rlimit(psutil.RLIMIT_AS)[0])

    def _sample(self, worker: psutil.Process, job: Job) -> None:
        memory = worker.memory_full_info()
        self.samples.setdefault(worker.pid, []).append(
            Sample(
                str(job),
                time.monotonic() - self.started,
                self.rows[worker.pid],
                rss=memory.rss / 2**20,
                pss=memory.pss / 2**20,
                uss=memory.uss / 2**20,
                virtual=memory.vms / 2**20,
                peak_rss=self._peaks.get(worker.pid, memory.rss) / 2**20,
            )
        )

    def _watch_peaks(self, ended: threading.Event) -> None:
        while not ended.wait(PEAK_SECONDS):
            for worker in python_workers():
                try:
                    size = worker.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
                self._peaks[worker.pid] = max(size, self._peaks.get(worker.pid, 0))


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    world = make_world(options.work_dir.absolute() / "soak", options.rows, options.seed)
    watch, jobs = soak(world, options.minutes, options.python_memory)
    settled = 60 * options.minutes * WARM_UP_SHARE
    slopes = {
        pid: slopes_of([sample for sample in samples if sample.seconds >= settled])
        for pid, samples in watch.samples.items()
    }
    told = [found["rss"] for found in slopes.values() if found["rss"] is not None]
    flat = bool(told) and all(found.high <= TARGET_MIB for found in told)
    _print(watch, slopes)
    if not told:
        print(f"too short: no worker was sampled {FEWEST_SAMPLES} times after the same job once warmed up")
    if options.json is not None:
        results = {
            "flat": flat,
            "jobs": jobs,
            "rows": sum(watch.rows.values()),
            "worker_limit_mib": [limit / 2**20 for limit in sorted(watch.limits)],
            "workers": {
                str(pid): {
                    "rows": watch.rows[pid],
                    "slopes": {name: found and asdict(found) for name, found in slopes[pid].items()},
                    "samples": [asdict(sample) for sample in samples],
                }
                for pid, samples in watch.samples.items()
            },
        }
        content = {"machine": machine(), "config": vars(options), "results": results, "ratios": {}}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=2, default=str, allow_nan=False) + "\n")
    print("holds" if flat else "DOES NOT HOLD")
    return 0 if flat else 1


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description="The memory of Spark's Python workers over many rows of all lengths.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add_argument("--minutes", type=float, default=15.0, help="how long to score; one round at least")
    options.add_argument("--rows", type=int, default=500_000, help="short rows; there are fewer long ones")
    options.add_argument(
        "--python-memory",
        default="3g",
        help="spark.executor.pyspark.memory; of a local master, the address space of each worker",
    )
    options.add_argument("--seed", type=int, default=0, help="of the rows and the models")
    options.add_argument("--json", type=Path, default=None, help="file that the figures are written to")
    options.add_argument("--work-dir", type=Path, default=Path("data/benchmarks"), help="folder of the data")
    return options


def soak(world: World, minutes: float, python_memory: str) -> tuple[Watch, int]:
    """Scores until the time is over; the workers' samples and the number of jobs.

    Raises:
        DataError: A job gave more or fewer scores than it had rows.
    """
    spark = Spark(
        master="local[2]",  # a task that dies is not tried again: its worker's memory would be lost to us
        app_name="soak",
        driver_memory="1g",
        python_memory=python_memory,
        conf={"spark.ui.enabled": "false"},
    ).session
    watch = Watch(started=time.monotonic())
    jobs = told = 0
    try:
        while jobs < len(ROUND) or time.monotonic() - watch.started < 60 * minutes:
            job = ROUND[jobs % len(ROUND)]
            rows = world.rows[job.rows_like] * job.times
            with watch.during(job, rows):
                _score(spark, world, job, rows)
            jobs += 1
            if time.monotonic() - watch.started > told * PROGRESS_SECONDS:
                told = math.ceil((time.monotonic() - watch.started) / PROGRESS_SECONDS)
                _tell(watch, job)
    finally:
        spark.stop()
    return watch, jobs


def _score(spark: SparkSession, world: World, job: Job, rows: int) -> None:
    bundles = {audience: world.bundles[audience] for audience in job.audiences}
    files = list(world.files[job.rows_like]) * job.times
    scored: DataFrame
    if job.reader == "row_groups":
        scored = score_files(spark, files, bundles, rows_per_task=max(1, rows // len(files)))
    else:
        scored = score_devices(spark.read.parquet(*map(str, files)), bundles)
    count = scored.agg(F.count("probability")).toArrow().column(0)[0].as_py()
    if count != rows * len(bundles):
        raise DataError(
            f"rows were lost or repeated in {job}",
            found=f"{count} scores",
            expected=f"{rows} rows × {len(bundles)} audiences",
            remedy="do not trust any score of this code version",
        )


def _tell(watch: Watch, job: Job) -> None:
    workers = ", ".join(
        f"{pid}: {samples[-1].rss:.0f} MiB (private {samples[-1].uss:.0f}, peak {samples[-1].peak_rss:.0f}, "
        f"address space {samples[-1].virtual:.0f})"
        for pid, samples in watch.samples.items()
    )
    seconds, rows = time.monotonic() - watch.started, sum(watch.rows.values()) / 1e6
    print(f"{seconds:5.0f} s, {rows:6.1f} million rows, after {job}: {workers}", flush=True)


def python_workers() -> list[psutil.Process]:
    """The Python workers of this process's Spark, without the daemon that they are forked from."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            parent = process.parent()
            if parent is not None and _is_daemon(process) and _is_daemon(parent):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def _is_daemon(process: psutil.Process) -> bool:
    return worker_daemon.__name__ in process.cmdline()


def slopes_of(samples: Sequence[Sample]) -> dict[str, Slope | None]:
    """What of a worker's memory grew how fast."""
    return {
        name: slope([(sample.job, sample.rows, getattr(sample, name)) for sample in samples])
        for name in MEASURES
    }


def slope(samples: Sequence[tuple[str, float, float]]) -> Slope | None:
    """The growth that samples show, by pairs of samples after the same job.

    Args:
        samples: Job, rows scored by then, MiB.

    Returns:
        None where there are too few.
    """
    slopes: list[float] = []
    variance = 0.0
    for job in {job for job, _, _ in samples}:
        points = [(rows, size) for name, rows, size in samples if name == job]
        if len(points) < FEWEST_SAMPLES:
            continue
        variance += len(points) * (len(points) - 1) * (2 * len(points) + 5) / 18  # of Kendall's statistic
        slopes += [
            SLOPE_ROWS * (b[1] - a[1]) / (b[0] - a[0])
            for place, a in enumerate(points)
            for b in points[place + 1 :]
            if b[0] > a[0]
        ]
    if not slopes:
        return None
    slopes.sort()
    reach = CONFIDENCE_Z * math.sqrt(variance) / 2
    low, high = max(0, round(len(slopes) / 2 - reach)), min(len(slopes) - 1, round(len(slopes) / 2 + reach))
    return Slope(float(np.median(slopes)), slopes[low], slopes[high])


def _print(watch: Watch, slopes: Mapping[int, Mapping[str, Slope | None]]) -> None:
    rows = [
        [pid, f"{watch.rows[pid]:,.0f}", f"{watch.samples[pid][-1].rss:.0f}"]
        + [f"{s.median:.2f} ({s.low:.2f} – {s.high:.2f})" if s else "" for s in found.values()]
        for pid, found in slopes.items()
    ]
    print(f"growth in MiB per {SLOPE_ROWS:,} rows, median and 95 % interval; target: RSS ≤ {TARGET_MIB:g}")
    print(tabulate(rows, headers=["worker", "rows", "RSS now", *MEASURES.values()], disable_numparse=True))


# --- what is scored -------------------------------------------------------------------------------------


def make_world(home: Path, rows: int, seed: int) -> World:
    """Rows and bundles, made anew."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    counts = {"short": rows, "mixed": rows // 10, "giant": rows // 50}
    files = {name: tuple(home / f"{name}-{n}.parquet" for n in range(FILES)) for name in counts}
    for name, paths in files.items():
        for number, path in enumerate(paths):
            random = np.random.default_rng([seed, number, *name.encode()])
            pq.write_table(_feature_tokens(name, counts[name] // FILES, random), path, compression="zstd")
    written = {name: counts[name] // FILES * FILES for name in counts}
    return World(
        files, written, {audience: home / audience for audience in _write_bundles(home, files, seed)}
    )


def _feature_tokens(kind: str, rows: int, random: np.random.Generator) -> pa.Table:
    if kind == "short":
        lengths = random.integers(0, 5, rows)
    elif kind == "mixed":
        lengths = np.minimum(random.gamma(0.7, 60, rows).astype(np.int64), 600)
    else:
        lengths = random.integers(0, 50, rows)
        places = random.permutation(rows)[: len(GIANT_BAGS)]
        lengths[places] = GIANT_BAGS[: len(places)]
    return pa.table(
        {
            "device_id": pa.array([f"{number:032x}" for number in range(rows)]),
            "day": pa.array([DAY] * rows, pa.date32()),
            "model": _lists(np.minimum(1, random.integers(0, 50, rows)), MODELS, random),
            "apps": _lists(lengths, TOKENS, random),
        }
    )


def _lists(lengths: np.ndarray, tokens: Sequence[str], random: np.random.Generator) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    numbers = pa.array(random.integers(len(tokens), size=offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(tokens).take(numbers))


def _write_bundles(home: Path, files: Mapping[str, Sequence[Path]], seed: int) -> list[str]:
    first, whole = _vocabulary(max_length=32), _vocabulary(max_length=WHOLE_BAG)
    sample = pq.read_table(files["mixed"][0])
    bags = first.encode(sample)
    labels = (bags["apps"].lengths + bags["apps"].values[bags["apps"].offsets[:-1]] % 7 > 20).astype(
        np.float32
    )
    split = np.where(np.arange(len(labels)) % 4, TRAIN, VALIDATION).astype(np.int8)
    trees = train_xgboost(
        TrainingRows(labels, split, bags), first.sizes, XGBoostConfig(num_boost_round=20, max_depth=4)
    )
    models: dict[str, tuple[TrainedModel, Vocabulary]] = {
        "first_tokens": (_network(first, seed), first),
        "whole_bags": (_network(whole, seed + 1), whole),
        "trees": (trees, first),
    }
    for name, (model, vocabulary) in models.items():
        days = [DAY.isoformat()]
        write_bundle(home / name, model, vocabulary, training_days=days, code_version="benchmark", metrics={})
    return list(models)


def _vocabulary(max_length: int) -> Vocabulary:
    known = TOKENS[: int(KNOWN_SHARE * len(TOKENS))]
    return Vocabulary((FieldVocabulary("model", 1, MODELS), FieldVocabulary("apps", max_length, known)))


def _network(vocabulary: Vocabulary, seed: int) -> TrainedDnn:
    config = DnnConfig.published(embedding_dim=8, hidden=(16,), seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AudienceNet(
            list(vocabulary.sizes.values()), embedding_dim=config.embedding_dim, hidden=config.hidden
        )
    return TrainedDnn(network.state_dict(), config, curves=(), best_epochs=())


if __name__ == "__main__":
    sys.exit(main())
