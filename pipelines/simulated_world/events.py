"""What the devices send, and what happens to it on the way."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.simulated_world.catalogue import Catalogue, draw_from
from pipelines.simulated_world.config import WorldConfig
from pipelines.simulated_world.lives import Day
from pipelines.simulated_world.population import Population, draw_interests
from pipelines.simulated_world.rules import (
    AD_CLICK,
    AD_IMPRESSION,
    BUSIEST_HOUR_UTC,
    DAY_US,
    DAYS_LATE_MAX_US,
    DAYS_LATE_SHARE,
    DUPLICATE_SHARE,
    EMULATORS,
    EVENT_SHARES,
    FUTURE_MAX_US,
    FUTURE_MIN_US,
    FUTURE_SHARE,
    HOURS_LATE_MAX_US,
    HOURS_LATE_SHARE,
    INTERESTS,
    MISSING_ID_SHARE,
    MISSING_SPELLINGS,
    MISSING_TIME_SHARE,
    MISSING_VALUE_SHARE,
    MODELS,
    NIGHT_DEPTH,
    NO_VALUE,
    NORMAL_DELAY_US,
    PURCHASE,
    SECOND_US,
    SPELLING_SHARES,
    TARGETED_CLICK_SHARE,
    TARGETED_IMPRESSION_SHARE,
    UPPER_CASE_ID_SHARE,
    USAGE_SKEW,
    ZERO_ID_SHARE,
    Bools,
    Ints,
)

EVENTS_SEED = 2
"""Place of the events among the children of a world's seed, after those of catalogue and population."""


@dataclass(frozen=True)
class Events:
    """Columns as codes into the lists of `Spellings`, NO_VALUE for null; times in microseconds."""

    device_id: Ints
    event_us: Ints
    time_missing: Bools
    received_us: Ints
    event_name: Ints
    device_name: Ints
    device_model: Ints
    app_package: Ints
    campaign: Ints
    product: Ints

    def take(self, rows: Ints) -> "Events":
        return Events(**{name: column[rows] for name, column in vars(self).items()})

    def arriving(self, start_us: int, end_us: int) -> "Events":
        """Those received from one moment on and before another, of events in the order of arrival."""
        first, end = np.searchsorted(self.received_us, [start_us, end_us])
        return self.take(np.arange(first, end))


def in_order_of_arrival(parts: Sequence[Events]) -> Events:
    """All events together; those received at one moment stay as they are given."""
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    return Events(**columns).take(np.argsort(columns["received_us"], kind="stable"))


def draw_day(config: WorldConfig, catalogue: Catalogue, population: Population, day: Day) -> Events:
    """Draws the events of one day, in the order of arrival.

    The seed and the day alone decide on it: a world that goes on keeps the days it has.

    Args:
        config: The world; how many days it has does not matter.
        catalogue: What there is.
        population: Who acts.
        day: How often each of them does what.
    """
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(EVENTS_SEED, day.index)))
    every_device = np.arange(config.devices, dtype=np.int32)
    counts = (day.cars.astype(np.int64), day.purchases, day.favoured, day.others)
    device = np.concatenate([np.repeat(every_device, number) for number in counts])
    rows, bought = len(device), int(day.cars.sum() + day.purchases.sum())
    place = np.arange(rows)
    is_car, is_favoured = place < day.cars.sum(), (place >= bought) & (place < rows - day.others.sum())
    shares = np.array(EVENT_SHARES[:PURCHASE]) / sum(EVENT_SHARES[:PURCHASE])
    kind = rng.choice(PURCHASE, rows, p=shares).astype(np.int8)
    kind[:bought] = PURCHASE

    event_us, received_us = _draw_times(config.start_us(day.index), rows, rng)
    # A car purchase is never lost: no future or missing time, no missing or zero id.
    future = (rng.random(rows) < FUTURE_SHARE) & ~is_car
    ahead = rng.integers(FUTURE_MIN_US, FUTURE_MAX_US, int(future.sum()))
    event_us[future] = received_us[future] + ahead
    clean = Events(
        device_id=_dirty_ids(device, is_car, config.devices, rng),
        event_us=event_us,
        time_missing=(rng.random(rows) < MISSING_TIME_SHARE) & ~is_car,
        received_us=received_us,
        event_name=kind,
        device_name=_spell(population, device, rng),
        device_model=_spell(population, device, rng),
        app_package=_with_missing(_draw_apps(population, device, is_favoured, rng), len(catalogue.apps), rng),
        campaign=_draw_campaigns(catalogue, population, device, kind, is_favoured, rng),
        product=_draw_products(population, device, kind, is_car, rng),
    )
    repeated = np.flatnonzero(rng.random(rows) < DUPLICATE_SHARE / (1 - DUPLICATE_SHARE))
    return in_order_of_arrival([clean, clean.take(repeated)])


