"""A model as a directory: what it holds, how it is written, hashed and verified.

A bundle holds `bundle.json`, one weights file and `vocabulary.json`; it scores on a machine that has
only it and `pipelines.steps`. What does not belong here: reading it to score, which knows the engines
(`bundle_loader`).
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from pipelines.steps.errors import BundleError
from pipelines.steps.features.encoded_rows import MISSING_ID, EncodedRows, Ragged
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.features.token_weights import PLAIN
from pipelines.steps.models.calibration import Calibration

FORMAT_VERSION = 3
"""2 knew nothing of what a token weighs."""
MANIFEST_FILE = "bundle.json"
VOCABULARY_FILE = "vocabulary.json"
TORCH_WEIGHTS = "weights.safetensors"
"""The weights file of every torch network."""
NO_MEMBERS: Mapping[str, Path] = MappingProxyType({})
"""The members of a model that is not made of others."""
VERSION_CHARACTERS = 16
"""Hex characters of a bundle's content hash that name its version."""
SCORE_BATCH_ROWS = 1_024
"""Rows of every forward pass, exactly: matrix products may round differently for another number of
rows, so a fixed shape makes a row's score independent of the rows it arrives with."""


@dataclass(frozen=True)
class BundleField:
    """One field as the model knows it, in field order; `weighted`: each token comes with a code."""

    name: str
    vocabulary_size: int
    max_length: int
    weighted: bool = False


