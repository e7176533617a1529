"""Are Spark's scores those of plain PyTorch? Ten trained networks, awkward rows, both readers.

The other side of the comparison is eager PyTorch in one process, without our code (`benchmarks.eager_model`):
tokens → ids by a Python dict, `embedding_bag` and `linear` over the weights of the bundle's file.

What does not belong here: how fast it is (benchmarks.scoring), and what happens when processes die at random.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession
from tabulate import tabulate

from benchmarks.eager_model import EQUAL_BATCH_ROWS, KEYS, Scores, score_locally
from benchmarks.measure import machine
from benchmarks.parity_rows import NETS, World, make_world
from pipelines.steps.errors import DataError
from pipelines.steps.row_groups import ROWS_PER_TASK
from pipelines.steps.scoring.predictions import score_devices, score_files
from resources.spark import Spark

MAX_DIFFERENCE = 1e-6
P99_DIFFERENCE = 1.2e-7
MEAN_DIFFERENCE = 2e-8
"""What is allowed where the bits differ; a published system like ours had 7.2e-3, 1.8e-7 and 5.3e-8."""


@dataclass(frozen=True)
class Run:
    """One way to score; none may change a bit of the result.

    Attributes:
        reader: `row_groups`, the tasks read files themselves, or `map_in_arrow`, Spark hands over rows.
        layout: What is read.
        tasks: Number of tasks; None: as many as the reader makes of its own accord.
        batch_rows: Rows that Spark hands over at once; of the first reader, a row group is a batch.
        failing: Every task's first attempt dies halfway, and is tried again.
    """

    reader: Literal["row_groups", "map_in_arrow"]
    layout: str = "codes"
    tasks: int | None = None
    batch_rows: int = 10_000
    failing: bool = False

    def __str__(self) -> str:
        tasks = f"{self.tasks} tasks" if self.tasks else "tasks as planned"
        batches = f", batches of {self.batch_rows}" if self.reader == "map_in_arrow" else ""
        return f"{self.reader}, {self.layout}, {tasks}{batches}{', every task retried' * self.failing}"


def all_runs(task_counts: Sequence[int]) -> list[Run]:
    """Every reader with every number of tasks, every layout and batch size, and with tasks that die."""
    some = sorted(task_counts)[len(task_counts) // 2]
    return [
        *(Run("row_groups", tasks=tasks) for tasks in task_counts),
        Run("row_groups", layout="strings"),
        Run("row_groups", layout="shuffled"),
        Run("row_groups", tasks=some, failing=True),
        *(Run("map_in_arrow", tasks=tasks) for tasks in task_counts),
        Run("map_in_arrow", layout="strings", batch_rows=1_000),
        Run("map_in_arrow", layout="shuffled", batch_rows=50_000),
        Run("map_in_arrow", tasks=some, failing=True),
    ]


@dataclass(frozen=True)
class Differences:
    """Absolute differences of `count` probabilities."""

    count: int
    mean: float
    std: float
    p25: float
    p50: float
    p75: float
    p99: float
    max: float

    @property
    def within_target(self) -> bool:
        return self.max <= MAX_DIFFERENCE and self.p99 <= P99_DIFFERENCE and self.mean <= MEAN_DIFFERENCE


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    world = make_world(options.work_dir, options.rows, options.seed, options.nets, max(options.tasks))
    local, shares = score_locally(world)
    wanted = content_hash(local.ids, local.equal_batch)
    print(f"eager PyTorch in one process: {wanted[:16]}", flush=True)
    hashes, killed = {"local": wanted}, {}
    first: dict[str, Scores] = {}
    for run, scores, died in _each_run(world, all_runs(options.tasks), options.master, local.ids):
        first.setdefault(run.reader, scores)
        hashes[str(run)] = found = content_hash(local.ids, scores)
        if run.failing:
            killed[str(run)] = died
        note = f" ({died} attempts killed)" if run.failing else ""
        apart = "" if found == wanted else f": DIFFERS by {differences(scores, local.equal_batch).max:.2e}"
        print(f"{found[:16]} {run}{note}{apart}", flush=True)

    ours, spark_rows = first["row_groups"], first["map_in_arrow"]
    compared = {
        "distributed_vs_local": differences(ours, local.equal_batch),
        "map_in_arrow_vs_local": differences(spark_rows, local.equal_batch),
        "distributed_vs_local_other_batch": differences(ours, local.other_batch),
        "distributed_vs_float64": differences(ours, local.float64),
        "local_vs_float64": differences(local.equal_batch, local.float64),
        "local_other_batch_vs_float64": differences(local.other_batch, local.float64),
    }
    results: dict[str, Any] = {name: asdict(found) for name, found in compared.items()}
    results |= {
        "bit_identical": set(hashes.values()) == {wanted},
        "one_content_hash": len({found for run, found in hashes.items() if run != "local"}) == 1,
        "hashes": hashes,
        "attempts_killed": killed,
        "odd_bags": shares,
        "probabilities": {audience: _spread(p) for audience, p in local.equal_batch.items()},
    }
    _publish(options, results, compared)
    within = all(compared[name].within_target for name in ("distributed_vs_local", "map_in_arrow_vs_local"))
    passed = (results["bit_identical"] or within) and results["one_content_hash"] and all(killed.values())
    print("holds" if passed else "DOES NOT HOLD")
    return 0 if passed else 1


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.parity",
        description="Distributed scores against plain PyTorch's, over ten trained networks.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add_argument("--rows", type=_enough_rows, default=440_000, help="rows, scored by each net")
    options.add_argument("--nets", type=int, default=len(NETS), help="how many of the ten networks")
    options.add_argument(
        "--tasks", type=int, nargs="+", default=[64, 8, 2, 1], help="numbers of tasks that must all agree"
    )
    options.add_argument("--seed", type=int, default=0, help="of the rows and the networks")
    options.add_argument("--master", default="local[2,4]", help="Spark master; it must retry failed tasks")
    options.add_argument("--json", type=Path, default=None, help="file that the figures are written to")
    options.add_argument(
        "--work-dir", type=Path, default=Path("data/benchmarks"), help="folder of the data; reused if there"
    )
    return options


def _enough_rows(text: str) -> int:
    if int(text) < EQUAL_BATCH_ROWS:
        raise argparse.ArgumentTypeError(f"{text} rows do not fill a batch of {EQUAL_BATCH_ROWS}")
    return int(text)


# --- Spark ----------------------------------------------------------------------------------------------


def _each_run(
    world: World, runs: Sequence[Run], master: str, ids: pa.Table
) -> Iterator[tuple[Run, Scores, int]]:
    """Every run, what it wrote, and how many of its attempts were killed."""
    spark = Spark(
        master=master,
        app_name="parity",
        driver_memory="1g",
        # Tasks that die are part of the plan; a job that dies raises.
        conf={"spark.ui.enabled": "false", "spark.log.level": "OFF"},
    ).session
    output, killed = world.home / "scored", world.home / "killed"
    try:
        for run in runs:
            shutil.rmtree(killed, ignore_errors=True)
            killed.mkdir()
            spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", str(run.batch_rows))
            # Not by audience: Hadoop without its native library starts two processes for each file.
            _scored(spark, world, run, killed).write.mode("overwrite").parquet(str(output))
            yield run, read_scores(output, world.nets, ids), len(list(killed.iterdir()))
    finally:
        spark.stop()
        shutil.rmtree(output, ignore_errors=True)


def _scored(spark: SparkSession, world: World, run: Run, killed: Path) -> DataFrame:
    file = world.file(run.layout)
    if run.reader == "row_groups":
        groups = pq.read_metadata(file).num_row_groups
        rows_per_task = world.group_rows * ceil(groups / run.tasks) if run.tasks else ROWS_PER_TASK
        scored = score_files(spark, [file], world.bundles, rows_per_task=rows_per_task)
        return die_at_first(scored, killed) if run.failing else scored
    rows = spark.read.parquet(str(file))
    if run.tasks:
        rows = rows.repartition(run.tasks)
    return score_devices(die_at_first(rows, killed) if run.failing else rows, world.bundles)


def die_at_first(rows: DataFrame, killed: Path) -> DataFrame:
    """The same rows; but the first attempt of each task dies after a batch, and leaves a file in `killed`."""
    folder = str(killed)

    def pass_on(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        task = TaskContext.get()
        for batch in batches:
            yield batch
            if task is not None and task.attemptNumber() == 0:
                (Path(folder) / str(task.partitionId())).touch()
                os._exit(1)  # as a killed worker ends: nothing is flushed, nothing is told

    return rows.mapInArrow(pass_on, rows.schema)


def read_scores(output: Path, audiences: Iterable[str], ids: pa.Table) -> Scores:
    """What Spark wrote.

    Raises:
        DataError: The scores are not those of the devices and days of `ids`, each once.
    """
    scores = {}
    for audience in audiences:
        table = pq.read_table(output, filters=[("audience", "=", audience)]).sort_by(KEYS)
        if not table.select(["device_id", "day"]).combine_chunks().equals(ids):
            raise DataError(
                f"the scores of {audience} are not one for each row",
                found=f"{table.num_rows} scores, of {pc.count_distinct(table.column('device_id'))} devices",
                expected=f"{ids.num_rows} scores, one for each device and day",
                remedy="do not trust any score of this code version; look for lost or repeated tasks",
            )
        scores[audience] = table.column("probability").to_numpy()
    return scores


# --- comparing ------------------------------------------------------------------------------------------


def content_hash(ids: pa.Table, scores: Scores) -> str:
    """sha256 over audiences, devices, days and the bits of the probabilities, in their order."""
    devices = ids.column("device_id").to_pylist()
    content = hashlib.sha256("\n".join(devices).encode())
    content.update(ids.column("day").cast(pa.int32()).to_numpy().astype("<i4").tobytes())
    for audience in sorted(scores):
        content.update(audience.encode())
        content.update(scores[audience].astype("<f4", casting="equiv").tobytes())
    return content.hexdigest()


def differences(some: Scores, others: Scores) -> Differences:
    """The largest distance of the scores, over all audiences.

    Raises:
        DataError: A probability is not a number, which no difference could tell.
    """
    difference = np.concatenate([np.abs(some[a].astype(np.float64) - others[a]) for a in some])
    if not np.isfinite(difference).all():
        raise DataError(
            "probabilities are not numbers",
            found=f"{np.count_nonzero(~np.isfinite(difference))} of {len(difference)} differences are NaN",
            expected="numbers from 0 to 1",
            remedy="look for weights that are not finite",
        )
    p25, p50, p75, p99 = (float(p) for p in np.percentile(difference, [25, 50, 75, 99]))
    mean, std, highest = float(difference.mean()), float(difference.std()), float(difference.max())
    return Differences(len(difference), mean, std, p25, p50, p75, p99, highest)


def _spread(probabilities: np.ndarray) -> dict[str, float]:
    low, middle, high = (float(p) for p in np.percentile(probabilities, [1, 50, 99]))
    return {"p1": low, "p50": middle, "p99": high}


def _publish(
    options: argparse.Namespace, results: Mapping[str, Any], compared: Mapping[str, Differences]
) -> None:
    rows = [{"absolute difference": name, **asdict(found)} for name, found in compared.items()]
    print(tabulate(rows, headers="keys", floatfmt=".2e"))
    rows = [{"odd bags": field, **shares} for field, shares in results["odd_bags"].items()]
    print(tabulate(rows, headers="keys", floatfmt=".1%"))
    print(f"bit-identical at equal batch shape: {results['bit_identical']}")
    print(f"one content hash over {len(results['hashes']) - 1} runs: {results['one_content_hash']}")
    if options.json is not None:
        config = {**vars(options), "nets": {name: asdict(NETS[name]) for name in results["probabilities"]}}
        content = {"machine": machine(), "config": config, "results": results, "ratios": {}}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=2, default=str, allow_nan=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
