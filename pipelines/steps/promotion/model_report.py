"""A model on the rows that trained nothing: what a cut delivers, where it errs, what it looks at.

Everything is computed through the scorer that serves, so it holds for any engine. What does not belong
here: how it looks (`model_card`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.special import logit
from sklearn.metrics import roc_auc_score

from pipelines.steps.config.behaviour_names import is_behaviour
from pipelines.steps.features.behaviour_codes import token_in_words
from pipelines.steps.features.encoded_rows import (
    MISSING_ID,
    RESERVED_IDS,
    UNKNOWN_ID,
    EncodedRows,
    Ragged,
)
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.features.token_weights import PLAIN
from pipelines.steps.models.bundle import Scorer

DECILES = 10
SLICES_OF_A_FIELD = 5
"""The most frequent tokens of a single-valued field, such as a device's brand."""
TOKENS_OF_A_FIELD = 40
"""The most frequent tokens of a field, whose effect is measured."""
ROWS_OF_A_TOKEN = 300
"""Rows that a token's effect is averaged over, at most."""
EDGE = 1e-7


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval (Wilson, 1927)."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, part: int, whole: int) -> "Share":
        """Nothing of nothing can be any share."""
        if not whole:
            return cls(float("nan"), 0.0, 1.0)
        from scipy.stats import binomtest  # takes a second to import

        interval = binomtest(part, whole).proportion_ci(0.95, method="wilson")
        return cls(part / whole, float(interval.low), float(interval.high))

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class OperatingPoint:
    """What a cut selects of rows that it was not chosen on.

    Attributes:
        threshold: Rows with a probability of at least this are selected.
        rows: Rows selected.
        precision: Share of the selected rows that are positive.
        recall: Share of the positives that are selected.
        size: Share of all rows that are selected.
    """

    threshold: float
    rows: int
    precision: Share
    recall: Share
    size: Share


