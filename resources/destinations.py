"""The places that segments go to. Each stages, checks, then publishes; twice sends nothing new.

A place, `<folder>/<audience>/<segment>/<day>/`, holds one file of devices and the manifest that names it.
Nothing found there is believed: the manifest is parsed strictly, the file hashed again, and what is damaged
is replaced. A lock per segment keeps two runs apart; whoever holds it owns every staging folder beside it, so
one that is there already was left by a killed run, and says by its name which day to clean up after.
"""

import errno
import fcntl
import json
import logging
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import dagster as dg
from pydantic import Field

from pipelines.steps.config.audience import FolderDestination
from pipelines.steps.config.values import ISO_DAY
from pipelines.steps.errors import DataError
from pipelines.steps.progress import Work, beating
from pipelines.steps.targeting.deliveries import (
    OUR_FILE,
    Manifest,
    count_rows,
    damaged_manifest,
    file_name,
    parse_manifest,
    sha256,
    stage_segment,
)
from resources.durable_files import make_directory_durably, sync_directory, sync_tree, write_durably

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"
LOCK = ".lock"
STAGING = ".staging-"
SET_ASIDE = "set-aside-"
"""A folder of somebody's that lay where a file of ours belongs is renamed to this."""
LOCK_WAIT_SECONDS = 600.0
MANIFEST_BYTES = 1 << 16
"""A larger file is no manifest, and not worth its memory."""

REMEDIES = {
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), "let the user who runs this read and write there"
    ),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room there"),
    **dict.fromkeys(
        (errno.EEXIST, errno.ENOTDIR, errno.EISDIR), "move away what lies where our folder belongs"
    ),
    **dict.fromkeys((errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS), "mount that file system with file locks"),
}


@dataclass(frozen=True)
class Delivery:
    """One segment of one day, to be delivered.

    Attributes:
        files: The segments' Parquet files of that audience and day.
        rows: Devices expected.
        model_version: The bundle that made the probabilities.
        segments_version: The write of `segments` that `files` belong to.
        predictions_version: The write of `predictions` that they were cut from.
    """

    audience: str
    segment: str
    day: str
    files: Sequence[Path]
    rows: int
    model_version: str
    segments_version: str
    predictions_version: str


@dataclass(frozen=True)
class Published:
    """What publishing came to.

    Attributes:
        manifest: What the place's manifest says now.
        sent: Whether file and manifest were written; equal content is left as it is.
        repaired: What was found damaged in the place and replaced, or None.
    """

    manifest: Manifest
    sent: bool
    repaired: str | None


class Destinations(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Publishes to the destinations that audiences name."""

    root: str = Field(description="Directory that relative folder paths start from.")

    def publish(self, delivery: Delivery, destination: FolderDestination) -> Published:
        """Delivers a segment to a folder.

        The file is staged beside its place, counted again, and renamed into place; once it is on disk for
        good, the manifest, which names it, is replaced atomically. A reader that follows the manifest never
        sees a half, and two runs at once leave the delivery of one of them, whole.

        Raises:
            DataError: The staged file has other rows than the segment, the place lies outside DATA_DIR or
                cannot be written, or another run holds it; what was delivered before is still whole.
        """
        place = self.place(delivery.audience, delivery.segment, delivery.day, destination)
        with beating(Work(f"delivering to {place}")) as work, _errors_of(place):
            _require_inside(Path(self.root), place, destination)
            make_directory_durably(place.parent)
            with _locked(place.parent):
                _clean_up(place.parent)  # what killed runs left makes room first
                staging = place.parent / f"{STAGING}{delivery.day}-{uuid.uuid4().hex}"
                staging.mkdir()
                try:
                    published = _publish(delivery, destination, place, staging)
                finally:
                    _clean_up(place.parent)
        if published.sent:
            logger.info("delivered %s rows to %s in %.1f s", f"{delivery.rows:,}", place, work.seconds)
        return published

    def place(self, audience: str, segment: str, day: str, destination: FolderDestination) -> Path:
        """The directory of a delivery: <folder>/<audience>/<segment>/<day>."""
        return Path(self.root).absolute() / destination.path / audience / segment / day

    def published(self, place: Path) -> Manifest | None:
        """What a place's manifest says, or None where nothing was delivered.

        Raises:
            DataError: The manifest is damaged or cannot be read.
        """
        with _errors_of(place):
            return _read_manifest(place)


def _publish(delivery: Delivery, destination: FolderDestination, place: Path, staging: Path) -> Published:
    staged, _ = stage_segment(delivery.files, delivery.segment, destination.format, staging)
    manifest = _check(staged, delivery, destination)
    former, damage = _inspect(place)
    if former is not None and damage is None and former.same_delivery(manifest):
        return Published(former, sent=False, repaired=None)
    draft = staging / MANIFEST
    write_durably(draft, json.dumps(asdict(manifest), indent=1))
    sync_tree(staging)
    sync_directory(place.parent)
    make_directory_durably(place)
    for file, target in ((staged, place / manifest.file), (draft, place / MANIFEST)):
        _set_folder_aside(target)
        file.replace(target)
        sync_directory(place)  # the file's name is on disk before a manifest says it
    if damage is not None:
        dg.get_dagster_logger().warning(f"repaired the delivery {place}: {damage}")
    return Published(manifest, sent=True, repaired=damage)


def _check(staged: Path, delivery: Delivery, destination: FolderDestination) -> Manifest:
    rows, digest = count_rows(staged), sha256(staged)
    if rows != delivery.rows:
        raise DataError(
            f"the staged file of {delivery.audience}/{delivery.segment} {delivery.day} is incomplete",
            found=f"{rows} rows",
            expected=f"{delivery.rows} rows",
            remedy="materialize segments again; nothing was published",
        )
    return Manifest(
        audience=delivery.audience,
        segment=delivery.segment,
        day=delivery.day,
        file=file_name(digest, destination.format),
        format=destination.format,
        rows=rows,
        sha256=digest,
        model_version=delivery.model_version,
        segments_version=delivery.segments_version,
        predictions_version=delivery.predictions_version,
    )


# --- what is in a place ---------------------------------------------------------------------------


def _inspect(place: Path) -> tuple[Manifest | None, str | None]:
    """The manifest of a place, if it has one to believe, and what is damaged there, if anything."""
    try:
        manifest = _read_manifest(place)
    except DataError as error:
        return None, f"{MANIFEST}: {error.found}"
    if manifest is None:
        return None, None
    file = place / manifest.file
    kind = _kind(file)
    if kind != "a file":
        return manifest, f"{manifest.file}: {kind or 'missing'}"
    if sha256(file) != manifest.sha256:
        return (
            manifest,
            f"{manifest.file}: other content than its manifest's hash ({file.stat().st_size} bytes)",
        )
    return manifest, None


def _read_manifest(place: Path) -> Manifest | None:
    path = place / MANIFEST
    kind = _kind(path)
    if kind is None:
        return None
    if kind != "a file":
        raise damaged_manifest(path, kind)
    with path.open("rb") as stream:
        content = stream.read(MANIFEST_BYTES + 1)
    if len(content) > MANIFEST_BYTES:
        raise damaged_manifest(path, f"more than {MANIFEST_BYTES} bytes")
    manifest = parse_manifest(content, path)
    if (manifest.audience, manifest.segment, manifest.day) != place.parts[-3:]:
        raise damaged_manifest(path, "the manifest of another place")
    return manifest


def _kind(path: Path) -> str | None:
    """What lies there, links not followed; None: nothing."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link"}
    return kinds.get(stat.S_IFMT(mode), "no regular file")


