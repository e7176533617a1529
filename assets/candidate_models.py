"""dnn_model, xgboost_model, logistic_model: trained on the same rows, each with settings of its own.

What does not belong here: what becomes of them then, all alike (`trained_models`).
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import dagster as dg
import pandas as pd
from pydantic import Field

from assets.descriptions import HOLDS_NO_IDS, page
from assets.trained_models import train_candidate
from assets.training_data import read_training_data
from pipelines.steps.config.audience import Audience, Training
from pipelines.steps.config.defaults import XGBOOST_TRIALS
from pipelines.steps.config.metric import Metric
from pipelines.steps.config.settings import code_version
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.labels.training_rows import TRAIN, VALIDATION, TrainingFiles, TrainingRows
from pipelines.steps.models.dnn_config import DnnConfig, weight_decays
from pipelines.steps.promotion.candidate_models import CANDIDATES, CODE_VERSION
from pipelines.steps.promotion.model_card import draw_curves, inline_image
from resources.expectations import Check, Subject, check_specs, evaluate, expect, report
from resources.lake import Lake
from resources.model_store import ModelStore
from resources.spark import Spark
from resources.step_body import step_body

if TYPE_CHECKING:
    from pipelines.steps.models.dnn_model import TrainedDnn

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
        "is_better_than_chance",
        "AUC is above 0.5 on every split",
        [expect("ExpectColumnValuesToBeBetween", column="auc", min_value=0.5, strict_min=True)],
        blocking=False,
    ),
]


NETWORK = DnnConfig()
"""The settings of a run that changes none."""


class DnnTraining(dg.Config):
    """Settings of the network that a run may change; what each does, `DnnConfig` says."""

    embedding_dim: int = Field(
        default=NETWORK.embedding_dim, ge=1, le=1024, description="Width of every field's embedding."
    )
    hidden: list[int] = Field(default=list(NETWORK.hidden), description="Width of each hidden layer.")
    dropout: float = Field(
        default=NETWORK.dropout, ge=0, lt=1, description="Share of hidden activations dropped."
    )
    members: int = Field(
        default=NETWORK.members, ge=1, le=16, description="Networks whose logits are averaged."
    )
    learning_rate: float = Field(default=NETWORK.learning_rate, gt=0, description="AdamW's step.")
    batch_rows: int | None = Field(
        default=NETWORK.batch_rows, ge=1, description="Rows per step; by the rows if unset."
    )
    processes: int = Field(default=1, ge=1, description="Processes that train together, started by Spark.")
    stream_above: int = Field(
        default=5_000_000,
        ge=0,
        description="Rows above which they are read anew in every epoch, rather than held in memory.",
    )

    def settings(self, training: Training, metric: Metric) -> DnnConfig:
        """The network's own settings, the audience's among them."""
        named = self.model_dump(exclude={"processes", "stream_above", "hidden"})
        return DnnConfig(
            **named,
            hidden=tuple(self.hidden),
            metric=metric,
            seed=training.seed,
            max_epochs=training.max_epochs,
            patience=training.patience,
        )


class XGBoostTraining(dg.Config):
    """Settings of the trees that a run may change."""

    trials: int = Field(
        default=XGBOOST_TRIALS, ge=1, le=9, description="Settings tried; the audience's metric chooses."
    )


def build(audience: Audience) -> Sequence[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    training = audience.training
    of_every_model = [CODE_VERSION, training.seed, str(audience.metric)]
    of_network = [asdict(NETWORK), training.max_epochs, training.patience]

    def candidate_asset(
        name: str, kinds: set[str], settings: Sequence[Any] = ()
    ) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
        """The decorator of a candidate's asset, which `settings` of its own decide on, too."""
        return dg.asset(
            key=[audience.name, f"{name}_model"],
            kinds=kinds,
            deps=[[audience.name, "training_set"]],
            group_name=audience.name,
            code_version=code_version([*of_every_model, *settings]),
            metadata=page("docs/models.md"),
            tags={"stage": "models", **HOLDS_NO_IDS},
        )

    @candidate_asset("dnn", {"pytorch"}, of_network)
    @step_body
    def dnn_model(
        context: dg.AssetExecutionContext, config: DnnTraining, spark: Spark, lake: Lake, models: ModelStore
    ) -> dg.MaterializeResult[None]:
        """The network: embeddings pooled per field, behaviour as it is, feed-forward; a few, averaged.

        A run that was killed goes on from its last epoch when it is run again.
        """
        from pipelines.steps.models.dnn_model import TrainedDnn
        from pipelines.steps.models.dnn_training import train_dnn, tune_dnn
        from pipelines.steps.models.model_columns import cumulative_columns

        data = read_training_data(audience, lake, models)
        settings = config.settings(training, audience.metric)
        sizes, columns = data.vocabulary.sizes, cumulative_columns(data.vocabulary.fields)
        streamed = data.partition.rows > config.stream_above

        def train(files: TrainingFiles) -> TrainedDnn:
            if config.processes > 1:  # each reads its rows itself
                return _train_in_processes(
                    context, spark, files, data.vocabulary, settings, config.processes, streamed
                )
            name = "dnn" if files is data.files else "dnn_rehearsal"
            return tune_dnn(
                files if streamed else _to_learn_from(files),
                sizes,
                settings,
                weight_decays(data.devices_a_day),
                checkpoint=models.checkpoint(audience.name, name),
                columns=columns,
            )

        def refit(files: TrainingFiles, found: TrainedDnn) -> TrainedDnn:
            if config.processes > 1:
                return _train_in_processes(
                    context, spark, files, data.vocabulary, found.config, config.processes, streamed, found
                )
            return train_dnn(
                files if streamed else files.read([TRAIN]),
                sizes,
                found.config,
                checkpoint=models.checkpoint(audience.name, "dnn_refit"),
                epochs=found.best_epochs,
                columns=columns,
            )

        trained = train_candidate("dnn", audience, data, models, train, refit, _show_curves)
        models.remove_checkpoints(audience.name, "dnn")
        return trained

    @candidate_asset("xgboost", {"xgboost"})
    @step_body
    def xgboost_model(config: XGBoostTraining, lake: Lake, models: ModelStore) -> dg.MaterializeResult[None]:
        """Boosted trees on the same rows, as a sparse matrix, tuned within a budget."""
        from pipelines.steps.models.model_columns import ordinal_columns
        from pipelines.steps.models.xgboost_model import (
            TrainedXGBoost,
            XGBoostConfig,
            refit_xgboost,
            tune_xgboost,
        )

        data = read_training_data(audience, lake, models)
        settings = XGBoostConfig(seed=training.seed, metric=audience.metric)
        sizes, columns = data.vocabulary.sizes, ordinal_columns(data.vocabulary.fields)

        def train(files: TrainingFiles) -> TrainedXGBoost:
            rows = _to_learn_from(files)
            return tune_xgboost(rows, sizes, settings, trials=config.trials, columns=columns)

        def refit(files: TrainingFiles, found: TrainedXGBoost) -> TrainedXGBoost:
            return refit_xgboost(files.read([TRAIN]), sizes, found, columns)

        return train_candidate("xgboost", audience, data, models, train, refit)

    # Fitted by the one, served by the other.
    @candidate_asset("logistic", {"scikitlearn", "pytorch"})
    @step_body
    def logistic_model(lake: Lake, models: ModelStore) -> dg.MaterializeResult[None]:
        """Logistic regression on the same rows, as a sparse matrix."""
        from pipelines.steps.models.logistic_model import (
            LogisticConfig,
            TrainedLogistic,
            refit_logistic,
            train_logistic,
        )
        from pipelines.steps.models.model_columns import cumulative_columns

        data = read_training_data(audience, lake, models)
        settings = LogisticConfig(metric=audience.metric)
        sizes, columns = data.vocabulary.sizes, cumulative_columns(data.vocabulary.fields)

        def train(files: TrainingFiles) -> TrainedLogistic:
            return train_logistic(_to_learn_from(files), sizes, settings, columns)

        def refit(files: TrainingFiles, found: TrainedLogistic) -> TrainedLogistic:
            return refit_logistic(files.read([TRAIN]), sizes, found, columns)

        return train_candidate("logistic", audience, data, models, train, refit)

    return [
        dnn_model,
        xgboost_model,
        logistic_model,
        *[_candidate_checks(audience, name) for name in CANDIDATES],
    ]


