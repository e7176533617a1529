"""The work of scoring that no design avoids, each part timed alone in a tight loop: the roofline."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.plain_model import RESERVED, UNKNOWN, PlainModel
from benchmarks.scoring_world import World

BATCH_ROWS = 1_024
"""Rows of a forward pass, as when we score."""

T = TypeVar("T")
Bag = tuple[np.ndarray, np.ndarray]
"""Ids [tokens] and offsets [rows + 1]."""


def probe_seconds(world: World, out: Path) -> dict[str, float]:
    """CPU of all rows in one thread, by part.

    Returns:
        `decode` and `look_up` (Parquet to Arrow; tokens to ids: each column by its dictionary or by its plain
        values, whichever takes less together), `embed` (the embedding bags), `multiply` (the layers), `write`
        (ids and probabilities to Parquet).
    """
    model = PlainModel(world.bundle)
    seconds = dict.fromkeys(["decode", "look_up", "embed", "multiply", "write"], 0.0)
    with _one_thread():
        for file in world.files:
            for group in range(pq.read_metadata(file).num_row_groups):
                _probe_row_group(model, file, group, out, seconds)
    return seconds


def _probe_row_group(model: PlainModel, file: Path, group: int, out: Path, seconds: dict[str, float]) -> None:
    devices, took = _timed(lambda: _decode(file, group, "device_id"))
    seconds["decode"] += took
    bags = []
    for place, name in enumerate(model.names):
        bag, decode, look_up = _cheapest(model.tokens[place], file, group, name)
        seconds["decode"] += decode
        seconds["look_up"] += look_up
        bags.append(bag)
    scores = []
    for start in range(0, len(devices), BATCH_ROWS):
        batch = [_slice(bag, start, start + BATCH_ROWS) for bag in bags]
        pooled, took = _timed(lambda batch=batch: _embed(model, batch))  # type: ignore[misc]
        seconds["embed"] += took
        hidden = torch.cat(pooled, dim=1)
        score, took = _timed(lambda hidden=hidden: _multiply(model, hidden))  # type: ignore[misc]
        seconds["multiply"] += took
        scores.append(score.numpy())
    probabilities = np.concatenate(scores)
    _, took = _timed(
        lambda: pq.write_table(pa.table({"device_id": devices, "probability": probabilities}), out)
    )
    seconds["write"] += took


def _cheapest(tokens: pa.Array, file: Path, group: int, name: str) -> tuple[Bag, float, float]:
    """Ids of a column, and the seconds of decoding and of looking up, the quicker way."""
    ways = []
    for dictionaries in ([], [f"{name}.list.element"]):
        column, decode = _timed(lambda d=dictionaries: _decode(file, group, name, d))  # type: ignore[misc]
        ids, look_up = _timed(lambda c=column: _look_up(c, tokens))  # type: ignore[misc]
        ways.append((decode + look_up, decode, look_up, ids, column))
    _, decode, look_up, ids, column = min(ways, key=lambda way: way[0])
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0))
    return (ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)), decode, look_up


def _decode(file: Path, group: int, column: str, dictionaries: list[str] | None = None) -> pa.ChunkedArray:
    parquet = pq.ParquetFile(file, read_dictionary=dictionaries)
    return parquet.read_row_group(group, columns=[column], use_threads=False).column(column)


def _look_up(column: pa.ChunkedArray, tokens: pa.Array) -> np.ndarray:
    """Ids of all tokens; of a dictionary the distinct ones are looked up, and their ids gathered."""
    found = []
    for chunk in column.chunks:
        values = chunk.flatten()
        if pa.types.is_dictionary(values.type):
            found.append(_ids(values.dictionary, tokens)[values.indices.to_numpy()])
        else:
            found.append(_ids(values, tokens))
    return np.concatenate(found)


def _ids(values: pa.Array, tokens: pa.Array) -> np.ndarray:
    places = pc.fill_null(pc.index_in(values, value_set=tokens), UNKNOWN - RESERVED)
    return np.asarray(places, dtype=np.int32) + np.int32(RESERVED)


@torch.inference_mode()
def _embed(model: PlainModel, batch: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [
        functional.embedding_bag(ids, weight, offsets, mode="mean", include_last_offset=True)
        for weight, (ids, offsets) in zip(model.embeddings, batch, strict=True)
    ]


@torch.inference_mode()
def _multiply(model: PlainModel, hidden: Tensor) -> Tensor:
    *inner, last = model.layers
    for weight, bias in inner:
        hidden = functional.linear(hidden, weight, bias).relu_()
    return torch.sigmoid(functional.linear(hidden, *last)).squeeze(1)


def _slice(bag: Bag, start: int, end: int) -> tuple[Tensor, Tensor]:
    ids, offsets = bag
    rows = offsets[start : end + 1]
    return torch.from_numpy(ids[rows[0] : rows[-1]]), torch.from_numpy(rows - rows[0])


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.process_time()
    result = work()
    return result, time.process_time() - started


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
