"""The network's numbers, its training loop, and the rows that no model may be trained on."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.steps.config.metric import PrecisionAt
from pipelines.steps.errors import DataError, TrainingError
from pipelines.steps.features.encoded_rows import EncodedRows, Ragged, count_matrix
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.features.token_weights import codes_of
from pipelines.steps.labels.training_rows import (
    TEST,
    TRAIN,
    VALIDATION,
    TrainingFiles,
    TrainingRows,
    check_trainable,
)
from pipelines.steps.models.bundle import write_bundle
from pipelines.steps.models.bundle_loader import load_bundle
from pipelines.steps.models.cpu_kernels import Dropout
from pipelines.steps.models.dnn_batches import as_tensors, to_tensors
from pipelines.steps.models.dnn_config import DnnConfig, Pooling, weight_decays
from pipelines.steps.models.dnn_model import AudienceNet, EpochReport, TrainedDnn, ensemble_of
from pipelines.steps.models.dnn_training import train_dnn, tune_dnn
from pipelines.steps.models.metrics import compute_metrics
from pipelines.steps.models.model_columns import cumulative_columns
from pipelines.steps.models.thermometer_codes import ThermometerCodes, as_tensor

SIZES = {"apps": 5, "model": 4}
BATCH: EncodedRows = {
    "apps": Ragged.from_lists([[2, 3], [0], [4, 4, 1]]),
    "model": Ragged.from_lists([[2], [3, 2], [0]]),
}
SMALL = DnnConfig(embedding_dim=4, hidden=(8,), max_epochs=5, learning_rate=1e-2, members=1)


def rows_of(
    labels: Sequence[int], split: Sequence[int], apps: Sequence[Sequence[int]], model: Sequence[Sequence[int]]
) -> TrainingRows:
    return TrainingRows(
        np.asarray(labels, dtype=np.float32),
        np.asarray(split, dtype=np.int8),
        {"apps": Ragged.from_lists(apps), "model": Ragged.from_lists(model)},
    )


def simulated_rows(rows: int = 600, seed: int = 0) -> TrainingRows:
    """App 2 makes a positive likely; models say nothing. Splits take turns."""
    random = np.random.default_rng(seed)
    apps = [random.integers(1, 5, size=random.integers(1, 5)).tolist() for _ in range(rows)]
    labels = [int(random.random() < (0.8 if 2 in row else 0.2)) for row in apps]
    model = [[int(random.integers(0, 4))] for _ in range(rows)]
    return rows_of(labels, [row % 3 for row in range(rows)], apps, model)


def seeded_net(**options: object) -> AudienceNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = AudienceNet([5, 4], embedding_dim=3, hidden=(4,), embedding_init_std=1.0, **options)  # type: ignore[arg-type]
    return net.eval()


def train(rows: TrainingRows, config: DnnConfig = SMALL) -> TrainedDnn:
    return train_dnn(rows, SIZES, config, progress=lambda report: None)


@pytest.mark.parametrize(
    ("pooling", "logits"),
    [
        ("mean", [0.43114209, 0.44692057, 0.78216851]),
        ("sqrt_n", [0.39830786, 0.40658116, 0.83211112]),
    ],
)
def test_forward_gives_the_golden_logits(pooling: str, logits: list[float]) -> None:
    net = seeded_net(pooling=pooling)
    assert net(to_tensors(BATCH, SIZES)).tolist() == pytest.approx(logits, abs=1e-6)


def test_mean_pooling_averages_the_embeddings_of_the_tokens() -> None:
    net = AudienceNet([4], embedding_dim=1, hidden=())
    net.load_state_dict(
        {
            "embeddings": torch.tensor([[0.0], [0.0], [1.0], [3.0]]),
            "feed_forward.0.0.weight": torch.ones(1, 1),
            "feed_forward.0.0.bias": torch.zeros(1),
        }
    )
    bags = to_tensors({"apps": Ragged.from_lists([[2, 3], [3], [2, 2, 2, 3]])}, {"apps": 4})
    assert net(bags).tolist() == [2.0, 3.0, 1.5]


def test_pooling_by_the_root_of_n_lets_long_lists_weigh_more() -> None:
    net = AudienceNet([3], embedding_dim=1, hidden=(), pooling="sqrt_n")
    net.load_state_dict(
        {
            "embeddings": torch.tensor([[0.0], [0.0], [1.0]]),
            "feed_forward.0.0.weight": torch.ones(1, 1),
            "feed_forward.0.0.bias": torch.zeros(1),
        }
    )
    bags = to_tensors({"apps": Ragged.from_lists([[2], [2, 2, 2, 2]])}, {"apps": 3})
    assert net(bags).tolist() == [1.0, 2.0]


def test_a_token_counts_as_often_as_its_code_weighs() -> None:
    net = AudienceNet([4], embedding_dim=1, hidden=(), token_weights=True)
    state = net.state_dict() | {
        "embeddings": torch.tensor([[0.0], [0.0], [1.0], [3.0]]),
        "feed_forward.0.0.weight": torch.ones(1, 1),
        "feed_forward.0.0.bias": torch.zeros(1),
        "token_weights.events": torch.tensor([[[0.5, 0, 0, 0, 0, 0, 2.0]]]),
        "token_weights.days": torch.tensor([[[0.25, 0, 0]]]),
        "token_weights.ages": torch.tensor([[[0, 0, -1.0, 0, 0, 0, 0]]]),
    }
    net.load_state_dict(state)
    events, days, ages = np.array([[1, 1, 0], [2, 2, 0], [70, 1, 7]]).T
    once, twice, often = codes_of(events, days, ages).tolist()
    bags = Ragged.from_lists([[2, 3], [2, 3], [3]], [[once, once], [once, twice], [often]])
    # (1 + 3) / 2, then (1 + 3 · 1.75) / 2, then 3 · (1 + 2 - 1)
    assert net(to_tensors({"apps": bags}, {"apps": 4})).tolist() == [2.0, 3.125, 6.0]


@pytest.mark.parametrize("pooling", ["mean", "sqrt_n"])
def test_weights_that_have_learned_nothing_change_no_bit(pooling: Pooling) -> None:
    bags = {name: replace(bag, codes=np.full(len(bag.values), 77, np.uint8)) for name, bag in BATCH.items()}
    with_codes = seeded_net(pooling="sqrt_n", token_weights=True)(to_tensors(bags, SIZES))
    assert torch.equal(with_codes, seeded_net(pooling="sqrt_n")(to_tensors(BATCH, SIZES)))
    # a network without weights overlooks codes
    assert torch.equal(
        seeded_net(pooling=pooling)(to_tensors(bags, SIZES)),
        seeded_net(pooling=pooling)(to_tensors(BATCH, SIZES)),
    )


BEHAVIOUR_SIZES = {"apps": 4, "behaviour": 5, "buyers_past": 3}
BEHAVIOUR_ROWS: EncodedRows = {
    "apps": Ragged.from_lists([[2, 3], [3]], [[0, 7], [1]]),
    "behaviour": Ragged.from_lists([[2, 4], [1, 3]]),
    "buyers_past": Ragged.from_lists([[2], [0]]),
}


def test_each_code_of_behaviour_is_a_column_of_the_first_layers_weights() -> None:
    net = AudienceNet([4, 5, 3], embedding_dim=1, hidden=(2,), multi_hot_fields=2).eval()
    net.load_state_dict(
        {
            "embeddings": torch.tensor([[0.0], [0.0], [1.0], [3.0]]),
            "multi_hot.weights": torch.tensor(
                # missing, unknown and three codes of behaviour; missing, unknown and one of buyers_past
                [[100.0, 0], [0, 0.25], [10, -1], [0, 1], [20, -2], [-7, 0], [50, 0], [0, -4]]
            ),
            "feed_forward.0.0.weight": torch.tensor([[1.0], [2.0]]),
            "feed_forward.0.0.bias": torch.tensor([0.0, 3.0]),
            "feed_forward.0.3.weight": torch.tensor([[1.0, 1000.0]]),
            "feed_forward.0.3.bias": torch.zeros(1),
        }
    )
    # of the first row max(0, 2 + 10 + 20 + 0) and max(0, 4 + 3 - 1 - 2 - 4); of the second the codes that
    # are missing and unknown: max(0, 3 - 7) and max(0, 6 + 3 + 0.25 + 1)
    assert net(to_tensors(BEHAVIOUR_ROWS, BEHAVIOUR_SIZES)).tolist() == [32.0, 10250.0]


@pytest.mark.parametrize("fields", [-1, 2])
def test_a_network_of_multi_hot_fields_alone_is_refused(fields: int) -> None:
    with pytest.raises(ValueError, match=f"{fields} of 2 fields cannot be multi-hot"):
        seeded_net(multi_hot_fields=fields)


@pytest.mark.parametrize(
    ("fields", "multi_hot"),
    [
        (["apps", "model"], 0),
        (["apps", "behaviour", "apps_distinct", "buyers_past"], 3),
        (["behaviour", "apps"], 0),  # a place that no project gives it
        (["behaviour", "buyers_past"], 1),
    ],
)
def test_fields_of_behaviour_are_multi_hot(fields: Sequence[str], multi_hot: int) -> None:
    assert DnnConfig().multi_hot_fields(fields) == multi_hot
    assert DnnConfig.published().multi_hot_fields(fields) == 0


BEHAVIOUR = Vocabulary(
    (FieldVocabulary("apps", 1, ("a",)), FieldVocabulary("behaviour", 2, ("x=0", "x=1", "x=2", "y=0", "y=1")))
)


def behaving_rows(rows: int = 900) -> TrainingRows:
    """Behaviours x and y, 0 or 1 each: a positive is likely where x is 1 and y is 0. Splits take turns."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 2, size=(rows, 2))
    labels = random.random(rows) < np.where(codes[:, 0] > codes[:, 1], 0.9, 0.1)
    bags = {
        "apps": Ragged.from_lists([[2]] * rows),
        "behaviour": Ragged.from_lists([[2 + x, 5 + y] for x, y in codes.tolist()]),
    }
    return TrainingRows(labels.astype(np.float32), (np.arange(rows) % 3).astype(np.int8), bags)


