"""Scoring on Spark: equal to scoring in process, whatever the partitions, for every audience in one pass."""

from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyspark.sql import DataFrame, SparkSession

from assets.predictions import score_figures
from pipelines.steps.errors import BundleError, DataError
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.models.bundle import NO_MEMBERS, TORCH_WEIGHTS, BundleRef, bundle_version, write_bundle
from pipelines.steps.models.bundle_loader import load_bundle
from pipelines.steps.models.calibration import Calibration
from pipelines.steps.models.dnn_model import AudienceNet
from pipelines.steps.scoring.parity import MAX_PARITY_DIFFERENCE, compare_with_local, sample_scored
from pipelines.steps.scoring.predictions import SCORED, score_devices, score_files, worker_threads
from resources.lake import Lake
from tests.conftest import Frame
from tests.test_row_groups import alter_last_byte

DAY = date(2025, 3, 10)
APPS = tuple(f"app-{number}" for number in range(20))
VOCABULARY = Vocabulary((FieldVocabulary("model", 1, ("pixel", "nokia")), FieldVocabulary("apps", 4, APPS)))
SMALLER = Vocabulary((FieldVocabulary("apps", 2, APPS[:3]),))
TOKENS = "device_id string, day date, model array<string>, apps array<string>"
DEVICES = 60


class Network:
    """An untrained network: what its weights are does not matter here, that they are kept does."""

    engine = "torch"
    weights_file = TORCH_WEIGHTS
    members = NO_MEMBERS

    def __init__(self, vocabulary: Vocabulary, seed: int) -> None:
        torch.manual_seed(seed)
        parameters = {"embedding_dim": 4, "hidden": [8]}
        network = AudienceNet(
            list(vocabulary.sizes.values()), embedding_dim=4, hidden=[8], embedding_init_std=1.0
        )
        self.architecture: dict[str, object] = {"name": "audience_net", **parameters}
        self._state = network.state_dict()

    def weights(self) -> bytes:
        import safetensors.torch

        return safetensors.torch.save(self._state)


