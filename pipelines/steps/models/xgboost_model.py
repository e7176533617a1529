"""Gradient-boosted trees on token counts: the baseline that the network has to beat, at full strength."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xgboost

from pipelines.steps.config.defaults import XGBOOST_TRIALS
from pipelines.steps.config.metric import DEFAULT_METRIC, Metric
from pipelines.steps.errors import BundleError, TrainingError
from pipelines.steps.features.encoded_rows import EncodedRows
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.labels.training_rows import (
    TRAIN,
    VALIDATION,
    TrainingRows,
    checked_splits,
)
from pipelines.steps.models.bundle import NO_MEMBERS, BundleManifest, Scorer, check_rows, require_architecture
from pipelines.steps.models.model_columns import matrix_of, ordinal_columns
from pipelines.steps.models.ranking import measure
from pipelines.steps.progress import Work, beating

if TYPE_CHECKING:
    from scipy import sparse

logger = logging.getLogger(__name__)
METRIC, LOSS = "metric", "logloss"
"""The names that XGBoost knows the metric and the loss by."""
XGBOOST_ARCHITECTURES = ("boosted_trees",)
"""The trees carry their own shape, so there is nothing to build."""


@dataclass(frozen=True)
class XGBoostConfig:
    """Settings of the trees, by XGBoost's own names.

    Attributes:
        num_boost_round: Trees at most; of a trial, when tuned.
        metric: Of the VALIDATION rows; it chooses among the trials.
        patience: Trees without gain in the log-loss of the VALIDATION rows after which growing stops. With
            few positives a metric of ranks is best by luck after a handful of trees: on 4% of 1,600 rows, AUC
            stopped at 7 of them, which cost .01 AUC and .06 average precision on a later day.
        learning_rate: Weight of each new tree.
        max_depth: Depth of a tree.
        min_child_weight: Hessian that a leaf needs where half of the rows are positive, and in proportion
            to p(1 - p) elsewhere, so that it stays a number of rows; keeps leaves off single rare rows.
        reg_lambda: L2 regularization of the leaves' weights.
        subsample: Share of the rows each tree sees.
        colsample_bytree: Share of the tokens each tree sees.
        monotone_constraints: (Column, 1 or -1): where more of the column may only raise, or only lower, a
            device's rank. Columns are numbered as the matrix has them; none is constrained by default.
        monotone_behaviour: Whether each column of behaviour is constrained, to the direction in which it goes
            with the label on the TRAIN rows where it surely does; needs no `monotone_constraints`.
        threads: Threads to train with. One by default: on a busy machine more of them wait for each
            other (measured on 2 shared cores: 14 s with one, 99 s with two); raise it on an idle one.
        seed: Everything random follows from it.
    """

    num_boost_round: int = 500
    metric: Metric = DEFAULT_METRIC
    patience: int = 30
    learning_rate: float = 0.1
    max_depth: int = 6
    min_child_weight: float = 2.0
    reg_lambda: float = 2.0
    subsample: float = 0.8
    colsample_bytree: float = 0.3
    monotone_constraints: tuple[tuple[int, int], ...] = ()
    monotone_behaviour: bool = False
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True)
class TrainedXGBoost:
    """The trees up to the best round.

    Attributes:
        booster: The trees, cut after the best round.
        config: What they were grown with.
        validation_metric: The config's metric after each round, the ones cut off included.
        validation_loss: The log-loss likewise.
        best_round: Number of trees kept, those with the lowest log-loss.
    """

    booster: xgboost.Booster
    config: XGBoostConfig
    validation_metric: tuple[float, ...]
    validation_loss: tuple[float, ...]
    best_round: int

    engine = "xgboost"
    weights_file = "model.ubj"
    members = NO_MEMBERS

    @property
    def best_metric(self) -> float:
        """The validation metric of the trees kept."""
        return self.validation_metric[self.best_round - 1]

    @property
    def was_cut_short(self) -> bool:
        """Whether `num_boost_round` ended the growing before its patience did."""
        return len(self.validation_metric) - self.best_round < self.config.patience

    @property
    def architecture(self) -> dict[str, object]:
        """Name and parameters for a bundle's manifest; the trees carry the rest."""
        return {
            "name": "boosted_trees",
            "trees": self.best_round,
            "max_depth": self.config.max_depth,
            "learning_rate": self.config.learning_rate,
        }

    def weights(self) -> bytes:
        """The content of model.ubj."""
        return bytes(self.booster.save_raw(raw_format="ubj"))


