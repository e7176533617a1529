"""The days to train on: a training makes the feature days that it lacks, and checks them, by itself."""

import json
from dataclasses import replace
from pathlib import Path

import dagster as dg

from assets.feature_tokens import KEY, blocking_checks, days_to_make
from pipelines.steps.config.project import load_project
from resources.verdicts import NEVER, PASSED, Verdicts
from tests.small_project import AS_OF_DAYS, SCORED_DAY, Chain, SmallProject, materialize, verdicts

OLDER, NEWER = AS_OF_DAYS


def to_make(project: SmallProject) -> list[str]:
    """The days to train on whose features a training would make now."""
    return [str(d) for d in days_to_make(load_project(project.audiences_dir), project.lake, AS_OF_DAYS)]


def said(instance: dg.DagsterInstance, project: SmallProject) -> set[str]:
    """What the checks of the features of the days to train on said, at their present version."""
    found, lake = Verdicts(instance), project.lake
    versions = {str(day): lake.partition("feature_tokens", str(day)).version for day in AS_OF_DAYS}
    return {found.of(KEY, check, versions[day], day) for day in versions for check in blocking_checks()}


# --- which days a training makes ------------------------------------------------------------------------


def test_a_day_that_is_there_is_not_made_again(chain: Chain) -> None:
    assert to_make(chain.project) == []


def test_a_day_that_was_never_made_is_made(chain: Chain, tmp_path: Path) -> None:
    project = chain.project.copied_to(tmp_path / "data")
    project.forget("feature_tokens", str(OLDER))

    assert to_make(project) == [str(OLDER)]


def test_a_day_is_made_again_once_a_day_of_its_window_was(chain: Chain, tmp_path: Path) -> None:
    project = chain.project.copied_to(tmp_path / "data")
    a_day = project.pointer("daily_fields", "2025-03-06")  # in the window of the newer one alone
    a_day.write_text(json.dumps(json.loads(a_day.read_text()) | {"version": "a newer one"}))

    assert to_make(project) == [str(NEWER)]


def test_a_day_is_made_again_once_a_setting_of_its_tokens_has_changed(chain: Chain, tmp_path: Path) -> None:
    for file in chain.project.audiences_dir.iterdir():
        text = file.read_text().replace("normalizer: device_name", "normalizer: text")
        (tmp_path / file.name).write_text(text)

    assert to_make(replace(chain.project, audiences_dir=tmp_path)) == [str(OLDER), str(NEWER)]


# --- what is recorded of them ---------------------------------------------------------------------------


def test_a_training_makes_the_days_that_features_job_has_not(chain: Chain) -> None:
    [made] = chain.results["training_job"].asset_materializations_for_node("training_days")
    figures = {name: made.metadata[name].value for name in ("days", "made", "as_of_days")}

    assert figures == {"days": 2, "made": 1, "as_of_days": [str(OLDER), str(NEWER)]}


def test_a_day_made_by_a_training_is_recorded_as_one_of_feature_tokens(chain: Chain) -> None:
    run = chain.results["training_job"].run_id
    [record] = chain.instance.fetch_materializations(
        dg.AssetRecordsFilter(KEY, asset_partitions=[str(NEWER)]), limit=9
    ).records

    assert chain.instance.get_materialized_partitions(KEY) == {str(OLDER), str(NEWER), str(SCORED_DAY)}
    assert record.run_id == run
    made = record.asset_materialization
    assert made is not None
    version = chain.project.lake.partition("feature_tokens", str(NEWER)).version
    assert (made.metadata["version"].value, (made.tags or {})["dagster/data_version"]) == (version, version)


def test_a_day_made_by_a_training_has_its_verdicts(chain: Chain) -> None:
    assert said(chain.instance, chain.project) == {PASSED}
    assert verdicts(chain.results["training_job"])["training_days:every_day_passed_its_checks"]


def test_a_run_that_was_killed_before_its_checks_is_made_up_for(chain: Chain, tmp_path: Path) -> None:
    project = chain.project.copied_to(tmp_path / "data")
    with dg.DagsterInstance.ephemeral() as instance:  # one that knows of no check
        assert said(instance, project) == {NEVER}
        result = materialize(project.definitions(), instance, ["training_days"])

        assert result.success
        assert said(instance, project) == {PASSED}
    assert to_make(project) == []
    assert {p.version for p in project.lake.snapshot("feature_tokens", map(str, AS_OF_DAYS)).partitions} == {
        p.version for p in chain.project.lake.snapshot("feature_tokens", map(str, AS_OF_DAYS)).partitions
    }
