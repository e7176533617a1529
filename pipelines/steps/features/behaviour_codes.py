"""Numbers of behaviour as small codes, and codes as tokens: `events_7d=4` is 4 or 5 events in 7 days.

The edges are fixed: two in each octave, the same below zero. A code means the same on every log and day, so
that there is nothing to fit, to freeze or to refit; their hash goes where a fitted artefact's would.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipelines.steps.config.behaviour_names import is_behaviour

if TYPE_CHECKING:
    from pipelines.steps.features.behaviours import Behaviour

SMALLEST, LARGEST = -6, 31
"""Binary exponents of the edges: what is nearer to 0 than 1/64, or beyond 3·2³⁰, goes to the last bucket."""
EDGES = np.sort(np.outer([1.0, 1.5], 2.0 ** np.arange(SMALLEST, LARGEST + 1)).ravel())
"""Where the buckets of positive numbers begin: 1, 1.5, 2, 3, 4, 6, 8, … and on below 1."""
NONE = 0
"""The code of what never was."""
ZERO = len(EDGES) + 1
"""The code of 0; a greater number has no smaller code."""
CODES = 2 * len(EDGES) + 2
COUNTED = ("activity", "distinct", "signals")
"""Groups whose numbers are whole."""
NO_VALUE = "none"
LABELS = (NO_VALUE, *(f"{-edge:g}" for edge in EDGES[::-1]), "0", *(f"{edge:g}" for edge in EDGES))
"""What a token says of each code: the edge nearest to 0."""
EDGES_HASH = hashlib.sha256(EDGES.astype("<f8").tobytes()).hexdigest()
_CODE_OF_LABEL = {label: code for code, label in enumerate(LABELS)}


def codes_of(numbers: np.ndarray) -> np.ndarray:
    """uint8 of each number, NaN is NONE; monotone in the number."""
    places = np.maximum(np.searchsorted(EDGES, np.abs(numbers), side="right"), 1)
    codes = np.where(numbers < 0, ZERO - places, ZERO + places)
    codes = np.where(numbers == 0, ZERO, codes)
    return np.where(np.isnan(numbers), NONE, codes).astype(np.uint8)


def behaviour_tokens(table: pa.Table, behaviours: Sequence["Behaviour"]) -> pa.ListArray:
    """A token of each behaviour in every row, in their order.

    Args:
        table: A float64 column of each, null where there is nothing to say.
        behaviours: Which columns.

    Returns:
        list<dictionary<int16, string>> [rows].
    """
    tokens = pa.array(
        [f"{behaviour.name}={label}" for behaviour in behaviours for label in LABELS], pa.string()
    )
    codes = np.empty((table.num_rows, len(behaviours)), dtype=np.int32)
    for place, behaviour in enumerate(behaviours):
        numbers = table.column(behaviour.name).to_numpy()
        codes[:, place] = codes_of(numbers) + np.int32(place * CODES)
    offsets = np.arange(table.num_rows + 1, dtype=np.int32) * np.int32(len(behaviours))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.DictionaryArray.from_arrays(codes.ravel(), tokens))


def parsed_token(token: str) -> tuple[str, int] | None:
    """Name and code of a behaviour's token; None where it is none."""
    name, _, label = token.rpartition("=")
    code = _CODE_OF_LABEL.get(label)
    return None if not name or code is None else (name, code)


def token_in_words(field: str, token: str) -> str:
    """What a token says, for people; one that is no code of behaviour says it itself."""
    from pipelines.steps.features.behaviours import found_behaviour  # what scores needs no words

    parsed = parsed_token(token) if is_behaviour(field) else None
    behaviour = found_behaviour(field, parsed[0]) if parsed else None
    return in_words(behaviour, parsed[1]) if parsed and behaviour else token


def in_words(behaviour: "Behaviour", code: int) -> str:
    """What a token says, for people: `days with an event in the last 7 days: 4 to 5`."""
    return f"{behaviour.words}: {_range(code, whole=behaviour.group in COUNTED)}"


def _range(code: int, *, whole: bool) -> str:
    if code in (NONE, ZERO):
        return "never" if code == NONE else "0"
    sign, place = ("-", ZERO - code) if code < ZERO else ("", code - ZERO)
    if place == len(EDGES):
        return f"{sign}{EDGES[-1]:g} or beyond"
    lower, upper = EDGES[place - 1], EDGES[place]
    if not whole:
        return f"{sign}{lower:g} to below {sign}{upper:g}"
    first, last = int(np.ceil(lower)), int(np.ceil(upper)) - 1
    return f"{first}" if first >= last else f"{first} to {last}"
