"""Training, measuring and bundling the candidates alike, and choosing the one that serves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.steps.feature_vocabulary import Vocabulary
from pipelines.steps.model_bundle import Scorer, TrainedModel, load_bundle, write_bundle
from pipelines.steps.model_comparison import (
    Metrics,
    Threshold,
    choose_champion,
    evaluate,
    threshold_for_precision,
)
from pipelines.steps.project import SegmentSpec
from pipelines.steps.training_rows import TEST, VALIDATION, TrainingRows

CODE_VERSION = "1"
"""Raised when the same rows and settings would train another model."""
CANDIDATES = ("dnn", "xgboost", "logistic")


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
) -> Measured:
    """Writes a candidate's bundle with its metrics, measured through the bundle itself.

    Args:
        directory: Where the bundle goes.
        trained: The model.
        vocabulary: Its rows were encoded with it.
        rows: All splits; VALIDATION and TEST are scored.
        training_days: The as-of days, ISO dates.
    """
    with TemporaryDirectory() as scratch:
        unmeasured = Path(scratch) / "bundle"
        common = {"training_days": training_days, "code_version": CODE_VERSION}
        write_bundle(unmeasured, trained, vocabulary, metrics={}, **common)  # type: ignore[arg-type]
        scorer = load_bundle(unmeasured)
        measured = Measured(_measure(scorer, rows, VALIDATION), _measure(scorer, rows, TEST))
    write_bundle(directory, trained, vocabulary, metrics=measured.to_dict(), **common)  # type: ignore[arg-type]
    return measured


def pick_champion(measured: Mapping[str, Measured]) -> str:
    """The candidate with the highest validation AUC."""
    return choose_champion({name: each.validation for name, each in measured.items()})


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


def _measure(scorer: Scorer, rows: TrainingRows, split: int) -> Metrics:
    chosen = rows.subset(split)
    return evaluate(chosen.labels, scorer.score(chosen.bags))
