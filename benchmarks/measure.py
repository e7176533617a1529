"""What every benchmark shares: the CPU and memory of a whole process tree, paired runs, ratios, the report.

What does not belong here: what is measured.
"""

import argparse
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
from tabulate import tabulate

SAMPLE_SECONDS = 0.2
RESAMPLES = 10_000
INTERVAL_PERCENT = 95
ORPHAN_SECONDS = 15
"""Seconds that processes which a finished command left behind may take to end by themselves."""
_SET_CHILD_SUBREAPER = 36
"""Linux's prctl option: orphans below this process become its children, not init's."""

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Usage:
    """What one run took.

    Attributes:
        cpu_seconds: User and system time of the process tree, ended processes included.
        wall_seconds: From start to end.
        peak_process_bytes: Resident memory of the largest process, sampled.
        peak_tree_bytes: Resident memory of all processes together, sampled; shared pages count in each.
    """

    cpu_seconds: float
    wall_seconds: float
    peak_process_bytes: int
    peak_tree_bytes: int


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios, with a bootstrap interval of 95 %."""

    median: float
    low: float
    high: float


@dataclass
class Report:
    """What a benchmark found; printed as a table, written as JSON.

    Attributes:
        config: What was run, with every setting that matters.
        results: Name → figures; `{"missing": reason}` where it could not run.
        ratios: Name → ratio.
        goals: Name → (">=" or "<=", bound): holds if the pessimistic end of the interval does.
    """

    config: dict[str, Any]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    ratios: dict[str, Ratio] = field(default_factory=dict)
    goals: Mapping[str, tuple[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": machine(),
            "config": self.config
            | {"goals": {name: f"{sign} {b}" for name, (sign, b) in self.goals.items()}},
            "results": self.results,
            "ratios": {name: asdict(ratio) for name, ratio in self.ratios.items()},
        }

    def table(self) -> str:
        rows = [
            [name, f"{r.median:.3g}", f"{r.low:.3g} – {r.high:.3g}", *self._verdict(name, r)]
            for name, r in self.ratios.items()
        ]
        rows += [
            [name, "missing", "", "", r["missing"]] for name, r in self.results.items() if "missing" in r
        ]
        titles = ["ratio", "median", "95 % interval", "goal", "holds"]
        return str(tabulate(rows, headers=titles, disable_numparse=True))

    def publish(self, path: Path | None) -> None:
        """Prints the table, and writes the JSON where a path is given."""
        print(self.table())
        self.save(path)

    def save(self, path: Path | None) -> None:
        """Writes the JSON where a path is given."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n")

    def _verdict(self, name: str, ratio: Ratio) -> list[str]:
        if name not in self.goals:
            return ["", ""]
        sign, bound = self.goals[name]
        holds = ratio.low >= bound if sign == ">=" else ratio.high <= bound
        return [f"{sign} {bound:g}", "yes" if holds else "NO"]


