"""The spread of a day's probabilities equals what NumPy says of all of them, and drift is told from noise."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.steps.scoring.score_distribution import TENTHS, ScoreDistribution, read_distribution


def distribution(*probabilities: float) -> ScoreDistribution:
    return ScoreDistribution.of([np.asarray(probabilities, dtype=np.float32)])


@given(st.lists(st.floats(0, 1, width=32), min_size=1))
def test_mean_and_deciles_are_those_of_the_probabilities(probabilities: list[float]) -> None:
    found = distribution(*probabilities)

    # Values too small to be normal floats have fewer bits to drop.
    assert found.devices == len(probabilities)
    assert found.mean == pytest.approx(np.mean(np.asarray(probabilities, dtype=np.float64)))
    expected = np.quantile(probabilities, TENTHS, method="inverted_cdf")
    np.testing.assert_allclose(found.quantiles(), expected, rtol=1 / 2_000, atol=1e-36)


def test_parts_count_as_one() -> None:
    parts = [np.asarray([0.1, 0.2], np.float32), np.asarray([], np.float32), np.asarray([0.9], np.float32)]

    found, whole = ScoreDistribution.of(parts), distribution(0.1, 0.2, 0.9)

    assert (found.counts == whole.counts).all()
    assert found.mean == pytest.approx(whole.mean)


def test_what_is_no_probability_is_left_out() -> None:
    assert distribution(math.nan, -0.5, 1.5, math.inf, -0.0, 1.0).devices == 2


def test_equal_days_have_not_drifted() -> None:
    day = distribution(0.0, 0.1, 0.1, 0.5, 1.0)

    assert day.psi(day) == 0


def test_noise_is_told_from_a_shift() -> None:
    rng = np.random.default_rng(0)
    before, alike = (ScoreDistribution.of([rng.beta(1, 12, 20_000)]) for _ in range(2))
    shifted = ScoreDistribution.of([rng.beta(1, 6, 20_000)])

    assert alike.psi(before) < 0.01
    assert shifted.psi(before) > 0.25


def test_where_all_were_alike_and_no_longer_are_the_drift_is_finite() -> None:
    assert math.isfinite(distribution(0.1, 0.9).psi(distribution(0.5, 0.5)))
    assert distribution(0.9, 0.9).psi(distribution(0.5, 0.5)) > 0.25


def test_files_are_read_as_one_day(tmp_path: Path) -> None:
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for file, probability in zip(files, (0.25, 0.75), strict=True):
        pq.write_table(
            pa.table({"device_id": ["x"], "probability": pa.array([probability], pa.float32())}), file
        )

    found = read_distribution(files)

    assert (found.devices, found.mean) == (2, 0.5)
