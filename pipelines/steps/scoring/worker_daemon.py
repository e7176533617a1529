"""Spark's daemon of Python workers: its forks start with what scoring imports, and stopped ones end.

Importing PyTorch takes each new worker a second or two; here the daemon does it once, before the first fork.

Spark ends a worker that was silent for too long with SIGTERM, which does not reach a stopped process: its
task, and with it the job, would wait for ever (Spark 4.3). The daemon wakes such a worker, and that ends it.
"""

import gc
import importlib
import os
import signal
from pathlib import Path
from types import FrameType

from pyspark.daemon import manager

CHECK_SECONDS = 1
IMPORTED = (
    "pyspark.worker",
    "pyarrow.parquet",
    "pipelines.steps.scoring.predictions",
    "pipelines.steps.models.torch_scorer",
)
"""What every worker that scores needs, and nothing that starts a thread which a fork would lose."""


def end_stopped_workers() -> list[int]:
    """Wakes the children of this process that are stopped and were told to end; returns their ids."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    if not children.exists():
        return []  # not Linux
    woken = [int(child) for child in children.read_text().split() if _was_told_to_end(int(child))]
    for child in woken:
        os.kill(child, signal.SIGCONT)
    return woken


def _was_told_to_end(pid: int) -> bool:
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return False  # it ended meanwhile
    pending = int(status["ShdPnd"], 16) | int(status["SigPnd"], 16)
    return status["State"].split()[0] == "T" and bool(pending >> (signal.SIGTERM - 1) & 1)


def _check(_signal: int, _frame: FrameType | None) -> None:
    end_stopped_workers()


if __name__ == "__main__":
    # A timer and not a thread: the daemon must have none when it forks, and a fork inherits no timer.
    signal.signal(signal.SIGALRM, _check)
    signal.setitimer(signal.ITIMER_REAL, CHECK_SECONDS, CHECK_SECONDS)
    for module in IMPORTED:
        importlib.import_module(module)
    # Spark collects garbage after every task, and would walk through all of torch each time (0.2 s).
    gc.freeze()
    manager()