def at_threshold(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> OperatingPoint:
    """What the cut delivers.

    Args:
        labels: [rows], 0 or 1.
        probabilities: [rows].
        threshold: The lowest probability that is selected.
    """
    chosen = probabilities.astype(np.float64) >= threshold
    hits, positives = int(labels[chosen].sum()), int(labels.sum())
    return OperatingPoint(
        threshold,
        int(chosen.sum()),
        Share.of(hits, int(chosen.sum())),
        Share.of(hits, positives),
        Share.of(int(chosen.sum()), len(labels)),
    )


def at_thresholds(
    labels: np.ndarray, probabilities: np.ndarray, thresholds: Mapping[str, float | None]
) -> dict[str, OperatingPoint | None]:
    """What each segment's cut delivers; None where no cut reached its precision."""
    return {
        segment: None if cut is None else at_threshold(labels, probabilities, cut)
        for segment, cut in thresholds.items()
    }


@dataclass(frozen=True)
class Decile:
    """A tenth of the rows; the first holds the most probable.

    Attributes:
        rows: In it.
        probability: Mean, of the model.
        rate: Of positives.
        lift: rate over that of all rows.
        recall: Share of the positives in it and all before it.
    """

    rows: int
    probability: float
    rate: float
    lift: float
    recall: float


def lift_by_decile(labels: np.ndarray, probabilities: np.ndarray) -> list[Decile]:
    """The rows in order of their probability, in ten parts of equal size."""
    order = np.argsort(-probabilities, kind="stable")
    deciles, found = [], 0.0
    for part in np.array_split(order, DECILES):
        if not len(part):
            continue
        found += float(labels[part].sum())
        rate = float(labels[part].mean())
        deciles.append(
            Decile(
                len(part),
                float(probabilities[part].mean()),
                rate,
                rate / float(labels.mean()),
                found / float(labels.sum()),
            )
        )
    return deciles


@dataclass(frozen=True)
class Slice:
    """Rows that have something in common.

    Attributes:
        name: What.
        rows: How many.
        rate: Of positives.
        probability: Mean, of the model: near `rate` where the slice is calibrated.
        auc: None where the slice has one class only.
    """

    name: str
    rows: int
    rate: float
    probability: float
    auc: float | None


def slice_rows(
    labels: np.ndarray, probabilities: np.ndarray, rows: EncodedRows, vocabulary: Vocabulary
) -> list[Slice]:
    """The most frequent values of every single-valued field, and four classes of activity.

    Activity is the number of known tokens of a row; its classes are the quarters of the rows.
    """
    found = []
    for name, members in _slices(rows, vocabulary):
        own = labels[members]
        mixed = 0 < own.sum() < len(own)
        auc = float(roc_auc_score(own, probabilities[members])) if mixed else None
        found.append(Slice(name, len(own), float(own.mean()), float(probabilities[members].mean()), auc))
    return found


def _slices(rows: EncodedRows, vocabulary: Vocabulary) -> Iterator[tuple[str, np.ndarray]]:
    for field in vocabulary.fields:
        bag = rows[field.name]
        if field.max_length > 1:
            continue
        first = bag.values[bag.offsets[:-1]]
        for token_id in _most_frequent(bag, SLICES_OF_A_FIELD):
            yield f"{field.name} = {field.tokens[token_id - RESERVED_IDS]}", np.flatnonzero(first == token_id)
    activity = sum(
        (
            rows[field.name].count(rows[field.name].values >= RESERVED_IDS)
            for field in vocabulary.fields
            if not is_behaviour(field.name)
        ),
        start=np.zeros(1),
    )
    borders = np.unique(np.quantile(activity, [0, 0.25, 0.5, 0.75, 1], method="lower"))
    for low, high in pairwise(borders):
        last = high == borders[-1]
        members = np.flatnonzero((activity >= low) & ((activity <= high) if last else (activity < high)))
        yield f"{low:.0f} to {high if last else high - 1:.0f} known tokens", members


def _most_frequent(bag: Ragged, count: int) -> list[int]:
    """Ids of known tokens, the most frequent first."""
    frequency = np.bincount(bag.values)
    frequency[:RESERVED_IDS] = 0
    order = np.argsort(-frequency, kind="stable")[:count]
    return [int(token_id) for token_id in order if frequency[token_id]]


@dataclass(frozen=True)
class TokenEffect:
    """The effect of a token on the rows that hold it.

    Attributes:
        token: The token, in words where it is a code of behaviour.
        rows: Rows that hold it.
        effect: Mean of the logit with it less the logit without it: positive where it makes rows likelier.
            Of a code of behaviour, less the logit with the commonest other code of the same behaviour.
    """

    token: str
    rows: int
    effect: float


def token_effects(scorer: Scorer, rows: EncodedRows) -> dict[str, list[TokenEffect]]:
    """Field → effects of its most frequent tokens, strongest first: each is left out, the rows scored again.

    A code of behaviour is exchanged for another one: there is no device that it says nothing of.

    Args:
        scorer: Any.
        rows: Rows that the model was not trained on.
    """
    found = {}
    for field in scorer.vocabulary.fields:
        bag = rows[field.name]
        holders = {token_id: _rows_with(bag, token_id) for token_id in _most_frequent(bag, TOKENS_OF_A_FIELD)}
        effects = [
            TokenEffect(
                token_in_words(field.name, field.tokens[token_id - RESERVED_IDS]), len(places), effect
            )
            for (token_id, places), effect in zip(
                holders.items(), _effects(scorer, rows, field, holders), strict=True
            )
        ]
        found[field.name] = sorted(effects, key=lambda effect: -abs(effect.effect))
    return found


def _effects(
    scorer: Scorer, rows: EncodedRows, field: FieldVocabulary, holders: Mapping[int, np.ndarray]
) -> list[float]:
    """The effect of each token, all scored at once: a few rows take a scorer as long as a whole batch."""
    if not holders:
        return []
    bag, places = rows[field.name], [held[:ROWS_OF_A_TOKEN] for held in holders.values()]
    given = {name: bag.take(np.concatenate(places)) for name, bag in rows.items()}
    changed = [_changed(bag, held, field, token_id) for token_id, held in zip(holders, places, strict=True)]
    without = given | {field.name: Ragged.concatenated(changed)}
    differences = _logits(scorer.score(given)) - _logits(scorer.score(without))
    borders = np.cumsum([len(held) for held in places])[:-1]
    return [float(np.mean(of_token)) for of_token in np.split(differences, borders)]


def _changed(bag: Ragged, places: np.ndarray, field: FieldVocabulary, token_id: int) -> Ragged:
    """The bags of rows that hold a token, without it; of behaviour, with another code instead."""
    own = bag.take(places)
    if not is_behaviour(field.name):
        return _without(own, token_id)
    other = _commonest_other(bag, field, token_id)
    return Ragged(np.where(own.values == token_id, np.int32(other), own.values), own.offsets, own.codes)


def _commonest_other(bag: Ragged, field: FieldVocabulary, token_id: int) -> int:
    """The id of the commonest other code of the same behaviour; the unknown one where there is none."""
    name = field.tokens[token_id - RESERVED_IDS].rpartition("=")[0]
    frequency = np.bincount(bag.values, minlength=field.size)
    others = [
        place
        for place, token in enumerate(field.tokens, start=RESERVED_IDS)
        if place != token_id and token.rpartition("=")[0] == name
    ]
    return max(others, key=lambda place: int(frequency[place]), default=UNKNOWN_ID)


def _logits(probabilities: np.ndarray) -> np.ndarray:
    return np.asarray(logit(np.clip(probabilities.astype(np.float64), EDGE, 1 - EDGE)))


def _rows_with(bag: Ragged, token_id: int) -> np.ndarray:
    return np.unique(np.searchsorted(bag.offsets, np.flatnonzero(bag.values == token_id), side="right") - 1)


def _without(bag: Ragged, token_id: int) -> Ragged:
    """The bags less a token; one that held nothing else is missing then."""
    others = bag.filter(bag.values != token_id)
    empty = others.offsets[:-1][others.lengths == 0]
    codes = None if others.codes is None else np.insert(others.codes, empty, PLAIN)
    ids = np.insert(others.values, empty, MISSING_ID)
    return Ragged.of_lengths(ids, np.maximum(others.lengths, 1), codes)


@dataclass(frozen=True)
class Later:
    """A model on an as-of day that is a whole horizon after all that it was trained on.

    Attributes:
        day: The as-of day, ISO.
        labels: float32 [rows].
        probabilities: float32 [rows].
        delivered: Segment → what its cut delivers; None where no cut reached its precision.
        top: The most probable tenth; None of no devices.
    """

    day: str
    labels: np.ndarray
    probabilities: np.ndarray
    delivered: Mapping[str, OperatingPoint | None]
    top: Decile | None

    @property
    def rows(self) -> int:
        return len(self.labels)

    @property
    def positives(self) -> int:
        return int(self.labels.sum())

    @property
    def probability(self) -> float:
        """Mean, of the model: near positives / rows where the base rate has not moved."""
        return float(self.probabilities.mean()) if self.rows else 0.0


def report_later(
    day: str, labels: np.ndarray, probabilities: np.ndarray, thresholds: Mapping[str, float | None]
) -> Later:
    """Looks at what happened after the newest as-of day.

    Args:
        day: ISO.
        labels: float32 [rows].
        probabilities: float32 [rows].
        thresholds: Segment → cut, chosen on earlier days.
    """
    mixed = 0 < labels.sum() < len(labels)
    return Later(
        day,
        labels,
        probabilities,
        at_thresholds(labels, probabilities, thresholds),
        lift_by_decile(labels, probabilities)[0] if mixed else None,
    )


@dataclass(frozen=True)
class Report:
    """A model on rows that trained nothing, tuned nothing and chose nothing.

    Attributes:
        labels: float32 [rows].
        probabilities: float32 [rows].
        delivered: Segment → what its cut delivers; None where no cut reached its precision.
        deciles: Lift.
        slices: By device and activity.
        tokens: Field → the tokens that move rows most.
        later: What the same training does on a later day; None where it was not rehearsed.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    delivered: Mapping[str, OperatingPoint | None]
    deciles: Sequence[Decile]
    slices: Sequence[Slice]
    tokens: Mapping[str, Sequence[TokenEffect]]
    later: Later | None = None


def report_model(
    scorer: Scorer,
    labels: np.ndarray,
    probabilities: np.ndarray,
    rows: EncodedRows,
    thresholds: Mapping[str, float | None],
) -> Report:
    """Looks at a model through its scorer.

    Args:
        scorer: The bundle, loaded.
        labels: float32 [rows].
        probabilities: float32 [rows], the scorer's of these rows.
        rows: The same rows, encoded; those of the test split.
        thresholds: Segment → cut, chosen on other rows.
    """
    return Report(
        labels,
        probabilities,
        at_thresholds(labels, probabilities, thresholds),
        lift_by_decile(labels, probabilities),
        slice_rows(labels, probabilities, rows, scorer.vocabulary),
        token_effects(scorer, rows),
    )
