"""fields.yaml: where events lie, and which of their columns become features."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    model_validator,
)

from pipelines.steps.config.behaviour import BehaviourSection
from pipelines.steps.config.behaviour_names import (
    AMOUNTS,
    BEHAVIOUR,
    DISTINCT,
    PAST,
    is_behaviour,
    weights_column,
)
from pipelines.steps.config.predicates import predicate_columns
from pipelines.steps.config.problems import problem, shown_path
from pipelines.steps.config.signals import SignalSpec
from pipelines.steps.config.values import (
    DAY_PLACEHOLDER,
    FILE_KEY,
    NAME_KEY,
    WRITTEN_PATH_KEY,
    AllOrColumns,
    AnyNumber,
    Column,
    Day,
    FirstDay,
    Identifier,
    Normalizer,
    NumberSql,
    OneOrMore,
    Owner,
    Predicate,
    Section,
    expanded_path,
    is_identifier,
    require_one,
)

FIELDS_FILE = "fields.yaml"

EVENT_COLUMNS = ("device_id", "event_time", "day")
"""Columns that `app_events` adds; filters and labels may use them beside the raw ones."""

RESERVED_FIELD_NAMES = frozenset(
    {
        *(*EVENT_COLUMNS, "as_of", "events", "first_event_time", "last_event_time", "hours", "signal"),
        *("label", "split", "probability"),
    }
)
"""Columns that stand beside fields and measures in some table of the chain."""


MIN_DEVICES = 5
"""Devices on which a token must be seen before it is stored, unless the field says otherwise."""


class EventSource(Section):
    """The place of the raw events, and how to read them.

    Attributes:
        path: A Parquet file or a folder of them, on this machine. Relative to the working directory;
            `${VARIABLE}` and `${VARIABLE:-default}` are taken from the environment; with `{day}`, one
            folder or file per day of ARRIVAL. Read back, it is absolute.
        written_path: The path as the file has it, for messages: a variable may hold a secret.
        id_column: Whom a row is about: a device, a customer.
        time_column: When it happened, a timestamp in UTC.
        arrival_column: When it was received, where that is known.
        max_late_hours: An event that arrives later than this after it happened is rejected.
        id_normalizer: `lower` folds case, `integer` turns `17850.0` into `17850`.
        deduplicate_by: Which rows are one event: `all`, rows that are equal in every column; or a list of
            raw columns, then rows that are equal in these, id and time. Of those the first in a fixed
            order is kept.
        filters: Name → Spark SQL condition that a kept row satisfies. Where the condition is null the
            row is rejected, too, for the reason `filter:<name>`.
        first_day: The first day there is. Or `oldest`: the oldest that `{day}` of the path is there for, and
            yesterday as long as there is none.
        last_day: The last day there is; leave it out where events keep coming.
    """

    path: Annotated[str, Field(min_length=1), AfterValidator(expanded_path)]
    written_path: str = Field(default="", validation_alias=WRITTEN_PATH_KEY)
    id_column: Column
    time_column: Column
    arrival_column: Column | None = None
    max_late_hours: int = Field(default=2, ge=0, le=23)
    id_normalizer: Literal["none", "lower", "integer"] = "none"
    deduplicate_by: AllOrColumns = "all"
    filters: dict[Identifier, Predicate] = Field(default_factory=dict)
    first_day: FirstDay
    last_day: Day | None = None

    @model_validator(mode="before")
    @classmethod
    def _remembers_the_path_as_written(cls, section: Any) -> Any:
        if isinstance(section, Mapping) and isinstance(path := section.get("path"), str):
            return {**section, WRITTEN_PATH_KEY: path}
        return section

    def shown(self, path: Path) -> str:
        """A path at or below the source's, in the words of the file."""
        if "${" not in self.written_path:
            return shown_path(path)
        day = "([0-9]{4}-[0-9]{2}-[0-9]{2})"
        match = re.match(re.escape(self.path).replace(re.escape(DAY_PLACEHOLDER), day), str(path))
        if match is None:
            return self.written_path
        of_day = self.written_path.replace(DAY_PLACEHOLDER, match[1] if match.groups() else DAY_PLACEHOLDER)
        return of_day + str(path)[match.end() :]

    @model_validator(mode="after")
    def _days_are_in_order(self) -> Self:
        if self.last_day is not None and self.last_day < self.first_day:
            raise problem(
                f"a day not before first_day, {self.first_day}",
                "exchange the two days, or leave last_day out",
                found=self.last_day,
                at="last_day",
            )
        return self


