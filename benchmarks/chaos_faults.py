"""The faults: what each does to a running job, and what the job may then say."""

import math
import os
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pyarrow.parquet as pq

from benchmarks.chaos_clusters import LOST_SECONDS, SLOTS, TICK_SECONDS, Cluster
from benchmarks.chaos_world import Score, World
from pipelines.steps.row_groups import RowGroup
from resources.lake import Lake

LATEST_MOMENT = 0.75
"""Later than that, there may be no task left to hit."""
POLL_SECONDS = 0.002


@dataclass(frozen=True)
class Schedule:
    """What is to happen.

    Attributes:
        number: Its place in the run.
        fault: A key of FAULTS.
        moment: The share of the job's tasks that are committed before it strikes.
        delay: After that, in task times.
        victim: Which of those there are, modulo their number.
    """

    number: int
    fault: str
    moment: float
    delay: float
    victim: int

    @classmethod
    def drawn(cls, number: int, fault: str, seed: int, attempt: int = 0) -> "Schedule":
        random = Random(f"{seed} {number} {fault} {attempt}")
        return cls(number, fault, random.uniform(0, LATEST_MOMENT), random.random(), random.getrandbits(30))


@dataclass
class Job:
    """A job that is about to run, or runs, as its schedule sees it."""

    schedule: Schedule
    cluster: Cluster
    world: World
    lake: Lake
    _known: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self._known = {path.name for path in self._data().iterdir()}

    def order(self) -> Score:
        return self.world.order(self.lake)

    def is_planned(self) -> bool:
        """Whether the driver has read the files' footers."""
        return bool(self._new())

    def output(self) -> Path:
        """The folder that the job writes to; there is none before it does."""
        return next(iter(self._new()), self._data() / "none")

    def committed(self) -> list[Path]:
        """A folder for each task that is committed, as long as the job is not."""
        return list((self.output() / "_temporary" / "0").glob("task_*"))

    def lost(self, name: str) -> Path:
        """The place that something is moved to that is to be gone."""
        path = Path(self.lake.root) / "lost" / name
        path.parent.mkdir(exist_ok=True)
        return path

    def wait_until(self, reached: Callable[[], bool]) -> bool:
        """False where the job ended before."""
        while not reached():
            if self.cluster.has_answered(POLL_SECONDS):
                return False
        return True

    def await_moment(self) -> bool:
        """Waits for the moment of the schedule, after the first task."""
        tasks = max(1, math.ceil(self.schedule.moment * self.world.tasks))
        if not self.wait_until(lambda: len(self.committed()) >= tasks):
            return False
        return not self.cluster.has_answered(self.schedule.delay * self.world.task_seconds)

    def victim(self, candidates: Sequence[Any]) -> Any:
        """The schedule's choice.

        Raises:
            Missed: There is none.
        """
        if not candidates:
            raise Missed
        return candidates[self.schedule.victim % len(candidates)]

    def row_group_ahead(self) -> RowGroup:
        """One that no task has read yet."""
        row_groups = self.world.row_groups(self.lake)
        begun = len(self.committed()) + SLOTS if self.is_planned() else 0
        return self.victim(row_groups[begun + 1 :])  # type: ignore[no-any-return]

    def _data(self) -> Path:
        return Path(self.lake.root) / "predictions" / "data"

    def _new(self) -> list[Path]:
        return [path for path in self._data().iterdir() if path.name not in self._known]


@dataclass(frozen=True)
class Struck:
    """What a fault did.

    Attributes:
        what: For people.
        named: What the error must say, if the job may end with one; else it must be survived.
    """

    what: str
    named: tuple[str, ...] = ()


Strike = Generator[Struck, None, None]
"""Strikes at its first step, goes on at each further one while the job runs, and cleans up when closed."""


class Missed(Exception):  # noqa: N818 (it is none)
    """There is nothing to strike at."""


def _tasks_committed(job: Job) -> bool:
    return job.await_moment()


def _job_committing(job: Job) -> bool:
    return job.wait_until(lambda: any(job.output().glob("by_*")))


