"""What a user writes: fields.yaml and one YAML file per audience, read and checked before any JVM starts.

The models here are the reference of both files: one attribute a key. What is wrong ends in one
`ConfigError` that names the file, the key, the value found, what is expected and the remedy.
Reading needs neither Spark nor data; `check_event_columns` needs the schema of the events and no row.
"""

import difflib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from glob import escape as escape_glob
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import sqlglot
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError
from sqlglot import expressions as exp
from sqlglot.errors import SqlglotError

from pipelines.steps.errors import ConfigError
from pipelines.steps.normalize import NORMALIZERS

FIELDS_FILE = "fields.yaml"
DAY_PLACEHOLDER = "{day}"

EVENT_COLUMNS = ("device_id", "event_time", "day")
"""Columns that `app_events` adds; filters and labels may use them beside the raw ones."""

RESERVED_FIELD_NAMES = frozenset(
    {*EVENT_COLUMNS, "as_of", "events", "last_event_time", "label", "split", "probability"}
)
"""Columns that stand beside the fields in some table of the chain."""

_PROBLEM = "config_problem"
_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*")
_ISO_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^{}]*))?\}")
_MAX_SHOWN_CHARACTERS = 200

# Steps of a pydantic location that are no keys of the file: the branch of a union, and the mark that a
# key is wrong and not its value.
_FORM_TAGS = frozenset({"days", "rolling"})
_KEY_IS_WRONG = "[key]"

# What a section is told beside its own keys, under names that nobody writes.
_FILE, _NAME = "(file)", "(name)"
_SET_BY_LOADER = frozenset({_FILE, _NAME})


# --- the types of single values -------------------------------------------------------------------


def _problem(
    expected: str, remedy: str, *, found: object = None, at: str | None = None
) -> PydanticCustomError:
    """A failed rule that already knows its remedy; `at` is a key below the value that failed."""
    context = {"expected": expected, "remedy": remedy, "found": found, "at": at}
    return PydanticCustomError(_PROBLEM, "{expected}", context)


def _identifier(name: str) -> str:
    if _IDENTIFIER.fullmatch(name):
        return name
    proposal = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_")
    remedy = f"write it as `{proposal}`" if _IDENTIFIER.fullmatch(proposal) else "choose another name"
    raise _problem("lower_snake: a letter a-z, then letters a-z, digits and _", remedy)


def _day(value: object) -> object:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    if isinstance(value, str) and _ISO_DAY.fullmatch(value):
        try:
            return date.fromisoformat(value)
        except ValueError as error:
            raise _problem("a day of the calendar", f"correct the day: {error}") from error
    raise _problem("a day such as 2025-01-31", "write the day as YYYY-MM-DD")


def _predicate(sql: str) -> str:
    try:
        columns = predicate_columns(sql)
    except SqlglotError as error:
        raise _problem(
            "a Spark SQL condition over one event", f"correct the SQL: {_sql_message(error)}"
        ) from error
    if not columns:
        raise _problem("a Spark SQL condition that uses a column", "name a column of the events in it")
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
        raise _problem("a finite number", "write a number")
    if isinstance(value, str | int | float):  # bool is an int
        return value
    raise _problem("text, a number, true or false", "give the one value that the column must have")


def _normalizer(name: str) -> str:
    if name in NORMALIZERS:
        return name
    raise _problem(f"one of {', '.join(NORMALIZERS)}", _closest(name, NORMALIZERS) or "use one of these")


def _location(path: str) -> str:
    """Expands variables and makes the path absolute, so that it means the same in every process."""
    expanded = _VARIABLE.sub(_variable_value, path)
    if "://" in expanded:
        raise _problem(
            "a local path", "mount the store, or copy the events to a local folder", found=expanded
        )
    if set("{}$") & set(expanded.replace(DAY_PLACEHOLDER, "")):
        raise _problem(
            f"no placeholder but {DAY_PLACEHOLDER} and ${{VARIABLE}}", "correct the braces", found=expanded
        )
    return str(Path.cwd() / Path(expanded).expanduser())


