"""The gain by behaviour, for the demo's report: models trained again on the same rows, by tokens alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as pa

from pipelines.simulated_world.truth import rank_auc
from pipelines.steps.config.behaviour_names import is_behaviour
from pipelines.steps.features.encoded_rows import Ragged
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.labels.training_rows import TrainingRows
from pipelines.steps.models.bundle import Scorer, TrainedModel, write_bundle
from pipelines.steps.models.bundle_loader import load_bundle

QUICK_MODELS = ("xgboost", "logistic")
"""Trained again in seconds, each with one setting: the network takes minutes."""


@dataclass(frozen=True)
class BehaviourGain:
    """One model's AUC on a later day: trained on tokens alone, and as it is."""

    model: str
    tokens_only: float
    with_behaviour: float


def knows_behaviour(vocabulary: Vocabulary) -> bool:
    """Whether more than bare tokens is known of a device: behaviour, or what tokens weigh."""
    return any(is_behaviour(field.name) or field.weighted for field in vocabulary.fields)


def measure_gains(
    rows: TrainingRows,
    vocabulary: Vocabulary,
    scorers: Mapping[str, Scorer],
    later: pa.Table,
    converted: np.ndarray,
) -> list[BehaviourGain]:
    """Compares models with ones of bare tokens (no behaviour, no weights) on a later day.

    Args:
        rows: The training set, TRAIN and VALIDATION at least.
        vocabulary: It was encoded with it.
        scorers: The models as they are, of QUICK_MODELS.
        later: Feature tokens of the later day, every column of the vocabulary.
        converted: bool [rows of `later`], whether each converted within the horizon.
    """
    fields = [field for field in vocabulary.fields if not is_behaviour(field.name)]
    tokens = Vocabulary(tuple(replace(field, weighted=False) for field in fields))
    bags = [(field.name, rows.bags[field.name]) for field in fields]
    rows = replace(rows, bags={name: Ragged(bag.values, bag.offsets) for name, bag in bags})
    return [
        BehaviourGain(
            name,
            rank_auc(_score(_trainer(name)(rows, tokens.sizes), tokens, later), converted),
            rank_auc(scorer.score(scorer.vocabulary.encode(later)), converted),
        )
        for name, scorer in scorers.items()
    ]


def gains_table(gains: list[BehaviourGain]) -> str:
    """The gains in Markdown."""
    table = pd.DataFrame(
        [
            (gain.model, gain.tokens_only, gain.with_behaviour, gain.with_behaviour - gain.tokens_only)
            for gain in gains
        ],
        columns=["AUC", "tokens only", "with behaviour", "gain"],
    )
    return str(table.to_markdown(index=False, floatfmt=".3f"))


def _trainer(model: str) -> Callable[[TrainingRows, Mapping[str, int]], TrainedModel]:
    from pipelines.steps.models.logistic_model import LogisticConfig, train_logistic
    from pipelines.steps.models.xgboost_model import XGBoostConfig, train_xgboost

    trainers: Mapping[str, Callable[[TrainingRows, Mapping[str, int]], TrainedModel]] = {
        "xgboost": lambda rows, sizes: train_xgboost(rows, sizes, XGBoostConfig()),
        "logistic": lambda rows, sizes: train_logistic(rows, sizes, LogisticConfig(C=(0.01, 0.03))),
    }
    return trainers[model]


def _score(trained: TrainedModel, vocabulary: Vocabulary, rows: pa.Table) -> np.ndarray:
    with TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "bundle"
        write_bundle(bundle, trained, vocabulary, training_days=[], code_version="", metrics={})
        return load_bundle(bundle).score(vocabulary.encode(rows))
