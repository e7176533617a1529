"""Training of the audience network, on rows in memory or streamed from files, in one process or several.

What does not belong here: the network (`dnn_model`), its settings (`dnn_config`), and how rows become batches
(`dnn_batches`). Executors never import this.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.nn import functional

from pipelines.steps.errors import TrainingError
from pipelines.steps.labels.training_rows import (
    TRAIN,
    VALIDATION,
    TrainingFiles,
    TrainingRows,
    check_trainable,
    check_vocabulary,
)
from pipelines.steps.models.dnn_batches import (
    SHUFFLED_ROWS,
    Batch,
    Rows,
    RowsInFiles,
    RowsInMemory,
    as_tensors,
    drop_tokens,
)
from pipelines.steps.models.dnn_checkpoint import Checkpoint, State
from pipelines.steps.models.dnn_config import DnnConfig
from pipelines.steps.models.dnn_model import AudienceNet, EpochReport, TrainedDnn, ensemble_of, torch_threads
from pipelines.steps.models.embedding_init import correspondence_embeddings
from pipelines.steps.models.metrics import compute_metrics
from pipelines.steps.models.ranking import measure
from pipelines.steps.models.thermometer_codes import NetworkInputs, ThermometerCodes
from pipelines.steps.progress import Work, beating

if TYPE_CHECKING:
    from scipy import sparse

logger = logging.getLogger(__name__)
SCORING_ROWS = 8_192
"""Rows per forward pass when the validation split is scored between epochs."""
SEEDS_APART = 1_000
"""So that no member of one seed shares its random numbers with a member of another."""


def train_dnn(
    rows: TrainingRows | TrainingFiles,
    vocabulary_sizes: Mapping[str, int],
    config: DnnConfig,
    progress: Callable[[EpochReport], None] = lambda _: None,
    *,
    checkpoint: Path | None = None,
    epochs: Sequence[int] | None = None,
    columns: "sparse.csr_matrix | None" = None,
) -> TrainedDnn:
    """Trains each member on the TRAIN rows, keeps its epoch that ranks the VALIDATION rows best.

    The same rows and config give the same weights; PyTorch's global random state is untouched. Where a
    process group is initialized, each process takes its part of every batch, and all get the same weights.

    Args:
        rows: All splits, in memory or in files; TEST is never read.
        vocabulary_sizes: Field name → number of ids, in field order.
        config: How.
        progress: Called after every epoch; the log tells of each member by itself.
        checkpoint: A file that each epoch is saved to; where it holds a part of this very training,
            the rest follows it, with the same result as uninterrupted; of one that ended, nothing is left
            to do, until the caller removes the file. Where it cannot be read or written, the training warns
            and does without it.
        epochs: Of each member, how many to train it, in a refit: no VALIDATION row is looked at, a training
            before has found the number. None: validation decides.
        columns: The vocabulary's `cumulative_columns`; None: fields of behaviour are pooled as others are.

    Raises:
        TrainingError: The rows are not trainable, or the loss is not finite.
    """
    if epochs is None:
        train, validation = _splits(rows, vocabulary_sizes, [TRAIN, VALIDATION])
    else:
        [train], validation = _splits(rows, vocabulary_sizes, [TRAIN]), None
    inputs = NetworkInputs.of(vocabulary_sizes, columns, config)
    saved = Checkpoint(
        checkpoint, _fingerprint(config, inputs, train, validation, epochs) if checkpoint else ""
    )
    began = time.monotonic()
    # dropout knows no generator of its own, so the global one is borrowed and put back
    with torch_threads(config.threads), torch.random.fork_rng():
        runs = []
        start = _initial_embeddings(train, config, inputs)
        for member in range(1, config.members + 1):
            wanted = None if epochs is None else epochs[member - 1]
            run = _MemberRun.resumed(member, config, inputs, start, saved, wanted)
            with beating(Work(f"training network {member} of {config.members}", run.last_report)) as work:
                while not run.finished:
                    report = run.epoch(train, validation)
                    progress(report)
                    run.save(saved)
            logger.info("network %d of %d: %s, %.1f s", member, config.members, run, work.seconds)
            runs.append(run)
    passes, seconds = sum(len(run.curve) for run in runs), time.monotonic() - began
    logger.info("%d networks trained: %d epochs, %.1f s", len(runs), passes, seconds)
    return TrainedDnn(
        ensemble_of([inputs.stored(run.best_state) for run in runs]),
        config,
        tuple(report for run in runs for report in run.curve),
        tuple(run.best_epoch for run in runs),
        inputs.multi_hot_fields,
    )


def tune_dnn(
    rows: TrainingRows | TrainingFiles,
    vocabulary_sizes: Mapping[str, int],
    config: DnnConfig,
    weight_decays: Sequence[float],
    progress: Callable[[EpochReport], None] = lambda _: None,
    *,
    checkpoint: Path | None = None,
    columns: "sparse.csr_matrix | None" = None,
) -> TrainedDnn:
    """Trains with each weight decay, keeps the networks that rank the VALIDATION rows best.

    Args:
        rows: As for `train_dnn`.
        vocabulary_sizes: As there.
        config: What each decay changes.
        weight_decays: One is no tuning; the first of equals is kept.
        progress: As there.
        checkpoint: As there; a file of its own for each decay, whose names begin alike.
        columns: As there.
    """
    tried = []
    for decay in weight_decays:
        own = replace(config, weight_decay=decay)
        saved = checkpoint and checkpoint.with_stem(f"{checkpoint.stem}-{decay:g}")
        trained = train_dnn(rows, vocabulary_sizes, own, progress, checkpoint=saved, columns=columns)
        logger.info("weight decay %g: validation %s %.4f", decay, config.metric, trained.best_metric)
        tried.append(trained)
    return max(tried, key=lambda trained: trained.best_metric)


def _splits(
    rows: TrainingRows | TrainingFiles, vocabulary_sizes: Mapping[str, int], splits: Sequence[int]
) -> list[Rows]:
    if isinstance(rows, TrainingFiles):
        rows.check(vocabulary_sizes, splits)
        return [RowsInFiles(rows, split, vocabulary_sizes) for split in splits]
    check_trainable(rows, splits)
    check_vocabulary(rows.bags, vocabulary_sizes)
    return [RowsInMemory(rows, split, vocabulary_sizes) for split in splits]


def _initial_embeddings(train: Rows, config: DnnConfig, inputs: NetworkInputs) -> np.ndarray | None:
    """float32 [V, D], or None; of SHUFFLED_ROWS rows at most, which tell of any token that is not rare.

    Behaviour tells which tokens are alike, too, where it is not pooled itself.
    """
    if config.embedding_init == 0:
        return None
    labels, packed = next(train.shuffled(SHUFFLED_ROWS, np.random.default_rng(config.seed)))
    points = correspondence_embeddings(packed, len(labels), sum(inputs.sizes), config.embedding_dim)
    return points[: inputs.pooled_ids] * np.float32(config.embedding_init)


@dataclass(frozen=True)
class _Ranks:
    """Which of how many processes this is that train together."""

    rank: int
    size: int

    @classmethod
    def current(cls) -> "_Ranks":
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls(0, 1)
        return cls(distributed.get_rank(), distributed.get_world_size())

    def shard(self, batch: Batch) -> Batch:
        """Every so-many-th row; all of them in one process."""
        if self.size == 1:
            return batch
        labels, packed = batch
        mine = np.arange(self.rank, len(labels), self.size)
        fields = packed.rows // len(labels)
        return labels[mine], packed.take((np.arange(fields)[:, None] * len(labels) + mine).ravel())

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over all processes."""
        if self.size > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)


