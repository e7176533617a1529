"""Tokens to ids: the one encoding that training and scoring share, and how its vocabulary is fitted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.steps.config.fields import FieldSpec
from pipelines.steps.errors import BundleError, DataError
from pipelines.steps.features.behaviour_codes import LABELS
from pipelines.steps.features.encoded_rows import MISSING_ID, RESERVED_IDS, UNKNOWN_ID, Ragged
from pipelines.steps.features.feature_vocabulary import (
    FieldVocabulary,
    Vocabulary,
    count_token_devices,
    fit_vocabulary,
    show_tokens,
)
from pipelines.steps.scoring.parity import encode_plainly
from tests.conftest import Frame

TOKENS = pa.list_(pa.string())
APPS = FieldVocabulary("apps", 3, ("a", "b", "c"))
MODEL = FieldVocabulary("model", 1, ("pixel",))
VOCABULARY = Vocabulary((APPS, MODEL))

IDS = pa.list_(pa.int32())
Bags = list[list[str | None] | None]


def arrow_lists(rows: Sequence[object], kind: pa.DataType = TOKENS) -> Any:
    """An Arrow array of lists; pyarrow's own types tell too many kinds apart to be of help here."""
    return pa.array(rows, kind)


def arrow_chunks(chunks: Any, kind: Any = TOKENS) -> Any:
    return pa.chunked_array(chunks, type=kind)


def to_lists(ragged: Ragged) -> list[list[int]]:
    return [
        ragged.values[begin:end].tolist()
        for begin, end in zip(ragged.offsets[:-1], ragged.offsets[1:], strict=True)
    ]


# --- behaviour ----------------------------------------------------------------------------------


BEHAVED = FieldVocabulary("behaviour", 2, ("events_7d=2", "events_7d=8", "recency=none", "recency=1"))


@pytest.mark.parametrize(
    ("token", "known"),
    [
        ("events_7d=8", "events_7d=8"),
        ("events_7d=3", "events_7d=2"),
        ("events_7d=64", "events_7d=8"),
        ("events_7d=0", "events_7d=2"),
        ("events_7d=4", "events_7d=2"),  # as near to both: the one nearer to 0
        ("recency=96", "recency=1"),
        ("recency=none", "recency=none"),
    ],
)
def test_a_code_that_the_vocabulary_lacks_is_read_as_the_nearest(token: str, known: str) -> None:
    assert to_lists(BEHAVED.encode(arrow_lists([[token, token]]))) == [
        [BEHAVED.tokens.index(known) + RESERVED_IDS] * 2
    ]


@pytest.mark.parametrize("token", ["events_7d=none", "tenure=4", "events_7d=soon", "events_7d", None])
def test_what_has_no_code_of_a_known_behaviour_is_unknown(token: str | None) -> None:
    assert to_lists(BEHAVED.encode(arrow_lists([[token]]))) == [[UNKNOWN_ID]]


@given(
    st.lists(st.sampled_from(LABELS), unique=True, max_size=6),
    st.lists(st.one_of(st.none(), st.sampled_from(LABELS), st.text(max_size=3)), max_size=6),
)
def test_codes_are_read_as_the_parity_check_reads_them(known: list[str], labels: list[str | None]) -> None:
    """It shares no code with the encoding that scores."""
    vocabulary = Vocabulary((FieldVocabulary("cars_past", 9, tuple(f"days_7d={label}" for label in known)),))
    tokens = [None if label is None else f"days_7d={label}" for label in labels]
    table = pa.table({"cars_past": arrow_lists([tokens])})
    fast, plain = vocabulary.encode(table), encode_plainly(table, vocabulary)
    assert to_lists(fast["cars_past"]) == to_lists(plain["cars_past"])


def test_a_field_whose_tokens_look_like_codes_has_none_but_its_own() -> None:
    plain = FieldVocabulary("apps", 2, ("events_7d=2",))
    assert to_lists(plain.encode(arrow_lists([["events_7d=3"]]))) == [[UNKNOWN_ID]]


def test_a_vocabulary_of_some_fields_keeps_their_ids() -> None:
    assert VOCABULARY.only(["model"]) == Vocabulary((MODEL,))
    with pytest.raises(DataError, match="run training_job, which fits the vocabulary first"):
        VOCABULARY.only(["model", "cars_past"])


