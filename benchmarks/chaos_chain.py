"""Faults thrown at the daily chain, from ingestion to delivery: what is delivered is whole and was checked.

A schedule is a fault, a moment and a victim, drawn from a seed. It meets `daily_job` in a process of its
own, through Dagster, on a copy of a small project that has delivered the day once; since then the day's
events have changed. A reader follows the manifests meanwhile. Afterwards each delivery must hold exactly the
old rows or exactly the new ones, name versions that belong together, and a second run must deliver the new
rows. A schedule that disturbed nothing is reported as missed, and drawn again.

What does not belong here: faults within the scoring job (`benchmarks.chaos`).
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos_chain_drivers import JOB_SECONDS, Answer, Drivers, Hung, running_drivers
from benchmarks.chaos_chain_faults import FAULTS, Outcome, Scene, Schedule
from benchmarks.chaos_chain_receivers import Reader, leftovers, look
from benchmarks.chaos_chain_world import AUDIENCE, DAY, NEW, OLD, World
from benchmarks.chaos_faults import Missed
from benchmarks.chaos_summary import names_of, summary
from benchmarks.measure import Report

TRIES = 5
"""Times that a schedule that missed is drawn again."""
ERROR_CHARACTERS = 1_500


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the schedules, prints what became of each, and exits with 1 if anything was as it must not be."""
    options = _parser().parse_args(arguments)
    names = names_of(options.only, FAULTS)
    home = Path(tempfile.mkdtemp(prefix="chaos-chain-"))
    started = time.monotonic()
    results = list(_run_all(names, options, home))
    table, figures = summary(names, results)
    hits = sum(not result.missed for result in results)
    violations = sum(len(result.violations) for result in results)
    minutes = (time.monotonic() - started) / 60
    print(f"\n{table}\n")
    print(f"{hits} schedules hit, {len(results) - hits} missed, {violations} violations, {minutes:.1f} min")
    config = {"schedules": options.schedules, "seed": options.seed, "faults": names, "minutes": minutes}
    Report(config, figures).save(options.json)
    if violations:
        print(f"what they left lies in {home}")
        sys.exit(1)
    shutil.rmtree(home)
    if hits < options.schedules:
        print(f"{options.schedules} were to hit", file=sys.stderr)
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos_chain",
        description="Runs the daily chain under faults; exits with 1 if a delivery is not what was checked.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add_argument("--schedules", type=int, default=24, help="how many must hit a run")
    options.add_argument("--seed", type=int, default=0, help="of the schedules and the events")
    options.add_argument("--only", default="", metavar="NAME,...", help=f"of {', '.join(FAULTS)}")
    options.add_argument("--json", type=Path, default=None, help="file that the figures are written to")
    return options


@dataclass(frozen=True)
class Result:
    """The outcome of a schedule.

    Attributes:
        schedule: It.
        struck: What was hit, for people; empty where the run ended before.
        ending: "recovered", "failed" (with an error that names the fault), or "killed".
        delivered: What a receiver finds after it, before the day is run again: "old", "new" or both.
        error: How the error begins, if there was one.
        seconds: From the start of the first run to the end of the last.
        reads: How often the reader went through all deliveries meanwhile.
        missed: It disturbed nothing.
        violations: What must not be.
    """

    schedule: Schedule
    struck: str
    ending: str
    delivered: str
    error: str | None
    seconds: float
    reads: int
    missed: bool
    violations: tuple[str, ...] = ()

    def __str__(self) -> str:
        ending = "VIOLATION" if self.violations else "missed" if self.missed else self.ending
        text = (
            f"{self.schedule.number + 1:4} {self.schedule.fault:20} {ending:10} {self.seconds:5.1f} s "
            f"{self.reads:4} reads  {self.delivered:12} {self.struck}"
        )
        return "\n       ".join([text, *self.violations])


def _run_all(names: Sequence[str], options: argparse.Namespace, home: Path) -> Iterator[Result]:
    with running_drivers(home) as drivers:
        first, _ = drivers.two()
        world = World.made(home / "world", first, options.seed)
        print(f"the daily job takes {sum(world.steps.values()):.1f} s undisturbed", flush=True)
        for number in range(options.schedules):
            for attempt in range(TRIES):
                fault = names[number % len(names)]
                schedule = Schedule.drawn(number, fault, options.seed, attempt)
                result = _run(schedule, world, drivers, home, is_last=number + 1 == options.schedules)
                print(result, flush=True)
                yield result
                if not result.missed:
                    break