def train_on_behaviour(config: DnnConfig) -> TrainedDnn:
    columns = cumulative_columns(BEHAVIOUR.fields)
    return train_dnn(behaving_rows(), BEHAVIOUR.sizes, config, columns=columns)


def test_what_each_behaviour_tells_is_learned(tmp_path: Path) -> None:
    trained = train_on_behaviour(replace(SMALL, members=2))
    assert trained.architecture["multi_hot_fields"] == 1
    assert {name: tuple(trained.state[name].shape) for name in ("embeddings", "multi_hot.weights")} == {
        "embeddings": (3, 2 * 4),
        "multi_hot.weights": (7, 2 * 8),
    }
    # x=2 was never seen: it says what x=1 does
    assert torch.equal(trained.state["multi_hot.weights"][4], trained.state["multi_hot.weights"][3])
    assert not torch.equal(trained.state["multi_hot.weights"][3], trained.state["multi_hot.weights"][2])

    rows = behaving_rows().subset(TEST)
    write_bundle(tmp_path / "b", trained, BEHAVIOUR, training_days=[], code_version="test", metrics={})
    assert compute_metrics(rows.labels, load_bundle(tmp_path / "b").score(rows.bags)).auc > 0.8


@pytest.mark.parametrize("pooled", [replace(SMALL, behaviour="pooled"), replace(SMALL, embedding_init=0.1)])
def test_behaviour_is_pooled_where_settings_or_columns_say_so(pooled: DnnConfig) -> None:
    rows, columns = behaving_rows(), cumulative_columns(BEHAVIOUR.fields)
    trained = train_dnn(
        rows, BEHAVIOUR.sizes, pooled, columns=columns if pooled.behaviour == "pooled" else None
    )
    assert "multi_hot_fields" not in trained.architecture
    assert trained.state["embeddings"].shape == (3 + 7, 4)
    assert "multi_hot.weights" not in trained.state


