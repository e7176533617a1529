"""Are Spark's scores those of plain PyTorch? Ten trained networks, awkward rows, both readers.

The other side of the comparison is eager PyTorch in one process, written here without our code: tokens →
ids by a Python dict, `embedding_bag` and `linear` over the weights of the bundle's file.

What does not belong here: how fast it is (benchmarks.scoring), and what happens when processes die at random.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import safetensors.torch
import torch
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional

from benchmarks import scoring_world
from benchmarks.measure import machine
from pipelines.steps.errors import DataError
from pipelines.steps.features.encoded_rows import Ragged
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.labels.training_rows import TRAIN, VALIDATION, TrainingRows
from pipelines.steps.models.bundle import write_bundle
from pipelines.steps.models.dnn_config import DnnConfig, Pooling
from pipelines.steps.models.dnn_model import TrainedDnn
from pipelines.steps.models.dnn_training import train_dnn
from pipelines.steps.row_groups import ROWS_PER_TASK
from pipelines.steps.scoring.predictions import score_devices, score_files
from resources.spark import Spark

MAX_DIFFERENCE = 1e-6
P99_DIFFERENCE = 1.2e-7
MEAN_DIFFERENCE = 2e-8
"""What is allowed where the bits differ; a published system like ours had 7.2e-3, 1.8e-7 and 5.3e-8."""
EQUAL_BATCH_ROWS = 1_024
OTHER_BATCH_ROWS = 65_536
MISSING, UNKNOWN, RESERVED = 0, 1, 2
"""Ids of an empty bag and of an unknown token, and how many ids come before the first token's."""
TRAINING_ROWS = 24_000
"""The most rows; fewer where fewer are scored."""
EPOCHS = 2
ODD_SHARE = 0.05
"""Share of the bags of each field, for each way of being odd."""


@dataclass(frozen=True)
class Net:
    """The shape of a network; a `narrow` one knows fewer fields, fewer tokens and shorter bags."""

    embedding_dim: int
    hidden: tuple[int, ...]
    pooling: Pooling
    narrow: bool = False


NETS = {
    "audience_0": Net(32, (256, 128), "mean"),
    "audience_1": Net(32, (256, 128), "sqrt_n"),
    "audience_2": Net(16, (128, 64), "mean"),
    "audience_3": Net(16, (128, 64), "sqrt_n"),
    "audience_4": Net(8, (64, 32), "mean"),
    "audience_5": Net(8, (50,), "sqrt_n"),
    "audience_6": Net(16, (), "mean"),
    "audience_7": Net(7, (33,), "mean", narrow=True),
    "audience_8": Net(24, (100, 30), "sqrt_n", narrow=True),
    "audience_9": Net(64, (256, 128, 64), "mean", narrow=True),
}


@dataclass(frozen=True)
class Layout:
    """One way the same rows are written.

    Attributes:
        rows_per_group: None: one group for each task, where there are most of them.
        dictionary_bytes: At a few, long columns fall back to plain strings, which the reader reads otherwise.
        shuffled: Rows lie in another order.
    """

    rows_per_group: int | None
    dictionary_bytes: int
    shuffled: bool


LAYOUTS = {
    "codes": Layout(None, 8 << 20, shuffled=False),
    "strings": Layout(131_072, 1 << 16, shuffled=False),
    "shuffled": Layout(1_000, 8 << 20, shuffled=True),
}


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


KEYS = [("device_id", "ascending"), ("day", "ascending")]


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
class World:
    """The folders of the rows, in every layout, and of the bundles.

    Attributes:
        home: The folder.
        nets: Audience → its network.
        group_rows: Rows of a row group of the layout "codes".
    """

    home: Path
    nets: Mapping[str, Net]
    group_rows: int

    def file(self, layout: str) -> Path:
        return self.home / f"{layout}.parquet"

    @property
    def bundles(self) -> dict[str, Path]:
        return {audience: self.home / "bundles" / audience for audience in self.nets}


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


