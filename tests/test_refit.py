"""The refit: the settings found, learned anew from all rows but those kept for promotion."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression

from pipelines.steps.errors import TrainingError
from pipelines.steps.features.encoded_rows import count_matrix
from pipelines.steps.labels.training_rows import (
    LEFT_OUT,
    PROMOTION,
    TEST,
    TRAIN,
    VALIDATION,
    TrainingFiles,
    TrainingRows,
)
from pipelines.steps.models.dnn_model import EpochReport, TrainedDnn
from pipelines.steps.models.dnn_training import train_dnn
from pipelines.steps.models.logistic_model import LogisticConfig, refit_logistic, train_logistic
from pipelines.steps.models.xgboost_model import refit_xgboost, train_xgboost
from tests.test_dnn_model import SMALL, KilledError
from tests.test_xgboost_model import SIZES, simulated_rows
from tests.test_xgboost_model import SMALL as SMALL_TREES

ROWS = simulated_rows()
ALL_TRAIN = TrainingRows(ROWS.labels, np.full_like(ROWS.split, TRAIN), ROWS.bags)


def files_of(path: Path, labels: list[int], splits: list[int]) -> TrainingFiles:
    """Two row groups."""
    columns: Mapping[str, pa.Array] = {
        "label": pa.array(labels, pa.int8()),
        "split": pa.array(splits, pa.int8()),
        "apps": pa.array([[2]] * len(labels), pa.list_(pa.int32())),
    }
    pq.write_table(pa.table(columns), path, row_group_size=len(labels) // 2)
    return TrainingFiles([path], ["apps"])


def test_validation_and_test_rows_are_learned_from_and_promotion_rows_are_not(tmp_path: Path) -> None:
    splits = [TRAIN, VALIDATION, TEST, PROMOTION] * 2
    files = files_of(tmp_path / "rows.parquet", [0, 1] * 4, splits)
    refit = files.to_refit(1.0, seed=0)
    assert files.read().split.tolist() == splits
    assert refit.read().split.tolist() == [TRAIN, TRAIN, TRAIN, PROMOTION] * 2
    assert (refit.count(TRAIN), refit.count(VALIDATION), refit.labels(TRAIN).tolist()) == (
        6,
        0,
        [0, 1, 0, 0, 1, 0],
    )
    assert refit.fingerprint() != files.fingerprint()


def test_as_few_negatives_are_added_as_there_are_in_training(tmp_path: Path) -> None:
    """Else the added rows alone would be of another base rate."""
    rows = 4_000
    files = files_of(
        tmp_path / "rows.parquet", [0, 1] * (rows // 2), [TRAIN, TRAIN, VALIDATION, TEST] * 1_000
    )
    refit = files.to_refit(0.25, seed=1)
    split, labels = refit.read().split, refit.read().labels
    added = np.isin(files.read().split, (VALIDATION, TEST))
    assert (split[~added] == TRAIN).all()
    assert (split[added & (labels == 1)] == TRAIN).all()
    assert np.mean(split[added & (labels == 0)] == TRAIN) == pytest.approx(0.25, abs=0.04)
    assert set(split) == {TRAIN, LEFT_OUT}
    np.testing.assert_array_equal(files.to_refit(0.25, seed=1).read().split, split)
    assert (files.to_refit(0.25, seed=2).read().split != split).any()


def test_trees_grow_as_many_as_were_found_best_on_all_rows() -> None:
    found = train_xgboost(ROWS, SIZES, SMALL_TREES)
    grown = refit_xgboost(ALL_TRAIN, SIZES, found)
    assert grown.booster.num_boosted_rounds() == found.best_round == grown.best_round
    assert grown.config == found.config
    assert grown.weights() != found.weights()
    assert refit_xgboost(ROWS, SIZES, found).weights() == found.weights()  # the same rows, the same trees


def test_logistic_regression_is_fitted_to_all_rows_with_the_c_found() -> None:
    found = train_logistic(ROWS, SIZES, LogisticConfig(tol=1e-9))
    fitted = refit_logistic(ALL_TRAIN, SIZES, found)
    counts = count_matrix(ROWS.bags, SIZES).astype(np.float64)
    expected = LogisticRegression(C=found.chosen_c, tol=1e-9, max_iter=1_000).fit(counts, ROWS.labels)
    np.testing.assert_allclose(fitted.state["weights"][:, 0], expected.coef_[0], atol=1e-3)
    assert (fitted.chosen_c, fitted.chosen_token_penalty) == (found.chosen_c, found.chosen_token_penalty)


def refit_dnn(
    rows: TrainingRows, epochs: tuple[int, ...], told: list[EpochReport], checkpoint: Path | None = None
) -> TrainedDnn:
    def tell(report: EpochReport) -> None:
        if len(told) == 4:
            raise KilledError
        told.append(report)

    config = replace(SMALL, members=len(epochs), max_epochs=1, patience=1)
    return train_dnn(rows, SIZES, config, tell, checkpoint=checkpoint, epochs=epochs)


def test_each_network_is_trained_as_long_as_was_found_best() -> None:
    """Whatever settings say of epochs, and without a look at validation rows."""
    told: list[EpochReport] = []
    trained = refit_dnn(ALL_TRAIN, (1, 3), told)
    assert [(report.member, report.epoch) for report in told] == [(1, 1), (2, 1), (2, 2), (2, 3)]
    assert trained.best_epochs == (1, 3)
    assert str(told[0]) == f"member 1, epoch 1: train loss {told[0].train_loss:.4f}"
    validated = train_dnn(ROWS, SIZES, replace(SMALL, max_epochs=1))
    assert refit_dnn(ROWS, (1,), []).weights() == validated.weights()  # the same rows, the same weights


def test_a_refit_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    undisturbed, told = refit_dnn(ALL_TRAIN, (2, 2), []), list[EpochReport]()
    with pytest.raises(KilledError):
        refit_dnn(ALL_TRAIN, (2, 3), told, tmp_path / "dnn.pt")
    assert len(told) == 4
    assert refit_dnn(ALL_TRAIN, (2, 3), [], tmp_path / "dnn.pt").best_epochs == (2, 3)
    other = refit_dnn(ALL_TRAIN, (2, 2), [], tmp_path / "dnn.pt")  # of other numbers, from the beginning
    assert other.weights() == undisturbed.weights()


def test_rows_without_positives_are_refused() -> None:
    rows = TrainingRows(np.zeros_like(ROWS.labels), ALL_TRAIN.split, ROWS.bags)
    trees, logistic = train_xgboost(ROWS, SIZES, SMALL_TREES), train_logistic(ROWS, SIZES, LogisticConfig())
    with pytest.raises(TrainingError, match="split 'train' has no positives"):
        refit_xgboost(rows, SIZES, trees)
    with pytest.raises(TrainingError, match="split 'train' has no positives"):
        refit_logistic(rows, SIZES, logistic)
    with pytest.raises(TrainingError, match="split 'train' has no positives"):
        refit_dnn(rows, (1,), [])
