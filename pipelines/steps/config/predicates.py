"""Conditions over one event, which a user writes as Spark SQL: what they may say, and the columns they use.

A condition gives the same answer for the same event on every run. So it is built from the functions,
operators and literals listed here (docs/conditions.md prints them), and all else is refused by name.
Spark is given the user's own text: whatever sqlglot and Spark could read differently is refused, too.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import ClassVar

import sqlglot
from sqlglot import expressions as exp
from sqlglot.dialects.spark import Spark
from sqlglot.errors import SqlglotError
from sqlglot.parsers.spark import SparkParser

from pipelines.steps.config.condition_language import (
    ANSWERS_OF_THE_SESSION,
    FUNCTIONS,
    KEYWORDS,
    OF_CONSTANTS,
    TYPES,
    WITHOUT_ARGUMENTS,
)
from pipelines.steps.config.problems import problem

DOCUMENTED_IN = "docs/conditions.md"
MAX_CHARACTERS = 50_000
MAX_DEPTH = 100

_ALLOWED_FUNCTIONS = frozenset(name for names in FUNCTIONS.values() for name in names)

# Spark replaces 'today' and the like, compared with a time, by the moment of the run, and '12:30' by that
# time of the run's day.
_TEXT_OF_THE_RUN = re.compile(
    r"\s*(?:(?:now|today|tomorrow|yesterday)(?:\s+\S+|[+-]\S+)?|t?\d{1,2}:\d{1,2}(?::\S*)?(?:\s*\S+)?)\s*",
    re.I,
)
_PATTERN_OPERATORS = frozenset({"like", "ilike", "rlike", "regexp"})

_CONNECTORS = (exp.And, exp.Or)
_NODES = frozenset(
    {
        *_CONNECTORS, exp.Not, exp.Paren,
        exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.NullSafeEQ, exp.NullSafeNEQ,
        exp.Is, exp.In, exp.Between, exp.Like, exp.ILike, exp.RegexpLike, exp.Escape, exp.Any, exp.All,
        exp.Tuple, exp.Neg, exp.Add, exp.Sub, exp.Mul, exp.Div, exp.IntDiv, exp.Mod, exp.DPipe,
        exp.BitwiseAnd, exp.BitwiseOr, exp.BitwiseXor, exp.BitwiseNot,
        exp.Case, exp.If, exp.Cast, exp.TryCast, exp.DataType, exp.DataTypeParam,
        exp.Column, exp.Identifier, exp.Dot, exp.Bracket, exp.Lambda, exp.Transform,
        exp.Literal, exp.RawString, exp.HexString, exp.Boolean, exp.Null, exp.Concat,
        exp.Interval, exp.Var,
        exp.Anonymous, exp.Array, exp.Extract, exp.Trim, exp.Substring, exp.StrPosition, exp.Overlay,
    }
)  # fmt: skip
"""Every class of sqlglot's that a condition may be made of."""

_FORBIDDEN_KINDS: tuple[tuple[type[exp.Expr], str], ...] = (
    (exp.Query, "a subquery looks at more than one event"),
    (exp.Window, "a window looks at more than one event"),
    (exp.AggFunc, "an aggregate looks at more than one event"),
    (exp.Star, "name the columns instead of *"),
)


class _Conditions(Spark):
    """Spark's language, in which each function keeps the name that was written.

    sqlglot turns functions of all databases into classes of its own, and writes them back as others.
    """

    class Parser(SparkParser):
        # An array( that is no function would be taken for a type, and its elements dropped.
        FUNCTIONS: ClassVar = {"ARRAY": exp.Array.from_arg_list}
        FUNCTION_PARSERS: ClassVar = {
            name: parser
            for name, parser in SparkParser.FUNCTION_PARSERS.items()
            if name in {"CAST", "TRY_CAST", "EXTRACT", "SUBSTRING", "TRIM", "POSITION", "OVERLAY"}
        }


