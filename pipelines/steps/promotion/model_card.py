"""A model's card: Markdown and four plots, as a person reads it (Mitchell et al., 2019, Model Cards)."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve
from tabulate import tabulate

from pipelines.steps.models.metrics import Difference, comparison_table
from pipelines.steps.promotion.candidate_models import Measured
from pipelines.steps.promotion.champion_model import SEEN_BY_FORMER, Promotion
from pipelines.steps.promotion.model_report import Later, OperatingPoint, Report
from pipelines.steps.promotion.promises import measure_promises, top_segments

CARD_FILE = "card.md"
PLOTS_FILE = "plots.png"
PLOTS_TITLE = "ROC, precision and recall, calibration, scores"
STRONGEST = 8
"""Tokens shown of a field."""
CALIBRATION_BINS = 10
DOTS_PER_INCH = 80


@dataclass(frozen=True)
class Card:
    """What is kept beside a bundle.

    Attributes:
        markdown: Refers to PLOTS_FILE.
        plots: PNG: ROC, precision and recall with the cuts, calibration, histogram of the scores.
    """

    markdown: str
    plots: bytes

    def files(self) -> dict[str, bytes]:
        """Name → content, as the model store keeps them."""
        return {PLOTS_FILE: self.plots, CARD_FILE: self.markdown.encode()}

    def inline(self) -> str:
        """The Markdown with its plots in it, for a page that cannot fetch a file."""
        return self.markdown.replace(f"![{PLOTS_TITLE}]({PLOTS_FILE})", inline_image(self.plots, PLOTS_TITLE))


def make_card(
    title: str,
    facts: Mapping[str, object],
    report: Report,
    measured: Mapping[str, Measured],
    differences: Mapping[str, Difference] | None = None,
    promotion: Promotion | None = None,
) -> Card:
    """Writes a card.

    Args:
        title: Audience and model.
        facts: Name → value, shown at the top.
        report: The model on the test split, and on the newest as-of day.
        measured: Model → its metrics, this one's first.
        differences: Model → AUC of this one above it on the test split.
        promotion: Whether it serves, decided on the promotion split.
    """
    parts = [
        f"# {title}",
        _table([[name, value] for name, value in facts.items()], ["", ""]),
        *(_promoted(promotion) if promotion else []),
        "All figures"
        + (" below" if promotion else "")
        + " are of the test devices, which trained, tuned and chose nothing, unless a later day is named. "
        "Intervals are of 95 %.",
        f"![{PLOTS_TITLE}]({PLOTS_FILE})",
        "## Metrics",
        comparison_table({name: each.test for name, each in measured.items()}),
    ]
    if differences:
        lines = [[name, d] for name, d in differences.items()]
        parts += [
            "AUC above each other model's, by a paired bootstrap:",
            _table(lines, ["model", "AUC above"]),
        ]
    if report.delivered:
        parts += ["## Segments by precision", _delivered(report.delivered)]
    parts += ["## Promised and happened", _promised(report)]
    parts += _later(report.later, measured)
    parts += [
        "## Lift by tenth of the devices",
        _table(
            [
                [n, d.rows, f"{d.probability:.4f}", f"{d.rate:.4f}", f"{d.lift:.2f}", f"{d.recall:.3f}"]
                for n, d in enumerate(report.deciles, start=1)
            ],
            ["tenth", "devices", "mean probability", "rate of positives", "lift", "recall so far"],
        ),
        "## Slices",
        _table(
            [
                [
                    s.name,
                    s.rows,
                    f"{s.rate:.4f}",
                    f"{s.probability:.4f}",
                    "–" if s.auc is None else f"{s.auc:.3f}",
                ]
                for s in report.slices
            ],
            ["devices with", "devices", "rate of positives", "mean probability", "AUC"],
        ),
        "## Tokens",
        "By how much the logit of a device falls, on average, where the token is left out; or, of a number "
        "of behaviour, where it is what is commonest otherwise.",
        *_tokens(report),
    ]
    return Card("\n\n".join(parts) + "\n", draw(report))


def inline_image(png: bytes, title: str = "") -> str:
    """Markdown that holds the picture itself."""
    return f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})"


def draw_curves(epochs: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG of a training's loss and validation AUC.

    Args:
        epochs: `member`, `epoch`, `train_loss`, `validation_loss` and `validation_auc` of each epoch of each.
    """
    figure = _figure(height=4)
    losses, aucs = figure.subplots(1, 2)
    for member in dict.fromkeys(epoch["member"] for epoch in epochs):
        own = [epoch for epoch in epochs if epoch["member"] == member]
        numbers = [epoch["epoch"] for epoch in own]
        [line] = losses.plot(numbers, [epoch["train_loss"] for epoch in own], linestyle=":")
        losses.plot(numbers, [epoch["validation_loss"] for epoch in own], color=line.get_color())
        aucs.plot(numbers, [epoch["validation_auc"] for epoch in own], label=f"member {member}")
    losses.set(title="Loss (dotted: training)", xlabel="epoch", ylabel="nats")
    aucs.set(title="Validation AUC", xlabel="epoch")
    aucs.legend()
    return _png(figure)


def _table(lines: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    return str(tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True))


