"""The road to a car: the phases of a device, how it passes from one to another, and the chances that follow.

A device is idle, considers a car, shops for one, is sated after buying one, or is away, one of these a day.
Only the rate at which idle devices begin to consider a car differs between devices. So the chance of a
purchase within so many days, from any phase on, is known exactly.
"""

import numpy as np
from scipy.optimize import brentq

from pipelines.simulated_world.rules import (
    AWAY_TO_IDLE,
    BUYER_SHARE,
    CALIBRATION_DAYS,
    CONSIDERING_TO_IDLE,
    CONSIDERING_TO_SHOPPING,
    HIGHEST_INTENT_RATE,
    IDLE_TO_AWAY,
    IMPULSE_SHARE,
    SATED_TO_IDLE,
    SHOPPING_BUYS,
    SHOPPING_TO_IDLE,
    Floats,
)

IDLE, CONSIDERING, SHOPPING, SATED, AWAY = range(5)
PHASES = 5
_MOVES = (
    (IDLE, AWAY, IDLE_TO_AWAY),
    (CONSIDERING, SHOPPING, CONSIDERING_TO_SHOPPING),
    (CONSIDERING, IDLE, CONSIDERING_TO_IDLE),
    (SHOPPING, IDLE, SHOPPING_TO_IDLE),
    (SATED, IDLE, SATED_TO_IDLE),
    (AWAY, IDLE, AWAY_TO_IDLE),
)
"""From a phase to another, with what chance a day; idle devices begin to consider at their own rate."""


def _nights() -> Floats:
    """Phases x phases: chances of the next day's phase; no car was bought, none is considered anew."""
    chances = np.eye(PHASES)
    for before, after, chance in _MOVES:
        chances[before, before] -= chance
        chances[before, after] += chance
    return chances


_NIGHTS = _nights()


def buying_chances(intent_rate: Floats) -> Floats:
    """Devices x phases: chance of buying a car on a day spent in the phase."""
    chances = np.zeros((len(intent_rate), PHASES))
    chances[:, IDLE] = IMPULSE_SHARE * intent_rate
    chances[:, SHOPPING] = np.where(intent_rate > 0, SHOPPING_BUYS, 0.0)
    return chances


def phases_after_night(phase: np.ndarray, intent_rate: Floats, uniform: Floats) -> np.ndarray:
    """The next day's phase of devices that bought no car today, by a uniform number of each."""
    chances = _NIGHTS[phase]
    starts = np.where(phase == IDLE, intent_rate, 0.0)
    chances[:, IDLE] -= starts
    chances[:, CONSIDERING] += starts
    passed = uniform[:, None] >= np.cumsum(chances, axis=1)[:, :-1]
    return np.asarray(passed.sum(axis=1), dtype=np.int8)


def expected_after_night(shares: Floats, intent_rate: Floats) -> Floats:
    """Devices x phases: the next day's chances of each phase, from today's, where no car was bought."""
    after = shares @ _NIGHTS
    starts = shares[:, IDLE] * intent_rate
    after[:, IDLE] -= starts
    after[:, CONSIDERING] += starts
    return np.asarray(after)


def usual_shares(intent_rate: Floats) -> Floats:
    """Devices x phases: the share of its days that a device spends in each phase in the long run."""
    buys, stays = buying_chances(intent_rate), 1 - np.diag(_NIGHTS)
    leaves = buys + (1 - buys) * stays  # of idle, without those that begin to consider: not needed below
    shares = np.ones_like(buys)
    acts = 1 - buys[:, IDLE]
    shares[:, AWAY] = acts * IDLE_TO_AWAY / AWAY_TO_IDLE
    shares[:, CONSIDERING] = acts * intent_rate / leaves[:, CONSIDERING]
    shares[:, SHOPPING] = shares[:, CONSIDERING] * CONSIDERING_TO_SHOPPING / leaves[:, SHOPPING]
    bought = shares[:, IDLE] * buys[:, IDLE] + shares[:, SHOPPING] * buys[:, SHOPPING]
    shares[:, SATED] = bought / SATED_TO_IDLE
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def purchase_chances(intent_rate: Floats, days: int) -> Floats:
    """Devices x phases: chance of at least one car within so many days, the first of them in the phase."""
    buys = buying_chances(intent_rate)
    chances = np.zeros_like(buys)
    for _ in range(days):
        later = chances @ _NIGHTS.T
        later[:, IDLE] += intent_rate * (chances[:, CONSIDERING] - chances[:, IDLE])
        chances = buys + (1 - buys) * later
    return chances


def expected_buyer_share(intent_rate: Floats, days: int = CALIBRATION_DAYS) -> float:
    """Share of the devices expected to buy a car within so many days, of nothing else known of them."""
    return float((usual_shares(intent_rate) * purchase_chances(intent_rate, days)).sum(axis=1).mean())


def calibrated_rates(relative: Floats) -> Floats:
    """Intent rates in the proportions given, capped, with which BUYER_SHARE of the devices buy."""

    def rates(log_scale: float) -> Floats:
        return np.asarray(np.minimum(relative * np.exp(log_scale), HIGHEST_INTENT_RATE))

    centre = -float(np.log(relative.mean()))
    low, high = centre + np.log(1e-5), centre + np.log(0.1)
    return rates(brentq(lambda scale: expected_buyer_share(rates(scale)) - BUYER_SHARE, low, high))
