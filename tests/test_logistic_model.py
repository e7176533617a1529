"""Logistic regression: what torch scores must be what scikit-learn fitted."""

import numpy as np
import pytest
import torch
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
    trained = train_logistic(rows, SIZES, LogisticConfig())
    train, test = rows.subset(TRAIN), rows.subset(TEST)
    reference = LogisticRegression(C=trained.chosen_c, tol=1e-5, max_iter=1_000).fit(
        count_matrix(train.bags, SIZES).astype(np.float64), train.labels
    )
    expected = reference.predict_proba(count_matrix(test.bags, SIZES).astype(np.float64))[:, 1]
    np.testing.assert_allclose(torch_probabilities(trained, test), expected, rtol=0, atol=1e-6)


def test_a_token_held_twice_counts_twice() -> None:
    net = LogisticNet([4])
    net.load_state_dict({"weights": torch.tensor([[0.0], [0.0], [1.5], [-1.0]]), "bias": torch.tensor([0.5])})
    bags = to_tensors({"apps": Ragged.from_lists([[2, 2, 3], [0]])}, {"apps": 4})
    assert net(bags).tolist() == [2.5, 0.5]


def test_validation_chooses_c() -> None:
    trained = train_logistic(simulated_rows(), SIZES, LogisticConfig(metric="auc"))
    assert list(trained.validation_metric) == [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
    assert trained.validation_metric[trained.chosen_c] == max(trained.validation_metric.values()) > 0.65


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
    assert trained.validation_metric[trained.chosen_c] == max(trained.validation_metric.values())
    assert trained.validation_metric != by_auc.validation_metric
