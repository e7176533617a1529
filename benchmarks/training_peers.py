"""Ours and every other way to train the same network on the same rows for one epoch.

Each gets rows as `TrainingRows` and hands out two things: an epoch, as often as wanted, and the logits of its
network under given weights, so that all can be shown to be one network before any time is printed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from pipelines.steps.features.encoded_rows import EncodedRows
from pipelines.steps.labels.training_rows import TRAIN, TrainingRows
from pipelines.steps.models.dnn_batches import to_tensors
from pipelines.steps.models.dnn_config import DnnConfig
from pipelines.steps.models.dnn_model import AudienceNet
from pipelines.steps.models.dnn_training import train_dnn

EMBEDDING_DIM = 32
HIDDEN = (256, 128)
BATCH_ROWS = 512
LEARNING_RATE = 1e-3
Weights = Mapping[str, Tensor]
"""Those of an `AudienceNet`."""


@dataclass(frozen=True)
class Peer:
    """One way to train.

    Attributes:
        setting: How it is set, in a line.
        module: The package that it needs.
        epoch: Rows and vocabulary sizes → what trains one epoch.
        logits: Rows, vocabulary sizes and weights → logits [rows].
        of_sample: Too slow for all rows: it trains on the sample's.
    """

    setting: str
    module: str
    epoch: Callable[[TrainingRows, Mapping[str, int]], Callable[[], object]]
    logits: Callable[[TrainingRows, Mapping[str, int], Weights], np.ndarray]
    of_sample: bool = False


# --- ours, and its limit ----------------------------------------------------------------------------


def config() -> DnnConfig:
    """The published network, for one epoch."""
    return DnnConfig.published(
        embedding_dim=EMBEDDING_DIM,
        hidden=HIDDEN,
        dropout=0.0,
        batch_rows=BATCH_ROWS,
        learning_rate=LEARNING_RATE,
        max_epochs=1,
        device="cpu",
    )


def ours(rows: TrainingRows, sizes: Mapping[str, int]) -> Callable[[], object]:
    """The whole training, packing and validation included."""
    return lambda: train_dnn(rows, sizes, config(), lambda _: None)


def network_of(sizes: Mapping[str, int]) -> AudienceNet:
    return AudienceNet(list(sizes.values()), embedding_dim=EMBEDDING_DIM, hidden=HIDDEN)


@torch.inference_mode()
def our_logits(rows: TrainingRows, sizes: Mapping[str, int], weights: Weights) -> np.ndarray:
    network = network_of(sizes)
    network.load_state_dict(dict(weights))
    return np.asarray(network(to_tensors(rows.bags, sizes)))


def limit(rows: TrainingRows, sizes: Mapping[str, int]) -> Callable[[], object]:
    """Forward, backward and step alone, every batch made before: what no way of feeding can beat."""
    train = rows.subset(TRAIN)
    order = np.random.default_rng(0).permutation(train.rows)
    batches = []
    for start in range(0, len(order), BATCH_ROWS):
        chosen = order[start : start + BATCH_ROWS]
        bags = to_tensors({name: bag.take(chosen) for name, bag in train.bags.items()}, sizes)
        batches.append((bags, torch.from_numpy(train.labels[chosen])))

    def epoch() -> None:
        network = network_of(sizes)
        optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, fused=True)
        for bags, labels in batches:
            optimizer.zero_grad(set_to_none=True)
            functional.binary_cross_entropy_with_logits(network(bags), labels).backward()
            optimizer.step()

    return epoch


# --- a plain loop -----------------------------------------------------------------------------------


class PaddedRows(Dataset[tuple[list[Tensor], Tensor]]):
    """What most write first: a row is a tensor per field, padded with 0; ids begin at 1."""

    def __init__(self, rows: TrainingRows) -> None:
        self._labels = rows.labels
        self._bags = list(rows.bags.values())
        self._widths = [int(bag.lengths.max()) for bag in self._bags]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> tuple[list[Tensor], Tensor]:
        padded = []
        for bag, width in zip(self._bags, self._widths, strict=True):
            ids = bag.values[bag.offsets[row] : bag.offsets[row + 1]]
            cell = torch.zeros(width, dtype=torch.int64)
            cell[: len(ids)] = torch.from_numpy(ids.astype(np.int64) + 1)
            padded.append(cell)
        return padded, torch.tensor(self._labels[row])


class PaddedNet(nn.Module):
    """An embedding per field, the mean over what is not padding, concatenation, feed-forward."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(
            nn.Embedding(size + 1, EMBEDDING_DIM, padding_idx=0) for size in sizes
        )
        layers: list[nn.Module] = []
        width = len(sizes) * EMBEDDING_DIM
        for next_width in HIDDEN:
            layers += [nn.Linear(width, next_width), nn.ReLU()]
            width = next_width
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, fields: Sequence[Tensor]) -> Tensor:
        pooled = []
        for embedding, ids in zip(self.embeddings, fields, strict=True):
            counts = (ids > 0).sum(dim=1, keepdim=True).clamp(min=1)
            pooled.append(embedding(ids).sum(dim=1) / counts)
        logits: Tensor = self.layers(torch.cat(pooled, dim=1))
        return logits.squeeze(1)


