"""Gradient-boosted trees on token counts: the baseline that the network has to beat, at full strength."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xgboost

from pipelines.steps.config.defaults import XGBOOST_TRIALS
from pipelines.steps.errors import BundleError
from pipelines.steps.features.encoded_rows import EncodedRows
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.labels.training_rows import (
    TRAIN,
    VALIDATION,
    TrainingRows,
    check_trainable,
    check_vocabulary,
)
from pipelines.steps.models.bundle import NO_MEMBERS, BundleManifest, Scorer, check_rows, require_architecture
from pipelines.steps.models.model_columns import matrix_of, ordinal_columns
from pipelines.steps.progress import Work, beating

if TYPE_CHECKING:
    from scipy import sparse

logger = logging.getLogger(__name__)
XGBOOST_ARCHITECTURES = ("boosted_trees",)
"""The trees carry their own shape, so there is nothing to build."""


@dataclass(frozen=True)
class XGBoostConfig:
    """Settings of the trees, by XGBoost's own names.

    Attributes:
        num_boost_round: Trees at most; of a trial, when tuned.
        patience: Trees without gain in validation AUC after which growing stops.
        learning_rate: Weight of each new tree.
        max_depth: Depth of a tree.
        min_child_weight: Hessian that a leaf needs; keeps leaves off single rare rows.
        reg_lambda: L2 regularization of the leaves' weights.
        subsample: Share of the rows each tree sees.
        colsample_bytree: Share of the tokens each tree sees.
        threads: Threads to train with. One by default: on a busy machine more of them wait for each
            other (measured on 2 shared cores: 14 s with one, 99 s with two); raise it on an idle one.
        seed: Everything random follows from it.
    """

    num_boost_round: int = 500
    patience: int = 30
    learning_rate: float = 0.1
    max_depth: int = 6
    min_child_weight: float = 2.0
    reg_lambda: float = 2.0
    subsample: float = 0.8
    colsample_bytree: float = 0.3
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True)
class TrainedXGBoost:
    """The trees up to the best round.

    Attributes:
        booster: The trees, cut after the best round.
        config: What they were grown with.
        validation_auc: Validation AUC after each round, the ones cut off included.
        best_round: Number of trees kept.
    """

    booster: xgboost.Booster
    config: XGBoostConfig
    validation_auc: tuple[float, ...]
    best_round: int

    engine = "xgboost"
    weights_file = "model.ubj"
    members = NO_MEMBERS

    @property
    def best_auc(self) -> float:
        """Validation AUC of the trees kept."""
        return self.validation_auc[self.best_round - 1]

    @property
    def was_cut_short(self) -> bool:
        """Whether `num_boost_round` ended the growing before its patience did."""
        return len(self.validation_auc) - self.best_round < self.config.patience

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


PASSED_THROUGH = (
    "learning_rate", "max_depth", "min_child_weight", "reg_lambda", "subsample", "colsample_bytree", "seed"
)  # fmt: skip
"""The settings that are XGBoost's own parameters."""
TRIALS: tuple[Mapping[str, Any], ...] = (
    {},
    {"max_depth": 10, "min_child_weight": 5.0},
    {"max_depth": 4, "colsample_bytree": 0.6},
    {"max_depth": 8, "colsample_bytree": 0.6, "min_child_weight": 5.0, "reg_lambda": 5.0},
    {"max_depth": 6, "colsample_bytree": 1.0, "subsample": 1.0, "reg_lambda": 10.0},
    {"max_depth": 12, "colsample_bytree": 0.2, "min_child_weight": 10.0},
    {"max_depth": 3, "colsample_bytree": 1.0, "learning_rate": 0.2},
    {"max_depth": 8, "colsample_bytree": 0.3, "learning_rate": 0.05, "min_child_weight": 1.0},
)
"""What tuning tries, in this order: depth, width and regularization from the shy to the bold."""
GROWN_FURTHER = 4
"""Times the rounds of a trial that the best setting may grow to where it still gained at their end: the limit
of a trial must not weaken the baseline (hotel_bookings: 517 trees, though they gain but 0.0001)."""


@dataclass(frozen=True)
class Trial:
    """One setting that was tried: the changes to the config, its best validation AUC and number of trees."""

    number: int
    changes: Mapping[str, Any]
    validation_auc: float
    best_round: int

    def __str__(self) -> str:
        return (
            f"trial {self.number}: {dict(self.changes) or 'as configured'}: {self.best_round} trees, "
            f"validation AUC {self.validation_auc:.4f}"
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
        trial = Trial(number, changes, grown.best_auc, grown.best_round)
        logger.info("%s, %.1f s", trial, work.seconds)
        progress(trial)
        return grown

    tried = [grow(number, changes) for number, changes in enumerate(TRIALS[: max(1, trials)], start=1)]
    number, best = max(enumerate(tried, start=1), key=lambda trial: trial[1].best_auc)  # the first of equals
    if best.was_cut_short:
        rounds = GROWN_FURTHER * best.config.num_boost_round
        best = grow(number, {**TRIALS[number - 1], "num_boost_round": rounds})
    logger.info(
        "trial %d is the best of %d: %d trees, AUC %.4f", number, len(tried), best.best_round, best.best_auc
    )
    return best


def train_xgboost(
    rows: TrainingRows,
    vocabulary_sizes: Mapping[str, int],
    config: XGBoostConfig,
    columns: "sparse.csr_matrix | None" = None,
) -> TrainedXGBoost:
    """Grows trees on the TRAIN rows until the VALIDATION rows are ranked no better.

    Args:
        rows: All splits; TEST is never read.
        vocabulary_sizes: Field name → number of ids.
        config: How they grow.
        columns: The vocabulary's `ordinal_columns`; None: a column per id.

    Raises:
        TrainingError: The rows are not trainable.
    """
    check_trainable(rows, splits=(TRAIN, VALIDATION))
    check_vocabulary(rows.bags, vocabulary_sizes)
    train, validation = rows.subset(TRAIN), rows.subset(VALIDATION)
    curves: dict[str, dict[str, list[float]]] = {}
    grown = xgboost.train(
        _parameters(config),
        _matrix(train, vocabulary_sizes, config, columns),
        num_boost_round=config.num_boost_round,
        evals=[(_matrix(validation, vocabulary_sizes, config, columns), "validation")],
        early_stopping_rounds=config.patience,
        evals_result=curves,
        verbose_eval=False,
    )
    best_round = grown.best_iteration + 1
    return TrainedXGBoost(grown[:best_round], config, tuple(curves["validation"]["auc"]), best_round)


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


def _parameters(config: XGBoostConfig) -> dict[str, object]:
    return {
        "objective": "binary:logistic",
        "eval_metric": "auc",
        "tree_method": "hist",
        "nthread": config.threads,
        **{name: getattr(config, name) for name in PASSED_THROUGH},
    }


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
