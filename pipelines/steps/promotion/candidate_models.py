"""Calibrating, measuring and bundling the candidates alike. Which one serves: `champion_model`."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pipelines.steps.config.audience import SegmentSpec
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.labels.training_rows import OUT_OF_TIME, TEST, VALIDATION, TrainingRows
from pipelines.steps.models.blend_model import BlendedModel, mean_in_logits
from pipelines.steps.models.bundle import Scorer, TrainedModel, write_bundle
from pipelines.steps.models.bundle_loader import load_bundle
from pipelines.steps.models.calibration import Calibration, correct_for_sampling
from pipelines.steps.models.calibration_fit import fit_calibration
from pipelines.steps.models.metrics import Metrics, Threshold, compute_metrics, threshold_for_precision

CODE_VERSION = "4"
"""Raised when the same rows and settings would train another model."""
CANDIDATES = ("dnn", "xgboost", "logistic")
BLEND = "blend"
"""The mean of some candidates' logits."""
HELD_OUT_FILE = "held_out.npz"
"""Beside a candidate's card: its `Scores` of rows that it had not seen when it gave them."""


@dataclass(frozen=True)
class Measured:
    """One candidate's metrics: validation chooses, the others are only reported.

    Attributes:
        validation: On the VALIDATION rows.
        test: On the TEST rows.
        out_of_time: On the OUT_OF_TIME rows; None where there are none, or of one class only.
    """

    validation: Metrics
    test: Metrics
    out_of_time: Metrics | None = None

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Split → metrics, of the splits that there are."""
        found = {"validation": self.validation, "test": self.test, "out_of_time": self.out_of_time}
        return {split: metrics.to_dict() for split, metrics in found.items() if metrics}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Mapping[str, float]]) -> "Measured":
        """What was recorded."""
        return cls(**{split: Metrics(**metrics) for split, metrics in plain.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Scores:
    """A model's probabilities, each split scored once.

    Attributes:
        validation: float32 [rows] of the VALIDATION rows.
        test: float32 [rows] of the TEST rows.
        out_of_time: float32 [rows] of the OUT_OF_TIME rows, mostly none.
    """

    validation: np.ndarray
    test: np.ndarray
    out_of_time: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.float32))

    @classmethod
    def of(cls, scorer: Scorer, rows: TrainingRows) -> "Scores":
        """What a model gives the rows of these splits."""
        validation, test, later = (rows.subset(split) for split in (VALIDATION, TEST, OUT_OF_TIME))
        out_of_time = scorer.score(later.bags) if later.rows else np.empty(0, dtype=np.float32)
        return cls(scorer.score(validation.bags), scorer.score(test.bags), out_of_time)

    def to_bytes(self) -> bytes:
        """The content of a file that holds them."""
        file = io.BytesIO()
        np.savez(file, **asdict(self))
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Scores":
        """What a file holds."""
        with np.load(io.BytesIO(content)) as arrays:
            return cls(**arrays)


@dataclass(frozen=True)
class Candidate:
    """A trained model with all that its bundle will say of it.

    A model that serves learns from all rows but the promotion ones once its settings are found. What is said
    of it is of the same model before, which had not seen the rows that it is measured on.

    Attributes:
        trained: The model.
        calibration: Fitted on the VALIDATION rows.
        measured: Its metrics, calibrated, on rows held out.
        scores: Its probabilities of these rows, calibrated.
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
        rows: VALIDATION, TEST and OUT_OF_TIME where there is such a day, and maybe others.
        negatives_kept: Share of the TRAIN rows' negatives that the model was trained on.
        scores: What it gives before it is calibrated, where that is known.
        devices: [VALIDATION rows], whose row it is; None: each is of a device of its own.
    """
    validation, test, later = (rows.subset(split) for split in (VALIDATION, TEST, OUT_OF_TIME))
    plain = scores or _score_plain(trained, vocabulary, rows)
    corrected = correct_for_sampling(plain.validation, negatives_kept)
    calibration = fit_calibration(validation.labels, corrected, devices)
    calibration = calibration.after_sampling(negatives_kept)
    splits = (plain.validation, plain.test, plain.out_of_time)
    calibrated = Scores(*[calibration.apply(probabilities) for probabilities in splits])
    measured = Measured(
        compute_metrics(validation.labels, calibrated.validation),
        compute_metrics(test.labels, calibrated.test),
        compute_metrics(later.labels, calibrated.out_of_time) if len(np.unique(later.labels)) > 1 else None,
    )
    return Candidate(trained, calibration, measured, calibrated)


def _score_plain(trained: TrainedModel, vocabulary: Vocabulary, rows: TrainingRows) -> Scores:
    """What the model's bundle gives while it holds no calibration."""
    with TemporaryDirectory() as scratch:
        plain = Path(scratch) / "bundle"
        write_bundle(plain, trained, vocabulary, training_days=[], code_version=CODE_VERSION, metrics={})
        scorer = load_bundle(plain)
    return Scores.of(scorer, rows)


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
        mean_in_logits([scores.validation for scores in own]),
        mean_in_logits([scores.test for scores in own]),
        mean_in_logits([scores.out_of_time for scores in own]),
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
