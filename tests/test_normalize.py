"""Raw values to tokens: what is one thing and what is two, and the promises that every normalizer keeps."""

from datetime import timedelta

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.steps.config.values import NORMALIZER_NAMES
from pipelines.steps.errors import ConfigError
from pipelines.steps.features.normalize import (
    MAX_TOKEN_CHARACTERS,
    NORMALIZERS,
    NULL_MARKERS,
    normalize_values,
)

EACH = pytest.mark.parametrize("name", NORMALIZERS)


def wide(ascii_text: str) -> str:
    """The full-width form, as some keyboards and SDKs write Latin letters."""
    return "".join(chr(ord(c) - ord("!") + 0xFF01) for c in ascii_text)


# Plain random text rarely hits what the rules are about: vendors, separators, null markers, long values.
VENDOR_PIECES = ["samsung", "LGE", "HMD Global", "SM-G991B", "7.2", wide("samsung")]
NUMBER_PIECES = ["1e3", "0.5", "-9", "b3", "zero"]
UNICODE_PIECES = ["ß", "İ", "Σ", "\ufb01", "\u0345", "\u0301", "\u200b", "\u3000"]
OTHER_PIECES = ["-", "_", " ", ":", "null", "N/A", "x" * 199]
PIECES = st.sampled_from([*VENDOR_PIECES, *NUMBER_PIECES, *UNICODE_PIECES, *OTHER_PIECES])
VALUES = st.one_of(st.text(max_size=300), st.lists(st.one_of(PIECES, st.text(max_size=3))).map("".join))


@pytest.mark.parametrize(
    ("name", "value", "tokens"),
    [
        ("text", "  United\t Kingdom ", ("united kingdom",)),
        ("text", wide("EIRE"), ("eire",)),
        ("text", "Straße", ("strasse",)),
        ("text", "zero\u200bwidth", ("zerowidth",)),
        ("device_name", " SAMSUNG  ", ("samsung",)),
        ("device_name", "LGE G6", ("lg g6",)),
        ("device_name", "Samsung Electronics Samsung A5", ("samsung a5",)),
        ("device_name", "lgender", ("lgender",)),
        ("device_model", "samsung SM-G991B", ("sm-g991b",)),
        ("device_model", "SM_G991B", ("sm-g991b",)),
        ("device_model", wide("SM-G991B"), ("sm-g991b",)),
        ("device_model", "Samsung", ("samsung",)),
        ("device_model", "Nokia 7.2", ("nokia-7.2",)),
        ("device_model", "OnePlus ONEPLUS 9", ("oneplus-9",)),
        ("device_model", "samsung unknown", ()),
        ("package", " Com.Shop.App:push ", ("com.shop.app",)),
        ("package", ":push", ()),
        ("package", "com.a_b.C-d", ("com.a_b.c-d",)),
        ("code", " 85123a", ("85123A",)),
        ("code", "bank  charges", ("BANK CHARGES",)),
        ("words", "WHITE HANGING HEART T-LIGHT HOLDER", ("hanging", "heart", "holder", "light", "white")),
        ("words", "set of 100 red, red BOXES", ("boxes", "red", "set")),
        ("words", "unknown", ()),
        ("log_bucket", "9.5", ("b3",)),
        ("log_bucket", "1", ("b0",)),
        ("log_bucket", "0.3", ("b-2",)),
        ("log_bucket", "-9", ("-b3",)),
        ("log_bucket", "0.0", ("zero",)),
        ("log_bucket", "1e400", ()),
        ("log_bucket", "twelve", ()),
        ("log_bucket", "Infinity", ()),
        ("identity", "  As it IS ", ("  As it IS ",)),
        ("identity", " \t", ()),
    ],
)
def test_a_value_has_these_tokens(name: str, value: str, tokens: tuple[str, ...]) -> None:
    assert NORMALIZERS[name](value) == tokens


@EACH
@pytest.mark.parametrize("marker", sorted(NULL_MARKERS))
def test_null_markers_have_no_token(name: str, marker: str) -> None:
    for written in (marker, marker.upper(), f"  {marker}\n"):
        assert NORMALIZERS[name](written) == ()


@EACH
@settings(deadline=timedelta(seconds=2))
@given(value=VALUES)
def test_a_token_is_its_own_token(name: str, value: str) -> None:
    for token in NORMALIZERS[name](value):
        assert NORMALIZERS[name](token) == (token,)


@EACH
@settings(deadline=timedelta(seconds=2))
@given(value=VALUES)
def test_a_token_is_neither_blank_nor_long_nor_twice(name: str, value: str) -> None:
    tokens = NORMALIZERS[name](value)

    assert all(token.strip() for token in tokens)
    assert all(len(token) <= MAX_TOKEN_CHARACTERS for token in tokens)
    assert len(set(tokens)) == len(tokens)


@EACH
@settings(deadline=timedelta(seconds=2))
@given(values=st.lists(st.none() | VALUES, max_size=8))
def test_a_column_equals_its_values(name: str, values: list[str | None]) -> None:
    column = pa.array(values, pa.string())

    expected = [[] if value is None else list(NORMALIZERS[name](value)) for value in values]

    assert normalize_values(column, name).to_pylist() == expected
    assert normalize_values(pa.chunked_array([column, column]), name).to_pylist() == expected * 2
    assert normalize_values(column.slice(1), name).to_pylist() == expected[1:]


def test_a_column_of_numbers_is_read_as_text() -> None:
    tokens = normalize_values(pa.array([6, None, 0]), "log_bucket")

    assert tokens.type == pa.list_(pa.string())
    assert tokens.to_pylist() == [["b2"], [], ["zero"]]


def test_an_empty_column_has_no_rows() -> None:
    assert len(normalize_values(pa.array([], pa.string()), "text")) == 0
    assert len(normalize_values(pa.chunked_array([], pa.string()), "text")) == 0


def test_each_distinct_value_is_normalized_once() -> None:
    """A million rows of one value take the time of one value."""
    column = pa.array(["Samsung SM_G991B"]).take(pa.array([0] * 1_000_000, pa.int32()))

    tokens = normalize_values(column, "device_model")

    assert tokens.values.unique().to_pylist() == ["sm-g991b"]


def test_a_project_may_name_every_normalizer_and_no_other() -> None:
    assert tuple(NORMALIZERS) == NORMALIZER_NAMES


def test_an_unknown_normalizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown normalizer") as caught:
        normalize_values(pa.array(["x"]), "pakage")

    assert caught.value.found == "pakage"
    assert "package" in str(caught.value.expected)
    assert "fields.yaml" in caught.value.remedy
