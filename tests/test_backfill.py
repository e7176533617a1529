"""Days of the past: one run over many equals one run for each, and a rerun replaces its own day only."""

import re
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from resources.destinations import LOCK
from resources.lake import Lake
from resources.snapshots import Partition
from tests.small_project import (
    AUDIENCES,
    SCORED_DAY,
    SIGNALS,
    Chain,
    SmallProject,
    day_keys,
    failures,
    materialize,
    materialized,
    run_days,
)

FIRST, LAST = SCORED_DAY - timedelta(days=1), SCORED_DAY
DAILY_TABLES = (
    "app_events",
    "rejected_events",
    "daily_fields",
    "daily_signals",
    "feature_tokens",
    "predictions",
    "segments",
)
WHOSE = {"daily_signals": SIGNALS, "predictions": AUDIENCES, "segments": AUDIENCES}
"""Table → whose days its partitions are, where there is more than one of a day."""


def keys_of_table(table: str, first: date = FIRST, last: date = LAST) -> list[str]:
    return [key for prefix in prefixes(table) for key in day_keys(first, last, prefix)]


def prefixes(table: str) -> list[str]:
    return [f"{name}/" for name in WHOSE.get(table, ())] or [""]


def delivered_files(project: SmallProject) -> dict[str, bytes]:
    """Path → content; without the versions in a manifest, which tell one run from another."""
    deliveries = project.data_dir / "deliveries"
    return {
        str(p.relative_to(deliveries)): re.sub(
            rb'"(segments|predictions)_version": "[^"]*"', b"", p.read_bytes()
        )
        for p in deliveries.rglob("*")
        if p.is_file() and p.name != LOCK
    }


@dataclass(frozen=True)
class RangeRun:
    """The small project after one run over two days, and what the run said."""

    project: SmallProject
    result: dg.ExecuteInProcessResult

    def metadata(self, asset: str) -> dict[str, dict[str, Any]]:
        """Day → label → value, of an asset named like "car_buyers/segments"."""
        events = self.result.get_asset_materialization_events()
        return {
            str(event.partition): {
                label: value.value for label, value in event.materialization.metadata.items()
            }
            for event in events
            if event.asset_key and event.asset_key.to_user_string() == asset
        }


