"""What is delivered is what was checked: the chain from a day's events and its champion to its segments.

Every test goes on from the history of the small project's whole chain, and changes a copy of its data.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest
from dagster._cli import cli as dagster
from dagster._core.events import DagsterEvent, DagsterEventType
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from resources.expectations import VERSION
from resources.lake import Lake
from resources.snapshots import Partition, Snapshot
from tests.small_project import (
    FIRST_DAY,
    SCORED_DAY,
    WINDOW_DAYS,
    Chain,
    SmallProject,
    failures,
    materialize,
    materialized,
    run_days,
    verdicts,
)
from tests.test_checks_block import Corrupt, scores_shifted, written

DAY, NEXT_DAY = str(SCORED_DAY), str(SCORED_DAY + timedelta(days=1))
SCORED_KEY = f"car_buyers/{DAY}"
MADE = ["car_buyers/predictions", "car_buyers/segments"]
DELIVERED = [*MADE, "car_buyers/deliveries"]


@pytest.fixture
def project(chain: Chain, tmp_path: Path) -> SmallProject:
    return chain.project.copied_to(tmp_path / "data")


@pytest.fixture
def instance(chain: Chain, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with chain.history(tmp_path / "home") as instance:
        yield instance


@pytest.fixture(scope="module")
def next_day_too(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The chain, with a newer day delivered in a copy of its data and history; to change it, copy it."""
    root = tmp_path_factory.mktemp("next_day_too")
    project = chain.project.copied_to(root / "data")
    with chain.history(root / "home") as instance:
        made = materialize(
            project.definitions(), instance, ["feature_tokens", *DELIVERED], date.fromisoformat(NEXT_DAY)
        )
    assert made.success, failures(made)
    return replace(chain, project=project, home=root / "home")


def deliveries_of(project: SmallProject) -> dict[str, bytes]:
    """Path → content of all that lies with the receivers."""
    root = project.data_dir / "deliveries"
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def manifest_of(project: SmallProject, segment: str, day: str = DAY) -> dict[str, Any]:
    path = project.data_dir / "deliveries/car_buyers" / segment / day / "manifest.json"
    manifest: dict[str, Any] = json.loads(path.read_bytes())
    return manifest


def deliver(project: SmallProject, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    """The day's delivery on its own, as someone does who clicks on it in the UI."""
    return materialize(project.definitions(), instance, ["car_buyers/deliveries"], SCORED_DAY)


def assert_refused(result: dg.ExecuteInProcessResult, *because: str) -> None:
    message = failures(result)
    assert not result.success
    assert materialized(result) == set()
    for reason in because:
        assert reason in message


def spoiled(project: SmallProject, table: str, corrupt: Corrupt) -> dg.Definitions:
    return project.definitions(**written(table, "spoiled", corrupt).override(project))


def say(
    instance: dg.DagsterInstance,
    asset: Sequence[str],
    check: str,
    passed: bool,
    version: str,
    day: str | None,
) -> None:
    """Adds an evaluation to the history, as a run of the checks alone would."""
    evaluation = dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(asset),
        check_name=check,
        passed=passed,
        metadata={VERSION: dg.MetadataValue.text(version)},
        partition=day,
    )
    kind = DagsterEventType.ASSET_CHECK_EVALUATION.value
    event = DagsterEvent(kind, "a_job", event_specific_data=evaluation)
    instance.report_dagster_event(event, str(uuid.uuid4()))


# --- a run for an older day, however it is launched ---------------------------------------------------


def by_key(definitions: dg.Definitions, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    keys = [dg.AssetKey(asset.split("/")) for asset in DELIVERED]
    return definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance, asset_selection=keys, partition_key=DAY, raise_on_error=False
    )


def by_one_of_several_runs_of_a_backfill(
    definitions: dg.Definitions, instance: dg.DagsterInstance
) -> dg.ExecuteInProcessResult:
    keys = [dg.AssetKey(asset.split("/")) for asset in DELIVERED]
    return definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance,
        asset_selection=keys,
        partition_key=DAY,
        tags={"dagster/backfill": "a_backfill"},
        raise_on_error=False,
    )


