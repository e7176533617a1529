"""The same training in several processes, started by Spark's TorchDistributor, on one machine or many.

For training sets that one machine does not train on in time. On one machine they cost more than they save.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipelines.steps.errors import TrainingError
from pipelines.steps.labels.training_rows import TRAIN, VALIDATION, TrainingFiles
from pipelines.steps.models.dnn_config import DnnConfig
from pipelines.steps.models.dnn_model import TrainedDnn
from pipelines.steps.progress import working

if TYPE_CHECKING:
    from scipy import sparse


def train_dnn_distributed(
    files: TrainingFiles,
    vocabulary_sizes: Mapping[str, int],
    config: DnnConfig,
    *,
    processes: int,
    local: bool,
    streamed: bool = False,
    epochs: Sequence[int] | None = None,
    columns: "sparse.csr_matrix | None" = None,
) -> TrainedDnn:
    """`train_dnn` in several processes, each with its part of every batch; needs an active Spark session.

    Gradients are summed before each step, so all processes hold the same weights: those of one process, but
    for rounding and for what dropout draws.

    Args:
        files: The training set, readable by every process.
        vocabulary_sizes: Field name → number of ids, in field order.
        config: How.
        processes: How many; on a cluster, as many tasks run at once.
        local: On this machine, rather than on executors.
        streamed: Whether rows are read anew in every epoch, rather than held in memory.
        epochs: As for `train_dnn`.
        columns: As there.

    Raises:
        TrainingError: A process failed; says what it printed last.
    """
    from pyspark.ml.torch.distributor import TorchDistributor

    distributor = TorchDistributor(num_processes=processes, local_mode=local, use_gpu=config.device == "cuda")
    try:
        with working(f"training the networks in {processes} processes"):
            trained = distributor.run(
                _train_part, files, dict(vocabulary_sizes), config, streamed, epochs, columns
            )
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
    files: TrainingFiles,
    vocabulary_sizes: Mapping[str, int],
    config: DnnConfig,
    streamed: bool,
    epochs: Sequence[int] | None,
    columns: "sparse.csr_matrix | None",
) -> TrainedDnn:
    """What each process does; that of rank 0 is the answer."""
    from torch import distributed

    from pipelines.steps.models.dnn_training import train_dnn

    distributed.init_process_group("nccl" if config.device == "cuda" else "gloo")
    try:
        rank = distributed.get_rank()
        return train_dnn(
            files if streamed else files.read([TRAIN, VALIDATION]),
            vocabulary_sizes,
            config,
            # what a process prints is what the distributor hands to the log
            lambda report: print(report, flush=True) if rank == 0 else None,  # noqa: T201
            epochs=epochs,
            columns=columns,
        )
    finally:
        distributed.destroy_process_group()