def test_a_column_of_behaviour_is_the_sum_of_the_steps_up_to_its_code() -> None:
    columns = cumulative_columns(BEHAVIOUR.fields)
    assert columns is not None
    codes = ThermometerCodes(columns[3:, 3:], width=2)  # without those of apps
    with torch.no_grad():
        codes.steps.copy_(torch.tensor([[1.0, 0], [2, 0], [4, 0], [8, 1], [16, 2], [32, 0], [64, 3]]))
    weights = codes.weights()
    # missing, unknown, x = 0, 1, 2, y = 0, 1
    assert weights.tolist() == [[1, 0], [2, 0], [4, 0], [12, 1], [28, 3], [32, 0], [96, 3]]
    assert torch.equal(torch.sparse.mm(as_tensor(columns[3:, 3:]), codes.steps), weights)  # as on a GPU
    weights.sum().backward()
    assert codes.steps.grad is not None
    assert codes.steps.grad[:, 0].tolist() == [1, 1, 3, 2, 1, 2, 1]  # columns that a step is in


def test_where_nothing_tells_of_behaviour_the_network_is_the_same_to_the_bit() -> None:
    assert cumulative_columns([FieldVocabulary("apps", 1, ("a",))]) is None
    trained = train(simulated_rows(), replace(SMALL, behaviour="pooled"))
    assert train(simulated_rows()).weights() == trained.weights()
    assert train(simulated_rows()).architecture == trained.architecture