# --- encoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bag", "ids"),
    [
        (["a", "b", "c"], [2, 3, 4]),
        (["c", "a"], [4, 2]),
        (["a", "a"], [2, 2]),
        (["z"], [UNKNOWN_ID]),
        (["a", "z", "b"], [2, UNKNOWN_ID, 3]),
        (["A"], [UNKNOWN_ID]),  # a token is normalized before it comes here
        (["a", "b", "c", "a"], [2, 3, 4]),
        ([None], [UNKNOWN_ID]),
        ([], [MISSING_ID]),
        (None, [MISSING_ID]),
    ],
    ids=str,
)
def test_tokens_become_ids(bag: list[str | None] | None, ids: list[int]) -> None:
    assert to_lists(APPS.encode(arrow_lists([bag]))) == [ids]


def test_an_empty_batch_has_no_rows() -> None:
    assert APPS.encode(arrow_lists([])).rows == 0
    assert APPS.encode(arrow_chunks([])).rows == 0


def test_a_vocabulary_without_tokens_knows_none() -> None:
    empty = FieldVocabulary("apps", 3, ())
    assert to_lists(empty.encode(arrow_lists([["a"], []]))) == [[UNKNOWN_ID], [MISSING_ID]]


def test_nulls_that_hide_values_are_missing() -> None:
    # A null list may keep values in Arrow's buffers; they must not shift those of the rows after it.
    values: Any = pa.array(["a", "b", "c"])
    offsets, mask = pa.array([0, 2, 3], pa.int32()), pa.array([True, False])
    column: Any = pa.ListArray.from_arrays(offsets, values, mask=mask)
    assert to_lists(APPS.encode(column)) == [[MISSING_ID], [4]]


def encode_slowly(bags: Bags, field: FieldVocabulary) -> list[list[int]]:
    """The same rules, token by token."""
    ids = {token: place + RESERVED_IDS for place, token in enumerate(field.tokens)}
    return [
        [ids.get(token, UNKNOWN_ID) if token is not None else UNKNOWN_ID for token in bag[: field.max_length]]
        if bag
        else [MISSING_ID]
        for bag in bags
    ]


ANY_BAGS = st.lists(
    st.none() | st.lists(st.none() | st.sampled_from(["a", "b", "c", "z", "", "é"]), max_size=6)
)
ANY_FIELD = st.builds(
    FieldVocabulary,
    st.just("apps"),
    st.integers(1, 5),
    st.lists(st.sampled_from(["a", "b", "c", "", "é"]), unique=True).map(tuple),
)


@given(ANY_BAGS, ANY_FIELD)
def test_encoding_equals_encoding_token_by_token(bags: Bags, field: FieldVocabulary) -> None:
    encoded = field.encode(arrow_lists(bags))
    assert to_lists(encoded) == encode_slowly(bags, field)
    assert encoded.values.dtype == np.int32
    assert encoded.offsets.dtype == np.int64


@given(ANY_BAGS, ANY_FIELD, st.data())
def test_slices_and_chunks_encode_as_their_rows_do(
    bags: Bags, field: FieldVocabulary, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(bags)))
    stop = data.draw(st.integers(start, len(bags)))
    whole = arrow_lists(bags)
    assert to_lists(field.encode(whole[start:stop])) == encode_slowly(bags[start:stop], field)
    chunks = arrow_chunks([whole[:start], whole[start:stop], whole[stop:]])
    assert to_lists(field.encode(chunks)) == encode_slowly(bags, field)


def test_a_batch_is_encoded_field_by_field() -> None:
    columns: dict[str, Any] = {
        "model": [["pixel"], None],
        "apps": [["z"], ["b", "a"]],
        "other": ["x", "y"],
    }
    encoded = VOCABULARY.encode(pa.record_batch(columns))
    assert {name: to_lists(bags) for name, bags in encoded.items()} == {
        "apps": [[UNKNOWN_ID], [3, 2]],
        "model": [[2], [MISSING_ID]],
    }
    assert list(encoded) == ["apps", "model"]


def test_a_batch_without_a_field_of_the_vocabulary_is_refused() -> None:
    with pytest.raises(DataError) as raised:
        VOCABULARY.encode(pa.record_batch({"apps": [["a"]]}))
    assert str(raised.value) == (
        "feature tokens lack fields that the vocabulary has\n"
        "  found:    ['apps']\n"
        "  expected: ['apps', 'model']\n"
        "  remedy:   rebuild feature_tokens with the fields ['model'], or train on the fields there are"
    )


# --- ragged rows ----------------------------------------------------------------------------------

ID_LISTS = st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=8)


