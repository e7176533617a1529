"""Jobs and schedules. Both schedules are off until someone turns them on."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import dagster as dg

from assets.partitions import SCHEDULE_MINUTE
from pipelines.steps.config.project import Project
from pipelines.steps.config.signals import SIGNALS

SHARED = ["app_events", "daily_fields", "feature_tokens"]
TRAINED = ["training_set", "dnn_model", "xgboost_model", "logistic_model", "champion_model"]
DAILY = ["predictions", "segments", "deliveries"]


class Jobs(NamedTuple):
    """What `build_definitions` binds; Dagster does not export the types of what it has yet to resolve."""

    jobs: Sequence[Any]
    schedules: Sequence[Any]


def build_jobs(project: Project) -> Jobs:
    """The jobs of a project, with all its audiences.

    `daily_job` runs once every accepted event has arrived: `max_late_hours` after midnight, UTC.
    """
    daily_job = dg.define_asset_job(
        "daily_job",
        _selection(SHARED, project, DAILY),
        description="One day's events to delivered segments, for all audiences.",
    )
    ingestion_job = dg.define_asset_job(
        "ingestion_job",
        _selection(SHARED[:2], project, []),
        description="Events, their daily aggregates and signals; backfill it over the past before the first "
        "training.",
    )
    features_job = dg.define_asset_job(
        "features_job",
        dg.AssetSelection.assets("feature_tokens"),
        description="Feature tokens alone; training_job makes those of the days to train on by itself.",
    )
    training_job = dg.define_asset_job(
        "training_job",
        _selection(["training_days", "feature_vocabulary"], project, TRAINED),
        description="The days to train on, with feature tokens where they lack, vocabulary, training sets, "
        "all candidates and the champions, for all audiences.",
    )
    schedules = [
        dg.build_schedule_from_partitioned_job(
            daily_job,
            name="daily_schedule",
            hour_of_day=project.fields.events.max_late_hours,
            minute_of_hour=SCHEDULE_MINUTE,
            description="Scores and delivers the day that has just ended, once its late events are in.",
        ),
        dg.ScheduleDefinition(
            name="weekly_training_schedule",
            job=training_job,
            cron_schedule="0 5 * * 1",
            execution_timezone="UTC",
            description="Trains every Monday at 05:00 UTC.",
        ),
    ]
    return Jobs([daily_job, ingestion_job, features_job, training_job], schedules)


def _selection(shared: Sequence[str], project: Project, per_audience: Sequence[str]) -> dg.AssetSelection:
    own = [[audience.name, name] for audience in project.audiences for name in per_audience]
    signals = [[SIGNALS, signal.name] for signal in project.signals if "daily_fields" in shared]
    return dg.AssetSelection.assets(*shared, *signals, *own)
