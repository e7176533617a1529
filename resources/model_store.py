"""Model bundles and vocabularies, kept by explicit version; what becomes current, and what may.

What does not belong here: how a bundle is written and what it holds (`pipelines.steps.models.bundle`), and
how the log of a model is kept (`resources.model_log`).
"""

import errno
import logging
import shutil
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr

from pipelines.steps.errors import BundleError, DataError
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.models.bundle import BundleManifest, BundleRef, Scorer, bundle_version, read_manifest
from pipelines.steps.models.bundle_loader import load_bundle
from resources.durable_files import (
    make_directory_durably,
    remove_abandoned_drafts,
    replace_durably,
    sync_directory,
    sync_tree,
)
from resources.model_log import CHAMPION, PROMOTED, ROLLED_BACK, LogEntry, ModelLog, ModelRecord

logger = logging.getLogger(__name__)
OVERTAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT)
"""What the system answers where an equal bundle has just been put in its place, or a damaged one removed."""


@dataclass(frozen=True)
class StoredBundle:
    """What a bundle's directory holds.

    Attributes:
        path: The directory.
        manifest: What it says about itself.
        files: Number of files.
        bytes: Their size together.
        content_hash: Of every file's name and content; the version, unless the bundle was damaged.
    """

    path: Path
    manifest: BundleManifest
    files: int
    bytes: int
    content_hash: str


