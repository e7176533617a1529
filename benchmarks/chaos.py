"""Faults thrown at the scoring job while it runs: readers see the old rows or the new ones, exactly.

A schedule is a fault, a moment (a share of the job's tasks) and a victim, drawn from a seed. It meets the
job on two executors with processes of their own, over a copy of a small lake, while a reader polls what is
visible. Afterwards the visible rows are compared with those that the bundle gives in this process, one by
one, and the job is run again. A schedule that disturbed nothing is reported as missed, and drawn again.
Signals go to processes below the run's own drivers only.

What does not belong here: how fast scoring is.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.chaos_clusters import JOB_SECONDS, Answer, Clusters, running_clusters
from benchmarks.chaos_faults import FAULTS, Fault, Job, Missed, Schedule, Struck
from benchmarks.chaos_summary import names_of, summary
from benchmarks.chaos_world import KEYS, NEW, OLD, Reader, World
from benchmarks.measure import Report

TRIES = 5
"""Times that a schedule which missed is drawn again."""
ERROR_CHARACTERS = 1_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the schedules, prints what became of each, and exits with 1 if readers saw what they must not."""
    options = _parser().parse_args(arguments)
    names = names_of(options.only, FAULTS)
    home = Path(tempfile.mkdtemp(prefix="chaos-"))
    started = time.monotonic()
    results = list(_run_all(names, options, home))
    table, figures = summary(names, results)
    print(f"\n{table}\n")
    hits = sum(not result.missed for result in results)
    violations = [violation for result in results for violation in result.violations]
    minutes = (time.monotonic() - started) / 60
    print(
        f"{hits} schedules hit, {len(results) - hits} missed, {len(violations)} violations, {minutes:.1f} min"
    )
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        config = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
        report = Report(config | {"faults": names, "minutes": minutes}, figures)
        options.json.write_text(json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n")
    if violations:
        print(f"what they left lies in {home}")
        sys.exit(1)
    shutil.rmtree(home)
    if hits < options.schedules:
        print(f"{options.schedules} were to hit", file=sys.stderr)
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos",
        description="Scores under faults; exits with 1 if a reader saw anything but the old rows or the new.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add_argument("--schedules", type=int, default=50, help="how many must hit the running job")
    options.add_argument("--seed", type=int, default=0, help="of the schedules and the data")
    options.add_argument("--only", default="", metavar="NAME,...", help=f"of {', '.join(FAULTS)}")
    options.add_argument("--row-groups", type=int, default=40, help="of the input: as many tasks has the job")
    options.add_argument("--row-group-rows", type=int, default=2_000, help="rows of each")
    options.add_argument("--idle-seconds", type=int, default=30, help="of silence that end a Python worker")
    options.add_argument("--json", type=Path, default=None, help="file that the figures are written to")
    return options


@dataclass(frozen=True)
class Result:
    """The outcome of a schedule.

    Attributes:
        schedule: It.
        struck: What was hit, for people; empty where the job ended before.
        ending: "recovered", "failed", or "killed" with its driver.
        visible: What a reader finds after it, before the job is run again: "old", "new" or "old and new".
        error: How the job's only error begins, if it had one.
        seconds: Of the job.
        tasks_lost: Attempts of tasks that failed or were given up.
        reads: How often a reader saw the visible rows meanwhile.
        missed: It disturbed nothing.
        violations: What must not be.
    """

    schedule: Schedule
    struck: str
    ending: str
    visible: str
    error: str | None
    seconds: float
    tasks_lost: int
    reads: int
    missed: bool
    violations: tuple[str, ...]

    def __str__(self) -> str:
        s = self.schedule
        ending = "VIOLATION" if self.violations else "missed" if self.missed else self.ending
        text = (
            f"{s.number + 1:4} {s.fault:24} {s.moment:4.0%} {ending:10} {self.seconds:5.1f} s "
            f"{self.tasks_lost:2} attempts lost {self.reads:4} reads  {self.visible}  {self.struck}"
        )
        return "\n       ".join([text, *self.violations])


def _run_all(names: Sequence[str], options: argparse.Namespace, home: Path) -> Iterator[Result]:
    wanted = [names[number % len(names)] for number in range(options.schedules)]
    # Faults that share a cluster follow each other: to start one takes longer than most jobs.
    wanted.sort(key=lambda name: (FAULTS[name].cluster, FAULTS[name].kills_driver))
    with running_clusters(home, options.idle_seconds) as clusters:
        world = World.made(
            home,
            clusters,
            row_groups=options.row_groups,
            row_group_rows=options.row_group_rows,
            seed=options.seed,
        )
        print(f"the job takes {world.job_seconds:.1f} s undisturbed", flush=True)
        for number, name in enumerate(wanted):
            following = FAULTS[wanted[min(number + 1, len(wanted) - 1)]].cluster
            for attempt in range(TRIES):
                schedule = Schedule.drawn(number, name, options.seed, attempt)
                result = _run(schedule, world, clusters, following)
                print(result, flush=True)
                yield result
                if not result.missed:
                    break


def _run(schedule: Schedule, world: World, clusters: Clusters, following: str) -> Result:
    """One schedule, from a lake with the old rows to one with the new."""
    fault = FAULTS[schedule.fault]
    job = Job(
        schedule, clusters.get(fault.cluster), world, world.copy(f"{schedule.number:03}-{schedule.fault}")
    )
    struck, strike = Struck(""), fault.strike(job)
    started = time.monotonic()
    with Reader(job.lake) as reader:
        try:
            if fault.when is None:
                struck = next(strike)
            job.cluster.send(job.order())
            if fault.when is not None and fault.when(job):
                struck = next(strike)
            answer = job.cluster.answer(meanwhile=strike)
        except (Missed, psutil.NoSuchProcess, FileNotFoundError):  # what was to be struck is gone
            answer = job.cluster.answer(meanwhile=())
        finally:
            strike.close()
        seconds = time.monotonic() - started
        if answer.ending != "answered":
            clusters.end(fault.cluster)  # what is left of it may write until then
    states = {key: world.state(job.lake, key) for key in KEYS}
    violations = [*_violations(fault, struck, answer, states), *reader.violations(states)]
    missed = not violations and not (answer.lost or answer.error or answer.ending == "died")
    world.restore(job.lake)
    again = clusters.get(following).run(world.order(job.lake))
    after = {key: world.state(job.lake, key) for key in KEYS}
    if again.ending != "answered" or again.error or set(after.values()) != {NEW}:
        violations.append(f"run again, it gave {after} and {again}")
    if not violations:
        shutil.rmtree(job.lake.root)
    ending = {"died": "killed", "hung": "hung"}.get(answer.ending, "failed" if answer.error else "recovered")
    return Result(
        schedule,
        struck.what,
        ending,
        " and ".join(sorted(set(states.values()))),
        answer.error and answer.error[:ERROR_CHARACTERS],
        seconds,
        answer.lost,
        reader.reads,
        missed,
        tuple(violations),
    )


def _violations(fault: Fault, struck: Struck, answer: Answer, states: Mapping[str, str]) -> Iterator[str]:
    if answer.ending == "hung":
        yield f"the job had not ended after {JOB_SECONDS} s"
    if answer.ending == "died" and not fault.kills_driver:
        yield "the driver died"
    allowed = {OLD, NEW} if answer.ending != "answered" else {OLD} if answer.error else {NEW}
    for key, state in states.items():
        if state not in allowed:
            yield f"{key} has {state}, after {answer}"
    if answer.error is not None:
        missing = [name for name in struck.named if name not in answer.error]
        if not struck.named:
            yield f"it was to be survived, but ended the job: {answer.error}"
        elif missing:
            yield f"the error does not name {missing}: {answer.error}"


if __name__ == "__main__":
    main()
