"""Training in several processes gives what one gives; rows streamed from files train as those in memory."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from pipelines.steps.errors import TrainingError
from pipelines.steps.features.feature_vocabulary import FieldVocabulary
from pipelines.steps.labels.training_rows import TEST, TRAIN, VALIDATION, TrainingFiles
from pipelines.steps.models import dnn_batches
from pipelines.steps.models.distributed_training import train_dnn_distributed
from pipelines.steps.models.dnn_config import DnnConfig
from pipelines.steps.models.dnn_training import train_dnn
from pipelines.steps.models.model_columns import cumulative_columns

SIZES = {"apps": 20, "behaviour": 6}
ROWS = 1_501
"""So that the last batch cannot be divided evenly."""
CONFIG = DnnConfig(
    embedding_dim=4,
    hidden=(8,),
    dropout=0.0,
    embedding_dropout=0.0,
    token_dropout=0.3,
    members=2,
    max_epochs=2,
    batch_rows=100,
    device="cpu",
    seed=5,
)
"""Dropout draws other numbers in each process; leaving out tokens does not."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    random = np.random.default_rng(0)
    apps = [random.integers(2, 20, size=random.integers(1, 6)).tolist() for _ in range(ROWS)]
    labels = [int(random.random() < (0.7 if min(row) < 5 else 0.2)) for row in apps]
    ids = pa.list_(pa.int32())
    table = pa.table(
        {
            "label": pa.array(labels, pa.int8()),
            "split": pa.array(random.choice([TRAIN] * 3 + [VALIDATION, TEST], ROWS), pa.int8()),
            "apps": pa.array(apps, ids),
            "behaviour": pa.array([[int(random.integers(1, 6))] for _ in range(ROWS)], ids),
        }
    )
    home = tmp_path_factory.mktemp("rows")
    for place, start in enumerate([0, 700]):
        part = table.slice(start, 700 if place == 0 else None)
        pq.write_table(part, home / f"{place}.parquet", row_group_size=300)
    return [home / "0.parquet", home / "1.parquet"]


# Spark's distributor leaves the pipe of the processes that it started to the garbage collector.
leaves_a_pipe = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.mark.slow
@leaves_a_pipe
def test_two_processes_train_what_one_does(spark: SparkSession, files: list[Path]) -> None:
    columns = cumulative_columns(
        [
            FieldVocabulary("apps", 5, tuple(f"app-{number}" for number in range(18))),
            FieldVocabulary("behaviour", 1, ("x=0", "x=1", "x=2", "x=3")),
        ]
    )
    rows = TrainingFiles(files, list(SIZES))
    alone = train_dnn(rows, SIZES, CONFIG, columns=columns)
    together = train_dnn_distributed(
        rows, SIZES, CONFIG, processes=2, local=True, streamed=True, columns=columns
    )
    assert alone.multi_hot_fields == together.multi_hot_fields == 1
    assert together.best_epochs == alone.best_epochs
    for name, tensor in alone.state.items():
        np.testing.assert_allclose(together.state[name], tensor, atol=2e-5, err_msg=name)
    aucs = [[report.validation_auc for report in trained.curves] for trained in (alone, together)]
    assert aucs[0] == pytest.approx(aucs[1], abs=1e-3)


@pytest.mark.slow
@leaves_a_pipe
def test_a_process_that_fails_is_told(spark: SparkSession, files: list[Path]) -> None:
    rows = TrainingFiles(files, list(SIZES))
    with pytest.raises(TrainingError, match="could not be trained in several processes"):
        train_dnn_distributed(rows, {"apps": 3, "behaviour": 6}, CONFIG, processes=2, local=True)


def test_streamed_rows_are_all_rows_once(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnn_batches, "SHUFFLED_ROWS", 400)
    rows = TrainingFiles(files, list(SIZES)).read().subset(TRAIN)
    streamed = dnn_batches.RowsInFiles(TrainingFiles(files, list(SIZES)), TRAIN, SIZES)
    whole = dnn_batches.RowsInMemory(rows, TRAIN, SIZES)

    def contents(batches: list[dnn_batches.Batch]) -> list[tuple[float, tuple[int, ...]]]:
        found = []
        for labels, packed in batches:
            bags = np.split(packed.values, packed.offsets[1:-1])
            apps, models = bags[: len(labels)], bags[len(labels) :]
            found += [
                (float(label), (*app.tolist(), *model.tolist()))
                for label, app, model in zip(labels, apps, models, strict=True)
            ]
        return found

    in_order = contents(list(whole.in_order(64)))
    assert contents(list(streamed.in_order(64))) == in_order
    shuffled = [contents(list(streamed.shuffled(64, np.random.default_rng(seed)))) for seed in (1, 1, 2)]
    assert sorted(shuffled[0]) == sorted(in_order)
    assert shuffled[0] == shuffled[1] != shuffled[2]
    assert streamed.labels.tolist() == whole.labels.tolist()


def test_rows_that_fit_one_shuffle_rank_as_well_streamed(files: list[Path]) -> None:
    in_memory = train_dnn(TrainingFiles(files, list(SIZES)).read(), SIZES, CONFIG, lambda _: None)
    streamed = train_dnn(TrainingFiles(files, list(SIZES)), SIZES, CONFIG, lambda _: None)
    best = [max(report.validation_auc for report in trained.curves) for trained in (in_memory, streamed)]
    assert best[0] == pytest.approx(best[1], abs=0.05)


def test_streamed_rows_are_refused_like_any(files: list[Path]) -> None:
    with pytest.raises(TrainingError, match="outside its vocabulary"):
        train_dnn(TrainingFiles(files, list(SIZES)), {"apps": 3, "behaviour": 6}, CONFIG, lambda _: None)