def bundle(directory: Path, vocabulary: Vocabulary, seed: int) -> Path:
    model = Network(vocabulary, seed)
    write_bundle(directory, model, vocabulary, training_days=["2025-01-31"], code_version="test", metrics={})
    return directory


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two audiences that share a vocabulary, and one with its own."""
    root = tmp_path_factory.mktemp("bundles")
    return {
        "buyers": bundle(root / "buyers", VOCABULARY, seed=1),
        "readers": bundle(root / "readers", VOCABULARY, seed=2),
        "players": bundle(root / "players", SMALLER, seed=3),
    }


@pytest.fixture(scope="module")
def tokens(frame: Frame) -> DataFrame:
    """Devices with none to many tokens, some of them unknown."""
    rows = [
        (
            f"device-{number:02}",
            DAY,
            [["pixel"], ["nokia"], ["unheard-of"], []][number % 4],
            [f"app-{(number * 7 + place) % 25}" for place in range(number % 6)],
        )
        for number in range(DEVICES)
    ]
    return frame(TOKENS, rows)


@pytest.fixture(scope="module")
def scored(tokens: DataFrame, bundles: Mapping[str, Path]) -> list[dict[str, object]]:
    return rows_of(score_devices(tokens, bundles))


def rows_of(predictions: DataFrame) -> list[dict[str, object]]:
    return list(predictions.orderBy("audience", "device_id").toArrow().to_pylist())


def test_every_device_is_scored_once_for_every_audience(
    scored: list[dict[str, object]], bundles: Mapping[str, Path]
) -> None:
    expected = [(audience, f"device-{n:02}", DAY) for audience in sorted(bundles) for n in range(DEVICES)]
    assert [(row["audience"], row["device_id"], row["day"]) for row in scored] == expected


def test_spark_gives_what_the_bundle_gives_in_process(
    scored: list[dict[str, object]], tokens: DataFrame, bundles: Mapping[str, Path]
) -> None:
    local_tokens = tokens.orderBy("device_id").toArrow()
    for audience, directory in bundles.items():
        scorer = load_bundle(directory)
        local = scorer.score(scorer.vocabulary.encode(local_tokens))
        assert len(set(local.tolist())) > 5  # else equality would say little
        assert [row["probability"] for row in scored if row["audience"] == audience] == local.tolist()


@pytest.mark.parametrize("partitions", [1, 7])
def test_probabilities_do_not_depend_on_partitions(
    scored: list[dict[str, object]], tokens: DataFrame, bundles: Mapping[str, Path], partitions: int
) -> None:
    assert rows_of(score_devices(tokens.repartition(partitions), bundles)) == scored


def test_an_audience_alone_is_scored_as_among_others(
    scored: list[dict[str, object]], tokens: DataFrame, bundles: Mapping[str, Path]
) -> None:
    alone = rows_of(score_devices(tokens, {"readers": bundles["readers"]}))
    assert alone == [row for row in scored if row["audience"] == "readers"]


def test_predictions_have_these_columns(tokens: DataFrame, bundles: Mapping[str, Path]) -> None:
    assert score_devices(tokens, bundles).schema.simpleString() == (
        "struct<audience:string,device_id:string,day:date,probability:float>"
    )


def test_a_day_without_devices_has_no_predictions(tokens: DataFrame, bundles: Mapping[str, Path]) -> None:
    assert rows_of(score_devices(tokens.where("false"), bundles)) == []


def test_nothing_is_shuffled(tokens: DataFrame, bundles: Mapping[str, Path]) -> None:
    plan = score_devices(tokens, bundles)._jdf.queryExecution().executedPlan().toString()
    assert "MapInArrow" in plan
    assert "Exchange" not in plan


# --- parity ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample(tokens: DataFrame, bundles: Mapping[str, Path]) -> pa.Table:
    """All devices, with probabilities as they are stored."""
    predictions = score_devices(tokens, {"buyers": bundles["buyers"]})
    return sample_scored(predictions, tokens, devices={str(DAY): DEVICES}, wanted=DEVICES)


def test_a_faithful_sample_passes_and_is_described(sample: pa.Table, bundles: Mapping[str, Path]) -> None:
    parity = compare_with_local(sample, load_bundle(bundles["buyers"]))
    assert parity.passed
    assert parity.as_metadata() == {
        "count": DEVICES, "mean": 0.0, "std": 0.0, "p25": 0.0, "p50": 0.0, "p75": 0.0, "p99": 0.0, "max": 0.0,
    }  # fmt: skip


def with_first_probability(sample: pa.Table, probability: float) -> pa.Table:
    changed = sample.column("probability").to_numpy().copy()
    changed[0] = probability
    place = sample.schema.get_field_index("probability")
    return sample.set_column(place, "probability", pa.array(changed, pa.float32()))


def test_one_device_that_differs_does_not_pass(sample: pa.Table, bundles: Mapping[str, Path]) -> None:
    stored = sample.column("probability")[0].as_py()
    changed = with_first_probability(sample, stored + 10 * MAX_PARITY_DIFFERENCE)
    parity = compare_with_local(changed, load_bundle(bundles["buyers"]))
    assert not parity.passed
    assert parity.max == pytest.approx(10 * MAX_PARITY_DIFFERENCE, rel=0.1)
    assert parity.p50 == 0


@pytest.mark.parametrize("probability", [float("nan"), float("inf")])
def test_a_probability_that_is_no_number_does_not_pass(
    sample: pa.Table, bundles: Mapping[str, Path], probability: float
) -> None:
    parity = compare_with_local(with_first_probability(sample, probability), load_bundle(bundles["buyers"]))
    assert not parity.passed
    assert parity.max == np.inf


def test_no_number_at_all_does_not_pass(sample: pa.Table, bundles: Mapping[str, Path]) -> None:
    place = sample.schema.get_field_index("probability")
    nothing = sample.set_column(place, "probability", pa.array([float("nan")] * DEVICES, pa.float32()))
    parity = compare_with_local(nothing, load_bundle(bundles["buyers"]))
    assert (parity.passed, parity.max) == (False, np.inf)


def test_an_empty_sample_does_not_pass(sample: pa.Table, bundles: Mapping[str, Path]) -> None:
    parity = compare_with_local(sample.slice(0, 0), load_bundle(bundles["buyers"]))
    assert (parity.count, parity.passed) == (0, False)


def test_another_models_probabilities_do_not_pass(sample: pa.Table, bundles: Mapping[str, Path]) -> None:
    assert not compare_with_local(sample, load_bundle(bundles["readers"])).passed


def test_a_sample_is_about_as_large_as_wanted_and_always_the_same(frame: Frame) -> None:
    devices = 400
    tokens = frame("device_id string, day date", [(f"device-{number}", DAY) for number in range(devices)])
    predictions = tokens.selectExpr(
        "'buyers' AS audience", "device_id", "day", "CAST(0.5 AS float) AS probability"
    )
    first = sample_scored(predictions, tokens, {str(DAY): devices}, wanted=40)
    again = sample_scored(predictions.repartition(3), tokens, {str(DAY): devices}, wanted=40)
    assert 20 <= first.num_rows <= 60
    assert set(first.column("device_id").to_pylist()) == set(again.column("device_id").to_pylist())


# --- read by the workers --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tokens: DataFrame, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same devices as Parquet: a file of several row groups, one of a single one, one without rows."""
    root = tmp_path_factory.mktemp("tokens")
    table = tokens.orderBy("device_id").toArrow()
    pq.write_table(table.slice(0, 45), root / "a.parquet", row_group_size=10)
    pq.write_table(table.slice(45, 0), root / "b.parquet")
    pq.write_table(table.slice(45), root / "c.parquet", use_dictionary=False)
    return sorted(root.iterdir())


