"""The benchmarks that train: which model ranks users best, and how many rows a core trains on in a second."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import quality, training
from benchmarks.labelled_users import encode_users, read_users, split_users
from benchmarks.measure import missing_package
from benchmarks.simulated_users import WORLD_FOLDER, attainable, write_users
from benchmarks.training_peers import LIMIT, PEERS, Peer
from pipelines.steps.errors import DataError
from pipelines.steps.labels.training_rows import TEST, TRAIN

USERS = 900
BRANDS = (None, "nokia", "pixel")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users who buy where they have one of the first apps; a brand that says nothing."""
    random = np.random.default_rng(0)
    apps = [[f"app-{n}" for n in random.integers(0, 30, random.integers(0, 9))] for _ in range(USERS)]
    likely = np.array([any(app in ("app-0", "app-1", "app-2", "app-3") for app in row) for row in apps])
    home = tmp_path_factory.mktemp("users")
    table = {
        "id": [f"user-{n}" for n in range(USERS)],
        "label": (random.random(USERS) < np.where(likely, 0.8, 0.1)).astype(np.int8),
        "apps": apps,
        "brand": pa.array(
            [[None, "nokia", "pixel"][n] for n in random.integers(0, 3, USERS)]
        ).dictionary_encode(),
    }
    pq.write_table(pa.table(table), home / "users.parquet")
    return home


def test_splits_are_of_60_20_20_and_follow_the_seed(data: Path) -> None:
    users = read_users(data)
    first, again, other = (split_users(users, seed) for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()
    assert np.bincount(first) / USERS == pytest.approx([0.6, 0.2, 0.2], abs=0.05)


def test_the_vocabulary_is_of_the_training_users_alone(data: Path) -> None:
    users = read_users(data)
    split = split_users(users, 0)
    _, vocabulary = encode_users(users, split)
    trained = users.features["apps"].filter(pa.array(split == TRAIN)).to_pylist()
    counts = {app: sum(app in row for row in trained) for row in trained for app in row}
    assert set(vocabulary.fields[0].tokens) == {app for app, count in counts.items() if count >= 5}


def test_a_feature_that_no_training_user_has_is_left_out(data: Path) -> None:
    users = read_users(data)
    split = split_users(users, 0)
    tested = users.features.append_column(
        "late", pa.array([[None] if part == TRAIN else ["token"] for part in split], pa.list_(pa.string()))
    )
    rows, vocabulary = encode_users(replace(users, features=tested), split)
    assert list(rows.bags) == list(vocabulary.sizes) == users.features.column_names


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0, 1]}, "lacks the column id"),
        ({"id": ["a", "b"], "label": [0, 2]}, "is no label"),
        ({"id": ["a", "b"], "label": [0, 1], "age": [1.5, 2.5]}, "age is of a type that is no category"),
    ],
)
def test_other_data_are_refused(columns: Mapping[str, Any], message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "users.parquet")
    with pytest.raises(DataError, match=message):
        read_users(tmp_path)


@pytest.mark.slow
def test_quality_is_measured_with_these_names(data: Path, tmp_path: Path) -> None:
    written = tmp_path / "figures.json"
    quality.main(["--data", str(data), "--seeds", "2", "--json", str(written)])
    figures = json.loads(written.read_text())
    names = {*quality.FIGURES, "seconds"}
    for model in quality.MODELS:
        found = figures["results"][model]
        assert names <= set(found)
        assert all({"mean", "sd"} <= set(found[name]) for name in names)
        assert found["auc"]["mean"] > 0.75
    for name in ("auc_dnn_minus_xgboost", "auc_champion_minus_best_single"):
        assert set(figures["ratios"][name]) == {"median", "low", "high"}
        assert figures["ratios"][name]["low"] <= figures["ratios"][name]["high"]


def test_simulated_users_are_those_of_the_world(tmp_path: Path) -> None:
    folder = write_users(tmp_path / "users", 1_500, seed=3)
    users = read_users(folder)
    truth = pq.read_table(folder / WORLD_FOLDER / "truth.parquet").to_pandas().set_index("device_id")
    ids = users.ids.to_pylist()
    assert len(set(ids)) == len(ids) > 1_000
    assert not truth.loc[ids, "emulator"].any()
    assert 0.02 < users.labels.mean() < 0.3
    # The likelier a device is to buy, by the truth, the more often it did.
    assert attainable(folder, users.ids, users.labels) > 0.75
    assert users.features["apps"].combine_chunks().value_lengths().to_numpy().mean() > 5


def test_users_are_simulated_again_in_the_same_place(tmp_path: Path) -> None:
    first, again = (read_users(write_users(tmp_path, 300, seed=3)) for _ in range(2))
    assert again.features.equals(first.features)
    assert again.labels.tolist() == first.labels.tolist()


@pytest.mark.parametrize("name", ["limit", *PEERS])
def test_peers_train_our_network(name: str) -> None:
    peer: Peer = LIMIT if name == "limit" else PEERS[name]
    if reason := missing_package(peer.module):
        pytest.skip(reason)
    rows, sizes = training.make_rows(600, seed=1)
    training.require_equal_networks(peer, rows, sizes)
    peer.epoch(rows, sizes)()


def test_another_network_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, sizes = training.make_rows(600, seed=1)
    peer = Peer("", "torch", LIMIT.epoch, lambda r, s, w: LIMIT.logits(r, s, w) + 0.1)
    with pytest.raises(RuntimeError, match="its network is not ours"):
        training.require_equal_networks(peer, rows, sizes)


@pytest.mark.slow
def test_training_is_measured_with_these_names(tmp_path: Path) -> None:
    written = tmp_path / "figures.json"
    code = training.main(
        [
            "--rows",
            "3000",
            "--rounds",
            "1",
            "--peers",
            "limit,plain_loop",
            "--json",
            str(written),
        ]
    )
    figures = json.loads(written.read_text())
    assert code == 0
    assert {"limit", "plain_loop"} == set(figures["ratios"])


def test_the_test_split_is_scored_by_all_models_on_the_same_users(data: Path) -> None:
    users = read_users(data)
    rows, vocabulary = encode_users(users, split_users(users, 0))
    found = quality.run_round(rows, vocabulary, 0, ["logistic"])
    assert len(found.labels) == len(found.models["logistic"].probabilities) == (rows.split == TEST).sum()
