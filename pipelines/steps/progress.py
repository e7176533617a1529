"""Progress in the log: long work says that it begins, that it goes on, and what came of it.

One thread beats for a piece of work and all the work within it, and tells of the innermost; it ends with the
outermost. What does not belong here: what Spark knows of its tasks (`resources.spark_jobs`).
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

HEARTBEAT_SECONDS = 25.0
"""Silence after which work says that it goes on; a person who watches takes longer silence for a hang."""
ENDING_SECONDS = 10.0
"""Time for a beat under way to end, which asks Spark; a daemon thread holds up no process after that."""

logger = logging.getLogger(__name__)


@dataclass
class Work:
    """A piece of work under way.

    Attributes:
        name: What it does, such as "writing app_events of 2025-05-30".
        state: What is known of it meanwhile, asked for by another thread; None: what is known of the work
            that it is a part of.
        result: What came of it, to be said at its end.
        began: When, by the monotonic clock.
    """

    name: str
    state: Callable[[], str] | None = None
    result: str = ""
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Its time so far."""
        return time.monotonic() - self.began


@contextmanager
def working(name: str, state: Callable[[], str] | None = None) -> Iterator[Work]:
    """Logs that work begins, at least every 30 s that it goes on, and its seconds and result when it is done.

    Args:
        name: What it does.
        state: As `Work.state`.
    """
    with beating(Work(name, state)) as work:
        logger.info("%s", name)
        yield work
        logger.info("%s: %s", name, "; ".join(filter(None, [f"done in {work.seconds:.1f} s", work.result])))


@contextmanager
def beating(work: Work) -> Iterator[Work]:
    """Logs at least every 30 s that work goes on; its begin and its end are for the caller to tell."""
    outer: _Heart | None = getattr(_own, "heart", None)
    heart = outer or _Heart()
    heart.works.append(work)
    if outer is None:
        _own.heart = heart
        heart.start()
    try:
        yield work
    finally:
        if outer is None:
            _own.heart = None
            heart.stop()
        heart.works.pop()


class _Heart:
    """The thread that tells of the works of another one, each of them a part of the one before."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="progress", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(ENDING_SECONDS)

    def _beat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            works = list(self.works)
            told = [f"{works[-1].seconds:.0f} s so far", _state_of(works)]
            if not self._stopped.is_set():
                logger.info("%s: %s", works[-1].name, "; ".join(filter(None, told)))


def _state_of(works: list[Work]) -> str:
    states = [work.state for work in works if work.state]
    return states[-1]() if states else ""


_own = threading.local()
"""The heart of each thread that works."""
