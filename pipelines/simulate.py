"""Command line: simulate a world of mobile SDK events for the demo, or let it go on.

    ./run python -m pipelines.simulate [--until DAY] [--out DIR] [--devices N] [--events-per-day N] [--seed N]

Run it again another day and the days that have ended since are added; what is there stays as it is. With
other numbers it replaces the world.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from pipelines.demo_lock import LOCK_NAME, lock_demo
from pipelines.simulated_world.config import DAYS, SimulationError, WorldConfig
from pipelines.simulated_world.world import plan_world, simulate_world
from pipelines.steps.errors import AudienceFactoryError

TODAY = "today"


def main(arguments: Sequence[str] | None = None, today: date | None = None) -> int:
    """Simulates the world asked for; returns the process's exit status.

    Args:
        arguments: Of the command line.
        today: The day it is; else that of the clock, in UTC.
    """
    options = _parser().parse_args(arguments)
    started = time.monotonic()

    def report(line: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {line}", flush=True)

    try:
        last_day = _last_day(options.until, today or datetime.now(UTC).date())
        with _locked(options.out.parent):
            config = plan_world(
                options.out,
                last_day,
                devices=options.devices,
                events_per_day=options.events_per_day,
                first_day=options.first_day,
                seed=options.seed,
            )
            simulate_world(config, options.out, report)
    except AudienceFactoryError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def world_dir() -> Path:
    """The folder from which audiences/fields.yaml reads the world's events."""
    return Path(os.environ.get("WORLD_DIR") or "data/world")


def _last_day(until: date | str, today: date) -> date:
    """The last day to happen.

    Raises:
        SimulationError: It has not ended.
    """
    yesterday = today - timedelta(days=1)
    if not isinstance(until, date):
        return yesterday
    if until > yesterday:
        raise SimulationError(
            f"{until} has not ended",
            found=f"--until {until}, and it is {today} (UTC)",
            expected=f"a day that is over: {yesterday} or one before it",
            remedy=f"--until {TODAY} takes the last of them; tomorrow brings one more",
        )
    return until


def _day(text: str) -> date | str:
    try:
        return TODAY if text == TODAY else date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day such as 2025-01-31, nor `{TODAY}`") from None


def _locked(data: Path) -> AbstractContextManager[object]:
    """Keeps the demo away that may have its data there; elsewhere, no lock file appears."""
    return lock_demo(data) if (data / LOCK_NAME).exists() else nullcontext()


def _parser() -> argparse.ArgumentParser:
    default = WorldConfig()
    kept = "default: as in the world that is there, else"
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.simulate",
        description="Simulate the mobile SDK events of many devices, with the truth about who buys a car. "
        "A world that is there goes on, its days so far unchanged; one with other numbers replaces it.",
    )
    parser.add_argument(
        "--until",
        type=_day,
        default=TODAY,
        metavar="DAY",
        help="last whole day of events: YYYY-MM-DD, a day that is over, or `today`, for all that happened "
        "by today: through yesterday, with what of it arrived after midnight (default: today)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=world_dir(),
        help="the folder (default: $WORLD_DIR, else data/world: where audiences/fields.yaml looks)",
    )
    parser.add_argument(
        "--devices", type=int, help=f"devices, emulators included ({kept} {default.devices:,})"
    )
    parser.add_argument(
        "--events-per-day", type=int, help=f"raw rows a day on average ({kept} {default.events_per_day:,})"
    )
    parser.add_argument(
        "--first-day",
        type=date.fromisoformat,
        help=f"first day, YYYY-MM-DD ({kept} whole weeks from {default.first_day}, {DAYS} to {DAYS + 6} days "
        "before the last)",
    )
    parser.add_argument("--seed", type=int, help=f"same seed, same content ({kept} {default.seed})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
