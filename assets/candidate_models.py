"""dnn_model, xgboost_model, logistic_model: trained on the same rows, and the champion among them."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import pandas as pd
from pydantic import Field

from pipelines.steps.candidate_models import (
    BLEND,
    CANDIDATES,
    Measured,
    Promotion,
    blend_of,
    bundle_candidate,
    choose,
    compare_with_former,
    find_thresholds,
)
from pipelines.steps.errors import BundleError, TrainingError
from pipelines.steps.feature_vocabulary import Vocabulary
from pipelines.steps.model_bundle import Scorer, TrainedModel, load_bundle
from pipelines.steps.model_card import Card, draw_curves, inline_image, make_card
from pipelines.steps.model_comparison import Difference, Metrics, Threshold, compare_auc
from pipelines.steps.model_report import report_model
from pipelines.steps.project import Audience
from pipelines.steps.training_rows import TEST, VALIDATION, TrainingFiles, TrainingRows
from resources.expectations import Check, check_specs, evaluate, expect
from resources.lake import Lake
from resources.model_store import CHALLENGER, CHAMPION, ModelRecord, ModelStore
from resources.spark import Spark

Rows = TrainingRows | TrainingFiles
M = TypeVar("M", bound=TrainedModel)

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
        "not_worse_than_former",
        "it ranks the same devices no worse than what served before by more than the audience's "
        "max_auc_loss; else the former one goes on serving",
        [expect("ExpectColumnValuesToBeBetween", column="auc_lost_beyond_margin", max_value=0)],
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
    members: int = Field(default=3, ge=1, le=16, description="Networks whose logits are averaged.")
    learning_rate: float = Field(default=1e-3, gt=0, description="AdamW's step.")
    batch_rows: int | None = Field(default=None, ge=1, description="Rows per step; by the rows if unset.")
    processes: int = Field(default=1, ge=1, description="Processes that train together, started by Spark.")
    stream_above: int = Field(
        default=5_000_000,
        ge=0,
        description="Rows above which they are read anew in every epoch, rather than held in memory.",
    )


class XGBoostTraining(dg.Config):
    """Settings of the trees that a run may change."""

    trials: int = Field(default=6, ge=1, le=8, description="Settings tried; validation AUC chooses.")


def build(audience: Audience) -> Sequence[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    training = audience.training
    rows_key, group = [audience.name, "training_set"], audience.name

    @dg.asset(key=[audience.name, "dnn_model"], kinds={"pytorch"}, deps=[rows_key], group_name=group)
    def dnn_model(
        context: dg.AssetExecutionContext, config: DnnTraining, spark: Spark, lake: Lake, models: ModelStore
    ) -> dg.MaterializeResult[None]:
        """The network: embeddings pooled per field, feed-forward; a few of them, averaged.

        A run that was killed goes on from its last epoch when it is run again.
        """
        from pipelines.steps.distributed_training import train_dnn_distributed
        from pipelines.steps.dnn_model import DnnConfig, TrainedDnn  # torch takes seconds to import
        from pipelines.steps.dnn_training import train_dnn

        named = config.model_dump(exclude={"processes", "stream_above", "hidden"})
        settings = DnnConfig(
            **named,
            hidden=tuple(config.hidden),
            seed=training.seed,
            max_epochs=training.max_epochs,
            patience=training.patience,
        )
        streamed = lake.partition("training_set", audience.name).rows > config.stream_above

        def train(rows: Rows, sizes: Mapping[str, int]) -> TrainedDnn:
            if config.processes == 1:
                return train_dnn(
                    rows,
                    sizes,
                    settings,
                    lambda epoch: context.log.info(str(epoch)),
                    checkpoint=models.checkpoint(audience.name, "dnn"),
                )
            # The distributor asks for the session that is active: this starts it.
            context.log.info(f"{config.processes} processes, started by Spark {spark.session.version}")
            return train_dnn_distributed(
                lake.files("training_set", [audience.name]),
                sizes,
                settings,
                processes=config.processes,
                local=spark.is_local,
                streamed=streamed,
            )

        def show(trained: TrainedDnn) -> Mapping[str, Any]:
            curves = [asdict(epoch) for epoch in trained.curves]
            return {"curves": dg.MetadataValue.md(inline_image(draw_curves(curves))), "epochs": curves}

        # In several processes, each reads its rows itself.
        elsewhere = streamed or config.processes > 1
        return _train("dnn", audience, lake, models, train, show, elsewhere=elsewhere)

    @dg.asset(key=[audience.name, "xgboost_model"], kinds={"xgboost"}, deps=[rows_key], group_name=group)
    def xgboost_model(
        context: dg.AssetExecutionContext, config: XGBoostTraining, lake: Lake, models: ModelStore
    ) -> dg.MaterializeResult[None]:
        """Boosted trees on the same rows, as a sparse matrix, tuned within a budget."""
        from pipelines.steps.xgboost_model import XGBoostConfig, tune_xgboost

        settings = XGBoostConfig(seed=training.seed)

        def train(rows: Rows, sizes: Mapping[str, int]) -> TrainedModel:
            rows = _in_memory(rows)
            return tune_xgboost(
                rows, sizes, settings, lambda trial: context.log.info(str(trial)), trials=config.trials
            )

        return _train("xgboost", audience, lake, models, train)

    @dg.asset(key=[audience.name, "logistic_model"], kinds={"scikitlearn"}, deps=[rows_key], group_name=group)
    def logistic_model(lake: Lake, models: ModelStore) -> dg.MaterializeResult[None]:
        """Logistic regression on the same rows, as a sparse matrix."""
        from pipelines.steps.logistic_model import LogisticConfig, train_logistic

        def train(rows: Rows, sizes: Mapping[str, int]) -> TrainedModel:
            rows = _in_memory(rows)
            return train_logistic(rows, sizes, LogisticConfig())

        return _train("logistic", audience, lake, models, train)

    @dg.asset(
        key=[audience.name, "champion_model"],
        deps=[[audience.name, f"{name}_model"] for name in CANDIDATES],
        group_name=audience.name,
    )
    def champion_model(
        context: dg.AssetExecutionContext, lake: Lake, models: ModelStore
    ) -> dg.MaterializeResult[None]:
        """The candidate that ranks the validation devices best, or all together; it serves from now on."""
        candidates = {name: models.current(audience.name, name) for name in CANDIDATES}
        _require_same_rows(candidates, lake.partition("training_set", audience.name).version)
        files, vocabulary = _training_files(audience, lake, models)
        rows = files.read([VALIDATION, TEST])
        blend = blend_of({name: models.bundle(record) for name, record in candidates.items()})
        records = {**candidates, BLEND: _keep(BLEND, blend, audience, rows, vocabulary, lake, models)}
        validation = rows.subset(VALIDATION)
        scorers = {name: models.load(audience.name, name, record.version) for name, record in records.items()}
        probabilities = {name: scorer.score(validation.bags) for name, scorer in scorers.items()}
        choice = choose(validation.labels, probabilities, seed=training.seed)
        chosen = records[choice.name]
        # Again, though the candidate has some: the segments asked for may have changed since it was trained.
        thresholds = find_thresholds(scorers[choice.name], rows, audience.segments)
        former, former_scorer = _former(context, audience, models)
        promotion = compare_with_former(
            validation, scorers[choice.name], former_scorer, training.max_auc_loss, seed=training.seed
        )
        properties = {
            **chosen.properties,
            "model": choice.name,
            "thresholds": _values(thresholds),
            "promotion": _promotion(promotion, former),
        }
        challenger = models.record(ModelRecord(audience.name, CHALLENGER, chosen.version, properties))
        if promotion.accepted:
            models.record(replace(challenger, model=CHAMPION))
        gain = choice.blend_gain
        measured = {name: Measured.from_dict(r.properties["metrics"]) for name, r in records.items()}
        test = rows.subset(TEST)
        tested = {name: scorer.score(test.bags) for name, scorer in scorers.items()}
        differences = {
            name: compare_auc(test.labels, tested[choice.name], found, seed=training.seed)
            for name, found in tested.items()
            if name != choice.name
        }
        if choice.name != BLEND:
            _card(records[BLEND], audience, rows, models, {BLEND: measured[BLEND].test})
        card = _card(
            challenger,
            audience,
            rows,
            models,
            {choice.name: measured[choice.name].test, **{name: m.test for name, m in measured.items()}},
            differences,
        )
        return dg.MaterializeResult(
            metadata={
                **challenger.summary(),
                "serves": promotion.accepted,
                **({"auc above the former champion": _interval(promotion.gain)} if promotion.gain else {}),
                "thresholds": {segment: cut.__dict__ if cut else None for segment, cut in thresholds.items()},
                "card": dg.MetadataValue.md(card.inline()),
                "card_path": dg.MetadataValue.path(str(models.card(challenger))),
                "blend above the best candidate (validation AUC)": (
                    f"{_interval(gain)} over {choice.best_single}"
                ),
                "validation_auc": measured[choice.name].validation.auc,
                "test_auc": measured[choice.name].test.auc,
            }
        )

    checks = [_candidate_checks(audience, name) for name in CANDIDATES]
    return [dnn_model, xgboost_model, logistic_model, champion_model, *checks, _champion_checks(audience)]


def _in_memory(rows: Rows) -> TrainingRows:
    return rows if isinstance(rows, TrainingRows) else rows.read()


def _train(
    model: str,
    audience: Audience,
    lake: Lake,
    models: ModelStore,
    train: Callable[[Rows, Mapping[str, int]], M],
    show: Callable[[M], Mapping[str, Any]] = lambda _: {},
    *,
    elsewhere: bool = False,
) -> dg.MaterializeResult[None]:
    """Trains, keeps and describes a candidate.

    Args:
        model: Its name.
        audience: What it is of.
        lake: Where the training set is.
        models: Where it goes.
        train: Rows and vocabulary sizes → the model.
        show: What else to say of it, as metadata.
        elsewhere: Whether the TRAIN rows stay in their files, for `train` to read.
    """
    files, vocabulary = _training_files(audience, lake, models)
    rows = files.read([VALIDATION, TEST] if elsewhere else None)
    trained = train(files if elsewhere else rows, vocabulary.sizes)
    record = _keep(model, trained, audience, rows, vocabulary, lake, models)
    test = Measured.from_dict(record.properties["metrics"]).test
    card = _card(record, audience, rows, models, {model: test})
    return dg.MaterializeResult(
        metadata={
            **record.summary(),
            "card": dg.MetadataValue.md(card.inline()),
            "card_path": dg.MetadataValue.path(str(models.card(record))),
            **show(trained),
            "rows": lake.partition("training_set", audience.name).rows,
            "training_set": record.properties["training_set"],
            **{
                f"{split}/{name}": value
                for split, metrics in record.properties["metrics"].items()
                for name, value in metrics.items()
            },
        }
    )


def _keep(
    model: str,
    trained: TrainedModel,
    audience: Audience,
    rows: TrainingRows,
    vocabulary: Vocabulary,
    lake: Lake,
    models: ModelStore,
) -> ModelRecord:
    """Bundles a model, measured and calibrated, and records it as the audience's current one of its kind."""
    partition = lake.partition("training_set", audience.name)

    def write(directory: Path) -> Mapping[str, Any]:
        days = partition.properties["as_of_days"]
        # a blend's members are corrected already
        kept = 1.0 if model == BLEND else partition.properties["negatives_kept"]
        measured = bundle_candidate(directory, trained, vocabulary, rows, days, negatives_kept=kept)
        thresholds = find_thresholds(load_bundle(directory), rows, audience.segments)
        return {
            "training_set": partition.version,
            **partition.properties,
            "metrics": measured.to_dict(),
            "thresholds": _values(thresholds),  # so that any candidate can be promoted
        }

    return models.add(audience.name, model, write)


