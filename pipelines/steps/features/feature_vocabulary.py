"""The frozen token → id vocabulary, and the one function that turns tokens into ids.

Training and scoring both call `Vocabulary.encode`. Fitting lives here too; nothing that runs at
scoring time may extend a vocabulary.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.steps.config.behaviour_names import is_behaviour, weights_column
from pipelines.steps.errors import BundleError, DataError
from pipelines.steps.features.behaviour_codes import NONE, ZERO, parsed_token
from pipelines.steps.features.encoded_rows import (
    MISSING_ID,
    RESERVED_IDS,
    UNKNOWN_ID,
    EncodedRows,
    Ragged,
    matching_codes,
    offsets_of,
)
from pipelines.steps.features.token_weights import PLAIN
from pipelines.steps.table_columns import TableColumn

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

    from pipelines.steps.features.token_fields import TokenField


@dataclass(frozen=True)
class FieldVocabulary:
    """One field's tokens. Token i has id i + RESERVED_IDS.

    Attributes:
        name: The field.
        max_length: Tokens kept per row at most, the first ones.
        tokens: Distinct tokens, oldest first: append-only.
        weighted: Whether each token comes with a code that says what it weighs.
    """

    name: str
    max_length: int
    tokens: tuple[str, ...]
    weighted: bool = False

    @property
    def size(self) -> int:
        """Number of ids, the reserved ones included."""
        return len(self.tokens) + RESERVED_IDS

    @cached_property
    def _value_set(self) -> pa.Array:
        return pa.array(self.tokens, type=pa.string())

    def encode(
        self, column: pa.Array | pa.ChunkedArray, weights: pa.Array | pa.ChunkedArray | None = None
    ) -> Ragged:
        """Turns a list column of strings, or of codes into a dictionary of strings, into ids.

        A token not in the vocabulary gets UNKNOWN_ID, an empty or null list one MISSING_ID; a list
        longer than `max_length` keeps its first tokens. Null tokens within a list are unknown.

        A call builds a hash table of the whole vocabulary (PyArrow keeps none between calls), so it pays
        to encode tens of thousands of rows at once.

        Args:
            column: The tokens.
            weights: Bytes, what each of them weighs; they stay with their tokens.
        """
        if isinstance(column, pa.ChunkedArray):
            column = _one_chunk(column)
        if column.null_count:
            column = _without_null_lists(column)
        offsets = column.offsets.to_numpy().astype(np.int64)
        ids = self._ids_of(column.values.slice(offsets[0], offsets[-1] - offsets[0]))
        offsets -= offsets[0]
        lengths = np.diff(offsets)
        codes = None if weights is None else matching_codes(weights, lengths)
        if len(lengths) and lengths.max() > self.max_length:
            kept = _is_kept(offsets, lengths, self.max_length)
            ids, codes = ids[kept], None if codes is None else codes[kept]
            lengths = np.minimum(lengths, self.max_length)
            offsets = offsets_of(lengths)
        if len(lengths) and lengths.min() == 0:
            empty = offsets[:-1][lengths == 0]
            ids = np.insert(ids, empty, MISSING_ID)
            codes = None if codes is None else np.insert(codes, empty, PLAIN)
            offsets = offsets_of(np.maximum(lengths, 1))
        return Ragged(ids, offsets, codes)

    def translate(self, bag: Ragged, given: "FieldVocabulary") -> Ragged:
        """Ids that another vocabulary of the field gave, as this one's."""
        reserved = np.asarray([MISSING_ID, UNKNOWN_ID], dtype=np.int32)
        ids = np.concatenate([reserved, self._ids_of(pa.array(given.tokens, pa.string()))])[bag.values]
        lengths, codes = bag.lengths, bag.codes if self.weighted else None
        if len(lengths) and lengths.max() > self.max_length:
            kept = _is_kept(bag.offsets, lengths, self.max_length)
            ids, codes = ids[kept], None if codes is None else codes[kept]
            lengths = np.minimum(lengths, self.max_length)
        return Ragged.of_lengths(ids, lengths, codes)

    def missing(self, rows: int) -> Ragged:
        """So many rows without a token."""
        ids, one = np.full(rows, MISSING_ID, dtype=np.int32), np.ones(rows, dtype=np.int64)
        return Ragged.of_lengths(ids, one, np.full(rows, PLAIN, dtype=np.uint8) if self.weighted else None)

    def _ids_of(self, tokens: pa.Array) -> np.ndarray:
        """int32, one id per token. Of tokens in a dictionary, only the distinct ones are looked up."""
        if pa.types.is_dictionary(tokens.type):
            ids_of_codes = np.append(self._ids_of(tokens.dictionary), np.int32(UNKNOWN_ID))
            codes = tokens.indices.fill_null(len(tokens.dictionary))
            return np.take(ids_of_codes, np.asarray(codes))
        found = pc.index_in(tokens, value_set=self._value_set)
        if found.null_count and is_behaviour(self.name):
            others = tokens.filter(found.is_null()).unique()
            known = dict(zip(others.to_pylist(), map(self._nearest, others.to_pylist()), strict=True))
            places = pa.array([known[token] for token in others.to_pylist()], pa.int32())
            found = pc.coalesce(found, places.take(pc.index_in(tokens, value_set=others)))
        found = found.fill_null(UNKNOWN_ID - RESERVED_IDS)
        return found.to_numpy() + np.int32(RESERVED_IDS)  # type: ignore[no-any-return]

    def _nearest(self, token: str | None) -> int | None:
        """The place of the token of the same behaviour with the nearest code, the one nearer to 0 of two.

        A number that was rare, or never seen, in training is not one that nothing is known of.
        """
        name, code = parsed_token(token or "") or ("", NONE)
        known = self._codes.get(name)
        if known is None or code == NONE:
            return None
        return min(known, key=lambda entry: (abs(entry[0] - code), abs(entry[0] - ZERO)))[1]

    @cached_property
    def _codes(self) -> Mapping[str, list[tuple[int, int]]]:
        """Behaviour → code and place of each of its tokens, but for the one of what never was."""
        found: dict[str, list[tuple[int, int]]] = {}
        for place, token in enumerate(self.tokens):
            name, code = parsed_token(token) or ("", NONE)
            if code != NONE:
                found.setdefault(name, []).append((code, place))
        return found


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    if not column.num_chunks:
        return pa.array([], type=column.type)
    return pa.concat_arrays(column.unify_dictionaries().chunks)


