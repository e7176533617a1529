"""The types of single values in a project's files: names, days, shares, label values, paths."""

import math
import os
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from glob import escape as escape_glob
from pathlib import Path
from posixpath import normpath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from pipelines.steps.config.predicates import checked_condition, checked_number
from pipelines.steps.config.problems import closest, problem, unknown_key

DAY_PLACEHOLDER = "{day}"
ISO_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
OLDEST = "oldest"
"""`first_day` of events that lie by day: the oldest day there is a folder or file of."""
FIRST_DAY_KEY = "first_day"
"""In the context of an audience's validation: events.first_day of fields.yaml."""

NORMALIZER_NAMES: tuple[str, ...] = ("text", "device_name", "device_model", "package")
NORMALIZER_NAMES += ("code", "words", "log_bucket", "identity")
"""What `normalizer:` in fields.yaml may say; what each does, `pipelines.steps.features.normalize` knows."""
MAX_NAME_CHARACTERS = 100
"""A name becomes part of the names of folders and files."""
MAX_PART_BYTES = 255
"""What file systems take for one folder or file."""
MAX_PATH_BYTES = 4096
"""What the kernel takes for a whole path."""
BYTES_BELOW_A_DESTINATION = 512
"""Room for an audience's, a segment's and a day's folder, and for the file."""

_AFTER_FIRST_DAY = re.compile(r"first_day\s*\+\s*(\d{1,5})")
_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*")
_EMAIL = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,7}")
_TEAM = re.compile(r"team:[A-Za-z0-9_-]+")
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^{}]*))?\}")


def is_identifier(name: object) -> bool:
    return isinstance(name, str) and bool(_IDENTIFIER.fullmatch(name)) and len(name) <= MAX_NAME_CHARACTERS


def _identifier(name: str) -> str:
    if is_identifier(name):
        return name
    if len(name) > MAX_NAME_CHARACTERS:
        raise problem(f"a name of at most {MAX_NAME_CHARACTERS} characters", "choose a shorter name")
    proposal = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_")
    remedy = f"write it as `{proposal}`" if is_identifier(proposal) else "choose another name"
    raise problem("lower_snake: a letter a-z, then letters a-z, digits and _", remedy)


def _day(value: object) -> object:
    return _written_day(value, "a day such as 2025-01-31")


def _written_day(value: object, expected: str) -> object:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    if isinstance(value, str) and ISO_DAY.fullmatch(value):
        try:
            return date.fromisoformat(value)
        except ValueError as error:
            raise problem("a day of the calendar", f"correct the day: {error}") from error
    raise problem(expected, "write the day as YYYY-MM-DD")


def _first_day(value: object, info: ValidationInfo) -> object:
    """The day as written; or the oldest there is at the path, and yesterday as long as there is none."""
    if value != OLDEST:
        return _written_day(value, f"a day such as 2025-01-31, or `{OLDEST}`")
    path = info.data.get("path")
    if path is not None and DAY_PLACEHOLDER not in path:
        raise problem(
            f"a day such as 2025-01-31: `{OLDEST}` needs a path with {DAY_PLACEHOLDER}",
            f"write the day as YYYY-MM-DD, or say in `path` where each day has its folder: {DAY_PLACEHOLDER}",
        )
    return (oldest_day(path) if path else None) or today() - timedelta(days=1)


def _as_of_day(value: object, info: ValidationInfo) -> object:
    """The day as written, or so many days after the first day of events."""
    first_day = (info.context or {}).get(FIRST_DAY_KEY)
    match = _AFTER_FIRST_DAY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match and first_day:
        return first_day + timedelta(days=int(match[1]))
    return _written_day(value, "a day such as 2025-01-31, or such as first_day + 59")


def today() -> date:
    """The day it is, in UTC."""
    return datetime.now(UTC).date()


