"""The daemon of Spark's Python workers: one that was stopped ends when Spark tells it to."""

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from pipelines.steps.scoring import worker_daemon
from pipelines.steps.scoring.worker_daemon import end_stopped_workers

IDLE = "spark.sql.execution.pyspark.udf.idleTimeoutSeconds"

pytestmark = pytest.mark.skipif(
    not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="Linux tells a process its children"
)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A child of this process that is stopped."""
    sleeping = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    sleeping.send_signal(signal.SIGSTOP)
    os.waitpid(sleeping.pid, os.WUNTRACED)
    yield sleeping
    sleeping.kill()
    sleeping.wait()


def test_a_stopped_child_that_was_told_to_end_ends(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    assert end_stopped_workers() == [child.pid]
    assert child.wait(timeout=60) == -signal.SIGTERM


def test_a_child_that_is_only_stopped_stays(child: subprocess.Popen[bytes]) -> None:
    assert end_stopped_workers() == []
    assert child.poll() is None


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_worker_that_stops_ends_its_task_and_not_the_day(spark: SparkSession) -> None:
    usual = spark.conf.get(IDLE)
    spark.conf.set(IDLE, "5")
    try:
        # Spark tries a task once in these tests; anywhere else it tries it again.
        with pytest.raises(Exception, match=r"due to idle timeout|exited unexpectedly"):
            spark.range(1).mapInArrow(stopping(), "id long").collect()
    finally:
        spark.conf.set(IDLE, usual or "0")


def stopping() -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def stop(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        os.kill(os.getpid(), signal.SIGSTOP)
        yield from batches

    return stop


def test_a_new_worker_has_imported_what_scores(spark: SparkSession) -> None:
    def modules(_: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pydict({"name": list(sys.modules)})

    loaded = {row.name for row in spark.range(1).mapInArrow(modules, "name string").collect()}
    assert loaded >= {"torch", *worker_daemon.IMPORTED}


@pytest.mark.parametrize("module", worker_daemon.IMPORTED)
def test_what_it_imports_starts_no_thread_that_a_fork_would_lose(module: str) -> None:
    # Spark sets OMP_NUM_THREADS; jemalloc restarts its own thread in a fork.
    program = (
        f"import importlib, pathlib; importlib.import_module({module!r})\n"
        "print([t.joinpath('comm').read_text().strip() for t in pathlib.Path('/proc/self/task').iterdir()])"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    threads = ast.literal_eval(told.stdout.decode())
    assert len([thread for thread in threads if thread != "jemalloc_bg_thd"]) == 1


def test_workers_are_forked_by_it(spark: SparkSession) -> None:
    def parents(_: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode()
        yield pa.RecordBatch.from_pydict({"command": [command]})

    rows = spark.range(1).mapInArrow(parents, "command string").collect()
    assert all(worker_daemon.__name__ in row.command for row in rows)
