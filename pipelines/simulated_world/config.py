"""What world is asked for, and what can be."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from math import ceil
from typing import Self

from pipelines.simulated_world.rules import SECOND_US
from pipelines.steps.errors import AudienceFactoryError

GENERATOR_VERSION = 4
"""Raise it with every change that alters the files of some seed: worlds on disk are then rebuilt."""

MIN_DEVICES = 50
MAX_DAYS = 3_650
MAX_EVENTS = 100_000_000
MIN_EVENTS_PER_DEVICE_DAY = 0.005
"""Car purchases alone take about 0.0008; below this they would crowd out the evidence."""
FIRST_YEAR, LAST_YEAR = 1990, 2100
DAYS = 240
"""What the demo needs: a window, two as-of days a month apart, their horizon, and that of the scored day."""
WEEK_DAYS = 7


class SimulationError(AudienceFactoryError):
    """A world is impossible, or cannot be written where it was asked for."""


@dataclass(frozen=True)
class WorldConfig:
    """Everything that decides a world's files.

    Attributes:
        devices: Devices, emulators included.
        events_per_day: Raw rows of a day on average, dirt and duplicates included.
        first_day: First day of arrival, UTC.
        days: Days that have happened, from `first_day` on; a world of more days begins with the same ones.
        seed: Any number from 0 on; the same seed gives the same bytes.

    Raises:
        SimulationError: The numbers make no world.
    """

    devices: int = 20_000
    events_per_day: int = 12_500
    first_day: date = date(2025, 1, 1)
    days: int = DAYS
    seed: int = 7

    def __post_init__(self) -> None:
        fewest_events = ceil(self.devices * MIN_EVENTS_PER_DEVICE_DAY)
        _require("devices", self.devices, MIN_DEVICES, MAX_EVENTS)
        _require("days", self.days, 1, MAX_DAYS)
        _require("events per day", self.events_per_day, fewest_events, MAX_EVENTS // self.days)
        _require("year of the first day", self.first_day.year, FIRST_YEAR, LAST_YEAR)
        _require("seed", self.seed, 0, 2**63 - 1)

    @classmethod
    def from_json(cls, stored: Mapping[str, object]) -> Self | None:
        """The world that world.json tells of; None where another version of the generator made it."""
        parameters = stored.get("config")
        if stored.get("generator_version") != GENERATOR_VERSION or not isinstance(parameters, dict):
            return None
        return cls(**parameters | {"first_day": date.fromisoformat(parameters["first_day"])})

    def as_json(self) -> dict[str, object]:
        """What world.json holds: the parameters and the generator's version."""
        parameters = asdict(self) | {"first_day": self.first_day.isoformat()}
        return {"generator_version": GENERATOR_VERSION, "config": parameters}

    @property
    def last_day(self) -> date:
        """The last day that has happened."""
        return self.day(self.days - 1)

    def day(self, index: int) -> date:
        """The day of an index, the first day's being 0."""
        return self.first_day + timedelta(days=index)

    def start_us(self, index: int) -> int:
        """First moment of the day of an index, in microseconds since 1970."""
        day = self.day(index)
        return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * SECOND_US

    def until(self, last_day: date) -> Self:
        """The same world, gone on until a day.

        Raises:
            SimulationError: The day lies before the world's first.
        """
        if last_day < self.first_day:
            raise SimulationError(
                "no world ends before it begins",
                found=f"last day {last_day}",
                expected=f"a day not before the first one, {self.first_day}",
                remedy="name a later day",
            )
        return replace(self, days=(last_day - self.first_day).days + 1)

    def is_part_of(self, other: "WorldConfig") -> bool:
        """Whether the other world is this one, or what it goes on to."""
        return self.days <= other.days and replace(self, days=other.days) == other


def first_day_for(last_day: date) -> date:
    """Where a new world begins that is to end on a day.

    So many whole weeks from the default that DAYS to DAYS + 6 days happen: a seed's world has the same
    content on the same weekdays whenever it is made.
    """
    latest = last_day - timedelta(days=DAYS - 1)
    return latest - timedelta(days=(latest - WorldConfig.first_day).days % WEEK_DAYS)


def _require(name: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise SimulationError(
            f"no world can be simulated with these {name}",
            found=value,
            expected=f"{lowest} to {highest}",
            remedy=f"change {name}, or the numbers it depends on",
        )
