"""Measures the chain on an event log against what a user would write instead.

    python -m benchmarks.events --events FILE --project DIR --scored DAY [--category COLUMN] [--money SQL] ...

Runs the whole chain on the log as its user would, on events up to the scored day, and compares what came true
afterwards: the champion and each candidate; a script as one writes it in an afternoon (recency, frequency,
money, the label's past, counts per category; logistic regression and boosted trees; the variant that its own
newest as-of day would choose); deep feature synthesis with XGBoost; and the same chain with tokens only. All
are measured on the devices that all of them score, by the chain's labels; intervals are of a paired bootstrap
over devices.

What the script is told to be money is a measure of the chain, too, where the project declares none. The
script trains on the audience's as-of days where its file lists them, else on days a month apart.
featuretools is a peer where a Python has it (and a pandas below 3): `--featuretools-python VENV/bin/python`.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from benchmarks.events_figures import FIGURES
from benchmarks.events_report import (
    CHAMPION,
    FEATURETOOLS,
    SCRIPT,
    TOKENS_ONLY,
    Contestant,
    Result,
    differences_table,
    judge,
    mean_differences,
    models_table,
    report_of,
)
from benchmarks.events_script import Log, Scripted, converters, features, monthly_days, run_script
from pipelines.steps.config.audience import Audience, RollingDays
from pipelines.steps.config.behaviour import GROUPS
from pipelines.steps.config.project import Project, load_project
from pipelines.steps.errors import AudienceFactoryError, DataError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from benchmarks.events_chain import Clock, Place, Trained

PEERS = (SCRIPT, FEATURETOOLS, "tokens_only")


# --- the peers -------------------------------------------------------------------------------------


def script_days(audience: Audience, project: Project, scored: date) -> list[date]:
    """The as-of days that the script trains on."""
    if not isinstance(audience.as_of_days, RollingDays):
        return list(audience.as_of_days)
    first_day, window = project.fields.events.first_day, project.fields.window_days
    return monthly_days(first_day, window, audience.horizon_days, scored)


def of_script(said: Scripted) -> dict[str, Contestant]:
    """The script's variants, the one that its author would use marked."""
    order = np.argsort(said.devices)
    return {
        f"{SCRIPT}: {name}": Contestant(
            said.devices[order],
            [probabilities[order]],
            note="its own validation's choice" if name == said.chosen else "",
        )
        for name, probabilities in said.probabilities.items()
    }


