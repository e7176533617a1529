"""Which model serves: the choice among the candidates, and whether it may take the place of the former.

Everything here decides on labels and probabilities, so it judges any kind of model alike. The choice is made
on the VALIDATION rows; whether it is good enough, on the PROMOTION rows, which chose nothing.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipelines.steps.errors import TrainingError
from pipelines.steps.features.encoded_rows import EncodedRows
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.models.bundle import Scorer
from pipelines.steps.models.metrics import (
    Difference,
    Interval,
    Metrics,
    compare_auc,
    compute_metrics,
    measure_auc,
)
from pipelines.steps.promotion.candidate_models import BLEND

CHANCE = 0.5
"""The AUC of a model that ranks at random."""
ENOUGH_DEVICES = 10
"""Devices of either label below which nothing is promoted.

Of models that rank at random, the bootstrap passes 12 in 100 with 3 positive devices, 6 with 5, 4 with 10 and
3 with 20 (4,000 trials with 200 negative ones each); 2.5 are meant.
"""
SEEN_BY_FORMER = "the former may have been trained on these devices, which favours it"


@dataclass(frozen=True)
class Choice:
    """Which model serves.

    Attributes:
        name: A candidate, or BLEND.
        best_single: The candidate that ranks the validation rows best.
        blend_gain: Validation AUC of the blend above that one's.
    """

    name: str
    best_single: str
    blend_gain: Difference


def choose(labels: np.ndarray, probabilities: Mapping[str, np.ndarray], *, seed: int = 0) -> Choice:
    """The candidate with the highest validation AUC, or the blend where it is better beyond chance.

    The blend costs all candidates' time to score, so a gain that could be none is no reason for it.

    Args:
        labels: [rows] of the VALIDATION rows.
        probabilities: Model → its probabilities [rows], BLEND's among them.
        seed: Of the bootstrap.
    """
    single = {name: compute_metrics(labels, found) for name, found in probabilities.items() if name != BLEND}
    best = choose_champion(single)
    gain = compare_auc(labels, probabilities[BLEND], probabilities[best], seed=seed)
    return Choice(BLEND if gain.low > 0 else best, best, gain)


@dataclass(frozen=True)
class PromotionRows:
    """The rows that decide on a promotion.

    Attributes:
        labels: [rows], 0 or 1.
        devices: [rows], whose row it is, from 0.
    """

    labels: np.ndarray
    devices: np.ndarray

    def devices_of(self, label: int) -> int:
        """Devices that have the label on one as-of day at least."""
        return len(np.unique(self.devices[self.labels == label]))


@dataclass(frozen=True)
class Former:
    """The champion that serves until a new one is promoted.

    Attributes:
        version: Its bundle's.
        probabilities: [rows], its own of the promotion rows; None where it cannot be asked any more.
        may_have_seen_rows: Whether it may have been trained on devices of these rows, which favours it.
    """

    version: str
    probabilities: np.ndarray | None
    may_have_seen_rows: bool


@dataclass(frozen=True)
class Promotion:
    """Findings on a new champion from the promotion rows, and what follows from them.

    Attributes:
        rows: Promotion rows.
        positives: Of them.
        rarer_devices: Devices of the label that fewer devices have.
        auc: None where the rows have one class only.
        gain: AUC above the former champion's; None where there is none, or it cannot be asked.
        max_auc_loss: What the new one may lack.
        former: Version of the champion that served until now; None where there is none.
        former_may_have_seen_rows: Whether it may have been trained on devices of these rows.
    """

    rows: int
    positives: int
    rarer_devices: int
    auc: Interval | None
    gain: Difference | None
    max_auc_loss: float
    former: str | None
    former_may_have_seen_rows: bool

    @property
    def auc_behind(self) -> float:
        """The former one's AUC less the new one's: below 0 where it gains, 0 where nobody is compared."""
        return -self.gain.value if self.gain else 0.0

    @property
    def better_than_chance(self) -> bool:
        """Better beyond chance, on enough devices to tell."""
        return self.rarer_devices >= ENOUGH_DEVICES and self.auc is not None and self.auc.low > CHANCE

    @property
    def accepted(self) -> bool:
        return self.better_than_chance and self.auc_behind <= self.max_auc_loss

    @property
    def reason(self) -> str:
        """Why it serves, or why not and what to do."""
        if self.rarer_devices < ENOUGH_DEVICES or self.auc is None:
            return (
                "too few devices to tell whether it is better than chance: of the rarer label, the "
                f"{self.rows} promotion rows ({self.positives} positives) hold {self.rarer_devices} devices, "
                f"where {ENOUGH_DEVICES} are needed; add as-of days, raise training.promotion_fraction, or "
                "widen the label or its horizon"
            )
        if not self.better_than_chance:
            return (
                f"it may be no better than chance: its AUC on {self.rows} promotion rows "
                f"({self.positives} positives) is {self.auc}, where the lower end must be above {CHANCE}; "
                "add fields that tell more, or as-of days, or raise training.promotion_fraction"
            )
        if not self.accepted:
            return (
                f"it ranks the promotion rows worse than the former champion {self.former} by "
                f"{self.auc_behind:.4f}, where training.max_auc_loss allows {self.max_auc_loss}"
                + (f"; {SEEN_BY_FORMER}" if self.former_may_have_seen_rows else "")
                + "; `./run python -m pipelines.models promote` overrules"
            )
        return f"its AUC on {self.rows} promotion rows ({self.positives} positives) is {self.auc}"

    def to_dict(self) -> dict[str, Any]:
        """The challenger's record: numbers, texts and the verdict."""
        plain = asdict(self)
        auc, gain = plain.pop("auc") or {}, plain.pop("gain") or {}
        return {
            "accepted": self.accepted,
            "reason": self.reason,
            "auc_behind": self.auc_behind,
            **plain,
            "auc": auc.get("value"),
            "auc_low": auc.get("low"),
            "auc_high": auc.get("high"),
            "gain_low": gain.get("low"),
            "gain_high": gain.get("high"),
        }


