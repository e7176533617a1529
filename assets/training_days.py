"""training_days: the as-of days of all audiences, each with its feature tokens, made where they lack.

No run can hold days of feature_tokens, a daily asset, beside a training, which has none. So a training makes
those that it lacks here, by the functions of that asset, and records them as that asset's: materializations
and verdicts, day by day. What does not belong here: which days they are (`steps.labels.as_of_days`).
"""

from collections.abc import Iterator, Sequence
from datetime import date

import dagster as dg
import pandas as pd

from assets import daily_signals, feature_tokens
from assets.descriptions import HOLDS_NO_IDS, page
from assets.partitions import SPARK_POOL, keys_of
from pipelines.steps.config.project import Project
from pipelines.steps.config.settings import code_version
from pipelines.steps.errors import day_ranges
from pipelines.steps.features.token_fields import settings_of_tokens
from pipelines.steps.labels.as_of_days import matured_as_of_days
from pipelines.steps.progress import working
from resources.asset_metadata import data_version, record_made
from resources.expectations import Check, Subject, check_specs, evaluate, expect, record_verdict, report
from resources.lake import Lake
from resources.snapshots import Partition
from resources.spark import Spark
from resources.step_body import step_body
from resources.verdicts import NEVER, PASSED, Verdicts

KEY = dg.AssetKey("training_days")
DAYS_AT_ONCE = 16
"""As-of days of one Spark job: so many share one reading of their windows, and so many a killed run loses."""
CHECKS = [
    Check(
        "every_day_passed_its_checks",
        "all blocking checks of feature_tokens have passed on every day to train on",
        [expect("ExpectColumnValuesToBeInSet", column="checks_not_passed", value_set=[0])],
    ),
]


def build(project: Project) -> Sequence[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    @dg.asset(
        key=KEY,
        deps=["daily_fields", "app_events", *[daily_signals.key_of(signal) for signal in project.signals]],
        group_name="features",
        kinds={"spark", "parquet"},
        code_version=code_version(settings_of_tokens(project, project.declared_signals)),
        metadata=page("docs/models.md"),
        tags={"stage": "features", **HOLDS_NO_IDS},
        pool=SPARK_POOL,
    )
    @step_body
    def training_days(
        context: dg.AssetExecutionContext, spark: Spark, lake: Lake
    ) -> dg.MaterializeResult[None]:
        """The days that models are trained on; feature tokens that they lack, or outdated ones, are made."""
        days = _days(project, lake)
        lacking = feature_tokens.days_to_make(project, lake, days)
        for begin in range(0, len(lacking), DAYS_AT_ONCE):
            some = lacking[begin : begin + DAYS_AT_ONCE]
            which = f"{day_ranges(keys_of(some))}, {begin} done before"
            with working(f"making {len(lacking)} of {len(days)} feature days: {which}"):
                made = feature_tokens.make_days(project, spark, lake, some)
                record_made(context, feature_tokens.KEY, made)
        tokens = lake.snapshot("feature_tokens", keys_of(days))
        # Days made now, and days whose run was killed between making and checking them.
        if unchecked := [p.key for p in tokens.partitions if NEVER in _said(Verdicts(context.instance), p)]:
            for found in feature_tokens.check_days(project, spark, tokens.only(unchecked)):
                record_verdict(context, found)
        return dg.MaterializeResult(
            data_version=data_version(tokens.partitions),
            metadata={"days": len(days), "made": len(lacking), "as_of_days": keys_of(days)},
        )

    @dg.multi_asset_check(name="training_days_checks", specs=check_specs(KEY, CHECKS))
    @step_body
    def training_days_checks(
        context: dg.AssetCheckExecutionContext, lake: Lake
    ) -> Iterator[dg.AssetCheckResult]:
        tokens = lake.snapshot("feature_tokens", keys_of(_days(project, lake)))
        verdicts = Verdicts(context.instance)
        not_passed = [sum(said != PASSED for said in _said(verdicts, day)) for day in tokens.partitions]
        evidence = pd.DataFrame({"day": keys_of(_days(project, lake)), "checks_not_passed": not_passed})
        subjects = [Subject(data_version(tokens.partitions).value)]
        yield from report(context, evaluate(KEY, CHECKS, evidence, subjects))

    return [training_days, training_days_checks]


def _days(project: Project, lake: Lake) -> list[date]:
    """The as-of days of all audiences."""
    known = [date.fromisoformat(key) for key in lake.partition_keys("app_events")]
    window_days = project.fields.window_days
    return sorted({day for a in project.audiences for day in matured_as_of_days(a, known, window_days)})


def _said(verdicts: Verdicts, partition: Partition) -> list[str]:
    """The verdict of each blocking check on a day's tokens, at their version."""
    names = feature_tokens.blocking_checks()
    return [verdicts.of(feature_tokens.KEY, name, partition.version, partition.key) for name in names]
