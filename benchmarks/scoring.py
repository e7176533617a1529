"""Measures the devices that a core scores in a second, on Spark: ours beside every way else that a user has.

    python -m benchmarks.scoring [--rows N] [--rounds R] [--peers a,b] [--json FILE]

All run in one process, those that use Spark in one session of two slots. What counts is the CPU of that
process and all below it during a job, after jobs that warmed it up: rows per CPU second, ours over theirs.
`weights` is our CPU where every token weighs by its byte over that where none does, as in all others.
Those that need no Spark also run as new processes, start included, against new processes of ours: `…_wall`
is the ratio of their wall times, `…_started` that of their CPU. `roofline` is our CPU over that of the parts
that no design avoids.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, cast

import numpy as np
import pyarrow.parquet as pq

from benchmarks.measure import (
    Report,
    Usage,
    alternate,
    measure,
    measure_fresh,
    missing_package,
    paired_ratio,
    parser,
    summarize,
)
from benchmarks.scoring_peers import OURS, PEERS, SETTINGS, SLOTS, Job, Peer, spark_session
from benchmarks.scoring_probes import probe_seconds
from benchmarks.scoring_world import FIELDS, World, make_world

TOLERANCE = 1e-6
WARM_UPS = 2
"""Jobs of each, ours and theirs, before any that counts: the JVM still compiles during the first."""
GOALS = {
    "predict_batch_udf": (">=", 4.0),
    "mlflow_spark_udf": (">=", 4.0),
    "map_in_arrow": (">=", 2.5),
    "row_udf": (">=", 8.0),
    "pull_out": (">=", 3.0),
    "ray_data_wall": (">=", 1.2),
    "daft_wall": (">=", 1.2),
    "roofline": ("<=", 1.5),
    "slots_1_to_2": (">=", 1.8),
}
PROBES = "roofline"
SLOT_COUNTS = "slots_1_to_2"
WEIGHTS = "weights"
EXTRAS = (PROBES, SLOT_COUNTS, WEIGHTS)
"""What is measured of ours besides the peers."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is asked for; returns the process's exit status."""
    options = _parser().parse_args(arguments)
    spark = spark_session()
    world = make_world(spark, options.work_dir, options.rows, options.seed)
    report = Report(config=_config(options, world), goals=GOALS)
    with OURS.job(world.bundle) as score, TemporaryDirectory(dir=options.work_dir) as folder:
        comparison = _Comparison(world, score, options.rounds, options.seed, Path(folder).absolute(), report)
        for name in options.peers:
            comparison.add(name)
            report.save(options.json)  # now, so that what fails later costs nothing of this
    spark.stop()
    report.publish(options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    options = parser("scoring", __doc__ or "", rows=1_000_000, rounds=5)
    options.add_argument(
        "--peers",
        type=_names,
        default=[*PEERS, *EXTRAS],
        help=f"what to measure ours against, of {', '.join([*PEERS, *EXTRAS])}",
    )
    return options


def _names(given: str) -> list[str]:
    names = given.split(",")
    if unknown := sorted(set(names) - {*PEERS, *EXTRAS}):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
    return names


def _config(options: argparse.Namespace, world: World) -> dict[str, object]:
    return {
        "rows": world.rows,
        "rounds": options.rounds,
        "seed": options.seed,
        "files": len(world.files),
        "bytes": sum(file.stat().st_size for file in world.files),
        "fields": {field.name: [field.tokens, field.mean_length] for field in FIELDS},
        "rows_of_row_udf": world.sample_rows,
        "slots": SLOTS,
        "spark": SETTINGS,
        "tolerance": TOLERANCE,
        "settings": {name: peer.setting for name, peer in {"ours": OURS, **PEERS}.items()},
    }


class _Comparison:
    """Ours, warm, beside one after the other; what was found is in the report.

    Args:
        world: What is scored.
        score: Our job.
        rounds: Pairs of runs with each.
        seed: Of the bootstrap.
        folder: Where scores go.
        report: Where figures go.
    """

    def __init__(
        self, world: World, score: Job, rounds: int, seed: int, folder: Path, report: Report
    ) -> None:
        self._world, self._score, self._rounds, self._seed = world, score, rounds, seed
        self._folder, self._report = folder, report
        self._ours: list[Usage] = []
        _say("ours: warming up")
        for _ in range(WARM_UPS):
            score(world.files, folder / "ours")
        self._expected = read_scores(folder / "ours")

    def add(self, name: str) -> None:
        """Measures ours against one other."""
        if name == PROBES:
            self._compare_with_probes()
        elif name == SLOT_COUNTS:
            self._compare_slots()
        elif name == WEIGHTS:
            self._compare_weighted()
        elif reason := missing_package(PEERS[name].module):
            _say(f"{name}: {reason}")
            self._report.results[name] = {"missing": reason}
        else:
            self._compare_with(name, PEERS[name])
            if PEERS[name].starts_itself:
                self._compare_started(name)
        if self._ours:
            self._report.results["ours"] = summarize(self._ours, self._world.rows)

    def _compare_with(self, name: str, peer: Peer) -> None:
        world = self._world
        rows, files = (world.sample_rows, world.sample_files) if peer.of_sample else (world.rows, world.files)
        out = self._folder / name
        with peer.job(world.bundle) as score:
            _say(f"{name}: warming up")
            for _ in range(WARM_UPS):
                score(files, out)
            self._require_equal(name, rows)
            _say(f"{name}: {self._rounds} rounds")
            ours, theirs = alternate(
                self._measure_ours, lambda: self._measure(score, files, out), self._rounds
            )
        self._report.results[name] = summarize(theirs, rows) | {"setting": peer.setting}
        self._report.ratios[name] = paired_ratio(
            [usage.cpu_seconds / rows for usage in theirs],
            [usage.cpu_seconds / world.rows for usage in ours],
            self._seed,
        )

    def _compare_started(self, name: str) -> None:
        """New processes, start included."""
        _say(f"{name}: {self._rounds} rounds, start included")
        ours, theirs = alternate(
            lambda: self._measure_started("ours"), lambda: self._measure_started(name), self._rounds
        )
        self._require_equal(name, self._world.rows)
        ratios, results = self._report.ratios, self._report.results
        ratios[f"{name}_wall"] = paired_ratio(
            [usage.wall_seconds for usage in theirs], [usage.wall_seconds for usage in ours], self._seed
        )
        ratios[f"{name}_started"] = paired_ratio(
            [usage.cpu_seconds for usage in theirs], [usage.cpu_seconds for usage in ours], self._seed
        )
        results[f"{name}_started"] = summarize(theirs, self._world.rows)
        results[f"ours_started_beside_{name}"] = summarize(ours, self._world.rows)

    def _compare_with_probes(self) -> None:
        _say(f"roofline: {self._rounds} rounds")
        ours, probes = alternate(
            self._measure_ours,
            lambda: probe_seconds(self._world, self._folder / "probe.parquet"),
            self._rounds,
        )
        self._report.ratios[PROBES] = paired_ratio(
            [usage.cpu_seconds for usage in ours], [sum(probe.values()) for probe in probes], self._seed
        )
        self._report.results[PROBES] = {
            f"{part}_us_per_row": 1e6 * statistics.median(probe[part] for probe in probes) / self._world.rows
            for part in probes[0]
        }

    def _compare_weighted(self) -> None:
        """Ours, of a model whose tokens weigh."""
        out = self._folder / "weighted"
        with OURS.job(self._world.weighted_bundle) as score:
            for _ in range(WARM_UPS):
                score(self._world.files, out)
            _say(f"weights: {self._rounds} rounds")
            ours, weighted = alternate(
                self._measure_ours, lambda: self._measure(score, self._world.files, out), self._rounds
            )
        self._report.results[WEIGHTS] = summarize(weighted, self._world.rows)
        self._report.ratios[WEIGHTS] = paired_ratio(
            [usage.cpu_seconds for usage in weighted], [usage.cpu_seconds for usage in ours], self._seed
        )

    def _compare_slots(self) -> None:
        _say(f"slots: {self._rounds} rounds")
        with self._staying("local[1]") as with_one, self._staying("local[2]") as with_two:
            with_one()
            with_two()
            one, two = alternate(with_one, with_two, self._rounds)
        self._report.ratios[SLOT_COUNTS] = paired_ratio(one, two, self._seed)
        self._report.results[SLOT_COUNTS] = {"wall_seconds_with_1": one, "wall_seconds_with_2": two}

    def _measure_ours(self) -> Usage:
        usage = self._measure(self._score, self._world.files, self._folder / "ours")
        self._ours.append(usage)
        return usage

    def _measure(self, score: Job, files: Sequence[Path], out: Path) -> Usage:
        # Spark ends workers that rested for a minute, which the other's turn may have taken.
        score(self._world.sample_files, out)
        return measure(lambda: score(files, out))

    def _measure_started(self, name: str) -> Usage:
        out = self._folder / name
        shutil.rmtree(out, ignore_errors=True)
        return measure_fresh(self._command(name, out))

    @contextmanager
    def _staying(self, master: str) -> Iterator[Callable[[], float]]:
        """A new process of ours that stays: called, it scores once; the wall seconds."""
        command = [*self._command("ours", self._folder / master), "--told", "--master", master]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            orders, answers = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)

            def score() -> float:
                orders.write("\n")
                orders.flush()
                return float(answers.readline())

            yield score
            orders.close()

    def _command(self, name: str, out: Path) -> list[str]:
        program = [sys.executable, "-m", "benchmarks.scoring_peers", name]
        return [*program, "--world", str(self._world.path), "--out", str(out)]

    def _require_equal(self, name: str, rows: int) -> None:
        difference = largest_difference(read_scores(self._folder / name), self._expected, rows)
        if not difference <= TOLERANCE:
            raise ValueError(f"{name} scores differ from ours by up to {difference}: no times are reported")


Scores = tuple[np.ndarray, np.ndarray]
"""Device ids, sorted, and their probabilities."""


def read_scores(folder: Path) -> Scores:
    table = pq.read_table(folder, columns=["device_id", "probability"]).sort_by("device_id")
    return table.column("device_id").to_numpy(), table.column("probability").to_numpy()


def largest_difference(scores: Scores, expected: Scores, rows: int) -> float:
    """Largest difference of probabilities; infinite if a device is missing, double, unknown or has none."""
    devices, probabilities = scores
    places = np.searchsorted(expected[0], devices)
    if len(devices) != rows or len(np.unique(devices)) != rows or places.max() >= len(expected[0]):
        return float("inf")
    if (expected[0][places] != devices).any():
        return float("inf")
    difference = float(np.abs(probabilities.astype(np.float64) - expected[1][places]).max())
    return difference if difference >= 0 else float("inf")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
