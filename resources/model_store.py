"""Model bundles and vocabularies, kept by explicit version, and the logs that say which version is current.

Each model of each audience has a log: one small file an entry, numbered from 1, never changed once written.
The last entry is what is current; training, a promotion and a rollback each append one. So there is no
second place that could say otherwise, and what ever served can be named, explained and made to serve again.

What does not belong here: how a bundle is written and what it holds (`pipelines.steps.model_bundle`).
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from pipelines.steps.errors import BundleError, DataError
from pipelines.steps.feature_vocabulary import Vocabulary
from pipelines.steps.model_bundle import BundleManifest, Scorer, bundle_version, load_bundle, read_manifest

CHAMPION = "champion"
"""The model that serves; its versions are versions of the candidates."""
CHALLENGER = "challenger"
"""The best of the last training, which became champion unless it ranked worse than the former one."""
TRAINED, PROMOTED, ROLLED_BACK = "trained", "promoted", "rolled back"
"""Why a version became current."""


@dataclass(frozen=True)
class ModelRecord:
    """Which version of a model an audience has, and what is known of it.

    Attributes:
        audience: The audience.
        model: `dnn`, `xgboost`, `logistic`, or the `champion`.
        version: The bundle's content hash.
        properties: Metrics, training set version, thresholds: scalars, lists and mappings of them.
    """

    audience: str
    model: str
    version: str
    properties: Mapping[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, str]:
        """Which model this is, as Dagster metadata."""
        return {
            "model": self.properties.get("model", self.model),
            "model_version": self.version,
            "vocabulary_hash": self.properties["vocabulary_hash"],
        }


@dataclass(frozen=True)
class LogEntry:
    """One entry of a model's log: a version became current.

    Attributes:
        number: Its place in the log, from 1.
        record: The version, and what was known of it then.
        reason: TRAINED, PROMOTED or ROLLED_BACK.
        recorded_at: When, in UTC.
        restores: Of a rollback, the number of the entry that it returned to.
    """

    number: int
    record: ModelRecord
    reason: str
    recorded_at: datetime
    restores: int | None = None

    @property
    def place(self) -> int:
        """Where in the log the model stands since this entry: a rollback goes back, all else is the end."""
        return self.number if self.restores is None else self.restores

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"recorded_at": self.recorded_at.isoformat()}, indent=1)

    @classmethod
    def from_json(cls, text: bytes) -> "LogEntry":
        plain = json.loads(text)
        record, recorded_at = ModelRecord(**plain["record"]), datetime.fromisoformat(plain["recorded_at"])
        return cls(**plain | {"record": record, "recorded_at": recorded_at})


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


class ModelStore(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Keeps `bundles/<audience>/<version>/`, `vocabularies/<hash>.json` and `log/<audience>/<model>/`."""

    root: str = Field(description="Directory of bundles; a path that driver and executors share.")

    # --- what there is ----------------------------------------------------------------------------

    def audiences(self) -> list[str]:
        """The audiences that have a model."""
        return sorted(path.name for path in self._logs().glob("*") if self.models(path.name))

    def models(self, audience: str) -> list[str]:
        """The models an audience has."""
        logs = (self._logs() / audience).glob("*")
        return sorted(path.name for path in logs if self._numbers(audience, path.name))

    def history(self, audience: str, model: str = CHAMPION) -> list[LogEntry]:
        """The whole log of a model, newest entry first; empty where there is no such model."""
        numbers = self._numbers(audience, model)
        return [self._entry(audience, model, number) for number in reversed(numbers)]

    def versions_of(self, audience: str, model: str = CHAMPION) -> list[LogEntry]:
        """The versions a model ever had, each by its newest entry, newest first: the first is current."""
        newest: dict[str, LogEntry] = {}
        for entry in self.history(audience, model):
            newest.setdefault(entry.record.version, entry)
        return list(newest.values())

    def current(self, audience: str, model: str) -> ModelRecord:
        """What was recorded last.

        Raises:
            BundleError: The audience has no such model.
        """
        return self._newest(audience, model).record

    def find(self, audience: str, model: str = CHAMPION, version: str | None = None) -> ModelRecord:
        """What is known of a version of a model; of the current one where none is named.

        Raises:
            BundleError: No such audience, model or version; says which there are.
        """
        current = self.current(audience, model)
        if version is None:
            return current
        for entry in self.history(audience, model):
            if entry.record.version == version:
                return entry.record
        raise BundleError(
            f"nothing is recorded of {model} {version} of {audience}",
            found=self._all_versions(audience),
            expected=version,
            remedy="name one of these in full, with its model; a day that another one scored, score again",
        )

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
        """The directory of a version.

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
        return path

    def describe(self, record: ModelRecord) -> StoredBundle:
        """What the directory of a version holds, each file read and hashed, whether right or not.

        Raises:
            BundleError: The bundle is missing, or its manifest cannot be read.
        """
        path = self.bundle(record)
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
        for name, content in files.items():
            _replace(home / name, content)
        return home

    def checkpoint(self, audience: str, model: str) -> Path:
        """Where a training keeps what it has reached, until it ends."""
        return self._home() / "checkpoints" / audience / f"{model}.pt"

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
            final = self._bundles(audience) / version
            if not _is_intact(final, version):
                shutil.rmtree(final, ignore_errors=True)
                final.parent.mkdir(parents=True, exist_ok=True)
                draft.rename(final)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return self.record(ModelRecord(audience, model, version, properties))

    def record(self, record: ModelRecord) -> ModelRecord:
        """Makes what was trained or chosen the audience's current `model`; what it replaces stays on record.

        Recording what is current already changes nothing.
        """
        return self._record(record, TRAINED)

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
        entry = LogEntry(current.number + 1, before.record, ROLLED_BACK, datetime.now(UTC), before.place)
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
        directory = self._vocabularies()
        directory.mkdir(parents=True, exist_ok=True)
        draft = directory / f"{uuid.uuid4().hex}.tmp"
        vocabulary.save(draft)
        draft.replace(directory / f"{vocabulary.hash}.json")
        _replace(directory / "current", vocabulary.hash)

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
        return self.vocabulary(pointer.read_text()) if pointer.exists() else None

    # --- the details ------------------------------------------------------------------------------

    def _load(self, record: ModelRecord, threads: int = 1) -> Scorer:
        stored = self.describe(record)
        if stored.content_hash != record.version:
            raise BundleError(
                f"bundle {record.version} of {record.audience} is damaged: its content has another hash",
                found=stored.content_hash,
                expected=f"{record.version}, in {stored.path}",
                remedy="restore the directory, name another version, or train again",
            )
        vocabulary_hash = record.properties.get("vocabulary_hash")
        return load_bundle(stored.path, expected_vocabulary_hash=vocabulary_hash, threads=threads)

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
        """It loads; and a champion has the thresholds that its audience's segments are cut at."""
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

    def _before(self, current: LogEntry) -> LogEntry:
        """What a rollback returns to: the last entry before with another version."""
        audience, model, version = current.record.audience, current.record.model, current.record.version
        place = current.place
        while place > 1:
            entry = self._entry(audience, model, place - 1)
            if entry.record.version != version:
                return entry
            place = entry.place  # past what was rolled back from
        since = self._entry(audience, model, current.place).recorded_at
        raise BundleError(
            f"audience {audience} had no {model} before {version}",
            found=f"nothing earlier than {since:%Y-%m-%d %H:%M} UTC that was not rolled back",
            expected="another version to return to",
            remedy="promote a version by name, or train again",
        )

    def _record(self, record: ModelRecord, reason: str) -> ModelRecord:
        while True:
            numbers = self._numbers(record.audience, record.model)
            if numbers and self._entry(record.audience, record.model, numbers[-1]).record == record:
                return record
            number = numbers[-1] + 1 if numbers else 1
            if self._append(LogEntry(number, record, reason, datetime.now(UTC))):
                return record

    def _append(self, entry: LogEntry) -> bool:
        """Writes an entry whole or not at all; False where another one has taken its number."""
        final = self._log(entry.record.audience, entry.record.model) / f"{entry.number:06}.json"
        final.parent.mkdir(parents=True, exist_ok=True)
        draft = self._drafts() / f"{uuid.uuid4().hex}.json"
        try:
            _write_durably(draft, entry.to_json())
            os.link(draft, final)  # unlike a rename, it never replaces, on NFS neither
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        return True

    def _newest(self, audience: str, model: str) -> LogEntry:
        numbers = self._numbers(audience, model)
        if not numbers:
            raise self._unknown(audience, model)
        return self._entry(audience, model, numbers[-1])

    def _entry(self, audience: str, model: str, number: int) -> LogEntry:
        path = self._log(audience, model) / f"{number:06}.json"
        try:
            return LogEntry.from_json(path.read_bytes())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"entry {number} in the log of {model} of {audience} cannot be read",
                found=repr(error),
                expected=f"what this project wrote to {path}",
                remedy="restore the file from a backup",
            ) from error

    def _numbers(self, audience: str, model: str) -> list[int]:
        stems = (path.stem for path in self._log(audience, model).glob("*.json"))
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def _unknown(self, audience: str, model: str) -> BundleError:
        has = self.models(audience)
        if model == CHAMPION and CHALLENGER in has:
            promotion = self.current(audience, CHALLENGER).properties.get("promotion", {})
            return BundleError(
                f"audience {audience} has no champion: no model trained so far was good enough to serve",
                found=promotion.get("reason", "a challenger that was not promoted"),
                expected="a model that is better than chance on the devices kept for promotion",
                remedy="mend that and run the training job again; or promote a version "
                f"with `python -m pipelines.models promote {audience} VERSION`",
            )
        return BundleError(
            f"audience {audience} has no {model} model",
            found=has or f"no model at all in {self._home()}, which has audiences {self.audiences()}",
            expected=model,
            remedy="run the training job first, or name one that there is",
        )

    def _all_versions(self, audience: str) -> str:
        versions = {
            model: [e.record.version for e in self.versions_of(audience, model)]
            for model in self.models(audience)
        }
        return (
            "; ".join(f"{model}: {_abridged(each)}" for model, each in versions.items()) or "no model at all"
        )

    def _home(self) -> Path:
        return Path(self.root).absolute()

    def _drafts(self) -> Path:
        drafts = self._home() / "drafts"
        drafts.mkdir(parents=True, exist_ok=True)
        return drafts

    def _vocabularies(self) -> Path:
        return self._home() / "vocabularies"

    def _bundles(self, audience: str) -> Path:
        return self._home() / "bundles" / audience

    def _logs(self) -> Path:
        return self._home() / "log"

    def _log(self, audience: str, model: str) -> Path:
        return self._logs() / audience / model


def _is_intact(directory: Path, version: str) -> bool:
    try:
        return bundle_version(directory) == version
    except BundleError:  # there is none
        return False


def _replace(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    _write_durably(draft, content)
    draft.replace(path)


def _write_durably(path: Path, content: str | bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())


def _abridged(versions: Sequence[str], most: int = 6) -> str:
    if len(versions) <= most:
        return ", ".join(versions)
    return f"{', '.join(versions[:most])}, … ({len(versions)} in all)"
