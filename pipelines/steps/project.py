"""What a user writes: fields.yaml and one YAML file per audience, read and checked before any JVM starts.

The models here are the reference of both files: one attribute a key. What is wrong ends in one
`ConfigError` that names the file, the key, the value found, what is expected and the remedy.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import sqlglot
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    model_validator,
)
from sqlglot import expressions as exp
from sqlglot.errors import SqlglotError

from pipelines.steps.normalize import NORMALIZERS
from pipelines.steps.project_errors import closest, problem, unknown_key

FIELDS_FILE = "fields.yaml"
DAY_PLACEHOLDER = "{day}"

EVENT_COLUMNS = ("device_id", "event_time", "day")
"""Columns that `app_events` adds; filters and labels may use them beside the raw ones."""

RESERVED_FIELD_NAMES = frozenset(
    {*EVENT_COLUMNS, "as_of", "events", "last_event_time", "label", "split", "probability"}
)
"""Columns that stand beside the fields in some table of the chain."""

_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*")
ISO_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^{}]*))?\}")

# What a section is told beside its own keys, under names that nobody writes.
FILE_KEY, NAME_KEY = "(file)", "(name)"
_SET_BY_LOADER = frozenset({FILE_KEY, NAME_KEY})


# --- the types of single values -------------------------------------------------------------------


def _identifier(name: str) -> str:
    if _IDENTIFIER.fullmatch(name):
        return name
    proposal = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_")
    remedy = f"write it as `{proposal}`" if _IDENTIFIER.fullmatch(proposal) else "choose another name"
    raise problem("lower_snake: a letter a-z, then letters a-z, digits and _", remedy)


def _day(value: object) -> object:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    if isinstance(value, str) and ISO_DAY.fullmatch(value):
        try:
            return date.fromisoformat(value)
        except ValueError as error:
            raise problem("a day of the calendar", f"correct the day: {error}") from error
    raise problem("a day such as 2025-01-31", "write the day as YYYY-MM-DD")


def _predicate(sql: str) -> str:
    try:
        columns = predicate_columns(sql)
    except SqlglotError as error:
        raise problem(
            "a Spark SQL condition over one event", f"correct the SQL: {_sql_message(error)}"
        ) from error
    if not columns:
        raise problem("a Spark SQL condition that uses a column", "name a column of the events in it")
    return sql


def _sql_message(error: SqlglotError) -> str:
    details = getattr(error, "errors", None)
    if not details:
        return str(error).splitlines()[0]
    # sqlglot names the missing part by its Python class; a user knows it by its keyword.
    description = re.sub(r"<class '[\w.]*\.(\w+)'>", r"\1", details[0]["description"])
    return f"{description} (line {details[0]['line']}, column {details[0]['col']})"


def _scalar(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        raise problem("a finite number", "write a number")
    if isinstance(value, str | int | float):  # bool is an int
        return value
    raise problem("text, a number, true or false", "give the one value that the column must have")


def _all_or_columns(value: object) -> object:
    is_list = isinstance(value, list | tuple) and value and all(c and isinstance(c, str) for c in value)
    if value == "all" or is_list:
        return value
    raise problem(
        "`all`, or a list of raw columns",
        "write [event_name, session_id] to tell events apart by these columns, id and time",
    )


def _normalizer(name: str) -> str:
    if name in NORMALIZERS:
        return name
    raise problem(f"one of {', '.join(NORMALIZERS)}", closest(name, NORMALIZERS) or "use one of these")


def _location(path: str) -> str:
    """Expands variables and makes the path absolute, so that it means the same in every process."""
    expanded = _VARIABLE.sub(_variable_value, path)
    if "://" in expanded:
        raise problem("a local path", "mount the store, or copy the events to a local folder", found=expanded)
    if set("{}$") & set(expanded.replace(DAY_PLACEHOLDER, "")):
        raise problem(
            f"no placeholder but {DAY_PLACEHOLDER} and ${{VARIABLE}}", "correct the braces", found=expanded
        )
    return str(Path.cwd() / Path(expanded).expanduser())


def _variable_value(match: re.Match[str]) -> str:
    variable, default = match.groups()
    value = os.environ.get(variable) or default
    if not value:
        raise problem(
            f"the environment variable {variable} to be set",
            f"set it in the shell or in .env ({variable}=<where the events lie>), "
            f"or give a default: ${{{variable}:-<path>}}",
        )
    return value


Identifier = Annotated[str, AfterValidator(_identifier)]
Column = Annotated[str, Field(min_length=1)]
Day = Annotated[date, BeforeValidator(_day)]
Predicate = Annotated[str, AfterValidator(_predicate)]
Scalar = Annotated[str | int | float | bool, BeforeValidator(_scalar)]
Share = Annotated[float, Field(gt=0, lt=1)]
T = TypeVar("T")
OneOrMore = Annotated[tuple[T, ...], Field(min_length=1, strict=False)]
"""A YAML list; strict mode would want a tuple, which YAML does not have."""


# --- the sections of the files --------------------------------------------------------------------


class _Section(BaseModel):
    """One mapping of a file: immutable, and no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)

    @classmethod
    def keys(cls) -> list[str]:
        """What a user may write, in order."""
        names = [str(field.validation_alias or name) for name, field in cls.model_fields.items()]
        return [name for name in names if name not in _SET_BY_LOADER]

    @model_validator(mode="before")
    @classmethod
    def _has_known_keys_only(cls, section: Any, info: ValidationInfo) -> Any:
        if info.context is None:  # made by code, not read from a file: pydantic's own check will do
            return section
        keys = cls.keys()
        if not isinstance(section, Mapping):
            raise problem(
                f"a mapping with the keys {', '.join(keys)}", "write `key: value` lines below the key"
            )
        for key in section:
            if key not in keys and key not in _SET_BY_LOADER:
                raise unknown_key(key, section[key], keys)
        return section


