"""The chances that a perfect model gives: of a purchase, on any day, by all that a device's events tell.

The perfect model knows the rules, and each device's interests, tier, usual activity, spending and activity of
the time. The phase it must infer from the device's events, as any model must: by Bayes' rule, exactly.
"""

from itertools import islice

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.simulated_world.config import WorldConfig
from pipelines.simulated_world.lives import Day, Rates, live, rates_of
from pipelines.simulated_world.phases import (
    PHASES,
    SATED,
    buying_chances,
    expected_after_night,
    purchase_chances,
    usual_shares,
)
from pipelines.simulated_world.population import Population, build_devices
from pipelines.simulated_world.rules import BURST_SHAPE, Bools, Floats
from pipelines.steps.errors import DataError


def true_propensities(config: WorldConfig, days: int, horizon_days: int) -> pd.DataFrame:
    """Chances of each device to buy a car within a horizon, after so many days of the world.

    Args:
        config: The world; how many days it has does not matter.
        days: Days that have been seen, from the first on.
        horizon_days: Length of the horizon that begins after them.

    Returns:
        Per device: `device_id`; `emulator`; its chance `by_interests` and tier alone (a rate, good for
        ranking only), `by_traits` (all that never changes), `by_past` (these and when it has bought cars),
        and by all that its events tell: the `propensity`.
    """
    _, population = build_devices(config)
    chances = purchase_chances(population.intent_rate, horizon_days)
    by_past, by_all = _believed_phases(config, population, days)
    return pd.DataFrame(
        {
            "device_id": population.ids,
            "emulator": population.emulator,
            "by_interests": population.interest_rate,
            "by_traits": (usual_shares(population.intent_rate) * chances).sum(axis=1),
            "by_past": (by_past * chances).sum(axis=1),
            "propensity": (by_all * chances).sum(axis=1),
        }
    )


def _believed_phases(config: WorldConfig, population: Population, days: int) -> tuple[Floats, Floats]:
    """Devices x phases: chance of each on the day after those seen, by cars bought, and by all events."""
    rates, rate = rates_of(config, population), population.intent_rate
    by_past = by_all = usual_shares(rate)
    for day in islice(live(config, population), days):
        by_past = _after_day(by_past, day, rate)
        by_all = _after_day(by_all * _likelihoods(day, rates), day, rate)
    return by_past, by_all


def _after_day(believed: Floats, day: Day, intent_rate: Floats) -> Floats:
    """The next day's chances of each phase, from this day's, up to a factor, and the cars bought."""
    stayed = believed * (1 - buying_chances(intent_rate))
    believed = expected_after_night(stayed / stayed.sum(axis=1, keepdims=True), intent_rate)
    believed[day.cars] = np.eye(PHASES)[SATED]
    return believed


def _likelihoods(day: Day, rates: Rates) -> Floats:
    """Devices x phases: how likely the day's counts are in each phase, up to a factor of the device.

    The burst of the day, which multiplies both rates, is integrated out: their sum is negative binomial, and
    the favourite's part of it is binomial.
    """
    mean = day.level[:, None] * (rates.favoured + rates.others)
    favoured = rates.favoured / (rates.favoured + rates.others)
    seen = (day.favoured + day.others)[:, None]
    log = seen * np.log(mean / (mean + BURST_SHAPE)) - BURST_SHAPE * np.log1p(mean / BURST_SHAPE)
    log += day.favoured[:, None] * np.log(favoured) + day.others[:, None] * np.log1p(-favoured)
    return np.asarray(np.exp(log - log.max(axis=1, keepdims=True)))


def rank_auc(scores: NDArray[np.generic], outcomes: Bools) -> float:
    """Area under the ROC curve; tied scores count half.

    Raises:
        DataError: The outcomes are all alike, so that there is no curve.
    """
    outcomes = np.asarray(outcomes, dtype=bool)
    positives = int(outcomes.sum())
    negatives = len(outcomes) - positives
    if not positives or not negatives:
        raise DataError(
            "an AUC was asked of outcomes that are all alike",
            found=f"{positives} positive and {negatives} negative outcomes",
            expected="at least one of each",
            remedy="take more devices or a longer horizon",
        )
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = float(mean_ranks[inverse][outcomes].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
