"""Processes that run the chain's jobs (`benchmarks.chaos_chain_driver`), as what strikes at them sees them.

What does not belong here: what happens to them, and what must hold then.
"""

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Any

import psutil

REPOSITORY = Path(__file__).parent.parent
START_SECONDS = 300
JOB_SECONDS = 400
"""A run that takes longer hangs; an undisturbed one takes seconds."""
GONE_SECONDS = 30
"""Seconds that processes of a driver may outlive it."""
MARK = "AUDIENCE_FACTORY_CHAOS_DRIVER"
"""The variable by which the processes that a driver started are found, whoever their parent is by then."""


@dataclass(frozen=True)
class Answer:
    """A driver's answer to an order.

    Attributes:
        ending: "answered", "died" (the driver did) or "hung".
        success: Whether the run succeeded.
        error: What the run's log says is wrong.
        tags: Of the run.
        repaired: What deliveries found damaged.
        versions: Of what was published or promoted.
        steps: Step → its seconds, of those that succeeded.
    """

    ending: str
    success: bool = False
    error: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    repaired: Sequence[str] = ()
    versions: Sequence[str] = ()
    steps: Mapping[str, float] = field(default_factory=dict)


class Hung(Exception):  # noqa: N818 (a finding, no fault of this program)
    """A run goes on and on."""


class Driver:
    """One such process, which starts in the background."""

    def __init__(self, home: Path) -> None:
        self._mark = uuid.uuid4().hex
        self._log = home / f"driver-{self._mark[:8]}.log"
        # A folder of its own for what Spark spills: nobody else's sweep removes it.
        temporary = home / "tmp"
        temporary.mkdir(exist_ok=True)
        settings = {MARK: self._mark, "TMPDIR": str(temporary), "SPARK_LOCAL_DIRS": str(temporary)}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.chaos_chain_driver"],
                cwd=REPOSITORY,
                env=_environment() | settings,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for us, who then end it
            )
        self._told: Queue[dict[str, Any] | None] = Queue()
        self._started: dict[str, float] = {}
        self._steps: dict[str, float] = {}
        self._answer: Answer | None = None
        self._ready = False
        self.jvm = 0
        threading.Thread(target=self._listen, args=(self.process.stdout,), daemon=True).start()

    def await_ready(self) -> None:
        if not self._ready:
            message = self._next(time.monotonic() + START_SECONDS)
            if message is None or message["told"] != "ready":
                self.end()
                raise SystemExit(f"a driver did not start:\n{self._log.read_text()[-4_000:]}")
            self.jvm, self._ready = message["jvm"], True

    def start(
        self,
        places: Mapping[str, str],
        *,
        job: str | None = None,
        assets: Sequence[str] = (),
        first: date | None,
        last: date | None,
        hold: Sequence[str] = (),
    ) -> None:
        """Lets it run a job, or materialize assets on their own."""
        days = {"first": str(first) if first else None, "last": str(last) if last else None}
        self.send({"do": "run", "places": places, "job": job, "assets": assets, "hold": hold, **days})

    def run(self, places: Mapping[str, str], **what: Any) -> Answer:
        self.start(places, **what)
        return self.answer()

    def obey(self, **order: Any) -> Answer:
        """Lets it do what is no run.

        Raises:
            RuntimeError: It could not.
        """
        self.send(order)
        answer = self.answer()
        if not answer.success:
            raise RuntimeError(f"{order}: {answer}")
        return answer

    def send(self, order: Mapping[str, Any]) -> None:
        self.await_ready()
        self._started, self._steps, self._answer = {}, {}, None
        self._write(json.dumps(order))

    def release(self) -> None:
        """Lets a step go on that it holds."""
        self._write("go on")

    def await_start(self, step: str) -> bool:
        """Waits until a step starts; False where the run ended before."""
        return self._await(self._started, step)

    def await_end(self, step: str) -> bool:
        """Waits until a step has succeeded; False where the run ended before."""
        return self._await(self._steps, step)

    def has_answered(self, seconds: float) -> bool:
        """Waits so long for the answer."""
        deadline = time.monotonic() + seconds
        while self._answer is None:
            if not self._take(deadline):
                return False
        return True

    def answer(self, seconds: float = JOB_SECONDS) -> Answer:
        self.has_answered(seconds)
        return self._answer or Answer("hung", steps=self._steps)

    def left(self, seconds: float = GONE_SECONDS) -> list[str]:
        """The commands of its processes that are still there after a while."""
        deadline = time.monotonic() + seconds
        while (processes := list(self._processes())) and time.monotonic() < deadline:
            time.sleep(0.2)
        return [" ".join(_command(process))[:200] for process in processes]

    def end(self) -> list[str]:
        """Lets it end by itself, then kills what is left, and says what that was."""
        if self.process.stdin and not self.process.stdin.closed:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                self.process.stdin = None  # it has ended
        left = self.left()
        for process in self._processes():
            process.kill()
        self.process.wait()
        return left

    def _await(self, seen: Mapping[str, float], step: str) -> bool:
        deadline = time.monotonic() + JOB_SECONDS
        while step not in seen and self._answer is None:
            if not self._take(deadline):
                raise Hung(f"no sign of {step} after {JOB_SECONDS} s")
        return step in seen and self._answer is None

    def _take(self, deadline: float) -> bool:
        """Reads one message; False where none came in time."""
        try:
            message = self._next(deadline)
        except Empty:
            return False
        if message is None:
            self.process.wait()
            self._answer = Answer("died", steps=self._steps)
        elif message["told"] == "start":
            self._started[message["step"]] = time.monotonic()
        elif message["told"] == "end" and message["seconds"] is not None:
            self._steps[message["step"]] = message["seconds"]
        elif message["told"] == "answer":
            known = {key: value for key, value in message.items() if key != "told"}
            self._answer = Answer("answered", **known, steps=self._steps)
        return True

    def _next(self, deadline: float) -> dict[str, Any] | None:
        return self._told.get(timeout=max(0.0, deadline - time.monotonic()))

    def _listen(self, told: IO[str]) -> None:
        for line in told:
            self._told.put(json.loads(line))
        self._told.put(None)

    def _write(self, line: str) -> None:
        try:
            if self.process.stdin:
                self.process.stdin.write(f"{line}\n")
                self.process.stdin.flush()
        except BrokenPipeError:
            return  # it has ended, which its answer will say

    def _processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    yield process
            except psutil.Error:
                continue  # another user's, or it has just ended