@pytest.fixture(scope="module")
def range_run(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> RangeRun:
    root = tmp_path_factory.mktemp("at_once")
    project = chain.project.copied_to(root / "data")
    with chain.history(root / "home") as instance:
        result = run_days(project.definitions(), instance, "daily_job", FIRST, LAST)
    assert result.success, failures(result)
    return RangeRun(project, result)


@pytest.fixture(scope="module")
def at_once(range_run: RangeRun) -> SmallProject:
    """Two days in one run."""
    return range_run.project


@pytest.fixture(scope="module")
def day_by_day(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> SmallProject:
    """The same two days, a run for each: that of the last day is the chain's own."""
    root = tmp_path_factory.mktemp("day_by_day")
    project = chain.project.copied_to(root / "data")
    with chain.history(root / "home") as instance:
        result = run_days(project.definitions(), instance, "daily_job", FIRST, FIRST)
    assert result.success, failures(result)
    return project


@pytest.mark.parametrize("table", DAILY_TABLES)
def test_one_run_over_many_days_equals_a_run_for_each(
    spark: SparkSession, at_once: SmallProject, day_by_day: SmallProject, table: str
) -> None:
    for key in keys_of_table(table):
        expected = day_by_day.rows(spark, table, [key])

        pd.testing.assert_frame_equal(at_once.rows(spark, table, [key]), expected, check_exact=True)
        assert len(expected) == day_by_day.lake.partition(table, key).rows > 0


@pytest.mark.parametrize("table", DAILY_TABLES)
def test_one_run_writes_its_days_in_one_spark_job(
    at_once: SmallProject, day_by_day: SmallProject, table: str
) -> None:
    def versions(project: SmallProject, prefix: str) -> set[str]:
        return {project.lake.partition(table, key).version for key in day_keys(FIRST, LAST, prefix)}

    for prefix in prefixes(table):
        assert len(versions(at_once, prefix)) == 1
        assert len(versions(day_by_day, prefix)) == len(day_keys(FIRST, LAST))


def test_one_run_over_many_days_delivers_what_a_run_for_each_does(
    at_once: SmallProject, day_by_day: SmallProject
) -> None:
    delivered = delivered_files(at_once)

    assert delivered == delivered_files(day_by_day)
    assert {path.split("/")[2] for path in delivered} == set(day_keys(FIRST, LAST))


@pytest.mark.parametrize(
    ("asset", "prefix"),
    [
        ("app_events", ""),
        ("daily_fields", ""),
        ("feature_tokens", ""),
        ("car_buyers/predictions", "car_buyers/"),
        ("car_buyers/segments", "car_buyers/"),
    ],
)
def test_each_day_of_a_range_says_its_own_rows_and_version(
    range_run: RangeRun, asset: str, prefix: str
) -> None:
    table, days = asset.split("/")[-1], day_keys(FIRST, LAST)
    partitions = {day: range_run.project.lake.partition(table, f"{prefix}{day}") for day in days}

    found = range_run.metadata(asset)

    assert {day: each["dagster/row_count"] for day, each in found.items()} == {
        day: partition.rows for day, partition in partitions.items()
    }
    assert {day: each["version"] for day, each in found.items()} == {
        day: partition.version for day, partition in partitions.items()
    }
    if asset != "car_buyers/segments":  # best_30 has 30 on each, top_fifth may be alike
        assert len({partition.rows for partition in partitions.values()}) == len(days)


def test_each_day_of_a_range_says_what_was_rejected_on_it(spark: SparkSession, range_run: RangeRun) -> None:
    days = day_keys(FIRST, LAST)
    rejected = {day: len(range_run.project.rows(spark, "rejected_events", [day])) for day in days}

    found = range_run.metadata("app_events")

    assert {day: each["rejected"] for day, each in found.items()} == rejected
    assert len(set(rejected.values())) == len(days)


def test_each_day_of_a_range_says_the_sizes_of_its_segments(spark: SparkSession, range_run: RangeRun) -> None:
    for day, found in range_run.metadata("car_buyers/segments").items():
        rows = range_run.project.rows(spark, "segments", [f"car_buyers/{day}"])
        for segment in ("top_fifth", "best_30"):
            probabilities = rows.loc[rows["segment"] == segment, "probability"]
            assert found[f"devices/{segment}"] == len(probabilities)
            assert found[f"mean_probability/{segment}"] == pytest.approx(probabilities.mean(), abs=1e-6)


def test_each_day_of_a_range_says_how_its_scores_are_spread_and_moved(
    spark: SparkSession, range_run: RangeRun
) -> None:
    found = range_run.metadata("car_buyers/predictions")

    for day, each in found.items():
        scores = range_run.project.rows(spark, "predictions", [f"car_buyers/{day}"])["probability"]
        assert each["mean_probability"] == pytest.approx(scores.mean(), rel=1e-6)
        deciles = np.quantile(scores, [0.1, 0.5, 0.9], method="inverted_cdf")
        assert [each[f"decile/{tenth}"] for tenth in (1, 5, 9)] == pytest.approx(list(deciles), rel=1e-3)
        assert each["engine"] in {"torch", "xgboost", "blend"}
    # Nothing was scored on the day before the first; on the next one, much of the window is the same.
    assert "drift_psi" not in found[str(FIRST)]
    assert 0 < found[str(LAST)]["drift_psi"] < 1
    assert found[str(FIRST)]["mean_probability"] != found[str(LAST)]["mean_probability"]


def test_each_day_of_a_range_says_what_was_delivered_of_it(range_run: RangeRun) -> None:
    found = range_run.metadata("car_buyers/deliveries")

    lake = range_run.project.lake
    for day, each in found.items():
        partition = lake.partition("segments", f"car_buyers/{day}")
        assert (each["dagster/row_count"], each["files"]) == (partition.rows, 2)
        assert each["segments_version"] == partition.version
        assert all(place.endswith(day) for place in each["places"])
    # The chain had delivered the last day already.
    assert found[str(LAST)]["rows_sent"] == 0 < found[str(FIRST)]["rows_sent"]


def pointers(project: SmallProject) -> dict[str, dict[str, Partition]]:
    """Table → key → what is known of the partition."""
    tables = {*DAILY_TABLES, "training_set"}
    lake = project.lake
    return {
        table: {key: lake.partition(table, key) for key in lake.partition_keys(table)} for table in tables
    }


def changed(before: dict[str, dict[str, Partition]], after: dict[str, dict[str, Partition]]) -> set[str]:
    return {
        f"{table}/{key}"
        for table, partitions in after.items()
        for key, partition in partitions.items()
        if before[table].get(key) != partition
    }


@pytest.fixture
def project(chain: Chain, tmp_path: Path) -> SmallProject:
    return chain.project.copied_to(tmp_path / "data")


@pytest.mark.parametrize(
    ("asset", "replaced"),
    [
        ("app_events", {f"app_events/{SCORED_DAY}", f"rejected_events/{SCORED_DAY}"}),
        ("daily_fields", {f"daily_fields/{SCORED_DAY}"}),
        ("feature_tokens", {f"feature_tokens/{SCORED_DAY}"}),
        ("car_buyers/predictions", {f"predictions/car_buyers/{SCORED_DAY}"}),
        ("car_buyers/segments", {f"segments/car_buyers/{SCORED_DAY}"}),
    ],
)
def test_one_asset_on_demand_replaces_its_partition_by_an_equal_one(
    spark: SparkSession, chain: Chain, project: SmallProject, asset: str, replaced: set[str]
) -> None:
    before = pointers(project)

    with dg.DagsterInstance.ephemeral() as instance:
        result = materialize(project.definitions(), instance, [asset], SCORED_DAY)

    assert result.success, failures(result)
    assert materialized(result) == {asset}
    assert changed(before, pointers(project)) == replaced
    for table, key in (path.split("/", 1) for path in replaced):
        rows = project.rows(spark, table, [key])
        pd.testing.assert_frame_equal(rows, chain.project.rows(spark, table, [key]), check_exact=True)


class LakeThatFailsMidway(Lake):
    """Spark fails while it writes daily_fields, at a row of the last day."""

    def write(self, frame: DataFrame, table: str, **how: Any) -> dict[str, Partition]:
        if table == "daily_fields":
            broken = F.when(F.col("day") == F.lit(LAST), F.raise_error(F.lit("the disk is full")))
            frame = frame.withColumn("events", F.coalesce(broken.cast("bigint"), F.col("events")))
        return super().write(frame, table, **how)


def test_a_backfill_that_fails_midway_leaves_every_day_readable(
    spark: SparkSession, chain: Chain, project: SmallProject
) -> None:
    keys, failing = day_keys(FIRST, LAST), LakeThatFailsMidway(root=project.lake.root)
    before = pointers(project)

    with dg.DagsterInstance.ephemeral() as instance:
        failed = run_days(project.definitions(lake=failing), instance, "ingestion_job", FIRST, LAST)
        after_failure = pointers(project)
        rows = project.rows(spark, "daily_fields", keys)
        again = run_days(project.definitions(), instance, "ingestion_job", FIRST, LAST)

    assert not failed.success
    assert "the disk is full" in failures(failed)
    assert materialized(failed) == {"app_events", *(f"signals/{signal}" for signal in SIGNALS)}
    written = {f"{table}/{key}" for table in ("app_events", "rejected_events") for key in keys}
    assert changed(before, after_failure) == written | {
        f"daily_signals/{s}/{k}" for s in SIGNALS for k in keys
    }
    pd.testing.assert_frame_equal(rows, chain.project.rows(spark, "daily_fields", keys), check_exact=True)
    assert again.success, failures(again)
    rerun = project.rows(spark, "daily_fields", keys)
    pd.testing.assert_frame_equal(rerun, rows, check_exact=True)
