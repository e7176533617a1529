"""Publishes again and again, disturbed at its first step, its second, … until one publish is undisturbed.

A program of its own, because it forks: each publish is a process that can be killed. A step is whatever
touches a disk: a file opened, renamed or removed, a folder made or removed, a lock taken, an fsync.

    python -m tests.publishing_steps FILE ROWS FILE ROWS MODE=FOLDER…

copies FOLDER/before to FOLDER/1, FOLDER/2, … and publishes the first file in each; FOLDER/ends then has a
line for each. `kill` ends the process at that step; `fail` lets the step raise OSError; `meet` lets a second
process publish the second file while the first one rests at that step.
"""

import errno
import gc
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pipelines.steps.config.audience import FolderDestination
from pipelines.steps.errors import DataError
from resources.destinations import Delivery, Destinations

DAY = "2025-03-10"
EVENTS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock")
KILLED, UNDISTURBED, REFUSED, DISTURBED = 9, 10, 11, 12
REST_SECONDS = 0.05
"""Several times what an undisturbed publish takes."""


class Steps:
    """Counts the steps of a publish, and disturbs one of them."""

    def __init__(self) -> None:
        self._left = 0
        self._disturb: Callable[[], None] | None = None
        sys.addaudithook(self._audit)
        # Raises no audit event. Not written to disk: a killed process, unlike a power cut, loses nothing.
        os.fsync = self._fsync

    @property
    def undisturbed(self) -> bool:
        return self._disturb is not None

    def disturb_at(self, step: int, disturb: Callable[[], None]) -> None:
        self._left, self._disturb = step, disturb

    def _audit(self, event: str, arguments: Sequence[object]) -> None:
        if event in EVENTS or (event == "open" and "/out" in str(arguments[0])):
            self._count()

    def _fsync(self, fd: object) -> None:
        self._count()

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0 and self._disturb is not None:
            disturb, self._disturb = self._disturb, None
            disturb()


def publish(root: Path, file: str, rows: str) -> None:
    version = Path(file).stem
    delivery = Delivery("buyers", "top", DAY, [Path(file)], int(rows), "v1", version, version)
    Destinations(root=str(root)).publish(delivery, FolderDestination(type="folder", path="out", format="csv"))


def disturb_each_step(
    steps: Steps, mode: str, folder: Path, first: Sequence[str], second: Sequence[str]
) -> None:
    ends: list[list[int]] = []
    while not ends or ends[-1][0] != UNDISTURBED:
        step = len(ends) + 1
        root = folder / str(step)
        shutil.copytree(folder / "before", root)
        rests, resting = os.pipe()
        disturbances: dict[str, Callable[[], None]] = {
            "kill": _kill,
            "fail": _fail,
            "meet": partial(_rest, resting),
        }
        children = [_fork(partial(_disturbed, steps, step, disturbances[mode], root, *first))]
        os.close(resting)
        os.read(rests, 1)  # until the other end is closed: it rests, or has ended
        os.close(rests)
        if mode == "meet":
            children.append(_fork(partial(_undisturbed, root, *second)))
        ends.append([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
    (folder / "ends").write_text("".join(f"{' '.join(map(str, codes))}\n" for codes in ends))


def _kill() -> None:
    os._exit(KILLED)  # as SIGKILL: no handler, no cleaning up


def _fail() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO), "out")


def _rest(resting: int) -> None:
    os.close(resting)
    time.sleep(REST_SECONDS)


def _disturbed(steps: Steps, step: int, disturb: Callable[[], None], root: Path, file: str, rows: str) -> int:
    steps.disturb_at(step, disturb)
    try:
        publish(root, file, rows)
    except DataError:
        return REFUSED
    return UNDISTURBED if steps.undisturbed else DISTURBED


def _undisturbed(root: Path, file: str, rows: str) -> int:
    publish(root, file, rows)
    return UNDISTURBED


def _fork(run: Callable[[], int]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = run()
        except Exception:  # noqa: BLE001 - told by the exit status and this
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


if __name__ == "__main__":
    STEPS = Steps()
    gc.freeze()  # a collection would copy what the children share
    for case in sys.argv[5:]:
        MODE, FOLDER = case.split("=", 1)
        disturb_each_step(STEPS, MODE, Path(FOLDER), sys.argv[1:3], sys.argv[3:5])
