"""Calibrating, measuring and bundling the candidates alike. Which one serves: `champion_model`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pipelines.steps.config.audience import SegmentSpec
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.labels.training_rows import TEST, VALIDATION, TrainingRows
from pipelines.steps.models.blend_model import BlendedModel, mean_in_logits
from pipelines.steps.models.bundle import TrainedModel, write_bundle
from pipelines.steps.models.bundle_loader import load_bundle
from pipelines.steps.models.calibration import Calibration, correct_for_sampling
from pipelines.steps.models.calibration_fit import fit_calibration
from pipelines.steps.models.metrics import Metrics, Threshold, compute_metrics, threshold_for_precision

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


@dataclass(frozen=True)
class Scores:
    """A model's probabilities, each split scored once.

    Attributes:
        validation: float32 [rows] of the VALIDATION rows.
        test: float32 [rows] of the TEST rows.
    """

    validation: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Candidate:
    """A trained model with all that its bundle will say of it.

    Attributes:
        trained: The model.
        calibration: Fitted on the VALIDATION rows.
        measured: Its metrics, calibrated.
        scores: What its bundle gives, calibrated.
    """

    trained: TrainedModel
    calibration: Calibration
    measured: Measured
    scores: Scores


def measure_candidate(
    trained: TrainedModel,
    vocabulary: Vocabulary,
    rows: TrainingRows,
    *,
    negatives_kept: float = 1.0,
    scores: Scores | None = None,
    devices: np.ndarray | None = None,
) -> Candidate:
    """Calibrates a model on the VALIDATION rows and measures it, by the probabilities that its bundle gives.

    Args:
        trained: The model.
        vocabulary: Its rows were encoded with it.
        rows: VALIDATION and TEST, and maybe others.
        negatives_kept: Share of the TRAIN rows' negatives that the model was trained on.
        scores: What it gives before it is calibrated, where that is known.
        devices: [VALIDATION rows], whose row it is; None: each is of a device of its own.
    """
    validation, test = rows.subset(VALIDATION), rows.subset(TEST)
    plain = scores or _score_plain(trained, vocabulary, validation, test)
    corrected = correct_for_sampling(plain.validation, negatives_kept)
    calibration = fit_calibration(validation.labels, corrected, devices)
    calibration = calibration.after_sampling(negatives_kept)
    calibrated = Scores(calibration.apply(plain.validation), calibration.apply(plain.test))
    measured = Measured(
        compute_metrics(validation.labels, calibrated.validation),
        compute_metrics(test.labels, calibrated.test),
    )
    return Candidate(trained, calibration, measured, calibrated)


def _score_plain(
    trained: TrainedModel, vocabulary: Vocabulary, validation: TrainingRows, test: TrainingRows
) -> Scores:
    """What the model's bundle gives while it holds no calibration."""
    with TemporaryDirectory() as scratch:
        plain = Path(scratch) / "bundle"
        write_bundle(plain, trained, vocabulary, training_days=[], code_version=CODE_VERSION, metrics={})
        scorer = load_bundle(plain)
    return Scores(scorer.score(validation.bags), scorer.score(test.bags))


def write_candidate(
    directory: Path, candidate: Candidate, vocabulary: Vocabulary, training_days: Sequence[str]
) -> None:
    """Writes a candidate's bundle.

    Args:
        directory: Where the bundle goes.
        candidate: The model, calibrated and measured.
        vocabulary: Its rows were encoded with it.
        training_days: The as-of days, ISO dates.
    """
    write_bundle(
        directory,
        candidate.trained,
        vocabulary,
        training_days=training_days,
        code_version=CODE_VERSION,
        metrics=candidate.measured.to_dict(),
        calibration=candidate.calibration,
    )


def blend_of(members: Mapping[str, Path]) -> BlendedModel:
    """The candidates' bundles as one model."""
    return BlendedModel({name: members[name] for name in CANDIDATES if name in members})


def blend_scores(members: Mapping[str, Scores]) -> Scores:
    """What the members' blend gives, from what they give."""
    own = [members[name] for name in CANDIDATES if name in members]
    return Scores(
        mean_in_logits([scores.validation for scores in own]), mean_in_logits([scores.test for scores in own])
    )


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
