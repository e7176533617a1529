"""Several bundles as one model: the mean of their logits."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import expit, logit

from pipelines.steps.features.encoded_rows import EncodedRows
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.models.bundle import BundleManifest, Scorer, bundle_version

BLEND_ARCHITECTURES = ("logit_mean",)
"""The members carry the models."""
EDGE = 1e-7
"""Probabilities nearer to 0 or 1 than this count as it: their logits would outweigh all others."""


@dataclass(frozen=True)
class BlendedModel:
    """What `write_bundle` makes a blend of.

    Attributes:
        members: Name → its bundle, copied into the blend's.
    """

    members: Mapping[str, Path]

    engine = "blend"
    weights_file = "members.json"

    @property
    def architecture(self) -> dict[str, object]:
        return {"name": "logit_mean", "members": list(self.members)}

    def weights(self) -> bytes:
        """Name → version of each member."""
        versions = {name: bundle_version(path) for name, path in self.members.items()}
        return json.dumps(versions, indent=1).encode()


def member_versions(bundle: Path) -> list[str]:
    """Versions of the bundles that a blend's holds; none of another model's."""
    members = bundle / BlendedModel.weights_file
    return list(json.loads(members.read_bytes()).values()) if members.exists() else []


class BlendScorer:
    """Scores with every member; each row's value depends on that row alone, because each member's does."""

    def __init__(self, manifest: BundleManifest, vocabulary: Vocabulary, members: Sequence[Scorer]) -> None:
        self.manifest = manifest
        self.vocabulary = vocabulary
        self._members = members

    def score(self, rows: EncodedRows) -> np.ndarray:
        """float32 probabilities [rows]."""
        return mean_in_logits([member.score(rows) for member in self._members])


def mean_in_logits(probabilities: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [rows] of each model → float32 [rows]."""
    logits = [logit(np.clip(p.astype(np.float64), EDGE, 1 - EDGE)) for p in probabilities]
    return np.asarray(expit(np.mean(logits, axis=0)), dtype=np.float32)
