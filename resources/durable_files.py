"""Files that are there whole or not at all, and stay after the power fails.

Whatever is written here is first a draft under a name of its own, so that no two writers meet in one. A
draft that its writer never finished (it was killed) stays; `remove_abandoned_drafts` takes it away.

What does not belong here: what the files hold, and where they are kept.
"""

import errno
import os
import shutil
import time
import uuid
from pathlib import Path

DRAFT_SUFFIX = ".tmp"
ABANDONED_AFTER_SECONDS = 24 * 3600
"""No writer takes this long over a draft."""
NO_SYNC_OF_DIRECTORIES = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
"""What file systems answer that keep no directory in memory (SMB, FUSE): there is nothing to write then."""


def replace_durably(path: Path, content: bytes | str) -> None:
    """Puts a file in its place, or in that of the former one: readers see one or the other, whole.

    Args:
        path: The file; its directory is made where it is missing.
        content: Text is written in UTF-8.

    Raises:
        OSError: It cannot be written; the former file is still there, and no draft is left.
    """
    make_directory_durably(path.parent)
    draft = draft_beside(path)
    try:
        write_durably(draft, content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_directory(path.parent)


def write_durably(path: Path, content: bytes | str) -> None:
    """Writes a file and waits until it is on disk; its name is there for good after `sync_directory`."""
    with path.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())


def draft_beside(path: Path) -> Path:
    """A name for a draft of a file, in the same directory, that no other writer has."""
    # The file's own name may be as long as a name can be.
    return path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex}{DRAFT_SUFFIX}")


def make_directory_durably(directory: Path) -> None:
    """Makes a directory and those above it, where they are missing."""
    missing = [each for each in [directory, *directory.parents] if not each.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_directory(made.parent)


def sync_tree(directory: Path) -> None:
    """Waits until all that a directory holds is on disk; its own name follows with its parent's."""
    for path in directory.rglob("*"):
        if path.is_file():
            _sync(path)
        else:
            sync_directory(path)
    sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Waits until the names in a directory are on disk."""
    try:
        _sync(directory)
    except OSError as error:
        if error.errno not in NO_SYNC_OF_DIRECTORIES:
            raise


def remove_abandoned_drafts(directory: Path, pattern: str = f"*{DRAFT_SUFFIX}") -> list[Path]:
    """Removes drafts, files and directories alike, in which nothing was written for a day.

    Args:
        directory: Where they are; it may be missing.
        pattern: Of their names.

    Returns:
        What was removed.
    """
    removed = []
    for draft in directory.glob(pattern):
        if time.time() - _last_written(draft) <= ABANDONED_AFTER_SECONDS:
            continue
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)
        removed.append(draft)
    return removed


def _last_written(path: Path) -> float:
    """When anything in it was written; now, where another process has just taken it away."""
    try:
        return max(each.stat().st_mtime for each in [path, *path.rglob("*")])
    except FileNotFoundError:
        return time.time()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
