"""The network's settings, without PyTorch: what offers them to a user need not wait for its import."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from pipelines.steps.config.behaviour_names import is_behaviour
from pipelines.steps.config.defaults import MAX_EPOCHS, PATIENCE
from pipelines.steps.config.metric import DEFAULT_METRIC, Metric

Pooling = Literal["mean", "sqrt_n"]
BehaviourCodes = Literal["thermometer", "pooled"]
MIN_STEPS = 40
"""Steps an epoch should have: fewer rows than that many batches are taken in smaller ones."""

FEW_DEVICES = 5_000
"""Devices of an as-of day below which more weight decay is worth a try."""


@dataclass(frozen=True)
class DnnConfig:
    """Settings of the network and its training, chosen on the validation splits of several sets of users.

    Attributes:
        embedding_dim: Width of every embedding.
        hidden: Width of each hidden layer.
        dropout: Share of hidden activations dropped in training.
        pooling: How a row's embeddings become one.
        token_counts: Whether the number of a field's tokens is an input.
        token_weights: Whether a token weighs by how often, on how many days and how lately it was seen.
        behaviour: Whether fields of behaviour are "pooled" as others are, or the "thermometer" code of each
            behaviour is an input of the first layer: 1 for its code and all below, 0 for those above.
        embedding_dropout: Share of pooled embedding values dropped in training.
        embedding_init_std: Standard deviation of the initial embeddings.
        embedding_init: Root mean square of the embeddings that training starts from, found by correspondence
            analysis of the training rows: tokens of the same rows start near each other, labels or not. Added
            to the random ones; 0: these alone.
        embedding_eps: Adam's epsilon on embeddings. At the usual 1e-8 a token seen once moves as far as
            one seen a thousand times, and the best epoch is the first or second.
        token_dropout: Share of a row's tokens left out in training; at least one of a field always stays.
        members: Networks trained with seeds of their own, whose logits are averaged.
        ema_decay: Decay of the exponential moving average of the weights, which is what is validated and
            kept; 0 keeps the weights themselves.
        max_epochs: Epochs at most.
        metric: Of the VALIDATION rows; it decides which epoch is kept.
        patience: Epochs without gain in it after which training stops.
        batch_rows: Rows per step; None: 512, or as few as 32 where that leaves fewer than 40 steps an epoch.
        learning_rate: AdamW's step.
        weight_decay: AdamW's decoupled decay, on every parameter.
        device: "cpu", "cuda", or "auto", which is CUDA where there is any.
        threads: Threads that training may use. One by default: the products of a batch are small, so
            a second thread saves little on an idle machine and costs a lot on a busy one (measured
            on 2 shared cores: 0.9 s per epoch with one thread, 3.4 s with two).
        seed: Everything random follows from it.
    """

    embedding_dim: int = 16
    hidden: tuple[int, ...] = (128, 64)
    dropout: float = 0.3
    pooling: Pooling = "sqrt_n"
    token_counts: bool = True
    token_weights: bool = True
    behaviour: BehaviourCodes = "thermometer"
    embedding_dropout: float = 0.2
    embedding_init_std: float = 0.01
    embedding_init: float = 0.3
    embedding_eps: float = 1e-3
    token_dropout: float = 0.2
    members: int = 3
    ema_decay: float = 0.99
    max_epochs: int = MAX_EPOCHS
    metric: Metric = DEFAULT_METRIC
    patience: int = PATIENCE
    batch_rows: int | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1
    seed: int = 0

    @classmethod
    def published(cls, **changes: Any) -> "DnnConfig":
        """The network as it was published: mean pooling, nothing else, one member, plain AdamW."""
        plain: dict[str, Any] = {
            "pooling": "mean",
            "token_counts": False,
            "token_weights": False,
            "behaviour": "pooled",
            "embedding_dropout": 0.0,
            "token_dropout": 0.0,
            "embedding_eps": 1e-8,
            "embedding_init": 0.0,
            "members": 1,
            "ema_decay": 0.0,
        }
        return cls(**plain | changes)

    def rows_per_step(self, rows: int) -> int:
        """The batch size for so many training rows."""
        if self.batch_rows is not None:
            return self.batch_rows
        return next((size for size in (512, 256, 128, 64) if rows >= MIN_STEPS * size), 32)

    def multi_hot_fields(self, fields: Sequence[str]) -> int:
        """Number of the last fields that are not pooled: those of behaviour, which come after all others."""
        if self.behaviour == "pooled":
            return 0
        return min(len(list(takewhile(is_behaviour, reversed(fields)))), len(fields) - 1)

    @property
    def architecture(self) -> dict[str, object]:
        """Parameters from which a bundle builds the same network again."""
        return {
            "embedding_dim": self.embedding_dim,
            "hidden": list(self.hidden),
            "pooling": self.pooling,
            "token_counts": self.token_counts,
            "token_weights": self.token_weights,
            "members": self.members,
        }


def weight_decays(devices: float) -> tuple[float, ...]:
    """Weight decays to try, where a run trains on so few devices that validation had better choose.

    With 2,000 devices a day, seen on eight as-of days, the strong one gained .003 of AUC and .007 of average
    precision on a later day inside training (a shop's and two of a grocer's audiences); on 2,500 users seen
    once it lost .002. Smaller layers, more dropout and more members changed nothing beyond chance.

    Args:
        devices: Of an as-of day, on average: more of its days make no more devices.
    """
    usual = DnnConfig.weight_decay
    return (usual, 2.0) if devices < FEW_DEVICES else (usual,)
