"""Ids of a batch of rows, unpadded, and what can be done with them.

What belongs here: the reserved ids, ragged rows and their operations. What does not: which token has which id
(`feature_vocabulary`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipelines.steps.errors import DataError

if TYPE_CHECKING:
    from scipy import sparse

MISSING_ID = 0
"""The id an empty bag holds, so that no bag is ever empty."""
UNKNOWN_ID = 1
"""The id of every token that the vocabulary does not hold."""
RESERVED_IDS = 2


@dataclass(frozen=True)
class Ragged:
    """Ids of a batch of rows, unpadded: row r holds `values[offsets[r]:offsets[r + 1]]`.

    Attributes:
        values: int32, one id per token.
        offsets: int64, rows + 1 entries, `offsets[0] == 0`, `offsets[-1] == len(values)`.
    """

    values: np.ndarray
    offsets: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def slice(self, start: int, stop: int) -> "Ragged":
        """Rows [start, stop), offsets rebased to 0; values are a view."""
        begin, end = self.offsets[start], self.offsets[stop]
        return Ragged(self.values[begin:end], self.offsets[start : stop + 1] - begin)

    def take(self, rows: np.ndarray) -> "Ragged":
        """The rows named, in the order named."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        offsets = offsets_of(lengths)
        positions = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return Ragged(self.values[positions], offsets)

    def count(self, chosen: np.ndarray) -> np.ndarray:
        """int64 [rows]: how many of each row's ids are chosen, bool [ids]."""
        chosen_before = np.concatenate([[0], np.cumsum(chosen)])
        return np.diff(chosen_before[self.offsets])

    def filter(self, chosen: np.ndarray) -> "Ragged":
        """The ids chosen, bool [ids], row by row; a row may lose all of its."""
        return Ragged.of_lengths(self.values[chosen], self.count(chosen))

    def to_arrow(self) -> pa.ListArray:
        """A list<int32> column."""
        return pa.ListArray.from_arrays(pa.array(self.offsets.astype(np.int32)), pa.array(self.values))

    @classmethod
    def concatenated(cls, pieces: Sequence["Ragged"]) -> "Ragged":
        """The rows of several, one after another."""
        if not pieces:
            return cls(np.empty(0, dtype=np.int32), np.zeros(1, dtype=np.int64))
        return cls.of_lengths(
            np.concatenate([piece.values for piece in pieces]),
            np.concatenate([piece.lengths for piece in pieces]),
        )

    @classmethod
    def of_lengths(cls, values: np.ndarray, lengths: np.ndarray) -> "Ragged":
        """Values row after row, with the number of each row's."""
        return cls(values, offsets_of(lengths))

    @classmethod
    def from_lists(cls, lists: Iterable[Sequence[int]]) -> "Ragged":
        """Small literal batches, mostly for tests."""
        rows = [np.asarray(row, dtype=np.int32) for row in lists]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        values = np.concatenate(rows) if rows else np.empty(0, dtype=np.int32)
        return cls(values.astype(np.int32), offsets)

    @classmethod
    def from_arrow(cls, column: pa.ListArray | pa.ChunkedArray) -> "Ragged":
        """A list<int32> column, slices rebased; a null list is an error, an empty one is not."""
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
            if isinstance(column, pa.ChunkedArray):
                column = pa.concat_arrays(column.chunks)
        if column.null_count:
            raise DataError(
                "a column of encoded tokens holds null lists",
                found=f"{column.null_count} nulls in {len(column)} rows",
                expected="no nulls: an empty bag is written as [0]",
                remedy="rebuild the training set from feature_tokens",
            )
        offsets = column.offsets.to_numpy().astype(np.int64)
        values = column.values.slice(offsets[0], offsets[-1] - offsets[0])
        if values.null_count:
            raise DataError(
                "a column of encoded tokens holds null ids",
                found=f"{values.null_count} nulls in {len(values)} ids",
                expected=f"no nulls: an unknown token is written as {UNKNOWN_ID}",
                remedy="rebuild the training set from feature_tokens",
            )
        return cls(values.to_numpy().astype(np.int32, copy=False), offsets - offsets[0])


EncodedRows = Mapping[str, Ragged]
"""Field name → ids of a batch; every field has the same number of rows."""


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """int64 [rows + 1], from each row's number of ids."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def count_matrix(bags: EncodedRows, vocabulary_sizes: Mapping[str, int]) -> "sparse.csr_matrix":
    """Token counts per row, the fields side by side in the order of `vocabulary_sizes`.

    Returns:
        float32 CSR [rows, sum of sizes]; a token that a row holds twice counts 2.
    """
    from scipy import sparse  # executors that encode do without

    lengths = np.stack([bags[name].lengths for name in vocabulary_sizes], axis=1)  # rows × fields
    cell_ends = np.cumsum(lengths.ravel()).reshape(lengths.shape)
    cell_starts = cell_ends - lengths
    columns = np.empty(lengths.sum(), dtype=np.int32)
    first_column = 0
    for index, (name, size) in enumerate(vocabulary_sizes.items()):
        bag = bags[name]
        shift = np.repeat(cell_starts[:, index] - bag.offsets[:-1], bag.lengths)
        columns[np.arange(len(bag.values)) + shift] = bag.values + first_column
        first_column += size
    row_ends = cell_ends[:, -1]
    matrix = sparse.csr_matrix(
        (np.ones(len(columns), dtype=np.float32), columns, np.concatenate([[0], row_ends])),
        shape=(len(lengths), first_column),
    )
    matrix.sum_duplicates()
    return matrix
