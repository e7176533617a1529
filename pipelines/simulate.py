"""Command line: simulate a world of mobile SDK events for the demo.

    python -m pipelines.simulate --out DIR [--devices N] [--days N] [--events N] [--seed N]

Run it again with the same numbers and it does nothing; with others, it replaces the world.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from pathlib import Path

from pipelines.demo_lock import LOCK_NAME, lock_demo
from pipelines.simulated_world.config import WorldConfig
from pipelines.simulated_world.world import simulate_world
from pipelines.steps.errors import AudienceFactoryError


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulates the world asked for; returns the process's exit status."""
    options = _parser().parse_args(arguments)
    started = time.monotonic()

    def report(line: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {line}", flush=True)

    try:
        config = WorldConfig(
            devices=options.devices,
            days=options.days,
            events=options.events,
            first_day=options.first_day,
            seed=options.seed,
        )
        with _locked(options.out.parent):
            simulate_world(config, options.out, report)
    except AudienceFactoryError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _locked(data: Path) -> AbstractContextManager[object]:
    """Keeps the demo away that may have its data there; elsewhere, no lock file appears."""
    return lock_demo(data) if (data / LOCK_NAME).exists() else nullcontext()


def _parser() -> argparse.ArgumentParser:
    default = WorldConfig()
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.simulate",
        description="Simulate the mobile SDK events of many devices, with the truth about who buys a car.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        default=argparse.SUPPRESS,
        help="directory that becomes the world; a world already in it is replaced",
    )
    parser.add_argument("--devices", type=int, default=default.devices, help="devices, emulators included")
    parser.add_argument("--days", type=int, default=default.days, help="UTC days of arrival")
    parser.add_argument("--events", type=int, default=default.events, help="raw rows, dirt included")
    parser.add_argument(
        "--first-day", type=date.fromisoformat, default=default.first_day, help="first day, YYYY-MM-DD"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="same seed, same bytes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