def _without_null_lists(column: pa.Array) -> pa.Array:
    """Null lists become empty ones; what the format lets them hide is left out."""
    lengths = pc.list_value_length(column).fill_null(0).to_numpy()
    return pa.ListArray.from_arrays(pa.array(offsets_of(lengths), pa.int32()), column.flatten())


def _is_kept(offsets: np.ndarray, lengths: np.ndarray, max_length: int) -> np.ndarray:
    """Which values are among the first `max_length` of their row."""
    too_long = np.flatnonzero(lengths > max_length)
    change = np.zeros(offsets[-1] + 1, dtype=np.int8)
    change[offsets[too_long] + max_length] += 1
    change[offsets[too_long + 1]] -= 1
    return np.cumsum(change[:-1], dtype=np.int8) == 0  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Vocabulary:
    """Every field's vocabulary, in field order, with one content hash."""

    fields: tuple[FieldVocabulary, ...]

    @cached_property
    def hash(self) -> str:
        """sha256 over all there is; two vocabularies are equal iff their hashes are."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @property
    def sizes(self) -> dict[str, int]:
        """Field name → number of ids, the reserved ones included."""
        return {field.name: field.size for field in self.fields}

    @property
    def columns(self) -> list[str]:
        """The columns of feature tokens that are encoded: each field's tokens, and what they weigh."""
        weights = [weights_column(field.name) for field in self.fields if field.weighted]
        return [*(field.name for field in self.fields), *weights]

    def only(self, names: Sequence[str]) -> "Vocabulary":
        """Of some fields, in the order of the names.

        Raises:
            DataError: One is not in it.
        """
        known = {field.name: field for field in self.fields}
        missing = [name for name in names if name not in known]
        if missing:
            raise DataError(
                "the vocabulary lacks fields that fields.yaml or an audience has brought in",
                found=list(known),
                expected=list(names),
                remedy="run training_job, which fits the vocabulary first",
            )
        return Vocabulary(tuple(known[name] for name in names))

    def translate(self, rows: EncodedRows, given: "Vocabulary") -> EncodedRows:
        """Rows that another vocabulary encoded, as this one would have: known tokens keep their meaning.

        What `given` did not know stays unknown, and a field that it lacks is missing in every row.
        """
        number = next(iter(rows.values())).rows
        fields = {field.name: field for field in given.fields}
        return {
            field.name: field.translate(rows[field.name], fields[field.name])
            if field.name in fields
            else field.missing(number)
            for field in self.fields
        }

    def encode(self, batch: pa.RecordBatch | pa.Table) -> EncodedRows:
        """Ids of every field of a batch of feature tokens; the only way tokens become ids."""
        missing = [name for name in self.columns if name not in batch.schema.names]
        if missing:
            raise DataError(
                "feature tokens lack fields that the vocabulary has",
                found=batch.schema.names,
                expected=self.columns,
                remedy=f"rebuild feature_tokens with the fields {missing}, or train on the fields there are",
            )
        return {
            field.name: field.encode(
                batch.column(field.name),
                batch.column(weights_column(field.name)) if field.weighted else None,
            )
            for field in self.fields
        }

    def save(self, path: Path) -> None:
        path.write_bytes(self.to_json())

    @classmethod
    def load(cls, path: Path, *, expected_hash: str | None = None) -> "Vocabulary":
        """Reads a vocabulary; with `expected_hash`, refuses any other content.

        Raises:
            BundleError: The file is missing, damaged, or of another hash.
        """
        try:
            fields = json.loads(path.read_bytes())
            vocabulary = cls(
                tuple(
                    FieldVocabulary(f["name"], f["max_length"], tuple(f["tokens"]), f.get("weighted", False))
                    for f in fields
                )
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"vocabulary {path} cannot be read",
                found=repr(error),
                expected="a vocabulary.json written by this project",
                remedy="materialize feature_vocabulary again, or restore the bundle",
            ) from error
        if expected_hash is not None and vocabulary.hash != expected_hash:
            raise BundleError(
                f"vocabulary {path} does not match its hash",
                found=vocabulary.hash,
                expected=expected_hash,
                remedy="restore the file, or train again",
            )
        return vocabulary

    def to_json(self) -> bytes:
        """Canonical: equal vocabularies are equal bytes."""
        fields = [
            {"name": f.name, "max_length": f.max_length, "tokens": f.tokens}
            | ({"weighted": True} if f.weighted else {})  # unsaid where it is not: as it was before
            for f in self.fields
        ]
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def count_token_devices(feature_tokens: "DataFrame", fields: Sequence[str]) -> "DataFrame":
    """Distinct devices per (field, token), over all rows given.

    Args:
        feature_tokens: `device_id` and one array<string> column per field; any number of as-of days.
        fields: The fields to count.

    Returns:
        `field`, `token`, `devices`.
    """
    from pyspark.sql import functions as F  # a bundle must score where there is no Spark

    def entries(name: str) -> "Column":
        return F.transform(name, lambda token: F.struct(F.lit(name).alias("field"), token.alias("token")))

    tokens = feature_tokens.select("device_id", F.inline(F.concat(*map(entries, fields)))).distinct()
    return tokens.groupBy("field", "token").agg(F.count("*").alias("devices"))


