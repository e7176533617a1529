"""One demo at a time on a data directory: each would replace the world of the other and close its runs."""

import fcntl
from pathlib import Path
from typing import TextIO

from pipelines.steps.errors import DataError

LOCK_NAME = ".demo.lock"


def lock_demo(data: Path) -> TextIO:
    """Takes the lock of the demo on a data directory, until the stream is closed or the process ends.

    Raises:
        DataError: A demo is running there, or its world is being simulated.
    """
    data.mkdir(parents=True, exist_ok=True)
    stream = (data / LOCK_NAME).open("a")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        raise DataError(
            f"another demo is running on {data}",
            found="its lock",
            expected="no other demo",
            remedy="wait for it, or stop it",
        ) from None
    return stream
