"""The lives of devices, day by day: how active each is, its phase, and how much it does of each kind.

A day's counts follow from the seed, the day and the state that the days before have left. To go on from a
day, the days before it are lived again, which takes milliseconds each: no event is drawn for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipelines.simulated_world.config import WorldConfig
from pipelines.simulated_world.phases import SATED, buying_chances, phases_after_night, usual_shares
from pipelines.simulated_world.population import Population
from pipelines.simulated_world.rules import (
    ACTIVITY_OF_PHASE,
    BURST_SHAPE,
    DRIFT_DAYS,
    DRIFT_SIGMA,
    DUPLICATE_SHARE,
    EVENT_SHARES,
    FAVOURITE_OF_PHASE,
    HABIT_DAYS,
    HABIT_SHARE,
    INTENT_OF_PHASE,
    PURCHASE,
    Bools,
    Floats,
    Ints,
)

LIVES_SEED = 3
"""Place of the lives among the children of a world's seed, after catalogue, population and events."""


@dataclass(frozen=True)
class Day:
    """One day of every device.

    Attributes:
        index: Of the day, the first day's being 0.
        phase: The phase it is in.
        level: Its activity, as a multiple of its own usual one, before the day's burst.
        cars: Whether it buys one.
        purchases: Number of other purchases.
        favoured: Number of other events of its favourite.
        others: Number of other events.
    """

    index: int
    phase: Ints
    level: Floats
    cars: Bools
    purchases: Ints
    favoured: Ints
    others: Ints


@dataclass(frozen=True)
class Rates:
    """Mean events a day of each device at its usual activity.

    Attributes:
        favoured: Devices x phases, those of its favourite.
        others: Devices x phases, the others, purchases left out.
        purchases: Devices x phases, purchases of anything but cars.
    """

    favoured: Floats
    others: Floats
    purchases: Floats


def rates_of(config: WorldConfig, population: Population) -> Rates:
    """Rates with which the world has the number of rows asked for."""
    purchase_share = EVENT_SHARES[PURCHASE]
    share, active = population.favourite_share[:, None], np.array(ACTIVITY_OF_PHASE)
    favoured = share * np.array(FAVOURITE_OF_PHASE) + np.array(INTENT_OF_PHASE)
    favoured = (1 - purchase_share) * active * favoured
    others = (1 - purchase_share) * active * (1 - share)
    purchases = purchase_share * population.spending[:, None] * active
    days_in = usual_shares(population.intent_rate)
    cars = (days_in * buying_chances(population.intent_rate)).sum()
    usual = population.activity * ((favoured + others + purchases) * days_in).sum(axis=1)
    distinct = config.events_per_day * (1 - DUPLICATE_SHARE)
    scale = population.activity[:, None] * max(distinct - cars, 0.0) / usual.sum()
    return Rates(favoured * scale, others * scale, purchases * scale)


def live(config: WorldConfig, population: Population) -> Iterator[Day]:
    """Every day from the first on, without end."""
    rates, everyone = rates_of(config, population), np.arange(config.devices)
    rng = _rng(config, 0)
    uniform = rng.random(config.devices)
    shares = np.cumsum(usual_shares(population.intent_rate), axis=1)
    phase = (uniform[:, None] >= shares[:, :-1]).sum(axis=1).astype(np.int8)
    drift, habit = rng.normal(size=config.devices), np.ones(config.devices)
    buying = buying_chances(population.intent_rate)
    kept, used = np.exp(-1 / DRIFT_DAYS), np.exp(-1 / HABIT_DAYS)
    index = 0
    while True:
        rng = _rng(config, index + 1)
        level = np.exp(DRIFT_SIGMA * drift - DRIFT_SIGMA**2 / 2)
        busy = level * rng.gamma(BURST_SHAPE, 1 / BURST_SHAPE, config.devices)
        usual_purchases = rates.purchases[everyone, phase]
        purchases = rng.poisson(busy * usual_purchases * (1 - HABIT_SHARE + HABIT_SHARE * habit))
        cars = rng.random(config.devices) < buying[everyone, phase]
        yield Day(
            index,
            phase,
            level,
            cars,
            purchases,
            favoured=rng.poisson(busy * rates.favoured[everyone, phase]),
            others=rng.poisson(busy * rates.others[everyone, phase]),
        )
        habit = used * habit + (1 - used) * purchases / usual_purchases
        drift = kept * drift + np.sqrt(1 - kept**2) * rng.normal(size=config.devices)
        phase = phases_after_night(phase, population.intent_rate, rng.random(config.devices))
        phase[cars] = SATED
        index += 1


def _rng(config: WorldConfig, number: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(LIVES_SEED, number)))
