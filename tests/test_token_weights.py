"""The bytes beside tokens: what they say, and that they stay with their tokens through every operation."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.steps.config.behaviour_names import weights_column
from pipelines.steps.errors import DataError
from pipelines.steps.features.encoded_rows import MISSING_ID, RESERVED_IDS, UNKNOWN_ID, Ragged, count_matrix
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.features.token_weights import (
    AGES,
    CODES,
    DAYS,
    EDGES_HASH,
    EVENTS,
    PLAIN,
    bytes_of,
    codes_of,
    events_class,
    in_words,
    to_bytes,
)

IDS = st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=8)


def code(*, events: int = 1, days: int = 1, age: int = 0) -> int:
    return int(codes_of(np.array([events]), np.array([days]), np.array([age]))[0])


def marked(lists: list[list[int]]) -> Ragged:
    """Bags whose codes follow from their ids, so that one that lost its id shows."""
    return Ragged.from_lists(lists, [[mark(i) for i in row] for row in lists])


def mark(token_id: int) -> int:
    return (token_id * 29 + 3) % CODES


def are_together(bags: Ragged) -> bool:
    assert bags.codes is not None
    assert bags.codes.dtype == np.uint8
    return list(bags.codes) == [mark(token_id) for token_id in bags.values.tolist()]


# --- what a code says -----------------------------------------------------------------------------


def test_a_code_holds_three_classes_and_every_byte_is_one() -> None:
    every = {code(events=events, days=days, age=age) for events in EVENTS for days in DAYS for age in AGES}
    assert every == set(range(256))


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ((1, 1, 0), "1 event on 1 day, the last today"),
        ((2, 2, 1), "2 events on 2 to 3 days, the last 1 to 2 days ago"),
        ((4, 3, 13), "3 to 4 events on 2 to 3 days, the last 7 to 13 days ago"),
        ((64, 7, 119), "33 to 64 events on 4 to 7 days, the last 60 to 119 days ago"),
        ((10**9, 365, 364), "65 or more events on 8 or more days, the last 120 or more days ago"),
    ],
)
def test_a_code_is_told_in_words(seen: tuple[int, int, int], words: str) -> None:
    events, days, age = seen
    assert in_words(code(events=events, days=days, age=age)) == words


def test_a_token_of_which_nothing_is_known_has_the_code_of_one_event_today() -> None:
    assert code(events=1, days=1, age=0) == PLAIN == 0


def test_the_edges_are_frozen() -> None:
    # Stored files and trained models hold codes: other edges are another format, with another name.
    assert EDGES_HASH == ("343e87819a0042a3328c082f5b502303312dc5c20bcb9f705c5dd4a9db9f6c32")


# --- bytes ----------------------------------------------------------------------------------------


@given(IDS, st.data())
def test_bytes_are_read_whatever_their_slices_and_chunks(lists: list[list[int]], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(lists)))
    bags = marked(lists)
    column = bags.codes_to_arrow()
    assert column.to_pylist() == [bytes(map(mark, row)) for row in lists]
    part, lengths = bytes_of(column[start:])
    assert part.tolist() == [mark(token_id) for row in lists[start:] for token_id in row]
    assert lengths.tolist() == [len(row) for row in lists[start:]]
    chunks = pa.chunked_array([column[:start], column[start:]], pa.binary())
    assert bytes_of(chunks)[0].tolist() == bags.each_code().tolist()


def test_a_null_is_no_byte() -> None:
    codes, lengths = bytes_of(pa.array([b"\x01\xff", None, b""], pa.binary()))
    assert (codes.tolist(), lengths.tolist()) == ([1, 255], [2, 0, 0])


def test_weights_that_are_no_bytes_are_refused() -> None:
    with pytest.raises(DataError, match=r"(?s)weights of tokens are no bytes.*list<.*expected: binary"):
        bytes_of(pa.array([[1, 2]]))


def test_bytes_without_rows() -> None:
    assert to_bytes(np.empty(0, dtype=np.uint8), np.zeros(1, dtype=np.int64)).to_pylist() == []
    assert bytes_of(pa.chunked_array([], pa.binary()))[0].tolist() == []


# --- rows keep them -------------------------------------------------------------------------------


@given(IDS.filter(bool), IDS, st.data())
def test_codes_stay_with_their_ids(
    lists: list[list[int]], others: list[list[int]], data: st.DataObject
) -> None:
    bags, last = marked(lists), len(lists)
    start = data.draw(st.integers(0, last))
    assert are_together(bags.slice(start, data.draw(st.integers(start, last))))
    assert are_together(bags.take(np.array(data.draw(st.lists(st.integers(0, last - 1))), dtype=np.int64)))
    assert are_together(bags.filter(bags.values % 2 == 1))
    assert are_together(Ragged.concatenated([bags, marked(others)]))
    assert are_together(Ragged.from_arrow(bags.to_arrow(), bags.codes_to_arrow()))


def test_bags_without_codes_weigh_nothing_special_beside_others() -> None:
    both = Ragged.concatenated([Ragged.from_lists([[5]]), marked([[7]])])
    assert both.each_code().tolist() == [PLAIN, mark(7)]
    assert Ragged.concatenated([Ragged.from_lists([[5]])]).codes is None


@pytest.mark.parametrize("weights", [[b"\x01"], [b"\x01\x02\x03"]])
def test_more_or_fewer_codes_than_tokens_are_refused(weights: list[bytes]) -> None:
    with pytest.raises(DataError) as raised:
        Ragged.from_arrow(pa.array([[1, 2]], pa.list_(pa.int32())), pa.array(weights, pa.binary()))
    assert str(raised.value) == (
        "the weights of tokens do not go with the tokens\n"
        f"  found:    [{len(weights[0])}] weights for [2] tokens in row 0\n"
        "  expected: a weight for each token\n"
        "  remedy:   rebuild feature_tokens, then the training set"
    )


# --- encoding keeps them --------------------------------------------------------------------------

APPS = FieldVocabulary("apps", 3, ("a", "b", "c"), weighted=True)
MODEL = FieldVocabulary("model", 1, ("pixel",))
TOKENS = st.lists(
    st.none() | st.lists(st.none() | st.sampled_from(["a", "b", "c", "z"]), max_size=6), max_size=8
)


@given(TOKENS, st.data())
def test_encoding_keeps_the_codes_of_the_tokens_it_keeps(
    bags: list[list[str | None] | None], data: st.DataObject
) -> None:
    given_codes = [[data.draw(st.integers(0, 255)) for _ in bag or []] for bag in bags]
    column = pa.array(bags, pa.list_(pa.string()))
    encoded = APPS.encode(column, pa.array([bytes(codes) for codes in given_codes], pa.binary()))
    expected = [codes[:3] or [PLAIN] for codes in given_codes]
    assert encoded.each_code().tolist() == [each for row in expected for each in row]
    plain = APPS.encode(column)
    assert (plain.values.tolist(), plain.offsets.tolist()) == (
        encoded.values.tolist(),
        encoded.offsets.tolist(),
    )


def batch(**columns: object) -> pa.Table:
    types = {"apps": pa.list_(pa.string()), "model": pa.list_(pa.string())}
    return pa.table({name: pa.array(rows, types.get(name, pa.binary())) for name, rows in columns.items()})


def test_only_a_weighted_field_has_codes() -> None:
    vocabulary = Vocabulary((APPS, MODEL))
    assert vocabulary.columns == ["apps", "model", "apps_weights"]
    rows = vocabulary.encode(
        batch(
            apps=[["b", "z"], []],
            model=[["pixel"], ["x"]],
            apps_weights=[b"\x07\xff", b""],
            model_weights=[b"\x01", b"\x01"],
        )
    )
    assert rows["apps"].values.tolist() == [3, UNKNOWN_ID, MISSING_ID]
    assert rows["apps"].each_code().tolist() == [7, 255, PLAIN]
    assert rows["model"].codes is None


def test_tokens_without_their_weights_are_refused() -> None:
    with pytest.raises(DataError, match=r"(?s)lack fields that the vocabulary has.*apps_weights"):
        Vocabulary((APPS,)).encode(batch(apps=[["a"]]))


def test_translated_rows_keep_their_codes() -> None:
    rows = {"apps": marked([[2, 3, 4], [UNKNOWN_ID]])}
    other = Vocabulary((FieldVocabulary("apps", 2, ("c", "b"), weighted=True), APPS_TOO))
    translated = other.translate(rows, Vocabulary((APPS,)))
    assert translated["apps"].values.tolist() == [UNKNOWN_ID, RESERVED_IDS + 1, UNKNOWN_ID]
    assert translated["apps"].each_code().tolist() == [mark(2), mark(3), mark(UNKNOWN_ID)]
    assert translated["more"].each_code().tolist() == [PLAIN, PLAIN]


APPS_TOO = FieldVocabulary("more", 2, ("x",), weighted=True)


def test_a_vocabulary_remembers_which_fields_have_weights() -> None:
    with_weights, without = Vocabulary((APPS,)), Vocabulary((FieldVocabulary("apps", 3, ("a", "b", "c")),))
    assert with_weights.hash != without.hash
    assert b"weighted" not in without.to_json()


# --- the count matrix -----------------------------------------------------------------------------


def test_the_entry_of_the_count_matrix_is_the_class_of_events() -> None:
    codes = [[code(events=n, days=1, age=99) for n in (1, 2, 4, 65)], [PLAIN]]
    rows = {
        "apps": Ragged.from_lists([[2, 3, 4, 5], [0]], codes),
        "model": Ragged.from_lists([[2], [2]]),
    }
    assert count_matrix(rows, {"apps": 6, "model": 3}).toarray().tolist() == [
        [0, 0, 1, 2, 3, 8, 0, 0, 1],
        [1, 0, 0, 0, 0, 0, 0, 0, 1],
    ]
    assert events_class(np.array([255], dtype=np.uint8)).tolist() == [7]


def test_a_column_of_weights_is_named_after_its_field() -> None:
    assert weights_column("apps") == "apps_weights"