def test_codes_of_a_field_are_looked_up_in_its_own_weights() -> None:
    rows = {"apps": Ragged.from_lists([[2], [3]]), "model": Ragged.from_lists([[2], [3]], [[7], [255]])}
    _, _, codes = to_tensors(rows, SIZES)
    assert codes is not None
    assert codes.tolist() == [0, 0, 256 + 7, 256 + 255]


def test_training_learns_what_codes_tell() -> None:
    """The ids say nothing: only how often a token was seen does."""
    random = np.random.default_rng(0)
    codes = [[int(code)] for code in random.integers(0, 8, size=900)]
    labels = [int(random.random() < (0.9 if code > 3 else 0.1)) for [code] in codes]
    plain = rows_of(labels, [row % 3 for row in range(900)], [[2]] * 900, [[2]] * 900)
    rows = replace(plain, bags=dict(plain.bags) | {"apps": Ragged.from_lists([[2]] * 900, codes)})
    aucs = [max(r.validation_auc for r in train(each).curves) for each in (rows, plain)]
    assert aucs[0] > 0.85
    assert aucs[1] == 0.5


@pytest.mark.parametrize(("weighted", "multi_hot"), [(False, 0), (True, 0), (True, 1)])
@pytest.mark.parametrize("pooling", ["mean", "sqrt_n"])
def test_the_gradient_in_training_is_that_of_pytorch(
    pooling: Pooling, weighted: bool, multi_hot: int
) -> None:
    """The sum has a gradient of its own; ids that repeat, within a bag and between bags, add up."""
    torch.manual_seed(0)
    network = AudienceNet(
        [6, 5],
        embedding_dim=3,
        hidden=(4,),
        pooling=pooling,
        embedding_init_std=1.0,
        token_weights=weighted,
        multi_hot_fields=multi_hot,
    )
    packed = Ragged.from_lists([[1, 1, 2], [5], [0], [6, 7, 7, 10], [8], [6, 6]])
    bags = as_tensors(
        replace(packed, codes=np.arange(12, dtype=np.int32) * 40) if weighted else packed, "cpu"
    )
    if network.token_weights is not None:
        for part in network.token_weights.parameters():
            torch.nn.init.normal_(part, std=0.3)
    found = {}
    for mode in (True, False):
        network.train(mode).zero_grad()
        logits = network(bags)
        logits.square().sum().backward()
        learned = [network.embeddings, *network.parameters()]
        found[mode] = (logits.detach(), *[p.grad.clone() for p in learned])  # type: ignore[union-attr]
    for ours, theirs in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert found[True][1][[3, 4]].abs().sum() == 0  # tokens that no row has


