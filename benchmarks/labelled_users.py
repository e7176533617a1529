"""Labelled rows of any data set, split, encoded and ready to train on, by the project's own steps.

What does not belong here: what is trained and how it is judged.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.steps.errors import DataError
from pipelines.steps.features.encoded_rows import EncodedRows, Ragged
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.labels.training_rows import TEST, TRAIN, VALIDATION, TrainingRows

TRAIN_SHARE, VALIDATION_SHARE = 0.6, 0.2
MIN_ROWS = 5
"""Training rows that must hold a token before it enters the vocabulary: the project's own default."""
MAX_VOCABULARY = 50_000
"""Tokens of a field: the project's own default."""


@dataclass(frozen=True)
class Users:
    """Rows of `id` (string), `label` (0 or 1) and features, each a list of strings."""

    ids: pa.Array
    labels: np.ndarray
    features: pa.Table


def read_users(folder: Path, label: str = "label") -> Users:
    """Reads `users.parquet`; a feature column holds strings or lists of strings, nulls are no token.

    Raises:
        DataError: The file, the id or the label is missing, or a feature is of another type.
    """
    path = folder / "users.parquet"
    if not path.is_file():
        raise DataError(
            f"there is no {path}", found="nothing", expected="a Parquet file", remedy="name another --data"
        )
    table = pq.read_table(path)
    missing = [name for name in ("id", label) if name not in table.column_names]
    if missing:
        raise DataError(
            f"{path} lacks the column {missing[0]}",
            found=table.column_names,
            expected=f"id and {label}",
            remedy="rename the column, or name the label with --label",
        )
    labels = table.column(label).cast(pa.float32()).to_numpy()
    if not np.isin(labels, [0, 1]).all():
        raise DataError(
            f"the column {label} of {path} is no label",
            found=np.unique(labels)[:5].tolist(),
            expected="0 or 1 in every row",
            remedy="name another column with --label",
        )
    names = [name for name in table.column_names if name not in ("id", label)]
    features = {name: _as_lists(name, table.column(name)) for name in names}
    return Users(table.column("id").cast(pa.string()).combine_chunks(), labels, pa.table(features))


def split_users(users: Users, seed: int) -> np.ndarray:
    """int8 [rows]: 60% TRAIN, 20% VALIDATION, 20% TEST, by a seeded hash of the id."""
    salt = f"{seed}:".encode()
    digests = b"".join(
        hashlib.blake2b(salt + value.encode(), digest_size=8).digest() for value in users.ids.to_pylist()
    )
    place = np.frombuffer(digests, dtype=np.uint64) / 2.0**64
    return np.select(
        [place < TRAIN_SHARE, place < TRAIN_SHARE + VALIDATION_SHARE], [TRAIN, VALIDATION], TEST
    ).astype(np.int8)


def encode_users(users: Users, split: np.ndarray) -> tuple[TrainingRows, Vocabulary]:
    """Rows whose vocabulary is fitted on the TRAIN rows; features that these have none of are left out."""
    train = users.features.filter(pa.array(split == TRAIN))
    told = [name for name in train.column_names if _has_tokens(train.column(name))]
    vocabulary = Vocabulary(tuple(_fit_field(name, train.column(name)) for name in told))
    bags: EncodedRows = vocabulary.encode(users.features.select(told))
    return TrainingRows(users.labels, split, {name: _int32(bag) for name, bag in bags.items()}), vocabulary


def _has_tokens(column: pa.ChunkedArray) -> bool:
    tokens = column.combine_chunks().flatten()
    return bool(len(tokens) > tokens.null_count)


def _fit_field(name: str, column: pa.ChunkedArray) -> FieldVocabulary:
    lists = column.combine_chunks()
    longest = pc.max(pc.list_value_length(lists)).as_py() or 1
    entries = pa.table({"row": pc.list_parent_indices(lists), "token": lists.flatten()})
    counts = entries.group_by(["row", "token"]).aggregate([]).group_by("token").aggregate([([], "count_all")])
    kept = counts.filter(pc.field("count_all") >= MIN_ROWS).filter(pc.field("token").is_valid())
    kept = kept.sort_by([("count_all", "descending"), ("token", "ascending")])
    return FieldVocabulary(name, max(1, longest), tuple(kept.column("token").to_pylist()[:MAX_VOCABULARY]))


def _as_lists(name: str, column: pa.ChunkedArray) -> pa.Array:
    values = column.combine_chunks()
    kind = values.type.value_type if _is_list(values.type) else values.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(
            f"feature {name} is of a type that is no category",
            found=values.type,
            expected="string or list<string>",
            remedy="bin numbers, or leave the column out",
        )
    if _is_list(values.type):
        return values.cast(pa.list_(pa.string()))
    values = values.cast(pa.string())
    present = values.is_valid()
    offsets = np.concatenate([[0], np.cumsum(np.asarray(present))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values.drop_null())


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _int32(bag: Ragged) -> Ragged:
    return Ragged(bag.values.astype(np.int32, copy=False), bag.offsets)
