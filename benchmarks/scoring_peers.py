"""Ours and every other way to score the same files on one machine; each writes `device_id`, `probability`.

Each is a context: entered, it does what a user does once; what it hands out scores files into a folder, as
often as wanted. Those that need Spark use the session that runs. As a program, one of them in a new process:

    python -m benchmarks.scoring_peers NAME --world WORLD_JSON --out DIR [--master MASTER] [--told]
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from benchmarks.plain_model import MISSING, RESERVED, UNKNOWN, PlainModel, plain_model
from benchmarks.scoring_world import FIELDS, World
from pipelines.steps.scoring import worker_daemon
from pipelines.steps.scoring.predictions import PARQUET_OPTIONS, score_files

SLOTS = 2
SCORED = "device_id string, probability float"
ARROW_ROWS = "spark.sql.execution.arrow.maxRecordsPerBatch"
SEPARATOR = "\x1f"
"""Between the tokens of a list that is handed over as one string."""
SETTINGS = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.maxResultSize": "0",  # for what is pulled out
    "spark.driver.memory": "4g",  # pull_out holds the rows of a file in it
    "spark.log.level": "ERROR",
    "spark.python.daemon.module": worker_daemon.__name__,
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.session.timeZone": "UTC",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
"""Settings of every Spark session here, ours and theirs: those of resources/spark.py that matter."""
SHORT_LIVED = {"spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}
"""Settings of a session that scores once: what the second compiler optimizes would hardly run again."""

Job = Callable[[Sequence[Path], Path], None]
"""Scores Parquet files of feature tokens into a folder."""


@dataclass(frozen=True)
class Peer:
    """One way to score.

    Attributes:
        setting: How it is set, in a line.
        module: The package that it needs.
        job: Bundle → the context whose value scores.
        of_sample: Too slow for all rows: it scores the sample's.
        starts_itself: Needs no Spark, so that a process of its own can be compared with one of ours.
    """

    setting: str
    module: str
    job: Callable[[Path], AbstractContextManager[Job]]
    of_sample: bool = False
    starts_itself: bool = False


def spark_session(master: str = f"local[{SLOTS}]", settings: Mapping[str, str] = SETTINGS) -> SparkSession:
    """A plain session: no dagster, which a process that only scores does not load."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    return SparkSession.builder.master(master).config(map=dict(settings)).getOrCreate()


def _read(files: Sequence[Path]) -> DataFrame:
    # no peer reads what tokens weigh: neither does the bundle that they are compared with
    return SparkSession.active().read.parquet(*map(str, files)).select("device_id", *(f.name for f in FIELDS))


def _write(scored: DataFrame, out: Path) -> None:
    """Writes scores as our lake does; theirs and ours alike."""
    scored.write.options(**PARQUET_OPTIONS).mode("overwrite").parquet(str(out))


# --- in Spark -------------------------------------------------------------------------------------


@contextmanager
def ours(bundle: Path) -> Iterator[Job]:
    """The reader in the task, as the predictions asset uses it."""

    def score(files: Sequence[Path], out: Path) -> None:
        scored = score_files(SparkSession.active(), files, {"buyers": bundle})
        _write(scored.select("device_id", "probability"), out)

    yield score


@contextmanager
def predict_batch_udf(bundle: Path) -> Iterator[Job]:
    """Spark's own batch inference. It takes numbers and strings, not lists of strings.

    So each list goes over as one string, which the worker splits: 34 µs of CPU a row. Measured beside it:
    lists of 64-bit hashes, made and padded by Spark, 38–43; ids looked up in an `arrow_udf` and padded, 44;
    ids looked up by Spark in a broadcast map did not end, as it compares one key after the other.
    """
    from pyspark.ml.functions import predict_batch_udf as batch_udf
    from pyspark.sql.types import FloatType

    names = plain_model(bundle).names

    def load() -> Callable[..., np.ndarray]:
        model = plain_model(bundle)

        # Seven by name: Spark counts the parameters to know how many columns there are.
        def predict(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any) -> np.ndarray:
            joined = [pa.array(column.reshape(-1), pa.string()) for column in (a, b, c, d, e, f, g)]
            return model.score(pa.table([_split(column) for column in joined], names=model.names))

        return predict

    scored = batch_udf(load, return_type=FloatType(), batch_size=10_000)
    joined = [_join(name) for name in names]

    def score(files: Sequence[Path], out: Path) -> None:
        with _arrow_rows(10_000):
            _write(_read(files).select("device_id", scored(*joined).alias("probability")), out)

    yield score


