"""Great Expectations as Dagster asset checks: the one adapter.

An asset's module says its `Check`s, each a name, the expectations that make it up, and whether it
blocks. This module turns them into Dagster specs and, given the evidence (a Spark or pandas frame),
into results. A check whose expectations raise fails the step, and so blocks; it never passes.

Every result is about versions: those that the run made, or looked at. A run over many days gives each day a
verdict of its own, in Dagster's history, where `resources.verdicts` finds it.
"""

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import dagster as dg
import pandas as pd
from dagster._core.events import DagsterEvent, DagsterEventType
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.steps.progress import working
from resources.expectation_texts import explain, figures
from resources.snapshots import Snapshot, day_of

ResultFormat = Literal["BOOLEAN_ONLY", "SUMMARY", "COMPLETE"]
"""How much Great Expectations says of an expectation."""
VERSION = "version"
"""The metadata of a verdict that names what it is about."""


@dataclass(frozen=True)
class Subject:
    """What a check looks at.

    Attributes:
        version: Of the partition, table or model.
        day: Its partition, ISO; None where the asset has no partitions.
    """

    version: str
    day: str | None = None


def subjects_of(snapshot: Snapshot) -> list[Subject]:
    """Each partition of a daily table, or of an audience's days in one, as what a check looks at."""
    return [Subject(partition.version, day_of(partition)) for partition in snapshot.partitions]


@dataclass(frozen=True)
class Expected:
    """An expectation by name: importing Great Expectations takes 4 CPU seconds, too long for definitions."""

    name: str
    arguments: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Equal expectations have equal keys."""
        return f"{self.name}{json.dumps(self.arguments, sort_keys=True)}"


def expect(name: str, **arguments: Any) -> Expected:
    """Names a class of `great_expectations.expectations` and its arguments."""
    return Expected(name, arguments)


@dataclass(frozen=True)
class Check:
    """One concern about one asset.

    Attributes:
        name: Shown in the UI.
        description: What must hold.
        expectations: All must hold; over the columns of the evidence.
        blocking: Whether a failure stops what is downstream in the same run, and any delivery.
    """

    name: str
    description: str
    expectations: Sequence[Expected]
    blocking: bool = True

    @property
    def severity(self) -> dg.AssetCheckSeverity:
        return dg.AssetCheckSeverity.ERROR if self.blocking else dg.AssetCheckSeverity.WARN

    def spec(
        self, asset: dg.AssetKey, partitions: dg.PartitionsDefinition[Any] | None = None
    ) -> dg.AssetCheckSpec:
        return dg.AssetCheckSpec(
            self.name,
            asset=asset,
            description=self.description,
            blocking=self.blocking,
            partitions_def=partitions,
        )


def check_specs(
    asset: dg.AssetKey, checks: Sequence[Check], partitions: dg.PartitionsDefinition[Any] | None = None
) -> list[dg.AssetCheckSpec]:
    """The Dagster side of an asset's checks."""
    return [check.spec(asset, partitions) for check in checks]


def blocking_names(checks: Sequence[Check]) -> list[str]:
    """What must have passed before anything made from the asset is delivered."""
    return [check.name for check in checks if check.blocking]


@dataclass(frozen=True)
class Verdict:
    """What a check says of its subjects.

    Attributes:
        result: Of all of them together; what a run blocks by.
        subjects: What was checked.
        bad_days: The days that failed; where there are no days, None stands for the one subject.
    """

    result: dg.AssetCheckResult
    subjects: Sequence[Subject]
    bad_days: Collection[str | None]