def test_dropout_leaves_out_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropout, values = Dropout(0.3), torch.ones(80_003)
    dropped = dropout(values)
    assert float((dropped == 0).float().mean()) == pytest.approx(77 / 256, abs=0.01)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.01)
    # A word of random bits decides on eight values: each of its bytes must be as random as the others.
    assert (dropped[:80_000].view(-1, 8) == 0).float().mean(dim=0).tolist() == pytest.approx(
        [0.3] * 8, abs=0.02
    )
    assert not torch.equal(dropout(values), dropped)
    assert dropout.eval()(values) is values
    assert Dropout(0.0)(values) is values


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_dropping_all_or_less_than_nothing_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        Dropout(share)


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="'mean' or 'sqrt_n', not 'max'"):
        seeded_net(pooling="max")


def test_one_field_and_a_batch_of_one_row() -> None:
    net = AudienceNet([4], embedding_dim=2, hidden=(3,)).eval()
    assert net(to_tensors({"apps": Ragged.from_lists([[0]])}, {"apps": 4})).shape == (1,)


def test_a_batch_without_rows_gives_no_logits() -> None:
    empty = {"apps": Ragged.from_lists([]), "model": Ragged.from_lists([])}
    assert seeded_net()(to_tensors(empty, SIZES)).shape == (0,)


def test_huge_logits_give_finite_loss_and_gradients() -> None:
    net = seeded_net()
    with torch.no_grad():
        net.get_parameter("feed_forward.0.3.bias").fill_(1e4)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        net(to_tensors(BATCH, SIZES)), torch.tensor([0.0, 1.0, 0.0])
    )
    loss.backward()
    assert loss.item() == pytest.approx(2 / 3 * 1e4, rel=1e-3)
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("last_offset", [2, 5])
def test_offsets_that_do_not_cover_the_ids_are_refused(last_offset: int) -> None:
    """PyTorch itself would silently drop or misread tokens."""
    torn = Ragged(np.array([2, 3, 2, 2], dtype=np.int32), np.array([0, 1, last_offset], dtype=np.int64))
    with pytest.raises(DataError, match=rf"(?s)offsets of field 'apps'.*to {last_offset} for 4 ids.*0 to 4"):
        to_tensors({"apps": torn}, {"apps": 5})


def test_one_batch_can_be_overfitted() -> None:
    """Without dropout the network learns eight rows by heart: gradients reach every layer."""
    labels = [0, 1, 0, 1, 0, 1, 0, 1]
    apps = [[2, 3], [2, 4], [3], [4], [2], [3, 4], [1], [2, 3, 4]]
    model = [[2], [2], [3], [3], [3], [2], [2], [3]]
    rows = rows_of(labels * 2, [TRAIN] * 8 + [VALIDATION] * 8, apps * 2, model * 2)
    config = DnnConfig(
        hidden=(32,),
        dropout=0.0,
        embedding_dropout=0.0,
        token_dropout=0.0,
        ema_decay=0.0,
        learning_rate=0.03,
        max_epochs=200,
        patience=200,
        members=1,
    )
    trained = train(rows, config)
    assert trained.curves[-1].train_loss < 0.01
    assert trained.curves[-1].validation_auc == 1.0


def test_training_learns_what_the_rows_tell() -> None:
    trained = train(simulated_rows(), replace(SMALL, max_epochs=15))
    assert trained.curves[trained.best_epochs[0] - 1].validation_auc > 0.75


def test_training_twice_gives_equal_weights() -> None:
    first, second = train(simulated_rows()), train(simulated_rows())
    assert first.curves == second.curves
    assert first.weights() == second.weights()


def test_another_seed_gives_other_weights() -> None:
    assert train(simulated_rows()).weights() != train(simulated_rows(), replace(SMALL, seed=1)).weights()


def test_training_leaves_the_random_state_and_the_threads_of_the_process_alone() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train(simulated_rows())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_training_never_reads_the_test_rows() -> None:
    rows = simulated_rows()
    flipped = np.where(rows.split == TEST, 1 - rows.labels, rows.labels)
    assert train(rows).weights() == train(TrainingRows(flipped, rows.split, rows.bags)).weights()


def test_fewer_rows_than_a_batch_are_enough() -> None:
    trained = train(simulated_rows(rows=30))
    assert len(trained.curves) == 5