class EventSource(_Section):
    """Where raw events lie, and how to read them.

    Attributes:
        path: A Parquet file or a folder of them, on this machine. Relative to the working directory;
            `${VARIABLE}` and `${VARIABLE:-default}` are taken from the environment; with `{day}`, one
            folder or file per day of ARRIVAL. Read back, it is absolute.
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
        first_day: The first day there is.
        last_day: The last day there is; leave it out where events keep coming.
    """

    path: Annotated[str, Field(min_length=1), AfterValidator(_location)]
    id_column: Column
    time_column: Column
    arrival_column: Column | None = None
    max_late_hours: int = Field(default=2, ge=0, le=23)
    id_normalizer: Literal["none", "lower", "integer"] = "none"
    deduplicate_by: Annotated[Literal["all"] | OneOrMore[Column], BeforeValidator(_all_or_columns)] = "all"
    filters: dict[Identifier, Predicate] = Field(default_factory=dict)
    first_day: Day
    last_day: Day | None = None

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


class FieldSpec(_Section):
    """One field: a raw column, made into tokens.

    Attributes:
        name: The key of the mapping.
        column: The raw column.
        kind: `single` keeps the newest value of the window, `multi` all of them.
        normalizer: How a raw value becomes tokens; see `pipelines.steps.normalize`.
        min_devices: A token seen on fewer devices is never stored: it could tell who someone is.
        max_vocabulary: Tokens kept at most, those on most devices first.
        max_length: Tokens kept per device at most; 1 for a single-valued field.
    """

    name: Identifier = Field(validation_alias=NAME_KEY)
    column: Column
    kind: Literal["single", "multi"]
    normalizer: Annotated[str, AfterValidator(_normalizer)]
    min_devices: int = Field(default=5, ge=1)
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


