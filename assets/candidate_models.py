"""dnn_model, xgboost_model, logistic_model: trained on the same rows, and the champion among them."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
from pydantic import Field

from pipelines.steps.candidate_models import (
    CANDIDATES,
    Measured,
    bundle_candidate,
    find_thresholds,
    pick_champion,
)
from pipelines.steps.errors import TrainingError
from pipelines.steps.feature_vocabulary import Vocabulary
from pipelines.steps.model_bundle import TrainedModel, load_bundle
from pipelines.steps.model_comparison import Threshold, comparison_table
from pipelines.steps.project import Audience
from pipelines.steps.training_rows import TrainingRows, read_training_rows
from resources.expectations import Check, check_specs, evaluate, expect
from resources.lake import Lake
from resources.model_store import ModelRecord, ModelStore

Train = Callable[[TrainingRows, Mapping[str, int]], TrainedModel]

CANDIDATE_CHECKS = [
    Check(
        "metrics_are_finite",
        "every metric is a number in its range",
        [
            expect("ExpectColumnValuesToNotBeNull", column="auc"),
            expect("ExpectColumnValuesToNotBeNull", column="log_loss"),
            expect("ExpectColumnValuesToBeBetween", column="auc", min_value=0, max_value=1),
            expect(
                "ExpectColumnValuesToBeBetween", column="log_loss", min_value=0, max_value=sys.float_info.max
            ),
        ],
    ),
    Check(
        "better_than_chance",
        "AUC is above 0.5 on every split",
        [expect("ExpectColumnValuesToBeBetween", column="auc", min_value=0.5, strict_min=True)],
        blocking=False,
    ),
]
CHAMPION_CHECKS = [
    Check(
        "champion_is_best_candidate",
        "no candidate has a higher validation AUC",
        [expect("ExpectColumnValuesToBeBetween", column="auc_behind_best", max_value=0)],
    ),
    Check(
        "champion_scores",
        "its bundle loads and its vocabulary is the one its rows were encoded with",
        [expect("ExpectColumnPairValuesToBeEqual", column_A="bundle_vocabulary", column_B="rows_vocabulary")],
    ),
]


class DnnTraining(dg.Config):
    """Settings of the network that a run may change."""

    embedding_dim: int = Field(default=16, ge=1, le=1024, description="Width of every field's embedding.")
    hidden: list[int] = Field(default=[128, 64], description="Width of each hidden layer.")
    dropout: float = Field(default=0.3, ge=0, lt=1, description="Share of hidden activations dropped.")
    learning_rate: float = Field(default=1e-3, gt=0, description="AdamW's step.")
    batch_rows: int = Field(default=512, ge=1, description="Rows per step.")


def build(audience: Audience) -> Sequence[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    training = audience.training
    rows_key, group = [audience.name, "training_set"], audience.name

    @dg.asset(key=[audience.name, "dnn_model"], kinds={"pytorch"}, deps=[rows_key], group_name=group)
    def dnn_model(
        context: dg.AssetExecutionContext, config: DnnTraining, lake: Lake, models: ModelStore
    ) -> dg.MaterializeResult[None]:
        """The network: an embedding per field, averaged, concatenated, feed-forward."""
        from pipelines.steps.dnn_model import DnnConfig, train_dnn  # torch takes seconds to import

        settings = DnnConfig(
            **config.model_dump() | {"hidden": tuple(config.hidden)},
            seed=training.seed,
            max_epochs=training.max_epochs,
            patience=training.patience,
        )

        def train(rows: TrainingRows, sizes: Mapping[str, int]) -> TrainedModel:
            return train_dnn(rows, sizes, settings, lambda epoch: context.log.info(str(epoch)))

        return _train("dnn", audience, lake, models, train)

    @dg.asset(key=[audience.name, "xgboost_model"], kinds={"xgboost"}, deps=[rows_key], group_name=group)
    def xgboost_model(lake: Lake, models: ModelStore) -> dg.MaterializeResult[None]:
        """Boosted trees on the same rows, as a sparse matrix."""
        from pipelines.steps.xgboost_model import XGBoostConfig, train_xgboost

        config = XGBoostConfig(seed=training.seed)
        return _train(
            "xgboost", audience, lake, models, lambda rows, sizes: train_xgboost(rows, sizes, config)
        )

    @dg.asset(key=[audience.name, "logistic_model"], kinds={"scikitlearn"}, deps=[rows_key], group_name=group)
    def logistic_model(lake: Lake, models: ModelStore) -> dg.MaterializeResult[None]:
        """Logistic regression on the same rows, as a sparse matrix."""
        from pipelines.steps.logistic_model import LogisticConfig, train_logistic

        return _train(
            "logistic",
            audience,
            lake,
            models,
            lambda rows, sizes: train_logistic(rows, sizes, LogisticConfig()),
        )

    @dg.asset(
        key=[audience.name, "champion_model"],
        deps=[[audience.name, f"{name}_model"] for name in CANDIDATES],
        group_name=audience.name,
    )
    def champion_model(lake: Lake, models: ModelStore) -> dg.MaterializeResult[None]:
        """The candidate that ranks the validation devices best; it serves from now on."""
        candidates = {name: models.current(audience.name, name) for name in CANDIDATES}
        _require_same_rows(candidates, lake.partition("training_set", audience.name).version)
        measured = {name: Measured.from_dict(r.properties["metrics"]) for name, r in candidates.items()}
        name = pick_champion(measured)
        version = candidates[name].version
        rows, _ = _read_rows(audience, lake, models)
        # Again, though the candidate has some: the segments asked for may have changed since it was trained.
        thresholds = find_thresholds(models.load(audience.name, name, version), rows, audience.segments)
        properties = {**candidates[name].properties, "model": name, "thresholds": _values(thresholds)}
        champion = models.record(ModelRecord(audience.name, "champion", version, properties))
        return dg.MaterializeResult(
            metadata={
                **champion.summary(),
                "thresholds": {segment: cut.__dict__ if cut else None for segment, cut in thresholds.items()},
                "comparison (test split)": dg.MetadataValue.md(
                    comparison_table({n: m.test for n, m in measured.items()})
                ),
                "validation_auc": measured[name].validation.auc,
                "test_auc": measured[name].test.auc,
            }
        )

    checks = [_candidate_checks(audience, name) for name in CANDIDATES]
    return [dnn_model, xgboost_model, logistic_model, champion_model, *checks, _champion_checks(audience)]


def _train(
    model: str, audience: Audience, lake: Lake, models: ModelStore, train: Train
) -> dg.MaterializeResult[None]:
    partition = lake.partition("training_set", audience.name)
    rows, vocabulary = _read_rows(audience, lake, models)
    trained = train(rows, vocabulary.sizes)

    def write(directory: Path) -> Mapping[str, Any]:
        days = partition.properties["as_of_days"]
        measured = bundle_candidate(directory, trained, vocabulary, rows, days)
        thresholds = find_thresholds(load_bundle(directory), rows, audience.segments)
        return {
            "training_set": partition.version,
            **partition.properties,
            "metrics": measured.to_dict(),
            "thresholds": _values(thresholds),  # so that any candidate can be promoted
        }

    record = models.add(audience.name, model, write)
    return dg.MaterializeResult(
        metadata={
            **record.summary(),
            "rows": rows.rows,
            "training_set": partition.version,
            **{
                f"{split}/{name}": value
                for split, metrics in record.properties["metrics"].items()
                for name, value in metrics.items()
            },
        }
    )


def _values(thresholds: Mapping[str, Threshold | None]) -> dict[str, float | None]:
    """Segment → its cut; None where no cut reached its precision."""
    return {segment: cut.value if cut else None for segment, cut in thresholds.items()}


def _read_rows(audience: Audience, lake: Lake, models: ModelStore) -> tuple[TrainingRows, Vocabulary]:
    """The training set, and the vocabulary that it was encoded with."""
    partition = lake.partition("training_set", audience.name)
    vocabulary = models.vocabulary(partition.properties["vocabulary_hash"])
    return read_training_rows(lake.files("training_set", [audience.name]), list(vocabulary.sizes)), vocabulary


def _require_same_rows(candidates: Mapping[str, ModelRecord], training_set: str) -> None:
    trained_on = {name: record.properties["training_set"] for name, record in candidates.items()}
    if set(trained_on.values()) != {training_set}:
        raise TrainingError(
            "the candidates were not all trained on the current training set",
            found=trained_on,
            expected=training_set,
            remedy="run the training job, which trains all of them",
        )


def _candidate_checks(audience: Audience, name: str) -> dg.AssetChecksDefinition:
    key = dg.AssetKey([audience.name, f"{name}_model"])

    @dg.multi_asset_check(
        name=f"{audience.name}_{name}_model_checks", specs=check_specs(key, CANDIDATE_CHECKS)
    )
    def candidate_checks(models: ModelStore) -> Iterator[dg.AssetCheckResult]:
        metrics = models.current(audience.name, name).properties["metrics"]
        yield from evaluate(key, CANDIDATE_CHECKS, pd.DataFrame(list(metrics.values())))

    return candidate_checks


def _champion_checks(audience: Audience) -> dg.AssetChecksDefinition:
    key = dg.AssetKey([audience.name, "champion_model"])

    @dg.multi_asset_check(
        name=f"{audience.name}_champion_model_checks", specs=check_specs(key, CHAMPION_CHECKS)
    )
    def champion_checks(models: ModelStore) -> Iterator[dg.AssetCheckResult]:
        champion = models.current(audience.name, "champion")
        aucs = [
            models.current(audience.name, n).properties["metrics"]["validation"]["auc"] for n in CANDIDATES
        ]
        evidence = pd.DataFrame(
            {
                "auc_behind_best": [max(aucs) - champion.properties["metrics"]["validation"]["auc"]],
                "bundle_vocabulary": [load_bundle(models.bundle(champion)).vocabulary.hash],
                "rows_vocabulary": [champion.properties["vocabulary_hash"]],
            }
        )
        yield from evaluate(key, CHAMPION_CHECKS, evidence)

    return champion_checks
