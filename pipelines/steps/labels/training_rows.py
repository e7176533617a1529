"""The rows a model is trained on: labels, splits and encoded tokens, as flat arrays.

What belongs here: reading the training set, and the refusals that hold for every model. What does not:
anything about one kind of model.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.steps.config.behaviour_names import weights_column
from pipelines.steps.errors import DataError, TrainingError
from pipelines.steps.features.encoded_rows import MISSING_ID, EncodedRows, Ragged

TRAIN = 0
VALIDATION = 1
TEST = 2
PROMOTION = 3
"""Rows that decide whether a new champion serves; nothing of a training may read them."""
OUT_OF_TIME = 4
"""Rows of the newest as-of day, which nothing of a rehearsal has seen; IN_TIME alone has it."""
LEFT_OUT = -1
"""Rows that a rehearsal does not know of; IN_TIME alone has it."""
SPLIT, IN_TIME = "split", "split_in_time"
"""Columns of a training set: a device's split, and a row's in the rehearsal, which ends earlier."""
SPLIT_NAMES: Mapping[int, str] = {
    TRAIN: "train",
    VALIDATION: "validation",
    TEST: "test",
    PROMOTION: "promotion",
}


@dataclass(frozen=True)
class TrainingRows:
    """Labelled, encoded rows of one or more splits.

    Attributes:
        labels: float32 [rows], 0 or 1.
        split: int8 [rows], one of TRAIN, VALIDATION, TEST, PROMOTION; of a rehearsal OUT_OF_TIME, too.
        bags: Field name → ids of every row, in field order.
    """

    labels: np.ndarray
    split: np.ndarray
    bags: EncodedRows

    @property
    def rows(self) -> int:
        return len(self.labels)

    def subset(self, split: int) -> "TrainingRows":
        """The rows of one split, in their order."""
        return self.where(self.split == split)

    def where(self, chosen: np.ndarray) -> "TrainingRows":
        """The rows chosen, bool [rows], in their order."""
        rows = np.flatnonzero(chosen)
        bags = {name: bag.take(rows) for name, bag in self.bags.items()}
        return TrainingRows(self.labels[rows], self.split[rows], bags)

    @classmethod
    def concatenated(cls, parts: Sequence["TrainingRows"]) -> "TrainingRows":
        """The rows of several, of the same fields."""
        return cls(
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.split for part in parts]),
            {name: Ragged.concatenated([part.bags[name] for part in parts]) for name in parts[0].bags},
        )


@dataclass(frozen=True)
class Refit:
    """The VALIDATION and TEST rows as TRAIN rows, for what learns from all of them and is measured on none.

    Attributes:
        negatives_kept: Share of their negatives that is kept, drawn: that of the TRAIN rows.
        seed: Of the draw.
    """

    negatives_kept: float = 1.0
    seed: int = 0

    def splits(self, rows: TrainingRows, group: int) -> np.ndarray:
        """int8 [rows]: TRAIN instead of both; LEFT_OUT where a negative is not drawn."""
        added = np.isin(rows.split, (VALIDATION, TEST))
        drawn = np.random.default_rng([self.seed, group]).random(rows.rows) < self.negatives_kept
        learned = np.where((rows.labels == 1) | drawn, TRAIN, LEFT_OUT)
        return np.where(added, learned, rows.split).astype(np.int8)


class TrainingFiles:
    """Parquet files of `label` (int8), `split` (int8) and one list<int32> column per field, read in groups.

    Where a field's tokens weigh, a column of as many bytes (`weights_column`) is read with it.

    Args:
        paths: The files.
        fields: Field names, in field order.
        split: The column that says which split a row is in: SPLIT, or IN_TIME for a rehearsal.
        refit: What becomes of VALIDATION and TEST rows; None: they are what they are.

    Raises:
        DataError: There is no file, one cannot be read, or a column is missing, null or of another type.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        fields: Sequence[str],
        split: str = SPLIT,
        refit: Refit | None = None,
    ) -> None:
        if not paths:
            raise DataError(
                "the training set has no files",
                found="an empty list of paths",
                expected="at least one Parquet file",
                remedy="materialize training_set first",
            )
        self.paths = tuple(paths)
        self.split = split
        self.refit = refit
        self._fields = list(fields)
        self._groups: list[tuple[Path, int]] = []
        with _open_parquet(paths[0]) as first:
            self._weighted = {f for f in fields if weights_column(f) in first.schema_arrow.names}
        for path in paths:
            with _open_parquet(path) as file:
                _check_schema(path, file.schema_arrow, fields, self._weighted, split)
                self._groups += [(path, group) for group in range(file.num_row_groups)]

    @property
    def groups(self) -> int:
        """Number of row groups."""
        return len(self._groups)

    def read(self, splits: Collection[int] | None = None) -> TrainingRows:
        """All rows, or those of some splits, straight into flat arrays: no Python object per row."""
        groups = [self._read(group, self._fields) for group in range(self.groups)]
        if splits is not None:
            groups = [rows.where(np.isin(rows.split, list(splits))) for rows in groups]
        return TrainingRows.concatenated(groups) if groups else _no_rows(self._fields)

    def read_group(self, group: int, split: int) -> TrainingRows:
        """The rows of a split in one row group."""
        return self._read(group, self._fields).subset(split)

    def labels(self, split: int) -> np.ndarray:
        """float32 [rows of the split], in the order of the files."""
        found = [self._read(group, []).subset(split).labels for group in range(self.groups)]
        return np.concatenate(found) if found else np.empty(0, dtype=np.float32)

    def devices(self, split: int) -> np.ndarray:
        """A number for each row of the split, in the order of the files: that of its device.

        Raises:
            DataError: The files do not say whose rows they hold.
        """
        ids = [self._read_devices(group, split) for group in range(self.groups)]
        return np.unique(np.concatenate(ids), return_inverse=True)[1] if ids else np.empty(0, dtype=np.int64)

    def count(self, split: int) -> int:
        """Rows of the split."""
        return sum(int(np.count_nonzero(self._read(g, []).split == split)) for g in range(self.groups))

    def check(self, vocabulary_sizes: Mapping[str, int], splits: Sequence[int] = (TRAIN, VALIDATION)) -> None:
        """Checks the splits as the functions below do, without holding them in memory.

        Raises:
            TrainingError: As these.
        """
        _require_fields(self._fields)
        empty, counts = set(self._fields), _LabelCounts()
        for group in range(self.groups):
            rows = self._read(group, self._fields)
            check_vocabulary(rows.bags, vocabulary_sizes)
            train = rows.subset(TRAIN)
            empty -= {name for name in empty if np.any(train.bags[name].values != MISSING_ID)}
            counts.add(rows)
        counts.check(splits)
        for name in self._fields:
            if name in empty:
                raise _no_token(name, counts.of(TRAIN)[0])

    def fingerprint(self) -> bytes:
        """A hash of names, sizes and times: a file of the lake never changes once written."""
        paths = sorted({path for path, _ in self._groups})
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        return hashlib.sha256(repr((stats, self._fields, self.split, self.refit)).encode()).digest()

    def to_refit(self, negatives_kept: float, seed: int) -> "TrainingFiles":
        """The same files with VALIDATION and TEST rows among the TRAIN rows, see `Refit`."""
        return TrainingFiles(self.paths, self._fields, self.split, Refit(negatives_kept, seed))

    def _read_devices(self, group: int, split: int) -> np.ndarray:
        path, number = self._groups[group]
        with _open_parquet(path) as file:
            if "device_id" not in file.schema_arrow.names:
                raise DataError(
                    f"training set file {path} does not say whose rows it holds",
                    found=file.schema_arrow.names,
                    expected="the column device_id",
                    remedy="materialize training_set again",
                )
            table = file.read_row_group(number, columns=["device_id", self.split])
        own = table.filter(_flat_column(path, table, self.split) == split)
        return np.asarray(own.column("device_id").to_pylist(), dtype=object)

    def _read(self, group: int, fields: Sequence[str]) -> TrainingRows:
        path, number = self._groups[group]
        weights = {name: weights_column(name) for name in fields if name in self._weighted}
        with _open_parquet(path) as file:
            table = file.read_row_group(number, columns=["label", self.split, *fields, *weights.values()])
        rows = TrainingRows(
            _flat_column(path, table, "label").astype(np.float32),
            _flat_column(path, table, self.split).astype(np.int8),
            {
                name: Ragged.from_arrow(
                    table.column(name), table.column(weights[name]) if name in weights else None
                )
                for name in fields
            },
        )
        return replace(rows, split=self.refit.splits(rows, group)) if self.refit else rows


