"""Scoring a bundle with PyTorch."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from pipelines.steps.errors import BundleError
from pipelines.steps.features.encoded_rows import EncodedRows
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.models.bundle import (
    SCORE_BATCH_ROWS,
    BundleManifest,
    Scorer,
    check_rows,
    full_batch,
    require_architecture,
)
from pipelines.steps.models.dnn_batches import to_tensors
from pipelines.steps.models.dnn_model import AudienceNet, torch_threads, uninitialized
from pipelines.steps.models.logistic_model import LogisticNet

TORCH_ARCHITECTURES: Mapping[str, Callable[..., torch.nn.Module]] = {
    "audience_net": AudienceNet,
    "logistic": LogisticNet,
}
"""Name → its network, of vocabulary sizes and the manifest's parameters."""


def load_torch(weights: Path, manifest: BundleManifest, vocabulary: Vocabulary, threads: int) -> Scorer:
    """Rebuilds the network around its weights.

    Raises:
        BundleError: The architecture is unknown, or the weights are not its.
    """
    build = TORCH_ARCHITECTURES[require_architecture(TORCH_ARCHITECTURES, weights, manifest)]
    parameters = {name: value for name, value in manifest.architecture.items() if name != "name"}
    try:
        with torch.device("meta"), uninitialized():  # the weights come from the file
            network = build([field.vocabulary_size for field in manifest.fields], **parameters)
        state = safetensors.torch.load_file(weights)  # memory-mapped
        network.load_state_dict(state, assign=True)
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise BundleError(
            f"the weights {weights} do not fit its architecture and vocabulary",
            found=str(error),
            expected=f"weights of {dict(manifest.architecture)} over {manifest.fields}",
            remedy="restore the bundle, or train again",
        ) from error
    return TorchScorer(manifest, vocabulary, network.eval().requires_grad_(False), threads)


class TorchScorer:
    """Scores with PyTorch, in batches of exactly SCORE_BATCH_ROWS rows."""

    def __init__(
        self,
        manifest: BundleManifest,
        vocabulary: Vocabulary,
        network: torch.nn.Module,
        threads: int,
    ) -> None:
        self.manifest = manifest
        self.vocabulary = vocabulary
        self._network = network
        self._threads = threads

    def score(self, rows: EncodedRows) -> np.ndarray:
        """float32 probabilities [rows]; a row's value does not depend on the rows around it."""
        count = check_rows(rows, self.manifest)
        sizes = {field.name: field.vocabulary_size for field in self.manifest.fields}
        probabilities = np.empty(count, dtype=np.float32)
        with torch.inference_mode(), torch_threads(self._threads):
            for start in range(0, count, SCORE_BATCH_ROWS):
                stop = min(start + SCORE_BATCH_ROWS, count)
                batch = {name: full_batch(rows[name].slice(start, stop)) for name in sizes}
                logits = self._network(to_tensors(batch, sizes))
                probabilities[start:stop] = torch.sigmoid(logits).numpy()[: stop - start]
        return probabilities
