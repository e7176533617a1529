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
from pipelines.steps.features.token_weights import PLAIN, bytes_of, events_class, to_bytes

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
        codes: uint8, what each token weighs (`token_weights`), one per id; None: all weigh 1.
    """

    values: np.ndarray
    offsets: np.ndarray
    codes: np.ndarray | None = None

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def slice(self, start: int, stop: int) -> "Ragged":
        """Rows [start, stop), offsets rebased to 0; values are a view."""
        begin, end = self.offsets[start], self.offsets[stop]
        offsets = self.offsets[start : stop + 1] - begin
        return Ragged(self.values[begin:end], offsets, _chosen(self.codes, slice(begin, end)))

    def take(self, rows: np.ndarray) -> "Ragged":
        """The rows named, in the order named."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        offsets = offsets_of(lengths)
        positions = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return Ragged(self.values[positions], offsets, _chosen(self.codes, positions))

    def count(self, chosen: np.ndarray) -> np.ndarray:
        """int64 [rows]: how many of each row's ids are chosen, bool [ids]."""
        chosen_before = np.concatenate([[0], np.cumsum(chosen)])
        return np.diff(chosen_before[self.offsets])

    def filter(self, chosen: np.ndarray) -> "Ragged":
        """The ids chosen, bool [ids], row by row; a row may lose all of its."""
        return Ragged.of_lengths(self.values[chosen], self.count(chosen), _chosen(self.codes, chosen))

    def to_arrow(self) -> pa.ListArray:
        """A list<int32> column."""
        return pa.ListArray.from_arrays(pa.array(self.offsets.astype(np.int32)), pa.array(self.values))

    def codes_to_arrow(self) -> pa.BinaryArray:
        """A column of bytes, one for each id."""
        return to_bytes(self.each_code(), self.offsets)

    def each_code(self) -> np.ndarray:
        """uint8, one per id, also where all weigh 1."""
        return np.full(len(self.values), PLAIN, dtype=np.uint8) if self.codes is None else self.codes

    @classmethod
    def concatenated(cls, pieces: Sequence["Ragged"]) -> "Ragged":
        """The rows of several, one after another."""
        if not pieces:
            return cls(np.empty(0, dtype=np.int32), np.zeros(1, dtype=np.int64))
        weighted = any(piece.codes is not None for piece in pieces)
        return cls.of_lengths(
            np.concatenate([piece.values for piece in pieces]),
            np.concatenate([piece.lengths for piece in pieces]),
            np.concatenate([piece.each_code() for piece in pieces]) if weighted else None,
        )

    @classmethod
    def of_lengths(cls, values: np.ndarray, lengths: np.ndarray, codes: np.ndarray | None = None) -> "Ragged":
        """Values row after row, with the number of each row's."""
        return cls(values, offsets_of(lengths), codes)

    @classmethod
    def from_lists(
        cls, lists: Iterable[Sequence[int]], codes: Iterable[Sequence[int]] | None = None
    ) -> "Ragged":
        """Small literal batches, mostly for tests."""
        rows = [np.asarray(row, dtype=np.int32) for row in lists]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        values = np.concatenate(rows) if rows else np.empty(0, dtype=np.int32)
        flat = None if codes is None else np.asarray([code for row in codes for code in row], dtype=np.uint8)
        return cls(values.astype(np.int32), offsets, flat)

    @classmethod
    def from_arrow(
        cls, column: pa.ListArray | pa.ChunkedArray, codes: pa.Array | pa.ChunkedArray | None = None
    ) -> "Ragged":
        """A list<int32> column, slices rebased; a null list is an error, an empty one is not.

        Args:
            column: The ids.
            codes: A byte for each of them.
        """
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
        ids, offsets = values.to_numpy().astype(np.int32, copy=False), offsets - offsets[0]
        return cls(ids, offsets, None if codes is None else matching_codes(codes, np.diff(offsets)))


def matching_codes(column: pa.Array | pa.ChunkedArray, lengths: np.ndarray) -> np.ndarray:
    """uint8 codes of all rows, as many as each row has tokens.

    Raises:
        DataError: A row has more or fewer.
    """
    codes, found = bytes_of(column)
    if not np.array_equal(found, lengths):
        row = (
            int(np.argmin(found == lengths)) if len(found) == len(lengths) else min(len(found), len(lengths))
        )
        raise DataError(
            "the weights of tokens do not go with the tokens",
            found=f"{found[row : row + 1].tolist()} weights for {lengths[row : row + 1].tolist()} tokens in "
            f"row {row}",
            expected="a weight for each token",
            remedy="rebuild feature_tokens, then the training set",
        )
    return codes


def _chosen(codes: np.ndarray | None, places: np.ndarray | slice) -> np.ndarray | None:
    return None if codes is None else codes[places]


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
        float32 CSR [rows, sum of sizes]. A token counts 1, or where it has a code the number of its class of
        events (1, 2, 3 for 3 or 4, 4 for up to 8, …); one that a row holds twice counts the sum.
    """
    from scipy import sparse  # executors that encode do without

    lengths = np.stack([bags[name].lengths for name in vocabulary_sizes], axis=1)  # rows × fields
    cell_ends = np.cumsum(lengths.ravel()).reshape(lengths.shape)
    cell_starts = cell_ends - lengths
    columns = np.empty(lengths.sum(), dtype=np.int32)
    entries = np.ones(len(columns), dtype=np.float32)
    first_column = 0
    for index, (name, size) in enumerate(vocabulary_sizes.items()):
        bag = bags[name]
        shift = np.repeat(cell_starts[:, index] - bag.offsets[:-1], bag.lengths)
        places = np.arange(len(bag.values)) + shift
        columns[places] = bag.values + first_column
        if bag.codes is not None:
            entries[places] = events_class(bag.codes) + np.uint8(1)
        first_column += size
    row_ends = cell_ends[:, -1]
    matrix = sparse.csr_matrix(
        (entries, columns, np.concatenate([[0], row_ends])),
        shape=(len(lengths), first_column),
    )
    matrix.sum_duplicates()
    return matrix