_LEXEME = re.compile(
    r"""
      (?P<space>[ \t\r\n]+)
    | (?P<comment>--|/\*)
    | (?P<raw>[rR](?:'[^']*'|"[^"]*"))
    | (?P<text>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*")
    | (?P<quoted>`(?:[^`]|``)+`)
    | (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?:BD|[LSYFD])?(?!\w))
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<operator><=>|<>|!=|==|<=|>=|->|\|\||::|[-+*/%=<>!()\[\],.&|^~])
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class _Lexeme:
    kind: str
    text: str


_END = _Lexeme("", "")


def checked_condition(sql: str) -> str:
    """The condition as it was written.

    Raises:
        PydanticCustomError: It is no condition over one event, or says more than is allowed.
    """
    if not predicate_columns(sql):
        raise problem("a Spark SQL condition that uses a column", "name a column of the events in it")
    return sql


def checked_number(sql: str) -> str:
    """The expression of a measure as it was written; built from the same language as a condition.

    Raises:
        PydanticCustomError: It is no expression over one event, or says more than is allowed.
    """
    if not predicate_columns(sql):
        raise problem("a Spark SQL expression that uses a column", "name a column of the events in it")
    return sql


@lru_cache(maxsize=256)
def predicate_columns(sql: str) -> tuple[str, ...]:
    """The columns that a condition uses, sorted; of a nested one the outermost.

    Raises:
        PydanticCustomError: It is no condition over one event, or says more than is allowed.
    """
    if len(sql) > MAX_CHARACTERS:
        raise problem(
            f"a condition of at most {MAX_CHARACTERS:,} characters", "compare with a column that says it"
        )
    lexemes = _lexemes(sql)
    _check_lexemes(lexemes)
    try:
        tree = sqlglot.parse_one(sql, dialect=_Conditions, into=exp.Condition)
    except SqlglotError as error:
        raise problem(
            "a Spark SQL condition over one event", f"correct the SQL: {_sql_message(error)}"
        ) from error
    except RecursionError as error:
        raise _too_deep() from error
    _check_tree(tree)
    if _names(lexemes) - _names(_lexemes(_sql(tree))):
        raise problem(
            "a condition that can be read in one way only", "write it in simpler words, with parentheses"
        )
    return tuple(sorted({column.parts[0].name for column in tree.find_all(exp.Column)}))


# --- the text -------------------------------------------------------------------------------------


def _lexemes(sql: str) -> list[_Lexeme]:
    """The parts of a text, in the way that Spark tells them apart, without white space."""
    lexemes, place = [], 0
    while place < len(sql):
        match = _LEXEME.match(sql, place)
        if match is None:
            raise problem(
                "a Spark SQL condition over one event",
                f"correct the SQL at {sql[place : place + 20]!r}: {_unreadable(sql[place])}",
            )
        if match.lastgroup == "comment":
            raise problem("a condition without comments", "write the comment in YAML, after #")
        place = match.end()
        if match.lastgroup != "space":
            lexemes.append(_Lexeme(str(match.lastgroup), match.group()))
    return lexemes


def _unreadable(character: str) -> str:
    if character in "'\"`":
        return "the quote is never closed"
    if character == ";":
        return "one condition, no second statement"
    if character in "?:@$#{}":
        return f"a condition has no parameters, variables or other uses of {character}"
    if character.isdigit():
        return "a name that begins with a digit is written in `backquotes`"
    return f"{character!r} stands in quotes only; a column with it in its name is written in `backquotes`"


def _check_lexemes(lexemes: list[_Lexeme]) -> None:
    before, depth = _END, 0
    for lexeme, after in zip(lexemes, [*lexemes[1:], _END], strict=True):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(lexeme.text, 0)
        if depth > MAX_DEPTH:
            raise _too_deep()
        if lexeme.kind == "raw" and lexeme.text.endswith(("\\'", '\\"')):
            raise problem(
                "a condition that can be read in one way only",
                f"write {lexeme.text} without r, each backslash twice",
            )
        if lexeme.kind in {"raw", "text"}:
            _check_text(lexeme, before)
        if lexeme.kind in {"name", "quoted"} and after.text == "(":
            _check_call(lexeme, before)
        if lexeme.kind == "name" and lexeme.text.lower() in ANSWERS_OF_THE_SESSION:
            raise _not_of_one_event(
                lexeme.text,
                "the session answers it, not the event; a column of that name is written in `backquotes`",
            )
        before = lexeme


def _check_text(lexeme: _Lexeme, before: _Lexeme) -> None:
    if before.kind in {"raw", "text"}:
        raise problem("a condition that can be read in one way only", "write the two texts as one")
    is_pattern = before.text.lower() in _PATTERN_OPERATORS
    if not is_pattern and _TEXT_OF_THE_RUN.fullmatch(_unescaped(lexeme)):
        raise _not_of_one_event(
            lexeme.text,
            "compared with a time, Spark takes it for the time of the run; write the day, or for a text: "
            f"like {lexeme.text}",
        )


def _check_call(name: _Lexeme, before: _Lexeme) -> None:
    word = name.text.lower()
    if name.kind == "name" and before.text != "." and word in _ALLOWED_FUNCTIONS | KEYWORDS | TYPES.keys():
        return
    known = exp.FUNCTION_BY_NAME.get(word.upper())
    if known is not None and issubclass(known, exp.AggFunc):
        reason = "an aggregate looks at more than one event"
    elif name.kind == "quoted" or before.text == ".":
        reason = "a function is called by its bare name"
    else:
        reason = f"{DOCUMENTED_IN} lists the functions of a condition"
        if misspelt := get_close_matches(word, sorted(_ALLOWED_FUNCTIONS), n=1, cutoff=0.8):
            reason = f"did you mean `{misspelt[0]}`? {reason}"
    raise _not_of_one_event(f"{name.text}(…)", reason)


_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2})|(.))", re.DOTALL)


def _unescaped(lexeme: _Lexeme) -> str:
    """The text that a literal means to Spark."""
    if lexeme.kind == "raw":
        return lexeme.text[2:-1]

    def meant(match: re.Match[str]) -> str:
        short, long, octal, other = match.groups()
        if other is not None:
            return {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "0": "\0"}.get(other, other)
        number = int(octal, 8) if octal else int(short or long, 16)
        return chr(number) if number <= 0x10FFFF else ""

    quote = lexeme.text[0]
    return _ESCAPE.sub(meant, lexeme.text[1:-1].replace(quote * 2, quote))


def _names(lexemes: list[_Lexeme]) -> Counter[str]:
    """Counts each name, functions left out: what sqlglot overlooks is missing in its own text."""
    names: Counter[str] = Counter()
    for lexeme, after in zip(lexemes, [*lexemes[1:], _END], strict=True):
        if lexeme.kind == "quoted":
            names[lexeme.text[1:-1].replace("``", "`").lower()] += 1
        elif (
            lexeme.kind == "name" and after.text != "(" and lexeme.text.lower() not in KEYWORDS | TYPES.keys()
        ):
            names[lexeme.text.lower()] += 1
    return names


# --- the tree -------------------------------------------------------------------------------------


def _check_tree(tree: exp.Expr) -> None:
    readers: set[int] = set()
    for node, depth in _walk(tree):
        if depth > MAX_DEPTH:
            raise _too_deep()
        _check_node(node)
        if _reads_the_event(node):
            ancestor: exp.Expr | None = node
            while ancestor is not None and id(ancestor) not in readers:
                readers.add(id(ancestor))
                ancestor = ancestor.parent
    for node in tree.find_all(exp.Func, exp.DPipe):
        if id(node) not in readers and _makes_a_text(node):
            raise _not_of_one_event(_sql(node), "it is the same for every event; write its result")


def _walk(tree: exp.Expr) -> Iterator[tuple[exp.Expr, int]]:
    """Each node with its depth, in which a chain of AND or OR counts once."""
    stack = [(tree, 1)]
    while stack:
        node, depth = stack.pop()
        yield node, depth
        for child in node.iter_expressions():
            is_chain = isinstance(node, _CONNECTORS) and type(child) is type(node)
            stack.append((child, depth if is_chain else depth + 1))


def _check_node(node: exp.Expr) -> None:
    for kind, reason in _FORBIDDEN_KINDS:
        if isinstance(node, kind):
            raise _not_of_one_event(_sql(node), reason)
    if type(node) not in _NODES or not _stands_where_it_may(node):
        raise _not_of_one_event(
            _sql(node), f"{DOCUMENTED_IN} lists the operators and functions of a condition"
        )
    if isinstance(node, exp.Column) and node.parts[0].name.lower() == "_metadata":
        raise _not_of_one_event(_sql(node), "it tells of the file, and not of the event")
    if (
        isinstance(node, exp.Anonymous)
        and not node.expressions
        and node.name.lower() not in WITHOUT_ARGUMENTS
    ):
        raise _not_of_one_event(_sql(node), "give it an argument; without one it tells of the run")


def _stands_where_it_may(node: exp.Expr) -> bool:
    """Whether Spark reads the node as sqlglot does, where it stands."""
    match node:
        case exp.Any() | exp.All():  # elsewhere they are aggregates
            return isinstance(node.parent, exp.Like | exp.ILike)
        case exp.Is():
            return isinstance(node.expression, exp.Null | exp.Boolean)
        case exp.In():
            return bool(node.expressions)
        case exp.Between():
            return not node.args.get("symmetric")
        case exp.Dot():
            return isinstance(node.expression, exp.Identifier)
        case exp.Anonymous():
            return node.name.lower() in _ALLOWED_FUNCTIONS and isinstance(node.this, str)
        case exp.DataType():
            return node.this in TYPES.values() and not node.args.get("collate")
        case exp.Lambda():
            return isinstance(node.parent, exp.Anonymous | exp.Transform)
        case _:
            return True


def _reads_the_event(node: exp.Expr) -> bool:
    """Whether it is a column or the variable of a lambda function."""
    if isinstance(node, exp.Column):
        return True
    is_part = (
        node.arg_key == "expression" if isinstance(node.parent, exp.Dot) else node.arg_key == "expressions"
    )
    return isinstance(node, exp.Identifier) and not (
        isinstance(node.parent, exp.Column) or (is_part and isinstance(node.parent, exp.Dot | exp.Lambda))
    )


def _makes_a_text(node: exp.Expr) -> bool:
    """Whether it may make a text that Spark would take for the time of the run, such as 'today'."""
    if isinstance(node, exp.Anonymous):
        return node.name.lower() not in OF_CONSTANTS
    if isinstance(node, exp.Cast):
        return node.to.this in {exp.DType.TEXT, exp.DType.CHAR, exp.DType.VARCHAR}
    return isinstance(node, exp.DPipe | exp.Trim | exp.Substring | exp.Overlay)


def _sql(node: exp.Expr) -> str:
    return str(node.sql(dialect=_Conditions))


def _not_of_one_event(what: str, reason: str) -> Exception:
    return problem(f"a Spark SQL condition over one event, without {what}", f"take {what} out: {reason}")


def _too_deep() -> Exception:
    return problem(f"a condition nested at most {MAX_DEPTH} deep", "write it flatter")


def _sql_message(error: SqlglotError) -> str:
    details = getattr(error, "errors", None)
    if not details:
        return str(error).splitlines()[0]
    # sqlglot names the missing part by its Python class; a user knows it by its keyword.
    description = re.sub(r"<class '[\w.]*\.(\w+)'>", r"\1", details[0]["description"])
    return f"{description} (line {details[0]['line']}, column {details[0]['col']})"