class Drivers:
    """Two of them: while one runs the day again, another starts for the one that was killed."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._live: list[Driver] = []

    def one(self) -> Driver:
        """The one that started first."""
        self.refill(1)
        return self._live[0]

    def two(self) -> tuple[Driver, Driver]:
        self.refill()
        first, second = self._live
        return first, second

    def refill(self, wanted: int = 2) -> None:
        """Starts those that are missing, in the background."""
        while len(self._live) < wanted:
            self._live.append(Driver(self._home))

    def discard(self, driver: Driver) -> list[str]:
        """Ends one; says which of its processes had to be killed for it."""
        self._live.remove(driver)
        return driver.end()

    def end_all(self) -> None:
        for driver in list(self._live):
            self.discard(driver)


@contextmanager
def running_drivers(home: Path) -> Iterator[Drivers]:
    drivers = Drivers(home)
    try:
        yield drivers
    finally:
        drivers.end_all()


def _environment() -> dict[str, str]:
    """Ours, without what would lead a driver to another project or another Spark."""
    foreign = ("AUDIENCES_DIR", "DATA_DIR", "DAGSTER_HOME", "SPARK_MASTER", "SPARK_REMOTE", "SPARK_CONF")
    return {name: value for name, value in os.environ.items() if name not in foreign}


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return ["a process that has just ended"]