def _promoted(promotion: Promotion) -> list[str]:
    """What was decided, and the rows that it was decided on."""
    lines: list[list[object]] = [
        ["promotion rows", f"{promotion.rows:,}"],
        ["positives", f"{promotion.positives:,}"],
        ["devices of the rarer label", f"{promotion.rarer_devices:,}"],
        ["AUC", promotion.auc or "–"],
        ["former champion", promotion.former or "none"],
        ["AUC above the former's", promotion.gain or "–"],
    ]
    verdict = "serves" if promotion.accepted else "does not serve"
    return [
        "## Promotion",
        f"This model **{verdict}**: {promotion.reason}.",
        "Decided on devices that are kept for this alone: they trained, stopped, tuned, calibrated and chose "
        "nothing, whatever the seed."
        + (f" But {SEEN_BY_FORMER}." if promotion.former_may_have_seen_rows else ""),
        _table(lines, ["", ""]),
    ]


def _later(later: Later | None, measured: Mapping[str, Measured]) -> list[str]:
    """What happened a horizon after all that was trained on, beside what the test devices promise."""
    if later is None:
        return [
            "## A later day",
            "There is none: too few as-of days lie a whole horizon before the newest to train on them alone, "
            "or `training.rehearse` is off.",
        ]
    parts = [
        "## A later day",
        f"All of this is of {later.day}, the newest as-of day, and of models that the same training made of "
        "earlier days alone, all of whose labels were decided by then: so it does on days that come later. "
        "What serves has learned from this day, too.",
        f"{later.rows:,} devices, {later.positives:,} positive: a rate of "
        f"{later.positives / max(1, later.rows):.4f}, where the model's mean probability is "
        f"{later.probability:.4f}.",
    ]
    metrics = {name: each.out_of_time for name, each in measured.items() if each.out_of_time}
    if metrics:
        parts.append(comparison_table(metrics))
    if later.top:
        parts.append(
            f"Of the most probable tenth, {later.top.rows:,} devices, {later.top.rate:.1%} were positive: "
            f"{later.top.lift:.2f} times the rate of all; mean probability {later.top.probability:.4f}."
        )
    if later.delivered:
        parts.append(_delivered(later.delivered))
    return [*parts, "Promised for this day, and happened:", _promised(later)] if later.rows else parts


def _delivered(delivered: Mapping[str, OperatingPoint | None]) -> str:
    lines: list[list[object]] = []
    for segment, found in delivered.items():
        if found is None:
            lines.append([segment, "its precision was not reached on the validation devices", "", "", ""])
        else:
            lines.append([segment, f"{found.threshold:.4f}", found.precision, found.recall, found.size])
    return _table(lines, ["segment", "cut", "precision", "recall", "share of devices"])


def _promised(found: Report | Later) -> str:
    cuts = {
        name: found.probabilities >= np.float32(point.threshold)
        for name, point in found.delivered.items()
        if point
    }
    segments = {**top_segments(found.probabilities), **cuts}
    return measure_promises(found.labels, found.probabilities, segments).to_markdown()


def _tokens(report: Report) -> list[str]:
    tables = []
    for field, effects in report.tokens.items():
        lines = [[_escaped(e.token), e.rows, f"{e.effect:+.3f}"] for e in effects[:STRONGEST]]
        if lines:
            tables.append(_table(lines, [field, "devices", "effect on the logit"]))
    return tables


def _escaped(token: str) -> str:
    """The text of a Markdown cell: a token may be anything that a device sends."""
    return "`" + token.replace("`", "'").replace("|", "¦").replace("\n", " ") + "`"


def draw(report: Report) -> bytes:
    """PNG of four plots; the same report gives the same bytes."""
    figure = _figure(height=8)
    (roc, precision), (calibration, histogram) = figure.subplots(2, 2)
    _draw_roc(roc, report)
    _draw_precision(precision, report)
    _draw_calibration(calibration, report)
    _draw_histogram(histogram, report)
    return _png(figure)


def _figure(height: float) -> Any:
    # without pyplot: no window, no global state
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return content.getvalue()


def _draw_roc(axes: Any, report: Report) -> None:
    false_positives, true_positives, _ = roc_curve(report.labels, report.probabilities)
    axes.plot(false_positives, true_positives)
    axes.plot([0, 1], [0, 1], linestyle=":", color="grey")
    axes.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")


def _draw_precision(axes: Any, report: Report) -> None:
    precision, recall, _ = precision_recall_curve(report.labels, report.probabilities)
    axes.plot(recall, precision)
    axes.axhline(report.labels.mean(), linestyle=":", color="grey", label="base rate")
    for segment, found in report.delivered.items():
        if found is not None and found.rows:
            axes.plot(found.recall.value, found.precision.value, "o", label=segment)
    axes.set(title="Precision and recall", xlabel="recall", ylabel="precision", ylim=(0, 1.02))
    axes.legend()


def _draw_calibration(axes: Any, report: Report) -> None:
    order = np.argsort(report.probabilities, kind="stable")
    bins = [part for part in np.array_split(order, CALIBRATION_BINS) if len(part)]
    said = [float(report.probabilities[part].mean()) for part in bins]
    true = [float(report.labels[part].mean()) for part in bins]
    most = max(*said, *true)
    axes.plot([0, most], [0, most], linestyle=":", color="grey")
    axes.plot(said, true, marker="o")
    axes.set(title="Calibration", xlabel="mean probability", ylabel="rate of positives")


def _draw_histogram(axes: Any, report: Report) -> None:
    borders = np.linspace(0, float(report.probabilities.max()) or 1.0, 41)
    for label, name in [(0, "negatives"), (1, "positives")]:
        axes.hist(report.probabilities[report.labels == label], bins=borders, histtype="step", label=name)
    axes.set(title="Scores", xlabel="probability", ylabel="devices", yscale="log")
    axes.legend()
