"""What a user writes: fields.yaml and one YAML file per audience, read and checked before any JVM starts.

The models here are the reference of both files: one attribute a key. What is wrong ends in one
`ConfigError` that names the file, the key, the value found, what is expected and the remedy.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

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

from pipelines.steps.project_errors import problem, shown_path, unknown_key
from pipelines.steps.project_values import (
    DAY_PLACEHOLDER,
    AllOrColumns,
    Column,
    Day,
    DestinationPath,
    Identifier,
    Normalizer,
    OneOrMore,
    Predicate,
    Share,
    Written,
    expanded_path,
    is_identifier,
    normalized_path,
)

FIELDS_FILE = "fields.yaml"

EVENT_COLUMNS = ("device_id", "event_time", "day")
"""Columns that `app_events` adds; filters and labels may use them beside the raw ones."""

RESERVED_FIELD_NAMES = frozenset(
    {*EVENT_COLUMNS, "as_of", "events", "last_event_time", "label", "split", "probability"}
)
"""Columns that stand beside the fields in some table of the chain."""

# What a section is told beside its own keys, under names that nobody writes.
FILE_KEY, NAME_KEY, WRITTEN_PATH_KEY = "(file)", "(name)", "(written path)"
_SET_BY_LOADER = frozenset({FILE_KEY, NAME_KEY, WRITTEN_PATH_KEY})


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
        first_day: The first day there is.
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
    first_day: Day
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
    normalizer: Normalizer
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
        if not is_identifier(name) or name in RESERVED_FIELD_NAMES:
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
        event: Column → value as it is written; all must be equal. What the text means depends on the
            column's type; see `pipelines.steps.label_values`.
        where: Or a Spark SQL condition over the columns of one event; see `pipelines.steps.predicates`.
    """

    event: Annotated[dict[Column, Written], Field(min_length=1)] | None = None
    where: Predicate | None = None

    @model_validator(mode="after")
    def _says_one(self) -> Self:
        _exactly_one(self, ("event", "where"))
        return self


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
        promotion_fraction: Share of devices that only decide whether a new champion serves. The same devices
            whatever the seed, so that the former champion has not seen them either.
        validation_fraction: Share of the other devices that stops, tunes, calibrates and chooses.
        test_fraction: Share of the other devices that is only reported on.
        negatives_kept: Share of the training devices without a conversion that are trained on, where they
            are too many; probabilities are corrected for it.
        max_auc_loss: A new champion may rank the promotion devices worse than the former one by this much.
    """

    seed: int = Field(default=0, ge=0)
    max_epochs: int = Field(default=40, ge=1, le=40)
    patience: int = Field(default=15, ge=1)
    promotion_fraction: Share = 0.1
    validation_fraction: Share = 0.2
    test_fraction: Share = 0.2
    negatives_kept: float = Field(default=1.0, ge=0.0001, le=1)
    max_auc_loss: float = Field(default=0.01, ge=0, le=0.5)

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> Self:
        held_out = [self.validation_fraction, self.test_fraction, self.promotion_fraction]
        if sum(held_out) >= 1:
            raise problem(
                "validation_fraction, test_fraction and promotion_fraction that leave rows to train on: "
                "a sum below 1",
                "lower one of them",
                found=" + ".join(map(str, held_out)),
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
        path: Relative to DATA_DIR, and inside of it.
        outside_data_dir: Allows an absolute path.
        format: Of the files.
    """

    type: Literal["folder"]
    name: Identifier = "folder"
    path: DestinationPath
    outside_data_dir: bool = False
    format: Literal["csv", "parquet"] = "csv"

    @model_validator(mode="after")
    def _stays_in_data_dir(self) -> Self:
        is_absolute = self.path.startswith("/")
        if is_absolute and not self.outside_data_dir:
            expected = "a path relative to DATA_DIR, or the key `outside_data_dir: true` beside it"
            remedy = "write it relative to DATA_DIR, or add `outside_data_dir: true`"
        elif self.outside_data_dir and not is_absolute:
            expected = "an absolute path, as outside_data_dir is true"
            remedy = "write the path from / on, or take outside_data_dir out"
        elif normalized_path(self.path).split("/")[0] == "..":
            expected = "a path that stays inside DATA_DIR"
            remedy = "take the `..` out, or write an absolute path and `outside_data_dir: true`"
        else:
            return self
        raise problem(expected, remedy, found=self.path, at="path")


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
        deliver_days_without_events: Whether a day on which no event was accepted is delivered all the same,
            from the events of the window before it.
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
    deliver_days_without_events: bool = False
    destinations: OneOrMore[Destination] = Field(validation_alias="deliver_to")

    @model_validator(mode="after")
    def _names_and_days_are_unique(self) -> Self:
        if isinstance(self.as_of_days, tuple):
            _unique("as_of_days", self.as_of_days)
        _unique("segments", [segment.name for segment in self.segments])
        _unique("deliver_to", [destination.name for destination in self.destinations])
        return self

    @model_validator(mode="after")
    def _destinations_have_places_of_their_own(self) -> Self:
        """Both would write <path>/<audience>/<segment>/<day>; audiences differ in their names."""
        places: dict[str, int] = {}
        for position, destination in enumerate(self.destinations):
            other = places.setdefault(normalized_path(destination.path), position)
            if other != position:
                raise problem(
                    f"a folder other than that of deliver_to[{other}].path, which it would overwrite",
                    "take one of the two out, or give it another path",
                    found=f"{destination.path}, the same folder as deliver_to[{other}].path, "
                    f"{self.destinations[other].path}",
                    at=f"deliver_to[{position}].path",
                )
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
