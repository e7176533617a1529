"""The logs that say which version of each model is current.

Each model of each audience has a log: one small file an entry, numbered from 1, never changed once written.
The last entry is what is current; training, a promotion and a rollback each append one. So there is no
second place that could say otherwise, and what ever served can be named, explained and made to serve again.

What does not belong here: the bundles that the versions name (`resources.model_store`).
"""

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field, PrivateAttr

from pipelines.steps.errors import BundleError, abridged
from resources.durable_files import (
    make_directory_durably,
    remove_abandoned_drafts,
    sync_directory,
    write_durably,
)

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
    def position(self) -> int:
        """The entry that the model stands at since this one: a rollback goes back, all else is the end."""
        return self.number if self.restores is None else self.restores

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"recorded_at": self.recorded_at.isoformat()}, indent=1)

    @classmethod
    def from_json(cls, text: bytes) -> "LogEntry":
        plain = json.loads(text)
        record, recorded_at = ModelRecord(**plain["record"]), datetime.fromisoformat(plain["recorded_at"])
        return cls(**plain | {"record": record, "recorded_at": recorded_at})


class ModelLog(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Keeps `log/<audience>/<model>/`."""

    root: str = Field(description="Directory of models; a path that driver and executors share.")

    # Audience and model → what the run goes by; None outside of a run, where each look is a new one.
    _seen: dict[tuple[str, str], ModelRecord] | None = PrivateAttr(default=None)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002 (Dagster's)
        """Begins a run, within which a model has one current version unless the run records another."""
        self._seen = {}

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
        """The last record; within a run, the last when the run first asked, or the one that it made itself.

        Raises:
            BundleError: The audience has no such model.
        """
        if self._seen is not None and (audience, model) in self._seen:
            return self._seen[audience, model]
        return self._see(self._newest(audience, model).record)

    def find(self, audience: str, model: str = CHAMPION, version: str | None = None) -> ModelRecord:
        """The newest record of a version of a model; of the current one where none is named.

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

    def record(self, record: ModelRecord) -> ModelRecord:
        """Makes what was trained or chosen the audience's current `model`; what it replaces stays on record.

        Recording what is current already changes nothing.
        """
        return self._see(self._record(record, TRAINED))

    # --- the details ------------------------------------------------------------------------------

    def _see(self, record: ModelRecord) -> ModelRecord:
        if self._seen is not None:
            self._seen[record.audience, record.model] = record
        return record

    def _before(self, current: LogEntry) -> LogEntry:
        """The entry that a rollback returns to: the last one before with another version."""
        audience, model, version = current.record.audience, current.record.model, current.record.version
        position = current.position
        while position > 1:
            entry = self._entry(audience, model, position - 1)
            if entry.record.version != version:
                return entry
            position = entry.position  # past what was rolled back from
        since = self._entry(audience, model, current.position).recorded_at
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
        make_directory_durably(final.parent)
        draft = self._drafts() / f"{uuid.uuid4().hex}.json"
        try:
            write_durably(draft, entry.to_json())
            os.link(draft, final)  # unlike a rename, it never replaces, on NFS neither
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        sync_directory(final.parent)
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
                f"with `./run python -m pipelines.models promote {audience} VERSION`",
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
            "; ".join(f"{model}: {abridged(each)}" for model, each in versions.items()) or "no model at all"
        )

    def _home(self) -> Path:
        return Path(self.root).absolute()

    def _drafts(self) -> Path:
        drafts = self._home() / "drafts"
        make_directory_durably(drafts)
        remove_abandoned_drafts(drafts, "*")
        return drafts

    def _logs(self) -> Path:
        return self._home() / "log"

    def _log(self, audience: str, model: str) -> Path:
        return self._logs() / audience / model