@contextmanager
def mlflow_spark_udf(bundle: Path) -> Iterator[Job]:
    """A pyfunc model in Spark. Each list as one string: 39 µs of CPU a row; as a list: 210."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    names = plain_model(bundle).names

    class Model(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def load_context(self, context: Any) -> None:
            self.model = plain_model(Path(context.artifacts["bundle"]))

        # No type hints: mlflow would read a schema out of them.
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
            columns = [_split(pa.array(model_input[name], pa.string())) for name in self.model.names]
            return self.model.score(pa.table(columns, names=self.model.names))

    signature = ModelSignature(
        Schema([ColSpec(DataType.string, name) for name in names]), Schema([ColSpec(DataType.float)])
    )
    joined = [_join(name).alias(name) for name in names]
    with TemporaryDirectory() as directory:
        saved = str(Path(directory) / "model")
        mlflow.pyfunc.save_model(
            saved,
            python_model=Model(),
            artifacts={"bundle": str(bundle)},
            signature=signature,
            pip_requirements=[],
        )
        scored = mlflow.pyfunc.spark_udf(
            SparkSession.active(), saved, result_type="float", env_manager="local"
        )

        def score(files: Sequence[Path], out: Path) -> None:
            with _arrow_rows(10_000):
                _write(_read(files).select("device_id", scored(*joined).alias("probability")), out)

        yield score


def _join(name: str) -> Column:
    return F.array_join(name, SEPARATOR)


def _split(joined: pa.Array) -> pa.Array:
    """Strings → lists of tokens; an empty string is an empty list."""
    lists = pc.split_pattern(joined, SEPARATOR)
    return pc.if_else(pc.equal(joined, ""), pa.scalar([], lists.type), lists)


@contextmanager
def _arrow_rows(rows: int) -> Iterator[None]:
    """While it lasts, Spark hands batches of this many rows to Python."""
    conf = SparkSession.active().conf
    conf.set(ARROW_ROWS, rows)
    try:
        yield
    finally:
        conf.unset(ARROW_ROWS)


@contextmanager
def map_in_arrow(bundle: Path) -> Iterator[Job]:
    """What a good engineer writes by hand.

    Batches of 50,000 rows, as `index_in` builds its table at every call: 25 µs of CPU a row; of 10,000, 27.
    """

    def score_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        model = plain_model(bundle)
        for batch in batches:
            columns = [batch.column("device_id"), pa.array(model.score(batch))]
            yield pa.RecordBatch.from_arrays(columns, names=["device_id", "probability"])

    def score(files: Sequence[Path], out: Path) -> None:
        with _arrow_rows(50_000):
            _write(_read(files).mapInArrow(score_batches, SCORED), out)

    yield score


@contextmanager
def row_udf(bundle: Path) -> Iterator[Job]:
    """A plain Python UDF, called for every row."""
    names = plain_model(bundle).names

    @F.udf("float")
    def scored(*row: list[str] | None) -> float:
        return row_model(bundle).score(row)

    def score(files: Sequence[Path], out: Path) -> None:
        _write(_read(files).select("device_id", scored(*names).alias("probability")), out)

    yield score


class RowModel:
    """The network for one row at a time.

    One embedding bag over one table of all fields: 105 µs of CPU a row; a bag per field takes 275, the mean
    of looked-up rows per field 170.
    """

    def __init__(self, bundle: Path) -> None:
        model = PlainModel(bundle)
        starts = np.cumsum([0, *(len(weight) for weight in model.embeddings)]).tolist()
        self._fields = [
            (
                {token: number for number, token in enumerate(tokens.to_pylist(), start + RESERVED)},
                start,
                width,
            )
            for tokens, start, width in zip(model.tokens, starts[:-1], model.widths, strict=True)
        ]
        self._weight = torch.cat(model.embeddings)
        self._layers = model.layers

    @torch.inference_mode()
    def score(self, row: Sequence[Sequence[str] | None]) -> float:
        ids: list[int] = []
        offsets = [0]
        for tokens, (numbers, start, width) in zip(row, self._fields, strict=True):
            unknown = start + UNKNOWN
            ids += [numbers.get(token, unknown) for token in (tokens or ())[:width]] or [start + MISSING]
            offsets.append(len(ids))
        hidden = functional.embedding_bag(
            torch.tensor(ids), self._weight, torch.tensor(offsets), mode="mean", include_last_offset=True
        ).reshape(-1)
        *inner, last = self._layers
        for weight, bias in inner:
            hidden = functional.linear(hidden, weight, bias).relu_()
        return float(torch.sigmoid(functional.linear(hidden, *last)))


@lru_cache(maxsize=1)
def row_model(bundle: Path) -> RowModel:
    torch.set_num_threads(1)
    return RowModel(bundle)


# --- out of Spark and back ------------------------------------------------------------------------


@contextmanager
def pull_out(bundle: Path) -> Iterator[Job]:
    """The published "before": rows pulled out of Spark, scored in one process, scores put back.

    Pulled file by file, so that the driver never holds all: 27 µs of CPU a row; written to local Parquet by
    Spark and read again, 44. A DataLoader that fetches batches takes 5 µs, one that fetches rows 11.
    """
    model = plain_model(bundle)

    def score(files: Sequence[Path], out: Path) -> None:
        parts = []
        for file in files:
            table = _read([file]).toArrow()
            bags = Bags([model.encode(name, table.column(name)) for name in model.names])
            loader: Any = DataLoader(bags, batch_size=1_024, collate_fn=list)
            scores = [
                model.probabilities([model.pool(n, *bag) for n, bag in zip(model.names, batch, strict=True)])
                for batch in loader
            ]
            columns = {"device_id": table.column("device_id"), "probability": np.concatenate(scores)}
            parts.append(pa.table(columns))
        scored: Any = pa.concat_tables(parts)
        _write(SparkSession.active().createDataFrame(scored), out)

    yield score


Bag = tuple[np.ndarray, np.ndarray]
"""Ids [tokens] and lengths [rows]."""


class Bags(Dataset[Bag]):
    """Rows of encoded tokens, which a DataLoader fetches by the batch."""

    def __init__(self, bags: Sequence[Bag]) -> None:
        self._fields = [(ids, np.concatenate([[0], np.cumsum(lengths)])) for ids, lengths in bags]

    def __len__(self) -> int:
        return len(self._fields[0][1]) - 1

    def __getitems__(self, rows: Sequence[int]) -> list[Bag]:
        """Neighbouring rows, as nothing is shuffled."""
        first, end = rows[0], rows[-1] + 1
        return [
            (ids[offsets[first] : offsets[end]], np.diff(offsets[first : end + 1]))
            for ids, offsets in self._fields
        ]


# --- without Spark --------------------------------------------------------------------------------


@contextmanager
def ray_data(bundle: Path) -> Iterator[Job]:
    """Tasks of a file each, by the older reader: 18 µs of CPU a row.

    By itself Ray cuts the files into many small blocks: 34 µs; the newer reader takes 57. Two actors of one
    core each leave none to read with, and wait for ever.
    """
    import ray
    import ray.data

    def score_batch(batch: pa.Table) -> pa.Table:
        scores = plain_model(bundle).score(batch)
        return pa.table({"device_id": batch.column("device_id"), "probability": scores})

    def score(files: Sequence[Path], out: Path) -> None:
        blocks = max(len(files), SLOTS)
        columns = ["device_id", *(field.name for field in FIELDS)]
        read = ray.data.read_parquet(
            [str(file) for file in files], columns=columns, override_num_blocks=blocks
        )
        scored = read.map_batches(score_batch, batch_format="pyarrow", batch_size=16_384)
        scored.write_parquet(str(out), mode="overwrite")

    ray.init(num_cpus=SLOTS, include_dashboard=False, log_to_driver=False, logging_level="error")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.use_datasource_v2 = False
    try:
        yield score
    finally:
        ray.shutdown()


@contextmanager
def daft(bundle: Path) -> Iterator[Job]:
    """A function in daft's own threads: 17 µs of CPU a row.

    A class with `max_concurrency` is how its documentation loads a model, but that starts two processes at
    every query, 7 s of CPU. Batches of 50,000 rows, 16,384 or whatever daft chooses: 16, 18 and 19 µs.
    """
    import daft as df

    names = plain_model(bundle).names
    lists = pa.list_(
        pa.string()
    )  # daft's are large ones, of large strings, in which `index_in` finds nothing

    @df.func.batch(  # type: ignore[untyped-decorator]
        return_dtype=df.DataType.float32(), batch_size=50_000, use_process=False
    )
    def score_batch(*columns: Any) -> np.ndarray:
        batch = pa.table([column.to_arrow().cast(lists) for column in columns], names=names)
        return plain_model(bundle).score(batch)

    def score(files: Sequence[Path], out: Path) -> None:
        read = df.read_parquet([str(file) for file in files])
        scored = score_batch(*[read[name] for name in names]).alias("probability")
        read.select(read["device_id"], scored).write_parquet(str(out), write_mode="overwrite")

    df.set_runner_native()
    yield score


OURS = Peer("score_files, defaults", "pyspark", ours)
PEERS: Mapping[str, Peer] = {
    "predict_batch_udf": Peer(
        "each list one string, split in the worker; batches of 10,000", "pyspark", predict_batch_udf
    ),
    "mlflow_spark_udf": Peer(
        "each list one string, split in the model; env_manager=local; batches of 10,000",
        "mlflow",
        mlflow_spark_udf,
    ),
    "map_in_arrow": Peer("index_in, embedding_bag, one thread; batches of 50,000", "pyspark", map_in_arrow),
    "row_udf": Peer(
        "plain UDF, dictionaries, one embedding_bag a row; a sample of the rows",
        "pyspark",
        row_udf,
        of_sample=True,
    ),
    "pull_out": Peer(
        "toArrow file by file, DataLoader in the driver, batches of 1,024 rows", "torch", pull_out
    ),
    "ray_data": Peer(
        "tasks, a block per file; batches of 16,384 Arrow rows; the older reader",
        "ray",
        ray_data,
        starts_itself=True,
    ),
    "daft": Peer(
        "native runner, batch function in its threads; batches of 50,000 rows",
        "daft",
        daft,
        starts_itself=True,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Scores once, start included; `--told`: once for every line read, printing the wall seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "name", choices=["ours", *(name for name, peer in PEERS.items() if peer.starts_itself)]
    )
    parser.add_argument("--world", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--master", default=f"local[{SLOTS}]", help="of ours")
    parser.add_argument("--told", action="store_true", help="stay, and score for every line read")
    options = parser.parse_args(arguments)
    world = World.load(options.world)
    if options.name == "ours":
        spark_session(options.master, SETTINGS if options.told else SETTINGS | SHORT_LIVED)
    peer = OURS if options.name == "ours" else PEERS[options.name]
    with peer.job(world.bundle) as score:
        if not options.told:
            score(world.files, options.out)
        for _ in sys.stdin if options.told else ():
            started = time.perf_counter()
            score(world.files, options.out)
            print(time.perf_counter() - started, flush=True)
    if options.name == "ours":
        SparkSession.active().stop()
    return 0


if __name__ == "__main__":
    finished = main()
    sys.stdout.flush()
    os._exit(finished)  # daft's threads now and then abort a process whose Python ends as usual
