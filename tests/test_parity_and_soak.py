"""The benchmarks that compare scores with plain PyTorch's, and that watch the workers' memory."""

import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from benchmarks import eager_model, parity, parity_rows, scoring_world, soak
from pipelines.steps.errors import DataError
from pipelines.steps.models.bundle import write_bundle
from pipelines.steps.models.bundle_loader import load_bundle
from pipelines.steps.models.dnn_config import DnnConfig, Pooling
from pipelines.steps.models.dnn_model import AudienceNet, TrainedDnn

ROWS = 1_500
IDS = pa.table({"device_id": ["a", "b"], "day": pa.array([date(2025, 3, 10)] * 2)})


@pytest.fixture(scope="module")
def odd_rows() -> pa.Table:
    return pa.concat_tables(parity_rows.odd_rows(ROWS, seed=7))


def test_rows_hold_bags_that_are_odd_in_every_way(odd_rows: pa.Table) -> None:
    shares = parity_rows.odd_shares(odd_rows)
    assert list(shares) == [field.name for field in scoring_world.FIELDS]
    for found in shares.values():
        assert set(found) == {"empty", "null", "null_tokens", "unknown", "repeated", "truncated"}
        assert all(share > parity_rows.ODD_SHARE / 2 for share in found.values())


@pytest.mark.parametrize("narrow", [False, True])
def test_a_dict_and_the_vocabulary_give_the_same_ids(odd_rows: pa.Table, narrow: bool) -> None:
    vocabulary = parity_rows.vocabulary_of(parity_rows.Net(4, (), "mean", narrow=narrow, weighted=True))
    described = json.loads(vocabulary.to_json())
    by_dict = eager_model.encode_by_dict(odd_rows, described)
    for name, bag in vocabulary.encode(odd_rows).items():
        ids, offsets, codes = by_dict[name]
        assert codes is not None
        assert codes.tolist() == bag.each_code().tolist()
        assert ids.tolist() == bag.values.tolist()
        assert offsets.tolist() == bag.offsets.tolist()


@pytest.mark.parametrize(("weighted", "multi_hot"), [(False, 0), (True, 0), (True, 1)])
@pytest.mark.parametrize("pooling", ["mean", "sqrt_n"])
def test_eager_pytorch_gives_the_bits_of_the_bundle(
    odd_rows: pa.Table, tmp_path: Path, pooling: Pooling, weighted: bool, multi_hot: int
) -> None:
    net = parity_rows.Net(4, (8,), pooling, narrow=True, weighted=weighted)
    vocabulary = parity_rows.vocabulary_of(net)
    torch.manual_seed(0)
    network = AudienceNet(
        list(vocabulary.sizes.values()),
        embedding_dim=4,
        hidden=(8,),
        pooling=pooling,
        embedding_init_std=1.0,
        token_weights=weighted,
        multi_hot_fields=multi_hot,
    )
    if network.multi_hot is not None:
        for columns in network.multi_hot.parameters():
            torch.nn.init.normal_(columns)
    if network.token_weights is not None:
        for part in network.token_weights.parameters():
            torch.nn.init.normal_(part, std=0.3)
    config = DnnConfig.published(embedding_dim=4, hidden=(8,), pooling=pooling, token_weights=weighted)
    model = TrainedDnn(network.state_dict(), config, (), (), multi_hot)
    write_bundle(tmp_path / "net", model, vocabulary, training_days=[], code_version="test", metrics={})

    scores = eager_model.eager_scores(odd_rows, {"net": tmp_path / "net"})
    ours = load_bundle(tmp_path / "net").score(vocabulary.encode(odd_rows))
    assert len(set(ours.tolist())) > ROWS / 2  # else equality would say little
    assert scores["equal_batch"]["net"].tolist() == ours.tolist()
    np.testing.assert_allclose(scores["float64"]["net"], ours, atol=1e-6)


def test_the_content_hash_tells_one_bit() -> None:
    scores = {"x": np.array([0.25, 0.5], dtype=np.float32)}
    altered = {"x": np.array([0.25, np.nextafter(np.float32(0.5), np.float32(1))], np.float32)}
    assert parity.content_hash(IDS, scores) == parity.content_hash(IDS, {"x": scores["x"].copy()})
    assert parity.content_hash(IDS, scores) != parity.content_hash(IDS, altered)
    assert parity.content_hash(IDS, scores) != parity.content_hash(IDS, {"y": scores["x"]})


def test_differences_are_described_over_all_audiences() -> None:
    found = parity.differences(
        {"x": np.array([0.25, 0.5]), "y": np.array([1.0])},
        {"x": np.array([0.25, 0.25]), "y": np.array([0.5])},
    )
    assert (found.count, found.mean, found.p50, found.max) == (3, 0.25, 0.25, 0.5)
    assert not found.within_target


def test_a_score_that_is_not_a_number_is_no_small_difference() -> None:
    with pytest.raises(DataError, match="not numbers"):
        parity.differences({"x": np.array([np.nan])}, {"x": np.array([0.5])})


def grown(job: str, mib: float, mib_per_job: float) -> list[tuple[str, float, float]]:
    return [(job, 1e6 * n, mib + mib_per_job * n) for n in range(10)]


def test_a_leak_is_told_whatever_other_jobs_keep() -> None:
    samples = grown("short", 300, 0.2) + grown("giant", 500, 0.2)
    found = soak.slope(samples)
    assert found is not None
    assert [found.median, found.low, found.high] == pytest.approx([2.0, 2.0, 2.0])


def test_one_high_sample_is_no_leak() -> None:
    samples = grown("short", 300, 0.0)
    samples[6] = ("short", 6e6, 800)
    found = soak.slope(samples)
    assert found is not None
    assert found.median == 0


def test_few_samples_tell_nothing() -> None:
    assert soak.slope(grown("short", 300, 1.0)[: soak.FEWEST_SAMPLES - 1]) is None


def run(
    environment: Mapping[str, str], tmp_path: Path, module: str, *options: str
) -> tuple[int, str, Mapping[str, Any]]:
    """A benchmark in a process of its own: the tests' own Spark session tries no task twice."""
    written = tmp_path / "figures.json"
    command = [sys.executable, "-m", module, *options, "--json", str(written), "--work-dir", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert written.exists(), done.stdout + done.stderr
    return done.returncode, done.stdout, json.loads(written.read_text())


@pytest.mark.slow
def test_parity_holds(program_environment: Mapping[str, str], tmp_path: Path) -> None:
    code, printed, figures = run(
        program_environment,
        tmp_path,
        "benchmarks.parity",
        "--rows",
        "1100",
        "--nets",
        "2",
        "--tasks",
        "2",
        "1",
    )
    results = figures["results"]
    assert code == 0, printed
    assert results["bit_identical"] is True
    assert results["distributed_vs_local"] == dict.fromkeys(results["distributed_vs_local"], 0) | {
        "count": 2_200
    }
    assert set(results["attempts_killed"].values()) == {2}


@pytest.mark.slow
def test_the_soak_watches_every_worker(program_environment: Mapping[str, str], tmp_path: Path) -> None:
    code, printed, figures = run(
        program_environment, tmp_path, "benchmarks.soak", "--minutes", "0", "--rows", "4000"
    )
    results = figures["results"]
    assert code in (0, 1), printed  # so short a run tells of no slope
    assert results["worker_limit_mib"] == [3 * 1024]
    assert results["jobs"] == len(soak.ROUND)
    assert all(worker["samples"] for worker in results["workers"].values())