def _train_in_processes(
    context: dg.AssetExecutionContext,
    spark: Spark,
    files: TrainingFiles,
    vocabulary: Vocabulary,
    settings: DnnConfig,
    processes: int,
    streamed: bool,
    found: "TrainedDnn | None" = None,
) -> "TrainedDnn":
    from pipelines.steps.models.distributed_training import train_dnn_distributed
    from pipelines.steps.models.model_columns import cumulative_columns

    # The distributor asks for the session that is active: this starts it.
    context.log.info("%d processes train, started by Spark %s", processes, spark.session.version)
    return train_dnn_distributed(
        files,
        vocabulary.sizes,
        settings,
        processes=processes,
        local=spark.is_local,
        streamed=streamed,
        epochs=found.best_epochs if found else None,
        columns=cumulative_columns(vocabulary.fields),
    )


def _show_curves(trained: "TrainedDnn") -> Mapping[str, Any]:
    curves = [asdict(epoch) for epoch in trained.curves]
    return {"curves": dg.MetadataValue.md(inline_image(draw_curves(curves))), "epochs": curves}


def _to_learn_from(files: TrainingFiles) -> TrainingRows:
    return files.read([TRAIN, VALIDATION])


def _candidate_checks(audience: Audience, name: str) -> dg.AssetChecksDefinition:
    key = dg.AssetKey([audience.name, f"{name}_model"])

    @dg.multi_asset_check(
        name=f"{audience.name}_{name}_model_checks", specs=check_specs(key, CANDIDATE_CHECKS)
    )
    @step_body
    def candidate_checks(
        context: dg.AssetCheckExecutionContext, models: ModelStore
    ) -> Iterator[dg.AssetCheckResult]:
        record = models.current(audience.name, name)
        metrics, subjects = record.properties["metrics"], [Subject(record.version)]
        yield from report(
            context, evaluate(key, CANDIDATE_CHECKS, pd.DataFrame(list(metrics.values())), subjects)
        )

    return candidate_checks
