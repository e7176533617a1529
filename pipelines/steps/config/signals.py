"""Conditions over one event, as a label or a signal says them, and the signals of a project."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from pipelines.steps.config.values import (
    NAME_KEY,
    Column,
    Identifier,
    Predicate,
    Section,
    Written,
    require_one,
)

SIGNALS = "signals"
"""What the keys of the signals' assets begin with."""
SIGNAL_PLACES = ("signals.{}", "{}: label")
"""Where a signal's condition is said: in fields.yaml, or as an audience's label."""


class EventCondition(Section):
    """What an event must be: values that its columns have, or a condition.

    Attributes:
        event: Column → value as it is written; all must be equal. What the text means depends on the
            column's type; see `pipelines.steps.config.label_values`.
        where: Or a Spark SQL condition over the columns of one event; see
            `pipelines.steps.config.predicates`.
    """

    event: Annotated[dict[Column, Written], Field(min_length=1)] | None = None
    where: Predicate | None = None

    @model_validator(mode="after")
    def _says_one(self) -> Self:
        require_one(self, ("event", "where"))
        return self


class SignalSpec(EventCondition):
    """One signal of fields.yaml: events that a device's past is told by.

    Attributes:
        name: The key of the mapping.
    """

    name: Identifier = Field(validation_alias=NAME_KEY)


@dataclass(frozen=True)
class Signal:
    """A condition whose past is kept by device and day: one of fields.yaml, or an audience's label.

    Attributes:
        name: Of the signal; an audience's own bears the audience's name.
        condition: What an event must be.
        file: The file that says so.
        key: The place in the file.
        audience: Whose label it is; empty for one of fields.yaml.
    """

    name: str
    condition: EventCondition
    file: Path
    key: str
    audience: str = ""

    @property
    def setting(self) -> str:
        """The name under which a partition remembers the condition; a file can be renamed."""
        declared, label = SIGNAL_PLACES
        return (label if self.audience else declared).format(self.name)