PASSED_THROUGH = ("learning_rate", "max_depth", "reg_lambda", "subsample", "colsample_bytree", "seed")
"""The settings that are XGBoost's own parameters."""
_SLOW: Mapping[str, Any] = {
    "max_depth": 5,
    "learning_rate": 0.03,
    "min_child_weight": 30.0,
    "reg_lambda": 10.0,
    "subsample": 0.6,
    "colsample_bytree": 0.2,
}
TRIALS: tuple[Mapping[str, Any], ...] = (
    {},
    {"max_depth": 10, "min_child_weight": 5.0},
    _SLOW,
    {"max_depth": 8, "min_child_weight": 5.0, "reg_lambda": 5.0, "colsample_bytree": 0.6},
    {
        "max_depth": 3,
        "learning_rate": 0.05,
        "min_child_weight": 20.0,
        "reg_lambda": 10.0,
        "colsample_bytree": 0.5,
    },
    {
        "max_depth": 2,
        "learning_rate": 0.08,
        "min_child_weight": 10.0,
        "reg_lambda": 5.0,
        "colsample_bytree": 0.5,
    },
    {**_SLOW, "monotone_behaviour": True},
    {"max_depth": 6, "reg_lambda": 10.0, "subsample": 1.0, "colsample_bytree": 1.0},
    {"max_depth": 12, "min_child_weight": 10.0, "colsample_bytree": 0.2},
)
"""The settings that tuning tries, in this order. The shallow ones are for few devices: with them, a later day
in training gained .005 of AUC and .009 of precision in the top tenth on a shop's and a grocer's log (2,300 to
4,000). The monotone one differs from the third by it alone, which on these days gained -.003, 0 and .002 of
AUC; so a search of the usual length does without it."""
SURELY_CHANCE = 1e-3
"""The probability of a correlation by chance below which it is believed: some eighty are looked at."""
GROWN_FURTHER = 4
"""Times the rounds of a trial that the best setting may grow to where it still gained at their end: the limit
of a trial must not weaken the baseline (hotel_bookings: 517 trees, though they gain but 0.0001)."""


@dataclass(frozen=True)
class Trial:
    """One setting that was tried: changes to the config, its best validation metric and number of trees."""

    number: int
    changes: Mapping[str, Any]
    validation_metric: float
    best_round: int

    def __str__(self) -> str:
        return (
            f"trial {self.number}: {dict(self.changes) or 'as configured'}: {self.best_round} trees, "
            f"validation metric {self.validation_metric:.4f}"
        )


def tune_xgboost(
    rows: TrainingRows,
    vocabulary_sizes: Mapping[str, int],
    config: XGBoostConfig,
    progress: Callable[[Trial], None] = lambda _: None,
    *,
    trials: int = XGBOOST_TRIALS,
    columns: "sparse.csr_matrix | None" = None,
) -> TrainedXGBoost:
    """The best, on the VALIDATION rows, of the first so many settings of TRIALS, grown as far as it gains.

    Args:
        rows: All splits; TEST is never read.
        vocabulary_sizes: Field name → number of ids.
        config: What each trial changes.
        progress: Called after every trial; the log tells of each by itself.
        trials: The budget; 1 is no tuning.
        columns: See `train_xgboost`.

    Raises:
        TrainingError: The rows are not trainable.
    """

    def grow(number: int, changes: Mapping[str, Any]) -> TrainedXGBoost:
        with beating(Work(f"growing the trees of trial {number} of {trials}")) as work:
            grown = train_xgboost(rows, vocabulary_sizes, replace(config, **changes), columns)
        trial = Trial(number, changes, grown.best_metric, grown.best_round)
        logger.info("%s, %.1f s", trial, work.seconds)
        progress(trial)
        return grown

    tried = [grow(number, changes) for number, changes in enumerate(TRIALS[: max(1, trials)], start=1)]
    # max: the first of equals
    number, best = max(enumerate(tried, start=1), key=lambda trial: trial[1].best_metric)
    if best.was_cut_short:
        rounds = GROWN_FURTHER * best.config.num_boost_round
        best = grow(number, {**TRIALS[number - 1], "num_boost_round": rounds})
    logger.info(
        "trial %d is the best of %d: %d trees, %s %.4f",
        *(number, len(tried), best.best_round, config.metric, best.best_metric),
    )
    return best


