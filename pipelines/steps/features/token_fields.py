"""Fields that tokens stand in: those of fields.yaml, and those that tell of behaviour."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipelines.steps.config.audience import Audience
from pipelines.steps.config.behaviour_names import AMOUNTS, DISTINCT, PAST
from pipelines.steps.config.fields import MIN_DEVICES
from pipelines.steps.config.project import Project
from pipelines.steps.config.settings import token_settings
from pipelines.steps.config.signals import Signal
from pipelines.steps.features.behaviour_codes import CODES
from pipelines.steps.features.behaviours import (
    Behaviour,
    device_behaviours,
    layout_of,
    signal_behaviours,
)
from pipelines.steps.table_columns import Shown, TableColumn


class TokenField(Protocol):
    """A field of tokens, as fitting a vocabulary asks for it."""

    @property
    def name(self) -> str:
        """The column of tokens."""

    @property
    def max_length(self) -> int:
        """Tokens of a row at most."""

    @property
    def min_devices(self) -> int:
        """Devices that must share a token."""

    @property
    def max_vocabulary(self) -> int:
        """Tokens kept at most."""


@dataclass(frozen=True)
class BehaviourField:
    """A field of behaviour: in each row a token of each of these, in order.

    Attributes:
        name: The column of tokens.
        behaviours: What they tell.
        signal: Of which signal; None where they tell of all events.
    """

    name: str
    behaviours: tuple[Behaviour, ...]
    signal: Signal | None = None
    min_devices: int = field(default=MIN_DEVICES, init=False)

    @property
    def max_length(self) -> int:
        return len(self.behaviours)

    @property
    def max_vocabulary(self) -> int:
        return len(self.behaviours) * CODES

    @property
    def column(self) -> TableColumn:
        """The column of `feature_tokens`."""
        sources = {"daily_fields": ["device_id", "day", "events", "hours", "last_event_time"]}
        told = "How often, how lately and how regularly the device was active"
        if self.name.endswith(DISTINCT):
            name = self.name.removesuffix(DISTINCT)
            sources, told = {"daily_fields": [name]}, f"How many distinct values `{name}` had"
        elif self.name.endswith(AMOUNTS):
            name = self.name.removesuffix(AMOUNTS)
            sources, told = {"daily_fields": [name]}, f"How much `{name}` came to"
        elif self.signal is not None:
            sources = {f"signals/{self.signal.name}": ["device_id", "day", "events", "last_event_time"]}
            what = f"The past of `{self.signal.name}`"
            told = what + (": the audience's own label" if self.signal.audience else "")
        return TableColumn(
            "array<string>",
            f"{told}, as `name=number` rounded towards 0; docs/features.md lists the names.",
            sources,
            Shown.COMMON_VALUES,
            self.min_devices,
        )


def behaviour_fields(project: Project, signals: Sequence[Signal]) -> tuple[BehaviourField, ...]:
    """The fields that tell of behaviour and of these signals' pasts; none that would always be empty."""
    layout = layout_of(project.fields)
    by_name: dict[str, list[Behaviour]] = {}
    for behaviour in device_behaviours(layout):
        by_name.setdefault(behaviour.field, []).append(behaviour)
    own = [BehaviourField(name, tuple(told)) for name, told in by_name.items()]
    of_signals = tuple(signal_behaviours(layout))
    pasts = [BehaviourField(f"{signal.name}{PAST}", of_signals, signal) for signal in signals if of_signals]
    return (*own, *pasts)


def told_signals(project: Project, signals: Sequence[Signal]) -> tuple[Signal, ...]:
    """Those whose past is told: none where the groups of behaviour that tell of it are left out."""
    return tuple(field.signal for field in behaviour_fields(project, signals) if field.signal)


def settings_of_tokens(project: Project, signals: Sequence[Signal]) -> dict[str, Any]:
    """The keys that decide on the rows of `feature_tokens`, as far as they tell of these signals."""
    return token_settings(project.fields, told_signals(project, signals))


def token_fields(project: Project) -> tuple[TokenField, ...]:
    """All fields of `feature_tokens`, in order."""
    return (*project.fields.fields, *behaviour_fields(project, project.signals))


def audience_fields(project: Project, audience: Audience) -> tuple[TokenField, ...]:
    """The fields that an audience's models see: those of another audience come and go with it."""
    return (*project.fields.fields, *behaviour_fields(project, project.signals_of(audience)))


def names_of(fields: Iterable[TokenField]) -> list[str]:
    """Their names, in order."""
    return [each.name for each in fields]
