"""Logistic regression on token counts: a weight per token, summed. The simplest baseline.

Fitted by scikit-learn, stored and scored as a torch network of one-wide embeddings, so that
scoring needs no scikit-learn.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.steps.config.metric import DEFAULT_METRIC, Metric
from pipelines.steps.errors import TrainingError
from pipelines.steps.features.encoded_rows import count_matrix
from pipelines.steps.labels.training_rows import (
    TRAIN,
    VALIDATION,
    TrainingRows,
    check_trainable,
    check_vocabulary,
)
from pipelines.steps.models.bundle import NO_MEMBERS, TORCH_WEIGHTS
from pipelines.steps.models.dnn_batches import Bags
from pipelines.steps.models.ranking import measure
from pipelines.steps.progress import Work, beating

logger = logging.getLogger(__name__)


class LogisticNet(nn.Module):
    """Sum of one weight per token, plus a bias. B rows, F fields, N tokens and V ids of all fields."""

    def __init__(self, vocabulary_sizes: Sequence[int]) -> None:
        super().__init__()
        self.fields = len(vocabulary_sizes)
        self.weights = nn.Parameter(torch.zeros(sum(vocabulary_sizes), 1))  # V × 1
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, bags: Bags) -> Tensor:
        """Logits [B] of `to_tensors`' ids [N] and offsets [F·B + 1]."""
        ids, offsets = bags
        sums = functional.embedding_bag(ids, self.weights, offsets, mode="sum", include_last_offset=True)
        return sums.view(self.fields, -1).sum(dim=0) + self.bias


@dataclass(frozen=True)
class LogisticConfig:
    """Settings of the fit, by scikit-learn's own names.

    Attributes:
        C: The values of scikit-learn's C tried, ascending; the validation metric
            chooses, the smaller C on a tie.
        metric: Of the VALIDATION rows.
        max_iter: L-BFGS iterations at most, for each C.
        tol: L-BFGS stops below this gradient. At scikit-learn's 1e-4 the AUC still moved by
            2e-4 with the starting point; at 1e-5 by 1e-4.
        threads: Threads of the linear algebra. One by default: its vectors are short (measured on 2
            shared cores: 3 s with one thread, 32 s with two).
    """

    C: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    metric: Metric = DEFAULT_METRIC
    max_iter: int = 1_000
    tol: float = 1e-5
    threads: int = 1


@dataclass(frozen=True)
class TrainedLogistic:
    """The chosen fit.

    Attributes:
        state: Parameter name → float32 tensor, of a `LogisticNet`.
        config: What it was fitted with.
        chosen_c: The C whose fit this is.
        validation_metric: C → the validation metric, for every C tried.
    """

    state: Mapping[str, Tensor]
    config: LogisticConfig
    chosen_c: float
    validation_metric: Mapping[float, float]

    engine = "torch"
    weights_file = TORCH_WEIGHTS
    members = NO_MEMBERS

    @property
    def architecture(self) -> dict[str, object]:
        """Name and parameters from which a bundle builds the same network again."""
        return {"name": "logistic"}

    def weights(self) -> bytes:
        """The content of weights.safetensors."""
        return safetensors.torch.save(dict(self.state))


def train_logistic(
    rows: TrainingRows, vocabulary_sizes: Mapping[str, int], config: LogisticConfig
) -> TrainedLogistic:
    """Fits on the TRAIN rows for each C, keeps the one that ranks the VALIDATION rows best.

    Raises:
        TrainingError: The rows are not trainable, there is no C to try, or a fit diverged.
    """
    # training only: executors that score need no scikit-learn
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    check_trainable(rows, splits=(TRAIN, VALIDATION))
    check_vocabulary(rows.bags, vocabulary_sizes)
    train, validation = rows.subset(TRAIN), rows.subset(VALIDATION)
    train_counts = count_matrix(train.bags, vocabulary_sizes).astype(np.float64)
    validation_counts = count_matrix(validation.bags, vocabulary_sizes).astype(np.float64)

    # no warm start: begun near a solution, L-BFGS may stop at once and repeat the fit before it
    model = LogisticRegression(max_iter=config.max_iter, tol=config.tol)
    found: dict[float, float] = {}
    best: tuple[float, np.ndarray, float] | None = None
    for c in config.C:
        with beating(Work(f"fitting logistic regression with C = {c}")), threadpool_limits(config.threads):
            model.set_params(C=c).fit(train_counts, train.labels)
        logits = model.decision_function(validation_counts)
        if not np.isfinite(logits).all():
            raise TrainingError(
                f"logistic regression diverged at C = {c}",
                found="weights that are not finite",
                expected="finite weights",
                remedy="try smaller values of C only",
            )
        found[c] = measure(config.metric, validation.labels, logits)
        if best is None or found[c] > found[best[0]]:
            best = (c, model.coef_[0].copy(), float(model.intercept_[0]))
    if best is None:
        raise TrainingError(
            "logistic regression has no C to try",
            found=config.C,
            expected="at least one positive number",
            remedy="name values in C",
        )
    chosen_c, coefficients, intercept = best
    logger.info(
        "C = %s is the best of %d: validation %s %.4f", chosen_c, len(found), config.metric, found[chosen_c]
    )
    state = {
        "weights": torch.from_numpy(coefficients.astype(np.float32)).unsqueeze(1),
        "bias": torch.tensor([intercept], dtype=torch.float32),
    }
    return TrainedLogistic(state, config, chosen_c, found)