def _job_committed(job: Job) -> bool:
    return job.wait_until(lambda: (job.output() / "_SUCCESS").exists())


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        strike: Does it.
        when: Waits for its moment, and says whether it came; None: before the job begins.
        cluster: A key of CLUSTERS.
        kills_driver: The job is expected to go down with its driver.
    """

    strike: Callable[[Job], Strike]
    when: Callable[[Job], bool] | None = _tasks_committed
    cluster: str = "steady"
    kills_driver: bool = False


def _kill_worker(job: Job) -> Strike:
    worker = job.victim(job.cluster.workers())
    worker.kill()
    yield Struck(f"Python worker {worker.pid} killed")


def _kill_three_workers(job: Job) -> Strike:
    """One after the other; a task may fail four times."""
    first = job.victim(job.cluster.workers())
    first.kill()
    yield Struck("three Python workers killed, one after the other")
    killed = 1
    while killed < 3:
        others = [worker for worker in job.cluster.workers() if worker != first]
        if others:
            first = job.victim(others)
            first.kill()
            killed += 1
        yield Struck("")


def _kill_daemon(job: Job) -> Strike:
    """The process that forks the workers, and then the worker, for which a new one must be forked."""
    daemon = job.victim(job.cluster.daemons())
    workers = daemon.children()
    for process in [daemon, *workers]:
        process.kill()
    yield Struck(f"daemon {daemon.pid} killed with its {len(workers)} workers")


def _kill_executor(job: Job) -> Strike:
    executor = job.victim(job.cluster.executors())
    executor.kill()
    yield Struck(f"executor {executor.pid} killed")


def _kill_all_executors(job: Job) -> Strike:
    executors = job.cluster.executors()
    for executor in executors:
        executor.kill()
    yield Struck(f"all {len(executors)} executors killed")


def _stop_worker(job: Job) -> Strike:
    yield from _stop(job.victim(job.cluster.workers()), "Python worker")


def _stop_executor(job: Job) -> Strike:
    yield from _stop(job.victim(job.cluster.executors()), "executor")


def _stop(process: psutil.Process, name: str) -> Strike:
    process.suspend()
    try:
        yield Struck(f"{name} {process.pid} stopped")
        while True:
            yield Struck("")
    finally:
        if process.is_running():
            process.resume()


def _pause_executor(job: Job) -> Strike:
    """Stops it until Spark has given it up, and lets it go on while others do its work again."""
    executor = job.victim(job.cluster.executors())
    executor.suspend()
    stopped = time.monotonic()
    try:
        yield Struck(f"executor {executor.pid} stopped for {LOST_SECONDS + 2} s")
        while time.monotonic() - stopped < LOST_SECONDS + 2:
            yield Struck("")
    finally:
        if executor.is_running():
            executor.resume()


def _slow_worker(job: Job) -> Strike:
    """Lets it run a hundredth of the time, so that it and its copy both end, at about the same time."""
    worker = job.victim(job.cluster.workers())
    worker.suspend()
    try:
        yield Struck(f"Python worker {worker.pid} slowed down")
        while True:
            worker.resume()
            time.sleep(TICK_SECONDS / 100)
            worker.suspend()
            yield Struck("")
    except psutil.NoSuchProcess:
        return  # Spark ended it, after its copy had won
    finally:
        if worker.is_running():
            worker.resume()


def _alter_row_group(job: Job) -> Strike:
    """One bit of it."""
    row_group = job.row_group_ahead()
    place = Random(job.schedule.victim).choice(_pages(row_group))
    with Path(row_group.file).open("r+b") as file:
        file.seek(place)
        [byte] = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << job.schedule.victim % 8]))
    what = f"byte {place} of row group {row_group.index} of {Path(row_group.file).name} altered"
    yield Struck(what, named=(f"{row_group} cannot be read",))


def _truncate_row_group(job: Job) -> Strike:
    """Cuts a row group in its middle, and off goes all that follows, the footer too."""
    row_group = job.row_group_ahead()
    part = "row group" if job.is_planned() else "the footer"
    os.truncate(row_group.file, Random(job.schedule.victim).choice(_pages(row_group)))
    named = (part, f"of {row_group.file} cannot be read")
    yield Struck(f"row group {row_group.index} of {Path(row_group.file).name} cut", named)


def _pages(row_group: RowGroup) -> range:
    """The place of its bytes in the file."""
    metadata = pq.read_metadata(row_group.file).row_group(row_group.index)
    chunks = [metadata.column(place) for place in range(metadata.num_columns)]
    begins = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
    sizes = [chunk.total_compressed_size for chunk in chunks]
    return range(min(begins), max(b + size for b, size in zip(begins, sizes, strict=True)))


def _block_task_commit(job: Job) -> Strike:
    """A file stands where tasks write: none can."""
    temporary = job.output() / "_temporary"
    for attempt in range(1_000):  # a task may make the folder anew at once
        if temporary.is_dir():
            temporary.rename(job.lost(f"temporary-{attempt}"))
        try:
            temporary.touch(exist_ok=False)
        except FileExistsError:
            continue
        break
    yield Struck("_temporary replaced by a file", named=("_temporary",))


def _block_job_commit(job: Job) -> Strike:
    """A folder stands where the job's last file is to be written."""
    (job.output() / "_SUCCESS" / "in_the_way").mkdir(parents=True)
    yield Struck("_SUCCESS blocked", named=("_SUCCESS",))