@pytest.mark.parametrize(("rows_per_task", "tasks"), [(1, 6), (20, 3), (1_000, 1)])
def test_files_score_as_frames_do(
    spark: SparkSession,
    scored: list[dict[str, object]],
    files: list[Path],
    bundles: Mapping[str, Path],
    rows_per_task: int,
    tasks: int,
) -> None:
    predictions = score_files(spark, files, bundles, rows_per_task=rows_per_task)
    assert predictions.rdd.getNumPartitions() == tasks
    assert rows_of(predictions) == scored


def test_files_without_rows_have_no_predictions(
    spark: SparkSession, files: list[Path], bundles: Mapping[str, Path]
) -> None:
    assert rows_of(score_files(spark, [files[1]], bundles)) == []
    assert rows_of(score_files(spark, [], bundles)) == []


def test_no_token_passes_through_the_jvm(
    spark: SparkSession, files: list[Path], bundles: Mapping[str, Path]
) -> None:
    plan = score_files(spark, files, bundles)._jdf.queryExecution().executedPlan().toString()
    assert "MapInArrow" in plan
    assert "Range" in plan
    assert "Scan" not in plan
    assert "Exchange" not in plan


def test_a_device_with_a_million_tokens_is_scored(
    spark: SparkSession, bundles: Mapping[str, Path], tmp_path: Path
) -> None:
    apps = [["app-1", "app-2"], ["app-1", "app-2", "app-1", "app-1"] + ["app-7"] * 1_000_000, []]
    columns = [["a", "b", "c"], [DAY] * 3, pa.array([["pixel"]] * 3), pa.array(apps)]
    pq.write_table(pa.table(columns, names=["device_id", "day", "model", "apps"]), tmp_path / "t.parquet")
    scorer = load_bundle(bundles["buyers"])
    kept = pa.table({"model": pa.array([["pixel"]] * 3), "apps": pa.array([row[:4] for row in apps])})
    expected = scorer.score(scorer.vocabulary.encode(kept)).tolist()
    found = rows_of(score_files(spark, [tmp_path / "t.parquet"], {"buyers": bundles["buyers"]}))
    assert [row["probability"] for row in found] == expected


@pytest.mark.parametrize("threads", [None, 2])
def test_a_worker_tells_its_threads(
    spark: SparkSession, bundles: Mapping[str, Path], threads: int | None
) -> None:
    counts = worker_threads(spark, bundles, threads=threads)
    assert counts.pop("torch_interop") == 1
    assert {"arrow", "torch"} <= set(counts)
    assert set(counts.values()) == {threads or 1}


# --- failures --------------------------------------------------------------------------------------


def test_a_bundle_that_is_missing_is_refused_before_any_row_is_read(
    spark: SparkSession, tokens: DataFrame, tmp_path: Path
) -> None:
    unreadable = tmp_path / "tokens.parquet"
    unreadable.write_bytes(b"no Parquet")
    with pytest.raises(BundleError, match="there is no bundle at"):
        score_devices(tokens, {"buyers": tmp_path / "nowhere"})
    with pytest.raises(BundleError, match="there is no bundle at"):
        score_files(spark, [unreadable], {"buyers": tmp_path / "nowhere"})


def replace_in(file: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    def alter(directory: Path) -> None:
        path = directory / file
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new, 1))

    return alter


def alter_weights(directory: Path) -> None:
    path = directory / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


TAMPERED: Mapping[str, Callable[[Path], object]] = {
    "a metric": replace_in("bundle.json", b"0.7", b"0.8"),
    "a calibration": replace_in("bundle.json", b"-2.5", b"22.5"),
    "half a manifest": lambda directory: (directory / "bundle.json").write_text("{"),
    "no manifest": lambda directory: (directory / "bundle.json").unlink(),
    "the vocabulary": replace_in("vocabulary.json", b"pixel", b"pixie"),
    "the weights": alter_weights,
    "no weights": lambda directory: (directory / "weights.safetensors").unlink(),
    "a file more": lambda directory: (directory / "weights.new").write_text(""),
}