def test_early_stopping_keeps_the_best_epoch() -> None:
    """Validation labels contradict what is learned, so the ranking gets worse with every epoch."""
    rows = simulated_rows()
    labels = np.where(rows.split == VALIDATION, 1 - rows.labels, rows.labels)
    contradicted = TrainingRows(labels, rows.split, rows.bags)
    config = replace(SMALL, max_epochs=40, patience=4)
    trained = train(contradicted, config)

    found = [report.validation_metric for report in trained.curves]
    [best_epoch] = trained.best_epochs
    assert best_epoch == int(np.argmax(found)) + 1
    assert len(found) == best_epoch + 4 < 40
    assert found[-1] < max(found)
    assert trained.weights() == train(contradicted, replace(config, max_epochs=best_epoch)).weights()


def test_the_metric_named_chooses_the_epoch() -> None:
    rows = simulated_rows()
    by_auc, by_top = (train(rows, replace(SMALL, metric=m)) for m in ("auc", PrecisionAt(precision_at=0.05)))
    assert [r.validation_metric for r in by_auc.curves] == pytest.approx(
        [r.validation_auc for r in by_auc.curves]
    )
    assert by_auc.best_epochs == (int(np.argmax([r.validation_auc for r in by_auc.curves])) + 1,)
    assert by_top.best_epochs == (int(np.argmax([r.validation_metric for r in by_top.curves])) + 1,)


def test_of_the_weight_decays_tried_validation_keeps_the_best() -> None:
    rows = simulated_rows()
    usual, strong = (train(rows, replace(SMALL, weight_decay=decay)) for decay in (0.01, 100.0))
    assert usual.best_metric > strong.best_metric
    for decays in ([0.01, 100.0], [100.0, 0.01]):
        assert tune_dnn(rows, SIZES, SMALL, decays).weights() == usual.weights()


@pytest.mark.parametrize(("devices", "decays"), [(4_999, (0.01, 2.0)), (5_000, (0.01,))])
def test_more_weight_decay_is_tried_where_devices_are_few(devices: int, decays: tuple[float, ...]) -> None:
    assert weight_decays(devices) == decays


def test_progress_is_told_every_epoch() -> None:
    told: list[EpochReport] = []
    trained = train_dnn(simulated_rows(), SIZES, SMALL, told.append)
    assert tuple(told) == trained.curves
    assert [report.epoch for report in told] == [1, 2, 3, 4, 5]


def test_a_loss_that_is_not_finite_stops_training() -> None:
    config = replace(SMALL, learning_rate=1e30, batch_rows=16)
    with pytest.raises(TrainingError, match=r"(?s)loss is not finite in epoch 1.*lower learning_rate"):
        train(simulated_rows(), config)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"(?s)field 'apps' holds ids outside.*to 4.*expected: .*0 to 2"):
        train_dnn(simulated_rows(), {"apps": 3, "model": 4}, SMALL, lambda report: None)


def test_fields_other_than_the_vocabularys_are_refused() -> None:
    with pytest.raises(TrainingError, match="different fields"):
        train_dnn(simulated_rows(), {"apps": 5}, SMALL, lambda report: None)


class KilledError(Exception):
    """What a test stops a training with."""


def _fail(report: EpochReport) -> None:
    raise AssertionError(f"trained again: {report}")


