"""Where segments are delivered. Each destination stages, checks, then publishes; twice sends nothing new."""

import json
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import dagster as dg
from pydantic import Field

from pipelines.steps.deliveries import Manifest, count_rows, sha256, stage_segment
from pipelines.steps.errors import DataError
from pipelines.steps.project import FolderDestination

MANIFEST = "manifest.json"
STAGING = ".staging-"
ABANDONED_AGE_SECONDS = 24 * 3600
"""A staging folder older than this was left by a publish that was killed."""


@dataclass(frozen=True)
class Delivery:
    """One segment of one day, to be delivered.

    Attributes:
        files: The segments' Parquet files of that audience and day.
        rows: Devices expected.
    """

    audience: str
    segment: str
    day: str
    files: Sequence[Path]
    rows: int
    model_version: str


class Destinations(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Publishes to the destinations that audiences name."""

    root: str = Field(description="Directory that relative folder paths start from.")

    def publish(self, delivery: Delivery, destination: FolderDestination) -> tuple[Manifest, bool]:
        """Delivers a segment to a folder.

        The file is staged beside its place, counted again, and renamed into place; then the manifest,
        which names it, is replaced atomically. A reader that follows the manifest never sees a half.

        Returns:
            The manifest, and whether anything new was sent.

        Raises:
            DataError: The staged file has other rows than the segment; nothing is published.
        """
        place = self.place(delivery.audience, delivery.segment, delivery.day, destination)
        _remove_abandoned(place.parent)
        staging = place.parent / f"{STAGING}{uuid.uuid4().hex}"
        staging.mkdir(parents=True)
        try:
            staged, _ = stage_segment(delivery.files, delivery.segment, destination.format, staging)
            manifest = self._check(staged, delivery, destination)
            if self.published(place) == manifest and (place / manifest.file).exists():
                return manifest, False
            place.mkdir(exist_ok=True)
            staged.rename(place / manifest.file)
            draft = staging / MANIFEST
            draft.write_text(json.dumps(asdict(manifest), indent=1))
            draft.replace(place / MANIFEST)
            for old in place.glob("devices-*"):
                if old.name != manifest.file:
                    old.unlink()
        finally:
            shutil.rmtree(staging)
        return manifest, True

    def place(self, audience: str, segment: str, day: str, destination: FolderDestination) -> Path:
        """The directory of a delivery: <folder>/<audience>/<segment>/<day>."""
        return Path(self.root).absolute() / destination.path / audience / segment / day

    def published(self, place: Path) -> Manifest | None:
        """What a place's manifest says, or None where nothing was delivered."""
        path = place / MANIFEST
        return Manifest(**json.loads(path.read_bytes())) if path.exists() else None

    def _check(self, staged: Path, delivery: Delivery, destination: FolderDestination) -> Manifest:
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
            file=f"devices-{digest[:12]}.{destination.format}",
            format=destination.format,
            rows=rows,
            sha256=digest,
            model_version=delivery.model_version,
        )


def _remove_abandoned(segment: Path) -> None:
    for staging in segment.glob(f"{STAGING}*"):
        if time.time() - staging.stat().st_mtime > ABANDONED_AGE_SECONDS:
            shutil.rmtree(staging)