def _former(
    context: dg.AssetExecutionContext, audience: Audience, models: ModelStore
) -> tuple[ModelRecord | None, Scorer | None]:
    """The champion that serves now, if there is one; no scorer where it could not serve any more."""
    if CHAMPION not in models.models(audience.name):
        return None, None
    record = models.current(audience.name, CHAMPION)
    try:
        return record, models.load(audience.name, version=record.version)
    except BundleError as error:
        context.log.warning(f"the former champion cannot be compared with: {error}")
        return record, None


def _promotion(promotion: Promotion, former: ModelRecord | None) -> dict[str, Any]:
    return {
        "accepted": promotion.accepted,
        "former": former.version if former else None,
        "auc_behind": promotion.auc_behind,
        "max_auc_loss": promotion.max_auc_loss,
    }


def _interval(difference: Difference) -> str:
    return f"{difference.value:+.4f} (95% interval {difference.low:+.4f} to {difference.high:+.4f})"


def _card(
    record: ModelRecord,
    audience: Audience,
    rows: TrainingRows,
    models: ModelStore,
    metrics: Mapping[str, Metrics],
    differences: Mapping[str, Difference] | None = None,
) -> Card:
    """Looks at a model on the test rows, and keeps what was found beside its bundle."""
    test, properties = rows.subset(TEST), record.properties
    scorer = models.load(audience.name, record.model, record.version)
    facts = {
        "version": record.version,
        "engine": scorer.manifest.engine,
        "training set": properties["training_set"],
        "as-of days": ", ".join(properties["as_of_days"]),
        "horizon": f"{audience.horizon_days} days",
        "negatives kept in training": properties["negatives_kept"],
        "calibration": (scorer.manifest.calibration or {}).get("method", "none"),
    }
    report = report_model(scorer, test.labels, test.bags, properties["thresholds"])
    title = f"{audience.name}: {properties.get('model', record.model)}"
    card = make_card(title, facts, report, metrics, differences)
    models.save_card(record, card.files())
    return card


