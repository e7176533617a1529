"""The faults of the daily chain: what each does to its runs, and what these may then say and deliver."""

import itertools
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil
from dagster._core.storage.tags import RETRY_ON_ASSET_OR_OP_FAILURE_TAG

from benchmarks.chaos_chain_drivers import Answer, Driver, Drivers
from benchmarks.chaos_chain_receivers import OTHER
from benchmarks.chaos_chain_world import AUDIENCE, DAY, NEW, OLD, TABLES, Places, World
from benchmarks.chaos_faults import Missed

INTERRUPTED_SECONDS = 60
"""Seconds that a run which is interrupted may take to end."""
KEY = f"{AUDIENCE}/{DAY}"
CHECKED_INPUT = "app_events_checks"
PREDICTIONS_CHECKS, SEGMENTS_CHECKS = f"{AUDIENCE}_predictions_checks", f"{AUDIENCE}_segments_checks"
SEGMENTS_STEP, DELIVERIES_STEP = f"{AUDIENCE}__segments", f"{AUDIENCE}__deliveries"
READ_AFTER = {
    "feature_tokens": ("feature_tokens_checks", "predictions"),
    "predictions": (PREDICTIONS_CHECKS, SEGMENTS_STEP),
    "segments": (SEGMENTS_CHECKS, DELIVERIES_STEP),
}
"""Table → the steps that read it, once it is published."""


@dataclass(frozen=True)
class Schedule:
    """A fault to come: which, when and to whom.

    Attributes:
        number: Its place in the run.
        fault: A key of FAULTS.
        step: Which step it strikes at, modulo their number.
        share: Of the step's usual seconds, or of whatever else it waits for, that are to pass before.
        victim: Which of those there are, modulo their number.
    """

    number: int
    fault: str
    step: int
    share: float
    victim: int

    @classmethod
    def drawn(cls, number: int, fault: str, seed: int, attempt: int = 0) -> "Schedule":
        """Draws it from the seed; a further attempt strikes earlier, for the last one came too late."""
        random = Random(f"chain {seed} {number} {fault} {attempt}")
        latest = 0.9 / (attempt + 1)
        return cls(number, fault, random.getrandbits(30), random.uniform(0, latest), random.getrandbits(30))


@dataclass(frozen=True)
class Outcome:
    """The deed of a fault, and what the runs then may have done.

    Attributes:
        what: What was struck, for people.
        answers: Of the runs.
        allowed: The states that deliveries may have.
        named: What the error must say of a run that may fail; empty: all must succeed.
        may_succeed: Whether a run that may fail need not.
        ended: The drivers that are not to be used again.
        killed: Whether their end was intended.
        violations: What else must not be.
    """

    what: str
    answers: tuple[Answer, ...]
    allowed: tuple[str, ...] = (NEW,)
    named: tuple[str, ...] = ()
    may_succeed: bool = False
    ended: tuple[Driver, ...] = ()
    killed: bool = False
    violations: tuple[str, ...] = ()


@dataclass
class Scene:
    """A copy of the world whose day is run under a fault."""

    schedule: Schedule
    world: World
    places: Places
    drivers: Drivers
    damaged: set[str] = field(default_factory=set)
    """Deliveries that are not whole just now, by the fault's own doing."""

    def run(self, driver: Driver, *, job: str = "daily_job", hold: Sequence[str] = ()) -> None:
        """Starts a job: the day's, or the training."""
        day = DAY if job == "daily_job" else None
        driver.start(self.places.wire(), job=job, first=day, last=day, hold=hold)

    def run_until(self, driver: Driver, step: str) -> None:
        """Runs the day until the step begins, which then waits.

        Raises:
            Missed: The run ended before.
        """
        self.run(driver, hold=[step])
        if not driver.await_start(step):
            raise Missed

    def go_on(self, driver: Driver) -> Answer:
        driver.release()
        return driver.answer()

    def await_moment(self, driver: Driver) -> str:
        """Waits until the schedule's share of its step has passed, and names the moment.

        Raises:
            Missed: The run ended before.
        """
        steps = list(self.world.steps.items())
        step, seconds = steps[self.schedule.step % len(steps)]
        if not driver.await_start(step):
            raise Missed
        self.wait(driver, seconds)
        return f"{self.schedule.share:.0%} into {step}"

    def wait(self, driver: Driver, seconds: float) -> None:
        """Lets the schedule's share of so many seconds pass.

        Raises:
            Missed: The run ended before.
        """
        if driver.has_answered(self.schedule.share * seconds):
            raise Missed

    def victim(self, candidates: Sequence[Any]) -> Any:
        return candidates[self.schedule.victim % len(candidates)]

    def publish_altered(self, driver: Driver, table: str) -> None:
        driver.obey(do="publish", places=self.places.wire(), table=table, key=KEY)

    def promote(self, driver: Driver, version: str | None) -> str:
        """Makes a version serve, or any other than the champion, and returns it."""
        answer = driver.obey(do="promote", places=self.places.wire(), audience=AUDIENCE, version=version)
        return answer.versions[0]


