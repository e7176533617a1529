"""Training, calibrating, measuring and bundling the candidates alike, and choosing the one that serves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pipelines.steps.blend_model import BlendedModel
from pipelines.steps.calibration import Calibration, correct_for_sampling, fit_calibration
from pipelines.steps.feature_vocabulary import Vocabulary
from pipelines.steps.model_bundle import Scorer, TrainedModel, load_bundle, write_bundle
from pipelines.steps.model_comparison import (
    Difference,
    Metrics,
    Threshold,
    choose_champion,
    compare_auc,
    evaluate,
    threshold_for_precision,
)
from pipelines.steps.project import SegmentSpec
from pipelines.steps.training_rows import TEST, VALIDATION, TrainingRows

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


@dataclass(frozen=True)
class Choice:
    """Which model serves.

    Attributes:
        name: A candidate, or BLEND.
        best_single: The candidate that ranks the validation rows best.
        blend_gain: Validation AUC of the blend above that one's.
    """

    name: str
    best_single: str
    blend_gain: Difference


def choose(labels: np.ndarray, probabilities: Mapping[str, np.ndarray], *, seed: int = 0) -> Choice:
    """The candidate with the highest validation AUC, or the blend where it is better beyond chance.

    The blend costs all candidates' time to score, so a gain that could be none is no reason for it.

    Args:
        labels: [rows] of the VALIDATION rows.
        probabilities: Model → its probabilities [rows], BLEND's among them.
        seed: Of the bootstrap.
    """
    single = {name: evaluate(labels, found) for name, found in probabilities.items() if name != BLEND}
    best = choose_champion(single)
    gain = compare_auc(labels, probabilities[BLEND], probabilities[best], seed=seed)
    return Choice(BLEND if gain.low > 0 else best, best, gain)


@dataclass(frozen=True)
class Promotion:
    """Whether a champion may be replaced.

    Attributes:
        gain: Validation AUC of the new one above the former's, on the same rows; None where there is none.
        max_auc_loss: What the new one may lack.
    """

    gain: Difference | None
    max_auc_loss: float

    @property
    def auc_behind(self) -> float:
        """By how much the new one ranks worse; below 0 where it ranks better, 0 where there is no former."""
        return -self.gain.value if self.gain else 0.0

    @property
    def accepted(self) -> bool:
        return self.auc_behind <= self.max_auc_loss


def compare_with_former(
    validation: TrainingRows, scorer: Scorer, former: Scorer | None, max_auc_loss: float, *, seed: int = 0
) -> Promotion:
    """Measures a new champion and the former one on the same rows, each with its own vocabulary.

    Args:
        validation: Rows that trained neither, encoded with the new one's vocabulary.
        scorer: The new one.
        former: The one that serves; None where there is none.
        max_auc_loss: What the new one may lack.
        seed: Of the bootstrap.
    """
    if former is None:
        return Promotion(None, max_auc_loss)
    rows = former.vocabulary.translate(validation.bags, scorer.vocabulary)
    new, old = scorer.score(validation.bags), former.score(rows)
    return Promotion(compare_auc(validation.labels, new, old, seed=seed), max_auc_loss)


def blend_of(members: Mapping[str, Path]) -> BlendedModel:
    """The candidates' bundles as one model."""
    return BlendedModel({name: members[name] for name in CANDIDATES if name in members})


def find_thresholds(
    scorer: Scorer, rows: TrainingRows, segments: Sequence[SegmentSpec]
) -> dict[str, Threshold | None]:
    """For each segment by minimum precision, the cut that reached it on the validation devices."""
    wanted = {
        segment.name: segment.min_precision for segment in segments if segment.min_precision is not None
    }
    if not wanted:
        return {}
    validation = rows.subset(VALIDATION)
    probabilities = scorer.score(validation.bags)
    return {
        name: threshold_for_precision(validation.labels, probabilities, precision)
        for name, precision in wanted.items()
    }
