"""Which model serves: the choice among the candidates, and whether it may take the place of the former.

Everything here decides on labels and probabilities, so it judges any kind of model alike. The choice is made
on the VALIDATION rows; whether it is good enough, on the PROMOTION rows, which chose nothing.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipelines.steps.config.metric import DEFAULT_METRIC, Metric
from pipelines.steps.errors import TrainingError
from pipelines.steps.features.encoded_rows import EncodedRows
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.models.bundle import Scorer
from pipelines.steps.models.metrics import (
    Difference,
    Interval,
    compare,
    compare_auc,
    measure_auc,
)
from pipelines.steps.models.ranking import measure
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
    """Which candidates serve.

    Attributes:
        metric: By what they were compared.
        best: The candidate with the highest figure.
        figures: Candidate → its figure.
        behind: Candidate → how far it is behind the best one; nothing of that one.
    """

    metric: str
    best: str
    figures: Mapping[str, float]
    behind: Mapping[str, Difference]

    @property
    def members(self) -> tuple[str, ...]:
        """The best candidate, and those that are behind it by no more than chance."""
        return tuple(name for name in self.figures if name == self.best or self.behind[name].low <= 0)

    @property
    def name(self) -> str:
        """The one candidate, or BLEND."""
        return BLEND if len(self.members) > 1 else self.best

    def __str__(self) -> str:
        others = [f"{name} is behind by {behind}" for name, behind in self.behind.items()]
        served = f"the mean of {', '.join(self.members)}" if len(self.members) > 1 else self.best
        return f"{served}; {self.metric}: " + "; ".join(
            [f"{self.best} is best with {self.figures[self.best]:.4f}", *others]
        )

    def to_dict(self) -> dict[str, Any]:
        """The record of it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Choice":
        behind = {name: Difference(**each) for name, each in plain["behind"].items()}
        return cls(plain["metric"], plain["best"], plain["figures"], behind)


def choose(
    labels: np.ndarray,
    probabilities: Mapping[str, np.ndarray],
    metric: Metric = DEFAULT_METRIC,
    *,
    devices: np.ndarray | None = None,
    seed: int = 0,
) -> Choice:
    """The candidate that ranks the validation rows best, with all that cannot be told apart from it.

    Which of those is ahead on these rows is luck; their mean is mostly better than either, and costs the time
    of its members alone to score.

    Args:
        labels: [rows] of the VALIDATION rows.
        probabilities: Candidate → its probabilities [rows].
        metric: By what they are compared.
        devices: [rows], whose row it is, from 0; each row is a device of its own where None is given.
        seed: Of the bootstrap.

    Raises:
        TrainingError: There is no candidate.
    """
    if not probabilities:
        raise TrainingError(
            "there is no candidate for champion",
            found="no models",
            expected="at least one measured model",
            remedy="materialize dnn_model, xgboost_model or logistic_model first",
        )
    figures = {name: measure(metric, labels, found) for name, found in probabilities.items()}
    best = max(figures, key=lambda name: figures[name])  # the first of equals
    behind = {
        name: compare(metric, labels, probabilities[best], found, devices=devices, seed=seed)
        for name, found in probabilities.items()
        if name != best
    }
    return Choice(str(metric), best, figures, behind)


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
