"""The audience network: an embedding per token, pooled per field, then feed-forward.

Spark executors import it to score; how it is trained is in `dnn_training`, its settings in `dnn_config`.

Sizes in the docstrings: B rows, F fields, of which P are pooled and the others multi-hot, V_f ids of field f
and V of all pooled fields, D embedding width, H width of the first layer, M members of an ensemble, N tokens
of a batch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pipelines.steps.features.token_weights import AGES, DAYS, EVENTS
from pipelines.steps.models.bundle import NO_MEMBERS, TORCH_WEIGHTS
from pipelines.steps.models.cpu_kernels import Dropout, sums_of_bags
from pipelines.steps.models.dnn_batches import Bags, split_bags
from pipelines.steps.models.dnn_config import DnnConfig, Pooling


class AudienceNet(nn.Module):
    """Embeddings pooled per field → concatenation → ReLU/dropout layers → one logit; M times, averaged.

    With `pooling="mean"`, no token counts and one member this is the published network.

    Args:
        vocabulary_sizes: V_f of every field, in field order.
        embedding_dim: D.
        hidden: Width of each hidden layer.
        dropout: Share of hidden activations dropped in training.
        pooling: "mean", or "sqrt_n" (the sum over √n, which lets long lists weigh more).
        token_counts: Whether the logarithm of each field's number of tokens is an input, too.
        members: M; their embeddings lie side by side, so that all are looked up at once.
        embedding_dropout: Share of pooled embedding values dropped in training.
        embedding_init_std: Standard deviation of the initial embeddings.
        token_weights: Whether tokens weigh by their codes, each member having weights of its own.
        multi_hot_fields: Number of the last fields that no embeddings are pooled of: their tokens are inputs
            of the first layer, 1 or 0 each, so that it tells them apart.
    """

    def __init__(
        self,
        vocabulary_sizes: Sequence[int],
        *,
        embedding_dim: int,
        hidden: Sequence[int],
        dropout: float = 0.0,
        pooling: Pooling = "mean",
        token_counts: bool = False,
        members: int = 1,
        embedding_dropout: float = 0.0,
        embedding_init_std: float = 0.01,
        token_weights: bool = False,
        multi_hot_fields: int = 0,
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "sqrt_n"):
            raise ValueError(f"pooling is 'mean' or 'sqrt_n', not {pooling!r}")
        if not 0 <= multi_hot_fields < len(vocabulary_sizes):
            raise ValueError(
                f"{multi_hot_fields} of {len(vocabulary_sizes)} fields cannot be multi-hot: one is pooled"
            )
        self.fields, self.multi_hot_fields = len(vocabulary_sizes) - multi_hot_fields, multi_hot_fields  # P
        self.members, self.embedding_dim = members, embedding_dim
        self.pooling, self.token_counts = pooling, token_counts
        pooled, multi_hot = vocabulary_sizes[: self.fields], vocabulary_sizes[self.fields :]
        table = torch.empty(sum(pooled), members * embedding_dim)  # V × M·D
        self.embeddings = nn.Parameter(nn.init.normal_(table, std=embedding_init_std))
        self._parts: Sequence[Tensor] | None = None
        """The embeddings of each member, once they no longer change."""
        self.embedding_dropout = Dropout(embedding_dropout)
        self.token_weights = TokenWeights(members, self.fields) if token_weights else None
        inputs = self.fields * embedding_dim + (self.fields if token_counts else 0)
        self.feed_forward = nn.ModuleList(_feed_forward(inputs, hidden, dropout) for _ in range(members))
        self.width = [*hidden, 1][0]  # H
        self.multi_hot: nn.Module | None = (
            MultiHot(sum(multi_hot), members, self.width) if multi_hot else None
        )

    def forward(self, bags: Bags) -> Tensor:
        """Logits [B] of `to_tensors`' ids [N], offsets [F·B + 1] and codes [N]."""
        if self.multi_hot is None:
            return self._logits(bags, None)
        pooled, (ids, offsets) = split_bags(bags, self.fields, self.multi_hot_fields)
        return self._logits(pooled, self.multi_hot(ids - len(self.embeddings), offsets))

    def _logits(self, bags: Bags, of_multi_hot: Tensor | None) -> Tensor:
        """Logits [B] of the pooled fields' bags, and of what the others add to the first layer, M × B × H."""
        _, offsets, _ = bags
        lengths = offsets.diff().clamp(min=1).to(self.embeddings.dtype)  # P·B
        pooled = self._pooled(bags, lengths)  # P·B × M·D
        rows = len(lengths) // self.fields
        by_member = pooled.view(self.fields, rows, self.members, self.embedding_dim).permute(2, 1, 0, 3)
        inputs = self.embedding_dropout(by_member.flatten(2))  # M × B × P·D
        if self.token_counts:
            counts = lengths.log().view(self.fields, rows).T.expand(self.members, -1, -1)  # M × B × P
            inputs = torch.cat([inputs, counts], dim=2)
        if of_multi_hot is None:
            logits = [member(x) for member, x in zip(self.feed_forward, inputs, strict=True)]  # M of B × 1
        else:
            logits = [
                _fed_forward(member, x, added)
                for member, x, added in zip(self.feed_forward, inputs, of_multi_hot, strict=True)
            ]
        return torch.stack(logits).mean(dim=0).squeeze(1)

    def _pooled(self, bags: Bags, lengths: Tensor) -> Tensor:
        """One vector per bag, P·B × M·D."""
        ids, offsets, codes = bags
        if codes is not None and self.token_weights is not None:
            tables = self.token_weights()
            sums = torch.cat(
                [
                    sums_of_bags(
                        embeddings, ids, offsets, table.index_select(0, codes), training=self.training
                    )
                    for embeddings, table in zip(self._by_member(), tables, strict=True)
                ],
                dim=1,
            )
        elif self.pooling == "mean" and not self.training:
            return functional.embedding_bag(
                ids, self.embeddings, offsets, mode="mean", include_last_offset=True
            )
        else:
            sums = sums_of_bags(self.embeddings, ids, offsets, training=self.training)
        return sums / (lengths if self.pooling == "mean" else lengths.sqrt()).unsqueeze(1)

    def _by_member(self) -> Sequence[Tensor]:
        """V × D of each member, in one piece: to look up columns of one table takes 4 times as long."""
        if self.members == 1:
            return [self.embeddings]
        if self.embeddings.requires_grad:
            return self.embeddings.chunk(self.members, dim=1)
        if self._parts is None:
            self._parts = [part.contiguous() for part in self.embeddings.chunk(self.members, dim=1)]
        return self._parts


