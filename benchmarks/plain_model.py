"""The bundle's network as an engineer writes it in an afternoon, without our library: the peers' model."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

MISSING, UNKNOWN, RESERVED = 0, 1, 2


class PlainModel:
    """Tokens → ids by Arrow's `index_in`, then PyTorch's own embedding bag and linear layers.

    Args:
        bundle: Directory whose manifest, vocabulary and weights it reads.
    """

    def __init__(self, bundle: Path) -> None:
        manifest = json.loads((bundle / "bundle.json").read_bytes())
        vocabulary = json.loads((bundle / "vocabulary.json").read_bytes())
        weights = safetensors.torch.load_file(bundle / manifest["weights_file"])
        self.names = [field["name"] for field in vocabulary]
        self.widths = [field["max_length"] for field in vocabulary]
        self.tokens = [pa.array(field["tokens"]) for field in vocabulary]
        self.embeddings = weights["embeddings"].split([RESERVED + len(tokens) for tokens in self.tokens])
        first = "feed_forward.0."
        layers = sorted({int(key.split(".")[2]) for key in weights if key.startswith(first)})
        self.layers = [(weights[f"{first}{n}.weight"], weights[f"{first}{n}.bias"]) for n in layers]

    def score(self, batch: pa.RecordBatch | pa.Table) -> np.ndarray:
        """float32 probabilities [rows] of a batch with a list of tokens per field."""
        return self.probabilities([self.pool_tokens(name, batch.column(name)) for name in self.names])

    def encode(self, name: str, column: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        """Ids [tokens] and number of tokens [rows] of a column of lists."""
        place = self.names.index(name)
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
        kept = pc.list_slice(column, 0, self.widths[place])
        lengths = np.asarray(pc.fill_null(pc.list_value_length(kept), 0), dtype=np.int64)
        found = pc.index_in(kept.flatten(), value_set=self.tokens[place])
        ids = np.asarray(pc.fill_null(found, UNKNOWN - RESERVED), dtype=np.int32) + np.int32(RESERVED)
        return ids, lengths

    def pool_tokens(self, name: str, column: pa.Array | pa.ChunkedArray) -> Tensor:
        """[rows] → rows × D"""
        return self.pool(name, *self.encode(name, column))

    @torch.inference_mode()
    def pool(self, name: str, ids: np.ndarray, lengths: np.ndarray) -> Tensor:
        """Ids [tokens], lengths [rows] → rows × D; a row without tokens holds the missing one."""
        weight = self.embeddings[self.names.index(name)]
        offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=offsets[1:])
        pooled = functional.embedding_bag(
            torch.from_numpy(ids), weight, torch.from_numpy(offsets), mode="mean", include_last_offset=True
        )
        pooled[torch.from_numpy(lengths == 0)] = weight[MISSING]
        return pooled

    @torch.inference_mode()
    def probabilities(self, pooled: list[Tensor]) -> np.ndarray:
        """F tensors of rows × D → float32 [rows]"""
        hidden = torch.cat(pooled, dim=1)
        *inner, last = self.layers
        for weight, bias in inner:
            hidden = functional.linear(hidden, weight, bias).relu_()
        logits: np.ndarray = torch.sigmoid(functional.linear(hidden, *last)).squeeze(1).numpy()
        return logits


@lru_cache(maxsize=1)
def plain_model(bundle: Path) -> PlainModel:
    """Loaded once per worker process; one thread, as every task has one core."""
    torch.set_num_threads(1)
    return PlainModel(bundle)