def parser(name: str, description: str, *, rows: int, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has, with its own defaults."""
    options = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add_argument("--rows", type=int, default=rows, help="rows of input")
    options.add_argument("--rounds", type=int, default=rounds, help="pairs of runs, ours and each peer's")
    options.add_argument("--seed", type=int, default=0, help="of the data and the bootstrap")
    options.add_argument("--json", type=Path, default=None, help="file that the figures are written to")
    options.add_argument(
        "--work-dir", type=Path, default=Path("data/benchmarks"), help="folder of the data; reused if there"
    )
    return options


def measure(work: Callable[[], object]) -> Usage:
    """What `work` takes, in this process and in all below it, those that were there before included."""
    with _watch(_Tree(apart=None)) as tree:
        started = time.perf_counter()
        work()
        wall = time.perf_counter() - started
    return tree.usage(wall)


def measure_fresh(command: Sequence[str]) -> Usage:
    """What a command takes from start to end, as a new process and all that it starts, orphans too.

    Raises:
        RuntimeError: It did not exit with 0; the message ends with what it printed last.
    """
    apart = frozenset(psutil.Process().children(recursive=True))
    tree = _Tree(apart)
    with _adopting_orphans(), _watch(tree):
        started = time.perf_counter()
        finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        wall = time.perf_counter() - started
        _await_orphans(apart)
    if finished.returncode:
        tail = finished.stdout.decode(errors="replace")[-4_000:]
        raise RuntimeError(f"{' '.join(command)} exited with {finished.returncode}\n{tail}")
    return tree.usage(wall)


def alternate(ours: Callable[[], A], theirs: Callable[[], B], rounds: int) -> tuple[list[A], list[B]]:
    """Calls both `rounds` times, A B B A …, so that a drift of the machine meets both alike."""
    mine: list[A] = []
    other: list[B] = []
    for place in range(rounds):
        if place % 2:
            other.append(theirs())
            mine.append(ours())
        else:
            mine.append(ours())
            other.append(theirs())
    return mine, other


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Ratio:
    """The ratio pair by pair: its median, and the bootstrap interval of that median."""
    ratios = np.asarray(numerators, dtype=np.float64) / np.asarray(denominators, dtype=np.float64)
    chosen = np.random.default_rng(seed).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    tail = (100 - INTERVAL_PERCENT) / 2
    low, high = np.percentile(np.median(ratios[chosen], axis=1), [tail, 100 - tail])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def summarize(usages: Sequence[Usage], rows: int) -> dict[str, Any]:
    """Medians over the runs, memory's maximum, and every run."""
    cpu = statistics.median(usage.cpu_seconds for usage in usages)
    return {
        "rows": rows,
        "rows_per_cpu_second": rows / cpu,
        "cpu_us_per_row": 1e6 * cpu / rows,
        "cpu_seconds": cpu,
        "wall_seconds": statistics.median(usage.wall_seconds for usage in usages),
        "peak_process_mib": max(usage.peak_process_bytes for usage in usages) / 2**20,
        "peak_tree_mib": max(usage.peak_tree_bytes for usage in usages) / 2**20,
        "runs": [asdict(usage) for usage in usages],
    }


def missing_package(module: str) -> str | None:
    """Why a peer cannot run, or None if its package is there."""
    if importlib.util.find_spec(module) is not None:
        return None
    return f"the package {module} is not installed (pip install -e .[benchmarks])"


def machine() -> dict[str, Any]:
    """The machine and the packages that it ran with."""
    packages = ["numpy", "pyarrow", "pyspark", "torch", "daft", "mlflow-skinny", "ray"]
    installed = {dist.name for dist in importlib.metadata.distributions()}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages if name in installed},
    }


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class _Tree:
    """The CPU and memory of this process and those below it, apart from some that were there before.

    An ended process counts by what its parent took over from it. A parent that ignores SIGCHLD (Spark's
    Python daemon, Ray's raylet) takes over nothing: its children count as they were last sampled.
    """

    def __init__(self, apart: frozenset[psutil.Process] | None) -> None:
        self._self = psutil.Process()
        self._apart = apart or frozenset()
        self._only_waiting = apart is not None
        self._seconds: dict[psutil.Process, float] = {}
        self._untold: set[psutil.Process] = set()
        self._lost = self._peak_process = self._peak_tree = 0.0
        self.sampling_seconds = 0.0
        self.sample()
        self._at_start = sum(self._seconds.values())
        self._lost = self._peak_process = self._peak_tree = 0.0

    def sample(self) -> None:
        seconds, ignoring, sizes = {}, set(), {}
        processes = self._processes()
        for process in processes:
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    size = process.memory_info().rss
                seconds[process] = times.user + times.system + times.children_user + times.children_system
                sizes[process] = size
                if _ignores_children(process.pid):
                    ignoring.add(process.pid)
            except psutil.NoSuchProcess:
                continue  # it ended meanwhile, and counts as one that did
        self._lost += sum(self._seconds[gone] for gone in self._untold if gone not in seconds)
        self._untold = {process for process, parent in processes.items() if parent in ignoring}
        self._untold &= seconds.keys()
        self._seconds = seconds
        if self._only_waiting:
            sizes.pop(self._self)
        self._peak_process = max(self._peak_process, *sizes.values(), 0)
        self._peak_tree = max(self._peak_tree, sum(sizes.values()))

    def usage(self, wall_seconds: float) -> Usage:
        cpu = sum(self._seconds.values()) + self._lost - self._at_start - self.sampling_seconds
        return Usage(cpu, wall_seconds, int(self._peak_process), int(self._peak_tree))

    def _processes(self) -> dict[psutil.Process, int]:
        """Process → id of its parent."""
        parents = {}
        for process in self._self.children(recursive=True):
            try:
                parents[process] = process.ppid()
            except psutil.NoSuchProcess:
                continue  # it ended meanwhile, and counts as one that did
        left_out = {process.pid for process in self._apart}
        found = {self._self: 0}
        for process in parents:  # parents come before their children
            if process.pid not in left_out and parents[process] not in left_out:
                found[process] = parents[process]
            else:
                left_out.add(process.pid)
        return found


@contextmanager
def _watch(tree: _Tree) -> Iterator[_Tree]:
    """Samples the tree until the block ends, and once more then."""
    ended = threading.Event()

    def sample_often() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            tree.sample()
        tree.sample()
        tree.sampling_seconds = time.thread_time()

    sampler = threading.Thread(target=sample_often, name="sampler")
    sampler.start()
    try:
        yield tree
    finally:
        ended.set()
        sampler.join()


def _ignores_children(pid: int) -> bool:
    """Whether a process ignores SIGCHLD; the kernel then tells nobody what its children took."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    ignored = next((line for line in status.splitlines() if line.startswith("SigIgn:")), "SigIgn: 0")
    return bool(int(ignored.split()[1], 16) >> (signal.SIGCHLD - 1) & 1)


@contextmanager
def _adopting_orphans() -> Iterator[None]:
    """While it lasts, processes whose parent ends become children of this one, and so stay in its tree."""
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        libc.prctl(_SET_CHILD_SUBREAPER, 0)


def _await_orphans(apart: frozenset[psutil.Process]) -> None:
    """Waits for what a command left behind, so that its time is counted; ends what does not end."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    # More than once: when an orphan ends, its children become orphans.
    while orphans := [process for process in psutil.Process().children() if process not in apart]:
        if time.monotonic() > deadline:
            for process in orphans:
                process.kill()
        psutil.wait_procs(orphans, timeout=SAMPLE_SECONDS)