def _lose_temporary(job: Job) -> Strike:
    """Everything that was committed so far, and what is being written."""
    (job.output() / "_temporary").rename(job.lost("temporary"))
    yield Struck("_temporary removed", named=("other rows of predictions were written than expected",))


def _lose_task(job: Job) -> Strike:
    """What one task committed."""
    task = job.victim(sorted(job.committed()))
    task.rename(job.lost(task.name))
    yield Struck(f"{task.name} removed", named=("other rows of predictions were written than expected",))


def _damage_task(job: Job) -> Strike:
    """A file that a task committed."""
    file = job.victim(sorted(job.victim(sorted(job.committed())).rglob("*.parquet")))
    os.truncate(file, file.stat().st_size // 2)
    yield Struck(f"{file.name} cut in two", named=(file.name, "was damaged while its table was written"))


def _kill_driver(job: Job) -> Strike:
    driver = job.cluster.driver()
    driver.kill()
    yield Struck(f"driver {driver.pid} killed")


def _kill_driver_jvm(job: Job) -> Strike:
    jvm = job.cluster.driver_jvm()
    jvm.kill()
    yield Struck(f"the driver's JVM {jvm.pid} killed")


FAULTS = {
    "kill_worker": Fault(_kill_worker),
    "kill_three_workers": Fault(_kill_three_workers),
    "kill_daemon": Fault(_kill_daemon),
    "kill_executor": Fault(_kill_executor),
    "kill_all_executors": Fault(_kill_all_executors),
    "stop_worker": Fault(_stop_worker),
    "stop_executor": Fault(_stop_executor),
    "pause_executor": Fault(_pause_executor),
    "alter_before": Fault(_alter_row_group, when=None),
    "alter_meanwhile": Fault(_alter_row_group),
    "truncate_before": Fault(_truncate_row_group, when=None),
    "truncate_meanwhile": Fault(_truncate_row_group),
    "block_task_commit": Fault(_block_task_commit),
    "block_job_commit": Fault(_block_job_commit),
    "lose_temporary": Fault(_lose_temporary),
    "lose_task": Fault(_lose_task),
    "damage_task": Fault(_damage_task),
    "kill_driver": Fault(_kill_driver, kills_driver=True),
    "kill_driver_jvm": Fault(_kill_driver_jvm, kills_driver=True),
    "kill_driver_in_commit": Fault(_kill_driver, when=_job_committing, kills_driver=True),
    "kill_driver_in_publish": Fault(_kill_driver, when=_job_committed, kills_driver=True),
    "overtake_stopped": Fault(_stop_worker, cluster="two_hosts"),
    "overtake_slow": Fault(_slow_worker, cluster="two_hosts"),
}
