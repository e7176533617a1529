"""The checkpoint of a training: what it has reached, in one file.

A checkpoint saves time and decides nothing: one that cannot be read counts as absent, one that cannot be
written is done without. A warning says so.

What does not belong here: what the state is, and how a training goes on from it (`dnn_training`).
"""

import logging
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

LOG = logging.getLogger(__name__)
State = Mapping[str, Any]
"""What the rest of a member's training depends on."""


class Checkpoint:
    """The states of a training's members in one file, replaced as a whole after every epoch.

    Trainings that share a file are safe from each other: each writes a draft of its own, and takes up only
    what bears its own fingerprint.

    Args:
        path: The file; None keeps nothing.
        fingerprint: Of the rows and settings; a file of another training is not resumed from.
    """

    def __init__(self, path: Path | None, fingerprint: str) -> None:
        self._path, self._fingerprint = path, fingerprint
        self._members: dict[int, State] = {}
        self._saves = path is not None
        if path is not None:
            self._read(path)

    def state_of(self, member: int) -> State | None:
        return self._members.get(member)

    def distrust(self, error: Exception) -> None:
        """Forgets what was read: no training can go on from it."""
        self._members = {}
        # PyTorch's own message is not repeated: it advises to load the file unsafely.
        LOG.warning("the checkpoint %s cannot be read (%s): training starts anew", self._path, _reason(error))

    def save(self, member: int, state: State) -> None:
        """Keeps a member's state, unless an earlier one could not be written.

        There is no second attempt: it would fill the disk again, for others, too.
        """
        self._members[member] = state
        if self._path is None or not self._saves:
            return
        draft = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with draft.open("wb") as stream:
                    torch.save({"fingerprint": self._fingerprint, "members": self._members}, stream)
                draft.replace(self._path)
            finally:
                draft.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:  # PyTorch makes a RuntimeError of a write cut short
            self._saves = False
            LOG.warning(
                "the checkpoint %s cannot be written (%s): training goes on without it",
                self._path,
                _reason(error),
            )

    def _read(self, path: Path) -> None:
        try:
            if path.is_dir():
                self._saves = False
            # Opened once: another training may replace the file while it is read.
            with path.open("rb") as stream:
                found = _content(stream)
            if found["fingerprint"] == self._fingerprint:
                self._members = dict(found["members"])
        except (FileNotFoundError, NotADirectoryError):
            return
        except Exception as error:  # noqa: BLE001 (what foreign bytes make of an unpickler is open)
            self.distrust(error)


def _content(stream: Any) -> Any:
    with zipfile.ZipFile(stream) as archive:
        damaged = archive.testzip()  # PyTorch checks no checksums
    if damaged is not None:
        raise zipfile.BadZipFile(damaged)
    stream.seek(0)
    return torch.load(stream, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """What the system says; else the kind of error, and no word of the library's."""
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
