"""Every command that the documentation names runs as written, from a fresh shell."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
# Programs that a fresh shell has not, or not those of the project.
NEEDS_RUN = re.compile(r"(python3?|pip|dagster|pytest|ruff|mypy) ")
IS_COMMAND = re.compile(r"(make|\./run) [^=]")


def commands(text: str) -> list[str]:
    """The commands in a page's fenced blocks and backticks."""
    block = re.compile(r"^```(?:sh|bash)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    lines = [line.split("  #")[0] for found in block.findall(text) for line in found.splitlines()]
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    return [" ".join(code.replace("\\|", "|").split()) for code in (*lines, *inline)]


DOCUMENTED = [(page.name, command) for page in PAGES for command in commands(page.read_text())]
COMMANDS = sorted({command for _, command in DOCUMENTED if IS_COMMAND.match(command)})


def in_a_fresh_shell(
    script: str, home: Path, typed: str = "", **settings: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script where nothing is set up: no environment is active, no variable set."""
    fresh: Mapping[str, str] = {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin", **settings}
    return subprocess.run(
        ["bash", "-c", script],
        cwd=REPOSITORY,
        env=fresh,
        input=typed,
        capture_output=True,
        text=True,
        check=False,
    )


def test_commands_are_found_in_blocks_and_in_text() -> None:
    page = "Do `make ui`, or `./run a\n--b`:\n\n```\nmake test    # all\n```\n\n```mermaid\na --> b\n```\n"
    assert [code for code in commands(page) if IS_COMMAND.match(code)] == [
        "make test",
        "make ui",
        "./run a --b",
    ]


def test_no_command_needs_an_active_environment() -> None:
    assert [found for found in DOCUMENTED if NEEDS_RUN.match(found[1])] == []


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_make_knows_its_targets(command: str, tmp_path: Path) -> None:
    done = in_a_fresh_shell(f"{command} --dry-run", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_every_other_command_is_understood_by_its_program(tmp_path: Path) -> None:
    lines = [command.removeprefix("./run ") for command in COMMANDS if command.startswith("./run ")]
    lines.remove("COMMAND")
    assert len(lines) > 10
    script = "./run python -m tests.command_lines"
    done = in_a_fresh_shell(script, tmp_path, "\n".join(lines), DAGSTER_HOME=str(tmp_path / "home"))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_command_runs_from_a_fresh_shell(tmp_path: Path) -> None:
    script = f"./run python -m pipelines.models list --data-dir {tmp_path}"
    done = in_a_fresh_shell(script, tmp_path, DAGSTER_HOME=str(tmp_path / "home"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"no model in {tmp_path}/models: run the training job")