def _variable_value(match: re.Match[str]) -> str:
    variable, default = match.groups()
    value = os.environ.get(variable) or default
    if not value:
        raise _problem(
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
            raise _problem(
                f"a mapping with the keys {', '.join(keys)}", "write `key: value` lines below the key"
            )
        for key in section:
            if key not in keys and key not in _SET_BY_LOADER:
                raise _unknown_key(key, section[key], keys)
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
    filters: dict[Identifier, Predicate] = Field(default_factory=dict)
    first_day: Day
    last_day: Day | None = None

    @model_validator(mode="after")
    def _days_are_in_order(self) -> Self:
        if self.last_day is not None and self.last_day < self.first_day:
            raise _problem(
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

    name: Identifier = Field(validation_alias=_NAME)
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
            raise _problem(
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
        raise _problem("a mapping from field names to fields, at least one", "add a field, such as `apps:`")
    named = []
    for name, section in fields.items():
        if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name) or name in RESERVED_FIELD_NAMES:
            raise _problem(
                "a lower_snake name (a-z, 0-9, _), and none of " + ", ".join(sorted(RESERVED_FIELD_NAMES)),
                "rename the field",
                found=name,
                at=str(name),
            )
        # FieldSpec says what is wrong with a section that is no mapping.
        named.append({**section, _NAME: name} if isinstance(section, Mapping) else section)
    return named


class FieldsConfig(_Section):
    """fields.yaml: the events, and what of them becomes features, for all audiences.

    Attributes:
        file: Where it was read from.
        events: The source.
        window_days: Look-back of every feature, the as-of day included.
        fields: In the order of the file. In YAML a mapping from name to field.
    """

    file: Path = Field(validation_alias=_FILE)
    events: EventSource
    window_days: int = Field(ge=1, le=365)
    fields: Annotated[OneOrMore[FieldSpec], BeforeValidator(_named_fields)]

    @model_validator(mode="after")
    def _ids_are_no_features(self) -> Self:
        for field in self.fields:
            if field.column == self.events.id_column:
                raise _problem(
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
            raise _problem(
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

    file: Path = Field(validation_alias=_FILE)
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
        raise _problem(
            f"exactly one of {', '.join(keys)}",
            "keep one of them" if given else "add one of them",
            found=given or "none of them",
        )


def _unique(key: str, values: tuple[object, ...] | list[str]) -> None:
    for position, value in enumerate(values):
        if value in values[:position]:
            raise _problem("each one once", "take one out, or rename it", found=f"{value} twice", at=key)


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


# --- reading --------------------------------------------------------------------------------------


def load_project(directory: Path) -> Project:
    """Reads fields.yaml and every audience beside it.

    Args:
        directory: Holds fields.yaml and one other *.yaml or *.yml file per audience.

    Raises:
        ConfigError: What a file says is wrong, or a file is missing.
    """
    if not directory.is_dir():
        raise ConfigError(
            f"there is no directory {_shown_path(directory)}",
            found="nothing" if not directory.exists() else "a file",
            expected=f"a directory with {FIELDS_FILE} and one YAML file per audience",
            remedy="correct the path, or copy audiences/ of this project and edit it",
        )
    fields_path = directory / FIELDS_FILE
    files = sorted(path for path in directory.iterdir() if path.suffix in {".yaml", ".yml"})
    if fields_path not in files:
        raise ConfigError(
            f"{_shown_path(directory)} holds no {FIELDS_FILE}",
            found=", ".join(path.name for path in files) or "no YAML file",
            expected=f"{FIELDS_FILE}, which says where events lie and which columns become fields",
            remedy="copy audiences/fields.yaml of this project and edit it",
        )
    files.remove(fields_path)
    if not files:
        raise ConfigError(
            f"{_shown_path(directory)} holds no audience",
            found=f"{FIELDS_FILE} only",
            expected="one YAML file per audience beside it",
            remedy="copy audiences/car_buyers.yaml of this project and edit it",
        )
    fields = _read(FieldsConfig, fields_path)
    audiences = sorted((_read(Audience, path) for path in files), key=lambda audience: audience.name)
    _check_names(audiences)
    for audience in audiences:
        _check_days(audience, fields.events)
    return Project(directory, fields, tuple(audiences))


S = TypeVar("S", FieldsConfig, Audience)


def _read(model: type[S], path: Path) -> S:
    document = _parse_yaml(path)
    if not isinstance(document, dict):
        raise ConfigError(
            f"{_shown_path(path)} is no mapping" if document is not None else f"{_shown_path(path)} is empty",
            found=_shown(document),
            expected=f"the keys {', '.join(model.keys())}",
            remedy="copy the file of that kind in audiences/ of this project and edit it",
        )
    defaults = {"name": path.stem} if model is Audience else {}
    try:
        return model.model_validate(defaults | document | {_FILE: path}, context={"file": path})
    except ValidationError as error:
        raise _config_error(path, document, error) from error


class _Loader(yaml.SafeLoader):
    """YAML whose days stay text: PyYAML raises a bare ValueError for the 31st of February."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _parse_yaml(path: Path) -> object:
    try:
        loader = _Loader(path.read_bytes())
        node = loader.get_single_node()
        if node is None:
            return None
        for key, first, second in _duplicate_keys(node):
            raise ConfigError(
                f"{_shown_path(path)}: `{key}` is there twice",
                found=f"line {first.start_mark.line + 1}: {_source(first)}, "
                f"line {second.start_mark.line + 1}: {_source(second)}",
                expected="each key once",
                remedy="take one of the two out",
            )
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ConfigError(
            f"{_shown_path(path)} cannot be read as YAML",
            found=" ".join(str(error).split()),
            expected="a YAML file in UTF-8",
            remedy="correct the line named: often an indentation, a tab, or an unquoted `:` or `{`",
        ) from error


def _duplicate_keys(
    node: yaml.Node, path: str = "", seen: frozenset[yaml.Node] = frozenset()
) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Key path and both values of each key that a mapping has twice; PyYAML would take the last."""
    if node in seen:  # an alias to a node that it is part of
        return
    seen |= {node}
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            yield from _duplicate_keys(item, f"{path}[{position}]", seen)
    if isinstance(node, yaml.MappingNode):
        first_values: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            key = f"{path}.{key_node.value}".lstrip(".")
            if key in first_values:
                yield key, first_values[key], value_node
            first_values[key] = value_node
            yield from _duplicate_keys(value_node, key, seen)


def _source(node: yaml.Node) -> str:
    return (
        _shown(node.value)
        if isinstance(node, yaml.ScalarNode)
        else f"a {type(node).__name__.removesuffix('Node').lower()}"
    )


def _check_names(audiences: list[Audience]) -> None:
    by_name: dict[str, Audience] = {}
    for audience in audiences:
        other = by_name.setdefault(audience.name, audience)
        if other is not audience:
            raise ConfigError(
                f"{_shown_path(other.file)} and {_shown_path(audience.file)}: `name` is the same",
                found=audience.name,
                expected="a name of its own for each audience",
                remedy="change `name` in one of the two files, or remove one",
            )


def _check_days(audience: Audience, events: EventSource) -> None:
    """An as-of day needs events before it, and its whole horizon after it."""
    if not isinstance(audience.as_of_days, tuple):
        return
    for day in audience.as_of_days:
        end = day + timedelta(days=audience.horizon_days)
        if day <= events.first_day:
            expected = f"a day after events.first_day in {FIELDS_FILE}, {events.first_day}"
        elif events.last_day is not None and end > events.last_day:
            newest = events.last_day - timedelta(days=audience.horizon_days)
            expected = (
                f"a day not after {newest}: horizon_days of {audience.horizon_days} "
                f"before events.last_day in {FIELDS_FILE}, {events.last_day}"
            )
        else:
            continue
        raise ConfigError(
            f"{_shown_path(audience.file)}: `as_of_days` of audience {audience.name!r}",
            found=day,
            expected=expected,
            remedy="choose another day, shorten horizon_days, or correct the days of the events",
        )


# --- saying what is wrong -------------------------------------------------------------------------


def _unknown_key(key: object, value: object, allowed: list[str]) -> PydanticCustomError:
    suggestion = _closest(str(key), allowed)
    return _problem(
        f"one of the keys {', '.join(allowed)}",
        f"{suggestion}, or take the key out" if suggestion else "take the key out",
        found=f"unknown key `{key}` with the value {_shown(value)}",
        at=str(key),
    )


def _closest(word: str, allowed: Mapping[str, object] | list[str]) -> str | None:
    by_folded = {name.lower(): name for name in allowed}
    close = difflib.get_close_matches(word.lower(), by_folded, n=1)
    return f"did you mean `{by_folded[close[0]]}`?" if close else None


_EXPECTED: Mapping[str, Callable[[ErrorDetails], str]] = {
    "dict_type": lambda _: "a mapping: `key: value` lines",
    "string_type": lambda _: "text",
    "tuple_type": lambda _: "a list",
    "int_type": lambda _: "a whole number",
    "float_type": lambda _: "a number",
    "string_too_short": lambda _: "text, not empty",
    "too_short": lambda error: f"at least {error['ctx']['min_length']} entry",
    "missing": lambda error: f"the key `{error['loc'][-1]}`",
    "literal_error": lambda error: f"one of {error['ctx']['expected'].replace(' or ', ', ')}",
}


def _pydantic_words(error: ErrorDetails) -> str:
    return error["msg"].removeprefix("Input should be ")


def _config_error(path: Path, document: dict[str, Any], error: ValidationError) -> ConfigError:
    """The first thing that is wrong, in full, and the keys of the others."""
    first, *others = error.errors(include_url=False)
    file, key = _shown_path(path), _key(first, document)
    expected, remedy = _advice(first, file)
    if others:
        remedy += "; then look at " + ", ".join(
            dict.fromkeys(f"`{_key(other, document)}`" for other in others)
        )
    return ConfigError(f"{file}: `{key}`", found=_found(first), expected=expected, remedy=remedy)


def _advice(error: ErrorDetails, file: str) -> tuple[str, str]:
    """What is expected, and the remedy."""
    context = error.get("ctx", {})
    if error["type"] == _PROBLEM:
        return context["expected"], context["remedy"]
    say = _EXPECTED.get(error["type"], _pydantic_words)
    remedy = f"correct the value in {file}"
    if error["type"] == "missing":
        remedy = f"add `{error['loc'][-1]}:` to {file}"
    elif error["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        remedy = _closest(str(error["input"]), choices) or "use one of these"
    return say(error), remedy


def _found(error: ErrorDetails) -> str:
    if error["type"] == "missing":
        return "no such key"
    found = error.get("ctx", {}).get("found")
    if found is None:
        return _shown(error["input"])
    return found if isinstance(found, str) else _shown(found)


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    shown = str(value) if isinstance(value, date) else repr(value)
    return shown if len(shown) <= _MAX_SHOWN_CHARACTERS else shown[:_MAX_SHOWN_CHARACTERS] + "…"


def _key(error: ErrorDetails, document: dict[str, Any]) -> str:
    """The key as a user would say it: `fields.apps.min_devices`, `segments[0].size`."""
    shown = ""
    node: object = document
    for step in error["loc"]:
        if isinstance(node, list) and isinstance(step, int):
            shown += f"[{step}]"
            node = node[step]
            continue
        keys = node if isinstance(node, dict) else {}
        if step in _FORM_TAGS - keys.keys() or step == _KEY_IS_WRONG:
            continue
        # An index into a mapping: _named_fields made a list of it.
        key = list(keys)[step] if isinstance(step, int) else step
        shown += f".{key}"
        node = keys.get(key)
    at = error.get("ctx", {}).get("at")
    return (f"{shown}.{at}" if at else shown).lstrip(".") or "the file"


def _shown_path(path: Path) -> str:
    """Relative to the working directory where that is possible."""
    absolute = Path.cwd() / path
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


# --- held against the events ----------------------------------------------------------------------


@dataclass(frozen=True)
class _ColumnUse:
    """A column that a file names: where, and in what text."""

    file: Path
    key: str
    column: str
    text: str


def check_event_columns(project: Project) -> None:
    """Checks every column that the files name against the schema of the events; reads no row.

    Raises:
        ConfigError: There are no events, they lack a column, or a time is no timestamp.
    """
    fields = project.fields
    schema = _event_schema(fields)
    for use in _raw_column_uses(fields):
        _check_column(use, schema.names)
    # app_events renames the id column, so that a condition sees it by one name in every project.
    raw = [name for name in schema.names if name != fields.events.id_column]
    for use in _predicate_column_uses(project):
        renamed = use.column == fields.events.id_column
        remedy = f"write {EVENT_COLUMNS[0]}, as the id is called once events are read" if renamed else None
        _check_column(use, list(dict.fromkeys([*raw, *EVENT_COLUMNS])), remedy)
    for key in ("time_column", "arrival_column"):
        if column := getattr(fields.events, key):
            _check_time(fields.file, f"events.{key}", schema.field(column))


def _raw_column_uses(fields: FieldsConfig) -> Iterator[_ColumnUse]:
    for key in ("id_column", "time_column", "arrival_column"):
        if column := getattr(fields.events, key):
            yield _ColumnUse(fields.file, f"events.{key}", column, column)
    for field in fields.fields:
        yield _ColumnUse(fields.file, f"fields.{field.name}.column", field.column, field.column)


def _predicate_column_uses(project: Project) -> Iterator[_ColumnUse]:
    for name, sql in project.fields.events.filters.items():
        for column in predicate_columns(sql):
            yield _ColumnUse(project.fields.file, f"events.filters.{name}", column, sql)
    for audience in project.audiences:
        for column in audience.label.event or {}:
            yield _ColumnUse(audience.file, f"label.event.{column}", column, column)
        if audience.label.where is not None:
            for column in predicate_columns(audience.label.where):
                yield _ColumnUse(audience.file, "label.where", column, audience.label.where)


def _check_column(use: _ColumnUse, columns: list[str], remedy: str | None = None) -> None:
    if use.column in columns:
        return
    raise ConfigError(
        f"{_shown_path(use.file)}: `{use.key}` names a column that the events do not have",
        found=f"{use.column!r} in {use.text!r}" if use.text != use.column else repr(use.column),
        expected=f"one of {', '.join(columns)}",
        remedy=remedy or _closest(use.column, columns) or "name a column that is there",
    )


def _check_time(file: Path, key: str, column: "pa.Field[Any]") -> None:
    if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        raise ConfigError(
            f"{_shown_path(file)}: `{key}` names a column that holds no times",
            found=f"{column.name!r} of type {column.type}",
            expected="a column of type timestamp or date",
            remedy="name the column of timestamps, or write the events with it as a timestamp in UTC",
        )
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        raise ConfigError(
            f"{_shown_path(file)}: `{key}` names a column of nanoseconds, which Spark cannot read",
            found=f"{column.name!r} of type {column.type}",
            expected="timestamps of microseconds or milliseconds",
            remedy='write the events with microseconds (pandas: to_parquet(..., coerce_timestamps="us"))',
        )


def _event_schema(fields: FieldsConfig) -> pa.Schema:
    """The schema of the first Parquet file of the source, with the columns that its folders name."""
    path = fields.events.path
    for base in _existing(path):
        file = _first_parquet_file(base)
        if file is None:
            continue
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise ConfigError(
                f"{_shown_path(fields.file)}: `events.path` holds a file that is no Parquet",
                found=f"{_shown_path(file)}: {str(error).splitlines()[0]}",
                expected="Parquet files only",
                remedy="write the file again, or take it away",
            ) from error
        return pa.schema([*schema, *_folder_columns(file.relative_to(base))])
    raise ConfigError(
        f"{_shown_path(fields.file)}: there are no events at `events.path`",
        found=f"no Parquet file at {path}",
        expected="a Parquet file or a folder of them" + (", per day" if DAY_PLACEHOLDER in path else ""),
        remedy="put the events there (`make demo` generates its own), or correct the path",
    )


def _folder_columns(file: Path) -> "Iterator[pa.Field[Any]]":
    """Columns that Spark takes from folders such as country=FR; pyarrow.dataset would load pandas for it."""
    for folder in file.parts[:-1]:
        name, equals, value = folder.partition("=")
        if equals:
            yield pa.field(name, pa.date32() if _ISO_DAY.fullmatch(value) else pa.string())


def _existing(path: str) -> list[Path]:
    """What lies at the path; with `{day}`, what lies there of each day, oldest first."""
    if DAY_PLACEHOLDER not in path:
        return [Path(path)] if Path(path).exists() else []
    root = Path(path).anchor
    pattern = escape_glob(path.removeprefix(root)).replace(DAY_PLACEHOLDER, "????-??-??")
    return sorted(Path(root).glob(pattern))


def _first_parquet_file(base: Path) -> Path | None:
    if base.is_file():
        return base
    # Spark, too, skips what begins with _ or a dot: files being written.
    files = (p for p in base.rglob("*.parquet") if p.is_file())
    return min((p for p in files if not p.relative_to(base).parts[0].startswith(("_", "."))), default=None)
