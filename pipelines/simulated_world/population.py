"""What each device is, and how likely it buys a car."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.simulated_world.catalogue import Catalogue, build_catalogue, cumulative_rows, draw_from
from pipelines.simulated_world.config import WorldConfig
from pipelines.simulated_world.phases import calibrated_rates, expected_buyer_share
from pipelines.simulated_world.rules import (
    ACTIVITY_EFFECT,
    ACTIVITY_SIGMA,
    EMULATOR_SHARE,
    EMULATORS,
    FAINT_INTEREST,
    FAVOURITE_SHARE,
    FAVOURITE_SHARE_OF_THEMES,
    FAVOURITE_SIGMA,
    GENERIC_APP_SHARE,
    INSTALLED_MAX,
    INSTALLED_MEDIAN,
    INSTALLED_MIN,
    INTERACTION_EFFECTS,
    INTEREST_EFFECTS,
    INTEREST_SHARES,
    INTERESTS,
    MOST_OF_FAVOURITE,
    SETTLED_SHARE,
    SPENDING_EFFECT,
    SPENDING_SIGMA,
    THEMES,
    TIER_AUTO_EFFECT,
    TIER_CHANCES,
    TIER_EFFECT,
    TIERS,
    WEAKEST_STRENGTH,
    Bools,
    Floats,
    Ints,
)

_TRUTH_FIELDS: list["pa.Field[Any]"] = [
    pa.field("device_id", pa.string(), nullable=False),
    pa.field("intent_rate", pa.float64(), nullable=False),
    pa.field("emulator", pa.bool_(), nullable=False),
]
TRUTH_SCHEMA = pa.schema(_TRUTH_FIELDS)
"""One row per device; the id is lower-case, as a pipeline that cleans ids would keep it."""


@dataclass(frozen=True)
class Population:
    """Per-device arrays, of what never changes.

    Attributes:
        ids: Lower-case.
        emulator: Whether it is none that anybody owns.
        interest_choice: Devices x interests, cumulative.
        favourite_share: Share of its usual events that are of its favourite.
        favourite_app: That of its favourite.
        favourite_campaign: Likewise.
        model: Its model.
        interest_rate: Rate at which it would begin to consider a car by its interests and tier alone, up to a
            factor.
        intent_rate: Chance a day that, idle, it begins to consider a car; of an emulator 0.
        activity: Its usual number of events, up to a factor.
        spending: Its usual purchases per event, on average 1.
        installed: The apps of device d at [starts[d], starts[d] + sizes[d]).
        installed_starts: Where each device's begin.
        installed_sizes: How many there are.
    """

    ids: Sequence[str]
    emulator: Bools
    interest_choice: Floats
    favourite_share: Floats
    favourite_app: Ints
    favourite_campaign: Ints
    model: Ints
    interest_rate: Floats
    intent_rate: Floats
    activity: Floats
    spending: Floats
    installed: Ints
    installed_starts: Ints
    installed_sizes: Ints

    def truth(self) -> pa.Table:
        columns: list[pa.Array[Any]] = [
            pa.array(self.ids, type=pa.string()),
            pa.array(self.intent_rate),
            pa.array(self.emulator),
        ]
        return pa.table(columns, schema=TRUTH_SCHEMA)

    def expected_buyer_share(self) -> float:
        """Share of the real devices expected to buy a car within the calibration days."""
        return expected_buyer_share(self.intent_rate[~self.emulator])


def build_devices(config: WorldConfig) -> tuple[Catalogue, Population]:
    """Builds a world as it is before its first day."""
    catalogue_seed, population_seed = np.random.SeedSequence(config.seed).spawn(2)
    catalogue = build_catalogue(np.random.default_rng(catalogue_seed))
    return catalogue, build_population(config, catalogue, np.random.default_rng(population_seed))


def build_population(config: WorldConfig, catalogue: Catalogue, rng: np.random.Generator) -> Population:
    count = config.devices
    raw_ids = rng.bytes(16 * count)
    ids = [str(uuid.UUID(bytes=raw_ids[at : at + 16], version=4)) for at in range(0, len(raw_ids), 16)]

    settled = (rng.random(count) < SETTLED_SHARE).astype(np.int8)
    has = rng.random((count, len(INTERESTS))) < np.array(INTEREST_SHARES)[settled]
    has[np.arange(count), rng.integers(0, len(INTERESTS), count)] |= ~has.any(axis=1)
    strength = has * rng.uniform(WEAKEST_STRENGTH, 1.0, has.shape)
    interest_choice = cumulative_rows(strength + FAINT_INTEREST)
    tier = rng.binomial(TIERS - 1, np.array(TIER_CHANCES)[settled])

    emulator = rng.random(count) < EMULATOR_SHARE
    model = draw_from(rng, tier, catalogue.model_choice)
    emulator_models = len(catalogue.models) - 1 - rng.integers(0, len(EMULATORS), count)
    activity = rng.lognormal(0.0, ACTIVITY_SIGMA, count)

    spending = rng.lognormal(-(SPENDING_SIGMA**2) / 2, SPENDING_SIGMA, count)

    spread = np.sqrt(activity) * rng.lognormal(0.0, 0.15, count)
    sizes = np.clip(np.round(INSTALLED_MEDIAN * spread), INSTALLED_MIN, INSTALLED_MAX).astype(np.int64)
    owners = np.repeat(np.arange(count), sizes)
    tastes = draw_interests(rng, owners, interest_choice)
    tastes[rng.random(len(owners)) < GENERIC_APP_SHARE] = len(INTERESTS)
    likes = interest_choice[:, THEMES - 1]
    favourite = (rng.random(count) * likes >= interest_choice[:, 0]).astype(np.int8)
    favourite_share = FAVOURITE_SHARE + FAVOURITE_SHARE_OF_THEMES * likes
    favourite_share *= rng.lognormal(-(FAVOURITE_SIGMA**2) / 2, FAVOURITE_SIGMA, count)
    interest_rate = _interest_rate(strength, tier)
    relative = interest_rate * activity ** (ACTIVITY_EFFECT / ACTIVITY_SIGMA)
    relative *= spending ** (SPENDING_EFFECT / SPENDING_SIGMA)
    intent_rate = np.zeros(count)
    intent_rate[~emulator] = calibrated_rates(relative[~emulator])
    return Population(
        ids=ids,
        emulator=emulator,
        interest_choice=interest_choice,
        favourite_share=np.minimum(favourite_share, MOST_OF_FAVOURITE),
        favourite_app=draw_from(rng, favourite, catalogue.app_choice),
        favourite_campaign=draw_from(rng, favourite, catalogue.campaign_choice),
        model=np.where(emulator, emulator_models, model),
        interest_rate=np.where(emulator, 0.0, interest_rate),
        intent_rate=intent_rate,
        activity=activity,
        spending=spending,
        installed=draw_from(rng, tastes, catalogue.app_choice),
        installed_starts=np.cumsum(sizes) - sizes,
        installed_sizes=sizes,
    )


def _interest_rate(strength: Floats, tier: Ints) -> Floats:
    """Rate of beginning to consider a car by interests and tier, up to a factor."""
    wealth = tier / (TIERS - 1) * 2 - 1
    column = {interest: strength[:, index] for index, interest in enumerate(INTERESTS)}
    log_rate = strength @ np.array(INTEREST_EFFECTS) + TIER_EFFECT * wealth
    log_rate += TIER_AUTO_EFFECT * wealth * column["auto"]
    for one, other, effect in INTERACTION_EFFECTS:
        log_rate += effect * column[one] * column[other]
    return np.asarray(np.exp(log_rate))


def draw_interests(rng: np.random.Generator, devices: Ints, interest_choice: Floats) -> Ints:
    """One interest per row, by the interests of the row's device."""
    uniform = rng.random(len(devices))
    drawn = np.zeros(len(devices), dtype=np.int8)
    for cumulative in interest_choice.T[:-1]:  # column by column: no rows x interests matrix
        drawn += uniform >= cumulative[devices]
    return drawn
