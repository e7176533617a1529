"""What is known of a token besides that it was seen, as one byte: how often, on how many days, how long ago.

The byte of each token stands beside its id wherever rows are stored or scored; a model learns what it weighs.
The edges are fixed, so a code means the same on every log and day: there is nothing to fit or to refit.
"""

import hashlib
import json

import numpy as np
import pyarrow as pa

from pipelines.steps.errors import DataError

EVENTS = (1, 2, 3, 5, 9, 17, 33, 65)
"""Where the classes of the number of events begin; 3 bits."""
DAYS = (1, 2, 4, 8)
"""Where the classes of the number of days begin that the token was seen on; 2 bits."""
AGES = (0, 1, 3, 7, 14, 30, 60, 120)
"""Where the classes of the age in days of the last sighting begin, at the as-of day; 3 bits."""
DAYS_PLACE, AGE_PLACE = len(EVENTS), len(EVENTS) * len(DAYS)
"""What a class of days, and one of ages, counts in a code; one of events counts 1."""
CODES = len(EVENTS) * len(DAYS) * len(AGES)
"""Codes that there are: the values of a byte."""
PLAIN = 0
"""The code of one event today, and of a token of which nothing is known: its weight is 1 in every model."""
EDGES_HASH = hashlib.sha256(json.dumps([EVENTS, DAYS, AGES]).encode()).hexdigest()
"""Tells codes of other edges from these."""


def codes_of(events: np.ndarray, days: np.ndarray, ages: np.ndarray) -> np.ndarray:
    """uint8 of tokens seen so often, on so many days, and so many days ago for the last time."""
    classes = [
        np.searchsorted(edges, numbers, side="right") - 1
        for edges, numbers in ((EVENTS, events), (DAYS, days), (AGES, ages))
    ]
    return (classes[0] + DAYS_PLACE * classes[1] + AGE_PLACE * classes[2]).astype(np.uint8)


def events_class(codes: np.ndarray) -> np.ndarray:
    """Which class of EVENTS each code says, from 0."""
    return codes & (len(EVENTS) - 1)


def in_words(code: int) -> str:
    """What a code says, for people: `3 to 4 events on 2 to 3 days, the last 7 to 13 days ago`."""
    rest, events = divmod(code, len(EVENTS))
    age, days = divmod(rest, len(DAYS))
    ago = "today" if AGES[age] == 0 else f"{_range(AGES, age)} days ago"
    many, long = _counted(_range(EVENTS, events), "event"), _counted(_range(DAYS, days), "day")
    return f"{many} on {long}, the last {ago}"


def bytes_of(column: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 codes of all rows of a column of bytes, and int64 [rows], how many each has; null is none."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if not pa.types.is_binary(column.type):
        raise DataError(
            "the weights of tokens are no bytes",
            found=str(column.type),
            expected="binary: a byte for each token",
            remedy="rebuild feature_tokens",
        )
    if not len(column):
        return np.empty(0, dtype=np.uint8), np.empty(0, dtype=np.int64)
    if column.null_count:
        column = column.fill_null(b"")
    _, starts, content = column.buffers()
    offsets = np.frombuffer(starts, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    codes = np.frombuffer(content or b"", dtype=np.uint8)[offsets[0] : offsets[-1]]
    return codes, np.diff(offsets).astype(np.int64)


def to_bytes(codes: np.ndarray, offsets: np.ndarray) -> pa.BinaryArray:
    """A column of bytes: row r holds `codes[offsets[r]:offsets[r + 1]]`."""
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(np.ascontiguousarray(codes))]
    return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, buffers)


def _range(edges: tuple[int, ...], place: int) -> str:
    if place == len(edges) - 1:
        return f"{edges[-1]} or more"
    first, last = edges[place], edges[place + 1] - 1
    return f"{first}" if first == last else f"{first} to {last}"


def _counted(number: str, noun: str) -> str:
    return f"{number} {noun}" if number == "1" else f"{number} {noun}s"
