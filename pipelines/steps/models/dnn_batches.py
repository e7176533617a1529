"""Batches as the network reads them: bags of all fields as one, in memory or streamed from files."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipelines.steps.errors import DataError
from pipelines.steps.features.encoded_rows import EncodedRows, Ragged
from pipelines.steps.features.token_weights import CODES
from pipelines.steps.labels.training_rows import (
    TrainingFiles,
    TrainingRows,
)

Bags = tuple[Tensor, Tensor, Tensor | None]
"""Ids [N] in the one table of all fields and offsets [F·B + 1], int32; bag f·B + b is of field f, row b.

Then what each token weighs, int32 [N]: its code + 256·f; None where no field's tokens weigh.
"""


def pack(rows: EncodedRows, vocabulary_sizes: Mapping[str, int]) -> Ragged:
    """All fields' bags as one: field after field, ids shifted to the field's place in the one table.

    Args:
        rows: Field name → ids of B rows.
        vocabulary_sizes: V_f by name, in field order.

    Returns:
        F·B bags; bag f·B + b is row b's of field f. Codes are shifted, too, to code + 256·f.

    Raises:
        DataError: The offsets of a field do not end at its number of ids. PyTorch does not refuse
            them: it silently drops or repeats tokens (pytorch/pytorch#52851).
    """
    values, lengths, first, names = [], [], 0, list(vocabulary_sizes)
    for name, size in vocabulary_sizes.items():
        bag = rows[name]
        if bag.offsets[0] != 0 or bag.offsets[-1] != len(bag.values):
            raise DataError(
                f"the offsets of field {name!r} do not cover its ids",
                found=f"offsets from {bag.offsets[0]} to {bag.offsets[-1]} for {len(bag.values)} ids",
                expected=f"offsets from 0 to {len(bag.values)}",
                remedy="build the batch with Ragged.slice or Ragged.take",
            )
        values.append(bag.values + np.int32(first))
        lengths.append(bag.lengths)
        first += size
    return Ragged.of_lengths(np.concatenate(values), np.concatenate(lengths), _shifted_codes(rows, names))


def _shifted_codes(rows: EncodedRows, names: Sequence[str]) -> np.ndarray | None:
    if all(rows[name].codes is None for name in names):
        return None
    number = np.min_scalar_type(CODES * len(names) - 1)
    codes = [np.add(rows[name].each_code(), f * CODES, dtype=number) for f, name in enumerate(names)]
    return np.concatenate(codes)


def to_tensors(rows: EncodedRows, vocabulary_sizes: Mapping[str, int]) -> Bags:
    """A batch as a network reads it; arguments and errors as `pack`."""
    return as_tensors(pack(rows, vocabulary_sizes))


def as_tensors(packed: Ragged, device: str = "cpu") -> Bags:
    """What `pack` made, as a network reads it; on a CPU the ids are shared, not copied."""
    ids = torch.from_numpy(np.ascontiguousarray(packed.values, dtype=np.int32))
    offsets = torch.from_numpy(packed.offsets.astype(np.int32)).to(device)
    if packed.codes is None:
        return ids.to(device), offsets, None
    return ids.to(device), offsets, torch.from_numpy(packed.codes.astype(np.int32)).to(device)


def split_bags(bags: Bags, first: int, others: int) -> tuple[Bags, tuple[Tensor, Tensor]]:
    """The bags of so many first fields; of the others ids and offsets of one bag a row, field after field."""
    ids, offsets, codes = bags
    rows = (len(offsets) - 1) // (first + others)
    cut = rows * first
    tokens = int(offsets[cut])
    rest, starts = ids[tokens:], offsets[cut:-1] - tokens
    lengths = offsets[cut:].diff().view(others, rows)
    of_rows = functional.pad(lengths.sum(dim=0).cumsum(dim=0), (1, 0))
    moves = of_rows[:-1] + lengths.cumsum(dim=0) - lengths - starts.view(others, rows)
    places = torch.arange(len(rest), device=rest.device)
    places += moves.flatten().repeat_interleave(lengths.flatten(), output_size=len(rest))
    of_first = ids[:tokens], offsets[: cut + 1], None if codes is None else codes[:tokens]
    return of_first, (torch.empty_like(rest).index_copy_(0, places, rest), of_rows.to(offsets.dtype))


SHUFFLED_ROWS = 262_144
"""Rows that are shuffled together when they are streamed; all of them, when they are in memory."""
Batch = tuple[np.ndarray, Ragged]
"""Labels float32 [B] and the packed bags of as many rows."""


class Rows(Protocol):
    """The rows of one split."""

    @property
    def count(self) -> int:
        """Number of rows."""

    @property
    def labels(self) -> np.ndarray:
        """float32 [rows]."""

    def shuffled(self, size: int, random: np.random.Generator) -> Iterator[Batch]:
        """Every row once in a new order, in batches of `size` but for the last of those shuffled at once."""

    def in_order(self, size: int) -> Iterator[Batch]:
        """Every row once, as `labels` has them."""

    def fingerprint(self) -> bytes:
        """A hash of the content."""


class RowsInMemory:
    """The rows of one split, packed once."""

    def __init__(self, rows: TrainingRows, split: int, vocabulary_sizes: Mapping[str, int]) -> None:
        chosen = rows.subset(split)
        self.labels = chosen.labels
        self._packed = pack(chosen.bags, vocabulary_sizes)
        self._fields = len(vocabulary_sizes)

    @property
    def count(self) -> int:
        return len(self.labels)

    def shuffled(self, size: int, random: np.random.Generator) -> Iterator[Batch]:
        return self._batches(random.permutation(len(self.labels)), size)

    def in_order(self, size: int) -> Iterator[Batch]:
        return self._batches(np.arange(len(self.labels)), size)

    def _batches(self, order: np.ndarray, size: int) -> Iterator[Batch]:
        first_of_field = np.arange(self._fields)[:, None] * len(self.labels)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            yield self.labels[chosen], self._packed.take((first_of_field + chosen).ravel())

    def fingerprint(self) -> bytes:
        content = hashlib.sha256()
        for array in (self.labels, self._packed.values, self._packed.offsets):
            content.update(np.ascontiguousarray(array).data)
        if self._packed.codes is not None:
            content.update(np.ascontiguousarray(self._packed.codes).data)
        return content.digest()


class RowsInFiles:
    """The rows of one split, read again in every epoch, a few row groups at a time: memory stays flat."""

    def __init__(self, files: TrainingFiles, split: int, vocabulary_sizes: Mapping[str, int]) -> None:
        self._files, self._split, self._sizes = files, split, dict(vocabulary_sizes)

    @cached_property
    def count(self) -> int:
        return self._files.count(self._split)

    @cached_property
    def labels(self) -> np.ndarray:
        return self._files.labels(self._split)

    def shuffled(self, size: int, random: np.random.Generator) -> Iterator[Batch]:
        """Row groups in a new order, as many as hold SHUFFLED_ROWS at once, and their rows in a new order."""
        groups = random.permutation(self._files.groups).tolist()
        waiting: list[TrainingRows] = []
        for place, group in enumerate(groups):
            waiting.append(self._files.read_group(group, self._split))
            enough = sum(rows.rows for rows in waiting) >= SHUFFLED_ROWS
            if enough or place == len(groups) - 1:
                together = RowsInMemory(TrainingRows.concatenated(waiting), self._split, self._sizes)
                yield from together.shuffled(size, random)
                waiting = []

    def in_order(self, size: int) -> Iterator[Batch]:
        for group in range(self._files.groups):
            rows = self._files.read_group(group, self._split)
            yield from RowsInMemory(rows, self._split, self._sizes).in_order(size)

    def fingerprint(self) -> bytes:
        return self._files.fingerprint()


def drop_tokens(bags: Ragged, share: float, random: np.random.Generator) -> Ragged:
    """Leaves out tokens at random; a bag that would lose all of them keeps all."""
    kept = random.random(len(bags.values), dtype=np.float32) >= share
    emptied = bags.count(kept) == 0
    if emptied.any():
        kept |= np.repeat(emptied, bags.lengths)
    return bags.filter(kept)