def by_range(definitions: dg.Definitions, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    return materialize(definitions, instance, DELIVERED, SCORED_DAY)


def by_the_schedule(definitions: dg.Definitions, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    """What the daily schedule asks for, at the time when it did."""
    schedule = definitions.resolve_schedule_def("daily_schedule")
    moment = dg.build_schedule_context(
        instance,
        scheduled_execution_time=datetime.combine(SCORED_DAY + timedelta(days=1), time(2, 30), UTC),
        repository_def=definitions.get_repository_def(),
    )
    with moment as context:
        [request] = schedule.evaluate_tick(context).run_requests or []
    assert request.partition_key == DAY
    return definitions.resolve_job_def("daily_job").execute_in_process(
        instance=instance,
        partition_key=request.partition_key,
        tags=dict(request.tags),
        asset_selection=[dg.AssetKey(asset.split("/")) for asset in DELIVERED],
        raise_on_error=False,
    )


@pytest.mark.parametrize("launch", [by_key, by_range, by_one_of_several_runs_of_a_backfill, by_the_schedule])
def test_a_spoiled_older_day_is_stopped_while_a_newer_one_is_right(
    next_day_too: Chain,
    tmp_path: Path,
    launch: Callable[[dg.Definitions, dg.DagsterInstance], dg.ExecuteInProcessResult],
) -> None:
    project = next_day_too.project.copied_to(tmp_path / "data")
    before = deliveries_of(project)

    with next_day_too.history(tmp_path / "home") as instance:
        result = launch(spoiled(project, "predictions", scores_shifted), instance)

    assert verdicts(result)["car_buyers/predictions:scores_equal_pytorch_in_process"] is False
    assert "car_buyers/deliveries" not in materialized(result)
    assert deliveries_of(project) == before


SPOILED_PROJECT = """
from pathlib import Path
from types import SimpleNamespace

from pipelines.definitions import build_definitions
from resources.lake import Lake
from resources.spark import Spark
from tests.test_checks_block import scores_shifted, written


project = SimpleNamespace(lake=Lake(root={root!r}))
fault = written("predictions", "scores 1e-4 off", scores_shifted)
spark = Spark(master="local[2]", driver_memory="1g", shuffle_partitions=2)
defs = build_definitions(Path({audiences!r}), Path({data!r}), {{"spark": spark, **fault.override(project)}})
"""


@pytest.mark.parametrize(
    ("option", "days"), [("--partition", DAY), ("--partition-range", f"{DAY}...{NEXT_DAY}")]
)
@pytest.mark.filterwarnings(
    "ignore:.*asset_materialize_command.*:dagster_shared.utils.warnings.SupersessionWarning"
)
def test_the_command_line_checks_the_days_that_it_makes(
    next_day_too: Chain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    option: str,
    days: str,
) -> None:
    """The program itself, in this process: its own would start another Spark for four assets."""
    project = next_day_too.project.copied_to(tmp_path / "data")
    home = shutil.copytree(next_day_too.home, tmp_path / "home")
    places = {
        "root": project.lake.root,
        "audiences": str(project.audiences_dir),
        "data": str(project.data_dir),
    }
    spoiled = tmp_path / "spoiled.py"
    spoiled.write_text(SPOILED_PROJECT.format(**places))
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    before = deliveries_of(project)

    with pytest.raises(SystemExit) as ended:
        dagster(["asset", "materialize", "-f", str(spoiled), "--select", ",".join(DELIVERED), option, days])

    assert ended.value.code not in (None, 0)
    printed = capfd.readouterr()
    assert "scores_equal_pytorch_in_process" in printed.out + printed.err, printed.err
    assert deliveries_of(project) == before
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        newest = instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(dg.AssetKey(["car_buyers", "predictions"]), "scores_equal_pytorch_in_process"),
            limit=20,
        )
    run_id = newest[0].run_id
    failed = {each.partition for each in newest if each.run_id == run_id and each.status.value == "FAILED"}
    assert failed - {None} == set(days.split("..."))


# --- delivery on its own: blocking reaches no further than one run ------------------------------------


def test_segments_made_from_predictions_whose_check_failed_are_not_delivered(
    project: SmallProject, instance: dg.DagsterInstance
) -> None:
    """Predictions are made again, and pass, after segments were cut from those that did not."""
    before = deliveries_of(project)
    materialize(spoiled(project, "predictions", scores_shifted), instance, MADE[:1], SCORED_DAY)
    assert materialize(project.definitions(), instance, MADE[1:], SCORED_DAY).success
    assert materialize(project.definitions(), instance, MADE[:1], SCORED_DAY).success

    result = deliver(project, instance)

    assert_refused(result, "'car_buyers/predictions:scores_equal_pytorch_in_process': 'failed'")
    assert f"nothing is delivered for {DAY}: blocking checks upstream have not passed" in failures(result)
    assert deliveries_of(project) == before


def test_old_segments_name_the_model_that_scored_them(
    project: SmallProject, instance: dg.DagsterInstance
) -> None:
    champion = project.models.current("car_buyers", "champion")
    other = next(
        record
        for record in (project.models.current("car_buyers", name) for name in ("logistic", "xgboost", "dnn"))
        if record.version != champion.version
    )
    shutil.rmtree(project.data_dir / "deliveries")
    project.models.promote("car_buyers", other.version, by_precision=[])
    assert materialize(project.definitions(), instance, MADE[:1], SCORED_DAY).success

    assert deliver(project, instance).success

    assert project.lake.partition("predictions", SCORED_KEY).properties["bundle"] == other.version
    assert manifest_of(project, "best_30")["model_version"] == champion.version


def test_a_day_without_history_is_not_delivered(project: SmallProject) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        result = deliver(project, instance)

    assert_refused(
        result,
        "'car_buyers/segments:no_device_is_twice_in_a_segment': 'never evaluated'",
        "'car_buyers/predictions:every_probability_is_in_0_to_1': 'never evaluated'",
        "'feature_tokens:each_device_has_one_row_a_day': 'never evaluated'",
        "'daily_fields:ids_days_and_times_are_present': 'never evaluated'",
        "'app_events:every_row_is_accounted_for': 'never evaluated'",
        "'car_buyers/champion_model:its_bundle_loads_with_its_vocabulary': 'never evaluated'",
    )


@pytest.mark.parametrize("table", ["app_events", "daily_fields", "feature_tokens", "predictions", "segments"])
def test_a_failed_check_anywhere_in_the_chain_stops_the_delivery(
    project: SmallProject, instance: dg.DagsterInstance, table: str
) -> None:
    checks = {
        "app_events": "every_row_is_accounted_for",
        "daily_fields": "each_device_has_one_row_a_day",
        "feature_tokens": "nothing_comes_after_the_as_of_day",
        "predictions": "each_device_is_scored_once_a_day",
        "segments": "no_device_is_twice_in_a_segment",
    }
    own = table in ("predictions", "segments")
    version = project.lake.partition(table, SCORED_KEY if own else DAY).version
    asset = ["car_buyers", table] if own else [table]
    say(instance, asset, checks[table], False, version, DAY)

    assert_refused(deliver(project, instance), f"'{'/'.join(asset)}:{checks[table]}': 'failed'")

    say(instance, asset, checks[table], True, version, DAY)
    assert deliver(project, instance).success


def test_a_verdict_on_another_version_does_not_count(
    project: SmallProject, instance: dg.DagsterInstance
) -> None:
    say(instance, ["car_buyers", "segments"], "no_device_is_twice_in_a_segment", False, "another", DAY)

    assert deliver(project, instance).success


def test_a_failed_check_of_any_day_of_the_history_stops_the_delivery(
    project: SmallProject, instance: dg.DagsterInstance
) -> None:
    check = "each_device_has_one_row_a_day"
    for day in (str(SCORED_DAY - timedelta(days=WINDOW_DAYS - 1)), str(FIRST_DAY)):
        version = project.lake.partition("daily_fields", day).version
        say(instance, ["daily_fields"], check, False, version, day)

        assert_refused(deliver(project, instance), f"'daily_fields:{check} of {day}': 'failed'")

        say(instance, ["daily_fields"], check, True, version, day)
        assert deliver(project, instance).success


def test_a_champion_whose_checks_failed_is_delivered_only_where_a_person_promoted_it(
    project: SmallProject, instance: dg.DagsterInstance
) -> None:
    champion = project.models.current("car_buyers", "champion").version
    other = project.models.current("car_buyers", "logistic").version
    say(
        instance,
        ["car_buyers", "champion_model"],
        "its_bundle_loads_with_its_vocabulary",
        False,
        champion,
        None,
    )

    assert_refused(
        deliver(project, instance),
        "'car_buyers/champion_model:its_bundle_loads_with_its_vocabulary': 'failed'",
    )

    for version in (
        other if other != champion else project.models.current("car_buyers", "dnn").version,
        champion,
    ):
        project.models.promote("car_buyers", version, by_precision=[])
    assert deliver(project, instance).success


def test_segments_that_do_not_say_what_they_were_made_from_are_not_delivered(
    project: SmallProject, instance: dg.DagsterInstance
) -> None:
    pointer = project.data_dir / "lake/segments/partitions" / f"{SCORED_KEY}.json"
    pointer.write_text(json.dumps(json.loads(pointer.read_bytes()) | {"made_from": {}}))

    assert_refused(
        deliver(project, instance),
        "it is not recorded what segments car_buyers/2025-03-11 was made from",
        "found:    no version of app_events, daily_fields, feature_tokens, predictions of the day",
    )


# --- one segment ------------------------------------------------------------------------------------


def segment_lost(frame: DataFrame) -> DataFrame:
    return frame.where("segment != 'best_30'")


class LakeOfASegmentOfAll(Lake):
    """Every scored device is in one segment: an advertiser would pay for all."""

    def write(self, frame: DataFrame, table: str, **how: Any) -> dict[str, Partition]:
        if table == "segments":
            scored = self.read(frame.sparkSession, "predictions", how["keys"])
            everyone = scored.withColumn("segment", F.lit("best_30")).select(*frame.columns)
            frame = everyone.unionByName(segment_lost(frame))
        return super().write(frame, table, **how)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        (written("segments", "an empty segment", segment_lost).override, "scored devices is in it"),
        (lambda project: {"lake": LakeOfASegmentOfAll(root=project.lake.root)}, "scored devices are in it"),
    ],
    ids=["empty", "all devices"],
)
def test_a_segment_that_fails_publishes_nothing_and_the_others_go_out(
    project: SmallProject,
    instance: dg.DagsterInstance,
    override: Callable[[SmallProject], Mapping[str, Any]],
    reason: str,
) -> None:
    shutil.rmtree(project.data_dir / "deliveries")

    definitions = project.definitions(**override(project))
    result = materialize(definitions, instance, DELIVERED[1:], SCORED_DAY)

    assert result.success, failures(result)
    found = verdicts(result)
    assert found["car_buyers/segments:top_fifth_can_be_delivered"]
    assert not found["car_buyers/segments:best_30_can_be_delivered"]
    assert not found["car_buyers/deliveries:every_segment_is_delivered"]
    assert {path.split("/")[1] for path in deliveries_of(project)} == {"top_fifth"}
    evaluation = next(
        e for e in result.get_asset_check_evaluations() if e.check_name == "best_30_can_be_delivered"
    )
    assert reason in (evaluation.description or "")


