"""Embeddings to start from: correspondence analysis of which tokens occur together, without a label.

A truncated singular value decomposition of the rows' token matrix, scaled by the square roots of the rows'
lengths and of the tokens' frequencies (Greenacre, Correspondence Analysis in Practice).
"""

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds

from pipelines.steps.features.encoded_rows import Ragged

SMOOTHING = 5.0
"""Added to a token's frequency: the coordinates of rare tokens are mostly chance."""
SEED = 0
"""Seed of the vector that the iteration starts from: the same rows give the same embeddings."""


def correspondence_embeddings(packed: Ragged, rows: int, vocabulary_size: int, dim: int) -> np.ndarray:
    """Tokens as points: near each other where they occur in the same rows.

    Args:
        packed: Bags f·rows + r of field f and row r, ids in one table of all fields.
        rows: How many.
        vocabulary_size: V, ids of all fields.
        dim: D.

    Returns:
        float32 [V, D], of root mean square 1 over the tokens as they occur, in each dimension; 0 for ids that
        do not occur, and in dimensions that the rows do not span.
    """
    embeddings = np.zeros((vocabulary_size, dim), dtype=np.float32)
    presence = _presence(packed, rows, vocabulary_size)
    frequency = np.asarray(presence.sum(axis=0)).ravel()
    used = np.flatnonzero(frequency)
    found = min(dim, min(rows, len(used)) - 1)
    if found < 1:
        return embeddings
    of_rows = 1 / np.sqrt(np.maximum(np.asarray(presence.sum(axis=1)).ravel(), 1))
    of_tokens = 1 / np.sqrt(frequency[used] + SMOOTHING)
    scaled = sparse.diags(of_rows) @ presence[:, used] @ sparse.diags(of_tokens)
    start = np.random.default_rng(SEED).normal(size=min(scaled.shape))
    _, _, directions = svds(scaled, k=found, v0=start)
    points = directions.T[:, ::-1] * of_tokens[:, None]  # used × found, the strongest direction first
    share = frequency[used] / frequency[used].sum()
    size = np.sqrt((points**2 * share[:, None]).sum(axis=0))
    embeddings[used, :found] = points / np.maximum(size, np.finfo(np.float64).tiny)
    return embeddings


def _presence(packed: Ragged, rows: int, vocabulary_size: int) -> sparse.csr_matrix:
    """float64 CSR [rows, V]: 1 where a row holds a token, however often."""
    fields = packed.rows // rows
    row = np.repeat(np.tile(np.arange(rows), fields), packed.lengths)
    ones = np.ones(len(packed.values))
    matrix = sparse.csr_matrix((ones, (row, packed.values)), shape=(rows, vocabulary_size))
    matrix.data[:] = 1
    return matrix