def _written(value: object) -> str:
    """The text of a label's value; files give it as it is written there, code may give the value itself."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    raise problem("text, a number, true or false", "give the one value that the column must have")


def _normalizer(name: str) -> str:
    if name in NORMALIZER_NAMES:
        return name
    raise problem(
        f"one of {', '.join(NORMALIZER_NAMES)}", closest(name, NORMALIZER_NAMES) or "use one of these"
    )


def _owner(owner: str) -> str:
    if _TEAM.fullmatch(owner) or _EMAIL.fullmatch(owner):
        return owner
    raise problem("an e-mail address, or team: and a name, as in team:growth", "write it like that")


# --- paths ----------------------------------------------------------------------------------------


def expanded_path(path: str) -> str:
    """The place of the events: variables filled in, and absolute, so that it means the same in every process.

    Raises:
        PydanticCustomError: It says so in the words of the file: a variable may hold a secret.
    """
    expanded = _VARIABLE.sub(_variable_value, path)
    if "://" in expanded:
        raise problem("a local path", "mount the store, or copy the events to a local folder", found=path)
    if set("{}$") & set(expanded.replace(DAY_PLACEHOLDER, "")):
        raise problem(
            f"no placeholder but {DAY_PLACEHOLDER} and ${{VARIABLE}}",
            "correct the braces, here or in the variable's value",
            found=path,
        )
    try:
        absolute = str(Path.cwd() / Path(expanded).expanduser())
    except RuntimeError as error:
        raise problem("a home directory that exists, after ~", "write the path out", found=path) from error
    _check_path(absolute, path, MAX_PATH_BYTES)
    return absolute


def existing_paths(path: str) -> list[Path]:
    """What lies at an expanded path; with `{day}`, what lies there of each day, oldest first."""
    if DAY_PLACEHOLDER not in path:
        return [Path(path)] if Path(path).exists() else []
    root = Path(path).anchor
    pattern = escape_glob(path.removeprefix(root)).replace(DAY_PLACEHOLDER, "????-??-??")
    return sorted(Path(root).glob(pattern))


def oldest_day(path: str) -> date | None:
    """The oldest day that an expanded path with `{day}` holds something of."""
    named = re.compile(re.escape(path).replace(re.escape(DAY_PLACEHOLDER), f"({ISO_DAY.pattern})"))
    for place in existing_paths(path):
        if match := named.fullmatch(str(place)):
            try:
                return date.fromisoformat(match[1])
            except ValueError:  # 2025-02-30: a folder of no day
                continue
    return None


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


def _destination_path(path: str) -> str:
    """A folder's path as it is written: nothing in it is expanded."""
    if path.startswith("~"):
        raise problem("a path without ~", "write the home directory out")
    if set("{}$") & set(path):
        raise problem("a path without placeholders or variables", "write the folder's own name")
    _check_path(path, path, MAX_PATH_BYTES - BYTES_BELOW_A_DESTINATION)
    return path


def _check_path(path: str, written: str, max_bytes: int) -> None:
    """Refuses what no file system takes; `written` is what a message may show."""
    if any(ord(character) < ord(" ") or 0xD800 <= ord(character) < 0xE000 for character in path):
        raise problem("a path of printable characters", "take the control character out", found=repr(written))
    longest = max(len(part.encode()) for part in path.split("/"))
    if longest > MAX_PART_BYTES:
        raise problem(
            f"a path whose parts have at most {MAX_PART_BYTES} bytes each",
            f"shorten the part of {longest} bytes",
            found=written,
        )
    if len(path.encode()) > max_bytes:
        raise problem(f"a path of at most {max_bytes} bytes", "choose a shorter path", found=written)


def normalized_path(path: str) -> str:
    """The path without `.`, `..` and doubled slashes, told from its text: equal ones are one place."""
    normal = normpath(path)
    return normal[1:] if normal.startswith("//") else normal


def _all_or_columns(value: object) -> object:
    is_list = isinstance(value, list | tuple) and value and all(c and isinstance(c, str) for c in value)
    if value == "all" or is_list:
        return value
    raise problem(
        "`all`, or a list of raw columns",
        "write [event_name, session_id] to tell events apart by these columns, id and time",
    )


Identifier = Annotated[str, AfterValidator(_identifier)]
Column = Annotated[str, Field(min_length=1)]
Owner = Annotated[str, AfterValidator(_owner)]
Day = Annotated[date, BeforeValidator(_day)]
FirstDay = Annotated[date, BeforeValidator(_first_day)]
AsOfDay = Annotated[date, BeforeValidator(_as_of_day)]
Predicate = Annotated[str, AfterValidator(checked_condition)]
NumberSql = Annotated[str, AfterValidator(checked_number)]
"""A Spark SQL expression over one event; that it is a number is known once Spark has seen the events."""
Written = Annotated[str, BeforeValidator(_written)]
"""A value as the file has it: `1.10`, `007`, `NO`; what it means depends on its column."""
Normalizer = Annotated[str, AfterValidator(_normalizer)]
DestinationPath = Annotated[str, Field(min_length=1), AfterValidator(_destination_path)]
Share = Annotated[float, Field(gt=0, lt=1)]
T = TypeVar("T")
OneOrMore = Annotated[tuple[T, ...], Field(min_length=1, strict=False)]
"""A YAML list; strict mode would want a tuple, which YAML does not have."""
AnyNumber = Annotated[tuple[T, ...], Field(strict=False)]
"""Likewise, of a key that can be left out."""
AllOrColumns = Annotated[Literal["all"] | OneOrMore[Column], BeforeValidator(_all_or_columns)]


# What a section is told beside its own keys, under names that nobody writes.
FILE_KEY, NAME_KEY, WRITTEN_PATH_KEY = "(file)", "(name)", "(written path)"
_SET_BY_LOADER = frozenset({FILE_KEY, NAME_KEY, WRITTEN_PATH_KEY})


# --- the sections of the files --------------------------------------------------------------------


class Section(BaseModel):
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


def require_one(section: Section, keys: tuple[str, ...]) -> None:
    given = {key: value for key in keys if (value := getattr(section, key)) is not None}
    if len(given) != 1:
        raise problem(
            f"exactly one of {', '.join(keys)}",
            "keep one of them" if given else "add one of them",
            found=given or "none of them",
        )


def require_unique(key: str, values: tuple[object, ...] | list[str]) -> None:
    for position, value in enumerate(values):
        if value in values[:position]:
            raise problem("each one once", "take one out, or rename it", found=f"{value} twice", at=key)
