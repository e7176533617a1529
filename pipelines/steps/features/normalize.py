"""Raw values to tokens: what counts as the same app, model, campaign or item.

A normalizer turns one raw value into zero, one or several tokens. Each keeps three promises, so that
tokens stay comparable however often and wherever they are made: a token normalizes to itself, is never
blank, and is at most `MAX_TOKEN_CHARACTERS` long. What goes into a token is decided here and nowhere else.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.steps.errors import ConfigError

MAX_TOKEN_CHARACTERS = 200
"""Longer raw values are dirt (stack traces, URLs with session ids); the beginning tells them apart."""

MIN_WORD_CHARACTERS = 3
"""Shorter words are mostly articles, sizes and broken abbreviations."""

NULL_MARKERS = frozenset({"", "null", "(null)", "unknown", "n/a", "na", "none", "nan", "undefined", "-"})
"""The ways that SDKs and exports write "no value", after folding."""

VENDORS = frozenset(
    {
        "alcatel", "amazon", "apple", "asus", "blackberry", "google", "honor", "htc", "huawei", "infinix",
        "itel", "lenovo", "lg", "meizu", "motorola", "nokia", "oneplus", "oppo", "realme", "samsung", "sony",
        "tecno", "vivo", "xiaomi", "zte",
    }
)  # fmt: skip
"""Makers whose name some SDKs put before the model and others do not."""

VENDOR_ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "hmd global": "nokia",
        "lge": "lg",
        "samsung electronics": "samsung",
        "sony ericsson": "sony",
        "sonyericsson": "sony",
    }
)
"""Other spellings of a maker at the start of a device name."""

Normalizer = Callable[[str], tuple[str, ...]]

_SEPARATORS = re.compile(r"[\s_\-\u2010-\u2015\u2212]+")
_BARE_NUMBER = re.compile(r"[\d.\-]+")
_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII)
_BUCKET = re.compile(r"zero|-?b-?\d{1,4}", re.ASCII)


def text(value: str) -> tuple[str, ...]:
    """Free text: one spelling for case, Unicode width, invisible characters and white space."""
    return _one_token(_settle(value, lambda v: _cut(_fold(v))))


def device_name(value: str) -> tuple[str, ...]:
    """The name of a device: text whose maker has one spelling, once ("LGE G6" → "lg g6")."""
    return _one_token(_settle(value, lambda v: _cut(_name_vendor(_fold(v)))))


def device_model(value: str) -> tuple[str, ...]:
    """A model code without its maker, with one separator ("samsung SM_G991B" → "sm-g991b").

    The maker stays where nothing but a number would remain: "Nokia 7.2" and "OnePlus 7.2" differ.
    """
    return _one_token(_settle(value, lambda v: _cut(_drop_vendor(_hyphenate(_fold(v))), "-")))


def package(value: str) -> tuple[str, ...]:
    """A reverse-DNS app id without the process an event came from ("com.shop:push" → "com.shop")."""
    return _one_token(_settle(value, lambda v: _cut(_fold(v).partition(":")[0])))


def code(value: str) -> tuple[str, ...]:
    """A code that people type by hand, such as a stock code ("85123a " → "85123A")."""
    return _one_token(_settle(value, lambda v: _cut(_collapse(unicodedata.normalize("NFKC", v).upper()))))


def words(value: str) -> tuple[str, ...]:
    """The distinct words of a description, sorted; short words and bare numbers are left out."""
    found = {word[:MAX_TOKEN_CHARACTERS] for word in _WORD.findall(_settle(value, _fold))}
    return tuple(
        sorted(
            word
            for word in found
            if len(word) >= MIN_WORD_CHARACTERS and not word.isnumeric() and word not in NULL_MARKERS
        )
    )


def log_bucket(value: str) -> tuple[str, ...]:
    """A number's power of two: "9.5" → "b3" (8 ≤ 9.5 < 16), "0.3" → "b-2", "-9" → "-b3", "0" → "zero".

    What is not a finite number has no token.
    """
    number = unicodedata.normalize("NFKC", value).strip().lower()
    if _BUCKET.fullmatch(number):
        return (number,)
    if not _NUMBER.fullmatch(number):
        return ()
    parsed = float(number)
    if math.isinf(parsed):
        return ()
    if parsed == 0:
        return ("zero",)
    # frexp is exact where log2 rounds: 2**49 - 0.1 must not reach bucket 49.
    exponent = math.frexp(parsed)[1] - 1
    return (f"{'-' if parsed < 0 else ''}b{exponent}",)


def identity(value: str) -> tuple[str, ...]:
    """The value as it is, cut to length; only null markers and blanks are left out."""
    return _one_token(value[:MAX_TOKEN_CHARACTERS])


NORMALIZERS: Mapping[str, Normalizer] = MappingProxyType(
    {
        normalizer.__name__: normalizer
        for normalizer in (text, device_name, device_model, package, code, words, log_bucket, identity)
    }
)
"""What `normalizer:` in fields.yaml may say, and what it does."""


def normalize_values(values: "pa.Array[Any] | pa.ChunkedArray[Any]", normalizer: str) -> "pa.ListArray[Any]":
    """The tokens of each value; every distinct value is normalized once.

    Args:
        values: Strings, or what Arrow casts to strings.
        normalizer: A name in `NORMALIZERS`.

    Returns:
        list<string>, as long as `values`; a null has the empty list.

    Raises:
        ConfigError: There is no such normalizer.
    """
    if normalizer not in NORMALIZERS:
        raise ConfigError(
            "unknown normalizer",
            found=normalizer,
            expected=f"one of {', '.join(NORMALIZERS)}",
            remedy="correct `normalizer` of the field in fields.yaml",
        )
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], type=values.type)
    encoded: Any = pc.dictionary_encode(values.cast(pa.string()))  # pyarrow types it as what went in
    tokens = [list(NORMALIZERS[normalizer](value)) for value in encoded.dictionary.to_pylist()]
    no_tokens: list[str] = []
    of_distinct = pa.array([*tokens, no_tokens], type=pa.list_(pa.string()))
    taken = of_distinct.take(encoded.indices.fill_null(len(tokens)))
    return cast("pa.ListArray[Any]", taken)


def _one_token(token: str) -> tuple[str, ...]:
    if not token.strip() or _settle(token, _fold) in NULL_MARKERS:
        return ()
    return (token,)


def _settle(value: str, step: Callable[[str], str]) -> str:
    """Repeats a step until it changes nothing, which makes it idempotent.

    Once is nearly always enough. Exceptions: case folding can undo Unicode normalization, and cutting
    or dropping a word can bring another one to the front.
    """
    settled = step(value)
    while settled != value:
        value, settled = settled, step(settled)
    return settled


def _fold(value: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", value).casefold())
    return _collapse(folded)


def _collapse(value: str) -> str:
    """One space for any white space, none at the ends; invisible control and format characters go."""
    spaced = " ".join(value.split())
    if spaced.isascii() and spaced.isprintable():
        return spaced
    return "".join(c for c in spaced if unicodedata.category(c) not in {"Cc", "Cf", "Cs"})


def _cut(value: str, trailing: str = " ") -> str:
    return value[:MAX_TOKEN_CHARACTERS].rstrip(trailing)


def _hyphenate(value: str) -> str:
    # A value of nothing but a separator is a null marker; it must not become an empty name that is kept.
    return _SEPARATORS.sub("-", value).strip("-")


def _drop_vendor(model: str) -> str:
    vendor, _, rest = model.partition("-")
    if vendor in VENDORS and rest and not _BARE_NUMBER.fullmatch(rest):
        return rest
    # "oneplus oneplus 9": said twice, and a bare number follows.
    return rest if rest.partition("-")[0] == vendor and vendor in VENDORS else model


def _name_vendor(name: str) -> str:
    for alias, vendor in VENDOR_ALIASES.items():
        if name == alias or name.startswith(f"{alias} "):
            name = vendor + name.removeprefix(alias)
            break
    first, _, rest = name.partition(" ")
    return rest if first in VENDORS and rest.partition(" ")[0] == first else name
