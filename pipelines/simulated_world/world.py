"""A seeded world of devices and the mobile SDK events they send: the demo's input.

What belongs in this package: the world's rules (interests, apps, hazards, dirt) and the writing of its files.
What does not: anything that a pipeline does with those events.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.simulated_world.catalogue import build_catalogue
from pipelines.simulated_world.config import SimulationError, WorldConfig
from pipelines.simulated_world.events import draw_events
from pipelines.simulated_world.files import spellings_of, write_events
from pipelines.simulated_world.population import build_population, propensity
from pipelines.simulated_world.rules import CALIBRATION_DAYS, Bools, Floats
from pipelines.steps.errors import DataError

EVENTS_FOLDER = "events"
TRUTH_FILE = "truth.parquet"
WORLD_FILE = "world.json"


def simulate_world(
    config: WorldConfig, out_dir: Path, progress: Callable[[str], None] = lambda _line: None
) -> bool:
    """Writes the world of `config` under `out_dir`, unless it is there already.

    It is written beside `out_dir` and renamed: a killed run leaves the previous world, or none.

    Args:
        config: The world.
        out_dir: Becomes the world's directory; replaced where it holds another world.
        progress: Called with a line for the user, now and then.

    Returns:
        Whether anything was written.

    Raises:
        SimulationError: `out_dir` holds something that is not a world.
    """
    out_dir = out_dir.resolve()
    if _stored_world(out_dir) == config.as_json():
        progress(f"{out_dir} already holds this world: nothing to do")
        return False
    seeds = np.random.SeedSequence(config.seed).spawn(3)
    catalogue = build_catalogue(np.random.default_rng(seeds[0]))
    population = build_population(config, catalogue, np.random.default_rng(seeds[1]))
    progress(
        f"{config.devices:,} devices: expecting {population.expected_buyer_share():.1%} of them to buy a car"
    )
    events = draw_events(config, catalogue, population, np.random.default_rng(seeds[2]))
    progress(f"{len(events.received_us):,} events drawn")

    unfinished = out_dir.with_name(f".{out_dir.name}.unfinished")
    replaced = out_dir.with_name(f".{out_dir.name}.replaced")
    for leftover in (unfinished, replaced):  # of a killed run
        if leftover.exists():
            shutil.rmtree(leftover)
    unfinished.mkdir(parents=True)
    write_events(config, events, spellings_of(catalogue, population), unfinished / EVENTS_FOLDER, progress)
    pq.write_table(population.truth(), unfinished / TRUTH_FILE)
    (unfinished / WORLD_FILE).write_text(json.dumps(config.as_json(), indent=2) + "\n", encoding="utf-8")
    if out_dir.exists():
        out_dir.rename(replaced)
    unfinished.rename(out_dir)
    if replaced.exists():
        shutil.rmtree(replaced)
    progress(f"world written to {out_dir}")
    return True


def attainable_auc(daily_hazard: Floats, bought: Bools, horizon_days: float = CALIBRATION_DAYS) -> float:
    """AUC of the true propensity against what happened: what a perfect model would get.

    Args:
        daily_hazard: Hazards of the devices judged, from the truth table.
        bought: Whether each of them bought within the horizon, in the same order.
        horizon_days: Length of the horizon.
    """
    return rank_auc(propensity(daily_hazard, horizon_days), bought)


def rank_auc(scores: NDArray[np.generic], outcomes: Bools) -> float:
    """Area under the ROC curve; tied scores count half.

    Raises:
        DataError: The outcomes are all alike, so that there is no curve.
    """
    outcomes = np.asarray(outcomes, dtype=bool)
    positives = int(outcomes.sum())
    negatives = len(outcomes) - positives
    if not positives or not negatives:
        raise DataError(
            "an AUC was asked of outcomes that are all alike",
            found=f"{positives} positive and {negatives} negative outcomes",
            expected="at least one of each",
            remedy="take more devices or a longer horizon",
        )
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = float(mean_ranks[inverse][outcomes].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def _stored_world(out_dir: Path) -> object:
    """What world.json in `out_dir` says; None where there is no world yet.

    Raises:
        SimulationError: `out_dir` is in use for something else, which must not be replaced.
    """
    if not out_dir.exists():
        return None
    entries = {entry.name for entry in out_dir.iterdir()} if out_dir.is_dir() else {out_dir.name}
    if not entries:
        return None
    foreign = entries - {EVENTS_FOLDER, TRUTH_FILE, WORLD_FILE}
    if foreign or WORLD_FILE not in entries:
        raise SimulationError(
            f"{out_dir} is not a simulated world, and will not be replaced by one",
            found=sorted(foreign or entries),
            expected=f"nothing, or {EVENTS_FOLDER}, {TRUTH_FILE} and {WORLD_FILE}",
            remedy="name another directory, or empty this one",
        )
    try:
        stored: object = json.loads((out_dir / WORLD_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise SimulationError(
            f"{out_dir / WORLD_FILE} is damaged",
            found=repr(error),
            expected="the JSON that this generator writes last",
            remedy="delete the directory and simulate again",
        ) from error
    return stored