Fault = Callable[[Scene], Outcome]
"""Runs the day under a fault; raises Missed where there was nothing to strike at."""


# --- processes -------------------------------------------------------------------------------------


def _kill_driver(scene: Scene) -> Outcome:
    driver, _ = scene.drivers.two()
    scene.run(driver)
    moment = scene.await_moment(driver)
    driver.process.kill()
    return _end_of(driver, f"driver killed {moment}")


def _kill_delivering(scene: Scene) -> Outcome:
    """Once the first, second, … of the files is being staged."""
    driver, _ = scene.drivers.two()
    scene.run_until(driver, DELIVERIES_STEP)
    folders = {place.parent for place in scene.places.delivered().values()}
    nth, staged = scene.schedule.victim % len(folders) + 1, set[str]()
    driver.release()
    while len(staged) < nth:
        staged |= {path.name for folder in folders for path in folder.glob(".staging-*")}
        if driver.has_answered(0):
            raise Missed
    scene.wait(driver, 0.01)
    driver.process.kill()
    return _end_of(driver, f"driver killed while it delivered the {nth}. of {len(folders)} files")


def _end_of(driver: Driver, what: str) -> Outcome:
    answer = driver.answer()
    if answer.ending == "answered":
        raise Missed
    return Outcome(what, (answer,), allowed=(OLD, NEW), ended=(driver,), killed=True)


def _kill_jvm(scene: Scene) -> Outcome:
    """The run fails and is to be tried again, unless it needs no Spark any more."""
    driver, _ = scene.drivers.two()
    scene.run(driver)
    moment = scene.await_moment(driver)
    psutil.Process(driver.jvm).kill()
    answer = driver.answer()
    wanted = answer.success or answer.tags.get(RETRY_ON_ASSET_OR_OP_FAILURE_TAG) == "true"
    return Outcome(
        f"JVM killed {moment}",
        (answer,),
        allowed=(NEW,) if answer.success else (OLD,),
        named=("Spark's JVM died",),
        may_succeed=True,
        ended=(driver,),
        violations=() if wanted else ("a run that lost its Spark is not to be tried again",),
    )


def _interrupt(scene: Scene) -> Outcome:
    """Dagster ends the run; should its process live on, it is told to end, too."""
    driver, _ = scene.drivers.two()
    with_signal = scene.victim([signal.SIGINT, signal.SIGTERM])
    scene.run(driver)
    moment = scene.await_moment(driver)
    driver.process.send_signal(with_signal)
    answer = driver.answer(INTERRUPTED_SECONDS)
    return Outcome(
        f"{with_signal.name} {moment}",
        (answer,),
        allowed=(OLD, NEW),
        named=("DagsterExecutionInterruptedError",),
        ended=(driver,),
        killed=answer.ending == "died",
    )


# --- several runs ----------------------------------------------------------------------------------


def _two_runs(scene: Scene) -> Outcome:
    first, second = scene.drivers.two()
    second.await_ready()
    scene.run(first)
    scene.wait(first, sum(scene.world.steps.values()))
    scene.run(second)
    what = f"a second run started {scene.schedule.share:.0%} into the first"
    return Outcome(what, (first.answer(), second.answer()))


def _two_inputs(scene: Scene) -> Outcome:
    """The first run reads the old events, the second the new ones; either may be the last to deliver."""
    first, second = scene.drivers.two()
    second.await_ready()
    scene.places.use_events(OLD)
    scene.run(first)
    if not first.await_end(CHECKED_INPUT):
        raise Missed
    scene.wait(first, _seconds_after(scene.world, CHECKED_INPUT))
    scene.places.use_events(NEW)
    scene.run(second)
    what = f"other events, and a second run on them, {scene.schedule.share:.0%} into the rest of the first"
    return Outcome(what, (first.answer(), second.answer()), allowed=(OLD, NEW))


def _other_run_publishes(scene: Scene) -> Outcome:
    """Altered rows take the place of what the run has published; it goes by its own versions."""
    first, second = scene.drivers.two()
    second.await_ready()
    table = scene.victim(["predictions", "segments"])
    step = READ_AFTER[table][scene.schedule.step % 2]
    scene.run_until(first, step)
    scene.publish_altered(second, table)
    return Outcome(f"altered {table} published before {step}", (scene.go_on(first),))


def _promote_meanwhile(scene: Scene) -> Outcome:
    first, second = scene.drivers.two()
    second.await_ready()
    step = scene.victim([PREDICTIONS_CHECKS, SEGMENTS_STEP, DELIVERIES_STEP])
    scene.run_until(first, step)
    version = scene.promote(second, None)
    return Outcome(f"{version} promoted before {step}", (scene.go_on(first),))


