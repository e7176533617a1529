"""Scoring on Spark: equal to scoring in process, whatever the partitions, for every audience in one pass."""

from collections.abc import Mapping
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyspark.sql import DataFrame

from pipelines.steps.dnn_model import AudienceNet
from pipelines.steps.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.model_bundle import load_bundle, write_bundle
from pipelines.steps.predictions import (
    MAX_PARITY_DIFFERENCE,
    compare_with_local,
    sample_scored,
    score_devices,
)
from tests.conftest import Frame

DAY = date(2025, 3, 10)
APPS = tuple(f"app-{number}" for number in range(20))
VOCABULARY = Vocabulary((FieldVocabulary("model", 1, ("pixel", "nokia")), FieldVocabulary("apps", 4, APPS)))
SMALLER = Vocabulary((FieldVocabulary("apps", 2, APPS[:3]),))
TOKENS = "device_id string, day date, model array<string>, apps array<string>"
DEVICES = 60


class Network:
    """An untrained network: what its weights are does not matter here, that they are kept does."""

    engine = "torch"

    def __init__(self, vocabulary: Vocabulary, seed: int) -> None:
        torch.manual_seed(seed)
        parameters = {"embedding_dim": 4, "hidden": [8]}
        network = AudienceNet(
            list(vocabulary.sizes.values()), embedding_dim=4, hidden=[8], embedding_init_sd=1.0
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
    return sample_scored(predictions, tokens, devices=DEVICES, wanted=DEVICES)


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
    first = sample_scored(predictions, tokens, devices, wanted=40)
    again = sample_scored(predictions.repartition(3), tokens, devices, wanted=40)
    assert 20 <= first.num_rows <= 60
    assert set(first.column("device_id").to_pylist()) == set(again.column("device_id").to_pylist())


# --- failures --------------------------------------------------------------------------------------


def test_a_failure_in_a_worker_fails_the_job_and_says_why(
    tokens: DataFrame, bundles: Mapping[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(Exception, match="there is no bundle at"):
        score_devices(tokens.coalesce(1), {"buyers": tmp_path / "nowhere"}).count()
    with pytest.raises(Exception, match="feature tokens lack fields that the vocabulary has"):
        score_devices(tokens.coalesce(1).drop("apps"), bundles).count()
