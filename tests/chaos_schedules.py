"""Schedules of faults for tests, run by the benchmarks' own programs."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent


def run_schedules(
    module: str, faults: Sequence[str], figures: Path, environment: Mapping[str, str], *options: str
) -> dict[str, dict[str, Any]]:
    """Runs a schedule of each fault; gives fault → its last schedule, which hit: those before it missed.

    Args:
        module: The benchmark, such as `benchmarks.chaos`.
        faults: Its names of them.
        figures: The file that it writes.
        environment: Of its process.
        options: Further ones of its command line.
    """
    command = [sys.executable, "-m", module, "--only", ",".join(faults), "--schedules", str(len(faults))]
    run = subprocess.run(
        [*command, "--json", str(figures), *options],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads(figures.read_text())["results"]
    return {fault: results[fault]["schedules"][-1] for fault in faults}