def fit_vocabulary(
    counts: pa.Table, fields: Sequence["TokenField"], previous: Vocabulary | None = None
) -> Vocabulary:
    """Fits a vocabulary, or appends to one: a token once admitted keeps its id.

    Args:
        counts: `field`, `token`, `devices`.
        fields: Their order, `min_devices`, `max_vocabulary` and `max_length` hold.
        previous: The vocabulary to append to.

    Returns:
        Each field's tokens seen on at least `min_devices` devices, most devices first, then in lexical
        order, after those of `previous`, up to `max_vocabulary`. Equal to `previous` if nothing is new.
    """
    known = {field.name: field.tokens for field in previous.fields} if previous else {}
    fitted = []
    for field in fields:
        mine = _common_tokens(counts, field)
        old = known.get(field.name, ())
        seen = set(old)
        new = [token for token in mine.column("token").to_pylist() if token not in seen]
        room = max(0, field.max_vocabulary - len(old))
        weighted = not is_behaviour(field.name)
        fitted.append(FieldVocabulary(field.name, field.max_length, (*old, *new[:room]), weighted))
    return Vocabulary(tuple(fitted))


def table_columns(fields: Sequence[str]) -> dict[str, TableColumn]:
    """The columns of the vocabulary, had it been a table."""
    return {
        "field": TableColumn("string", "The field."),
        "token": TableColumn(
            "string", "A token that enough devices share.", {"feature_tokens": list(fields)}
        ),
        "id": TableColumn("int", f"Its id, for good: {RESERVED_IDS} is the first of a field."),
    }


def show_tokens(
    counts: pa.Table, fields: Sequence["TokenField"], vocabulary: Vocabulary, most: int = 5
) -> list[dict[str, str]]:
    """The tokens of each field that most devices share, for people; none seen on too few this time."""
    known = {field.name: field.tokens for field in vocabulary.fields}
    return [
        {
            "field": field.name,
            "token": each["token"],
            "id": str(known[field.name].index(each["token"]) + RESERVED_IDS),
            "devices": str(each["devices"]),
        }
        for field in fields
        for each in _common_tokens(counts, field).slice(0, most).to_pylist()
        if each["token"] in known[field.name]
    ]


def _common_tokens(counts: pa.Table, field: "TokenField") -> pa.Table:
    """The tokens of a field on enough devices, those on most devices first."""
    enough = (pc.field("field") == field.name) & (pc.field("devices") >= field.min_devices)
    return counts.filter(enough).sort_by([("devices", "descending"), ("token", "ascending")])