def _draw_times(start_us: int, rows: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Event times by the day's rhythm, and arrivals: soon, hours late or days late."""
    seconds = np.arange(0, 24 * 3_600 + 1, 60.0)
    phase = (seconds / 3_600 - BUSIEST_HOUR_UTC) / 24 * 2 * np.pi
    cumulative = np.cumsum(1 + NIGHT_DEPTH * np.cos(phase)) - (1 + NIGHT_DEPTH * np.cos(phase[0]))
    moment = np.interp(rng.random(rows), cumulative / cumulative[-1], seconds * SECOND_US)
    event_us = start_us + np.minimum(moment.astype(np.int64), DAY_US - 1)

    lateness = rng.random(rows)
    days_late = lateness < DAYS_LATE_SHARE
    hours_late = (lateness >= DAYS_LATE_SHARE) & (lateness < DAYS_LATE_SHARE + HOURS_LATE_SHARE)
    shortest = np.where(days_late, DAY_US, np.where(hours_late, NORMAL_DELAY_US, 0))
    longest = np.where(days_late, DAYS_LATE_MAX_US, np.where(hours_late, HOURS_LATE_MAX_US, NORMAL_DELAY_US))
    delay = (shortest + rng.random(rows) * (longest - shortest)).astype(np.int64)
    return event_us, event_us + delay


def _dirty_ids(device: Ints, is_car: Bools, devices: int, rng: np.random.Generator) -> Ints:
    """Codes of `Spellings.device_ids`: lower-case ids, upper-case ids, zero id, empty id."""
    fate = rng.random(len(device))
    missing = (fate < MISSING_ID_SHARE) & ~is_car
    zero = (fate >= MISSING_ID_SHARE) & (fate < MISSING_ID_SHARE + ZERO_ID_SHARE) & ~is_car
    upper = fate >= 1 - UPPER_CASE_ID_SHARE
    code = device + devices * upper.astype(np.int32)
    code[zero] = 2 * devices
    code[missing] = np.where(rng.random(int(missing.sum())) < 0.5, 2 * devices + 1, NO_VALUE)
    return code


def _spell(population: Population, device: Ints, rng: np.random.Generator) -> Ints:
    """Codes of a spelling of each device's name or model; emulators always spell theirs alike."""
    spelling = rng.choice(len(SPELLING_SHARES), len(device), p=SPELLING_SHARES)
    spelling[population.emulator[device]] = 0
    models = MODELS + len(EMULATORS)
    code = population.model[device] * len(SPELLING_SHARES) + spelling
    return _with_missing(code, models * len(SPELLING_SHARES), rng)


def _with_missing(code: Ints, known: int, rng: np.random.Generator) -> Ints:
    """Replaces some values by one of MISSING_SPELLINGS, whose codes follow the `known` ones."""
    code = code.astype(np.int32)
    lost = np.flatnonzero((rng.random(len(code)) < MISSING_VALUE_SHARE) & (code != NO_VALUE))
    code[lost] = known + rng.integers(0, len(MISSING_SPELLINGS), len(lost))
    return code


def _draw_apps(population: Population, device: Ints, favoured: Bools, rng: np.random.Generator) -> Ints:
    """The app that each event is about, whatever the event: an installed one, or the favourite."""
    position = population.installed_sizes[device] * rng.random(len(device)) ** USAGE_SKEW
    installed = population.installed[population.installed_starts[device] + position.astype(np.int64)]
    return np.where(favoured, population.favourite_app[device], installed)


def _draw_campaigns(
    catalogue: Catalogue,
    population: Population,
    device: Ints,
    kind: Ints,
    favoured: Bools,
    rng: np.random.Generator,
) -> Ints:
    """The campaign of each ad event, mostly of an interest that the device has."""
    ads = np.flatnonzero((kind == AD_IMPRESSION) | (kind == AD_CLICK))
    targeted_share = np.where(kind[ads] == AD_CLICK, TARGETED_CLICK_SHARE, TARGETED_IMPRESSION_SHARE)
    targeted = rng.random(len(ads)) < targeted_share
    own = draw_interests(rng, device[ads], population.interest_choice)
    interest = np.where(targeted, own, rng.integers(0, len(INTERESTS), len(ads)))
    campaign = np.full(len(device), NO_VALUE, dtype=np.int32)
    drawn = draw_from(rng, interest, catalogue.campaign_choice)
    campaign[ads] = np.where(favoured[ads], population.favourite_campaign[device[ads]], drawn)
    return _with_missing(campaign, len(catalogue.campaigns), rng)


def _draw_products(
    population: Population, device: Ints, kind: Ints, is_car: Bools, rng: np.random.Generator
) -> Ints:
    """What each purchase bought; code 0 is the car, the others follow."""
    product = np.full(len(device), NO_VALUE, dtype=np.int32)
    bought = np.flatnonzero((kind == PURCHASE) & ~is_car)
    product[bought] = 1 + draw_interests(rng, device[bought], population.interest_choice)
    product[is_car] = 0
    return product