def test_ragged_rows_know_their_lengths() -> None:
    ragged = Ragged.from_lists([[1, 2], [], [3]])
    assert (ragged.rows, ragged.lengths.tolist(), ragged.offsets.tolist()) == (3, [2, 0, 1], [0, 2, 2, 3])


@given(ID_LISTS, st.data())
def test_a_slice_holds_its_rows_with_offsets_from_zero(lists: list[list[int]], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(lists)))
    stop = data.draw(st.integers(start, len(lists)))
    part = Ragged.from_lists(lists).slice(start, stop)
    assert to_lists(part) == lists[start:stop]
    assert (part.offsets[0], part.offsets[-1]) == (0, len(part.values))


@given(ID_LISTS.filter(bool), st.data())
def test_rows_are_taken_in_the_order_named(lists: list[list[int]], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1)))
    taken = Ragged.from_lists(lists).take(np.array(rows, dtype=np.int64))
    assert to_lists(taken) == [lists[row] for row in rows]


@given(ID_LISTS)
def test_chosen_ids_are_counted_and_kept_row_by_row(lists: list[list[int]]) -> None:
    ragged = Ragged.from_lists(lists)
    odd = [[token_id for token_id in row if token_id % 2] for row in lists]
    assert to_lists(ragged.filter(ragged.values % 2 == 1)) == odd
    assert ragged.count(ragged.values % 2 == 1).tolist() == [len(row) for row in odd]


@given(st.lists(ID_LISTS, max_size=3))
def test_rows_of_several_follow_one_another(pieces: list[list[list[int]]]) -> None:
    whole = Ragged.concatenated([Ragged.from_lists(lists) for lists in pieces])
    assert to_lists(whole) == [row for lists in pieces for row in lists]
    assert whole.to_arrow().to_pylist() == to_lists(whole)


@given(ID_LISTS, st.data())
def test_an_arrow_column_is_read_whatever_its_slices_and_chunks(
    lists: list[list[int]], data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(lists)))
    stop = data.draw(st.integers(start, len(lists)))
    whole = arrow_lists(lists, IDS)
    part = Ragged.from_arrow(whole[start:stop])
    assert to_lists(part) == lists[start:stop]
    assert (part.offsets[0], part.offsets[-1]) == (0, len(part.values))
    chunks = arrow_chunks([whole[:start], whole[start:]], IDS)
    assert to_lists(Ragged.from_arrow(chunks)) == lists


def test_an_arrow_column_without_chunks_has_no_rows() -> None:
    assert Ragged.from_arrow(arrow_chunks([], IDS)).rows == 0


def test_null_lists_of_ids_are_refused() -> None:
    with pytest.raises(DataError) as raised:
        Ragged.from_arrow(arrow_lists([[1], None], IDS))
    assert str(raised.value) == (
        "a column of encoded tokens holds null lists\n"
        "  found:    1 nulls in 2 rows\n"
        "  expected: no nulls: an empty bag is written as [0]\n"
        "  remedy:   rebuild the training set from feature_tokens"
    )


def test_null_ids_are_refused_where_they_are_read() -> None:
    column = arrow_lists([[1, None], [2]], IDS)
    with pytest.raises(DataError, match="null ids\n  found:    1 nulls in 3 ids"):
        Ragged.from_arrow(column)
    assert to_lists(Ragged.from_arrow(column[1:])) == [[2]]


# --- fitting --------------------------------------------------------------------------------------


def field(name: str = "apps", **changes: object) -> FieldSpec:
    settings = {"name": name, "column": name, "kind": "multi", "normalizer": "text", "min_devices": 2}
    return FieldSpec.model_validate(settings | changes)


def counts(*rows: tuple[str, str, int]) -> pa.Table:
    names = ["field", "token", "devices"]
    return pa.table({name: [row[place] for row in rows] for place, name in enumerate(names)})


def tokens_of(vocabulary: Vocabulary) -> dict[str, tuple[str, ...]]:
    return {each.name: each.tokens for each in vocabulary.fields}


def test_devices_are_counted_once_however_many_days_they_have(frame: Frame) -> None:
    feature_tokens = frame(
        "device_id string, day string, apps array<string>, model array<string>",
        [
            ("phone", "monday", ["a", "b"], ["a"]),
            ("phone", "tuesday", ["a"], ["a"]),
            ("tablet", "monday", ["a"], []),
        ],
    )
    counted = count_token_devices(feature_tokens, ["apps", "model"]).orderBy("field", "token")
    assert [tuple(row.values()) for row in counted.toArrow().to_pylist()] == [
        ("apps", "a", 2),
        ("apps", "b", 1),
        ("model", "a", 1),
    ]