def plain_loop(rows: TrainingRows, sizes: Mapping[str, int]) -> Callable[[], object]:
    """A `Dataset` and a `DataLoader`; with worker processes it takes more CPU, not less."""
    loader = DataLoader(PaddedRows(rows.subset(TRAIN)), batch_size=BATCH_ROWS, shuffle=True)

    def epoch() -> None:
        network = PaddedNet(list(sizes.values()))
        optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
        for fields, labels in loader:
            optimizer.zero_grad()
            functional.binary_cross_entropy_with_logits(network(fields), labels).backward()
            optimizer.step()

    return epoch


@torch.inference_mode()
def plain_logits(rows: TrainingRows, sizes: Mapping[str, int], weights: Weights) -> np.ndarray:
    network = PaddedNet(list(sizes.values()))
    tables = weights["embeddings"].split(list(sizes.values()))
    for embedding, table in zip(network.embeddings, tables, strict=True):
        embedding.weight[1:] = table  # type: ignore[operator]
    for name, parameter in network.layers.named_parameters():
        # ours has a dropout after each ReLU
        layer, kind = name.split(".")
        parameter.copy_(weights[f"feed_forward.0.{int(layer) // 2 * 3}.{kind}"])
    fields, _ = next(iter(DataLoader(PaddedRows(rows), batch_size=rows.rows)))
    return np.asarray(network(fields))


# --- deepctr-torch ----------------------------------------------------------------------------------


def _deepctr_model(rows: TrainingRows, sizes: Mapping[str, int]) -> Any:
    """WDL without its wide part, every regularization off."""
    from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
    from deepctr_torch.models import WDL

    columns = [
        VarLenSparseFeat(
            SparseFeat(name, vocabulary_size=size + 1, embedding_dim=EMBEDDING_DIM),
            maxlen=int(rows.bags[name].lengths.max()),
            combiner="mean",
        )
        for name, size in sizes.items()
    ]
    model = WDL(
        [],
        columns,
        dnn_hidden_units=HIDDEN,
        l2_reg_embedding=0,
        l2_reg_dnn=0,
        l2_reg_linear=0,
        dnn_dropout=0,
        task="binary",
        device="cpu",
    )
    model.compile(torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE), "binary_crossentropy")
    return model


def _padded(bags: EncodedRows) -> dict[str, np.ndarray]:
    """Field → rows × longest, ids from 1, padded with 0."""
    padded = {}
    for name, bag in bags.items():
        cells = np.zeros((bag.rows, int(bag.lengths.max())), dtype=np.int32)
        columns = np.arange(len(bag.values)) - np.repeat(bag.offsets[:-1], bag.lengths)
        cells[np.repeat(np.arange(bag.rows), bag.lengths), columns] = bag.values + 1
        padded[name] = cells
    return padded


def deepctr_torch(rows: TrainingRows, sizes: Mapping[str, int]) -> Callable[[], object]:
    """Its own `fit`, of rows padded before."""
    train = rows.subset(TRAIN)
    inputs, labels = _padded(train.bags), train.labels

    def epoch() -> None:
        _deepctr_model(train, sizes).fit(inputs, labels, batch_size=BATCH_ROWS, epochs=1, verbose=0)

    return epoch


@torch.inference_mode()
def deepctr_logits(rows: TrainingRows, sizes: Mapping[str, int], weights: Weights) -> np.ndarray:
    model = _deepctr_model(rows, sizes)
    tables = weights["embeddings"].split(list(sizes.values()))
    for name, table in zip(sizes, tables, strict=True):
        model.embedding_dict[name].weight[1:] = table
    for place, linear in enumerate([*model.dnn.linears, model.dnn_linear]):
        linear.weight.copy_(weights[f"feed_forward.0.{3 * place}.weight"])
        bias = model.out.bias if linear.bias is None else linear.bias
        bias.copy_(weights[f"feed_forward.0.{3 * place}.bias"])
    model.eval()
    padded = np.concatenate(list(_padded(rows.bags).values()), axis=1)
    return np.asarray(torch.logit(model(torch.from_numpy(padded).float()).squeeze(1)))


OURS = Peer("train_dnn, one thread, validation of 1 row in 50 included", "torch", ours, our_logits)
LIMIT = Peer("forward, backward and a fused AdamW step on batches in memory", "torch", limit, our_logits)
PEERS: Mapping[str, Peer] = {
    "plain_loop": Peer(
        "Dataset and DataLoader over padded tensors, in the process", "torch", plain_loop, plain_logits, True
    ),
    "deepctr_torch": Peer(
        "WDL without a wide part, VarLenSparseFeat with the mean, its own fit",
        "deepctr_torch",
        deepctr_torch,
        deepctr_logits,
        True,
    ),
}
