"""A seeded world of devices and the mobile SDK events they send: the demo's input.

A world can go on: one more day adds files and changes none, whenever it is added. A day of arrival has two:

    events/day=2025-01-31/part-0.parquet    earlier days' events that arrived until 2 hours after midnight
    events/day=2025-01-31/part-1.parquet    the others; the newest folder lacks it, as its day is not over

What belongs in this package: the world's rules (interests, apps, hazards, dirt) and the writing of its files.
What does not: anything that a pipeline does with those events.
"""

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from datetime import date
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq

from pipelines.simulated_world.catalogue import Catalogue
from pipelines.simulated_world.config import SimulationError, WorldConfig, first_day_for
from pipelines.simulated_world.events import Events, draw_day, in_order_of_arrival
from pipelines.simulated_world.files import spellings_of, write_events
from pipelines.simulated_world.lives import live
from pipelines.simulated_world.population import Population, build_devices
from pipelines.simulated_world.rules import CALIBRATION_DAYS, DAY_IS_FINAL_US, DAYS_LATE_MAX

EVENTS_FOLDER = "events"
TRUTH_FILE = "truth.parquet"
WORLD_FILE = "world.json"
DAYS_PER_LINE = 60
"""So many days are written between two lines of progress."""


def plan_world(
    out_dir: Path,
    last_day: date,
    *,
    devices: int | None = None,
    events_per_day: int | None = None,
    first_day: date | None = None,
    seed: int | None = None,
) -> WorldConfig:
    """The world that a directory holds, gone on until a day; where it holds none like it, a new one.

    A new one without a first day has DAYS to DAYS + 6 days: see `first_day_for`.

    Args:
        out_dir: The world's directory.
        last_day: The last day that has happened; a world that knows a later one is not cut short.
        devices: Number of devices; None for as many as are there.
        events_per_day: Rows a day; None for as many as are there.
        first_day: First day of arrival; None for that which is there.
        seed: Of the world; None for that which is there.

    Raises:
        SimulationError: `out_dir` holds something that is not a world, or the world is impossible.
    """
    numbers = {"devices": devices, "events_per_day": events_per_day, "first_day": first_day, "seed": seed}
    asked = {name: value for name, value in numbers.items() if value is not None}
    stored = stored_world(out_dir)
    if stored and all(getattr(stored, name) == value for name, value in asked.items()):
        return stored.until(max(last_day, stored.last_day))
    config = WorldConfig(**{"first_day": first_day_for(last_day)} | asked)  # type: ignore[arg-type]
    return config.until(last_day)


def simulate_world(
    config: WorldConfig, out_dir: Path, progress: Callable[[str], None] = lambda _line: None
) -> bool:
    """Writes the world of `config` under `out_dir`, as far as it is not there already.

    A world that goes on gets its new files, each at once, and keeps those it has. Another one is written
    beside `out_dir` and renamed: a killed run leaves the previous world, or none.

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
    stored = stored_world(out_dir)
    if stored and config.is_part_of(stored):
        progress(f"{out_dir} already holds this world, until {stored.last_day}: nothing to do")
        return False
    catalogue, population = build_devices(config)
    progress(
        f"{config.devices:,} devices: expecting {population.expected_buyer_share():.1%} of them to buy a car "
        f"in {CALIBRATION_DAYS} days"
    )
    unfinished = out_dir.with_name(f".{out_dir.name}.unfinished")
    replaced = out_dir.with_name(f".{out_dir.name}.replaced")
    for leftover in (unfinished, replaced):  # of a killed run
        if leftover.exists():
            shutil.rmtree(leftover)
    if stored and stored.is_part_of(config):
        _write_days(config, catalogue, population, out_dir, stored.days, progress)
    else:
        _write_days(config, catalogue, population, unfinished, 0, progress)
        pq.write_table(population.truth(), unfinished / TRUTH_FILE)
        if out_dir.exists():
            out_dir.rename(replaced)
        unfinished.rename(out_dir)
        if replaced.exists():
            shutil.rmtree(replaced)
    progress(f"{config.first_day} to {config.last_day} are in {out_dir}")
    return True


def _write_days(
    config: WorldConfig,
    catalogue: Catalogue,
    population: Population,
    root: Path,
    first: int,
    progress: Callable[[str], None],
) -> None:
    """Writes the files of the days from an index on, those before being there, and last what world it is."""
    spellings = spellings_of(catalogue, population)
    (root / EVENTS_FOLDER).mkdir(parents=True, exist_ok=True)
    rows = 0
    for written, (name, events) in enumerate(_arrivals(config, catalogue, population, first), 1):
        write_events(events, spellings, root / EVENTS_FOLDER / name)
        rows += len(events.received_us)
        if written % (2 * DAYS_PER_LINE) == 0:
            progress(f"{rows:,} events of {written // 2} of {config.days - first} days written")
    world = root / f".{WORLD_FILE}"
    world.write_text(json.dumps(config.as_json(), indent=2) + "\n", encoding="utf-8")
    world.replace(root / WORLD_FILE)


def _arrivals(
    config: WorldConfig, catalogue: Catalogue, population: Population, first: int
) -> Iterator[tuple[str, Events]]:
    """Each file's name and rows, in the order of arrival, for the days from an index on."""
    recent: deque[Events] = deque(maxlen=DAYS_LATE_MAX)
    for day in islice(live(config, population), config.days):
        index = day.index
        if index < first - DAYS_LATE_MAX:
            continue
        earlier, today = list(recent), draw_day(config, catalogue, population, day)
        recent.append(today)
        if index < first:
            continue
        start, end = config.start_us(index), config.start_us(index + 1)
        late = [day.arriving(start + DAY_IS_FINAL_US, end) for day in earlier]
        yield _file(config, index, 1), in_order_of_arrival([*late, today.arriving(start, end)])
        night = [day.arriving(end, end + DAY_IS_FINAL_US) for day in [*earlier, today]]
        yield _file(config, index + 1, 0), in_order_of_arrival(night)


def _file(config: WorldConfig, index: int, part: int) -> str:
    return f"day={config.day(index)}/part-{part}.parquet"


def stored_world(out_dir: Path) -> WorldConfig | None:
    """The world in a directory; None where there is none, or one of another version of the generator.

    Raises:
        SimulationError: The directory is in use for something else, which must not be replaced.
    """
    if not out_dir.exists():
        return None
    entries = {entry.name for entry in out_dir.iterdir()} if out_dir.is_dir() else {out_dir.name}
    if not entries:
        return None
    foreign = entries - {EVENTS_FOLDER, TRUTH_FILE, WORLD_FILE, f".{WORLD_FILE}"}
    if foreign or WORLD_FILE not in entries:
        raise SimulationError(
            f"{out_dir} is not a simulated world, and will not be replaced by one",
            found=sorted(foreign or entries),
            expected=f"nothing, or {EVENTS_FOLDER}, {TRUTH_FILE} and {WORLD_FILE}",
            remedy="name another directory, or empty this one",
        )
    try:
        return WorldConfig.from_json(json.loads((out_dir / WORLD_FILE).read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SimulationError(
            f"{out_dir / WORLD_FILE} is damaged",
            found=repr(error),
            expected="the JSON that this generator writes last",
            remedy="delete the directory and simulate again",
        ) from error
