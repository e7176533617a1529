"""Measures how well each model ranks the users of a data set: `python -m benchmarks.quality --data DIR`.

DIR holds `users.parquet`: `id` (string), `label` (0 or 1) and features, each a string or a list of strings.
Each seed splits the users anew (60/20/20 by a hash of the id), fits the vocabulary on the training users, and
trains every model with the project's own steps and defaults. Validation users tune, calibrate and choose; the
test users are scored once, at the end.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.labelled_users import encode_users, read_users, split_users
from benchmarks.measure import Ratio, Report, paired_ratio
from benchmarks.simulated_users import attainable, write_users
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.labels.training_rows import TEST, VALIDATION, TrainingRows
from pipelines.steps.models.bundle import TrainedModel
from pipelines.steps.models.bundle_loader import load_bundle
from pipelines.steps.models.dnn_config import DnnConfig, weight_decays
from pipelines.steps.models.dnn_training import tune_dnn
from pipelines.steps.models.logistic_model import LogisticConfig, train_logistic
from pipelines.steps.models.metrics import compare_auc, compute_metrics
from pipelines.steps.models.xgboost_model import XGBoostConfig, tune_xgboost
from pipelines.steps.promotion.candidate_models import (
    BLEND,
    CANDIDATES,
    Candidate,
    blend_of,
    blend_scores,
    measure_candidate,
    write_candidate,
)
from pipelines.steps.promotion.champion_model import choose

CHAMPION = "champion"
SIMULATION_SEED = 7
MODELS = (*CANDIDATES, CHAMPION)
FIGURES = (
    "auc",
    "average_precision",
    "recall_at_precision_50",
    "recall_at_precision_70",
    "recall_at_precision_80",
    "recall_at_precision_90",
    "log_loss",
    "brier",
    "calibration_error",
)
Train = Callable[[TrainingRows, Mapping[str, int], int], TrainedModel]


def _say(message: object) -> None:
    print(f"    {message}", flush=True)


def _dnn(rows: TrainingRows, sizes: Mapping[str, int], seed: int) -> TrainedModel:
    return tune_dnn(rows, sizes, DnnConfig(seed=seed), weight_decays(rows.rows), _say)


def _xgboost(rows: TrainingRows, sizes: Mapping[str, int], seed: int) -> TrainedModel:
    return tune_xgboost(rows, sizes, XGBoostConfig(seed=seed), _say)


def _logistic(rows: TrainingRows, sizes: Mapping[str, int], seed: int) -> TrainedModel:  # noqa: ARG001 (has none)
    return train_logistic(rows, sizes, LogisticConfig())


TRAINERS: Mapping[str, Train] = {"dnn": _dnn, "xgboost": _xgboost, "logistic": _logistic}


@dataclass(frozen=True)
class Measured:
    """A model on the test users of one seed: figures by name, and its probabilities [rows]."""

    figures: Mapping[str, float]
    probabilities: np.ndarray


@dataclass(frozen=True)
class Round:
    """All models on the test users of one seed.

    Attributes:
        labels: [rows] of the test users.
        models: Model → what it reached.
        chosen: What the champion is.
    """

    labels: np.ndarray
    models: Mapping[str, Measured]
    chosen: str | None


def run_round(rows: TrainingRows, vocabulary: Vocabulary, seed: int, models: Sequence[str]) -> Round:
    """Trains, calibrates and bundles the models, chooses a champion, and only then scores the test users."""
    trained = [name for name in CANDIDATES if name in models or CHAMPION in models]
    seconds: dict[str, float] = {}
    candidates: dict[str, Candidate] = {}
    with TemporaryDirectory() as scratch:
        bundles = {name: Path(scratch) / name for name in trained}
        for name in trained:
            started = time.perf_counter()
            _say(f"{name} …")
            model = TRAINERS[name](rows, vocabulary.sizes, seed)
            candidates[name] = measure_candidate(model, vocabulary, rows)
            write_candidate(bundles[name], candidates[name], vocabulary, [])
            seconds[name] = time.perf_counter() - started
        chosen = None
        if CHAMPION in models:
            started = time.perf_counter()
            scored = {name: each.scores.validation for name, each in candidates.items()}
            choice = choose(rows.subset(VALIDATION).labels, scored, seed=seed)
            chosen = " + ".join(choice.members)
            if choice.name == BLEND:
                bundles[BLEND] = Path(scratch) / BLEND
                members = {name: candidates[name].scores for name in choice.members}
                blend = blend_of({name: bundles[name] for name in choice.members})
                measured = measure_candidate(blend, vocabulary, rows, scores=blend_scores(members))
                write_candidate(bundles[BLEND], measured, vocabulary, [])
            bundles[CHAMPION] = bundles[choice.name]
            seconds[CHAMPION] = sum(seconds.values()) + time.perf_counter() - started
        test = rows.subset(TEST)
        results = {}
        for name in models:
            probabilities = load_bundle(bundles[name]).score(test.bags)
            metrics = compute_metrics(test.labels, probabilities).to_dict()
            figures = {figure: metrics[figure] for figure in FIGURES} | {"seconds": seconds[name]}
            results[name] = Measured(figures, probabilities)
    return Round(test.labels, results, chosen)


def report_of(rounds: Sequence[Round], config: dict[str, Any]) -> Report:
    """Mean and sd over the seeds, and paired differences of AUC."""
    report = Report(config)
    for name in rounds[0].models:
        figures = [r.models[name].figures for r in rounds]
        report.results[name] = {
            figure: {
                "mean": float(np.mean([f[figure] for f in figures])),
                "sd": float(np.std([f[figure] for f in figures], ddof=1)) if len(figures) > 1 else 0.0,
            }
            for figure in figures[0]
        }
    pairs = {
        "auc_dnn_minus_xgboost": ("dnn", ["xgboost"]),
        "auc_dnn_minus_logistic": ("dnn", ["logistic"]),
        "auc_champion_minus_xgboost": (CHAMPION, ["xgboost"]),
        "auc_champion_minus_best_single": (CHAMPION, list(CANDIDATES)),
    }
    for title, (ours, theirs) in pairs.items():
        if all(name in rounds[0].models for name in [ours, *theirs]):
            report.ratios[title] = _difference(rounds, ours, theirs)
    if rounds[0].chosen is not None:
        report.results[CHAMPION]["chosen"] = [r.chosen for r in rounds]
    return report


def add_attainable(report: Report, rounds: Sequence[Round], best: Sequence[float]) -> None:
    """What the true propensity reaches, and the share of it that each model does, of AUC above 0.5."""
    report.results["attainable"] = {"auc": {"mean": float(np.mean(best)), "sd": float(np.std(best))}}
    for name in rounds[0].models:
        reached = [r.models[name].figures["auc"] - 0.5 for r in rounds]
        report.ratios[f"{name}_of_attainable"] = paired_ratio(reached, [auc - 0.5 for auc in best])


def _difference(rounds: Sequence[Round], ours: str, theirs: Sequence[str]) -> Ratio:
    """AUC of ours less the best of theirs (best by mean over the seeds), over test users and seeds."""
    means = {name: np.mean([r.models[name].figures["auc"] for r in rounds]) for name in theirs}
    best = max(means, key=lambda name: means[name])
    found = [
        compare_auc(r.labels, r.models[ours].probabilities, r.models[best].probabilities, seed=seed)
        for seed, r in enumerate(rounds)
    ]
    # Each interval is of one test split; their mean is the surer for their number.
    centre = float(np.mean([d.value for d in found]))
    below = float(np.sqrt(np.sum([(d.value - d.low) ** 2 for d in found])) / len(found))
    above = float(np.sqrt(np.sum([(d.high - d.value) ** 2 for d in found])) / len(found))
    return Ratio(centre, centre - below, centre + above)


def _table(report: Report) -> str:
    from tabulate import tabulate

    lines = [
        [
            name,
            *(f"{r[figure]['mean']:.4f} ± {r[figure]['sd']:.4f}" for figure in FIGURES),
            f"{r['seconds']['mean']:.0f}",
        ]
        for name, r in report.results.items()
        if "log_loss" in r
    ]
    return str(tabulate(lines, headers=["model", *FIGURES, "seconds"]))


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = options.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder of users.parquet")
    source.add_argument(
        "--simulated", type=int, metavar="DEVICES", help="a simulated world of so many instead"
    )
    options.add_argument(
        "--work-dir", type=Path, default=Path("data/benchmarks"), help="folder of the simulated world"
    )
    options.add_argument("--label", default="label", help="the column of labels (label)")
    options.add_argument("--seeds", type=int, default=5, help="splits and trainings (5)")
    options.add_argument("--models", default=",".join(MODELS), help=f"of {', '.join(MODELS)}")
    options.add_argument("--rows", type=int, default=None, help="the first so many users only")
    options.add_argument("--json", type=Path, default=None, help="file that the figures are written to")
    chosen = options.parse_args(arguments)
    models = chosen.models.split(",")
    unknown = sorted(set(models) - set(MODELS))
    if unknown:
        options.error(f"unknown models {unknown}; there are {', '.join(MODELS)}")
    if chosen.simulated:
        chosen.data = write_users(
            chosen.work_dir / f"users-{chosen.simulated}", chosen.simulated, SIMULATION_SEED
        )
    users = read_users(chosen.data, chosen.label)
    if chosen.rows is not None:
        users = replace(
            users,
            ids=users.ids[: chosen.rows],
            labels=users.labels[: chosen.rows],
            features=users.features.slice(0, chosen.rows),
        )
    rounds, best = [], []
    for seed in range(chosen.seeds):
        print(f"  seed {seed} of {chosen.seeds}", flush=True)
        split = split_users(users, seed)
        rows, vocabulary = encode_users(users, split)
        if without := sorted(set(users.features.column_names) - set(vocabulary.sizes)):
            print(f"  left out, because no training user has any: {', '.join(without)}", flush=True)
        if chosen.simulated:
            tested = split == TEST
            best.append(attainable(chosen.data, users.ids.filter(pa.array(tested)), users.labels[tested]))
        rounds.append(run_round(rows, vocabulary, seed, models))
        print({name: round(m.figures["auc"], 4) for name, m in rounds[-1].models.items()}, rounds[-1].chosen)
    config = {
        "data": chosen.data.name,
        "label": chosen.label,
        "rows": len(users.labels),
        "positives": int(users.labels.sum()),
        "fields": users.features.column_names,
        "seeds": chosen.seeds,
        "split": "60/20/20 by a hash of seed and id",
    }
    report = report_of(rounds, config)
    if best:
        add_attainable(report, rounds, best)
    print(_table(report))
    report.publish(chosen.json)


if __name__ == "__main__":
    main()
