"""The way of a trained model, whatever its kind: it is measured, refitted, kept, and has a card.

What does not belong here: how a kind is trained (`candidate_models`), and which serves (`champion_model`).
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import numpy as np

from assets.training_data import TrainingData
from pipelines.steps.config.audience import Audience
from pipelines.steps.errors import TrainingError, abridged
from pipelines.steps.labels.training_rows import TEST, VALIDATION, TrainingFiles, TrainingRows
from pipelines.steps.models.bundle import Scorer, TrainedModel
from pipelines.steps.models.metrics import Difference, Threshold
from pipelines.steps.progress import working
from pipelines.steps.promotion.candidate_models import (
    HELD_OUT_FILE,
    Candidate,
    Measured,
    find_thresholds,
    measure_candidate,
    write_candidate,
)
from pipelines.steps.promotion.champion_model import Choice, Promotion
from pipelines.steps.promotion.model_card import Card, make_card
from pipelines.steps.promotion.model_report import report_model
from pipelines.steps.promotion.rehearsal import MEASURED, REHEARSAL_FILE, Rehearsal, rehearsal_of
from resources.model_log import ModelRecord
from resources.model_store import ModelStore

M = TypeVar("M", bound=TrainedModel)
logger = logging.getLogger(__name__)
DAYS_SHOWN = 8
"""As-of days that a card names."""


def keep_model(
    model: str,
    candidate: Candidate,
    labels: np.ndarray,
    audience: Audience,
    data: TrainingData,
    models: ModelStore,
) -> ModelRecord:
    """Bundles a model and records it as the audience's current one of its kind.

    Args:
        model: Its name.
        candidate: The model, calibrated and measured.
        labels: [rows] of the VALIDATION rows, on which the segments' cuts are found.
        audience: What it is of.
        data: Its training set.
        models: Where it goes.
    """
    properties = data.partition.properties
    thresholds = find_thresholds(labels, candidate.scores.validation, audience.segments)
    recorded = {
        "training_set": data.partition.version,
        **properties,
        "metrics": candidate.measured.to_dict(),
        "thresholds": cuts_of(thresholds),  # so that any candidate can be promoted
    }

    def write(directory: Path) -> Mapping[str, Any]:
        write_candidate(directory, candidate, data.vocabulary, properties["as_of_days"])
        return recorded

    return models.add(audience.name, model, write)


def keep_card(
    record: ModelRecord,
    scorer: Scorer,
    audience: Audience,
    test: TrainingRows,
    probabilities: np.ndarray,
    models: ModelStore,
    measured: Mapping[str, Measured],
    differences: Mapping[str, Difference] | None = None,
    promotion: Promotion | None = None,
    rehearsal: Rehearsal | None = None,
) -> Card:
    """Looks at a model on the test rows, and keeps what was found beside its bundle.

    Args:
        record: The model's version.
        scorer: Its bundle, loaded.
        audience: What it is of.
        test: The TEST rows.
        probabilities: [rows], what it gave them before it had seen them.
        models: Where the card goes.
        measured: Model → metrics: its own first.
        differences: Of the other models, in AUC.
        promotion: What decided on serving; none for a candidate.
        rehearsal: Of its training, where there was one.
    """
    properties = record.properties
    facts = {
        "version": record.version,
        "engine": scorer.manifest.engine,
        "training set": properties["training_set"],
        "as-of days": abridged(properties["as_of_days"], DAYS_SHOWN),
        "horizon": f"{audience.horizon_days} days",
        "negatives kept in training": properties["negatives_kept"],
        **({"chosen": str(Choice.from_dict(properties["choice"]))} if "choice" in properties else {}),
        "learned from": "train, validation and test devices, with the settings found without the last two",
        "calibration": (scorer.manifest.calibration or {}).get("method", "none"),
    }
    report = report_model(scorer, test.labels, probabilities, test.bags, properties["thresholds"])
    if rehearsal:
        report = replace(report, later=rehearsal.later)
    title = f"{audience.name}: {properties.get('model', record.model)}"
    card = make_card(title, facts, report, measured, differences, promotion)
    kept = {REHEARSAL_FILE: rehearsal.scores.to_bytes()} if rehearsal else {}
    models.save_card(record, {**kept, **card.files()})
    return card


def cuts_of(thresholds: Mapping[str, Threshold | None]) -> dict[str, float | None]:
    """Segment → its cut; None where no cut reached its precision."""
    return {segment: cut.value if cut else None for segment, cut in thresholds.items()}


def train_candidate(
    model: str,
    audience: Audience,
    data: TrainingData,
    models: ModelStore,
    train: Callable[[TrainingFiles], M],
    refit: Callable[[TrainingFiles, M], M],
    show: Callable[[M], Mapping[str, Any]] = lambda _: {},
) -> dg.MaterializeResult[None]:
    """Trains, measures, refits, keeps and describes a candidate. It never sees the promotion rows.

    Args:
        model: Its name.
        audience: What it is of.
        data: The training set.
        models: Where it goes.
        train: Rows, for a rehearsal those of earlier days → the model that is measured.
        refit: All rows for TRAIN rows, and that model → the model that is kept.
        show: What else to say of it, as metadata.
    """
    trained = train(data.files)
    kept, rows = data.partition.properties["negatives_kept"], data.files.read([VALIDATION, TEST])
    candidate = measure_candidate(
        trained, data.vocabulary, rows, negatives_kept=kept, devices=data.files.devices(VALIDATION)
    )
    rehearsal = _rehearse(audience, data, train)
    if rehearsal:
        candidate = replace(candidate, measured=replace(candidate.measured, out_of_time=rehearsal.metrics))
    all_rows = data.files.to_refit(kept, audience.training.seed)
    with working("refitting on train, validation and test rows"):
        candidate = replace(candidate, trained=refit(all_rows, trained))
    record = keep_model(model, candidate, rows.subset(VALIDATION).labels, audience, data, models)
    models.save_card(record, {HELD_OUT_FILE: candidate.scores.to_bytes()})
    scorer, measured = models.load(audience.name, model, record.version), {model: candidate.measured}
    card = keep_card(
        record,
        scorer,
        audience,
        rows.subset(TEST),
        candidate.scores.test,
        models,
        measured,
        rehearsal=rehearsal,
    )
    return dg.MaterializeResult(
        data_version=dg.DataVersion(record.version),
        metadata={
            **record.summary(),
            "card": dg.MetadataValue.md(card.inline()),
            "card_path": dg.MetadataValue.path(str(models.card(record))),
            **show(trained),
            "rows": data.partition.rows,
            "training_set": record.properties["training_set"],
            **{
                f"{split}/{name}": value
                for split, metrics in record.properties["metrics"].items()
                for name, value in metrics.items()
            },
        },
    )


def _rehearse(
    audience: Audience, data: TrainingData, train: Callable[[TrainingFiles], TrainedModel]
) -> Rehearsal | None:
    """The same training on the earlier as-of days alone; None where there is no newest day kept for it."""
    if not data.out_of_time_day:
        return None
    try:
        with working(f"rehearsing the training as of {data.out_of_time_day}, on earlier days alone"):
            trained, rows = train(data.earlier), data.earlier.read(MEASURED)
            kept = data.partition.properties["negatives_kept"]
            owners = data.earlier.devices(VALIDATION)
            candidate = measure_candidate(trained, data.vocabulary, rows, negatives_kept=kept, devices=owners)
    except TrainingError as error:  # too few conversions on the earlier days
        logger.warning("there is no rehearsal: %s", error)
        return None
    return rehearsal_of(candidate, rows, data.out_of_time_day, audience.segments)
