"""Behaviour in training: a thermometer code of each behaviour is an input of the first layer.

A code's inputs are 1 up to its place in the order of the codes, so that a weight is a step from code to code,
and a rare code says what its neighbours say. The steps summed up are a column per code: that is what is kept,
and what scoring reads (`dnn_model.MultiHot`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.steps.models.cpu_kernels import sums_of_bags
from pipelines.steps.models.dnn_config import DnnConfig

if TYPE_CHECKING:
    from scipy import sparse


@dataclass(frozen=True, eq=False)
class NetworkInputs:
    """What a network reads.

    Attributes:
        sizes: Number of ids of each field.
        multi_hot_fields: Number of the last fields that are multi-hot.
        columns: The steps that the columns of their ids are sums of; None where there are no such fields.
    """

    sizes: Sequence[int]
    multi_hot_fields: int
    columns: "sparse.csr_matrix | None"

    @classmethod
    def of(
        cls, vocabulary_sizes: Mapping[str, int], columns: "sparse.csr_matrix | None", config: DnnConfig
    ) -> "NetworkInputs":
        sizes = list(vocabulary_sizes.values())
        fields = 0 if columns is None else config.multi_hot_fields(list(vocabulary_sizes))
        if columns is None or fields == 0:
            return cls(sizes, 0, None)
        first = sum(sizes[:-fields])
        return cls(sizes, fields, columns[first:, first:])

    @property
    def pooled_ids(self) -> int:
        return sum(self.sizes[: len(self.sizes) - self.multi_hot_fields])

    def stored(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a trained network as those of the network that scores."""
        found = dict(state)
        if self.columns is not None:
            steps = found.pop("multi_hot.steps")
            found["multi_hot.weights"] = torch.from_numpy(self.columns @ steps.cpu().numpy()).to(steps.device)
        return found


class ThermometerCodes(nn.Module):
    """What `MultiHot` says, of steps that are learned, for one member.

    Args:
        columns: CSR [V, V], the steps that each id's column is the sum of: the block of the multi-hot fields
            of `cumulative_columns`.
        width: H.
    """

    def __init__(self, columns: "sparse.csr_matrix", width: int) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.zeros(columns.shape[1], width))
        self._columns = columns

    def weights(self) -> Tensor:
        """V × H"""
        if self.steps.device.type == "cpu":
            return _Product.apply(self._columns, self.steps)  # type: ignore[no-any-return, no-untyped-call]
        found: Tensor = torch.sparse.mm(as_tensor(self._columns).to(self.steps.device), self.steps)
        return found

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """1 × B × H of bags [B]."""
        return sums_of_bags(self.weights(), ids, offsets, training=self.training).unsqueeze(0)


def as_tensor(columns: "sparse.csr_matrix") -> Tensor:
    """A sparse matrix as PyTorch has it."""
    entries = columns.tocoo()
    return torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([entries.row, entries.col])),
        torch.from_numpy(entries.data),
        entries.shape,
        check_invariants=True,
    )


class _Product(torch.autograd.Function):
    """A constant sparse matrix times steps: on a CPU PyTorch's own takes four times as long."""

    @staticmethod
    def forward(ctx: Any, columns: "sparse.csr_matrix", steps: Tensor) -> Tensor:
        ctx.columns = columns
        return torch.from_numpy(columns @ steps.detach().numpy())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, torch.from_numpy(ctx.columns.T @ gradient.contiguous().numpy())