Scores = Mapping[str, np.ndarray]
"""Audience → probabilities [rows], ordered by device and day."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    world = make_world(options.work_dir, options.rows, options.seed, options.nets, max(options.tasks))
    local, shares = _score_locally(world)
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


# --- the rows -------------------------------------------------------------------------------------------


def make_world(work_dir: Path, rows: int, seed: int, nets: int, most_tasks: int) -> World:
    """Rows and trained bundles of these numbers: made now, unless made before by the code as it is now."""
    code = b"".join(Path(file).read_bytes() for file in (__file__, scoring_world.__file__))
    name = f"parity-{rows}-{seed}-{nets}-{most_tasks}-{hashlib.sha256(code).hexdigest()[:8]}"
    chosen = dict(list(NETS.items())[:nets])
    world = World((work_dir / name).absolute(), chosen, group_rows=ceil(rows / most_tasks))
    done = world.home / "made"
    if done.exists():
        return world
    if world.home.exists():
        shutil.rmtree(world.home)
    (world.home / "bundles").mkdir(parents=True)
    table = pa.concat_tables(odd_rows(rows, seed))
    for name, layout in LAYOUTS.items():
        order = np.random.default_rng(seed).permutation(rows) if layout.shuffled else None
        pq.write_table(
            table if order is None else table.take(pa.array(order)),
            world.file(name),
            row_group_size=layout.rows_per_group or world.group_rows,
            dictionary_pagesize_limit=layout.dictionary_bytes,
            compression="zstd",
        )
    del table
    train(world, seed, min(rows, TRAINING_ROWS))
    done.touch()
    return world


def odd_rows(rows: int, seed: int) -> Iterator[pa.Table]:
    """The scoring benchmark's devices; of each field's bags, ODD_SHARE of each kind made odd."""
    for number, table in enumerate(scoring_world.feature_tokens(rows, seed)):
        random = np.random.default_rng([seed, number])
        for field in scoring_world.FIELDS:
            place = table.schema.get_field_index(field.name)
            table = table.set_column(place, field.name, _with_odd_bags(table.column(place), field, random))
        yield table


def _with_odd_bags(
    column: pa.ChunkedArray, field: scoring_world.Field, random: np.random.Generator
) -> pa.Array:
    kinds = list(_odd_bags(field, random).values())
    kind = random.integers(int(1 / ODD_SHARE), size=len(column))  # those past the last kind stay as they are
    chosen = np.flatnonzero(kind < len(kinds))
    odd = [
        kinds[k](bag) for k, bag in zip(kind[chosen], column.take(pa.array(chosen)).to_pylist(), strict=True)
    ]
    source = np.arange(len(column))
    source[chosen] = len(column) + np.arange(len(chosen))
    bags = pa.concat_arrays([*column.chunks, pa.array(odd, column.type)])
    return bags.take(pa.array(source))


Bag = list[str | None]


def _odd_bags(
    field: scoring_world.Field, random: np.random.Generator
) -> dict[str, Callable[[Bag], Bag | None]]:
    """Kind → what makes a bag so."""
    names = scoring_world.token_names(field)

    def others(count: int) -> Bag:
        return [names[n] for n in random.integers(len(names), size=count)]

    return {
        "empty": lambda _: [],
        "null": lambda _: None,
        "null_tokens": lambda bag: [*bag[::2], None, *bag[1::2], None],
        "unknown": lambda bag: [f"unheard-of-{place}" for place in range(max(1, len(bag)))],
        "repeated": lambda bag: (bag or others(1)) * 3,
        "truncated": lambda bag: [*bag, *others(3 * field.max_length)],
    }


def odd_shares(table: pa.Table) -> dict[str, dict[str, float]]:
    """Field → kind of bag → its share, counted in the rows as they are."""
    shares = {}
    for field in scoring_world.FIELDS:
        known = set(scoring_world.token_names(field)[: field.tokens])
        counts = dict.fromkeys(_odd_bags(field, np.random.default_rng()), 0)
        for bag in _bags(table.column(field.name)):
            if not bag:
                counts["null" if bag is None else "empty"] += 1
                continue
            counts["null_tokens"] += None in bag
            counts["unknown"] += not known.issuperset(bag)
            counts["repeated"] += len(set(bag)) < len(bag)
            counts["truncated"] += len(bag) > field.max_length
        shares[field.name] = {kind: count / table.num_rows for kind, count in counts.items()}
    return shares


def _bags(column: pa.ChunkedArray) -> Iterator[Bag | None]:
    """Row by row; few of them as Python objects at a time."""
    for chunk in column.chunks:
        for start in range(0, len(chunk), 10_000):
            yield from chunk.slice(start, 10_000).to_pylist()


# --- the networks ---------------------------------------------------------------------------------------


def train(world: World, seed: int, rows: int) -> None:
    """Trains every network, each on labels of its own, and writes its bundle."""
    sample = pa.concat_tables(odd_rows(rows, seed + 1))
    for number, (audience, directory) in enumerate(world.bundles.items()):
        net = world.nets[audience]
        vocabulary = vocabulary_of(net)
        labelled = _labelled(dict(vocabulary.encode(sample)), np.random.default_rng([seed, number]))
        config = DnnConfig.published(
            embedding_dim=net.embedding_dim,
            hidden=net.hidden,
            pooling=net.pooling,
            max_epochs=EPOCHS,
            learning_rate=5e-3,
            seed=number,
        )
        trained = train_dnn(labelled, vocabulary.sizes, config, lambda _: None)
        _write(directory, trained, vocabulary)
        print(f"{audience}: {trained.curves[-1]}", flush=True)


def _write(directory: Path, trained: TrainedDnn, vocabulary: Vocabulary) -> None:
    days = [scoring_world.DAY.isoformat()]
    write_bundle(directory, trained, vocabulary, training_days=days, code_version="benchmark", metrics={})


def vocabulary_of(net: Net) -> Vocabulary:
    whole = scoring_world.vocabulary()
    if not net.narrow:
        return whole
    return Vocabulary(
        tuple(
            FieldVocabulary(field.name, max(1, field.max_length // 2), field.tokens[: len(field.tokens) // 3])
            for field in reversed(whole.fields[1:])
        )
    )


def _labelled(bags: dict[str, Ragged], random: np.random.Generator) -> TrainingRows:
    """Rows whose chance of a 1 follows from their tokens, each of which has a hidden weight."""
    rows = next(iter(bags.values())).rows
    hidden = np.zeros(rows)
    for bag in bags.values():
        weights = random.normal(size=bag.values.max() + 1)
        hidden += np.add.reduceat(weights[bag.values], bag.offsets[:-1]) / np.sqrt(bag.lengths)
    chance = 1 / (1 + np.exp(1 - 3 * (hidden - hidden.mean()) / hidden.std()))
    labels = (random.random(rows) < chance).astype(np.float32)
    split = np.where(random.random(rows) < 0.8, TRAIN, VALIDATION).astype(np.int8)
    return TrainingRows(labels, split, bags)


# --- plain PyTorch --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Local:
    """Eager PyTorch's scores, ordered by device and day.

    Attributes:
        ids: `device_id` and `day` of each row.
        equal_batch: Of batches of EQUAL_BATCH_ROWS.
        other_batch: Of batches of OTHER_BATCH_ROWS.
        float64: The same weights, all arithmetic in double precision.
    """

    ids: pa.Table
    equal_batch: Scores
    other_batch: Scores
    float64: Scores


def _score_locally(world: World) -> tuple[Local, dict[str, dict[str, float]]]:
    """The scores, and the shares of odd bags; the tokens are freed before Spark starts."""
    table = pq.read_table(world.file("codes"))
    order = pc.sort_indices(table, sort_keys=KEYS)
    scores = eager_scores(table, world.bundles)
    ordered = {
        how: {audience: p[order.to_numpy()] for audience, p in found.items()} for how, found in scores.items()
    }
    ids = table.select(["device_id", "day"]).take(order).combine_chunks()
    return Local(ids, **ordered), odd_shares(table)


def eager_scores(table: pa.Table, bundles: Mapping[str, Path]) -> dict[str, dict[str, np.ndarray]]:
    """How, as in `Local` → audience → probabilities [rows]."""
    torch.set_num_threads(1)  # as in a task: two threads may split a product elsewhere
    encoded: dict[bytes, dict[str, tuple[Tensor, Tensor]]] = {}
    scores: dict[str, dict[str, np.ndarray]] = {"equal_batch": {}, "other_batch": {}, "float64": {}}
    for audience, bundle in bundles.items():
        words = (bundle / "vocabulary.json").read_bytes()
        if words not in encoded:
            encoded = {words: encode_by_dict(table, json.loads(words))}  # one at a time: they are large
        model, precise = EagerModel(bundle, torch.float32), EagerModel(bundle, torch.float64)
        scores["equal_batch"][audience] = model.score(encoded[words], EQUAL_BATCH_ROWS)
        scores["other_batch"][audience] = model.score(encoded[words], OTHER_BATCH_ROWS)
        scores["float64"][audience] = precise.score(encoded[words], OTHER_BATCH_ROWS)
    return scores


def encode_by_dict(
    table: pa.Table, vocabulary: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Field → ids [tokens] and offsets [rows + 1], int64; the slow way, one token after the other."""
    encoded = {}
    for field in vocabulary:
        known = {token: RESERVED + place for place, token in enumerate(field["tokens"])}
        pieces, lengths, piece = [], [], []
        for bag in _bags(table.column(field["name"])):
            found = [known.get(token, UNKNOWN) for token in (bag or [])[: field["max_length"]]] or [MISSING]
            piece += found
            lengths.append(len(found))
            if len(piece) > 1_000_000:
                pieces.append(np.array(piece, dtype=np.int64))
                piece = []
        ids = np.concatenate([*pieces, np.array(piece, dtype=np.int64)])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        encoded[field["name"]] = torch.from_numpy(ids), torch.from_numpy(offsets)
    return encoded