def _values(thresholds: Mapping[str, Threshold | None]) -> dict[str, float | None]:
    """Segment → its cut; None where no cut reached its precision."""
    return {segment: cut.value if cut else None for segment, cut in thresholds.items()}


def _training_files(audience: Audience, lake: Lake, models: ModelStore) -> tuple[TrainingFiles, Vocabulary]:
    """The training set, and the vocabulary that it was encoded with."""
    partition = lake.partition("training_set", audience.name)
    vocabulary = models.vocabulary(partition.properties["vocabulary_hash"])
    return TrainingFiles(lake.files("training_set", [audience.name]), list(vocabulary.sizes)), vocabulary


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
        champion = models.current(audience.name, CHAMPION)
        challenger = models.current(audience.name, CHALLENGER)
        promotion = challenger.properties["promotion"]
        aucs = [
            models.current(audience.name, n).properties["metrics"]["validation"]["auc"] for n in CANDIDATES
        ]  # without the blend, which serves only where its gain is beyond chance
        evidence = pd.DataFrame(
            {
                "auc_behind_best": [max(aucs) - challenger.properties["metrics"]["validation"]["auc"]],
                "auc_lost_beyond_margin": [promotion["auc_behind"] - promotion["max_auc_loss"]],
                "bundle_vocabulary": [load_bundle(models.bundle(champion)).vocabulary.hash],
                "rows_vocabulary": [champion.properties["vocabulary_hash"]],
            }
        )
        yield from evaluate(key, CHAMPION_CHECKS, evidence)

    return champion_checks