def verdict(
    asset: dg.AssetKey,
    check: str,
    subjects: Sequence[Subject],
    bad_days: Collection[str | None],
    *,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    description: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Verdict:
    """A verdict that was found without expectations.

    Args:
        asset: The asset checked.
        check: The check's name.
        subjects: What was checked.
        bad_days: The days of those that failed.
        severity: Shown with a failure.
        description: Why it failed.
        metadata: Shown with the result.
    """
    versions = sorted({subject.version for subject in subjects})
    version = versions[0] if len(versions) == 1 else f"{len(versions)} versions"
    result = dg.AssetCheckResult(
        asset_key=asset,
        check_name=check,
        passed=not bad_days,
        severity=severity,
        description=description,
        metadata={**(metadata or {}), VERSION: version},
    )
    return Verdict(result, subjects, bad_days)


def evaluate(
    asset: dg.AssetKey,
    checks: Sequence[Check],
    evidence: DataFrame | pd.DataFrame,
    subjects: Sequence[Subject],
    metadata: Mapping[str, Any] | None = None,
) -> Iterator[Verdict]:
    """Validates the evidence once for all checks and yields a verdict for each.

    Where a check fails over several days, the evidence is halved until the days are known that it fails for.

    Args:
        asset: The asset that the evidence is of.
        checks: What must hold of each row of it; then it holds for the days together iff it does for each.
        evidence: Rows of the asset, or figures computed from them; with the column `day` where there are
            several subjects.
        subjects: What is checked: each day, at its version.
        metadata: Shown with each result.
    """
    with working(f"checking {asset.to_user_string()}: {', '.join(c.name for c in checks)}") as work:
        results = _validate(checks, evidence)
        failed = [check.name for check in checks if not _has_passed(check, results)]
        work.result = f"failed: {', '.join(failed)}" if failed else "passed"
    all_days = {subject.day for subject in subjects}
    for check in checks:
        mine = [results[e.key] for e in check.expectations if e.key in results]
        passed = _has_passed(check, results)
        yield verdict(
            asset,
            check.name,
            subjects,
            set() if passed else _failing_days(check, evidence, subjects) or all_days,
            severity=check.severity,
            description="; ".join(explain(result) for result in mine if not result.success) or None,
            metadata={**(metadata or {}), **figures(mine, _only_row(evidence))},
        )


def report(
    context: dg.AssetCheckExecutionContext | dg.AssetExecutionContext, verdicts: Iterable[Verdict]
) -> Iterator[dg.AssetCheckResult]:
    """Gives each day its verdict in Dagster's history, and each check its result in the run."""
    for found in verdicts:
        if context.has_partition_key_range:
            record_verdict(context, found)
        yield found.result


def record_verdict(context: dg.AssetCheckExecutionContext | dg.AssetExecutionContext, found: Verdict) -> None:
    """Writes a verdict for each day into Dagster's history, whichever asset the run is of.

    Dagster 1.13 plans an evaluation for each day of a range, but lets a step report one for all of them: the
    days' own would show as skipped for ever. `report_dagster_event` is no public API; tests/test_verdicts.py
    notices.
    """
    for subject in found.subjects:
        failed = subject.day in found.bad_days
        evaluation = dg.AssetCheckEvaluation(
            asset_key=found.result.asset_key or dg.AssetKey([]),
            check_name=found.result.check_name or "",
            passed=not failed,
            metadata={VERSION: dg.MetadataValue.text(subject.version)},
            severity=found.result.severity,
            description=found.result.description if failed else None,
            partition=subject.day,
        )
        event = DagsterEvent(
            DagsterEventType.ASSET_CHECK_EVALUATION.value,
            context.run.job_name,
            step_key=context.op_execution_context.op_handle.name,
            event_specific_data=evaluation,
        )
        context.instance.report_dagster_event(event, context.run.run_id)


def _only_row(evidence: DataFrame | pd.DataFrame) -> dict[str, Any] | None:
    """The evidence where it is one row of figures."""
    if isinstance(evidence, pd.DataFrame) and len(evidence) == 1:
        return {str(name): evidence[name].iloc[0] for name in evidence}
    return None


def _has_passed(check: Check, results: Mapping[str, Any]) -> bool:
    return all(e.key in results and results[e.key].success for e in check.expectations)


def _failing_days(
    check: Check, evidence: DataFrame | pd.DataFrame, subjects: Sequence[Subject]
) -> set[str | None]:
    """The days for which a check fails that fails for all of them together."""
    if len(subjects) == 1:
        return {subjects[0].day}
    if isinstance(evidence, pd.DataFrame) and (failing := _failing_rows(check, evidence)) is not None:
        return set(evidence.loc[failing, "day"].astype(str))
    middle = len(subjects) // 2
    bad: set[str | None] = set()
    for half in (subjects[:middle], subjects[middle:]):
        rows = _rows_of(evidence, [subject.day for subject in half if subject.day])
        if not _has_passed(check, _validate([check], rows)):
            bad |= _failing_days(check, rows, half)
    return bad


def _failing_rows(check: Check, evidence: pd.DataFrame) -> list[Any] | None:
    """The index of the rows that a check fails for; None where an expectation does not say."""
    rows: list[Any] = []
    for result in _validate([check], evidence, result_format="COMPLETE").values():
        if not result.success:
            named = result.result.get("unexpected_index_list")
            if not named:
                return None
            rows += named
    return rows


def _rows_of(evidence: DataFrame | pd.DataFrame, days: Sequence[str]) -> DataFrame | pd.DataFrame:
    if isinstance(evidence, pd.DataFrame):
        return evidence[evidence["day"].astype(str).isin(days)]
    return evidence.where(F.col("day").isin([date.fromisoformat(day) for day in days]))


def _validate(
    checks: Sequence[Check],
    evidence: DataFrame | pd.DataFrame,
    result_format: ResultFormat = "SUMMARY",
) -> dict[str, Any]:
    """Each distinct expectation's key and result; a suite holds equal expectations once."""
    expectations = list({e.key: e for check in checks for e in check.expectations}.values())
    batch = _batch(evidence)
    if isinstance(evidence, pd.DataFrame):
        return _results(batch, expectations, result_format)
    # What offends is looked for where something does: that reads all rows once more for each expectation.
    results = _results(batch, expectations, "BOOLEAN_ONLY")
    told = [e for e in expectations if not results[e.key].success or e.name in _TOLD_WITHOUT_ROWS]
    detailed = _results(batch, [*told, _ROWS], result_format)
    rows = detailed.pop(_ROWS.key).result.get("observed_value", 0)
    for result in results.values():
        result.result = {"element_count": rows}
    return results | detailed


_ROWS = expect("ExpectTableRowCountToBeBetween", min_value=0)
_TOLD_WITHOUT_ROWS = ("ExpectColumnValuesToBeOfType",)
"""Expectations whose observed value is in the schema."""


def _batch(evidence: DataFrame | pd.DataFrame) -> Any:
    """The evidence, as Great Expectations holds it."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.datasource.fluent import PandasDatasource, SparkDatasource

    # GX logs every metric it computes at INFO; the results carry all that matters.
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    source: PandasDatasource | SparkDatasource
    if isinstance(evidence, pd.DataFrame):
        source = context.data_sources.add_pandas("evidence")
    else:
        # Without persist=False GX caches the whole frame in Spark's memory.
        source = context.data_sources.add_spark("evidence", persist=False)
    asset = source.add_dataframe_asset("evidence")
    return asset.add_batch_definition_whole_dataframe("evidence").get_batch({"dataframe": evidence})


def _results(batch: Any, expectations: Sequence[Expected], result_format: ResultFormat) -> dict[str, Any]:
    """Each expectation's key and what Great Expectations says of it."""
    import great_expectations as gx
    import great_expectations.expectations as gxe

    suite = gx.ExpectationSuite(name="checks")
    for expectation in expectations:
        known = getattr(gxe, expectation.name)
        suite.add_expectation(known(**expectation.arguments, meta={"key": expectation.key}))
    results: list[Any] = list(batch.validate(suite, result_format=result_format).results)
    return {result.expectation_config.meta["key"]: result for result in results}
