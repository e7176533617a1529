"""Model bundles and vocabularies, kept by explicit version; what serves is said by one small file."""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from pipelines.steps.errors import BundleError, DataError
from pipelines.steps.feature_vocabulary import Vocabulary
from pipelines.steps.model_bundle import bundle_version


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


class ModelStore(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Keeps `bundles/<audience>/<version>/`, `vocabularies/<hash>.json` and the records that name them."""

    root: str = Field(description="Directory of bundles; a path that driver and executors share.")

    def add(
        self,
        audience: str,
        model: str,
        write: Callable[[Path], None],
        properties: Mapping[str, Any],
    ) -> ModelRecord:
        """Keeps the bundle that `write` makes, and records it as the audience's current `model`.

        The bundle appears under its version at once or not at all; an equal bundle is kept once.
        """
        draft = self._home() / "drafts" / uuid.uuid4().hex
        draft.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(draft)
            version = bundle_version(draft)
            final = self._bundles(audience) / version
            final.parent.mkdir(parents=True, exist_ok=True)
            if not final.exists():
                draft.rename(final)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return self.record(ModelRecord(audience, model, version, properties))

    def record(self, record: ModelRecord) -> ModelRecord:
        """Makes a version the audience's current `model`; what it replaces stays on record."""
        _replace(self._former(record), json.dumps(asdict(record), indent=1))
        _replace(self._record(record.audience, record.model), json.dumps(asdict(record), indent=1))
        return record

    def current(self, audience: str, model: str) -> ModelRecord:
        """What `record` said last.

        Raises:
            BundleError: The audience has no such model.
        """
        try:
            return ModelRecord(**json.loads(self._record(audience, model).read_bytes()))
        except FileNotFoundError:
            raise BundleError(
                f"audience {audience} has no {model} model",
                found=self.models(audience) or "no model at all",
                expected=model,
                remedy="run the training job first",
            ) from None

    def former(self, record: ModelRecord) -> ModelRecord:
        """What was last recorded of one version, current or not."""
        try:
            return ModelRecord(**json.loads(self._former(record).read_bytes()))
        except FileNotFoundError:
            raise BundleError(
                f"nothing is recorded of {record.model} {record.version} of {record.audience}",
                found=self.versions(record.audience) or "no bundle at all",
                expected=record.version,
                remedy="score the day again with the current champion",
            ) from None

    def models(self, audience: str) -> list[str]:
        """The models an audience has."""
        return sorted(path.stem for path in (self._home() / "records" / audience).glob("*.json"))

    def versions(self, audience: str) -> list[str]:
        """The versions of all the bundles an audience ever had."""
        return sorted(path.name for path in self._bundles(audience).glob("*") if path.is_dir())

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

    def _home(self) -> Path:
        return Path(self.root).absolute()

    def _vocabularies(self) -> Path:
        return self._home() / "vocabularies"

    def _bundles(self, audience: str) -> Path:
        return self._home() / "bundles" / audience

    def _former(self, record: ModelRecord) -> Path:
        return self._home() / "history" / record.audience / record.model / f"{record.version}.json"

    def _record(self, audience: str, model: str) -> Path:
        return self._home() / "records" / audience / f"{model}.json"


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    with draft.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(path)
