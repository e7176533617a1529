"""Calibrating, measuring and bundling the candidates alike. Which one serves: `champion_model`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pipelines.steps.config.audience import SegmentSpec
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.labels.training_rows import TEST, VALIDATION, TrainingRows
from pipelines.steps.models.blend_model import BlendedModel
from pipelines.steps.models.bundle import TrainedModel, write_bundle
from pipelines.steps.models.bundle_loader import load_bundle
from pipelines.steps.models.calibration import Calibration, correct_for_sampling, fit_calibration
from pipelines.steps.models.metrics import Metrics, Threshold, evaluate, threshold_for_precision

CODE_VERSION = "3"
"""Raised when the same rows and settings would train another model."""
CANDIDATES = ("dnn", "xgboost", "logistic")
BLEND = "blend"
"""The mean of all candidates' logits."""


@dataclass(frozen=True)
class Measured:
    """One candidate's metrics: validation chooses, test is only reported."""

    validation: Metrics
    test: Metrics

    def to_dict(self) -> dict[str, dict[str, float]]:
        return {"validation": self.validation.to_dict(), "test": self.test.to_dict()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Mapping[str, float]]) -> "Measured":
        return cls(Metrics(**plain["validation"]), Metrics(**plain["test"]))  # type: ignore[arg-type]


def bundle_candidate(
    directory: Path,
    trained: TrainedModel,
    vocabulary: Vocabulary,
    rows: TrainingRows,
    training_days: Sequence[str],
    *,
    negatives_kept: float = 1.0,
) -> Measured:
    """Writes a candidate's bundle, calibrated on the VALIDATION rows and measured through the bundle itself.

    Args:
        directory: Where the bundle goes.
        trained: The model.
        vocabulary: Its rows were encoded with it.
        rows: All splits; VALIDATION and TEST are scored.
        training_days: The as-of days, ISO dates.
        negatives_kept: Share of the TRAIN rows' negatives that the model was trained on.
    """

    def write(path: Path, measured: Measured | None, calibration: Calibration | None) -> None:
        write_bundle(
            path,
            trained,
            vocabulary,
            training_days=training_days,
            code_version=CODE_VERSION,
            metrics=measured.to_dict() if measured else {},
            calibration=calibration,
        )

    validation, test = rows.subset(VALIDATION), rows.subset(TEST)
    with TemporaryDirectory() as scratch:
        plain = Path(scratch) / "bundle"
        write(plain, None, None)
        scorer = load_bundle(plain)
        of_validation, of_test = scorer.score(validation.bags), scorer.score(test.bags)
    corrected = correct_for_sampling(of_validation, negatives_kept)
    calibration = fit_calibration(validation.labels, corrected).after_sampling(negatives_kept)
    measured = Measured(
        evaluate(validation.labels, calibration.apply(of_validation)),
        evaluate(test.labels, calibration.apply(of_test)),
    )
    write(directory, measured, calibration)
    return measured


def blend_of(members: Mapping[str, Path]) -> BlendedModel:
    """The candidates' bundles as one model."""
    return BlendedModel({name: members[name] for name in CANDIDATES if name in members})


def find_thresholds(
    labels: np.ndarray, probabilities: np.ndarray, segments: Sequence[SegmentSpec]
) -> dict[str, Threshold | None]:
    """The cut that reached its precision, for each segment by minimum precision.

    Args:
        labels: [rows] of the VALIDATION rows.
        probabilities: [rows], the model's.
        segments: The audience's.
    """
    return {
        segment.name: threshold_for_precision(labels, probabilities, segment.min_precision)
        for segment in segments
        if segment.min_precision is not None
    }