def _run(schedule: Schedule, world: World, drivers: Drivers, home: Path, *, is_last: bool) -> Result:
    """One schedule, from the old delivery to the new one; the last needs no driver for one to come."""
    places = world.places.copied_to(home / f"{schedule.number:03}-{schedule.fault}")
    places.use_events(NEW)
    scene = Scene(schedule, world, places, drivers)
    started = time.monotonic()
    with Reader(world, places, scene.damaged) as reader:
        try:
            outcome = FAULTS[schedule.fault](scene)
        except Missed:
            shutil.rmtree(places.root)
            seconds = time.monotonic() - started
            return Result(schedule, "", "missed", "", None, seconds, reader.reads, missed=True)
        except Hung as hung:
            outcome = Outcome(str(hung), (Answer("hung"),), allowed=(OLD, NEW))
        seconds = time.monotonic() - started
        violations = [*outcome.violations, *endings(outcome), *_processes(outcome, drivers)]
        if not is_last:
            drivers.refill()
        found = look(world, places, lake_is_damaged=schedule.fault == "damage_lake")
        violations += found.violations
        violations += [
            f"{name} is {state}, allowed: {', '.join(outcome.allowed)}"
            for name, state in found.states.items()
            if state not in outcome.allowed
        ]
        violations += _run_again(scene)
    violations += reader.violations()
    if not violations:
        shutil.rmtree(places.root)
    errors = [answer.error for answer in outcome.answers if answer.error]
    return Result(
        schedule,
        outcome.what,
        "killed" if outcome.killed else "failed" if errors else "recovered",
        " and ".join(sorted(set(found.states.values()))),
        errors[0][:ERROR_CHARACTERS] if errors else None,
        seconds,
        reader.reads,
        missed=False,
        violations=tuple(violations),
    )


def endings(outcome: Outcome) -> Iterator[str]:
    """Faults in how the runs ended."""
    for answer in outcome.answers:
        error = answer.error or "no error"
        if answer.ending == "hung":
            yield f"a run had not ended after {JOB_SECONDS} s"
        elif answer.ending == "died":
            if not outcome.killed:
                yield "a driver died"
        elif answer.success:
            if outcome.named and not outcome.may_succeed:
                yield "a run succeeded that was to fail"
        elif not outcome.named:
            yield f"it was to be survived, but ended a run: {error[:ERROR_CHARACTERS]}"
        elif missing := [name for name in outcome.named if name not in error]:
            yield f"the error does not name {', '.join(missing)}: {error[:ERROR_CHARACTERS]}"


def _processes(outcome: Outcome, drivers: Drivers) -> Iterator[str]:
    """Leftovers of a driver that was killed or told to end; those that hang end here."""
    for driver in outcome.ended:
        if left := drivers.discard(driver):
            yield f"processes outlived their driver: {left}"
    if any(answer.ending != "answered" for answer in outcome.answers) and not outcome.ended:
        drivers.end_all()


def _run_again(scene: Scene) -> Iterator[str]:
    """Runs the day again on the new events, with nothing in its way."""
    driver = scene.drivers.one()
    scene.places.use_events(NEW)
    if scene.places.models.current(AUDIENCE, "champion").version != scene.world.champion:
        scene.promote(driver, scene.world.champion)
    answer: Answer = driver.run(scene.places.wire(), job="daily_job", first=DAY, last=DAY)
    if not answer.success:
        yield f"run again, the day ended with {answer.ending}: {(answer.error or '')[:ERROR_CHARACTERS]}"
    found = look(scene.world, scene.places)
    yield from (f"run again: {violation}" for violation in found.violations)
    if set(found.states.values()) != {NEW}:
        yield f"run again, the day's deliveries are {dict(found.states)}"
    else:
        yield from leftovers(scene.places)
    if answer.ending != "answered":
        scene.drivers.discard(driver)


if __name__ == "__main__":
    main()