@pytest.mark.parametrize("epochs_before", [1, 4, 5, 7])
def test_a_training_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path: Path, epochs_before: int) -> None:
    config, checkpoint = replace(SMALL, members=2, max_epochs=5), tmp_path / "checkpoints" / "dnn.pt"
    told: list[EpochReport] = []

    def stop(report: EpochReport) -> None:
        if len(told) == epochs_before:
            raise KilledError
        told.append(report)

    with pytest.raises(KilledError):
        train_dnn(simulated_rows(), SIZES, config, stop, checkpoint=checkpoint)
    assert checkpoint.exists()
    afterwards: list[EpochReport] = []
    resumed = train_dnn(simulated_rows(), SIZES, config, afterwards.append, checkpoint=checkpoint)
    uninterrupted = train(simulated_rows(), config)
    assert resumed.weights() == uninterrupted.weights()
    assert resumed.curves == uninterrupted.curves == (*told, *afterwards)
    again = train_dnn(simulated_rows(), SIZES, config, _fail, checkpoint=checkpoint)
    assert again.weights() == uninterrupted.weights()
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_a_checkpoint_of_other_rows_or_settings_is_not_resumed_from(tmp_path: Path) -> None:
    checkpoint = tmp_path / "dnn.pt"

    def stop(report: EpochReport) -> None:
        if report.epoch == 3:
            raise KilledError

    with pytest.raises(KilledError):
        train_dnn(simulated_rows(), SIZES, SMALL, stop, checkpoint=checkpoint)
    other = replace(SMALL, seed=1)
    told: list[EpochReport] = []
    trained = train_dnn(simulated_rows(), SIZES, other, told.append, checkpoint=checkpoint)
    assert len(told) == 5
    assert trained.weights() == train(simulated_rows(), other).weights()


def test_an_ensemble_gives_the_mean_logit_of_its_members() -> None:
    members = [train(simulated_rows(), replace(SMALL, seed=seed)) for seed in (0, 1)]
    bags = to_tensors(BATCH, SIZES)
    together = net_of({**members[0].architecture, "members": 2}, ensemble_of([m.state for m in members]))
    apart = [net_of(member.architecture, member.state)(bags) for member in members]
    assert together(bags).tolist() == pytest.approx(torch.stack(apart).mean(dim=0).tolist(), abs=1e-6)