@pytest.fixture
def champion(tmp_path: Path) -> BundleRef:
    """A calibrated bundle, as it was recorded."""
    directory = tmp_path / "champion"
    calibration = Calibration("platt", (-1.0, 1.0), (-2.5, 3.0))
    write_bundle(
        directory,
        Network(VOCABULARY, seed=1),
        VOCABULARY,
        training_days=["2025-01-31"],
        code_version="test",
        metrics={"test": {"auc": 0.7}},
        calibration=calibration,
    )
    return BundleRef(directory, bundle_version(directory))


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED)
def test_a_bundle_that_was_changed_is_refused_before_any_row_is_read(
    spark: SparkSession,
    tokens: DataFrame,
    champion: BundleRef,
    tmp_path: Path,
    tamper: Callable[[Path], None],
) -> None:
    unreadable = tmp_path / "tokens.parquet"
    unreadable.write_bytes(b"no Parquet")
    score_devices(tokens, {"buyers": champion})  # so that it is loaded already, and right
    tamper(champion.path)
    with pytest.raises(BundleError) as raised:
        score_files(spark, [unreadable], {"buyers": champion})
    assert str(champion.path) in str(raised.value)
    with pytest.raises(BundleError):
        score_devices(tokens, {"buyers": champion})
    with pytest.raises(BundleError):
        worker_threads(spark, {"buyers": champion})


def test_a_bundle_changed_where_a_worker_reads_it_fails_the_job_and_the_former_predictions_stay(
    spark: SparkSession, tokens: DataFrame, champion: BundleRef, tmp_path: Path
) -> None:
    """The driver finds it right; the worker, which may see another copy of the directory, does not."""
    lake = Lake(root=str(tmp_path / "lake"))
    pq.write_table(tokens.toArrow(), tmp_path / "tokens.parquet")
    former = pa.table({"audience": ["buyers"], "device_id": ["a"], "day": [DAY], "probability": [0.5]})
    key, by = f"buyers/{DAY}", ["audience", "day"]
    rows: Any = former  # Spark's types do not know that it takes one
    written = lake.write(spark.createDataFrame(rows), "predictions", by=by, keys=[key])
    predictions = score_files(spark, [tmp_path / "tokens.parquet"], {"buyers": champion})
    TAMPERED["a calibration"](champion.path)
    found = bundle_version(champion.path)
    with pytest.raises(Exception, match=f"(?s)bundle {champion.path} .*{found}.*{champion.version}"):
        lake.write(predictions, "predictions", by=by, keys=[key])
    assert lake.partition("predictions", key) == written[key]
    assert lake.read(spark, "predictions", [key]).toArrow().to_pylist() == former.to_pylist()


def test_a_bundle_given_by_its_directory_alone_is_pinned_as_the_driver_finds_it(
    spark: SparkSession, tokens: DataFrame, champion: BundleRef, tmp_path: Path
) -> None:
    pq.write_table(tokens.toArrow(), tmp_path / "tokens.parquet")
    predictions = score_files(spark, [tmp_path / "tokens.parquet"], {"buyers": champion.path})
    alter_weights(champion.path)
    with pytest.raises(Exception, match=f"expected: version {champion.version}"):
        predictions.toArrow()


def test_a_field_that_is_missing_is_refused_before_any_row_is_read(
    spark: SparkSession, tokens: DataFrame, files: list[Path], bundles: Mapping[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="the rows to score: there is no column apps"):
        score_devices(tokens.drop("apps"), bundles)
    pq.write_table(pq.read_table(files[0]).drop(["apps"]), tmp_path / "less.parquet")
    with pytest.raises(DataError, match=r"less.parquet: there is no column apps"):
        score_files(spark, [files[0], tmp_path / "less.parquet"], bundles)


def test_a_damaged_row_group_fails_the_job_by_its_name(
    spark: SparkSession, tokens: DataFrame, bundles: Mapping[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "tokens.parquet"
    pq.write_table(tokens.toArrow(), file, row_group_size=20, write_page_checksum=True)
    predictions = score_files(spark, [file], bundles)
    alter_last_byte(file, row_group=2, column=3)
    with pytest.raises(Exception, match=r"row group 2 of .*tokens.parquet cannot be read"):
        predictions.toArrow()


# --- how scores moved -----------------------------------------------------------------------------


def test_a_damaged_day_before_leaves_the_day_without_a_drift_and_no_worse(
    frame: Frame, tmp_path: Path
) -> None:
    lake, days = Lake(root=str(tmp_path)), [date(2025, 3, 9), DAY]
    rows = [("a", f"{device}", day, device / 10) for device in range(10) for day in days]
    keys = [f"a/{day}" for day in days]
    lake.write(frame(SCORED, rows), "predictions", by=["audience", "day"], keys=keys)
    today = lake.partition("predictions", keys[1])
    figures = score_figures(dg.build_asset_context(), lake)(today)
    [file] = lake.files("predictions", keys[:1])
    file.write_bytes(b"no Parquet any more")

    damaged = score_figures(dg.build_asset_context(), lake)(today)

    assert figures["drift_psi"] == 0  # both days are alike
    assert damaged == {name: value for name, value in figures.items() if name != "drift_psi"}
    assert figures["mean_probability"] == pytest.approx(0.45)