def _training_meanwhile(scene: Scene) -> Outcome:
    first, second = scene.drivers.two()
    second.await_ready()
    scene.run(first, job="training_job")
    scene.wait(first, sum(scene.world.steps.values()))
    scene.run(second)
    answers = (second.answer(), first.answer())
    champion = scene.places.models.current(AUDIENCE, "champion").version
    what = f"{scene.schedule.share:.0%} of a day's time into a training, whose champion is {champion}"
    return Outcome(what, answers, allowed=(NEW, OTHER))


def _spoiled_alone(scene: Scene) -> Outcome:
    """Rows that no check has seen, and what follows from them materialized alone."""
    driver, _ = scene.drivers.two()
    table = scene.victim(["predictions", "segments"])
    scene.publish_altered(driver, table)
    assets = ["segments", "deliveries"] if table == "predictions" else ["deliveries"]
    answer = driver.run(
        scene.places.wire(), assets=[f"{AUDIENCE}/{asset}" for asset in assets], first=DAY, last=DAY
    )
    named = (
        f"nothing is delivered for {DAY}: blocking checks upstream have not passed",
        f"'{AUDIENCE}/{table}:every_probability_is_in_0_to_1': 'never evaluated'",
    )
    return Outcome(f"altered {table}, then {' and '.join(assets)} alone", (answer,), (OLD,), named)


# --- files -----------------------------------------------------------------------------------------


def _damage_lake(scene: Scene) -> Outcome:
    driver, _ = scene.drivers.two()
    table = scene.victim(list(READ_AFTER))
    step = READ_AFTER[table][scene.schedule.step % 2]
    scene.run_until(driver, step)
    key = KEY if table in TABLES[3:] else str(DAY)
    file = scene.victim(scene.places.lake.files(table, [key]))
    os.truncate(file, int(scene.schedule.share * file.stat().st_size))
    answer = scene.go_on(driver)
    return Outcome(f"a file of {table} cut before {step}", (answer,), (OLD,), named=(file.name,))


def _damage_delivery(scene: Scene) -> Outcome:
    """Damages a delivery that lies there already; the run brings equal content or other content."""
    driver, _ = scene.drivers.two()
    name = scene.victim(list(scene.places.delivered()))
    damage = list(DAMAGES)[scene.schedule.step % len(DAMAGES)]
    variant = OLD if scene.schedule.share < 0.45 else NEW
    scene.damaged.add(name)
    place = scene.places.delivered()[name]
    DAMAGES[damage](place)
    scene.places.use_events(variant)
    scene.run(driver)
    answer = driver.answer()
    scene.damaged.discard(name)
    told = any(str(place) in text for text in answer.repaired)
    violations = () if told else (f"that {place} was repaired is not told: {answer.repaired}",)
    what = f"{name}: {damage}, before a run on the {variant} events"
    return Outcome(what, (answer,), allowed=(variant,), violations=violations)


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _make_folder(file: Path) -> None:
    file.unlink()
    (file / "of_somebody").mkdir(parents=True)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "its file cut": lambda place: _cut(next(place.glob("devices-*"))),
    "its file lost": lambda place: next(place.glob("devices-*")).unlink(),
    "its file a folder": lambda place: _make_folder(next(place.glob("devices-*"))),
    "its manifest cut": lambda place: _cut(place / "manifest.json"),
    "its manifest empty": lambda place: os.truncate(place / "manifest.json", 0),
    "its manifest null": lambda place: (place / "manifest.json").write_text("null"),
    "its manifest a folder": lambda place: _make_folder(place / "manifest.json"),
}


def _block_destination(scene: Scene) -> Outcome:
    """A file lies where the folder of a segment, or of its day, belongs; afterwards it is taken away."""
    driver, _ = scene.drivers.two()
    name = scene.victim(list(scene.places.delivered()))
    place = scene.places.delivered()[name]
    folder = place if scene.schedule.step % 2 else place.parent
    aside = scene.places.root / "aside"
    scene.damaged.add(name)
    folder.rename(aside)
    folder.write_text("of somebody")
    scene.run(driver)
    answer = driver.answer()
    folder.unlink()
    aside.rename(folder)
    scene.damaged.discard(name)
    blocked = folder.relative_to(scene.places.data)
    return Outcome(f"a file in place of {blocked}", (answer,), (OLD, NEW), named=(str(folder),))


def _seconds_after(world: World, step: str) -> float:
    later = itertools.dropwhile(lambda name: name != step, world.steps)
    return sum(world.steps[name] for name in list(later)[1:])


FAULTS: dict[str, Fault] = {
    "kill_driver": _kill_driver,
    "damage_delivery": _damage_delivery,
    "two_runs": _two_runs,
    "kill_jvm": _kill_jvm,
    "block_destination": _block_destination,
    "two_inputs": _two_inputs,
    "interrupt": _interrupt,
    "spoiled_alone": _spoiled_alone,
    "other_run_publishes": _other_run_publishes,
    "kill_delivering": _kill_delivering,
    "damage_lake": _damage_lake,
    "promote_meanwhile": _promote_meanwhile,
    "training_meanwhile": _training_meanwhile,
}
"""Faults in an order in which, after a kill, another driver starts beside a schedule that needs but one."""