def train_xgboost(
    rows: TrainingRows,
    vocabulary_sizes: Mapping[str, int],
    config: XGBoostConfig,
    columns: "sparse.csr_matrix | None" = None,
) -> TrainedXGBoost:
    """Grows trees on the TRAIN rows until the log-loss of the VALIDATION rows falls no further.

    Args:
        rows: All splits; TEST is never read.
        vocabulary_sizes: Field name → number of ids.
        config: How they grow.
        columns: The vocabulary's `ordinal_columns`; None: a column per id.

    Raises:
        TrainingError: The rows are not trainable.
    """
    train, validation = checked_splits(rows, vocabulary_sizes, (TRAIN, VALIDATION))
    if config.monotone_behaviour and columns is not None:
        config = replace(config, monotone_constraints=_directions(train, vocabulary_sizes, columns))
    curves: dict[str, dict[str, list[float]]] = {}
    matrix = _matrix(train, vocabulary_sizes, config, columns)
    grown = xgboost.train(
        _parameters(config, matrix.num_col(), float(train.labels.mean())),
        matrix,
        num_boost_round=config.num_boost_round,
        evals=[(_matrix(validation, vocabulary_sizes, config, columns), "validation")],
        custom_metric=_metric_of(config.metric),
        callbacks=[xgboost.callback.EarlyStopping(rounds=config.patience, metric_name=LOSS, maximize=False)],
        evals_result=curves,
        verbose_eval=False,
    )
    best_round = grown.best_iteration + 1
    told = curves["validation"]
    return TrainedXGBoost(grown[:best_round], config, tuple(told[METRIC]), tuple(told[LOSS]), best_round)


def refit_xgboost(
    rows: TrainingRows,
    vocabulary_sizes: Mapping[str, int],
    found: TrainedXGBoost,
    columns: "sparse.csr_matrix | None" = None,
) -> TrainedXGBoost:
    """Grows as many trees as were found best, on more rows.

    Args:
        rows: Only TRAIN rows are read.
        vocabulary_sizes: As for `train_xgboost`.
        found: Its settings and number of trees.
        columns: As there.

    Raises:
        TrainingError: The rows are not trainable.
    """
    [train] = checked_splits(rows, vocabulary_sizes, (TRAIN,))
    with beating(Work(f"growing {found.best_round} trees on all {train.rows} rows")) as work:
        matrix = _matrix(train, vocabulary_sizes, found.config, columns)
        parameters = _parameters(found.config, matrix.num_col(), float(train.labels.mean()))
        grown = xgboost.train(parameters, matrix, num_boost_round=found.best_round)
    logger.info("%d trees grown on all %d rows, %.1f s", found.best_round, train.rows, work.seconds)
    return replace(found, booster=grown)


def _matrix(
    rows: TrainingRows,
    vocabulary_sizes: Mapping[str, int],
    config: XGBoostConfig,
    columns: "sparse.csr_matrix | None",
) -> xgboost.DMatrix:
    # An absent token is XGBoost's "missing".
    return xgboost.DMatrix(
        matrix_of(rows.bags, vocabulary_sizes, columns), label=rows.labels, nthread=config.threads
    )


def _metric_of(metric: Metric) -> Callable[[np.ndarray, xgboost.DMatrix], tuple[str, float]]:
    """The function that XGBoost calls after every tree."""

    def of(probabilities: np.ndarray, rows: xgboost.DMatrix) -> tuple[str, float]:
        return METRIC, measure(metric, rows.get_label(), probabilities)

    return of


