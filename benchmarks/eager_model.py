"""Plain PyTorch over a bundle, written without our code: what distributed scores are held against."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.parity_rows import World, bags_of, odd_shares

EQUAL_BATCH_ROWS = 1_024
OTHER_BATCH_ROWS = 65_536
MISSING, UNKNOWN, RESERVED = 0, 1, 2
"""Ids of an empty bag and of an unknown token, and how many ids come before the first token's."""
KEYS = [("device_id", "ascending"), ("day", "ascending")]
Encoded = tuple[Tensor, Tensor, Tensor | None]
"""Ids [tokens] and offsets [rows + 1], int64; and the byte of each token, where they weigh."""
Scores = Mapping[str, np.ndarray]
"""Audience → probabilities [rows], ordered by device and day."""


@dataclass(frozen=True)
class Local:
    """Eager PyTorch's scores, ordered by device and day.

    Attributes:
        ids: `device_id` and `day` of each row.
        equal_batch: Of batches of EQUAL_BATCH_ROWS.
        other_batch: Of batches of OTHER_BATCH_ROWS.
        float64: The same weights, all arithmetic in double precision.
    """

    ids: pa.Table
    equal_batch: Scores
    other_batch: Scores
    float64: Scores


def score_locally(world: World) -> tuple[Local, dict[str, dict[str, float]]]:
    """The scores, and the shares of odd bags; the tokens are freed before Spark starts."""
    table = pq.read_table(world.file("codes"))
    order = pc.sort_indices(table, sort_keys=KEYS)
    scores = eager_scores(table, world.bundles)
    ordered = {
        how: {audience: p[order.to_numpy()] for audience, p in found.items()} for how, found in scores.items()
    }
    ids = table.select(["device_id", "day"]).take(order).combine_chunks()
    return Local(ids, **ordered), odd_shares(table)


def eager_scores(table: pa.Table, bundles: Mapping[str, Path]) -> dict[str, dict[str, np.ndarray]]:
    """How, as in `Local` → audience → probabilities [rows]."""
    torch.set_num_threads(1)  # as in a task: two threads may split a product elsewhere
    encoded: dict[bytes, dict[str, Encoded]] = {}
    scores: dict[str, dict[str, np.ndarray]] = {"equal_batch": {}, "other_batch": {}, "float64": {}}
    for audience, bundle in bundles.items():
        words = (bundle / "vocabulary.json").read_bytes()
        if words not in encoded:
            encoded = {words: encode_by_dict(table, json.loads(words))}  # one at a time: they are large
        model, precise = EagerModel(bundle, torch.float32), EagerModel(bundle, torch.float64)
        scores["equal_batch"][audience] = model.score(encoded[words], EQUAL_BATCH_ROWS)
        scores["other_batch"][audience] = model.score(encoded[words], OTHER_BATCH_ROWS)
        scores["float64"][audience] = precise.score(encoded[words], OTHER_BATCH_ROWS)
    return scores


def encode_by_dict(table: pa.Table, vocabulary: Sequence[Mapping[str, Any]]) -> dict[str, Encoded]:
    """Each field's tokens, the slow way, one token after the other."""
    encoded = {}
    for field in vocabulary:
        known = {token: RESERVED + place for place, token in enumerate(field["tokens"])}
        pieces, lengths, piece = [], [], []
        for bag in bags_of(table.column(field["name"])):
            found = [known.get(token, UNKNOWN) for token in (bag or [])[: field["max_length"]]] or [MISSING]
            piece += found
            lengths.append(len(found))
            if len(piece) > 1_000_000:
                pieces.append(np.array(piece, dtype=np.int64))
                piece = []
        ids = np.concatenate([*pieces, np.array(piece, dtype=np.int64)])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        codes = _codes(table, field, offsets) if field.get("weighted") else None
        encoded[field["name"]] = torch.from_numpy(ids), torch.from_numpy(offsets), codes
    return encoded