def test_a_place_that_cannot_be_published_to_stops_no_other(
    project: SmallProject, instance: dg.DagsterInstance
) -> None:
    root = project.data_dir / "deliveries/car_buyers"
    shutil.rmtree(root)
    root.mkdir()
    (root / "top_fifth").write_text("in the way")

    result = deliver(project, instance)

    assert_refused(result, str(root / "top_fifth"))
    assert manifest_of(project, "best_30")["rows"] == 30


def test_a_precision_that_was_never_reached_withholds_its_segment_alone(
    project: SmallProject, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    audiences = shutil.copytree(project.audiences_dir, tmp_path / "audiences")
    file = audiences / "car_buyers.yaml"
    file.write_text(
        file.read_text().replace("segments:\n", "segments:\n  - {name: sure, min_precision: 0.999}\n")
    )
    shutil.rmtree(project.data_dir / "deliveries")
    asked = replace(project, audiences_dir=audiences)

    result = materialize(asked.definitions(), instance, DELIVERED[1:], SCORED_DAY)

    assert result.success, failures(result)
    assert {path.split("/")[1] for path in deliveries_of(project)} == {"top_fifth", "best_30"}
    [made] = result.asset_materializations_for_node("car_buyers__segments")
    assert made.metadata["withheld/sure"].value == (
        "no threshold for a precision of 0.999 was ever computed: run training_job"
    )


# --- no device at all -------------------------------------------------------------------------------


def test_a_day_that_nobody_can_be_scored_on_fails_for_that_and_not_for_parity(
    project: SmallProject, instance: dg.DagsterInstance
) -> None:
    nobody = spoiled(project, "feature_tokens", lambda frame: frame.limit(0))
    assert materialize(nobody, instance, ["feature_tokens"], SCORED_DAY).success

    result = materialize(project.definitions(), instance, MADE[:1], SCORED_DAY)

    failed = {name for name, passed in verdicts(result).items() if not passed}
    assert failed == {"car_buyers/predictions:there_is_a_device_to_score"}


# --- one audience -----------------------------------------------------------------------------------


def test_an_audience_whose_champion_cannot_score_stops_nobody_elses(
    project: SmallProject, instance: dg.DagsterInstance
) -> None:
    bundle = project.models.bundle(project.models.current("bike_buyers", "champion"))
    (bundle / "bundle.json").write_text((bundle / "bundle.json").read_text().replace("}", "} ", 1))
    both = ["bike_buyers/predictions", "bike_buyers/segments", *DELIVERED]

    result = materialize(project.definitions(), instance, both, SCORED_DAY)

    assert materialized(result) == set(DELIVERED)
    found = verdicts(result)
    assert (
        found["bike_buyers/predictions:champion_can_score"],
        found["car_buyers/predictions:champion_can_score"],
    ) == (
        False,
        True,
    )
    said = next(
        e
        for e in result.get_asset_check_evaluations()
        if e.check_name == "champion_can_score" and not e.passed
    )
    assert "was changed since it was recorded" in (said.description or "")


# --- a day without events ---------------------------------------------------------------------------


def test_a_day_without_events_is_delivered_only_where_the_audience_says_so(
    project: SmallProject, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    audiences = shutil.copytree(project.audiences_dir, tmp_path / "audiences")
    fields = audiences / "fields.yaml"
    silent = tmp_path / "events"
    for day in (FIRST_DAY + timedelta(days=ahead) for ahead in range((SCORED_DAY - FIRST_DAY).days + 2)):
        folder = f"day={day}"
        shutil.copytree(project.audiences_dir.parent / "events" / folder, silent / folder)
    for emptied in (DAY, NEXT_DAY):
        no_rows(silent / f"day={emptied}" / "part-0.parquet")
    fields.write_text(fields.read_text().replace(str(project.audiences_dir.parent / "events"), str(silent)))
    bound = replace(project, audiences_dir=audiences)
    before = deliveries_of(project)

    result = run_days(bound.definitions(), instance, "daily_job", SCORED_DAY, SCORED_DAY)

    assert_in = failures(result)
    assert f"nothing is delivered for {DAY}: no event of the day was accepted" in assert_in
    assert deliveries_of(project) == before

    car_buyers = audiences / "car_buyers.yaml"
    car_buyers.write_text(car_buyers.read_text() + "deliver_days_without_events: true\n")
    assert deliver(bound, instance).success
    assert deliveries_of(project) != before


def no_rows(file: Path) -> None:
    pq.write_table(pq.read_table(file).slice(0, 0), file)


# --- two runs at once -------------------------------------------------------------------------------


class LakeOfTwoRuns(Lake):
    """Another run publishes half of the rows of a partition, right after this run has looked at it."""

    table: str

    def snapshot(self, table: str, keys: Any) -> Snapshot:
        seen = super().snapshot(table, keys)
        if table == self.table:
            for partition in seen.partitions:
                publish_half(Lake(root=self.root), table, partition)
        return seen


def publish_half(lake: Lake, table: str, partition: Partition) -> None:
    spark = SparkSession.getActiveSession()
    assert spark is not None
    rows = lake.read(spark, table, [partition.key])
    by = ["audience", "day"] if "audience" in rows.columns else ["day"]
    lake.write(
        rows.where(F.pmod(F.xxhash64("device_id"), F.lit(2)) == 0),
        table,
        by=by,
        keys=[partition.key],
        sort=["device_id"],
        properties=partition.properties,
        made_from=lambda _: partition.made_from,
    )


@pytest.mark.parametrize(
    ("asset", "made", "read"),
    [
        ("daily_fields", "daily_fields", "app_events"),
        ("feature_tokens", "feature_tokens", "daily_fields"),
        ("car_buyers/predictions", "predictions", "feature_tokens"),
        ("car_buyers/segments", "segments", "predictions"),
        ("car_buyers/training_set", "training_set", "feature_tokens"),
        ("car_buyers/training_set", "training_set", "app_events"),
    ],
)
def test_a_run_goes_by_the_versions_that_it_looked_at_first(
    project: SmallProject, instance: dg.DagsterInstance, chain: Chain, asset: str, made: str, read: str
) -> None:
    table = project.data_dir / "lake" / read / "partitions"
    before = {file: file.read_bytes() for file in table.rglob("*.json")}
    lake = LakeOfTwoRuns(root=project.lake.root, table=read)

    day = None if made == "training_set" else SCORED_DAY
    result = materialize(project.definitions(lake=lake), instance, [asset], day)

    assert result.success, failures(result)  # its checks, too, are about what it looked at
    key = {"training_set": "car_buyers", "segments": SCORED_KEY, "predictions": SCORED_KEY}.get(made, DAY)
    partition, was = project.lake.partition(made, key), chain.project.lake.partition(made, key)
    overtaken = [file for file, content in before.items() if file.read_bytes() != content]
    old = {
        f"{read}/{file.relative_to(table).with_suffix('')}": json.loads(before[file])["version"]
        for file in overtaken
    }
    assert old
    assert {path: partition.made_from[path] for path in old} == old
    assert partition.rows == was.rows  # and not half of them


def test_a_delivery_holds_the_segments_that_it_asked_about(
    project: SmallProject, instance: dg.DagsterInstance
) -> None:
    shutil.rmtree(project.data_dir / "deliveries")
    asked = project.lake.partition("segments", SCORED_KEY).version
    lake = LakeOfTwoRuns(root=project.lake.root, table="segments")

    result = materialize(project.definitions(lake=lake), instance, ["car_buyers/deliveries"], SCORED_DAY)

    assert result.success, failures(result)
    assert project.lake.partition("segments", SCORED_KEY).version != asked
    manifest = manifest_of(project, "best_30")
    assert (manifest["segments_version"], manifest["rows"]) == (asked, 30)
