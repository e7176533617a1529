"""`python -m pipelines.models`: what an operator reads, changes and is refused."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from textwrap import dedent
from typing import Any

import dagster as dg
import pytest
import torch

from assets import segments
from assets.partitions import daily
from pipelines.models import main
from pipelines.steps.config.project import load_project
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.models.bundle import write_bundle
from pipelines.steps.models.logistic_model import LogisticConfig, TrainedLogistic
from resources.lake import Lake
from resources.model_log import ModelRecord
from resources.model_store import ModelStore
from resources.spark import Spark
from tests.conftest import Frame

REPOSITORY = Path(__file__).parent.parent
VOCABULARY = Vocabulary((FieldVocabulary("apps", 3, ("a", "b")),))
DAY = date(2025, 3, 11)
PREDICTIONS = "audience string, device_id string, day date, probability float"

FILES = {
    "fields.yaml": """
        events: {path: events, id_column: id, time_column: t, first_day: 2025-03-01, last_day: 2025-03-31}
        window_days: 3
        fields:
          apps: {column: app, kind: multi, normalizer: package}
        """,
    "buyers.yaml": """
        label: {event: {name: purchase}}
        horizon_days: 3
        as_of_days: [2025-03-05]
        segments:
          - {name: best, size: 1}
          - {name: precise, min_precision: 0.5}
        deliver_to:
          - {type: folder, path: deliveries}
        """,
}


@dataclass(frozen=True)
class Place:
    """A project's directories, and its store."""

    root: Path

    @property
    def store(self) -> ModelStore:
        return ModelStore(root=str(self.root / "data/models"))

    def candidate(
        self, model: str, bias: float, auc: float, precise: float | None = 0.5, test_auc: float | None = None
    ) -> ModelRecord:
        """Trains a model that gives every device the same probability."""
        state = {"weights": torch.zeros(VOCABULARY.sizes["apps"], 1), "bias": torch.tensor([bias])}
        trained = TrainedLogistic(state, LogisticConfig(), 1.0, 1.0, validation_metric={(1.0, 1.0): auc})
        metrics = {"validation": {"auc": auc}} | ({"test": {"auc": test_auc}} if test_auc else {})

        def write(directory: Path) -> Mapping[str, Any]:
            write_bundle(
                directory, trained, VOCABULARY, training_days=[str(DAY)], code_version="1", metrics=metrics
            )
            return {
                "training_set": "set-1",
                "vocabulary_hash": VOCABULARY.hash,
                "metrics": metrics,
                "thresholds": {"precise": precise},
            }

        return self.store.add("buyers", model, write)

    def champion(self, bias: float, auc: float, precise: float | None = 0.5) -> ModelRecord:
        record = self.candidate("dnn", bias, auc, precise)
        properties = {**record.properties, "model": "dnn"}
        return self.store.record(replace(record, model="champion", properties=properties))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    (tmp_path / "audiences").mkdir()
    for name, text in FILES.items():
        (tmp_path / "audiences" / name).write_text(dedent(text))
    monkeypatch.chdir(tmp_path)
    for variable in ("DATA_DIR", "AUDIENCES_DIR"):
        monkeypatch.delenv(variable, raising=False)
    return Place(tmp_path)