def _codes(table: pa.Table, field: Mapping[str, Any], offsets: np.ndarray) -> Tensor:
    """int64 [tokens]; 0 where a bag is empty."""
    codes = np.zeros(offsets[-1], dtype=np.int64)
    for row, given in enumerate(table.column(f"{field['name']}_weights").to_pylist()):
        kept = list(given or b"")[: field["max_length"]]
        codes[offsets[row] : offsets[row] + len(kept)] = kept
    return torch.from_numpy(codes)


class EagerModel:
    """The network as one would write it down in plain PyTorch, over the weights of a bundle."""

    def __init__(self, bundle: Path, dtype: torch.dtype) -> None:
        manifest = json.loads((bundle / "bundle.json").read_bytes())
        weights = safetensors.torch.load_file(bundle / manifest["weights_file"])
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
        names = [field["name"] for field in manifest["fields"]]
        self._pooling = manifest["architecture"]["pooling"]
        sizes = [field["vocabulary_size"] for field in manifest["fields"]]
        pooled = len(names) - manifest["architecture"].get("multi_hot_fields", 0)
        self._embeddings = dict(zip(names[:pooled], weights["embeddings"].split(sizes[:pooled]), strict=True))
        self._columns: dict[str, Tensor] = {}
        if pooled < len(names):
            columns = weights["multi_hot.weights"].split(sizes[pooled:])
            self._columns = dict(zip(names[pooled:], columns, strict=True))
        self._token_weights: dict[str, list[Tensor]] = {}
        if manifest["architecture"].get("token_weights"):
            parts = [weights[f"token_weights.{part}"][0] for part in ("events", "days", "ages")]
            self._token_weights = {
                name: [functional.pad(part[place], (1, 0)) for part in parts]
                for place, name in enumerate(names[:pooled])
            }
        first = "feed_forward.0."
        numbers = sorted({int(key.split(".")[2]) for key in weights if key.startswith(first)})
        self._layers = [(weights[f"{first}{n}.weight"], weights[f"{first}{n}.bias"]) for n in numbers]

    @torch.inference_mode()
    def score(self, encoded: Mapping[str, Encoded], batch_rows: int) -> np.ndarray:
        """Probabilities [rows]. The last batch takes in earlier rows, so that it is as long as any other."""
        rows = len(next(iter(encoded.values()))[1]) - 1
        scores = torch.empty(rows, dtype=self._layers[0][0].dtype)
        for start in range(0, rows, batch_rows):
            stop = min(start + batch_rows, rows)
            scores[max(0, stop - batch_rows) : stop] = self._probabilities(
                encoded, max(0, stop - batch_rows), stop
            )
        return scores.numpy()

    def _probabilities(self, encoded: Mapping[str, Encoded], start: int, stop: int) -> Tensor:
        pooled = []
        for name, weight in self._embeddings.items():
            ids, offsets, codes = encoded[name]
            first, end = int(offsets[start]), int(offsets[stop])
            begins, lengths = offsets[start:stop] - first, offsets[start : stop + 1].diff()
            each = None
            if codes is not None and name in self._token_weights:
                own, (events, days, ages) = codes[first:end], self._token_weights[name]
                each = 1 + events[own % 8] + days[own // 8 % 4] + ages[own // 32]
            if self._pooling == "mean" and each is None:
                pooled.append(functional.embedding_bag(ids[first:end], weight, begins, mode="mean"))
            else:
                total = functional.embedding_bag(
                    ids[first:end], weight, begins, mode="sum", per_sample_weights=each
                )
                number = lengths.to(weight.dtype)
                pooled.append(total / (number if self._pooling == "mean" else number.sqrt())[:, None])
        hidden = torch.cat(pooled, dim=1)
        *inner, last = self._layers
        for layer, (matrix, bias) in enumerate(inner):
            hidden = functional.linear(hidden, matrix, bias)
            if layer == 0:
                for name, columns in self._columns.items():
                    ids, offsets, _ = encoded[name]
                    first, end = int(offsets[start]), int(offsets[stop])
                    begins = offsets[start:stop] - first
                    hidden += functional.embedding_bag(ids[first:end], columns, begins, mode="sum")
            hidden = functional.relu(hidden)
        return torch.sigmoid(functional.linear(hidden, *last))[:, 0]