def check_trainable(rows: TrainingRows, splits: Sequence[int] = (TRAIN, VALIDATION, TEST)) -> None:
    """Refuses rows that no model could be trained or measured on.

    Args:
        rows: All splits together.
        splits: The splits that will be used; training itself never reads TEST.

    Raises:
        TrainingError: No field, an empty split, no positives, one class in a split, or a field
            whose training bags hold no token.
    """
    _require_fields(list(rows.bags))
    counts = _LabelCounts()
    counts.add(rows)
    counts.check(splits)
    for name, bag in rows.subset(TRAIN).bags.items():
        if not np.any(bag.values != MISSING_ID):
            raise _no_token(name, bag.rows)


def check_vocabulary(bags: EncodedRows, vocabulary_sizes: Mapping[str, int]) -> None:
    """Refuses ids that the vocabulary cannot have given.

    Raises:
        TrainingError: Other fields than the vocabulary's, or an id outside it.
    """
    if list(bags) != list(vocabulary_sizes):
        raise TrainingError(
            "the training set and the vocabulary have different fields",
            found=list(bags),
            expected=list(vocabulary_sizes),
            remedy="rebuild training_set with this vocabulary",
        )
    for name, bag in bags.items():
        size = vocabulary_sizes[name]
        if len(bag.values) and not 0 <= bag.values.min() <= bag.values.max() < size:
            raise TrainingError(
                f"field {name!r} holds ids outside its vocabulary",
                found=f"ids from {bag.values.min()} to {bag.values.max()}",
                expected=f"ids from 0 to {size - 1}",
                remedy="rebuild training_set with this vocabulary",
            )