def ask_former(former: Scorer, rows: EncodedRows, vocabulary: Vocabulary) -> np.ndarray:
    """Probabilities [rows] of a former champion, in its own vocabulary.

    Args:
        former: The champion that serves.
        rows: The PROMOTION rows.
        vocabulary: They were encoded with it.
    """
    return former.score(former.vocabulary.translate(rows, vocabulary))


def decide_promotion(
    rows: PromotionRows,
    probabilities: np.ndarray,
    former: Former | None,
    max_auc_loss: float,
    *,
    seed: int = 0,
) -> Promotion:
    """Measures a new champion, and the former one beside it, on rows that chose neither.

    Args:
        rows: The PROMOTION rows.
        probabilities: [rows], the new one's.
        former: The one that serves; None where there is none.
        max_auc_loss: What the new one may lack.
        seed: Of the bootstrap.
    """
    labels, devices = rows.labels, rows.devices
    rarer = min(rows.devices_of(0), rows.devices_of(1))
    auc = measure_auc(labels, probabilities, devices=devices, seed=seed) if rarer else None
    gain = None
    if rarer and former and former.probabilities is not None:
        gain = compare_auc(labels, probabilities, former.probabilities, devices=devices, seed=seed)
    return Promotion(
        rows=len(labels),
        positives=int(np.count_nonzero(labels == 1)),
        rarer_devices=rarer,
        auc=auc,
        gain=gain,
        max_auc_loss=max_auc_loss,
        former=former.version if former else None,
        former_may_have_seen_rows=former is not None and former.may_have_seen_rows,
    )


def choose_champion(validation_metrics_by_model: Mapping[str, Metrics]) -> str:
    """The model with the highest validation AUC; ties go to average precision, then to the name.

    Raises:
        TrainingError: There is no candidate, or the candidates were measured on different rows.
    """
    if not validation_metrics_by_model:
        raise TrainingError(
            "there is no candidate for champion",
            found="no models",
            expected="at least one measured model",
            remedy="materialize dnn_model, xgboost_model or logistic_model first",
        )
    measured_on = {name: (m.rows, m.positives) for name, m in validation_metrics_by_model.items()}
    if len(set(measured_on.values())) > 1:
        raise TrainingError(
            "the candidates were measured on different rows",
            found=measured_on,
            expected="the same rows and positives for every candidate",
            remedy="train all candidates on one training_set",
        )
    ranked = sorted(
        validation_metrics_by_model.items(),
        key=lambda item: (-item[1].auc, -item[1].average_precision, item[0]),
    )
    return ranked[0][0]
