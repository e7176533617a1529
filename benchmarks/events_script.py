"""The script that a user would write in an afternoon, as a peer of the chain on an event log.

Recency, frequency and money over windows, the same of the label's own past, counts per category; logistic
regression and boosted trees over either. Which of the four its author would use, its newest as-of day says.

What does not belong here: reading the log (`events_chain`), and how the chain does against it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.events_figures import LOWER_IS_BETTER, figures_of

SHORT_WINDOWS = (7, 30)
CATEGORIES = 200
"""Categories counted, the most frequent ones."""
TREES = 200
NEVER = -999.0
"""The recency of a label that a device has no past of."""


@dataclass(frozen=True)
class Log:
    """Raw events up to the scored day, returns and all, each once.

    Attributes:
        events: `device_id`, `event_time` (UTC without a zone), `category` (null where there is none or no
            column is counted), `money` and `converts`, whether the event satisfies the audience's label.
        window_days: The look-back, the as-of day included.
        horizon_days: A conversion counts so many days after the as-of day.
    """

    events: pd.DataFrame
    window_days: int
    horizon_days: int


@dataclass(frozen=True)
class Rows:
    """Devices of some as-of days.

    Attributes:
        features: [rows, columns], by name.
        labels: [rows], 0 or 1.
        devices: [rows].
    """

    features: pd.DataFrame
    labels: np.ndarray
    devices: np.ndarray


@dataclass(frozen=True)
class Scripted:
    """What the script's variants say.

    Attributes:
        devices: Those that it scores, in order of their ids.
        probabilities: Variant → [devices].
        validated: Variant → its figures on the newest as-of day; empty where there is one day only.
        chosen: The variant that its author would use.
    """

    devices: np.ndarray
    probabilities: Mapping[str, np.ndarray]
    validated: Mapping[str, Mapping[str, float]]
    chosen: str


def monthly_days(first_day: date, window_days: int, horizon_days: int, scored: date) -> list[date]:
    """As-of days a month apart whose window is whole, and whose horizon is over by the scored day."""
    newest = pd.Timestamp(scored - timedelta(days=horizon_days))
    oldest = pd.Timestamp(first_day + timedelta(days=window_days - 1))
    days = []
    months = 0
    while (day := newest - pd.DateOffset(months=months)) >= oldest:
        days.append(day.date())
        months += 1
    return sorted(days)


def features(log: Log, as_of: date, categories: Sequence[Any]) -> pd.DataFrame:
    """The script's features of every device with an event in the window, by device, in order."""
    end = pd.Timestamp(as_of) + pd.Timedelta(days=1)
    times = log.events["event_time"]
    seen = log.events[(times >= end - pd.Timedelta(days=log.window_days)) & (times < end)]
    everything = _recency_frequency_money(seen, end, log.window_days, "a_")
    past = _recency_frequency_money(seen[seen["converts"]], end, log.window_days, "y_")
    past = past.reindex(everything.index)
    past["y_rec"] = past["y_rec"].fillna(NEVER)
    found = everything.join(past).fillna(0.0)
    if not len(categories):
        return found
    counted = seen[seen["category"].isin(categories)]
    counts = counted.groupby(["device_id", "category"], observed=True).size().unstack(fill_value=0)
    counts = counts.reindex(index=found.index, columns=list(categories), fill_value=0)
    counts.columns = [f"c_{place}" for place in range(len(categories))]
    return found.join(counts)


def _recency_frequency_money(
    events: pd.DataFrame, end: pd.Timestamp, window_days: int, prefix: str
) -> pd.DataFrame:
    columns: dict[str, pd.Series] = {}
    for days in (*SHORT_WINDOWS, window_days):
        since = events[events["event_time"] >= end - pd.Timedelta(days=days)]
        devices = since.groupby("device_id")
        columns[f"{prefix}n{days}"] = devices.size()
        active = since["event_time"].dt.normalize()
        columns[f"{prefix}d{days}"] = active.groupby(since["device_id"]).nunique()
        columns[f"{prefix}m{days}"] = devices["money"].sum()
    times = events.groupby("device_id")["event_time"]
    columns[f"{prefix}rec"] = -(end - times.max()).dt.total_seconds() / 86_400
    columns[f"{prefix}old"] = (end - times.min()).dt.total_seconds() / 86_400
    return pd.DataFrame(columns)