def run_featuretools(
    python: str, log: Log, as_of_days: Sequence[date], scored: date, scratch: Path
) -> Contestant:
    """Deep feature synthesis in a process of its own, on the script's devices, as-of days and labels.

    Raises:
        PeerError: It has not the packages, or failed.
    """
    packages = ("featuretools", "xgboost")
    probe = [python, "-W", "ignore", "-c", f"import {', '.join(packages)}"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        raise PeerError(f"{python} has not the packages {' and '.join(packages)} (--featuretools-python)")
    rows = []
    for day in [*as_of_days, scored]:
        devices = features(log, day, []).index
        labels = None if day == scored else devices.isin(converters(log, day)).astype(float)
        end = pd.Timestamp(day) + pd.Timedelta(days=1)
        rows.append(pd.DataFrame({"device_id": devices, "end": end, "label": labels}, dtype=None))
    together = pd.concat(rows, ignore_index=True)
    together["label"] = together["label"].astype(float)
    scratch.mkdir()
    events, asked, scores = (scratch / f"{name}.parquet" for name in ("events", "rows", "scores"))
    plain = log.events.assign(category=log.events["category"].astype(object))
    plain.to_parquet(events, coerce_timestamps="us", allow_truncated_timestamps=True)
    together.to_parquet(asked)
    command = [python, "-W", "ignore", "-m", "benchmarks.events_featuretools", str(events), str(asked)]
    finished = subprocess.run(
        [*command, str(log.window_days), str(scores)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise PeerError(f"featuretools failed: {finished.stderr.strip().splitlines()[-1:]}")
    found = pd.read_parquet(scores).sort_values("device_id")
    note = finished.stdout.strip().splitlines()[-1]
    return Contestant(found["device_id"].to_numpy(dtype=str), [found["probability"].to_numpy()], note=note)


class PeerError(Exception):
    """A peer that cannot run, with the reason."""


def of_chain(trainings: Sequence["Trained"]) -> dict[str, Contestant]:
    """The chain's models, those that every training has."""
    names = [name for name in trainings[0].probabilities if all(name in t.probabilities for t in trainings)]
    names.sort(key=lambda name: (name != CHAMPION, name))
    served = ", ".join(str(training.champion) for training in trainings)
    return {
        name: Contestant(
            trainings[0].devices,
            [training.probabilities[name] for training in trainings],
            [training.thresholds[name] for training in trainings],
            note=served if name == CHAMPION else "",
        )
        for name in names
    }


# --- the whole benchmark ---------------------------------------------------------------------------


def run(options: argparse.Namespace, root: Path, clock: "Clock") -> dict[str, Result]:
    """Runs the chain and the peers, and compares them.

    Args:
        options: Of the command line.
        root: An empty folder for all that is made.
        clock: Takes the seconds of each part.

    Returns:
        Audience → what came of it.
    """
    from benchmarks import events_chain as chain

    copies = [
        chain.copy_project(
            options.project,
            root / f"project-{training}",
            options.events,
            scored=options.scored,
            training=training,
            money=options.money,
        )
        for training in range(options.seeds)
    ]
    project = copies[0]
    chain.require_outcome(project, options.scored)
    # Loading the definitions binds a project; it should be one that is there.
    os.environ |= {"AUDIENCES_DIR": str(project.directory), "DATA_DIR": str(root / "unused")}
    from resources.spark import Spark

    spark = Spark.from_environment(driver_memory="3g")
    try:
        session = spark.session  # started here, so that all runs share one JVM
        raw = None
        if {SCRIPT, FEATURETOOLS} & set(options.peers):
            rows = chain.raw_events(project, options.scored, session)
            raw = chain.script_columns(rows, options.category, options.money).cache()
        place = chain.Place(root / "chain", clock, "chain")
        chain.ingest_past(place, project, options.scored)
        outcome = chain.Place(root / "outcome", clock, "outcome")
        chain.ingest_outcome(outcome, project, options.scored)
        bare, why_not = _tokens_only_place(options, root, clock, place)
        chain.make_features(place, project)
        trainings = [
            chain.train_and_score(place, copy, options.scored, n, session) for n, copy in enumerate(copies)
        ]
        bare_trainings = _train_bare(options, root, bare, session, why_not) if bare else []
        results = {}
        for audience in project.audiences:
            name = audience.name
            known = [training[name] for training in trainings if name in training]
            if len(known) < len(trainings):
                chain.say(f"\n{name}: not every training made a model; left out")
                continue
            contestants, missing, script = of_chain(known), dict(why_not), None
            if bare_trainings and all(name in training for training in bare_trainings):
                contestants |= _bare_champion([training[name] for training in bare_trainings], missing)
            if CHAMPION not in contestants:
                missing[CHAMPION] = next((k.problem for k in known if k.problem), None) or "none may serve"
            if raw is not None:
                with clock.timing(f"{name}: reading the raw log"):
                    log = chain.log_of(raw, audience, project.fields.window_days)
                peers, script = _run_peers(options, project, audience, log, root, clock, missing)
                contestants |= peers
            happened = chain.outcome_of(place, outcome, audience, options.scored, session)
            try:
                results[name] = judge(happened, contestants, audience.segments, script, missing)
            except DataError as error:
                chain.say(f"\n{name}: left out: {error}")
                continue
            _print(name, audience, results[name], clock)
        return results
    finally:
        spark.stop()


def _tokens_only_place(
    options: argparse.Namespace, root: Path, clock: "Clock", chain_place: "Place"
) -> tuple["Place | None", dict[str, str]]:
    """A place for the chain with tokens only, with the events that the chain has read; or why not."""
    from benchmarks import events_chain as chain

    if "tokens_only" not in options.peers:
        return None, {}
    try:
        _copy_bare(options, root, 0)
    except AudienceFactoryError as error:
        chain.say(f"\n{TOKENS_ONLY}: skipped: {error}")
        return None, {TOKENS_ONLY: str(error)}
    place = chain.Place(root / "tokens_only", clock, TOKENS_ONLY)
    place.take_lake_of(chain_place)
    return place, {}


def _copy_bare(options: argparse.Namespace, root: Path, training: int) -> Project:
    from benchmarks import events_chain as chain

    return chain.copy_project(
        options.project,
        root / f"tokens-only-{training}",
        options.events,
        scored=options.scored,
        training=training,
        without=GROUPS,
        money=options.money,
    )


def _train_bare(
    options: argparse.Namespace,
    root: Path,
    place: "Place",
    session: "SparkSession",
    why_not: dict[str, str],
) -> list[dict[str, "Trained"]]:
    from benchmarks import events_chain as chain

    copies = [load_project(root / "tokens-only-0")]
    copies += [_copy_bare(options, root, n) for n in range(1, options.seeds)]
    try:
        chain.make_features(place, copies[0])
        return [
            chain.train_and_score(place, copy, options.scored, n, session) for n, copy in enumerate(copies)
        ]
    except AudienceFactoryError as error:  # what the others say is no worse for it
        chain.say(f"\n{TOKENS_ONLY}: left out: {error}")
        why_not[TOKENS_ONLY] = str(error)
        return []


def _bare_champion(trainings: Sequence["Trained"], missing: dict[str, str]) -> dict[str, Contestant]:
    found = of_chain(trainings)
    if CHAMPION in found:
        return {TOKENS_ONLY: found[CHAMPION]}
    missing[TOKENS_ONLY] = next((t.problem for t in trainings if t.problem), None) or "none may serve"
    return {}


def _run_peers(
    options: argparse.Namespace,
    project: Project,
    audience: Audience,
    log: Log,
    root: Path,
    clock: "Clock",
    missing: dict[str, str],
) -> tuple[dict[str, Contestant], str | None]:
    """The script and featuretools of one audience; and which variant the script's author would use."""
    days = options.script_days or script_days(audience, project, options.scored)
    found: dict[str, Contestant] = {}
    script = None
    if not days:
        missing[SCRIPT] = "no as-of day has a whole window before it and a whole horizon after it"
        return {}, None
    if SCRIPT in options.peers:
        print(f"\n{audience.name}: the script, as of {', '.join(map(str, days))}", flush=True)
        with clock.timing(f"{audience.name}: {SCRIPT}"):
            said = run_script(log, days, options.scored, by=options.choose_by)
        for name, figures in said.validated.items():
            print(f"  {name}: {', '.join(f'{f} {v:.4f}' for f, v in figures.items())} on {days[-1]}")
        found, script = of_script(said), f"{SCRIPT}: {said.chosen}"
    if FEATURETOOLS in options.peers:
        print(f"\n{audience.name}: featuretools …", flush=True)
        try:
            with clock.timing(f"{audience.name}: {FEATURETOOLS}"):
                found[FEATURETOOLS] = run_featuretools(
                    options.featuretools_python, log, days, options.scored, root / f"{audience.name}-dfs"
                )
        except PeerError as error:
            print(f"  skipped: {error}", flush=True)
            missing[FEATURETOOLS] = str(error)
    return found, script


# --- what is printed and written -------------------------------------------------------------------


def _print(name: str, audience: Audience, result: Result, clock: "Clock") -> None:
    summary = result.summary
    print(
        f"\n== {name}: {summary['devices']:,} devices that all score "
        f"(of {summary['devices_of_the_chain']:,}), "
        f"{summary['converted']:.2%} converted within {audience.horizon_days} days ==\n"
    )
    print(models_table(summary, [segment.name for segment in audience.segments], _seconds(name, clock)))
    for model, reason in summary["missing"].items():
        print(f"{model}: missing, {reason}")
    if result.differences:
        print()
        print(differences_table(result.differences))


def _seconds(audience: str, clock: "Clock") -> dict[str, float]:
    """Model → seconds of one training; of the champion, of all that the chain did for all audiences."""
    of_steps = {
        part.removeprefix(f"chain: {audience}__").removesuffix("_model"): float(np.mean(runs))
        for part, runs in clock.parts.items()
        if part.startswith(f"chain: {audience}__") and part.endswith("_model")
    }
    jobs = {part: runs for part, runs in clock.parts.items() if part.endswith("_job")}
    whole = {CHAMPION: "chain: ", TOKENS_ONLY: f"{TOKENS_ONLY}: "}
    for model, prefix in whole.items():
        parts = [
            float(np.mean(runs)) if part.endswith("training_job") else sum(runs)
            for part, runs in jobs.items()
            if part.startswith(prefix)
        ]
        if parts:
            of_steps[model] = sum(parts)
    if runs := clock.parts.get(f"{audience}: {FEATURETOOLS}"):
        of_steps[FEATURETOOLS] = sum(runs)
    return of_steps


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.events",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--events", type=Path, required=True, help="the log, as events.path names one")
    options.add_argument(
        "--project",
        type=Path,
        required=True,
        help="folder of fields.yaml and audiences; its path is replaced",
    )
    options.add_argument("--scored", type=date.fromisoformat, required=True, help="the day, YYYY-MM-DD")
    options.add_argument("--seeds", type=int, default=1, help="trainings, each with a seed of its own (1)")
    options.add_argument("--category", help="the script's column to count by; without it, it counts nothing")
    options.add_argument(
        "--money",
        help="the script's money, SQL over an event's columns (1); a measure of the chain where it has none",
    )
    options.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)} (all); or none")
    options.add_argument(
        "--choose-by", choices=FIGURES, default="auc", help="what the script's validation looks at (auc)"
    )
    options.add_argument(
        "--script-days", help="as-of days of the script, with commas (the audience's, else monthly)"
    )
    options.add_argument(
        "--featuretools-python", default=sys.executable, help="a Python that has featuretools (this one)"
    )
    options.add_argument("--json", type=Path, default=None, help="file that the figures are written to")
    options.add_argument(
        "--work-dir", type=Path, default=Path("data/benchmarks"), help="folder to work in; emptied afterwards"
    )
    options.add_argument("--keep", action="store_true", help="keep what was made, for a look at it")
    chosen = options.parse_args(arguments)
    chosen.peers = [] if chosen.peers == "none" else chosen.peers.split(",")
    if unknown := sorted(set(chosen.peers) - set(PEERS)):
        options.error(f"unknown peers {unknown}; there are {', '.join(PEERS)}")
    if chosen.seeds < 1:
        options.error("--seeds must be 1 or more")
    if not chosen.events.exists():
        options.error(f"there is no {chosen.events}")
    if chosen.script_days:
        chosen.script_days = sorted(map(date.fromisoformat, chosen.script_days.split(",")))
    return chosen


@contextmanager
def _scratch(options: argparse.Namespace) -> Iterator[Path]:
    options.work_dir.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(prefix="events-", dir=options.work_dir)).absolute()
    try:
        yield scratch
    finally:
        if options.keep:
            print(f"\nkept: {scratch}")
        else:
            shutil.rmtree(scratch)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the process's exit status."""
    options = parse(arguments)
    from benchmarks.events_chain import Clock

    clock = Clock()
    try:
        with _scratch(options) as scratch:
            results = run(options, scratch, clock)
    except AudienceFactoryError as error:
        sys.stderr.write(f"\nerror: {error}\n")
        return 1
    print("\nseconds")
    for part, runs in clock.parts.items():
        print(f"  {part}  {', '.join(f'{seconds:.1f}' for seconds in runs)}")
    config = {
        "events": options.events.name,
        "project": options.project.name,
        "scored": str(options.scored),
        "seeds": options.seeds,
        "category": options.category,
        "money": options.money,
        "peers": options.peers,
        "chosen_by": options.choose_by,
    }
    if means := mean_differences(results):
        print(f"\n== the mean of {len(results)} audiences ==\n\n{differences_table(means)}")
    report_of(results, clock.parts, config).save(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