class FieldSpec(Section):
    """One field: a raw column, made into tokens.

    Attributes:
        name: The key of the mapping.
        column: The raw column.
        kind: `single` keeps the newest value of the window, `multi` all of them.
        normalizer: How a raw value becomes tokens; see `pipelines.steps.features.normalize`.
        min_devices: A token seen on fewer devices is never stored: it could tell who someone is.
        max_vocabulary: Tokens kept at most, those on most devices first.
        max_length: Tokens kept per device at most; 1 for a single-valued field.
    """

    name: Identifier = Field(validation_alias=NAME_KEY)
    column: Column
    kind: Literal["single", "multi"]
    normalizer: Normalizer
    min_devices: int = Field(default=MIN_DEVICES, ge=1)
    max_vocabulary: int = Field(default=50_000, ge=1)
    max_length: int = Field(default=100, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _single_holds_one_token(cls, section: Any) -> Any:
        if not isinstance(section, Mapping) or section.get("kind") != "single":
            return section
        length = section.get("max_length", 1)
        if length != 1 or isinstance(length, bool):
            raise problem(
                "1, as the field is single-valued",
                "leave max_length out, or make the field `kind: multi`",
                found=length,
                at="max_length",
            )
        return {**section, "max_length": 1}


class MeasureSpec(Section):
    """One measure: a number of an event, summed up.

    Attributes:
        name: The key of the mapping.
        column: A raw column of numbers.
        sql: Or a Spark SQL expression over the columns of one event that is a number.
        max: Whether the largest amount is a behaviour, too, beside sum and mean.
    """

    name: Identifier = Field(validation_alias=NAME_KEY)
    column: Column | None = None
    sql: NumberSql | None = None
    max: bool = False

    @model_validator(mode="after")
    def _says_one(self) -> Self:
        require_one(self, ("column", "sql"))
        return self

    @property
    def key(self) -> str:
        """The place in fields.yaml that says what the number is."""
        return f"measures.{self.name}.{'sql' if self.column is None else 'column'}"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of an event that it takes."""
        return (self.column,) if self.column is not None else predicate_columns(self.sql or "")


def _named(kind: str, example: str) -> Callable[[object, ValidationInfo], object]:
    """Turns a mapping of the file into a list in its order, each section with its name."""

    def named(sections: object, info: ValidationInfo) -> object:
        if info.context is None:
            return sections
        if not isinstance(sections, Mapping) or not sections:
            raise problem(
                f"a mapping from {kind} names to {kind}s, at least one", f"add a {kind}, such as `{example}:`"
            )
        with_names = []
        for name, section in sections.items():
            if not is_identifier(name) or name in RESERVED_FIELD_NAMES or is_behaviour(name):
                raise problem(
                    f"a lower_snake name (a-z, 0-9, _) that does not end in {DISTINCT}, {AMOUNTS} or {PAST}, "
                    "and none of " + ", ".join(sorted({*RESERVED_FIELD_NAMES, BEHAVIOUR})),
                    f"rename the {kind}",
                    found=name,
                    at=str(name),
                )
            # The section's class says what is wrong with one that is no mapping.
            with_names.append({**section, NAME_KEY: name} if isinstance(section, Mapping) else section)
        return with_names

    return named


class FieldsConfig(Section):
    """fields.yaml: the events, and what of them becomes features, for all audiences.

    Attributes:
        file: Where it was read from.
        owner: Whom to ask: an e-mail address, or `team:` and a name.
        events: The source.
        window_days: Look-back of every feature, the as-of day included.
        fields: In the order of the file. In YAML a mapping from name to field.
        measures: Numbers of an event to sum up, likewise.
        signals: Conditions over one event to count, likewise; each audience's label is one besides.
        behaviour: What of how often, how lately and how much is left out.
    """

    file: Path = Field(validation_alias=FILE_KEY)
    owner: Owner | None = None
    events: EventSource
    window_days: int = Field(ge=1, le=365)
    fields: Annotated[OneOrMore[FieldSpec], BeforeValidator(_named("field", "apps"))]
    measures: Annotated[AnyNumber[MeasureSpec], BeforeValidator(_named("measure", "revenue"))] = ()
    signals: Annotated[AnyNumber[SignalSpec], BeforeValidator(_named("signal", "returns"))] = ()
    behaviour: BehaviourSection = BehaviourSection()

    @model_validator(mode="after")
    def _ids_are_no_features(self) -> Self:
        used = [("field", f"fields.{field.name}.column", field.column) for field in self.fields]
        used += [("measure", measure.key, column) for measure in self.measures for column in measure.columns]
        ids = {self.events.id_column.lower()}
        for kind, key, column in used:
            # Spark compares names without regard to case; in an expression device_id means the id.
            if column.lower() in (ids | {EVENT_COLUMNS[0]} if key.endswith(".sql") else ids):
                raise problem(
                    "a column other than events.id_column: an id is never a feature",
                    f"take the {kind} out, or name the column you meant",
                    found=column,
                    at=key,
                )
        return self

    @model_validator(mode="after")
    def _names_leave_room_for_weights(self) -> Self:
        """Beside the tokens of a field stands what they weigh."""
        taken = {weights_column(field.name): field.name for field in self.fields}
        for field in self.fields:
            if field.name in taken:
                raise problem(
                    f"a name other than that of the column of weights of {taken[field.name]}",
                    "rename the field",
                    found=field.name,
                    at=f"fields.{field.name}",
                )
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        """Fields and measures are columns of one table, and behaviour is named by measures and signals."""
        places: dict[str, str] = {}
        for kind in ("fields", "measures", "signals"):
            for section in getattr(self, kind):
                other = places.setdefault(section.name, kind)
                if other != kind:
                    raise problem(
                        "a name of its own for each field, measure and signal",
                        "rename one of the two",
                        found=f"{section.name}, as in {other}.{section.name}",
                        at=f"{kind}.{section.name}",
                    )
        return self
