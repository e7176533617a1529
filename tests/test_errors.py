"""Words of an error: days are named as ranges."""

from collections.abc import Sequence

import pytest

from pipelines.steps.errors import day_ranges


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ([], ""),
        (["2025-02-28", "2025-03-01"], "2025-02-28 to 2025-03-01"),
        (["2025-03-03", "2025-03-01", "2025-03-01"], "2025-03-01, 2025-03-03"),
        (
            ["car_buyers/2025-03-01", "bike_buyers/2025-03-02", "car_buyers/2025-03-02"],
            "bike_buyers 2025-03-02, car_buyers 2025-03-01 to 2025-03-02",
        ),
        (["car_buyers"], "car_buyers"),
        ([f"2025-03-{day:02}" for day in range(1, 16, 2)], "2025-03-01, 2025-03-03, 2025-03-05, 2025-03-07, "
         "2025-03-09, … 2025-03-15 (8 in all)"),
    ],
)  # fmt: skip
def test_days_one_after_another_are_a_range(keys: Sequence[str], named: str) -> None:
    assert day_ranges(keys) == named
