"""What world is asked for, and what can be."""

from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime

import numpy as np

from pipelines.simulated_world.rules import SECOND_US
from pipelines.steps.errors import AudienceFactoryError

GENERATOR_VERSION = 2
"""Raise it with every change that alters the files of some seed: worlds on disk are then rebuilt."""

MIN_DEVICES = 50
MAX_DAYS = 3_650
MAX_EVENTS = 100_000_000
MIN_EVENTS_PER_DEVICE_DAY = 0.005
"""Car purchases alone take about 0.0008; below this they would crowd out the evidence."""
FIRST_YEAR, LAST_YEAR = 1990, 2100


class SimulationError(AudienceFactoryError):
    """A world is impossible, or cannot be written where it was asked for."""


@dataclass(frozen=True)
class WorldConfig:
    """Everything that decides a world's files.

    Attributes:
        devices: Devices, emulators included.
        days: UTC days of arrival, from `first_day` on.
        events: Raw rows in all, dirt and duplicates included.
        first_day: First day of arrival.
        seed: Any number from 0 on; the same seed gives the same bytes.

    Raises:
        SimulationError: The numbers make no world.
    """

    devices: int = 20_000
    days: int = 240
    events: int = 3_000_000
    first_day: date = date(2025, 1, 1)
    seed: int = 7

    def __post_init__(self) -> None:
        fewest_events = int(np.ceil(self.devices * self.days * MIN_EVENTS_PER_DEVICE_DAY))
        _require("devices", self.devices, MIN_DEVICES, MAX_EVENTS)
        _require("days", self.days, 1, MAX_DAYS)
        _require("events", self.events, fewest_events, MAX_EVENTS)
        _require("year of the first day", self.first_day.year, FIRST_YEAR, LAST_YEAR)
        _require("seed", self.seed, 0, 2**63 - 1)

    def as_json(self) -> dict[str, object]:
        """What world.json holds: the parameters and the generator's version."""
        parameters = asdict(self) | {"first_day": self.first_day.isoformat()}
        return {"generator_version": GENERATOR_VERSION, "config": parameters}

    @property
    def start_us(self) -> int:
        """First moment of the world, in microseconds since 1970."""
        first = datetime(self.first_day.year, self.first_day.month, self.first_day.day, tzinfo=UTC)
        return int(first.timestamp()) * SECOND_US


def _require(name: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise SimulationError(
            f"no world can be simulated with these {name}",
            found=value,
            expected=f"{lowest} to {highest}",
            remedy=f"change {name}, or the numbers it depends on",
        )