def rows_of(log: Log, as_of_days: Sequence[date], categories: Sequence[Any]) -> Rows:
    """Features and labels of some as-of days, one after another."""
    parts, labels = [], []
    for as_of in as_of_days:
        found = features(log, as_of, categories)
        parts.append(found)
        labels.append(found.index.isin(converters(log, as_of)).astype(np.int8))
    together = pd.concat(parts)
    return Rows(together, np.concatenate(labels), together.index.to_numpy(dtype=str))


def converters(log: Log, as_of: date) -> np.ndarray:
    """The devices with a conversion in the horizon after the as-of day."""
    begin = pd.Timestamp(as_of) + pd.Timedelta(days=1)
    times = log.events["event_time"]
    in_time = (times >= begin) & (times < begin + pd.Timedelta(days=log.horizon_days))
    found: np.ndarray = log.events.loc[in_time & log.events["converts"], "device_id"].unique()
    return found


def run_script(
    log: Log, as_of_days: Sequence[date], scored: date, *, by: str = "auc", trees: int = TREES
) -> Scripted:
    """Trains the variants on all as-of days, chooses one on the newest, scores the day.

    Args:
        log: Events up to the scored day.
        as_of_days: Oldest first; the horizon of each has to be over by the scored day.
        scored: The day.
        by: The figure that chooses.
        trees: Boosted.
    """
    known = log.events[log.events["event_time"] < pd.Timestamp(scored) + pd.Timedelta(days=1)]
    log = Log(known, log.window_days, log.horizon_days)
    categories = known["category"].value_counts().head(CATEGORIES).index.tolist()
    scoring, training = features(log, scored, categories), rows_of(log, as_of_days, categories)
    variants = _variants(list(scoring.columns), trees)
    validated = {}
    if len(as_of_days) > 1:
        earlier = rows_of(log, as_of_days[:-1], categories)
        newest = rows_of(log, as_of_days[-1:], categories)
        for name, (columns, model) in variants.items():
            model.fit(_scaled(earlier.features[columns]), earlier.labels)
            said = model.predict_proba(_scaled(newest.features[columns]))[:, 1]
            validated[name] = figures_of(newest.labels, said)
    probabilities = {}
    for name, (columns, model) in variants.items():
        model.fit(_scaled(training.features[columns]), training.labels)
        probabilities[name] = model.predict_proba(_scaled(scoring[columns]))[:, 1]
    chosen = choose_variant(validated, by) if validated else next(iter(variants))
    return Scripted(scoring.index.to_numpy(dtype=str), probabilities, validated, chosen)


def choose_variant(validated: Mapping[str, Mapping[str, float]], by: str) -> str:
    """The variant whose figure is best on the validation day; of equals, the first."""
    sign = -1 if by in LOWER_IS_BETTER else 1
    return max(validated, key=lambda name: sign * validated[name][by])


def _variants(columns: Sequence[str], trees: int) -> dict[str, tuple[list[str], Any]]:
    """Name → the columns it takes, and its model."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    sets = {"rfm": [column for column in columns if not column.startswith("c_")]}
    if len(sets["rfm"]) < len(columns):
        sets["rfm+counts"] = list(columns)
    return {
        f"{name} {kind}": (taken, model)
        for name, taken in sets.items()
        for kind, model in {
            "lr": make_pipeline(StandardScaler(), LogisticRegression(C=0.02, max_iter=3_000)),
            "gbm": HistGradientBoostingClassifier(
                max_depth=4,
                learning_rate=0.04,
                max_iter=trees,
                min_samples_leaf=40,
                l2_regularization=5,
                random_state=0,
            ),
        }.items()
    }


def _scaled(columns: pd.DataFrame) -> np.ndarray:
    values = columns.to_numpy(dtype=np.float64)
    scaled: np.ndarray = np.sign(values) * np.log1p(np.abs(values))
    return scaled