def _named_fields(fields: object, info: ValidationInfo) -> object:
    """Turns the mapping of the file into a list in its order, each with its name."""
    if info.context is None:
        return fields
    if not isinstance(fields, Mapping) or not fields:
        raise problem("a mapping from field names to fields, at least one", "add a field, such as `apps:`")
    named = []
    for name, section in fields.items():
        if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name) or name in RESERVED_FIELD_NAMES:
            raise problem(
                "a lower_snake name (a-z, 0-9, _), and none of " + ", ".join(sorted(RESERVED_FIELD_NAMES)),
                "rename the field",
                found=name,
                at=str(name),
            )
        # FieldSpec says what is wrong with a section that is no mapping.
        named.append({**section, NAME_KEY: name} if isinstance(section, Mapping) else section)
    return named


class FieldsConfig(_Section):
    """fields.yaml: the events, and what of them becomes features, for all audiences.

    Attributes:
        file: Where it was read from.
        events: The source.
        window_days: Look-back of every feature, the as-of day included.
        fields: In the order of the file. In YAML a mapping from name to field.
    """

    file: Path = Field(validation_alias=FILE_KEY)
    events: EventSource
    window_days: int = Field(ge=1, le=365)
    fields: Annotated[OneOrMore[FieldSpec], BeforeValidator(_named_fields)]

    @model_validator(mode="after")
    def _ids_are_no_features(self) -> Self:
        for field in self.fields:
            # Spark compares names without regard to case.
            if field.column.lower() == self.events.id_column.lower():
                raise problem(
                    "a column other than events.id_column: an id is never a feature",
                    "take the field out, or name the column you meant",
                    found=field.column,
                    at=f"fields.{field.name}.column",
                )
        return self


class Label(_Section):
    """What makes a device positive: an event within the horizon that is a conversion.

    Attributes:
        event: Column → value; all must be equal.
        where: Or a Spark SQL condition over the columns of one event.
    """

    event: Annotated[dict[Column, Scalar], Field(min_length=1)] | None = None
    where: Predicate | None = None

    @model_validator(mode="after")
    def _says_one(self) -> Self:
        _exactly_one(self, ("event", "where"))
        return self

    @property
    def predicate(self) -> str:
        """The Spark SQL condition that a converting event satisfies."""
        if self.where is not None:
            return self.where
        return " AND ".join(
            f"{_quoted(column)} = {_literal(value)}" for column, value in (self.event or {}).items()
        )


class RollingDays(_Section):
    """The newest as-of days whose labels are complete.

    Attributes:
        count: How many.
        every_days: How far apart.
    """

    count: int = Field(ge=1)
    every_days: int = Field(ge=1)


class Training(_Section):
    """How the network is trained.

    Attributes:
        seed: Of the split, the initial weights and the order of rows.
        max_epochs: Passes over the training rows at most.
        patience: Stop after so many passes without a better validation AUC.
        validation_fraction: Share of devices kept for early stopping.
        test_fraction: Share of devices that only the comparison of models sees.
        negatives_kept: Share of the training devices without a conversion that are trained on, where they
            are too many; probabilities are corrected for it.
        max_auc_loss: A new champion may rank the validation devices worse than the former one by this much.
    """

    seed: int = Field(default=0, ge=0)
    max_epochs: int = Field(default=40, ge=1, le=40)
    patience: int = Field(default=15, ge=1)
    validation_fraction: Share = 0.2
    test_fraction: Share = 0.2
    negatives_kept: float = Field(default=1.0, ge=0.0001, le=1)
    max_auc_loss: float = Field(default=0.01, ge=0, le=0.5)

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> Self:
        held_out = self.validation_fraction + self.test_fraction
        if held_out >= 1:
            raise problem(
                "validation_fraction and test_fraction that leave rows to train on: a sum below 1",
                "lower one of them",
                found=f"{self.validation_fraction} + {self.test_fraction}",
            )
        return self


class SegmentSpec(_Section):
    """One segment of an audience; exactly one of the three rules.

    Attributes:
        name: Of the segment.
        min_precision: The largest set of devices expected to hold this share of converters.
        top_fraction: This share of devices, the most probable ones.
        size: This many devices, the most probable ones.
    """

    name: Identifier
    min_precision: Share | None = None
    top_fraction: Share | None = None
    size: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _says_one(self) -> Self:
        _exactly_one(self, ("min_precision", "top_fraction", "size"))
        return self


