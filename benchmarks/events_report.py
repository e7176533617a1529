"""Compares the contestants of an event log on the devices that all of them score; tables and report.

What does not belong here: who scored (`events`), and how a figure is computed (`events_figures`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from benchmarks.events_figures import (
    FIGURES,
    Compared,
    average,
    compare,
    draw,
    figures_of,
    segment_figures,
)
from benchmarks.measure import Ratio, Report
from pipelines.steps.config.audience import SegmentSpec
from pipelines.steps.errors import DataError
from pipelines.steps.promotion.promises import measure_promises, tenths, top_segments

CHAMPION = "champion"
TOKENS_ONLY, FEATURETOOLS = "tokens only", "featuretools"
SCRIPT = "script"
PAIRS = ((CHAMPION, TOKENS_ONLY), (CHAMPION, FEATURETOOLS), ("dnn", "xgboost"))
"""What is compared besides the champion with the script's chosen variant."""

LEAST_DEVICES = 10
PROMISING_DEVICES = 200
"""Devices of a segment whose mean probability is held against what happened."""


@dataclass(frozen=True)
class Contestant:
    """What one model says of the scored day.

    Attributes:
        devices: [devices] that it scores, sorted.
        trainings: Its probabilities [devices], one array a training.
        thresholds: Segment → its cut, one mapping a training; of a model without any, None.
        note: What else to say of it in the table.
    """

    devices: np.ndarray
    trainings: Sequence[np.ndarray]
    thresholds: Sequence[Mapping[str, float | None]] | None = None
    note: str = ""


@dataclass(frozen=True)
class Result:
    """What came of one audience.

    Attributes:
        summary: Devices, conversions, figures and differences, as the JSON has them.
        differences: Title, such as "champion - script" → figure → difference.
        draws: Title → [resamples, figures].
    """

    summary: Mapping[str, Any]
    differences: Mapping[str, Mapping[str, Compared]]
    draws: Mapping[str, np.ndarray]


def judge(
    outcome: pd.DataFrame,
    contestants: Mapping[str, Contestant],
    segments: Sequence[SegmentSpec],
    script: str | None = None,
    missing: Mapping[str, str] | None = None,
) -> Result:
    """Compares the contestants on the devices that all of them score.

    Args:
        outcome: `device_id` and `label` of the devices that the chain scores, in order.
        contestants: Model → what it says; devices that the chain does not score are left out.
        segments: The audience's.
        script: The contestant that the champion is compared with as the script.
        missing: Model → why it is not among them.

    Raises:
        DataError: They are too few, or all or none of them converted.
    """
    together = set(outcome["device_id"])
    for each in contestants.values():
        together &= set(each.devices)
    common = np.array(sorted(together), dtype=str)
    labels = outcome.set_index("device_id")["label"].loc[list(common)].to_numpy()
    if len(common) < LEAST_DEVICES or len(np.unique(labels)) < 2:
        raise DataError(
            "nothing can be compared",
            found=f"{len(common)} devices that all of {', '.join(contestants)} score, "
            f"{int(labels.sum())} of them converted",
            expected=f"{LEAST_DEVICES} devices at least, some that converted and some that did not",
            remedy="score another day, or widen the audience's label",
        )
    models = {
        name: [trained[np.searchsorted(each.devices, common)] for trained in each.trainings]
        for name, each in contestants.items()
    }
    figures = {name: _mean([figures_of(labels, t) for t in trained]) for name, trained in models.items()}
    draws = draw(labels, models)
    cut = _cut_segments(labels, models, contestants, segments)
    lines = {
        name: {
            "figures": figures[name],
            "of_each_training": [figures_of(labels, trained) for trained in models[name]],
            "interval": _intervals(draws[name]),
            "segments": cut[name],
            "promises": _promises(labels, models[name]),
            "note": each.note,
        }
        for name, each in contestants.items()
    }
    pairs = {f"{one} - {other}": (one, other) for one, other in PAIRS}
    if script is not None:
        pairs = {f"{CHAMPION} - {SCRIPT}": (CHAMPION, script)} | pairs
    pairs = {title: pair for title, pair in pairs.items() if set(pair) <= set(models)}
    differences = {
        title: compare(figures[one], figures[other], draws[one], draws[other])
        for title, (one, other) in pairs.items()
    }
    summary = {
        "devices": len(common),
        "devices_of_the_chain": len(outcome),
        "converted": float(labels.mean()),
        "script_variant": script,
        "models": lines,
        "missing": dict(missing or {}),
        "differences": {
            title: {name: asdict(each) for name, each in found.items()}
            for title, found in differences.items()
        },
    }
    return Result(
        summary, differences, {title: draws[one] - draws[other] for title, (one, other) in pairs.items()}
    )