class EagerModel:
    """The network as one would write it down in plain PyTorch, over the weights of a bundle."""

    def __init__(self, bundle: Path, dtype: torch.dtype) -> None:
        manifest = json.loads((bundle / "bundle.json").read_bytes())
        weights = safetensors.torch.load_file(bundle / manifest["weights_file"])
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
        names = [field["name"] for field in manifest["fields"]]
        self._pooling = manifest["architecture"]["pooling"]
        sizes = [field["vocabulary_size"] for field in manifest["fields"]]
        self._embeddings = dict(zip(names, weights["embeddings"].split(sizes), strict=True))
        first = "feed_forward.0."
        numbers = sorted({int(key.split(".")[2]) for key in weights if key.startswith(first)})
        self._layers = [(weights[f"{first}{n}.weight"], weights[f"{first}{n}.bias"]) for n in numbers]

    @torch.inference_mode()
    def score(self, encoded: Mapping[str, tuple[Tensor, Tensor]], batch_rows: int) -> np.ndarray:
        """Probabilities [rows]. The last batch takes in earlier rows, so that it is as long as any other."""
        rows = len(next(iter(encoded.values()))[1]) - 1
        scores = torch.empty(rows, dtype=self._layers[0][0].dtype)
        for start in range(0, rows, batch_rows):
            stop = min(start + batch_rows, rows)
            scores[max(0, stop - batch_rows) : stop] = self._probabilities(
                encoded, max(0, stop - batch_rows), stop
            )
        return scores.numpy()

    def _probabilities(self, encoded: Mapping[str, tuple[Tensor, Tensor]], start: int, stop: int) -> Tensor:
        pooled = []
        for name, weight in self._embeddings.items():
            ids, offsets = encoded[name]
            first, end = int(offsets[start]), int(offsets[stop])
            begins, lengths = offsets[start:stop] - first, offsets[start : stop + 1].diff()
            if self._pooling == "mean":
                pooled.append(functional.embedding_bag(ids[first:end], weight, begins, mode="mean"))
            else:
                total = functional.embedding_bag(ids[first:end], weight, begins, mode="sum")
                pooled.append(total / lengths.to(weight.dtype).sqrt()[:, None])
        hidden = torch.cat(pooled, dim=1)
        *inner, last = self._layers
        for matrix, bias in inner:
            hidden = functional.relu(functional.linear(hidden, matrix, bias))
        return torch.sigmoid(functional.linear(hidden, *last))[:, 0]


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
