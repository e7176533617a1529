"""The columns that trees and logistic regression read, of ids of tokens and of codes of behaviour."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from pipelines.steps.features.behaviour_codes import LABELS
from pipelines.steps.features.encoded_rows import Ragged
from pipelines.steps.features.feature_vocabulary import FieldVocabulary
from pipelines.steps.models.model_columns import (
    column_names,
    cumulative_columns,
    matrix_of,
    ordinal_columns,
)

Columns = Callable[[Sequence[FieldVocabulary]], object]
APPS = FieldVocabulary("apps", 3, ("a", "b"))
PAST = FieldVocabulary("buys_past", 2, ("times_7d=2", "recency=none", "times_7d=0", "recency=1"))
FIELDS = (APPS, PAST)
SIZES = {field.name: field.size for field in FIELDS}
BAGS = {
    "apps": Ragged.from_lists([[2, 3], [0], [1]]),
    "buys_past": Ragged.from_lists([[2, 5], [4, 3], [1, 1]]),
}


def test_trees_read_a_number_per_behaviour_and_nothing_of_what_never_was() -> None:
    columns = ordinal_columns(FIELDS)
    zero, two, one = (float(LABELS.index(label)) for label in ("0", "2", "1"))

    assert matrix_of(BAGS, SIZES, columns).toarray().tolist() == [
        [0, 0, 1, 1, two, one],
        [1, 0, 0, 0, zero, 0],
        [0, 1, 0, 0, 0, 0],
    ]
    assert column_names(FIELDS)[2:] == ["apps a", "apps b", "buys_past: times_7d", "buys_past: recency"]


def test_a_greater_code_holds_the_columns_of_the_smaller_ones() -> None:
    columns = cumulative_columns(FIELDS)
    first = APPS.size

    rows = matrix_of(BAGS, SIZES, columns).toarray()[:, first:]

    # missing, unknown, times_7d=2, recency=none, times_7d=0, recency=1
    assert rows.tolist() == [[0, 0, 1, 0, 1, 1], [0, 0, 0, 1, 1, 0], [0, 2, 0, 0, 0, 0]]


@pytest.mark.parametrize("columns", [ordinal_columns, cumulative_columns])
def test_without_behaviour_there_is_a_column_per_id(columns: Columns) -> None:
    assert columns((APPS,)) is None
    counts = matrix_of({"apps": BAGS["apps"]}, {"apps": APPS.size}, None).toarray()
    assert np.array_equal(counts, [[0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0]])