@dataclass(frozen=True)
class BundleManifest:
    """The content of bundle.json. It names no time of writing: equal models have equal versions.

    Attributes:
        engine: What scores it: a key of `bundle_loader.ENGINES`.
        architecture: `name` and the parameters that rebuild the model around its weights.
        fields: The model's fields, in order.
        vocabulary_hash: Of the vocabulary it was trained with.
        training_days: As-of days trained on, ISO dates.
        code_version: The code that trained it.
        metrics: Split name → metric name → value.
        weights_file: Name of the weights file.
        weights_sha256: Of the weights file.
        calibration: How the engine's probabilities become those that are delivered; None: they are.
        format_version: Of the bundle.
    """

    engine: str
    architecture: Mapping[str, Any]
    fields: tuple[BundleField, ...]
    vocabulary_hash: str
    training_days: tuple[str, ...]
    code_version: str
    metrics: Mapping[str, Mapping[str, float]]
    weights_file: str
    weights_sha256: str
    calibration: Mapping[str, Any] | None = None
    format_version: int = FORMAT_VERSION

    def to_json(self) -> bytes:
        """Canonical: equal manifests are equal bytes."""
        return (json.dumps(asdict(self), indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


class TrainedModel(Protocol):
    """What a trainer hands over to be written."""

    @property
    def engine(self) -> str:
        """A key of `bundle_loader.ENGINES`."""

    @property
    def architecture(self) -> dict[str, object]:
        """`name` and parameters."""

    @property
    def weights_file(self) -> str:
        """Name of the weights file; never a pickle."""

    @property
    def members(self) -> Mapping[str, Path]:
        """Name → bundle of each model that it is made of; mostly NO_MEMBERS."""

    def weights(self) -> bytes:
        """The content of the weights file."""


class Scorer(Protocol):
    """A loaded bundle."""

    manifest: BundleManifest
    vocabulary: Vocabulary

    def score(self, rows: EncodedRows) -> np.ndarray:
        """float32 probabilities [rows]; a row's value does not depend on the rows around it."""


def write_bundle(
    directory: Path,
    model: TrainedModel,
    vocabulary: Vocabulary,
    *,
    training_days: Sequence[str],
    code_version: str,
    metrics: Mapping[str, Mapping[str, float]],
    calibration: Calibration | None = None,
) -> BundleManifest:
    """Writes a bundle: all of it or nothing.

    A bundle never changes once written: writing the same content again does nothing. The bundles that a
    model is made of (its `members`) are copied into it.

    Raises:
        BundleError: The directory holds something else already.
    """
    weights = model.weights()
    manifest = BundleManifest(
        engine=model.engine,
        architecture=model.architecture,
        fields=fields_of(vocabulary),
        vocabulary_hash=vocabulary.hash,
        training_days=tuple(training_days),
        code_version=code_version,
        metrics=metrics,
        weights_file=model.weights_file,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        calibration=calibration.to_dict() if calibration else None,
    )
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        (staging / model.weights_file).write_bytes(weights)
        vocabulary.save(staging / VOCABULARY_FILE)
        (staging / MANIFEST_FILE).write_bytes(manifest.to_json())
        for name, member in model.members.items():
            shutil.copytree(member, staging / "members" / name)
        staging.chmod(0o755)  # mkdtemp's are private, a bundle is read by other accounts
        if directory.exists():
            _refuse_other_content(directory, staging)
        else:
            staging.rename(directory)
    finally:
        if staging.exists():
            shutil.rmtree(staging)
    return manifest


def bundle_version(directory: Path) -> str:
    """The version of a bundle: a hash of every file's name and content.

    Raises:
        BundleError: There is no bundle.
    """
    _read_manifest_bytes(directory)
    content = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        content.update(f"{path.relative_to(directory).as_posix()}\0{sha256_of(path)}\n".encode())
    return content.hexdigest()[:VERSION_CHARACTERS]


@dataclass(frozen=True)
class BundleRef:
    """One version of a bundle, and where it is: what is found there must have its hash.

    Attributes:
        path: The directory, readable wherever it is scored with.
        version: The version recorded.
    """

    path: Path
    version: str

    @classmethod
    def of(cls, bundle: "BundleRef | Path") -> "BundleRef":
        """The version named; of a directory alone, the one that it holds now.

        Raises:
            BundleError: There is no bundle.
        """
        return bundle if isinstance(bundle, BundleRef) else cls(bundle, bundle_version(bundle))

    def verify(self) -> None:
        """Reads and hashes every file.

        Raises:
            BundleError: The bundle is missing or cannot be read, or any file is not as it was recorded.
        """
        try:
            found = bundle_version(self.path)
        except OSError as error:
            raise BundleError(
                f"bundle {self.path} cannot be read",
                found=str(error),
                expected=f"version {self.version}",
                remedy="restore the directory, name another version, or train again",
            ) from error
        if found != self.version:
            raise BundleError(
                f"bundle {self.path} was changed since it was recorded: its content has another hash",
                found=f"version {found}",
                expected=f"version {self.version}",
                remedy="restore the directory, name another version, or train again",
            )


def read_manifest(directory: Path) -> BundleManifest:
    """What a bundle says about itself, without its weights.

    Raises:
        BundleError: It is missing, damaged, or of another format version.
    """
    content = _read_manifest_bytes(directory)
    try:
        parsed = json.loads(content)
        format_version = parsed["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged_manifest(directory, error) from error
    if format_version != FORMAT_VERSION:
        raise BundleError(
            f"bundle {directory} has an unknown format version",
            found=format_version,
            expected=FORMAT_VERSION,
            remedy="train once: run training_job; or score with the code version that wrote it",
        )
    try:
        parsed["fields"] = tuple(BundleField(**field) for field in parsed["fields"])
        parsed["architecture"] = dict(parsed["architecture"])
        parsed["training_days"] = tuple(parsed["training_days"])
        manifest = BundleManifest(**parsed)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged_manifest(directory, error) from error
    return manifest


def require_architecture(known: Collection[str], weights: Path, manifest: BundleManifest) -> str:
    """The name of a bundle's architecture, if it is one that its engine knows."""
    name = manifest.architecture.get("name")
    if name not in known:
        raise BundleError(
            f"bundle {weights.parent} is of an unknown architecture",
            found=name,
            expected=f"one of {sorted(known)} for engine {manifest.engine!r}",
            remedy="score with the code version that wrote it, or train again",
        )
    return str(name)


def check_rows(rows: EncodedRows, manifest: BundleManifest) -> int:
    """The number of rows; refuses rows that this model's vocabulary cannot have encoded."""
    missing = [field.name for field in manifest.fields if field.name not in rows]
    if missing:
        raise BundleError(
            "the rows to score lack fields of the model",
            found=list(rows),
            expected=[field.name for field in manifest.fields],
            remedy=f"encode {missing} with the bundle's own vocabulary",
        )
    counts = {field.name: rows[field.name].rows for field in manifest.fields}
    if len(set(counts.values())) != 1:
        raise BundleError(
            "the fields of the rows to score differ in length",
            found=counts,
            expected="the same number of rows in every field",
            remedy="encode all fields from one batch",
        )
    for field in manifest.fields:
        ids, offsets = rows[field.name].values, rows[field.name].offsets
        if offsets[0] != 0 or offsets[-1] != len(ids):
            raise BundleError(
                f"the offsets of field {field.name!r} of the rows to score do not cover its ids",
                found=f"offsets from {offsets[0]} to {offsets[-1]} for {len(ids)} ids",
                expected=f"offsets from 0 to {len(ids)}",
                remedy="build the rows with Vocabulary.encode, Ragged.slice or Ragged.take",
            )
        if len(ids) and not 0 <= ids.min() <= ids.max() < field.vocabulary_size:
            raise BundleError(
                f"field {field.name!r} of the rows to score holds ids outside the model's vocabulary",
                found=f"ids from {ids.min()} to {ids.max()}",
                expected=f"ids from 0 to {field.vocabulary_size - 1}",
                remedy="encode the rows with the bundle's own vocabulary",
            )
        codes = rows[field.name].codes
        if (0 if codes is None else len(codes)) != (len(ids) if field.weighted else 0):
            raise BundleError(
                f"the tokens of field {field.name!r} of the rows to score weigh otherwise than the model's",
                found=f"{'no' if codes is None else len(codes)} codes for {len(ids)} ids",
                expected="a code for each token" if field.weighted else "no codes",
                remedy="encode the rows with the bundle's own vocabulary",
            )
    return next(iter(counts.values()))


def full_batch(bag: Ragged) -> Ragged:
    """The bag with rows of one MISSING id appended, up to SCORE_BATCH_ROWS."""
    short = SCORE_BATCH_ROWS - bag.rows
    if not short:
        return bag
    values = np.concatenate([bag.values, np.full(short, MISSING_ID, dtype=bag.values.dtype)])
    offsets = np.concatenate([bag.offsets, bag.offsets[-1] + np.arange(1, short + 1)])
    codes = None if bag.codes is None else np.concatenate([bag.codes, np.full(short, PLAIN, dtype=np.uint8)])
    return Ragged(values, offsets, codes)


def fields_of(vocabulary: Vocabulary) -> tuple[BundleField, ...]:
    """A vocabulary's fields as a model knows them."""
    return tuple(BundleField(f.name, f.size, f.max_length, f.weighted) for f in vocabulary.fields)


def _refuse_other_content(directory: Path, staging: Path) -> None:
    written, wanted = bundle_version(directory), bundle_version(staging)
    if written != wanted:
        raise BundleError(
            f"bundle {directory} exists with other content",
            found=f"version {written}",
            expected=f"version {wanted}, or no directory",
            remedy="write each version into a directory of its own",
        )


def _read_manifest_bytes(directory: Path) -> bytes:
    if not (directory / MANIFEST_FILE).is_file():
        raise BundleError(
            f"there is no bundle at {directory}",
            found=f"no file {MANIFEST_FILE}",
            expected=f"a directory with {MANIFEST_FILE}, weights and {VOCABULARY_FILE}",
            remedy="name an existing version, or train the model first",
        )
    return (directory / MANIFEST_FILE).read_bytes()


def _damaged_manifest(directory: Path, error: Exception) -> BundleError:
    return BundleError(
        f"the manifest of bundle {directory} cannot be read",
        found=repr(error),
        expected=f"a {MANIFEST_FILE} written by this project",
        remedy="restore the bundle, or train again",
    )


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