def test_tokens_on_most_devices_come_first_then_in_lexical_order() -> None:
    found = counts(("apps", "b", 5), ("apps", "c", 9), ("apps", "a", 5), ("model", "x", 7))
    vocabulary = fit_vocabulary(found, [field(), field("model", kind="single", max_length=1)])
    assert tokens_of(vocabulary) == {"apps": ("c", "a", "b"), "model": ("x",)}
    assert vocabulary.sizes == {"apps": 5, "model": 3}
    assert [each.max_length for each in vocabulary.fields] == [100, 1]


def test_a_token_on_too_few_devices_is_never_stored() -> None:
    found = counts(("apps", "rare", 4), ("apps", "enough", 5))
    assert tokens_of(fit_vocabulary(found, [field(min_devices=5)])) == {"apps": ("enough",)}


def test_a_vocabulary_holds_at_most_what_it_may() -> None:
    found = counts(("apps", "a", 9), ("apps", "b", 8), ("apps", "c", 7))
    assert tokens_of(fit_vocabulary(found, [field(max_vocabulary=2)])) == {"apps": ("a", "b")}


def test_a_field_without_tokens_has_an_empty_vocabulary() -> None:
    assert tokens_of(fit_vocabulary(counts(("model", "x", 9)), [field()])) == {"apps": ()}


@pytest.mark.parametrize(
    ("rows", "tokens"),
    [
        ([("apps", "a", 9), ("apps", "new", 99)], ("b", "a", "new")),
        ([("apps", "a", 9), ("apps", "b", 1)], ("b", "a")),
        ([], ("b", "a")),
    ],
    ids=["new one last", "rare today", "gone"],
)
def test_fitting_again_appends_and_never_moves(
    rows: Sequence[tuple[str, str, int]], tokens: tuple[str, ...]
) -> None:
    previous = Vocabulary((FieldVocabulary("apps", 100, ("b", "a")),))
    table = counts(*rows) if rows else counts(("other", "x", 9))
    assert tokens_of(fit_vocabulary(table, [field()], previous)) == {"apps": tokens}


def test_fitting_the_same_again_changes_nothing() -> None:
    found = counts(("apps", "b", 5), ("apps", "a", 9))
    once = fit_vocabulary(found, [field()])
    assert fit_vocabulary(found, [field()], once) == once
    assert fit_vocabulary(found, [field()], once).hash == once.hash


def test_a_full_vocabulary_takes_no_more() -> None:
    previous = Vocabulary((FieldVocabulary("apps", 100, ("b", "a")),))
    found = counts(("apps", "new", 99))
    assert tokens_of(fit_vocabulary(found, [field(max_vocabulary=2)], previous)) == {"apps": ("b", "a")}
    assert tokens_of(fit_vocabulary(found, [field(max_vocabulary=1)], previous)) == {"apps": ("b", "a")}


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 6)),
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 6)),
)
def test_an_id_once_given_stays(first: dict[str, int], second: dict[str, int]) -> None:
    def fit(devices: dict[str, int], previous: Vocabulary | None = None) -> Vocabulary:
        rows = [("apps", token, count) for token, count in devices.items()] or [("other", "x", 9)]
        return fit_vocabulary(counts(*rows), [field(min_devices=3, max_vocabulary=5)], previous)

    before = fit(first)
    after = fit(second, before)
    assert tokens_of(after)["apps"][: len(tokens_of(before)["apps"])] == tokens_of(before)["apps"]
    assert len(set(tokens_of(after)["apps"])) == len(tokens_of(after)["apps"]) <= 5


# --- one content, one hash ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        Vocabulary((FieldVocabulary("apps", 3, ("a", "b")), MODEL)),
        Vocabulary((FieldVocabulary("apps", 3, ("b", "a", "c")), MODEL)),
        Vocabulary((FieldVocabulary("apps", 4, ("a", "b", "c")), MODEL)),
        Vocabulary((FieldVocabulary("app", 3, ("a", "b", "c")), MODEL)),
        Vocabulary((MODEL, APPS)),
        Vocabulary((APPS,)),
        Vocabulary((FieldVocabulary("apps", 3, ("a,b", "c")), MODEL)),
        Vocabulary((FieldVocabulary("apps", 3, ('a","b', "c")), MODEL)),
    ],
    ids=["token gone", "order", "length", "name", "field order", "field gone", "comma", "quote"],
)
def test_other_content_has_another_hash(other: Vocabulary) -> None:
    assert other.hash != VOCABULARY.hash