class FolderDestination(_Section):
    """A local folder.

    Attributes:
        type: `folder`.
        name: Tells destinations of one audience apart.
        path: Relative to the working directory.
        format: Of the files.
    """

    type: Literal["folder"]
    name: Identifier = "folder"
    path: Annotated[str, Field(min_length=1)]
    format: Literal["csv", "parquet"] = "csv"


Destination = FolderDestination
"""A second type makes this Annotated[FolderDestination | Second, Field(discriminator="type")]."""


def _as_of_form(value: object) -> str:
    return "days" if isinstance(value, list | tuple) else "rolling"


def _in_order(days: tuple[date, ...]) -> tuple[date, ...]:
    return tuple(sorted(days))


ListedDays = Annotated[OneOrMore[Day], AfterValidator(_in_order), Tag("days")]
AsOfDays = Annotated[ListedDays | Annotated[RollingDays, Tag("rolling")], Discriminator(_as_of_form)]


class Audience(_Section):
    """audiences/<name>.yaml: whom to find, and where to deliver them.

    Attributes:
        file: Where it was read from.
        name: Of the audience; the name of the file where the key is left out.
        description: For people.
        label: What counts as a conversion.
        horizon_days: How many days after the as-of day a conversion counts.
        as_of_days: The days to train on; each must lie early enough for its horizon to be over.
        training: How the network is trained.
        segments: What to cut from the scored devices.
        destinations: Where segments go. In YAML `deliver_to`.
    """

    file: Path = Field(validation_alias=FILE_KEY)
    name: Identifier
    description: str = ""
    label: Label
    horizon_days: int = Field(ge=1, le=365)
    as_of_days: AsOfDays
    training: Training = Field(default_factory=Training)
    segments: OneOrMore[SegmentSpec]
    destinations: OneOrMore[Destination] = Field(validation_alias="deliver_to")

    @model_validator(mode="after")
    def _names_and_days_are_unique(self) -> Self:
        if isinstance(self.as_of_days, tuple):
            _unique("as_of_days", self.as_of_days)
        _unique("segments", [segment.name for segment in self.segments])
        _unique("deliver_to", [destination.name for destination in self.destinations])
        return self


@dataclass(frozen=True)
class Project:
    """All that a user has written.

    Attributes:
        directory: Where it was read from.
        fields: fields.yaml.
        audiences: One per other file, in the order of their names.
    """

    directory: Path
    fields: FieldsConfig
    audiences: tuple[Audience, ...]


def _exactly_one(section: _Section, keys: tuple[str, ...]) -> None:
    given = {key: value for key in keys if (value := getattr(section, key)) is not None}
    if len(given) != 1:
        raise problem(
            f"exactly one of {', '.join(keys)}",
            "keep one of them" if given else "add one of them",
            found=given or "none of them",
        )


def _unique(key: str, values: tuple[object, ...] | list[str]) -> None:
    for position, value in enumerate(values):
        if value in values[:position]:
            raise problem("each one once", "take one out, or rename it", found=f"{value} twice", at=key)


def _quoted(column: str) -> str:
    return "`" + column.replace("`", "``") + "`"


def _literal(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # Spark reads backslash escapes within '…'.
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return repr(value)


def predicate_columns(sql: str) -> tuple[str, ...]:
    """The columns that a Spark SQL condition uses, sorted; of a nested one the outermost.

    Raises:
        SqlglotError: It is no condition over one row.
    """
    tree = sqlglot.parse_one(sql, dialect="spark", into=exp.Condition)
    for forbidden, kind in (
        (exp.Query, "a subquery"),
        (exp.AggFunc, "an aggregate"),
        (exp.Window, "a window"),
    ):
        if (node := tree.find(forbidden)) is not None:
            raise SqlglotError(f"{kind} looks at more than one event: {node.sql(dialect='spark')}")
    return tuple(sorted({column.parts[0].name for column in tree.find_all(exp.Column)}))
