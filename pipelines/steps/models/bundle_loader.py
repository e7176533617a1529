"""Reading a bundle, whatever its engine, until it is ready to score.

What belongs here: which engines there are, and the refusals that hold for all of them. What does not: how a
bundle is written (`bundle`). Spark executors import this module, so it loads torch, xgboost or
onnxruntime only once a bundle of that engine is loaded.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pipelines.steps.errors import BundleError
from pipelines.steps.features.encoded_rows import EncodedRows
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.models.bundle import (
    MANIFEST_FILE,
    VOCABULARY_FILE,
    BundleManifest,
    BundleRef,
    Scorer,
    bundle_version,
    fields_of,
    read_manifest,
    require_architecture,
    sha256_of,
)
from pipelines.steps.models.calibration import Calibration


def load_bundle(
    directory: Path,
    *,
    expected_version: str | None = None,
    expected_vocabulary_hash: str | None = None,
    threads: int = 1,
) -> Scorer:
    """Loads a bundle, ready to score. Everything that can be refused is refused here.

    Args:
        directory: The bundle.
        expected_version: The version recorded, where it is known: every file is hashed then.
        expected_vocabulary_hash: Of the vocabulary that encoded the rows to score, where known.
        threads: Threads that one call of `score` may use.

    Raises:
        BundleError: A file is missing or damaged, the format version, engine or architecture is
            unknown, or vocabulary, weights and manifest do not belong together.
    """
    if expected_version is not None:
        BundleRef(directory, expected_version).verify()
    manifest = read_manifest(directory)
    load = _engine(manifest.engine, directory)
    if expected_vocabulary_hash is not None and manifest.vocabulary_hash != expected_vocabulary_hash:
        raise BundleError(
            f"bundle {directory} was trained with another vocabulary than the rows were encoded with",
            found=manifest.vocabulary_hash,
            expected=expected_vocabulary_hash,
            remedy="encode the rows with the bundle's own vocabulary, or train again",
        )
    weights = directory / manifest.weights_file
    _require_files(directory, [VOCABULARY_FILE, weights.name])
    vocabulary = Vocabulary.load(directory / VOCABULARY_FILE, expected_hash=manifest.vocabulary_hash)
    if manifest.fields != fields_of(vocabulary):
        raise BundleError(
            f"bundle {directory} names other fields than its vocabulary",
            found=manifest.fields,
            expected=fields_of(vocabulary),
            remedy="restore the bundle, or train again",
        )
    weights_hash = manifest.weights_sha256 if expected_version is not None else sha256_of(weights)
    if weights_hash != manifest.weights_sha256:
        raise BundleError(
            f"the weights of bundle {directory} do not match their hash",
            found=weights_hash,
            expected=manifest.weights_sha256,
            remedy="restore the bundle, or train again",
        )
    scorer = load(weights, manifest, vocabulary, threads)
    if manifest.calibration is None:
        return scorer
    return CalibratedScorer(scorer, Calibration.from_dict(manifest.calibration))


class CalibratedScorer:
    """What another scorer says, calibrated."""

    def __init__(self, scorer: Scorer, calibration: Calibration) -> None:
        self.manifest = scorer.manifest
        self.vocabulary = scorer.vocabulary
        self._scorer = scorer
        self._calibration = calibration

    def score(self, rows: EncodedRows) -> np.ndarray:
        """float32 probabilities [rows]; a row's value does not depend on the rows around it."""
        return self._calibration.apply(self._scorer.score(rows))


def _load_torch(weights: Path, manifest: BundleManifest, vocabulary: Vocabulary, threads: int) -> Scorer:
    from pipelines.steps.models.torch_scorer import load_torch

    return load_torch(weights, manifest, vocabulary, threads)


def _load_xgboost(weights: Path, manifest: BundleManifest, vocabulary: Vocabulary, threads: int) -> Scorer:
    from pipelines.steps.models.xgboost_model import load_xgboost

    return load_xgboost(weights, manifest, vocabulary, threads)


def _load_onnx(weights: Path, manifest: BundleManifest, vocabulary: Vocabulary, threads: int) -> Scorer:
    from pipelines.steps.models.onnx_model import load_onnx

    return load_onnx(weights, manifest, vocabulary, threads)


def _load_blend(weights: Path, manifest: BundleManifest, vocabulary: Vocabulary, threads: int) -> Scorer:
    """Loads the members that a blend's bundle holds.

    Raises:
        BundleError: A member is missing, of another version, or of another vocabulary than the blend.
    """
    from pipelines.steps.models.blend_model import BLEND_ARCHITECTURES, BlendScorer

    require_architecture(BLEND_ARCHITECTURES, weights, manifest)
    versions = json.loads(weights.read_bytes())
    members = []
    for name in manifest.architecture["members"]:
        directory = weights.parent / "members" / name
        found = bundle_version(directory)
        if found != versions.get(name):
            raise BundleError(
                f"member {name} of the blend {weights.parent} is not the one that it was made of",
                found=found,
                expected=versions.get(name),
                remedy="restore the bundle, or train again",
            )
        members.append(
            load_bundle(directory, expected_vocabulary_hash=manifest.vocabulary_hash, threads=threads)
        )
    return BlendScorer(manifest, vocabulary, members)


ENGINES: Mapping[str, Callable[[Path, BundleManifest, Vocabulary, int], Scorer]] = {
    "torch": _load_torch,
    "xgboost": _load_xgboost,
    "onnx": _load_onnx,
    "blend": _load_blend,
}
"""What can score a bundle: path of its weights file, manifest, vocabulary and threads → scorer."""


def _engine(name: str, directory: Path) -> Callable[[Path, BundleManifest, Vocabulary, int], Scorer]:
    if name not in ENGINES:
        raise BundleError(
            f"bundle {directory} is of an unknown engine",
            found=name,
            expected=f"one of {sorted(ENGINES)}",
            remedy="score with a code version that has this engine",
        )
    return ENGINES[name]


def _require_files(directory: Path, names: Sequence[str]) -> None:
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise BundleError(
            f"bundle {directory} lacks the file {missing[0]}",
            found=sorted(path.name for path in directory.iterdir()),
            expected=[MANIFEST_FILE, *names],
            remedy="restore the bundle, or train again",
        )
