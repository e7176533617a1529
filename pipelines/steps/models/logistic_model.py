"""Logistic regression on token counts: a weight per token, summed. The simplest baseline.

Fitted by L-BFGS, stored and scored as a torch network of one-wide embeddings. The weights of a behaviour's
codes are fitted as steps from code to code, and stored summed up: a weight per code.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.steps.config.behaviour_names import is_behaviour
from pipelines.steps.config.metric import DEFAULT_METRIC, Metric
from pipelines.steps.errors import TrainingError
from pipelines.steps.features.encoded_rows import count_matrix
from pipelines.steps.features.token_weights import EVENTS
from pipelines.steps.labels.training_rows import (
    TRAIN,
    VALIDATION,
    TrainingRows,
    checked_splits,
)
from pipelines.steps.models.bundle import NO_MEMBERS, TORCH_WEIGHTS
from pipelines.steps.models.dnn_batches import Bags
from pipelines.steps.models.ranking import measure
from pipelines.steps.progress import Work, beating

if TYPE_CHECKING:
    from scipy import sparse

logger = logging.getLogger(__name__)
PATIENCE = 2
"""Values of C in a row, each worse than the one before, after which no greater one is tried."""


class LogisticNet(nn.Module):
    """Sum of one weight per token, plus a bias. B rows, F fields, N tokens and V ids of all fields."""

    def __init__(self, vocabulary_sizes: Sequence[int]) -> None:
        super().__init__()
        self.fields = len(vocabulary_sizes)
        self.weights = nn.Parameter(torch.zeros(sum(vocabulary_sizes), 1))  # V × 1
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, bags: Bags) -> Tensor:
        """Logits [B] of `to_tensors`' ids [N], offsets [F·B + 1] and codes [N]."""
        ids, offsets, codes = bags
        # what `count_matrix` enters
        entries = None if codes is None else ((codes & (len(EVENTS) - 1)) + 1).to(self.weights.dtype)
        sums = functional.embedding_bag(
            ids, self.weights, offsets, mode="sum", include_last_offset=True, per_sample_weights=entries
        )
        return sums.view(self.fields, -1).sum(dim=0) + self.bias


