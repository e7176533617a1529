"""What each device is, and how likely it buys a car."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.simulated_world.catalogue import Catalogue, cumulative_rows, draw_from
from pipelines.simulated_world.config import WorldConfig
from pipelines.simulated_world.rules import (
    ACTIVITY_SIGMA,
    BUYER_SHARE,
    CALIBRATION_DAYS,
    EMULATOR_SHARE,
    EMULATORS,
    FAINT_INTEREST,
    GENERIC_APP_SHARE,
    INSTALLED_MAX,
    INSTALLED_MEDIAN,
    INSTALLED_MIN,
    INTERACTION_EFFECTS,
    INTEREST_EFFECTS,
    INTEREST_SHARES,
    INTERESTS,
    SETTLED_SHARE,
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
    pa.field("daily_hazard", pa.float64(), nullable=False),
    pa.field("emulator", pa.bool_(), nullable=False),
]
TRUTH_SCHEMA = pa.schema(_TRUTH_FIELDS)
"""One row per device; the id is lower-case, as a pipeline that cleans ids would keep it."""


def propensity(daily_hazard: Floats, horizon_days: float) -> Floats:
    """Probability of at least one car purchase within the horizon, from any day on."""
    return np.asarray(-np.expm1(-np.asarray(daily_hazard, dtype=np.float64) * horizon_days))


@dataclass(frozen=True)
class Population:
    """Per-device arrays; `installed` holds the apps of device d at [starts[d], starts[d] + sizes[d])."""

    ids: Sequence[str]
    emulator: Bools
    interest_choice: Floats
    model: Ints
    daily_hazard: Floats
    activity: Floats
    installed: Ints
    installed_starts: Ints
    installed_sizes: Ints

    def truth(self) -> pa.Table:
        columns: list[pa.Array[Any]] = [
            pa.array(self.ids, type=pa.string()),
            pa.array(self.daily_hazard),
            pa.array(self.emulator),
        ]
        return pa.table(columns, schema=TRUTH_SCHEMA)

    def expected_buyer_share(self) -> float:
        return float(propensity(self.daily_hazard[~self.emulator], CALIBRATION_DAYS).mean())


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

    spread = np.sqrt(activity) * rng.lognormal(0.0, 0.15, count)
    sizes = np.clip(np.round(INSTALLED_MEDIAN * spread), INSTALLED_MIN, INSTALLED_MAX).astype(np.int64)
    owners = np.repeat(np.arange(count), sizes)
    tastes = draw_interests(rng, owners, interest_choice)
    tastes[rng.random(len(owners)) < GENERIC_APP_SHARE] = len(INTERESTS)
    return Population(
        ids=ids,
        emulator=emulator,
        interest_choice=interest_choice,
        model=np.where(emulator, emulator_models, model),
        daily_hazard=_daily_hazard(strength, tier, emulator),
        activity=activity,
        installed=draw_from(rng, tastes, catalogue.app_choice),
        installed_starts=np.cumsum(sizes) - sizes,
        installed_sizes=sizes,
    )


def _daily_hazard(strength: Floats, tier: Ints, emulator: Bools) -> Floats:
    """Constant daily intensity of car purchases; no emulator buys a car."""
    wealth = tier / (TIERS - 1) * 2 - 1
    column = {interest: strength[:, index] for index, interest in enumerate(INTERESTS)}
    log_hazard = strength @ np.array(INTEREST_EFFECTS) + TIER_EFFECT * wealth
    log_hazard += TIER_AUTO_EFFECT * wealth * column["auto"]
    for one, other, effect in INTERACTION_EFFECTS:
        log_hazard += effect * column[one] * column[other]
    relative = np.exp(log_hazard)
    low, high = -30.0, 10.0  # far below and above any intercept that can come out
    for _ in range(60):  # halvings: down to the last bit of a float
        middle = (low + high) / 2
        share = propensity(relative[~emulator] * np.exp(middle), CALIBRATION_DAYS).mean()
        low, high = (middle, high) if share < BUYER_SHARE else (low, middle)
    return np.asarray(np.where(emulator, 0.0, relative * np.exp(low)))


def draw_interests(rng: np.random.Generator, devices: Ints, interest_choice: Floats) -> Ints:
    """One interest per row, by the interests of the row's device."""
    uniform = rng.random(len(devices))
    drawn = np.zeros(len(devices), dtype=np.int8)
    for cumulative in interest_choice.T[:-1]:  # column by column: no rows x interests matrix
        drawn += uniform >= cumulative[devices]
    return drawn