class TokenWeights(nn.Module):
    """What a token of each code weighs: 1, and something for how often, on how many days and how long ago.

    The first class of each of the three adds nothing, so a token of which nothing is known weighs 1.
    """

    def __init__(self, members: int, fields: int) -> None:
        super().__init__()
        self.events, self.days, self.ages = (
            nn.Parameter(torch.zeros(members, fields, len(classes) - 1)) for classes in (EVENTS, DAYS, AGES)
        )

    def forward(self) -> Tensor:
        """M × F·256: the weight of code c in field f is at c + 256·f."""
        events, days, ages = (functional.pad(part, (1, 0)) for part in (self.events, self.days, self.ages))
        table = 1 + events[..., None, None, :] + days[..., None, :, None] + ages[..., :, None, None]
        return table.flatten(1)


class MultiHot(nn.Module):
    """What the tokens of the multi-hot fields add to the first layer: a column of its weights for each token.

    Args:
        vocabulary_size: Number of these fields' ids.
        members: M.
        width: H.
    """

    def __init__(self, vocabulary_size: int, members: int, width: int) -> None:
        super().__init__()
        self.members, self.width = members, width
        self.weights = nn.Parameter(torch.zeros(vocabulary_size, members * width))

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """M × B × H of bags [B]."""
        sums = sums_of_bags(self.weights, ids, offsets, training=self.training)
        return sums.view(len(sums), self.members, self.width).transpose(0, 1)


def _feed_forward(width: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for next_width in hidden:
        layers += [nn.Linear(width, next_width), nn.ReLU(), Dropout(dropout)]
        width = next_width
    return nn.Sequential(*layers, nn.Linear(width, 1))


def _fed_forward(layers: nn.Module, values: Tensor, added: Tensor) -> Tensor:
    """What a net of layers answers, where something is added to what the first one says."""
    first, *others = layers.children()
    values = first(values) + added
    for layer in others:
        values = layer(values)
    return values


SIDE_BY_SIDE = ("embeddings", "multi_hot.weights")
"""Tables whose columns are the members'."""


def ensemble_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The weights of networks of one member each as those of one network with a member for each.

    Args:
        states: Parameter name → tensor, all of the same shapes.
    """
    merged = {}
    for member, state in enumerate(states):
        for name, tensor in state.items():
            if name in SIDE_BY_SIDE:
                merged[name] = torch.cat([each[name] for each in states], dim=1)
            elif name.startswith("token_weights."):
                merged[name] = torch.cat([each[name] for each in states])
            else:
                merged[name.replace("feed_forward.0.", f"feed_forward.{member}.", 1)] = tensor
    return merged


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
class EpochReport:
    """One point of the training curves; losses are mean binary cross-entropy, in nats.

    The config's metric decides which one is the best. Where nothing is validated, the last one is, and what
    the VALIDATION rows would say is NaN.
    """

    member: int
    epoch: int
    train_loss: float
    best_so_far: bool = True
    validation_loss: float = math.nan
    validation_auc: float = math.nan
    validation_metric: float = math.nan

    def __str__(self) -> str:
        trained = f"member {self.member}, epoch {self.epoch}: train loss {self.train_loss:.4f}"
        if math.isnan(self.validation_loss):
            return trained
        return (
            f"{trained}, validation loss {self.validation_loss:.4f}, AUC {self.validation_auc:.4f}"
            f"{' (best)' if self.best_so_far else ''}"
        )


@dataclass(frozen=True)
class TrainedDnn:
    """Each member's best epoch, with the curves that show how it was reached.

    Attributes:
        state: Parameter name → float32 tensor, of an `AudienceNet`.
        config: What it was trained with.
        curves: One report per member and epoch, from 1.
        best_epochs: Of each member, the epoch whose weights these are.
        multi_hot_fields: Number of the last fields that are multi-hot.
    """

    state: Mapping[str, Tensor]
    config: DnnConfig
    curves: tuple[EpochReport, ...]
    best_epochs: tuple[int, ...]
    multi_hot_fields: int = 0

    @property
    def best_metric(self) -> float:
        """The validation metric of the epochs kept, a mean over the members."""
        found = [
            report.validation_metric
            for report in self.curves
            if report.epoch == self.best_epochs[report.member - 1]
        ]
        return sum(found) / len(found)

    engine = "torch"
    weights_file = TORCH_WEIGHTS
    members = NO_MEMBERS

    @property
    def architecture(self) -> dict[str, object]:
        """Name and parameters from which a bundle builds the same network again."""
        found = {"name": "audience_net", **self.config.architecture}
        return found | {"multi_hot_fields": self.multi_hot_fields} if self.multi_hot_fields else found

    def weights(self) -> bytes:
        """The content of weights.safetensors."""
        return safetensors.torch.save(dict(self.state))


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Limits PyTorch's threads, which are the process's, and puts the number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