@dataclass(frozen=True)
class LogisticConfig:
    """Settings of the fit, by the names that scikit-learn gives them.

    Attributes:
        C: The values tried, ascending, of the sum of losses' weight against half the squared weights;
            the validation metric chooses, the smaller C on a tie.
        token_penalty: The penalties tried of a token's squared weight, in that of a step of behaviour
            (glmnet's `penalty.factor`); where no field tells of behaviour, nothing is tried but 1.
        metric: Of the VALIDATION rows.
        max_iter: L-BFGS iterations at most, for each C.
        tol: L-BFGS stops below this gradient of the mean loss. At 1e-4 the AUC still moved by 2e-4 with the
            starting point; at 1e-5 by 1e-4.
        threads: Threads of the linear algebra. One by default: its vectors are short (measured on 2
            shared cores: 3 s with one thread, 32 s with two).
    """

    C: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    token_penalty: tuple[float, ...] = (1.0, 10.0, 100.0)
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
        chosen_token_penalty: The penalty of tokens whose fit this is.
        validation_metric: C and penalty of tokens → the validation metric, for all tried.
    """

    state: Mapping[str, Tensor]
    config: LogisticConfig
    chosen_c: float
    chosen_token_penalty: float
    validation_metric: Mapping[tuple[float, float], float]

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
    rows: TrainingRows,
    vocabulary_sizes: Mapping[str, int],
    config: LogisticConfig,
    columns: "sparse.csr_matrix | None" = None,
) -> TrainedLogistic:
    """Fits on the TRAIN rows for each setting, keeps the one that ranks the VALIDATION rows best.

    Args:
        rows: All splits; TEST is never read.
        vocabulary_sizes: Field name → number of ids.
        config: Of the fit.
        columns: The vocabulary's `cumulative_columns`; None: a column per id.

    Raises:
        TrainingError: The rows are not trainable, there is no C to try, or a fit diverged.
    """
    train, validation = checked_splits(rows, vocabulary_sizes, (TRAIN, VALIDATION))
    counts = count_matrix(validation.bags, vocabulary_sizes).astype(np.float64)
    fits = _Fits(train, vocabulary_sizes, config, columns)

    tried: dict[tuple[float, float], float] = {}
    best: _Fit | None = None
    for penalty in config.token_penalty if columns is not None else (1.0,):
        path: list[float] = []
        for fit in fits.of_penalty(penalty):
            path.append(measure(config.metric, validation.labels, counts @ fit.weights + fit.bias))
            tried[fit.c, penalty] = path[-1]
            if best is None or path[-1] > tried[best.c, best.token_penalty]:
                best = fit
            if _is_past_its_best(path):
                break
    if best is None:
        raise TrainingError(
            "logistic regression has no C to try",
            found=config.C,
            expected="at least one positive number",
            remedy="name values in C",
        )
    logger.info(
        "C = %s with tokens penalized by %g is the best of %d: validation %s %.4f",
        best.c,
        best.token_penalty,
        len(tried),
        config.metric,
        tried[best.c, best.token_penalty],
    )
    return TrainedLogistic(best.state, config, best.c, best.token_penalty, tried)


def refit_logistic(
    rows: TrainingRows,
    vocabulary_sizes: Mapping[str, int],
    found: TrainedLogistic,
    columns: "sparse.csr_matrix | None" = None,
) -> TrainedLogistic:
    """Fits with the settings that were found best, on more rows.

    Args:
        rows: Only TRAIN rows are read.
        vocabulary_sizes: As for `train_logistic`.
        found: Its C and penalty of tokens.
        columns: As there.

    Raises:
        TrainingError: The rows are not trainable, or the fit diverged.
    """
    [train] = checked_splits(rows, vocabulary_sizes, (TRAIN,))
    config = replace(found.config, C=(found.chosen_c,))
    [fit] = _Fits(train, vocabulary_sizes, config, columns).of_penalty(found.chosen_token_penalty)
    return replace(found, state=fit.state)


@dataclass(frozen=True)
class _Fit:
    """One fit: a float64 weight per id [V] and the bias, with the settings that they are of."""

    c: float
    token_penalty: float
    weights: np.ndarray
    bias: float

    @property
    def state(self) -> dict[str, Tensor]:
        """The parameters of a `LogisticNet`."""
        return {
            "weights": torch.from_numpy(self.weights.astype(np.float32)).unsqueeze(1),
            "bias": torch.tensor([self.bias], dtype=torch.float32),
        }


class _Fits:
    """The fits on some rows."""

    def __init__(
        self,
        rows: TrainingRows,
        vocabulary_sizes: Mapping[str, int],
        config: LogisticConfig,
        columns: "sparse.csr_matrix | None",
    ) -> None:
        self._counts = count_matrix(rows.bags, vocabulary_sizes).astype(np.float64)
        self._labels, self._sizes = rows.labels, vocabulary_sizes
        self._config, self._columns = config, columns

    def of_penalty(self, penalty: float) -> Iterator[_Fit]:
        """The fit of each C, ascending; each begins where the one before ended."""
        # training only: executors that score do without
        from threadpoolctl import threadpool_limits

        columns = None if self._columns is None else _penalized(self._columns, self._sizes, penalty)
        parameters = None
        for c in self._config.C:
            with (
                beating(Work(f"fitting logistic regression with C = {c}, tokens penalized by {penalty:g}")),
                threadpool_limits(self._config.threads),
            ):
                parameters = _fit(self._counts, self._labels, columns, c, self._config, parameters)
            own, bias = parameters[:-1], float(parameters[-1])
            weights = own if columns is None else columns @ own
            if not (np.isfinite(weights).all() and np.isfinite(bias)):
                raise TrainingError(
                    f"logistic regression diverged at C = {c}",
                    found="weights that are not finite",
                    expected="finite weights",
                    remedy="try smaller values of C only",
                )
            yield _Fit(c, penalty, weights, bias)


def _fit(
    counts: "sparse.csr_matrix",
    labels: np.ndarray,
    columns: "sparse.csr_matrix | None",
    c: float,
    config: LogisticConfig,
    start: np.ndarray | None,
) -> np.ndarray:
    """A weight per column, and the bias last.

    The columns are never made for the rows: a row holds hundreds of them where it has tens of ids.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    steps = None if columns is None else columns.astype(np.float64)
    rows, width = counts.shape[0], counts.shape[1] if steps is None else steps.shape[1]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean loss and penalty, and their gradient."""
        own, bias = parameters[:-1], parameters[-1]
        logits = counts @ (own if steps is None else steps @ own) + bias
        errors = expit(logits) - labels
        gradient = counts.T @ errors
        if steps is not None:
            gradient = steps.T @ gradient
        value = (np.logaddexp(0, logits) - labels * logits).sum() + own @ own / (2 * c)
        return value / rows, np.append(gradient + own / c, errors.sum()) / rows

    options = {"maxiter": config.max_iter, "gtol": config.tol, "ftol": 64 * np.finfo(float).eps, "maxls": 50}
    begin = np.zeros(width + 1) if start is None else start
    return np.asarray(minimize(loss, begin, jac=True, method="L-BFGS-B", options=options).x)


def _penalized(
    columns: "sparse.csr_matrix", vocabulary_sizes: Mapping[str, int], penalty: float
) -> "sparse.csr_matrix":
    """The columns, those of tokens so small that a token's squared weight costs `penalty` times as much."""
    from scipy import sparse

    behaves = np.concatenate([np.full(size, is_behaviour(name)) for name, size in vocabulary_sizes.items()])
    return (sparse.diags(np.where(behaves, 1.0, penalty**-0.5)) @ columns).tocsr()


def _is_past_its_best(path: Sequence[float]) -> bool:
    """Whether a metric has fallen at each of the last PATIENCE steps of a path."""
    return len(path) > PATIENCE and all(later < earlier for earlier, later in pairwise(path[-PATIENCE - 1 :]))
