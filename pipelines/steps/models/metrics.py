"""Measures of a model, and of two models on the same rows.

Everything here reads labels and probabilities only, so it judges any kind of model alike.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from sklearn.metrics import average_precision_score, log_loss, precision_recall_curve, roc_auc_score

from pipelines.steps.config.metric import Metric
from pipelines.steps.errors import DataError, TrainingError
from pipelines.steps.models.ranking import Ranking

RESAMPLES = 500
"""Bootstrap resamples."""
CALIBRATION_BINS = 10


@dataclass(frozen=True)
class Metrics:
    """One model measured on the rows of one split.

    Attributes:
        auc: Area under the ROC curve.
        average_precision: Area under the precision-recall curve, by steps.
        log_loss: Mean negative log-likelihood, in nats.
        recall_at_precision_50: The highest recall of any threshold whose precision is at least
            0.5; 0 where there is none. Likewise for 70, 80 and 90.
        brier: Mean squared difference of probability and label.
        calibration_error: Expected calibration error: over ten bins of equally many rows, the mean
            absolute difference of mean probability and rate of positives.
        rows: Rows measured.
        positives: Rows labelled 1.
        base_rate: positives / rows.
    """

    auc: float
    average_precision: float
    log_loss: float
    recall_at_precision_50: float
    recall_at_precision_70: float
    recall_at_precision_80: float
    recall_at_precision_90: float
    brier: float
    calibration_error: float
    rows: int
    positives: int
    base_rate: float

    def to_dict(self) -> dict[str, float]:
        """Plain numbers, for a bundle's manifest or a run's metadata."""
        return asdict(self)


@dataclass(frozen=True)
class Threshold:
    """A cut-off: rows with a probability of at least `value` are in the segment.

    Attributes:
        value: The lowest probability that is still selected.
        precision: Share of the selected rows that are positive.
        recall: Share of the positives that are selected.
        rows: Rows selected.
    """

    value: float
    precision: float
    recall: float
    rows: int


def compute_metrics(labels: np.ndarray, probabilities: np.ndarray) -> Metrics:
    """Measures one model.

    Args:
        labels: [rows], 0 or 1.
        probabilities: [rows], the model's probability of 1.

    Raises:
        DataError: The probabilities are not one finite number in [0, 1] per label.
        TrainingError: The labels hold one class only, so that AUC is undefined.
    """
    labels, probabilities = _checked(labels, probabilities)
    precision, recall, _ = precision_recall_curve(labels, probabilities)
    positives = int(labels.sum())

    def recall_at(wanted: float) -> float:
        return float(recall[precision >= wanted].max())  # the curve's last point is (1, 0)

    return Metrics(
        auc=float(roc_auc_score(labels, probabilities)),
        average_precision=float(average_precision_score(labels, probabilities)),
        log_loss=float(log_loss(labels, probabilities)),
        recall_at_precision_50=recall_at(0.5),
        recall_at_precision_70=recall_at(0.7),
        recall_at_precision_80=recall_at(0.8),
        recall_at_precision_90=recall_at(0.9),
        brier=float(np.mean((probabilities - labels) ** 2)),
        calibration_error=_calibration_error(labels, probabilities),
        rows=len(labels),
        positives=positives,
        base_rate=positives / len(labels),
    )


@dataclass(frozen=True)
class Difference:
    """One model's figure less another's on the same rows, with a 95% bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


@dataclass(frozen=True)
class Interval:
    """A figure with its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


def measure_auc(
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    devices: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """AUC of one model with a bootstrap's interval.

    Args:
        labels: [rows], 0 or 1.
        probabilities: [rows], the model's.
        devices: [rows], whose row it is, from 0; each row is a device of its own where None is given. Whole
            devices are drawn, because what a device does on one as-of day it tends to do on the next.
        resamples: Of the devices, with replacement.
        seed: Of the resamples.
    """
    ranking = Ranking(*_checked(labels, probabilities))
    drawn = [ranking.measure("auc", weights) for weights in _resampled(len(labels), devices, resamples, seed)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])  # a resample of one class has no AUC
    return Interval(ranking.measure("auc"), float(low), float(high))


def compare_auc(
    labels: np.ndarray,
    probabilities: np.ndarray,
    others: np.ndarray,
    *,
    devices: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """AUC of one model minus another's, by a paired bootstrap; see `compare`."""
    return compare("auc", labels, probabilities, others, devices=devices, resamples=resamples, seed=seed)


