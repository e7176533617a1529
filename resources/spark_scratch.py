"""Folders for what Spark spills and unpacks: one for each JVM, and none outlives its processes.

A folder is locked by the process that made it and by the JVM that inherits the lock. The kernel frees the
lock when the last of them ends, however it ends: a folder whose lock is free belongs to nobody.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

PREFIX = "audience_factory_spark_"
UNFINISHED = ".new"
"""Ends the name of a folder that has no lock yet: no sweep takes it for an abandoned one."""
LOCK = "lock"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scratch:
    """A folder of ours until `remove`.

    Attributes:
        path: The folder.
        lock: Descriptor of its lock, which a child process may inherit.
    """

    path: Path
    lock: int

    def remove(self) -> None:
        """Removes the folder; what cannot be removed now, the next `claim` removes."""
        _remove(self.path)
        os.close(self.lock)


def claim(root: Path) -> Scratch:
    """Makes a folder for this process under `root`, and removes those that dead processes left there."""
    root.mkdir(parents=True, exist_ok=True)
    remove_abandoned(root)
    made = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}_", suffix=UNFINISHED, dir=root))
    lock = os.open(made / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return Scratch(made.rename(made.with_suffix("")), lock)


def remove_abandoned(root: Path) -> list[Path]:
    """Removes the folders under `root` whose processes have all ended; returns them."""
    removed = []
    for folder in sorted(root.glob(f"{PREFIX}*")):
        if folder.suffix != UNFINISHED and _is_abandoned(folder):
            _remove(folder)
            removed.append(folder)
    return removed


def _is_abandoned(folder: Path) -> bool:
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True  # somebody began to remove it, and may have been killed over it
    except OSError:
        return False  # another user's
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False  # its process or its JVM lives
    finally:
        os.close(lock)
    return True


def _remove(folder: Path) -> None:
    # Two that start at once may both remove the same folder: either finds some files gone.
    with contextlib.suppress(FileNotFoundError):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            shutil.rmtree(folder)
        except OSError as error:
            log.warning("Spark's scratch folder %s could not be removed: %s", folder, error)