def _cut_segments(
    labels: np.ndarray,
    models: Mapping[str, Sequence[np.ndarray]],
    contestants: Mapping[str, Contestant],
    segments: Sequence[SegmentSpec],
) -> dict[str, dict[str, Any]]:
    """Model → segment → devices and precision, the mean of the trainings.

    A model without thresholds takes as many devices as the champion does, so that precisions compare.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in models}
    for segment in segments:
        instead: int | None = None
        for name in sorted(models, key=lambda name: name != CHAMPION):
            own = contestants[name].thresholds
            cuts = [{} for _ in models[name]] if own is None else own
            parts = [
                segment_figures(
                    segment, labels, trained, cut.get(segment.name), instead if own is None else None
                )
                for trained, cut in zip(models[name], cuts, strict=True)
            ]
            precisions = [part.precision for part in parts if part.precision is not None]
            devices = float(np.mean([part.devices for part in parts]))
            if name == CHAMPION:
                instead = round(devices)
            found[name][segment.name] = {
                "devices": devices,
                "precision": float(np.mean(precisions)) if precisions else None,
            }
    return found


def _promises(labels: np.ndarray, trainings: Sequence[np.ndarray]) -> dict[str, int]:
    """The tops and tenths of PROMISING_DEVICES or more, of all trainings, and how many kept their promise."""
    found = [
        promise.kept
        for trained in trainings
        for promise in measure_promises(labels, trained, top_segments(trained) | tenths(trained)).segments
        if promise.rows >= PROMISING_DEVICES
    ]
    return {"segments": len(found), "kept": sum(found)}


def _mean(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([each[name] for each in figures])) for name in FIGURES}


def _intervals(draws: np.ndarray) -> dict[str, list[float]]:
    low, high = np.nanpercentile(draws, [2.5, 97.5], axis=0)
    return {name: [float(low[place]), float(high[place])] for place, name in enumerate(FIGURES)}


def models_table(
    summary: Mapping[str, Any], segments: Sequence[str], seconds: Mapping[str, float] | None = None
) -> str:
    """A line per model: its figures, segments, seconds and what else to say of it."""
    lines = []
    for model, found in summary["models"].items():
        figures = [f"{found['figures'][name]:.4f}" for name in FIGURES]
        cells = [_cell(found["segments"][segment]) for segment in segments]
        cells.append(f"{found['promises']['kept']} of {found['promises']['segments']}")
        took = (seconds or {}).get(model)
        lines.append([model, *figures, *cells, "" if took is None else f"{took:.0f}", found["note"]])
    named = [name.replace("_", " ") for name in FIGURES]
    titles = ["model", *named, *segments, "promises kept", "seconds", ""]
    return str(tabulate(lines, headers=titles, disable_numparse=True))


def _cell(segment: Mapping[str, Any]) -> str:
    precision = segment["precision"]
    return "none" if precision is None else f"{precision:.3f} of {segment['devices']:,.0f}"


def differences_table(differences: Mapping[str, Mapping[str, Compared]]) -> str:
    """A line per pair and figure: the difference, its interval, and how often it is no gain."""
    lines = [
        [
            title,
            figure.replace("_", " "),
            f"{each.value:+.4f}",
            f"{each.low:+.4f} to {each.high:+.4f}",
            f"{each.share_not_better:.3f}",
        ]
        for title, found in differences.items()
        for figure, each in found.items()
    ]
    titles = ["difference", "figure", "value", "95% interval", "share of resamples not better"]
    return str(tabulate(lines, headers=titles, disable_numparse=True))


def report_of(
    results: Mapping[str, Result], seconds: Mapping[str, Sequence[float]], config: Mapping[str, Any]
) -> Report:
    """All that was found; the differences, and of several audiences their mean, as the report's ratios."""
    report = Report(dict(config) | {"seconds": dict(seconds)})
    for name, result in results.items():
        report.results[name] = dict(result.summary)
    for name, differences in {name: r.differences for name, r in results.items()}.items():
        report.ratios |= _as_ratios(name, differences)
    if means := mean_differences(results):
        report.results["all audiences"] = {
            "differences": {t: {f: asdict(each) for f, each in found.items()} for t, found in means.items()}
        }
        report.ratios |= _as_ratios("all audiences", means)
    return report


def mean_differences(results: Mapping[str, Result]) -> dict[str, dict[str, Compared]]:
    """Title → figure → the mean of all audiences, of several that all have the pair; else nothing."""
    if len(results) < 2:
        return {}
    every = list(results.values())
    titles = [title for title in every[0].differences if all(title in each.differences for each in every)]
    return {
        title: average([each.differences[title] for each in every], [each.draws[title] for each in every])
        for title in titles
    }


def _as_ratios(name: str, differences: Mapping[str, Mapping[str, Compared]]) -> dict[str, Ratio]:
    return {
        f"{name}: {title}: {figure}": Ratio(each.value, each.low, each.high)
        for title, found in differences.items()
        for figure, each in found.items()
    }
