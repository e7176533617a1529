"""What a person should know of the columns of a table: what they mean, come from, and may show of somebody.

What belongs here: the words for it. Which columns a table has is said beside the step that makes the table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto


class Shown(Enum):
    """What a sample of rows may show of a column; nothing, where nobody says so."""

    NOTHING = auto()
    NUMBERS = auto()
    """A number in place of an id, which tells the ids of one sample apart."""
    HOURS = auto()
    """A time without its minutes."""
    COMMON_VALUES = auto()
    """Values that enough devices share."""
    EVERYTHING = auto()
    """Values that are about nobody: days, counts, probabilities."""


@dataclass(frozen=True)
class TableColumn:
    """One column of a table.

    Attributes:
        type: In Spark's words; None where the files of a day decide.
        description: What its values mean.
        made_from: Table → its columns that decide on the values.
        shown: What a sample may show.
        min_devices: Devices that share a value before it is one of the COMMON_VALUES.
    """

    type: str | None
    description: str
    made_from: Mapping[str, Sequence[str]] = field(default_factory=dict)
    shown: Shown = Shown.NOTHING
    min_devices: int = 1


TableColumns = Mapping[str, TableColumn]
"""Name → column, in the order of the table."""


def device_id(*tables: str) -> TableColumn:
    """The column that says whom a row is about, as the tables before have it."""
    return TableColumn("string", "Whom the row is about.", {t: ["device_id"] for t in tables}, Shown.NUMBERS)


def audience_name() -> TableColumn:
    """The column that tells the audiences of one table apart."""
    return TableColumn("string", "The audience, by its name.", shown=Shown.EVERYTHING)