class ModelStore(ModelLog):
    """Keeps `bundles/<audience>/<version>/` and `vocabularies/<hash>.json` beside the logs."""

    # The hash of the vocabulary that the run goes by; None outside of a run, and before it was asked for.
    _vocabulary: str | None = PrivateAttr(default=None)

    def was_chosen_by_hand(self, audience: str, version: str) -> bool:
        """Whether a champion serves, or served last, because a person promoted it or rolled back to it."""
        entries = [entry for entry in self.history(audience) if entry.record.version == version]
        return bool(entries) and entries[0].reason in (PROMOTED, ROLLED_BACK)

    # --- bundles ----------------------------------------------------------------------------------

    def load(
        self, audience: str, model: str = CHAMPION, version: str | None = None, threads: int = 1
    ) -> Scorer:
        """A bundle, ready to score: `store.load("car_buyers")` is the one that serves.

        Args:
            audience: The audience.
            model: `dnn`, `xgboost`, `logistic`, or the `champion`.
            version: In full; the model's current one where none is named.
            threads: That it scores with.

        Raises:
            BundleError: No such audience, model or version, or the bundle is missing or damaged.
        """
        return self._load(self.find(audience, model, version), threads)

    def bundle(self, record: ModelRecord) -> Path:
        """The directory of a version, each file of it read and found as it was recorded.

        Raises:
            BundleError: It is not there, or was changed.
        """
        ref = self.bundle_ref(record)
        ref.verify()
        return ref.path

    def manifest(self, record: ModelRecord) -> BundleManifest:
        """What a version says about itself, nothing verified: for lists.

        Raises:
            BundleError: The bundle is missing, or its manifest cannot be read.
        """
        return read_manifest(self.bundle_ref(record).path)

    def bundle_ref(self, record: ModelRecord) -> BundleRef:
        """The place of a version; who loads it verifies it.

        Raises:
            BundleError: It is not there.
        """
        path = self._bundles(record.audience) / record.version
        if not path.is_dir():
            raise BundleError(
                f"bundle {record.version} of {record.audience} is missing",
                found=self.versions(record.audience) or "no bundle at all",
                expected=str(path),
                remedy="restore the directory, or train again",
            )
        return BundleRef(path, record.version)

    def describe(self, record: ModelRecord) -> StoredBundle:
        """What the directory of a version holds, each file read and hashed, whether right or not.

        Raises:
            BundleError: The bundle is missing, or its manifest cannot be read.
        """
        path = self.bundle_ref(record).path
        sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
        return StoredBundle(path, read_manifest(path), len(sizes), sum(sizes), bundle_version(path))

    def versions(self, audience: str) -> list[str]:
        """The versions of all the bundles an audience ever had."""
        return sorted(path.name for path in self._bundles(audience).glob("*") if path.is_dir())

    def save_card(self, record: ModelRecord, files: Mapping[str, bytes]) -> Path:
        """Keeps a version's card beside the bundles; a new one takes the place of an old one.

        Args:
            record: What it is of.
            files: Name → content; the Markdown last.

        Returns:
            The card's directory.
        """
        home = self.card(record)
        remove_abandoned_drafts(home)
        for name, content in files.items():
            replace_durably(home / name, content)
        return home

    def checkpoint(self, audience: str, model: str) -> Path:
        """A training's file for what it has reached; what killed ones left half goes."""
        checkpoint = self._home() / "checkpoints" / audience / f"{model}.pt"
        remove_abandoned_drafts(checkpoint.parent)
        return checkpoint

    def remove_checkpoints(self, audience: str, model: str) -> None:
        """Removes the files whose names begin with the model's: it is trained and kept."""
        for file in (self._home() / "checkpoints" / audience).glob(f"{model}*.pt"):
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("the checkpoint %s cannot be removed (%s)", file, error.strerror)

    def card(self, record: ModelRecord) -> Path:
        """The directory of a version's card; it is there once one was saved."""
        return self._home() / "cards" / record.audience / record.version

    # --- what becomes current ---------------------------------------------------------------------

    def add(self, audience: str, model: str, write: Callable[[Path], Mapping[str, Any]]) -> ModelRecord:
        """Keeps a new bundle and records it, once, as the audience's current `model`.

        The bundle appears under its version at once or not at all; an equal bundle is kept once, and takes
        the place of a damaged one.

        Args:
            audience: The audience.
            model: Which of its models.
            write: Writes the bundle into the directory given, and returns what is to be recorded of it.
        """
        draft = self._drafts() / uuid.uuid4().hex
        try:
            properties = write(draft)
            version = bundle_version(draft)
            self._keep(draft, self._bundles(audience) / version)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return self.record(ModelRecord(audience, model, version, properties))

    def promote(
        self, audience: str, version: str, *, model: str = CHAMPION, by_precision: Collection[str]
    ) -> ModelRecord:
        """Makes a named version current: one that the model had, or, as champion, one of any candidate.

        It serves from the next predictions on, until a promotion, a rollback or the next training.
        Promoting what is current changes nothing.

        Args:
            audience: The audience.
            version: In full.
            model: What it is to become.
            by_precision: The audience's segments that are cut at a threshold: a champion must have one
                for each, or the segments of the next day would fail.

        Raises:
            BundleError: No such audience, model or version; the bundle is missing, damaged or does not
                load; or a threshold is missing. Nothing has changed then.
        """
        record = self._promotable(audience, version, model)
        self._require_serviceable(record, by_precision)
        current = self.history(audience, model)[:1]
        if current and current[0].record.version == version:
            return current[0].record
        return self._record(record, PROMOTED)

    def rollback(self, audience: str, *, model: str = CHAMPION, by_precision: Collection[str]) -> ModelRecord:
        """Returns to the version that was current before, with what was recorded of it then.

        Like "undo": repeated, it goes further back, and it never returns to what was rolled back from.

        Args:
            audience: The audience.
            model: Which of its models.
            by_precision: As for `promote`.

        Raises:
            BundleError: As for `promote`; or there is no earlier version, or another one became current
                at the same moment. Nothing has changed then.
        """
        current = self._newest(audience, model)
        before = self._before(current)
        self._require_serviceable(before.record, by_precision)
        entry = LogEntry(current.number + 1, before.record, ROLLED_BACK, datetime.now(UTC), before.position)
        if not self._append(entry):
            raise BundleError(
                f"the {model} of {audience} changed while it was rolled back",
                found=self.current(audience, model).version,
                expected=current.record.version,
                remedy="look at what is current now; roll back again if it is still wanted",
            )
        return entry.record

    # --- vocabularies -----------------------------------------------------------------------------

    def save_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Keeps a vocabulary under its hash and makes it the current one."""
        remove_abandoned_drafts(self._vocabularies())
        self.keep_vocabulary(vocabulary)
        replace_durably(self._vocabularies() / "current", vocabulary.hash)
        if self._seen is not None:
            self._vocabulary = vocabulary.hash

    def keep_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Keeps a vocabulary under its hash."""
        replace_durably(self._vocabularies() / f"{vocabulary.hash}.json", vocabulary.to_json())

    def vocabulary(self, version: str | None = None) -> Vocabulary:
        """The vocabulary of a hash; the current one where none is named.

        Raises:
            DataError: None was fitted.
            BundleError: The one named is missing or damaged.
        """
        if version is not None:
            return Vocabulary.load(self._vocabularies() / f"{version}.json", expected_hash=version)
        found = self.find_vocabulary()
        if found is None:
            raise DataError(
                "there is no vocabulary",
                found="nothing",
                expected="one fitted on the training as-of days",
                remedy="materialize feature_vocabulary first",
            )
        return found

    def find_vocabulary(self) -> Vocabulary | None:
        """The current vocabulary, or None before the first was fitted."""
        pointer = self._vocabularies() / "current"
        version = self._vocabulary or (pointer.read_text() if pointer.exists() else None)
        if self._seen is not None:
            self._vocabulary = version
        return self.vocabulary(version) if version else None

    # --- the details ------------------------------------------------------------------------------

    def _keep(self, draft: Path, final: Path) -> None:
        """Gives a bundle its place, unless an equal one has it; a damaged one makes way."""
        sync_tree(draft)
        make_directory_durably(final.parent)
        while not _is_intact(final):
            aside = draft.with_name(f"{draft.name}.damaged")
            try:
                if final.exists():
                    final.rename(aside)
                draft.rename(final)
                break
            except OSError as error:
                if error.errno not in OVERTAKEN:
                    raise
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        sync_directory(final.parent)

    def _load(self, record: ModelRecord, threads: int = 1) -> Scorer:
        ref, vocabulary_hash = self.bundle_ref(record), record.properties.get("vocabulary_hash")
        return load_bundle(
            ref.path,
            expected_version=ref.version,
            expected_vocabulary_hash=vocabulary_hash,
            threads=threads,
        )

    def _promotable(self, audience: str, version: str, model: str) -> ModelRecord:
        """The newest record of a version, as it is to be recorded of `model`."""
        sources = self.models(audience) if model == CHAMPION else [model]
        entries = [entry for source in sources for entry in self.history(audience, source)]
        if not entries:
            raise self._unknown(audience, model)
        known = [entry for entry in entries if entry.record.version == version]
        if not known:
            raise BundleError(
                f"audience {audience} never had a version {version} that could become its {model}",
                found=self._all_versions(audience),
                expected=version,
                remedy="name one of these in full" + ("" if model == CHAMPION else f", of {model}"),
            )
        record = max(known, key=lambda entry: entry.recorded_at).record
        if model != CHAMPION:
            return record
        champion = {"model": record.model, "thresholds": {}, **record.properties}
        return replace(record, model=CHAMPION, properties=champion)

    def _require_serviceable(self, record: ModelRecord, by_precision: Collection[str]) -> None:
        """Requires that it loads, and that a champion has the thresholds of its audience's segments."""
        self._load(record)
        if record.model != CHAMPION:
            return
        thresholds = record.properties.get("thresholds", {})
        missing = [segment for segment in by_precision if thresholds.get(segment) is None]
        if missing:
            reasons = {
                segment: "its precision was not reached" if segment in thresholds else "never computed"
                for segment in missing
            }
            raise BundleError(
                f"version {record.version} of {record.audience} has no threshold for segment {missing[0]}",
                found=", ".join(f"{segment}: {reason}" for segment, reason in reasons.items()),
                expected=f"a threshold for each of {', '.join(by_precision)}",
                remedy="promote a version that has them; or run the training job, which finds them for the "
                "segments asked for now; or ask for these by top_fraction or size",
            )

    def _vocabularies(self) -> Path:
        return self._home() / "vocabularies"

    def _bundles(self, audience: str) -> Path:
        return self._home() / "bundles" / audience


def _is_intact(bundle: Path) -> bool:
    try:
        return bundle_version(bundle) == bundle.name
    except (BundleError, OSError):  # there is none, or another training is putting one in its place
        return False
