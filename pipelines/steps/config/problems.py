"""Turns what is wrong in a file into one error: file, key, value found, what is expected, the remedy.

What does not belong here: what is wrong in which file (`project`, `project`, `event_columns`).
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from pipelines.steps.errors import ConfigError

_PROBLEM = "config_problem"
_MAX_SHOWN_CHARACTERS = 200

# Steps of a pydantic location that are no keys of the file: the branch of a union, and the mark that a
# key is wrong and not its value.
_FORM_TAGS = frozenset({"days", "rolling", "metric_name", "metric_of_share"})
_KEY_IS_WRONG = "[key]"


def problem(
    expected: str, remedy: str, *, found: object = None, at: str | None = None
) -> PydanticCustomError:
    """A failed rule that already knows its remedy; `at` is a key below the value that failed."""
    context = {"expected": expected, "remedy": remedy, "found": found, "at": at}
    return PydanticCustomError(_PROBLEM, "{expected}", context)


def unknown_key(key: object, value: object, allowed: list[str]) -> PydanticCustomError:
    suggestion = closest(str(key), allowed)
    return problem(
        f"one of the keys {', '.join(allowed)}",
        f"{suggestion}, or take the key out" if suggestion else "take the key out",
        found=f"unknown key `{key}` with the value {shown(value)}",
        at=str(key),
    )


def closest(word: str, allowed: Iterable[str]) -> str | None:
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


def config_error(path: Path, document: dict[str, Any], error: ValidationError) -> ConfigError:
    """The first thing that is wrong, in full, and the keys of the others."""
    first, *others = error.errors(include_url=False)
    file, key = shown_path(path), _key(first, document)
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
        remedy = closest(str(error["input"]), choices) or "use one of these"
    return say(error), remedy


def _found(error: ErrorDetails) -> str:
    if error["type"] == "missing":
        return "no such key"
    found = error.get("ctx", {}).get("found")
    if found is None:
        return shown(error["input"])
    return found if isinstance(found, str) else shown(found)


def shown(value: object) -> str:
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


def shown_path(path: Path) -> str:
    """Relative to the working directory where that is possible."""
    absolute = Path.cwd() / path
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)
