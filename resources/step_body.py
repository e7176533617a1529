"""The frame around the body of every asset and check: it says that it works, and why it ended badly.

Dagster shows an error of ours below fifteen lines of its own, as the cause of the error that it wraps around
it; a `dg.Failure` it shows as it is, text first. And where a library turns an interrupt into an error of its
own, Dagster would take a cancelled step for a failed one, and go on with the others.

What does not belong here: what any one step does.
"""

import inspect
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import dagster as dg

from pipelines.steps.errors import AudienceFactoryError
from pipelines.steps.progress import Work, beating
from resources.spark_jobs import cancel_jobs, describe_jobs

CANCEL_EVERY_SECONDS = 1.0
P = ParamSpec("P")
R = TypeVar("R")


class StepFailed(dg.Failure):
    """An error that a person can act on, as a failed step shows it."""


def step_body(body: Callable[P, R]) -> Callable[P, R]:
    """Makes a step tell that it works, end as cancelled when it is, and show an error of ours text first.

    Args:
        body: The function that is to be an asset or a check, or a generator of its results; this decorator
            comes below Dagster's.
    """
    if inspect.isgeneratorfunction(body):

        @wraps(body)
        def yielding(*args: P.args, **kwargs: P.kwargs) -> Iterator[Any]:
            work, results = Work(body.__name__, describe_jobs), body(*args, **kwargs)
            try:
                while True:
                    with _framed(work):
                        try:
                            found = next(results)
                        except StopIteration:
                            return
                    yield found
            finally:
                results.close()

        return cast("Callable[P, R]", yielding)

    @wraps(body)
    def returning(*args: P.args, **kwargs: P.kwargs) -> R:
        with _framed(Work(body.__name__, describe_jobs)):
            return body(*args, **kwargs)

    return returning


@contextmanager
def _framed(work: Work) -> Iterator[None]:
    with _interruptible(work), beating(work):
        try:
            yield
        except AudienceFactoryError as error:
            raise StepFailed(str(error)).with_traceback(error.__traceback__) from error.__cause__


@contextmanager
def _interruptible(work: Work) -> Iterator[None]:
    """Ends the work as interrupted once a signal says so, whatever the code at work makes of the interrupt.

    Spark's jobs are ended, too, until the work has: PySpark waits for their end before it lets an interrupt
    through, and an interrupt in a moment when Python lets none through is lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupts: list[BaseException] = []
    ended = threading.Event()

    def cancel() -> None:
        cancel_jobs()
        while not ended.wait(CANCEL_EVERY_SECONDS):
            cancel_jobs()

    def interrupt(number: int, frame: Any) -> None:
        # From another thread, because this one may be in the middle of a call of the JVM.
        threading.Thread(target=cancel, name="cancel_jobs", daemon=True).start()
        try:
            cast("Callable[[int, Any], None]", handlers[signal.Signals(number)])(number, frame)
        except BaseException as interruption:
            interrupts.append(interruption)
            # Py4J knows nothing of Dagster's own interrupt: only after this one it forgets the call under
            # way, whose answer the next call would else take for its own.
            raise KeyboardInterrupt from interruption

    def require_uninterrupted() -> None:
        if interrupts:
            raise type(interrupts[0])(f"interrupted after {work.seconds:.0f} s of {work.name}") from None

    try:
        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, interrupt)
        yield
    except BaseException:
        require_uninterrupted()
        raise
    else:
        require_uninterrupted()
    finally:
        ended.set()
        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, handler)
