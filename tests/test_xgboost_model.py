"""Boosted trees: they learn, stop in time, and are the same for the same seed."""

from dataclasses import replace

import numpy as np
import pytest
import xgboost

from pipelines.steps.config.defaults import XGBOOST_TRIALS
from pipelines.steps.config.metric import PrecisionAt
from pipelines.steps.errors import TrainingError
from pipelines.steps.features.encoded_rows import Ragged, count_matrix
from pipelines.steps.features.feature_vocabulary import FieldVocabulary
from pipelines.steps.labels.training_rows import TRAIN, VALIDATION, TrainingRows
from pipelines.steps.models.model_columns import ordinal_columns
from pipelines.steps.models.ranking import measure
from pipelines.steps.models.xgboost_model import TRIALS, Trial, XGBoostConfig, train_xgboost, tune_xgboost

SIZES = {"apps": 6, "model": 4}
SMALL = XGBoostConfig(num_boost_round=60, patience=5, colsample_bytree=1.0)


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


def test_trees_learn_what_the_rows_tell() -> None:
    trained = train_xgboost(simulated_rows(), SIZES, SMALL)
    assert max(trained.validation_metric) > 0.65


def test_early_stopping_keeps_the_trees_up_to_the_best_round() -> None:
    trained = train_xgboost(simulated_rows(), SIZES, SMALL)
    assert trained.best_round == int(np.argmin(trained.validation_loss)) + 1
    assert trained.booster.num_boosted_rounds() == trained.best_round
    assert len(trained.validation_metric) == trained.best_round + 5 < 60


def test_a_leaf_needs_as_many_rows_however_rare_positives_are() -> None:
    rows = simulated_rows()
    rare = np.where((np.cumsum(rows.labels) % 10 == 0), rows.labels, 0).astype(np.float32)
    needy = replace(SMALL, min_child_weight=5.0)

    for labels in (rows.labels, rare):
        trained = train_xgboost(TrainingRows(labels, rows.split, rows.bags), SIZES, needy)
        assert trained.booster.get_score(importance_type="weight"), labels.mean()


def test_the_best_setting_grows_on_where_a_trial_ended_it() -> None:
    told: list[Trial] = []
    tuned = tune_xgboost(simulated_rows(), SIZES, replace(SMALL, num_boost_round=3), told.append, trials=2)
    assert [(trial.number, trial.changes.get("num_boost_round")) for trial in told[:2]] == [
        (1, None),
        (2, None),
    ]
    assert told[2].changes["num_boost_round"] == tuned.config.num_boost_round == 12
    assert tuned.best_round > 3
    for trial in TRIALS[:2]:
        short = train_xgboost(simulated_rows(), SIZES, replace(SMALL, num_boost_round=3, **trial))
        assert min(tuned.validation_loss) < min(short.validation_loss)


def test_a_setting_that_ended_by_itself_is_not_grown_again() -> None:
    told: list[Trial] = []
    tuned = tune_xgboost(simulated_rows(), SIZES, SMALL, told.append, trials=2)
    assert not tuned.was_cut_short
    assert len(told) == 2


def test_training_twice_gives_equal_trees() -> None:
    first = train_xgboost(simulated_rows(), SIZES, SMALL)
    second = train_xgboost(simulated_rows(), SIZES, SMALL)
    assert first.weights() == second.weights()


def test_weights_are_ubjson_that_xgboost_reads_back() -> None:
    trained = train_xgboost(simulated_rows(), SIZES, SMALL)
    again = xgboost.Booster()
    again.load_model(bytearray(trained.weights()))
    rows = xgboost.DMatrix(count_matrix(simulated_rows().subset(VALIDATION).bags, SIZES))
    np.testing.assert_array_equal(again.predict(rows), trained.booster.predict(rows))


def test_untrainable_rows_are_refused() -> None:
    rows = simulated_rows()
    labels = np.where(rows.split == TRAIN, np.float32(1), rows.labels)
    with pytest.raises(TrainingError, match="'train' has only one class"):
        train_xgboost(TrainingRows(labels, rows.split, rows.bags), SIZES, SMALL)


def test_the_metric_named_is_measured_on_the_validation_rows() -> None:
    validation = simulated_rows().subset(VALIDATION)
    for metric in ("average_precision", PrecisionAt(precision_at=0.1)):
        trained = train_xgboost(simulated_rows(), SIZES, replace(SMALL, metric=metric))
        found = trained.booster.predict(xgboost.DMatrix(count_matrix(validation.bags, SIZES)))
        assert trained.best_metric == pytest.approx(measure(metric, validation.labels, found))
        assert trained.best_metric == trained.validation_metric[trained.best_round - 1]


@pytest.mark.parametrize(("sign", "learns"), [(1, True), (-1, False)])
def test_a_column_may_be_held_to_one_direction(sign: int, learns: bool) -> None:
    """The more often a row holds app 2, the likelier a positive."""
    times = np.tile([1, 2, 3, 4], 150)
    labels = (np.random.default_rng(0).random(600) < times / 5).astype(np.float32)
    split = np.arange(600) % 3
    rows = TrainingRows(labels, split.astype(np.int8), {"apps": Ragged.from_lists([[2] * n for n in times])})
    config = replace(SMALL, monotone_constraints=((2, sign),))
    trained = train_xgboost(rows, {"apps": 3}, config)
    scores = trained.booster.inplace_predict(
        count_matrix({"apps": Ragged.from_lists([[2], [2] * 4])}, {"apps": 3})
    )
    assert (scores[1] > scores[0]) is np.bool_(learns)


def test_behaviours_that_go_with_the_label_may_be_held_to_their_direction() -> None:
    """`often` goes with it and `late` against it; `apart` says nothing, and tokens are never held."""
    names, codes = ("often", "late", "apart"), (0, 1, 2, 3)
    tokens = tuple(f"{name}={code}" for name in names for code in codes)
    fields = (
        FieldVocabulary("apps", 1, ("a",)),
        FieldVocabulary("behaviour", 1, tokens),
    )
    random, rows = np.random.default_rng(0), 2_400
    chosen = random.integers(0, 4, (rows, 3))
    labels = (random.random(rows) < 0.35 + 0.15 * chosen[:, 0] - 0.1 * chosen[:, 1]).astype(np.float32)
    ids = chosen + 2 + 4 * np.arange(3)
    given = TrainingRows(
        labels,
        (np.arange(rows) % 3).astype(np.int8),
        {"apps": Ragged.from_lists([[2]] * rows), "behaviour": Ragged.from_lists(ids.tolist())},
    )
    sizes = {field.name: field.size for field in fields}
    trained = train_xgboost(given, sizes, replace(SMALL, monotone_behaviour=True), ordinal_columns(fields))
    assert trained.config.monotone_constraints == ((3, 1), (4, -1))


@pytest.mark.parametrize("constraint", [(10, 1), (-1, 1), (0, 2)])
def test_a_constraint_of_no_column_or_no_direction_is_refused(constraint: tuple[int, int]) -> None:
    with pytest.raises(TrainingError, match=r"(?s)cannot be constrained.*a column from 0 to 9, and 1 or -1"):
        train_xgboost(simulated_rows(), SIZES, replace(SMALL, monotone_constraints=(constraint,)))


def test_both_shallow_and_deep_trees_are_tried_within_the_budget() -> None:
    tried = [trial.get("max_depth", XGBoostConfig().max_depth) for trial in TRIALS[:XGBOOST_TRIALS]]
    assert sorted(tried) == [2, 3, 5, 6, 8, 10]
