"""The audience network and its training: an embedding per field, averaged, then feed-forward.

The whole network is in this file. Spark executors import it to score, so nothing that only
training needs (scikit-learn) is imported at the top.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pipelines.steps.errors import DataError, TrainingError
from pipelines.steps.feature_vocabulary import EncodedRows, Ragged
from pipelines.steps.training_rows import (
    TRAIN,
    VALIDATION,
    TrainingRows,
    check_trainable,
    check_vocabulary,
)

Pooling = Literal["mean", "sqrt_n"]
Bags = Sequence[tuple[Tensor, Tensor]]
"""Per field: ids [tokens] and offsets [rows + 1], both int32, the last offset being `tokens`."""

EMBEDDING_EPSILON = 1e-4
"""Adam's epsilon on embeddings. At the usual 1e-8 a token seen once moves as far as one seen a
thousand times, and the best epoch is the first or second (the exploration in issue 4)."""
SCORING_ROWS = 8_192
"""Rows per forward pass when the validation split is scored between epochs."""


class AudienceNet(nn.Module):
    """Per-field mean embedding → concatenation → ReLU/dropout layers → one logit.

    B rows, F fields, D embedding width, N_f tokens of field f in the batch, V_f ids of field f.

    Args:
        vocabulary_sizes: V_f of every field, in field order.
        embedding_dim: D.
        hidden: Width of each hidden layer.
        dropout: Share of hidden activations dropped in training.
        pooling: "mean", or "sqrt_n" (the sum over √n, which lets long lists weigh more).
        embedding_init_sd: Standard deviation of the initial embeddings.
    """

    def __init__(
        self,
        vocabulary_sizes: Sequence[int],
        *,
        embedding_dim: int,
        hidden: Sequence[int],
        dropout: float = 0.0,
        pooling: Pooling = "mean",
        embedding_init_sd: float = 0.01,
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "sqrt_n"):
            raise ValueError(f"pooling is 'mean' or 'sqrt_n', not {pooling!r}")
        self.pooling = pooling
        self.embeddings = nn.ParameterList(  # V_f × D each
            nn.Parameter(nn.init.normal_(torch.empty(size, embedding_dim), std=embedding_init_sd))
            for size in vocabulary_sizes
        )
        layers: list[nn.Module] = []
        width = len(vocabulary_sizes) * embedding_dim
        for next_width in hidden:
            layers += [nn.Linear(width, next_width), nn.ReLU(), nn.Dropout(dropout)]
            width = next_width
        self.feed_forward = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, bags: Bags) -> Tensor:
        """Logits.

        Args:
            bags: F pairs of ids [N_f] and offsets [B + 1]; see `to_tensors`.

        Returns:
            [B]
        """
        pooled = [  # F tensors of B × D
            self._pool(weight, ids, offsets)
            for weight, (ids, offsets) in zip(self.embeddings, bags, strict=True)
        ]
        logits: Tensor = self.feed_forward(torch.cat(pooled, dim=1))  # B × F·D → B × 1
        return logits.squeeze(1)

    def _pool(self, weight: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
        """[N_f], [B + 1] → B × D"""
        if self.pooling == "mean":
            return functional.embedding_bag(ids, weight, offsets, mode="mean", include_last_offset=True)
        total = functional.embedding_bag(ids, weight, offsets, mode="sum", include_last_offset=True)
        return total / offsets.diff().clamp(min=1).sqrt().unsqueeze(1)


class uninitialized(TorchFunctionMode):  # noqa: N801 (a context, like torch.device)
    """Modules built in this context keep whatever memory they were given: their weights come from a file.

    On the meta device nothing is drawn anyway, but to find that out torch would import its compiler (2 s).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class DnnConfig:
    """How the network is built and trained.

    Attributes:
        embedding_dim: Width of every embedding.
        hidden: Width of each hidden layer.
        dropout: Share of hidden activations dropped in training.
        pooling: How a row's embeddings become one.
        embedding_init_sd: Standard deviation of the initial embeddings.
        token_dropout: Share of a row's tokens left out in training; at least one always stays.
        max_epochs: Epochs at most.
        patience: Epochs without gain in validation AUC after which training stops.
        batch_rows: Rows per step.
        learning_rate: AdamW's step.
        weight_decay: AdamW's decoupled decay, on every parameter.
        threads: Threads that training may use. One by default: the products of a batch are small, so
            a second thread saves little on an idle machine and costs a lot on a busy one (measured
            on 2 shared cores: 0.9 s per epoch with one thread, 3.4 s with two).
        seed: Everything random follows from it.
    """

    embedding_dim: int = 16
    hidden: tuple[int, ...] = (128, 64)
    dropout: float = 0.3
    pooling: Pooling = "mean"
    embedding_init_sd: float = 0.01
    token_dropout: float = 0.2
    max_epochs: int = 40
    patience: int = 15
    batch_rows: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True)
