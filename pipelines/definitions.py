"""The only place where things are bound: assets, checks, jobs, schedules and resources.

Loading it starts no JVM, touches no network and reads no secret.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from assets import (
    app_events,
    candidate_models,
    champion_model,
    daily_fields,
    daily_signals,
    deliveries,
    feature_tokens,
    feature_vocabulary,
    predictions,
    segments,
    training_days,
    training_set,
)
from assets.descriptions import describe_assets
from assets.partitions import daily
from pipelines.jobs import build_jobs
from pipelines.steps.config.project import load_project
from resources.destinations import Destinations
from resources.lake import Lake
from resources.model_store import ModelStore
from resources.spark import Spark

# Open-ended partition mappings are "beta" and checks of a partition "preview" in Dagster 1.13: a warning for
# each asset, at every load, about names that the constraints file pins.
for category in (dg.BetaWarning, dg.PreviewWarning):
    warnings.filterwarnings("ignore", category=category)


def build_definitions(
    audiences_dir: Path | None = None,
    data_dir: Path | None = None,
    resource_overrides: Mapping[str, Any] | None = None,
) -> dg.Definitions:
    """Binds one project.

    Args:
        audiences_dir: Directory of fields.yaml and the audiences; else $AUDIENCES_DIR, else `audiences`.
        data_dir: Directory of lake, models and deliveries; else $DATA_DIR, else `data`.
        resource_overrides: Resources to use in place of the default ones, by key.

    Raises:
        ConfigError: A file of the project is wrong.
    """
    project = load_project(audiences_dir or Path(os.environ.get("AUDIENCES_DIR", "audiences")))
    data = (data_dir or Path(os.environ.get("DATA_DIR", "data"))).absolute()
    days = daily(project.fields.events)
    shared = [
        *app_events.build(project, days),
        *daily_fields.build(project, days),
        *daily_signals.build(project, days),
        *feature_tokens.build(project, days),
        *training_days.build(project),
        *feature_vocabulary.build(project),
        *predictions.build(project, days),
    ]
    own = [
        definition
        for audience in project.audiences
        for definition in (
            *training_set.build(project, audience),
            *candidate_models.build(audience),
            *champion_model.build(audience),
            *segments.build(audience, days),
            *deliveries.build(audience, days, project.signals_of(audience)),
        )
    ]
    everything = [*shared, *own]
    jobs = build_jobs(project)
    return dg.Definitions(
        assets=describe_assets(
            [d for d in everything if not isinstance(d, dg.AssetChecksDefinition)], project
        ),
        asset_checks=[d for d in everything if isinstance(d, dg.AssetChecksDefinition)],
        jobs=jobs.jobs,
        schedules=jobs.schedules,
        # One JVM per run: a 3-step chain took 51-59 s in process, 122-143 s with a process per step.
        executor=dg.in_process_executor,
        resources={
            "spark": Spark.from_environment(),
            "lake": Lake(root=str(data / "lake")),
            "models": ModelStore(root=str(data / "models")),
            "destinations": Destinations(root=str(data)),
            **(resource_overrides or {}),
        },
    )


defs = build_definitions()