def _parameters(config: XGBoostConfig, columns: int, base_rate: float) -> dict[str, object]:
    return {
        "objective": "binary:logistic",
        "eval_metric": LOSS,
        "min_child_weight": config.min_child_weight * 4 * base_rate * (1 - base_rate),
        "tree_method": "hist",
        "nthread": config.threads,
        **{name: getattr(config, name) for name in PASSED_THROUGH},
        **_monotone(config.monotone_constraints, columns),
    }


def _directions(
    rows: TrainingRows, vocabulary_sizes: Mapping[str, int], columns: "sparse.csr_matrix"
) -> tuple[tuple[int, int], ...]:
    """(Column, 1 or -1) of each behaviour whose rank correlation with the label is no chance."""
    from scipy.stats import spearmanr

    of_ids = np.diff(columns.tocsc().indptr)  # a token's column is of one id
    matrix = matrix_of(rows.bags, vocabulary_sizes, columns).tocsc()
    found = []
    for column in np.flatnonzero(of_ids > 1).tolist():
        values = matrix[:, [column]].toarray()[:, 0]
        if values.min() < values.max():
            correlation, chance = spearmanr(values, rows.labels)
            if chance < SURELY_CHANCE:
                found.append((column, 1 if correlation > 0 else -1))
    return tuple(found)


def _monotone(constraints: Sequence[tuple[int, int]], columns: int) -> dict[str, object]:
    """XGBoost's own parameter, a sign for every column; nothing where none is constrained."""
    if not constraints:
        return {}
    signs = [0] * columns
    for column, sign in constraints:
        if not 0 <= column < columns or sign not in (-1, 1):
            raise TrainingError(
                "the trees cannot be constrained so",
                found=f"monotone_constraints ({column}, {sign})",
                expected=f"a column from 0 to {columns - 1}, and 1 or -1",
                remedy="correct monotone_constraints",
            )
        signs[column] = sign
    return {"monotone_constraints": tuple(signs)}


class XGBoostScorer:
    """Scores with XGBoost; a tree's answer never depends on other rows."""

    def __init__(self, manifest: BundleManifest, vocabulary: Vocabulary, booster: xgboost.Booster) -> None:
        self.manifest = manifest
        self.vocabulary = vocabulary
        self._booster = booster
        # not Vocabulary.sizes: the manifest's fields are what the columns were numbered by
        self._sizes = {field.name: field.vocabulary_size for field in manifest.fields}
        self._columns = bundle_columns(manifest, vocabulary)

    def score(self, rows: EncodedRows) -> np.ndarray:
        """float32 probabilities [rows]; a row's value does not depend on the rows around it."""
        count = check_rows(rows, self.manifest)
        if not count:
            return np.empty(0, dtype=np.float32)
        scores = self._booster.inplace_predict(matrix_of(rows, self._sizes, self._columns))
        return np.asarray(scores, dtype=np.float32)


def bundle_columns(manifest: BundleManifest, vocabulary: Vocabulary) -> "sparse.csr_matrix | None":
    """The columns that trees of such a bundle read; None where there is one per id."""
    return ordinal_columns(vocabulary.only([field.name for field in manifest.fields]).fields)


def load_xgboost(weights: Path, manifest: BundleManifest, vocabulary: Vocabulary, threads: int) -> Scorer:
    """Reads the trees.

    Raises:
        BundleError: The architecture is unknown, or the trees are not over these ids.
    """
    require_architecture(XGBOOST_ARCHITECTURES, weights, manifest)
    try:
        booster = xgboost.Booster({"nthread": threads}, model_file=weights)
    except xgboost.core.XGBoostError as error:
        raise BundleError(
            f"the trees {weights} cannot be read",
            found=str(error),
            expected="a model that XGBoost wrote as UBJSON",
            remedy="restore the bundle, or train again",
        ) from error
    matrix = bundle_columns(manifest, vocabulary)
    columns = sum(f.vocabulary_size for f in manifest.fields) if matrix is None else matrix.shape[1]
    if booster.num_features() != columns:
        raise BundleError(
            f"the weights {weights} do not fit its architecture and vocabulary",
            found=f"trees over {booster.num_features()} columns",
            expected=f"{columns} columns, one per id and one per behaviour",
            remedy="restore the bundle, or train again",
        )
    return XGBoostScorer(manifest, vocabulary, booster)