def net_of(architecture: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> AudienceNet:
    parameters = {name: value for name, value in architecture.items() if name != "name"}
    net = AudienceNet(list(SIZES.values()), **parameters).eval()
    net.load_state_dict(dict(state))
    return net


def test_the_published_network_has_none_of_the_additions() -> None:
    published = DnnConfig.published(hidden=(256, 128))
    assert published.architecture == {
        "embedding_dim": 16,
        "hidden": [256, 128],
        "pooling": "mean",
        "token_counts": False,
        "token_weights": False,
        "members": 1,
    }
    trained = train(simulated_rows(), replace(published, max_epochs=6, learning_rate=1e-2))
    assert max(report.validation_auc for report in trained.curves) > 0.7


@pytest.mark.parametrize(
    ("rows", "size"), [(30, 32), (5_120, 128), (10_239, 128), (10_240, 256), (20_480, 512), (10**6, 512)]
)
def test_few_rows_are_taken_in_small_batches(rows: int, size: int) -> None:
    assert DnnConfig().rows_per_step(rows) == size
    assert DnnConfig(batch_rows=64).rows_per_step(rows) == 64


ANY_APPS = [[2], [3], [2], [3], [2], [3]]
ANY_MODEL = [[2]] * 6
ALL_SPLITS = [TRAIN, TRAIN, VALIDATION, VALIDATION, TEST, TEST]


@pytest.mark.parametrize(
    ("labels", "split", "message"),
    [
        ([0, 0, 0, 1, 0, 1], ALL_SPLITS, "'train' has no positives"),
        ([0, 1, 0, 0, 0, 1], ALL_SPLITS, "'validation' has no positives"),
        ([0, 1, 0, 1, 1, 1], ALL_SPLITS, "'test' has only one class"),
        ([0, 1, 0, 1, 0, 1], [TRAIN] * 3 + [VALIDATION] * 3, "'test' has no rows"),
        ([0, 2, 0, 1, 0, 1], ALL_SPLITS, "'train' holds labels that are neither 0 nor 1"),
    ],
)
def test_untrainable_labels_are_refused(labels: list[int], split: list[int], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        check_trainable(rows_of(labels, split, ANY_APPS, ANY_MODEL))


def test_a_field_without_tokens_is_refused() -> None:
    """Tokens in other splits do not help: nothing is learned about them."""
    apps = [[0], [0], [2], [3], [2], [3]]
    with pytest.raises(TrainingError, match=r"(?s)field 'apps' has no token in any training row.*2 rows"):
        check_trainable(rows_of([0, 1, 0, 1, 0, 1], ALL_SPLITS, apps, ANY_MODEL))


def test_rows_without_fields_are_refused() -> None:
    rows = TrainingRows(np.zeros(2, dtype=np.float32), np.zeros(2, dtype=np.int8), {})
    with pytest.raises(TrainingError, match="no feature fields"):
        check_trainable(rows)


def test_the_count_matrix_counts_tokens_field_by_field() -> None:
    counts = count_matrix(BATCH, SIZES).toarray()
    assert counts.tolist() == [
        [0, 0, 1, 1, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 0, 0, 1, 1],
        [0, 1, 0, 0, 2, 1, 0, 0, 0],
    ]


def write_rows(path: Path, columns: dict[str, "pa.Array[Any]"], row_group_size: int = 2) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def columns_of(labels: list[int | None], apps: list[list[int] | None]) -> dict[str, "pa.Array[Any]"]:
    return {
        "device_id": pa.array([str(row) for row in range(len(labels))]),
        "label": pa.array(labels, type=pa.int8()),
        "split": pa.array([0] * len(labels), type=pa.int8()),
        "apps": pa.array(apps, type=pa.list_(pa.int32())),
    }


def test_reading_joins_files_and_row_groups(tmp_path: Path) -> None:
    paths = [
        write_rows(tmp_path / "1.parquet", columns_of([0, 1, 0], [[2], [3, 4], [0]])),
        write_rows(tmp_path / "2.parquet", columns_of([1], [[5, 6, 7]])),
    ]
    rows = TrainingFiles(paths, ["apps"]).read()
    assert rows.labels.tolist() == [0, 1, 0, 1]
    assert [str(rows.labels.dtype), str(rows.split.dtype)] == ["float32", "int8"]
    assert rows.bags["apps"].values.tolist() == [2, 3, 4, 0, 5, 6, 7]
    assert rows.bags["apps"].offsets.tolist() == [0, 1, 3, 4, 7]


def test_reading_keeps_what_each_token_weighs(tmp_path: Path) -> None:
    columns = columns_of([0, 1, 0], [[2], [3, 4], [0]])
    weights: Any = pa.array([b"\x02", b"\x03\xff", b"\x00"])
    path = write_rows(tmp_path / "1.parquet", columns | {"apps_weights": weights})
    bags = TrainingFiles([path], ["apps"]).read().bags["apps"]
    assert bags.each_code().tolist() == [2, 3, 255, 0]
    assert bags.take(np.array([1])).each_code().tolist() == [3, 255]
    without = write_rows(tmp_path / "2.parquet", columns)
    with pytest.raises(DataError, match=r"(?s)2\.parquet has other columns.*'apps_weights': 'binary'"):
        TrainingFiles([path, without], ["apps"])


def test_reading_refuses_what_is_missing(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "1.parquet", columns_of([0], [[2]]))
    with pytest.raises(DataError, match="no files"):
        TrainingFiles([], ["apps"]).read()
    with pytest.raises(DataError, match=r"2\.parquet cannot be read"):
        TrainingFiles([tmp_path / "2.parquet"], ["apps"]).read()
    with pytest.raises(DataError, match=r"(?s)other columns than expected.*'model': 'list<int32>'"):
        TrainingFiles([path], list(SIZES)).read()


def test_reading_refuses_nulls(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'label' of training set file .* holds nulls"):
        TrainingFiles([write_rows(tmp_path / "1.parquet", columns_of([None], [[2]]))], ["apps"]).read()
    with pytest.raises(DataError, match="null lists"):
        TrainingFiles([write_rows(tmp_path / "2.parquet", columns_of([1], [None]))], ["apps"]).read()


def test_reading_rows_loads_no_framework() -> None:
    """Executors and the code location import these modules; torch alone costs a second."""
    modules = ["models.bundle_loader", "features.feature_vocabulary", "labels.training_rows"]
    program = (
        f"import sys, {', '.join(f'pipelines.steps.{name}' for name in modules)}\n"
        "heavy = {'torch', 'xgboost', 'sklearn', 'dagster', 'great_expectations'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_scoring_the_network_needs_no_scikit_learn() -> None:
    program = (
        "import sys, pipelines.steps.models.dnn_model, pipelines.steps.models.logistic_model\n"
        "print('sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
