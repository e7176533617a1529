"""The same training on many machines, started by Spark: TorchDistributor, and XGBoost's own estimator.

For training sets that one machine does not train on in time. On one machine they cost more than they save.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.steps.errors import TrainingError
from pipelines.steps.labels.training_rows import TRAIN, VALIDATION, TrainingFiles
from pipelines.steps.models.dnn_model import DnnConfig, TrainedDnn
from pipelines.steps.models.xgboost_model import TrainedXGBoost, XGBoostConfig


def train_dnn_distributed(
    paths: Sequence[Path],
    vocabulary_sizes: Mapping[str, int],
    config: DnnConfig,
    *,
    processes: int,
    local: bool,
    streamed: bool = False,
) -> TrainedDnn:
    """`train_dnn` in several processes, each with its part of every batch; needs an active Spark session.

    Gradients are summed before each step, so all processes hold the same weights: those of one process, but
    for rounding and for what dropout draws.

    Args:
        paths: Files of the training set, readable by every process.
        vocabulary_sizes: Field name → number of ids, in field order.
        config: How.
        processes: How many; on a cluster, as many tasks run at once.
        local: On this machine, rather than on executors.
        streamed: Whether rows are read anew in every epoch, rather than held in memory.

    Raises:
        TrainingError: A process failed; says what it printed last.
    """
    from pyspark.ml.torch.distributor import TorchDistributor

    distributor = TorchDistributor(num_processes=processes, local_mode=local, use_gpu=config.device == "cuda")
    try:
        trained = distributor.run(_train_part, list(paths), dict(vocabulary_sizes), config, streamed)
    except RuntimeError as error:
        raise TrainingError(
            "the network could not be trained in several processes",
            found=str(error),
            expected=f"{processes} processes that all end",
            remedy="look at the log of the first that failed; or train in one process",
        ) from error
    if not isinstance(trained, TrainedDnn):  # what came back through a file of the distributor's
        raise TrainingError(
            "training in several processes gave no network",
            found=type(trained).__name__,
            expected=TrainedDnn.__name__,
            remedy="look at the log of the first process; or train in one process",
        )
    return trained


def _train_part(
    paths: Sequence[Path], vocabulary_sizes: Mapping[str, int], config: DnnConfig, streamed: bool
) -> TrainedDnn:
    """What each process does; that of rank 0 is the answer."""
    from torch import distributed

    from pipelines.steps.models.dnn_training import train_dnn

    distributed.init_process_group("nccl" if config.device == "cuda" else "gloo")
    try:
        rank = distributed.get_rank()
        files = TrainingFiles(paths, list(vocabulary_sizes))
        return train_dnn(
            files if streamed else files.read([TRAIN, VALIDATION]),
            vocabulary_sizes,
            config,
            # what a process prints is what the distributor hands to the log
            lambda report: print(report, flush=True) if rank == 0 else None,  # noqa: T201
        )
    finally:
        distributed.destroy_process_group()


def train_xgboost_distributed(
    rows: DataFrame, vocabulary_sizes: Mapping[str, int], config: XGBoostConfig, *, workers: int
) -> TrainedXGBoost:
    """Trees grown by `xgboost.spark`, each worker on its part of the rows.

    Args:
        rows: `label`, `split` and one array<int> column per field.
        vocabulary_sizes: Field name → number of ids, in field order.
        config: How.
        workers: Tasks that run at once.
    """
    from xgboost.spark import SparkXGBClassifier

    used = rows.where(F.col("split").isin(TRAIN, VALIDATION)).select(
        "label",
        (F.col("split") == VALIDATION).alias("validation"),
        _token_counts(vocabulary_sizes).alias("features"),
    )
    estimator = SparkXGBClassifier(
        features_col="features",
        label_col="label",
        validation_indicator_col="validation",
        enable_sparse_data_optim=True,
        missing=0.0,
        num_workers=workers,
        tree_method="hist",
        eval_metric="auc",
        n_estimators=config.max_rounds,
        early_stopping_rounds=config.patience,
        learning_rate=config.learning_rate,
        max_depth=config.max_depth,
        min_child_weight=config.min_child_weight,
        reg_lambda=config.l2_regularization,
        subsample=config.row_share,
        colsample_bytree=config.column_share,
        random_state=config.seed,
    )
    model = estimator.fit(used)
    booster = model.get_booster()
    curve = model.training_summary.validation_objective_history["auc"]
    best_round = booster.best_iteration + 1
    return TrainedXGBoost(booster[:best_round], config, tuple(curve), best_round)


def _token_counts(vocabulary_sizes: Mapping[str, int]) -> Column:
    """What `count_matrix` gives of a row, as the sparse vector that `xgboost.spark` reads."""
    from pyspark.ml.linalg import SparseVector, VectorUDT

    *firsts, width = accumulate(vocabulary_sizes.values(), initial=0)

    def counts(*bags: list[int]) -> Any:
        found: dict[int, float] = {}
        for first, bag in zip(firsts, bags, strict=True):
            for token_id in bag:
                found[first + token_id] = found.get(first + token_id, 0.0) + 1.0
        return SparseVector(width, found)

    return F.udf(counts, VectorUDT())(*vocabulary_sizes)