def checked_splits(
    rows: TrainingRows, vocabulary_sizes: Mapping[str, int], splits: Sequence[int]
) -> list[TrainingRows]:
    """The rows of each split, in the order of the splits, once they are known to be fit for training.

    Raises:
        TrainingError: They are not trainable, or hold fields or ids that are not of the vocabulary.
    """
    check_trainable(rows, splits)
    check_vocabulary(rows.bags, vocabulary_sizes)
    return [rows.subset(split) for split in splits]


def _require_fields(fields: Sequence[str]) -> None:
    if not fields:
        raise TrainingError(
            "the training set has no feature fields",
            found="0 fields",
            expected="at least one field of encoded tokens",
            remedy="name fields in audiences/fields.yaml",
        )


def _no_token(field: str, rows: int) -> TrainingError:
    return TrainingError(
        f"field {field!r} has no token in any training row",
        found=f"only the MISSING id in {rows} rows",
        expected="some tokens",
        remedy="check the field's column and normalizer, lower its min_devices, or remove the field",
    )


def _no_rows(fields: Sequence[str]) -> TrainingRows:
    bags = {name: Ragged.concatenated([]) for name in fields}
    return TrainingRows(np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int8), bags)


class _LabelCounts:
    """Rows, positives and negatives of each split."""

    def __init__(self) -> None:
        self._counts = {split: np.zeros(3, dtype=np.int64) for split in SPLIT_NAMES}

    def add(self, rows: TrainingRows) -> None:
        for split, counts in self._counts.items():
            labels = rows.labels[rows.split == split]
            found = [len(labels), np.count_nonzero(labels == 1), np.count_nonzero(labels == 0)]
            counts += np.asarray(found, dtype=np.int64)

    def of(self, split: int) -> tuple[int, int, int]:
        rows, positives, negatives = (int(count) for count in self._counts[split])
        return rows, positives, negatives

    def check(self, splits: Sequence[int]) -> None:
        for split in splits:
            self._check(split)

    def _check(self, split: int) -> None:
        name = SPLIT_NAMES[split]
        rows, positives, negatives = self.of(split)
        found = f"{positives} positives and {negatives} negatives in {rows} rows"
        if not rows:
            raise TrainingError(
                f"split {name!r} has no rows",
                found=f"{sum(self.of(other)[0] for other in SPLIT_NAMES)} rows in other splits",
                expected="rows in every split",
                remedy="add as-of days to train on, or shorten the horizon",
            )
        if positives + negatives != rows:
            raise TrainingError(
                f"split {name!r} holds labels that are neither 0 nor 1",
                found=found,
                expected="0 or 1 for every row",
                remedy="rebuild training_set",
            )
        if not positives:
            raise TrainingError(
                f"split {name!r} has no positives",
                found=found,
                expected="both classes",
                remedy="widen the audience's label or its horizon, or add as-of days",
            )
        if not negatives:
            raise TrainingError(
                f"split {name!r} has only one class",
                found=found,
                expected="both classes",
                remedy="narrow the audience's label: it now holds for every device",
            )


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"training set file {path} cannot be read",
            found=repr(error),
            expected="a Parquet file",
            remedy="materialize training_set again",
        ) from error


def _check_schema(
    path: Path, schema: pa.Schema, fields: Sequence[str], weighted: Collection[str], split: str
) -> None:
    expected = {"label": "int8", split: "int8"} | dict.fromkeys(fields, "list<int32>")
    expected |= {weights_column(name): "binary" for name in fields if name in weighted}
    found = {name: _type_name(schema.field(name).type) for name in expected if name in schema.names}
    if found != expected:
        raise DataError(
            f"training set file {path} has other columns than expected",
            found=found,
            expected=expected,
            remedy="rebuild training_set with the fields of audiences/fields.yaml",
        )


def _type_name(column_type: pa.DataType) -> str:
    if pa.types.is_list(column_type):
        return f"list<{column_type.value_type}>"  # whatever the writer called the list's element
    return str(column_type)


def _flat_column(path: Path, table: pa.Table, name: str) -> np.ndarray:
    column = table.column(name)
    if column.null_count:
        raise DataError(
            f"column {name!r} of training set file {path} holds nulls",
            found=f"{column.null_count} nulls in {len(column)} rows",
            expected="no nulls",
            remedy="rebuild training_set",
        )
    return np.asarray(column)