def test_equal_content_has_an_equal_hash() -> None:
    again = Vocabulary((FieldVocabulary("apps", 3, ("a", "b", "c")), FieldVocabulary("model", 1, ("pixel",))))
    assert again.hash == VOCABULARY.hash


def test_the_hash_is_the_same_in_every_version_of_this_code() -> None:
    # Bundles name vocabularies by it: a change here makes every stored bundle unreadable.
    assert VOCABULARY.hash == "0f0faea76cbd017db3a5c01794237efb75313eede26c1f651f98df60e105d7d6"


def test_a_vocabulary_is_read_as_it_was_saved(tmp_path: Path) -> None:
    vocabulary = Vocabulary((FieldVocabulary("apps", 3, ("ä", '"', "\u2028", "日本")), MODEL))
    vocabulary.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json", expected_hash=vocabulary.hash) == vocabulary


@pytest.mark.parametrize(
    "content", [None, b"", b"\xff", b"[", b"7", b'{"apps": []}', b'["apps"]', b'[{"name": "apps"}]']
)
def test_a_damaged_vocabulary_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "vocabulary.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError) as raised:
        Vocabulary.load(path)
    assert raised.value.what == f"vocabulary {path} cannot be read"
    assert raised.value.remedy == "materialize feature_vocabulary again, or restore the bundle"


def test_a_vocabulary_of_another_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    VOCABULARY.save(path)
    with pytest.raises(BundleError) as raised:
        Vocabulary.load(path, expected_hash="0123")
    assert str(raised.value) == (
        f"vocabulary {path} does not match its hash\n"
        f"  found:    {VOCABULARY.hash}\n"
        "  expected: 0123\n"
        "  remedy:   restore the file, or train again"
    )


@given(
    bags=st.lists(st.lists(st.sampled_from("abcdefg"), max_size=6), min_size=1, max_size=8),
    given_tokens=st.permutations("abcdef"),
    wanted=st.permutations("abcdef").flatmap(
        lambda tokens: st.integers(0, 6).map(lambda count: tokens[:count])
    ),
    max_length=st.integers(1, 6),
)
def test_translated_ids_are_those_of_the_vocabulary_itself(
    bags: list[list[str]], given_tokens: list[str], wanted: list[str], max_length: int
) -> None:
    table = pa.table({"apps": pa.array(bags, pa.list_(pa.string()))})
    whole = Vocabulary((FieldVocabulary("apps", 6, tuple(given_tokens)),))
    other = Vocabulary((FieldVocabulary("apps", max_length, tuple(wanted)),))
    found, expected = other.translate(whole.encode(table), whole), other.encode(table)
    assert found["apps"].values.tolist() == expected["apps"].values.tolist()
    assert found["apps"].offsets.tolist() == expected["apps"].offsets.tolist()


def test_a_field_that_the_other_vocabulary_lacks_is_missing() -> None:
    whole = Vocabulary((FieldVocabulary("apps", 2, ("a",)),))
    other = Vocabulary((FieldVocabulary("apps", 2, ("a",)), FieldVocabulary("brand", 1, ("b",))))
    rows = whole.encode(pa.table({"apps": pa.array([["a"], []], pa.list_(pa.string()))}))
    assert other.translate(rows, whole)["brand"].values.tolist() == [MISSING_ID] * 2


def test_people_are_shown_the_tokens_of_most_devices_and_none_of_too_few() -> None:
    field = FieldSpec.model_validate(
        {"name": "apps", "column": "app", "kind": "multi", "normalizer": "text", "min_devices": 3}
    )
    counts = pa.table(
        {"field": ["apps"] * 4, "token": ["old", "most", "some", "few"], "devices": [2, 9, 5, 2]}
    )
    # "old" was on enough devices once, and keeps its id.
    vocabulary = Vocabulary((FieldVocabulary("apps", 100, ("old", "some", "most")),))

    shown = show_tokens(counts, [field], vocabulary)

    assert shown == [
        {"field": "apps", "token": "most", "id": "4", "devices": "9"},
        {"field": "apps", "token": "some", "id": "3", "devices": "5"},
    ]
    assert show_tokens(counts, [field], vocabulary, most=1) == shown[:1]
