"""Embeddings that training starts from: tokens of the same rows lie near each other."""

import numpy as np
import pytest

from pipelines.steps.features.encoded_rows import Ragged
from pipelines.steps.models.embedding_init import correspondence_embeddings


def worlds(rows: int, seed: int = 0) -> Ragged:
    """Two kinds of rows: tokens 2 to 9 occur in the one, 10 to 17 in the other; 18 never."""
    random = np.random.default_rng(seed)
    bags = [random.choice(8, 4, replace=False) + (2 if row % 2 else 10) for row in range(rows)]
    return Ragged.from_lists([bag.tolist() for bag in bags])


def test_tokens_of_the_same_rows_are_near_each_other() -> None:
    found = correspondence_embeddings(worlds(400), 400, 19, 2)
    distances = np.linalg.norm(found[2:18, None] - found[None, 2:18], axis=2)
    within = max(distances[:8, :8].max(), distances[8:, 8:].max())
    assert within < distances[:8, 8:].min() / 2


def test_points_are_of_unit_size_where_tokens_occur() -> None:
    bags = worlds(400)
    found = correspondence_embeddings(bags, 400, 19, 3)
    assert np.sqrt((found[bags.values] ** 2).mean(axis=0)) == pytest.approx([1, 1, 1], rel=1e-5)
    assert found[[0, 1, 18]].tolist() == [[0, 0, 0]] * 3


def test_fields_share_one_space() -> None:
    """Two fields of two rows: bags of the first field, then of the second."""
    packed = Ragged.from_lists([[0], [1], [0], [2], [2], [3], [2], [3]])
    found = correspondence_embeddings(packed, 4, 4, 1)
    assert found.shape == (4, 1)
    assert np.isfinite(found).all()


def test_the_same_rows_give_the_same_points() -> None:
    first, again = (correspondence_embeddings(worlds(400), 400, 19, 4) for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("bags", [[[2]], [[2], [2]], [[2], [3]]])
def test_few_rows_leave_dimensions_empty(bags: list[list[int]]) -> None:
    found = correspondence_embeddings(Ragged.from_lists(bags), len(bags), 6, 4)
    assert found.shape == (6, 4)
    assert np.isfinite(found).all()
    assert not found[:, len(bags) - 1 :].any()