class _MemberRun:
    """The training of one member: all that changes from epoch to epoch."""

    def __init__(
        self,
        member: int,
        config: DnnConfig,
        inputs: NetworkInputs,
        start: np.ndarray | None,
        epochs: int | None = None,
    ) -> None:
        self.member, self.config, self.inputs, self.epochs = member, config, inputs, epochs
        self.device = _device(config.device)
        self.ranks = _Ranks.current()
        seed = config.seed * SEEDS_APART + member
        torch.manual_seed(seed)
        self.random = np.random.default_rng(seed)
        single = {**config.architecture, "members": 1}
        self.network = AudienceNet(
            inputs.sizes,
            **single,  # type: ignore[arg-type]
            multi_hot_fields=inputs.multi_hot_fields,
            dropout=config.dropout,
            embedding_dropout=config.embedding_dropout,
            embedding_init_std=config.embedding_init_std,
        )
        if inputs.columns is not None:
            self.network.multi_hot = ThermometerCodes(inputs.columns, self.network.width)
        self.network.to(self.device)
        if start is not None:
            self.network.embeddings.data += torch.from_numpy(start).to(self.device)
        parameter_groups: list[dict[str, Any]] = [
            {"params": [self.network.embeddings], "eps": config.embedding_eps},
            {"params": list(self.network.feed_forward.parameters())},
        ]
        others = (self.network.multi_hot, self.network.token_weights)
        parameter_groups += [{"params": list(part.parameters())} for part in others if part is not None]
        self.optimizer = torch.optim.AdamW(
            parameter_groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.steps = 0
        self.averaged = _copy_state(self.network)
        self.curve: list[EpochReport] = []
        self.best_metric, self.best_epoch, self.best_state = -math.inf, 0, _copy_state(self.network)
        if self.ranks.size > 1:
            torch.manual_seed(seed + SEEDS_APART * SEEDS_APART * (1 + self.ranks.rank))  # of dropout

    def __str__(self) -> str:
        if self.epochs is not None:
            return f"{len(self.curve)} epochs, as found"
        best = f"{self.config.metric} {self.best_metric:.4f} in epoch {self.best_epoch}"
        return f"{len(self.curve)} epochs, validation {best}"

    def last_report(self) -> str:
        """The newest point of its curve, for the log."""
        return str(self.curve[-1]) if self.curve else ""

    @property
    def finished(self) -> bool:
        epochs = len(self.curve)
        if self.epochs is not None:
            return epochs >= self.epochs
        return epochs >= self.config.max_epochs or epochs - self.best_epoch >= self.config.patience

    def epoch(self, train: Rows, validation: Rows | None) -> EpochReport:
        train_loss, number = self._pass(train), len(self.curve) + 1
        report = (
            self._validated(number, train_loss, validation)
            if validation
            else EpochReport(self.member, number, train_loss)
        )
        if report.best_so_far:
            self.best_metric, self.best_epoch = report.validation_metric, number
            self.best_state = {name: tensor.clone() for name, tensor in self._kept().items()}
        self.curve.append(report)
        return report

    def _validated(self, number: int, train_loss: float, validation: Rows) -> EpochReport:
        labels, probabilities = validation.labels, self._probabilities(validation)
        metrics = compute_metrics(labels, probabilities)
        found = measure(self.config.metric, labels, probabilities)
        gained = found > self.best_metric
        return EpochReport(self.member, number, train_loss, gained, metrics.log_loss, metrics.auc, found)

    def _pass(self, train: Rows) -> float:
        """One pass over the rows in a new order; the mean loss."""
        self.network.train()
        parameters = list(self.network.parameters())
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        size = self.config.rows_per_step(train.count)
        for batch in train.shuffled(size, self.random):
            total += self._step(batch, parameters)
        self.ranks.all_reduce([total])
        mean = float(total) / train.count
        if not math.isfinite(mean):
            raise TrainingError(
                f"the training loss is not finite in epoch {len(self.curve) + 1}",
                found=mean,
                expected="a finite loss",
                remedy=f"lower learning_rate, now {self.config.learning_rate}",
            )
        return mean

    def _step(self, batch: Batch, parameters: Sequence[Tensor]) -> Tensor:
        """Takes one step on a batch; the sum of the losses of this process's part of it."""
        if self.config.token_dropout > 0:
            batch = batch[0], drop_tokens(batch[1], self.config.token_dropout, self.random)
        labels, packed = self.ranks.shard(batch)
        logits = self.network(as_tensors(packed, self.device))
        loss = functional.binary_cross_entropy_with_logits(
            logits, torch.from_numpy(labels).to(self.device), reduction="sum"
        )
        self.optimizer.zero_grad(set_to_none=True)
        (loss / len(batch[0])).backward()
        self.ranks.all_reduce([parameter.grad for parameter in parameters if parameter.grad is not None])
        self.optimizer.step()
        self.steps += 1
        if self.config.ema_decay > 0:
            # The average of few weights must not remember where they began.
            decay = min(self.config.ema_decay, self.steps / (10 + self.steps))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.averaged.values()), list(parameters), 1 - decay)
        return loss.detach()

    def _kept(self) -> dict[str, Tensor]:
        """The weights that are validated and kept."""
        if self.config.ema_decay > 0:
            return self.averaged
        return {name: parameter.detach() for name, parameter in self.network.named_parameters()}

    @torch.inference_mode()
    def _probabilities(self, rows: Rows) -> np.ndarray:
        """float32 [rows], of the weights that are kept."""
        self.network.eval()
        kept = self._kept()
        logits = [
            torch.func.functional_call(self.network, kept, (as_tensors(packed, self.device),))
            for _, packed in rows.in_order(SCORING_ROWS)
        ]
        return torch.sigmoid(torch.cat(logits)).cpu().numpy()

    def save(self, checkpoint: Checkpoint) -> None:
        """What the rest of the training depends on; of a finished member, only its result."""
        if self.ranks.rank > 0:
            return
        state: dict[str, Any] = {
            "curve": [asdict(report) for report in self.curve],
            "best": (self.best_metric, self.best_epoch, self.best_state),
        }
        if not self.finished:
            state |= {
                "network": self.network.state_dict(),
                "averaged": self.averaged,
                "optimizer": self.optimizer.state_dict(),
                "steps": self.steps,
                "numpy_random": self.random.bit_generator.state,
                "torch_random": torch.get_rng_state(),
            }
            if self.device == "cuda":
                state["cuda_random"] = torch.cuda.get_rng_state()
        checkpoint.save(self.member, state)

    @classmethod
    def resumed(
        cls,
        member: int,
        config: DnnConfig,
        inputs: NetworkInputs,
        start: np.ndarray | None,
        checkpoint: Checkpoint,
        epochs: int | None,
    ) -> "_MemberRun":
        """The training of a member where its checkpoint left it; from its beginning, where there is none."""
        run, state = cls(member, config, inputs, start, epochs), checkpoint.state_of(member)
        if state is None:
            return run
        try:
            run._take_up(state)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            checkpoint.distrust(error)
            return cls(member, config, inputs, start, epochs)  # the other one is restored in part
        return run

    def _take_up(self, state: State) -> None:
        self.curve = [EpochReport(**report) for report in state["curve"]]
        self.best_metric, self.best_epoch, best = state["best"]
        self.best_state = self._restored(best)
        if self.finished:
            return
        self.network.load_state_dict(state["network"])
        self.averaged = self._restored(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
        self.random.bit_generator.state = state["numpy_random"]
        torch.set_rng_state(state["torch_random"])
        if self.device == "cuda":
            torch.cuda.set_rng_state(state["cuda_random"])

    def _restored(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        expected = {name: parameter.shape for name, parameter in self.network.named_parameters()}
        found = {name: tensor.shape for name, tensor in tensors.items()}
        if found != expected:
            raise ValueError(f"tensors {found}, not {expected}")
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}


def _fingerprint(
    config: DnnConfig,
    inputs: NetworkInputs,
    train: Rows,
    validation: Rows | None,
    epochs: Sequence[int] | None,
) -> str:
    machine = _device(config.device), torch.__version__
    content = hashlib.sha256(repr((config, list(inputs.sizes), epochs, *machine)).encode())
    for rows in (train, validation):
        content.update(rows.fingerprint() if rows else b"")
    if inputs.columns is not None:
        for array in (inputs.columns.indptr, inputs.columns.indices, inputs.columns.data):
            content.update(array.tobytes())
    return content.hexdigest()


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def _copy_state(network: AudienceNet) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