# --- cleaning up ----------------------------------------------------------------------------------


def _clean_up(segment: Path) -> None:
    """Removes staging folders, and before each one what its publish left unnamed in its day's place.

    The lock is held, so that nobody else is at work in one.
    """
    for staging in segment.glob(f"{STAGING}*"):
        if _kind(staging) != "a folder":
            continue
        day = staging.name.removeprefix(STAGING).rpartition("-")[0]
        if ISO_DAY.fullmatch(day) and (segment / day).is_dir():
            _remove_unnamed(segment / day)
        shutil.rmtree(staging)


def _remove_unnamed(place: Path) -> None:
    """Removes the files of ours that the manifest does not name; somebody else's stay."""
    try:
        manifest = _read_manifest(place)
    except DataError:
        return  # the next publish of that day replaces the manifest, and then cleans up
    for file in place.iterdir():
        if (
            OUR_FILE.fullmatch(file.name)
            and (manifest is None or file.name != manifest.file)
            and _kind(file) == "a file"
        ):
            file.unlink()


def _set_folder_aside(path: Path) -> None:
    """Makes way for a file where a folder lies: it may hold what is not ours, so it is only renamed."""
    if _kind(path) == "a folder":
        path.rename(path.with_name(f"{SET_ASIDE}{uuid.uuid4().hex[:8]}-{path.name}"))


# --- who may write where --------------------------------------------------------------------------


def _require_inside(root: Path, place: Path, destination: FolderDestination) -> None:
    if destination.outside_data_dir:
        return
    try:
        inside, resolved = root.resolve(), place.resolve()
    except (RuntimeError, ValueError) as error:  # links in a circle; a name that no file can have
        raise DataError(
            f"{place} cannot be resolved",
            found=error,
            expected="a folder",
            remedy="correct deliver_to.path, or the links on its way",
        ) from error
    if not resolved.is_relative_to(inside):
        raise DataError(
            f"{place} lies outside DATA_DIR",
            found=resolved,
            expected=f"a folder within {inside}",
            remedy="take `..` or the link out of deliver_to.path, or say `outside_data_dir: true` beside it",
        )


@contextmanager
def _locked(segment: Path) -> Iterator[None]:
    """Waits until no other run publishes that segment; the kernel lets go where a run is killed."""
    lock = os.open(segment / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        _wait_for(lock, segment)
        yield
    finally:
        os.close(lock)


def _wait_for(lock: int, segment: Path) -> None:
    until = time.monotonic() + LOCK_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise DataError(
                    f"another run has been publishing to {segment} for {LOCK_WAIT_SECONDS:g} s",
                    found=f"its lock on {LOCK}",
                    expected="a run that ends",
                    remedy="see whether that run hangs, end it, and materialize deliveries again",
                ) from None
            time.sleep(0.05)
        else:
            return


@contextmanager
def _errors_of(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "look at that storage")
        raise DataError(
            f"the delivery {place} cannot be read or written",
            found=f"{error.strerror or error} ({error.filename or place})",
            expected="a folder that can be read and written, with room for the file",
            remedy=f"{remedy}, then materialize deliveries again",
        ) from error
