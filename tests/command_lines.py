"""Tells whether command lines are understood by their programs, without running what they ask for.

    ./run python -m tests.command_lines < LINES

A program is started as it would be, in this process, and stopped once it has understood its arguments.
Each line that is not understood is printed with the reason.
"""

import argparse
import contextlib
import io
import os
import runpy
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import click
from dagster._cli import create_dagster_cli


class Understood(BaseException):
    """Ends a program that has read its arguments; not an Exception, so that no program handles it."""


def misunderstanding(words: Sequence[str]) -> str | None:
    """Why a command line is not understood; None where it is."""
    match words:
        case ["python", "-m", module, *arguments]:
            return _of_module(module, arguments)
        case ["dagster", *arguments]:
            return _of_click(create_dagster_cli(), arguments)  # type: ignore[no-untyped-call]
        case ["pip", "install", "-e", extra]:
            return None if extra == ".[benchmarks]" else f"there is no {extra}"
        case _:
            return "a program that this test does not know"


def _of_module(module: str, arguments: Sequence[str]) -> str | None:
    sys.argv = [module, *arguments]
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            runpy.run_module(module, run_name="__main__", alter_sys=False)
    except Understood:
        return None
    except (SystemExit, ImportError) as ended:
        return f"{told.getvalue()}{ended!r}"
    return f"{module} read no arguments"


def _of_click(command: click.Command, arguments: Sequence[str]) -> str | None:
    try:
        context = command.make_context(command.name, list(arguments))
        while isinstance(command, click.Group):
            name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            if name is None or found is None:
                return f"no command in {arguments}"
            command, context = found, found.make_context(name, rest, parent=context)
    except click.ClickException as error:
        return error.format_message()
    return None


def main() -> None:
    """Prints what is not understood of the lines on standard input."""
    read = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *given: Any, **named: Any) -> None:
        read(parser, *given, **named)
        raise Understood

    argparse.ArgumentParser.parse_args = stop  # type: ignore[method-assign,assignment]
    for line in sys.stdin:
        if reason := misunderstanding(shlex.split(line)):
            sys.stdout.write(f"{line.strip()}: {reason}\n")
    sys.stdout.flush()
    os._exit(0)  # what the programs imported may wait for what was never started


if __name__ == "__main__":
    main()