class EpochReport:
    """One point of the training curves; losses are mean binary cross-entropy, in nats."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation_auc: float
    best_so_far: bool

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch}: train loss {self.train_loss:.4f}, validation loss "
            f"{self.validation_loss:.4f}, AUC {self.validation_auc:.4f}"
            f"{' (best)' if self.best_so_far else ''}"
        )


@dataclass(frozen=True)
class TrainedDnn:
    """The best epoch's weights, with the curves that show how they were reached.

    Attributes:
        state: Parameter name → float32 tensor.
        config: What it was trained with.
        curves: One report per epoch, from epoch 1.
        best_epoch: The epoch whose weights these are.
    """

    state: Mapping[str, Tensor]
    config: DnnConfig
    curves: tuple[EpochReport, ...]
    best_epoch: int

    engine = "torch"

    @property
    def architecture(self) -> dict[str, object]:
        """Name and parameters from which a bundle builds the same network again."""
        return {
            "name": "audience_net",
            "embedding_dim": self.config.embedding_dim,
            "hidden": list(self.config.hidden),
            "dropout": self.config.dropout,
            "pooling": self.config.pooling,
        }

    def weights(self) -> bytes:
        """The content of weights.safetensors."""
        return safetensors.torch.save(dict(self.state))


def to_tensors(rows: EncodedRows, fields: Sequence[str]) -> Bags:
    """A batch as the network reads it; the arrays are shared, not copied, where types allow.

    Raises:
        DataError: The offsets do not end at the number of ids. PyTorch does not refuse them: it
            silently drops or repeats tokens (pytorch/pytorch#52851).
    """
    bags = []
    for name in fields:
        bag = rows[name]
        if bag.offsets[0] != 0 or bag.offsets[-1] != len(bag.values):
            raise DataError(
                f"the offsets of field {name!r} do not cover its ids",
                found=f"offsets from {bag.offsets[0]} to {bag.offsets[-1]} for {len(bag.values)} ids",
                expected=f"offsets from 0 to {len(bag.values)}",
                remedy="build the batch with Ragged.slice or Ragged.take",
            )
        ids = torch.from_numpy(np.ascontiguousarray(bag.values, dtype=np.int32))
        bags.append((ids, torch.from_numpy(bag.offsets.astype(np.int32))))
    return bags


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Limits PyTorch's threads, which are the process's, and puts the number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train_dnn(
    rows: TrainingRows,
    vocabulary_sizes: Mapping[str, int],
    config: DnnConfig,
    progress: Callable[[EpochReport], None],
) -> TrainedDnn:
    """Trains on the TRAIN rows, keeps the epoch that ranks the VALIDATION rows best.

    The same rows and config give the same weights; PyTorch's global random state is untouched.

    Args:
        rows: All splits; TEST is never read.
        vocabulary_sizes: Field name → number of ids.
        config: How.
        progress: Called after every epoch.

    Raises:
        TrainingError: The rows are not trainable, or the loss is not finite.
    """
    check_trainable(rows, splits=(TRAIN, VALIDATION))
    check_vocabulary(rows.bags, vocabulary_sizes)
    train, validation = rows.subset(TRAIN), rows.subset(VALIDATION)
    # dropout knows no generator of its own, so the global one is borrowed and put back
    with torch_threads(config.threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = AudienceNet(
            list(vocabulary_sizes.values()),
            embedding_dim=config.embedding_dim,
            hidden=config.hidden,
            dropout=config.dropout,
            pooling=config.pooling,
            embedding_init_sd=config.embedding_init_sd,
        )
        return _fit(network, train, validation, config, progress)


def _fit(
    network: AudienceNet,
    train: TrainingRows,
    validation: TrainingRows,
    config: DnnConfig,
    progress: Callable[[EpochReport], None],
) -> TrainedDnn:
    # training only: executors that score need no scikit-learn
    from pipelines.steps.model_comparison import evaluate

    shuffler = np.random.default_rng(config.seed)
    parameter_groups: list[dict[str, Any]] = [
        {"params": list(network.embeddings), "eps": EMBEDDING_EPSILON},
        {"params": list(network.feed_forward.parameters())},
    ]
    optimizer = torch.optim.AdamW(
        parameter_groups,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )
    curves: list[EpochReport] = []
    best_auc, best_epoch, best_state = -math.inf, 0, _copy_state(network)
    for epoch in range(1, config.max_epochs + 1):
        train_loss = _train_epoch(network, optimizer, train, config, shuffler, epoch)
        metrics = evaluate(validation.labels, _probabilities(network, validation.bags))
        gained = metrics.auc > best_auc
        if gained:
            best_auc, best_epoch, best_state = metrics.auc, epoch, _copy_state(network)
        report = EpochReport(epoch, train_loss, metrics.log_loss, metrics.auc, best_so_far=gained)
        curves.append(report)
        progress(report)
        if epoch - best_epoch >= config.patience:
            break
    return TrainedDnn(best_state, config, tuple(curves), best_epoch)


def _train_epoch(
    network: AudienceNet,
    optimizer: torch.optim.Optimizer,
    train: TrainingRows,
    config: DnnConfig,
    shuffler: np.random.Generator,
    epoch: int,
) -> float:
    """One pass over the rows in a new order; the mean loss."""
    network.train()
    total_loss = 0.0
    for labels, bags in _batches(train, config, shuffler):
        optimizer.zero_grad(set_to_none=True)
        loss = functional.binary_cross_entropy_with_logits(network(bags), labels)
        loss_value = loss.item()
        if not math.isfinite(loss_value):
            raise TrainingError(
                f"the training loss is not finite in epoch {epoch}",
                found=loss_value,
                expected="a finite loss",
                remedy=f"lower learning_rate, now {config.learning_rate}",
            )
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total_loss += loss_value * len(labels)
    return total_loss / train.rows


def _batches(
    train: TrainingRows, config: DnnConfig, shuffler: np.random.Generator
) -> Iterator[tuple[Tensor, Bags]]:
    """Labels [B] and bags of each batch; the last one may be short."""
    fields = list(train.bags)
    order = shuffler.permutation(train.rows)
    for start in range(0, train.rows, config.batch_rows):
        chosen = order[start : start + config.batch_rows]
        bags = {name: bag.take(chosen) for name, bag in train.bags.items()}
        if config.token_dropout > 0:
            bags = {name: _drop_tokens(bag, config.token_dropout, shuffler) for name, bag in bags.items()}
        yield torch.from_numpy(train.labels[chosen]), to_tensors(bags, fields)


def _drop_tokens(bag: Ragged, share: float, random: np.random.Generator) -> Ragged:
    """Leaves out tokens at random; a row that would lose all of them keeps all."""
    kept = random.random(len(bag.values), dtype=np.float32) >= share
    kept_lengths = _lengths_of_kept(kept, bag)
    emptied = kept_lengths == 0
    if emptied.any():
        kept |= np.repeat(emptied, bag.lengths)
        kept_lengths = np.where(emptied, bag.lengths, kept_lengths)
    return Ragged(bag.values[kept], np.concatenate([[0], np.cumsum(kept_lengths)]))


def _lengths_of_kept(kept: np.ndarray, bag: Ragged) -> np.ndarray:
    kept_before = np.concatenate([[0], np.cumsum(kept)])
    return np.diff(kept_before[bag.offsets])


@torch.inference_mode()
def _probabilities(network: AudienceNet, bags: EncodedRows) -> np.ndarray:
    """float32 [rows]"""
    network.eval()
    fields = list(bags)
    rows = bags[fields[0]].rows
    logits = []
    for start in range(0, rows, SCORING_ROWS):
        stop = min(start + SCORING_ROWS, rows)
        batch = {name: bag.slice(start, stop) for name, bag in bags.items()}
        logits.append(network(to_tensors(batch, fields)))
    return torch.sigmoid(torch.cat(logits)).numpy()


def _copy_state(network: AudienceNet) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
