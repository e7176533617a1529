"""Drivers of Spark in processes of their own, with all that runs below them: what can be killed and stopped.

What does not belong here: what they run, and what happens to them meanwhile.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pyspark
from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from pipelines.steps.errors import AudienceFactoryError
from resources.spark import Spark

SLOTS = 2
"""Executors, of one core each."""
JOB_SECONDS = 600
"""A job that takes longer hangs; an undisturbed one takes seconds."""
START_SECONDS = 300
END_SECONDS = 30
"""Seconds that the processes of a driver may outlive it."""
TICK_SECONDS = 0.05
FAST_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
LOST_SECONDS = 15
"""An executor that is silent for so long is given up."""
_SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.executor.memory": "1g",
    "spark.executor.extraJavaOptions": FAST_JVM,
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.network.timeout": f"{LOST_SECONDS}s",
    "spark.network.timeoutInterval": "2s",
    "spark.executor.heartbeatInterval": "2s",
}
_SPECULATION = {
    "spark.speculation": "true",
    "spark.speculation.interval": "50ms",
    "spark.speculation.quantile": "0.3",
    "spark.speculation.multiplier": "2",
}
CLUSTERS = ("steady", "two_hosts")
"""`local-cluster`, where silent workers and executors are given up soon; and one with speculation. Spark
starts no second attempt on the host of the first, and all of a `local-cluster` is one host, so that the
other is a cluster of its own, with two addresses."""
Order = Callable[[SparkSession], None]
"""What a driver is told to do."""


@dataclass(frozen=True)
class Answer:
    """What a driver says of a job.

    Attributes:
        ending: "answered", "died" (the driver did) or "hung".
        error: The exception that ended the job.
        lost: Attempts of tasks that failed or were given up.
    """

    ending: str
    error: str | None = None
    lost: int = 0


class Cluster:
    """A driver in a process of its own, and the processes below it."""

    def __init__(self, kind: str, home: Path, idle_seconds: int) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        log = home / f"driver-{len(list(home.glob('driver-*.log')))}.log"
        self._process = context.Process(target=_serve, args=(theirs, kind, home, log, idle_seconds))
        self._process.start()
        theirs.close()
        self._seen: set[psutil.Process] = set()
        if self.answer(meanwhile=(), seconds=START_SECONDS).ending != "answered":
            self.end()
            raise SystemExit(f"the driver did not start:\n{log.read_text()[-4_000:]}")

    def send(self, order: Order) -> None:
        """Once all executors are there."""
        deadline = time.monotonic() + START_SECONDS
        while len(self.executors()) < SLOTS and time.monotonic() < deadline:
            time.sleep(TICK_SECONDS)
        self._connection.send(order)

    def has_answered(self, seconds: float) -> bool:
        return self._connection.poll(seconds)

    def answer(self, meanwhile: Iterable[object], seconds: float = JOB_SECONDS) -> Answer:
        """Waits for it; takes a step of `meanwhile` from time to time."""
        steps = iter(meanwhile)
        deadline = time.monotonic() + seconds
        while not self.has_answered(TICK_SECONDS):
            next(steps, None)
            if time.monotonic() > deadline:
                return Answer("hung")
        try:
            answer: Answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            return Answer("died")
        return answer

    def run(self, order: Order) -> Answer:
        self.send(order)
        return self.answer(meanwhile=())

    def prepare(self, order: Order) -> None:
        answer = self.run(order)
        if answer.ending != "answered" or answer.error:
            raise SystemExit(f"{order} failed undisturbed: {answer}")

    def driver(self) -> psutil.Process:
        self._below()
        return psutil.Process(self._process.pid)

    def driver_jvm(self) -> psutil.Process:
        return self._running("org.apache.spark.deploy.SparkSubmit")[0]

    def executors(self) -> list[psutil.Process]:
        return self._running("org.apache.spark.executor.CoarseGrainedExecutorBackend")

    def daemons(self) -> list[psutil.Process]:
        executors = {process.pid for process in self.executors()}
        return [process for process in self._running("pyspark.worker") if _parent(process) in executors]

    def workers(self) -> list[psutil.Process]:
        daemons = {process.pid for process in self.daemons()}
        return [process for process in self._running("pyspark.worker") if _parent(process) in daemons]

    def end(self) -> None:
        """Lets it end by itself, if it still can; ends what then is left."""
        self._below()
        if self._process.is_alive() and not self.has_answered(0):
            self._connection.send(None)
        self._connection.close()
        self._process.join(END_SECONDS)
        _, alive = psutil.wait_procs(self._seen, END_SECONDS)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()

    def _running(self, name: str) -> list[psutil.Process]:
        return sorted((p for p in self._below() if name in _command(p)), key=lambda process: process.pid)

    def _below(self) -> list[psutil.Process]:
        try:
            below = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self._seen.update(below)
        return below


class Clusters:
    """Those that are running: one of a kind at most, and one at a time, for these take memory."""

    def __init__(self, home: Path, idle_seconds: int) -> None:
        self._home = home
        self._idle_seconds = idle_seconds
        self._running: dict[str, Cluster] = {}

    def get(self, kind: str) -> Cluster:
        for other in set(self._running) - {kind}:
            self.end(other)
        if kind not in self._running:
            self._running[kind] = Cluster(kind, self._home, self._idle_seconds)
        return self._running[kind]

    def end(self, kind: str) -> None:
        self._running.pop(kind).end()

    def end_all(self) -> None:
        for kind in list(self._running):
            self.end(kind)


@contextmanager
def running_clusters(home: Path, idle_seconds: int) -> Iterator[Clusters]:
    # Executors keep their logs in Spark's own folder: a folder of links keeps them out of the installed one.
    spark_home = home / "spark"
    spark_home.mkdir()
    for name in ("bin", "jars"):
        (spark_home / name).symlink_to(Path(pyspark.__file__).parent / name)
    (home / "tmp").mkdir()
    clusters = Clusters(home, idle_seconds)
    try:
        yield clusters
    finally:
        clusters.end_all()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _parent(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return 0


def _serve(connection: Connection, kind: str, home: Path, log: Path, idle_seconds: int) -> None:
    """What a driver process does: orders come in, answers go out, what Spark says goes to a file."""
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    temporary = str(home / "tmp")
    os.environ |= {"SPARK_HOME": str(home / "spark"), "SPARK_LOCAL_DIRS": temporary, "TMPDIR": temporary}
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    conf = _SETTINGS | {"spark.driver.extraJavaOptions": f"{FAST_JVM} -Djava.io.tmpdir={temporary}"}
    with _master(kind, home) as master:
        if kind == "two_hosts":
            spark = Spark(master=master, driver_memory="1g", conf=conf | _SPECULATION)
        else:
            spark = Spark(master=master, driver_memory="1g", python_idle_seconds=idle_seconds, conf=conf)
        connection.send(Answer("answered", error=None, lost=spark.session.range(0).count()))
        while (order := connection.recv()) is not None:
            connection.send(_obey(order, spark.session))
        spark.session.stop()


def _obey(order: Order, session: SparkSession) -> Answer:
    context = session.sparkContext
    group = f"order {time.monotonic_ns()}"
    context.setJobGroup(group, "scoring under a fault")
    error = None
    try:
        order(session)
    except (AudienceFactoryError, PySparkException, Py4JJavaError) as raised:
        error = str(raised)
    # Spark's own bookkeeping, the only one that tells attempts that were given up.
    jvm: Any = context._jsc.sc()
    jvm.listenerBus().waitUntilEmpty()
    tracker = context.statusTracker()
    jobs = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(group)]
    stages = [jvm.statusStore().lastStageAttempt(stage) for job in jobs if job for stage in job.stageIds]
    lost = sum(s.numFailedTasks() + s.numKilledTasks() + s.numActiveTasks() for s in stages)
    return Answer("answered", error, lost)


@contextmanager
def _master(kind: str, home: Path) -> Iterator[str]:
    """The master that the driver finds its executors by."""
    if kind == "steady":
        yield f"local-cluster[{SLOTS},1,1024]"
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    master = f"spark://127.0.0.1:{port}"
    environment = os.environ | {"SPARK_DAEMON_MEMORY": "256m", "SPARK_DAEMON_JAVA_OPTS": FAST_JVM}

    def start(name: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [str(home / "spark/bin/spark-class"), f"org.apache.spark.deploy.{name}", *arguments]
        return subprocess.Popen([*command, "--webui-port", "0"], env=environment)

    started = [start("master.Master", "--host", "127.0.0.1", "--port", str(port))]
    for host in ("127.0.0.1", "127.0.0.2"):
        work = str(home / "spark" / "work" / host)
        started.append(
            start("worker.Worker", "--host", host, "-c", "1", "-m", "1g", "--work-dir", work, master)
        )
    try:
        yield master
    finally:
        for process in started:
            process.terminate()
            process.wait()