def compare(
    metric: Metric,
    labels: np.ndarray,
    probabilities: np.ndarray,
    others: np.ndarray,
    *,
    devices: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """One model's figure minus another's, by a paired bootstrap: both are measured on each resample.

    Args:
        metric: The figure.
        labels: [rows], 0 or 1.
        probabilities: [rows], the one model's.
        others: [rows], the other's.
        devices: As for `measure_auc`.
        resamples: Of the devices, with replacement.
        seed: Of the resamples.
    """
    labels, probabilities = _checked(labels, probabilities)
    _, others = _checked(labels, others)
    first, second = Ranking(labels, probabilities), Ranking(labels, others)
    drawn = _resampled(len(labels), devices, resamples, seed)
    differences = [first.measure(metric, weights) - second.measure(metric, weights) for weights in drawn]
    low, high = np.nanpercentile(differences, [2.5, 97.5])  # a resample of one class has no figure
    return Difference(first.measure(metric) - second.measure(metric), float(low), float(high))


def _resampled(rows: int, devices: np.ndarray | None, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields the number of times that each row is drawn, [rows], for each resample."""
    random = np.random.default_rng(seed)
    count = rows if devices is None else int(devices.max()) + 1
    for _ in range(resamples):
        weights = np.bincount(random.integers(0, count, count), minlength=count)
        yield weights if devices is None else weights[devices]


def _calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    order = np.argsort(probabilities, kind="stable")
    bins = [part for part in np.array_split(order, CALIBRATION_BINS) if len(part)]
    gaps = [abs(probabilities[part].mean() - labels[part].mean()) * len(part) for part in bins]
    return float(sum(gaps) / len(labels))


def comparison_table(metrics_by_model: Mapping[str, Metrics]) -> str:
    """A Markdown table, a line per model, in the order given."""
    titles = [
        ("auc", "AUC"),
        ("average_precision", "average precision"),
        ("log_loss", "log-loss"),
        ("recall_at_precision_50", "recall at precision 0.5"),
        ("recall_at_precision_70", "0.7"),
        ("recall_at_precision_80", "0.8"),
        ("recall_at_precision_90", "0.9"),
        ("brier", "Brier"),
        ("calibration_error", "calibration error"),
        ("rows", "rows"),
        ("positives", "positives"),
        ("base_rate", "base rate"),
    ]
    lines = [
        "| model | " + " | ".join(title for _, title in titles) + " |",
        "|---|" + "---:|" * len(titles),
    ]
    for model, metrics in metrics_by_model.items():
        values = [getattr(metrics, name) for name, _ in titles]
        cells = [f"{value:,}" if isinstance(value, int) else f"{value:.4f}" for value in values]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def threshold_for_precision(
    labels: np.ndarray, probabilities: np.ndarray, precision: float
) -> Threshold | None:
    """The lowest threshold whose precision on these rows is at least the one wanted.

    Returns:
        The threshold with what it delivers on these rows; None where no threshold reaches it.
    """
    labels, probabilities = _checked(labels, probabilities)
    precisions, recalls, thresholds = precision_recall_curve(labels, probabilities)
    reaching = np.flatnonzero(precisions[:-1] >= precision)  # thresholds ascend
    if not len(reaching):
        return None
    lowest = reaching[0]
    value = float(thresholds[lowest])
    return Threshold(
        value=value,
        precision=float(precisions[lowest]),
        recall=float(recalls[lowest]),
        rows=int(np.count_nonzero(probabilities >= value)),
    )


def _checked(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [rows], or the reason why they cannot be compared."""
    labels = np.asarray(labels, dtype=np.float64)
    # float64 before anything is compared: a threshold must select the very rows it was chosen on
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if labels.shape != probabilities.shape or labels.ndim != 1:
        raise DataError(
            "labels and probabilities do not pair up",
            found=f"shapes {labels.shape} and {probabilities.shape}",
            expected="one probability per label",
            remedy="score exactly the rows that are labelled",
        )
    bad = np.flatnonzero(~((probabilities >= 0) & (probabilities <= 1)))  # NaN fails both
    if len(bad):
        raise DataError(
            "a model gave scores that are no probabilities",
            found=f"{len(bad)} of {len(probabilities)}, the first {probabilities[bad[0]]}",
            expected="finite numbers from 0 to 1",
            remedy="train the model again; its weights are damaged",
        )
    if len(np.unique(labels)) != 2:
        raise TrainingError(
            "a model cannot be measured on one class",
            found=f"{int(labels.sum())} positives in {len(labels)} rows",
            expected="both classes",
            remedy="add as-of days, or widen the audience's label",
        )
    return labels, probabilities
