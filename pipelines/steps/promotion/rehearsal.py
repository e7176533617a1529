"""The rehearsal of a training: the same one, ended a horizon before the newest as-of day, and measured on it.

What serves is trained on all as-of days, so no labelled day is later than it. What it will do on days that
come later is told by a model that the same training makes of the earlier days alone. It has no refit: what
serves learns from more devices, too. What does not belong here: which rows these are
(`steps.labels.training_set`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.steps.config.audience import SegmentSpec
from pipelines.steps.labels.training_rows import OUT_OF_TIME, TEST, VALIDATION, TrainingRows
from pipelines.steps.models.metrics import Metrics
from pipelines.steps.promotion.candidate_models import Candidate, Scores, find_thresholds
from pipelines.steps.promotion.model_report import Later, report_later

MEASURED = (VALIDATION, TEST, OUT_OF_TIME)
"""The splits of a rehearsal that are scored."""
REHEARSAL_FILE = "rehearsal.npz"
"""Beside a candidate's card: the `Scores` of its rehearsal, so that a blend's can be told."""


@dataclass(frozen=True)
class Rehearsal:
    """What came of a rehearsal.

    Attributes:
        scores: Probabilities of its VALIDATION, TEST and OUT_OF_TIME rows.
        metrics: On the newest as-of day; None where it has one class only.
        later: The newest as-of day, as a card tells it.
    """

    scores: Scores
    metrics: Metrics | None
    later: Later


def rehearsal_of(
    candidate: Candidate, rows: TrainingRows, day: str, segments: Sequence[SegmentSpec]
) -> Rehearsal:
    """What a candidate of earlier days does on the newest one.

    Args:
        candidate: Trained, calibrated and measured on earlier days.
        rows: Of the rehearsal: VALIDATION, TEST and OUT_OF_TIME.
        day: The newest as-of day, ISO.
        segments: The audience's; their cuts are found on the VALIDATION rows.
    """
    thresholds = find_thresholds(rows.subset(VALIDATION).labels, candidate.scores.validation, segments)
    cuts = {segment: cut.value if cut else None for segment, cut in thresholds.items()}
    labels = rows.subset(OUT_OF_TIME).labels
    later = report_later(day, labels, candidate.scores.out_of_time, cuts)
    return Rehearsal(candidate.scores, candidate.measured.out_of_time, later)