def said(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    """What the command prints, on standard error where it fails."""
    assert main(arguments) == status
    printed = capsys.readouterr()
    assert not (printed.out and printed.err)
    return printed.out + printed.err


# --- list -----------------------------------------------------------------------------------------


def test_what_serves_is_listed_first_and_then_the_newest(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    xgboost = place.candidate("xgboost", 2.0, auc=0.8, test_auc=0.75)
    first, second = place.champion(0.0, auc=0.7), place.champion(1.0, auc=0.85)
    main(["rollback", "buyers"])
    capsys.readouterr()
    lines = said(capsys, "list").splitlines()
    times = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
    assert all(times.search(line) for line in lines[1:])
    assert [re.sub(r"  +", " | ", times.sub("TIME", line)) for line in lines] == [
        "audience | model | version | since (UTC) | why | engine | validation AUC | test AUC",
        f"buyers | champion (dnn) | {first.version} | serves | TIME | rolled back | torch | 0.7000 | –",
        f"buyers | champion (dnn) | {second.version} | TIME | trained | torch | 0.8500 | –",
        f"buyers | dnn | {second.version} | newest | TIME | trained | torch | 0.8500 | –",
        f"buyers | dnn | {first.version} | TIME | trained | torch | 0.7000 | –",
        f"buyers | xgboost | {xgboost.version} | newest | TIME | trained | torch | 0.8000 | 0.7500",
    ]


def test_a_list_for_programs(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    record = place.champion(0.0, auc=0.7)
    listed = json.loads(said(capsys, "list", "buyers", "--json"))
    recorded_at = place.store.history("buyers")[0].recorded_at.isoformat(timespec="seconds")
    assert listed[0] == {
        "audience": "buyers",
        "model": "champion",
        "candidate": "dnn",
        "version": record.version,
        "current": True,
        "state": "serves",
        "recorded_at": recorded_at,
        "reason": "trained",
        "engine": "torch",
        "validation_auc": 0.7,
        "test_auc": None,
        "problem": None,
    }
    assert [line["model"] for line in listed] == ["champion", "dnn"]


def test_a_bundle_that_is_gone_does_not_hide_the_others(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    gone, kept = place.candidate("dnn", 0.0, auc=0.7), place.candidate("xgboost", 1.0, auc=0.8)
    place.store.bundle(gone).rename(place.root / "elsewhere")
    printed = said(capsys, "list")
    assert printed.endswith(f"! buyers dnn {gone.version}: bundle {gone.version} of buyers is missing\n")
    assert kept.version in printed


def test_an_empty_store_says_so(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "list") == (
        "no model in data/models: run the training job, or name another --data-dir\n"
    )
    assert said(capsys, "list", "--json") == "[]\n"
    assert not (place.root / "data").exists()


# --- describe -------------------------------------------------------------------------------------


def test_a_version_is_described_in_tables(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    record = place.candidate("dnn", 0.0, auc=0.7, test_auc=0.65)
    [entry] = place.store.versions_of("buyers", "dnn")
    path = place.store.bundle(record)
    weights = place.store.manifest(record).weights_sha256
    assert said(capsys, "describe", "buyers", "--model", "dnn") == dedent(f"""\
        buyers      dnn: dnn {record.version}
                    is the newest, trained
        since       {entry.recorded_at:%Y-%m-%d %H:%M:%S} UTC
        trained on  2025-03-11
        integrity   intact: weights, manifest and vocabulary have the hash that names the version

        metrics
               validation    test
          AUC      0.7000  0.6500

        thresholds
          precise  0.5

        fields
          apps  4 ids  3 a row at most

        architecture
          engine  torch
          name    logistic

        made from
          training set     set-1
          vocabulary hash  {VOCABULARY.hash}
          code version     1

        files
          bundle          {path}
          size            {sum(p.stat().st_size for p in path.iterdir()):,} bytes in 3 files
          weights sha256  {weights}
          card            –
        """)


def test_a_champion_that_a_newer_one_replaced_is_described_as_such(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    former, serving = place.champion(0.0, auc=0.7), place.champion(1.0, auc=0.8)
    state = r"^buyers +champion: dnn {}\n +{}, trained\n"
    assert re.match(
        state.format(former.version, "is not current"), said(capsys, "describe", "buyers", former.version)
    )
    assert re.match(state.format(serving.version, "serves"), said(capsys, "describe", "buyers"))


def test_what_the_store_knows_of_a_version_is_a_table_each(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    record = place.candidate("dnn", 0.0, auc=0.7)
    known = {"promotion": {"accepted": True, "auc_low": 0.61234, "former": None, "rows": 12345}}
    place.store.record(replace(record, model="champion", properties={**record.properties, **known}))
    assert ("\npromotion\n  accepted  yes\n  AUC low   0.6123\n  former    –\n  rows      12,345\n") in said(
        capsys, "describe", "buyers"
    )


def test_a_description_for_programs(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    record = place.candidate("xgboost", 0.0, auc=0.7)
    described = json.loads(said(capsys, "describe", "buyers", "--model", "xgboost", "--json"))
    assert described["properties"] == record.properties
    assert described["fields"] == [{"name": "apps", "vocabulary_size": 4, "max_length": 3, "weighted": False}]
    assert (described["version"], described["current"], described["intact"]) == (record.version, True, True)


def test_a_damaged_version_is_described_as_such_and_fails(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    record = place.champion(0.0, auc=0.7)
    weights = place.store.bundle(record) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    assert "integrity   DAMAGED: the content has hash " in said(capsys, "describe", "buyers", status=1)
    assert json.loads(said(capsys, "describe", "buyers", "--json", status=1))["intact"] is False


# --- promote and rollback -------------------------------------------------------------------------


def test_a_candidate_is_promoted_once(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    former = place.champion(0.0, auc=0.7)
    better = place.candidate("xgboost", 1.0, auc=0.8)
    promoted = f"champion of buyers: {better.version} (xgboost) is current"
    assert said(capsys, "promote", "buyers", better.version) == f"{promoted} now; before: {former.version}\n"
    assert place.store.current("buyers", "champion").version == better.version
    assert said(capsys, "promote", "buyers", better.version) == f"{promoted} already; nothing changed\n"
    assert len(place.store.history("buyers")) == 2


def test_a_former_version_of_a_candidate_is_promoted(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the champion's segments need does not bind a candidate."""
    former = place.candidate("dnn", 0.0, auc=0.7, precise=None)
    place.candidate("dnn", 1.0, auc=0.8)
    assert said(capsys, "promote", "buyers", former.version, "--model", "dnn").startswith("dnn of buyers: ")
    assert place.store.current("buyers", "dnn") == former


def test_a_version_that_the_segments_cannot_be_cut_with_is_refused(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    serving = place.champion(0.0, auc=0.7)
    unfit = place.candidate("xgboost", 1.0, auc=0.8, precise=None)
    assert said(capsys, "promote", "buyers", unfit.version, status=1) == (
        f"error: version {unfit.version} of buyers has no threshold for segment precise\n"
        "  found:    precise: its precision was not reached\n"
        "  expected: a threshold for each of precise\n"
        "  remedy:   promote a version that has them; or run the training job, which finds them for the "
        "segments asked for now; or ask for these by top_fraction or size\n"
    )
    assert place.store.current("buyers", "champion") == serving


def test_rollbacks_go_back_until_none_is_left(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = place.champion(0.0, auc=0.7), place.champion(1.0, auc=0.8)
    assert said(capsys, "rollback", "buyers") == (
        f"champion of buyers: {first.version} (dnn) is current again; before: {second.version}\n"
    )
    assert said(capsys, "rollback", "buyers", status=1).startswith(
        f"error: audience buyers had no champion before {first.version}\n"
    )


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["list", "sellers"], "there is no audience sellers in data/models\n  found:    buyers"),
        (["describe", "sellers"], "audience sellers has no champion model"),
        (["describe", "../.."], "audience ../.. has no champion model"),
        (["describe", "buyers", "--model", "forest"], "audience buyers has no forest model"),
        (["describe", "buyers", "0123"], "nothing is recorded of champion 0123 of buyers"),
        (["promote", "sellers", "0123"], "there is no audience sellers in data/models"),
        (["promote", "buyers", "0123"], "audience buyers never had a version 0123"),
        (["rollback", "sellers"], "there is no audience sellers in data/models"),
        (["rollback", "buyers", "--model", "forest"], "audience buyers has no forest model"),
        (["rollback", "buyers", "--data-dir", "nowhere"], "there is no audience buyers in nowhere/models"),
        (["rollback", "buyers", "--audiences-dir", "nowhere"], "there is no directory nowhere"),
    ],
)
def test_a_wrong_name_is_an_error_that_says_so(
    place: Place, capsys: pytest.CaptureFixture[str], arguments: list[str], what: str
) -> None:
    place.champion(0.0, auc=0.7)
    assert said(capsys, *arguments, status=1).startswith(f"error: {what}")


def test_an_audience_without_a_file_takes_no_champion(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.champion(0.0, auc=0.7)
    (place.root / "audiences/buyers.yaml").rename(place.root / "audiences/readers.yaml")
    assert said(capsys, "rollback", "buyers", status=1) == (
        "error: audiences has no audience buyers, whose segments a champion must fit\n"
        "  found:    readers\n"
        "  expected: buyers\n"
        "  remedy:   name the directory of its file with --audiences-dir\n"
    )


@pytest.mark.parametrize("arguments", [[], ["list"], ["describe"], ["promote"], ["rollback"]])
def test_help_is_there(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert ended.value.code == 0
    assert "usage: python -m pipelines.models" in capsys.readouterr().out


# --- as a process ---------------------------------------------------------------------------------


def test_the_command_loads_no_spark_no_pipeline_and_no_engine(place: Place) -> None:
    place.champion(0.0, auc=0.7)
    code = """
        import sys, pipelines.models
        assert pipelines.models.main(["list"]) == pipelines.models.main(["describe", "buyers"]) == 0
        heavy = {"assets", "pipelines.definitions", "pyspark", "great_expectations", "sklearn", "torch"}
        assert heavy.isdisjoint(sys.modules), heavy & set(sys.modules)
        """
    finished = subprocess.run(
        [sys.executable, "-c", dedent(code)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")


def test_an_error_ends_the_process_with_1_and_no_traceback(place: Place) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "pipelines.models", "rollback", "buyers", "--data-dir", str(place.root)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith(f"error: there is no audience buyers in {place.root}/models\n")
    assert "Traceback" not in finished.stderr


# --- lineage --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_after_a_rollback_a_day_keeps_the_threshold_of_the_model_that_scored_it(
    place: Place, frame: Frame
) -> None:
    lenient, strict = place.champion(0.0, auc=0.7, precise=0.3), place.champion(1.0, auc=0.8, precise=0.8)
    lake = Lake(root=str(place.root / "data/lake"))
    project = load_project(place.root / "audiences")

    def members(scored_by: ModelRecord) -> tuple[list[str], Mapping[str, Any]]:
        """The precise segment of a day with these scores, made by the asset; and the asset's metadata."""
        rows = [("buyers", "low", DAY, 0.2), ("buyers", "middle", DAY, 0.5), ("buyers", "high", DAY, 0.9)]
        key = f"buyers/{DAY}"
        lake.write(
            frame(PREDICTIONS, rows),
            "predictions",
            by=["audience", "day"],
            keys=[key],
            properties={"bundle": scored_by.version},
        )
        spark = Spark(master="local[2]", shuffle_partitions=2)
        asset = segments.build(project.audiences[0], daily(project.fields.events))[0]
        resources = {"spark": spark, "lake": lake, "models": place.store}
        result = dg.materialize([asset], partition_key=str(DAY), resources=resources)
        [made] = result.asset_materializations_for_node(asset.node_def.name)
        table = lake.read(spark.session, "segments", [key]).where("segment = 'precise'").toArrow()
        return sorted(table.column("device_id").to_pylist()), {n: v.value for n, v in made.metadata.items()}

    assert members(scored_by=strict)[0] == ["high"]
    assert main(["rollback", "buyers"]) == 0
    assert place.store.current("buyers", "champion") == lenient

    found, metadata = members(scored_by=strict)
    assert (found, metadata["model_version"]) == (["high"], strict.version)
    found, metadata = members(scored_by=lenient)
    assert (found, metadata["model_version"]) == (["high", "middle"], lenient.version)
