"""Great Expectations as Dagster asset checks: the one adapter.

An asset's module says its `Check`s, each a name, the expectations that make it up, and whether it
blocks. This module turns them into Dagster specs and, given the evidence (a Spark or pandas frame),
into results. A check whose expectations raise fails the step, and so blocks; it never passes.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pandas as pd
from pyspark.sql import DataFrame

SAMPLE = 5
"""Offending values shown with a failed check."""


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

    def spec(self, asset: dg.AssetKey) -> dg.AssetCheckSpec:
        return dg.AssetCheckSpec(self.name, asset=asset, description=self.description, blocking=self.blocking)


def check_specs(asset: dg.AssetKey, checks: Sequence[Check]) -> list[dg.AssetCheckSpec]:
    """The Dagster side of an asset's checks."""
    return [check.spec(asset) for check in checks]


def evaluate(
    asset: dg.AssetKey,
    checks: Sequence[Check],
    evidence: DataFrame | pd.DataFrame,
    metadata: Mapping[str, Any] | None = None,
) -> Iterator[dg.AssetCheckResult]:
    """Validates the evidence once for all checks and yields one result for each.

    Args:
        asset: The asset that the evidence is of.
        checks: What must hold of it.
        evidence: Rows of the asset, or figures computed from them.
        metadata: Shown with each result.
    """
    results = _validate(checks, evidence)
    for check in checks:
        mine = [results[e.key] for e in check.expectations if e.key in results]
        failed = [result for result in mine if not result.success]
        complete = len(mine) == len(check.expectations)
        yield dg.AssetCheckResult(
            asset_key=asset,
            check_name=check.name,
            passed=complete and not failed,
            severity=dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN,
            description="; ".join(_explain(result) for result in failed) or None,
            metadata={**(metadata or {}), **_figures(mine)},
        )


def _validate(checks: Sequence[Check], evidence: DataFrame | pd.DataFrame) -> dict[str, Any]:
    """Each distinct expectation's key and result; a suite holds equal expectations once."""
    import great_expectations as gx
    import great_expectations.expectations as gxe
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
    batch = asset.add_batch_definition_whole_dataframe("evidence").get_batch({"dataframe": evidence})
    suite = gx.ExpectationSuite(name="checks")
    for expectation in {e.key: e for check in checks for e in check.expectations}.values():
        known = getattr(gxe, expectation.name)
        suite.add_expectation(known(**expectation.arguments, meta={"key": expectation.key}))
    results: list[Any] = list(batch.validate(suite, result_format="SUMMARY").results)
    return {result.expectation_config.meta["key"]: result for result in results}


def _explain(result: Any) -> str:
    config = result.expectation_config
    if messages := _exceptions(result):
        shown = "an error that may quote device ids" if _is_about_ids(result) else "; ".join(messages)
        return f"{config.type} raised: {shown}"
    wanted = {k: v for k, v in config.kwargs.items() if k != "batch_id"}
    return f"expected {config.type} {wanted}, observed {_observed(result)}"


def _exceptions(result: Any) -> list[str]:
    """What an expectation raised: described at once, or by each metric that it could not compute."""
    info = result.exception_info
    described = [info] if "raised_exception" in info else info.values()
    return sorted({str(each["exception_message"]) for each in described if each["raised_exception"]})


def _figures(results: Sequence[Any]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for result in results:
        config = result.expectation_config
        columns = [config.kwargs.get(name) for name in ("column", "column_A", "column_B")]
        columns = [name for name in columns if name] or config.kwargs.get("column_list") or ["table"]
        name = f"{'+'.join(columns)}: {config.type.removeprefix('expect_').removeprefix('column_values_to_')}"
        threshold = {k: v for k, v in config.kwargs.items() if k not in {"batch_id", "column", "column_list"}}
        figures[name] = dg.MetadataValue.json(
            {"observed": _observed(result), "threshold": _plain(threshold), "success": bool(result.success)}
        )
    return figures


def _observed(result: Any) -> Any:
    if _exceptions(result):
        return "nothing: it raised"
    found = dict(result.result)
    if found.get("unexpected_count"):
        if _is_about_ids(result):
            return {"unexpected": _plain(found["unexpected_count"]), "sample": "device ids are never shown"}
        sample = [_plain(value) for value in found.get("partial_unexpected_list", [])[:SAMPLE]]
        return {"unexpected": _plain(found["unexpected_count"]), "sample": sample}
    return _plain(found.get("observed_value", {"unexpected": 0}))


def _is_about_ids(result: Any) -> bool:
    return "device_id" in str(result.expectation_config.kwargs)


def _plain(value: Any) -> Any:
    """As JSON has it; what JSON lacks, as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return value.item() if hasattr(value, "item") else str(value)
