"""Logistic regression: what torch scores must be what scikit-learn fitted."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from pipelines.steps.errors import TrainingError
from pipelines.steps.features.encoded_rows import Ragged, count_matrix
from pipelines.steps.labels.training_rows import TEST, TRAIN, TrainingRows
from pipelines.steps.models.dnn_batches import to_tensors
from pipelines.steps.models.logistic_model import LogisticConfig, LogisticNet, TrainedLogistic, train_logistic

SIZES = {"apps": 6, "model": 4}


def simulated_rows(rows: int = 600) -> TrainingRows:
    """App 2 makes a positive likely; models say nothing. Splits take turns."""
    random = np.random.default_rng(0)
    apps = [random.integers(1, 6, size=random.integers(1, 5)).tolist() for _ in range(rows)]
    labels = [float(random.random() < (0.8 if 2 in row else 0.2)) for row in apps]
    return TrainingRows(
        np.asarray(labels, dtype=np.float32),
        np.asarray([row % 3 for row in range(rows)], dtype=np.int8),
        {
            "apps": Ragged.from_lists(apps),
            "model": Ragged.from_lists([[row % 4] for row in range(rows)]),
        },
    )


def torch_probabilities(trained: TrainedLogistic, rows: TrainingRows) -> np.ndarray:
    net = LogisticNet(list(SIZES.values()))
    net.load_state_dict(dict(trained.state))
    with torch.inference_mode():
        return torch.sigmoid(net(to_tensors(rows.bags, SIZES))).numpy()


def test_torch_scores_what_scikit_learn_fitted() -> None:
    rows = simulated_rows()
    trained = train_logistic(rows, SIZES, LogisticConfig(tol=1e-9))
    train, test = rows.subset(TRAIN), rows.subset(TEST)
    reference = LogisticRegression(C=trained.chosen_c, tol=1e-9, max_iter=1_000).fit(
        count_matrix(train.bags, SIZES).astype(np.float64), train.labels
    )
    expected = reference.predict_proba(count_matrix(test.bags, SIZES).astype(np.float64))[:, 1]
    np.testing.assert_allclose(
        torch_probabilities(trained, test), expected, rtol=0, atol=1e-4
    )  # what the fit's tolerance leaves


def test_a_token_held_twice_counts_twice() -> None:
    net = LogisticNet([4])
    net.load_state_dict({"weights": torch.tensor([[0.0], [0.0], [1.5], [-1.0]]), "bias": torch.tensor([0.5])})
    bags = to_tensors({"apps": Ragged.from_lists([[2, 2, 3], [0]])}, {"apps": 4})
    assert net(bags).tolist() == [2.5, 0.5]


def test_validation_chooses_c() -> None:
    trained = train_logistic(simulated_rows(), SIZES, LogisticConfig(metric="auc"))
    tried = [c for c, _ in trained.validation_metric]
    assert tried == list(LogisticConfig().C)[: len(tried)]
    assert trained.validation_metric[trained.chosen_c, 1.0] == max(trained.validation_metric.values()) > 0.65


def test_training_twice_gives_equal_weights() -> None:
    first = train_logistic(simulated_rows(), SIZES, LogisticConfig())
    second = train_logistic(simulated_rows(), SIZES, LogisticConfig())
    assert first.weights() == second.weights()


def test_no_c_to_try_is_refused() -> None:
    with pytest.raises(TrainingError, match="no C to try"):
        train_logistic(simulated_rows(), SIZES, LogisticConfig(C=()))


def test_untrainable_rows_are_refused() -> None:
    rows = simulated_rows()
    with pytest.raises(TrainingError, match="'train' has no positives"):
        train_logistic(
            TrainingRows(np.zeros_like(rows.labels), rows.split, rows.bags), SIZES, LogisticConfig()
        )


def test_the_metric_named_chooses_c() -> None:
    trained = train_logistic(simulated_rows(), SIZES, LogisticConfig(metric="average_precision"))
    by_auc = train_logistic(simulated_rows(), SIZES, LogisticConfig(metric="auc"))
    assert trained.validation_metric[trained.chosen_c, 1.0] == max(trained.validation_metric.values())
    assert trained.validation_metric != by_auc.validation_metric


# --- tokens beside behaviour ------------------------------------------------------------------------

BESIDE = {"apps": 6, "behaviour": 4}


def rows_beside_behaviour() -> TrainingRows:
    rows = simulated_rows()
    return TrainingRows(rows.labels, rows.split, {"apps": rows.bags["apps"], "behaviour": rows.bags["model"]})


def trained_with(*penalties: float) -> TrainedLogistic:
    config = LogisticConfig(C=(0.01,), token_penalty=penalties)
    columns = sparse.eye_array(sum(BESIDE.values()), format="csr")
    return train_logistic(rows_beside_behaviour(), BESIDE, config, columns)


def test_a_penalty_of_tokens_leaves_the_weights_of_behaviour() -> None:
    plain, heavy = (trained_with(penalty).state["weights"].abs().squeeze() for penalty in (1.0, 100.0))

    assert (heavy[:6] < plain[:6] / 5)[2]  # the app that tells
    assert heavy[6:].max() > plain[6:].max() / 2


def test_validation_chooses_the_penalty_of_tokens() -> None:
    trained = trained_with(10_000.0, 1.0)

    assert list(trained.validation_metric) == [(0.01, 10_000.0), (0.01, 1.0)]
    assert trained.chosen_token_penalty == max(trained.validation_metric.items(), key=lambda kv: kv[1])[0][1]
    assert np.array_equal(
        trained.state["weights"], trained_with(trained.chosen_token_penalty).state["weights"]
    )


def test_without_behaviour_no_penalty_is_tried() -> None:
    trained = train_logistic(simulated_rows(), SIZES, LogisticConfig(C=(0.01,)))
    assert list(trained.validation_metric) == [(0.01, 1.0)]


def test_a_c_past_the_best_ends_the_search() -> None:
    rows = simulated_rows()
    rows = TrainingRows(np.roll(rows.labels, 1), rows.split, rows.bags)  # nothing to learn
    path = list(train_logistic(rows, SIZES, LogisticConfig()).validation_metric.values())
    falls = [later < earlier for earlier, later in pairwise(path)]
    assert len(path) == len(LogisticConfig().C) or (falls[-1] and falls[-2])
    assert (True, True) not in list(pairwise(falls))[:-1]
