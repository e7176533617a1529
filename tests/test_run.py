"""`./run`: any command in the project's environment, from any shell."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
SHOW = 'for name in "$@"; do eval "value=\\${$name-unset}"; echo "$name=$value"; done'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that is set up, in a folder with a space in its name; its `show` prints variables."""
    root = tmp_path / "a checkout"
    programs = root / ".venv/bin"
    programs.mkdir(parents=True)
    for name, body in {"python": "exit 0", "show": SHOW}.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    (root / ".venv/java_home").write_text("/a/java\n")
    (root / "dagster_instance.yaml").write_text("telemetry: {enabled: false}\n")
    shutil.copy(REPOSITORY / "run", root)
    return root


def run(checkout: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command by `./run` from elsewhere, with nothing but a path in the environment."""
    return subprocess.run(
        [checkout / "run", *command],
        cwd=checkout.parent,
        env={"PATH": os.defpath, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def shown(checkout: Path, *names: str, **environment: str) -> list[str]:
    done = run(checkout, "show", *names, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.partition("=")[2] for line in done.stdout.splitlines()]


def test_a_command_has_the_packages_the_java_and_the_directory_of_the_project(checkout: Path) -> None:
    path, java_home, directory = shown(checkout, "PATH", "JAVA_HOME", "PWD")
    assert path.startswith(f"{checkout}/.venv/bin:")
    assert (java_home, directory) == ("/a/java", str(checkout))


def test_no_foreign_package_comes_before_ours(checkout: Path) -> None:
    assert shown(checkout, "PYTHONPATH", "PYTHONHOME", PYTHONPATH="/foreign", PYTHONHOME="/foreign") == [
        "unset",
        "unset",
    ]


def test_dagsters_commands_are_run_without_the_advice_to_install_others(checkout: Path) -> None:
    [silenced] = shown(checkout, "PYTHONWARNINGS", PYTHONWARNINGS="error")
    assert silenced.split(",") == [
        "error",
        "ignore:Function `dev_command` is superseded",
        "ignore:Function `asset_materialize_command` is superseded",
        "ignore:Function `job_execute_command` is superseded",
    ]


def test_settings_come_from_the_environment_and_dotenv_which_wins(checkout: Path) -> None:
    (checkout / ".env").write_text('DATA_DIR="/my data"\n')
    variables = shown(checkout, "DATA_DIR", "AUDIENCES_DIR", DATA_DIR="/other", AUDIENCES_DIR="mine")
    assert variables == ["/my data", "mine"]


def test_dagster_has_a_home_with_the_settings_of_the_checkout(checkout: Path) -> None:
    assert shown(checkout, "DAGSTER_HOME") == [f"{checkout}/dagster_home"]
    (checkout / "dagster_instance.yaml").write_text("changed\n")
    assert (checkout / "dagster_home/dagster.yaml").read_text() == "changed\n"


def test_a_home_that_is_named_is_made_and_absolute(checkout: Path) -> None:
    assert shown(checkout, "DAGSTER_HOME", DAGSTER_HOME="homes/mine") == [f"{checkout}/homes/mine"]
    assert (checkout / "homes/mine/dagster.yaml").read_text() == "telemetry: {enabled: false}\n"


def test_a_moved_checkout_finds_its_settings_again(checkout: Path) -> None:
    run(checkout, "true")
    moved = checkout.rename(checkout.with_name("moved"))
    run(moved, "true")
    assert (moved / "dagster_home/dagster.yaml").read_text() == "telemetry: {enabled: false}\n"


def test_settings_of_the_users_own_stay(checkout: Path) -> None:
    (checkout / "dagster_home").mkdir()
    (checkout / "dagster_home/dagster.yaml").write_text("mine\n")
    run(checkout, "true")
    assert (checkout / "dagster_home/dagster.yaml").read_text() == "mine\n"


def test_arguments_and_the_exit_status_are_the_commands(checkout: Path) -> None:
    done = run(checkout, "sh", "-c", 'printf "<%s>" "$@"; exit 7', "sh", "two words", "", "*")
    assert (done.returncode, done.stdout) == (7, "<two words><><*>")


def test_without_an_environment_it_says_how_to_make_it(checkout: Path) -> None:
    shutil.rmtree(checkout / ".venv")
    done = run(checkout, "true")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "run: The project is not set up\n"
        f"  found:    no {checkout}/.venv/bin/python\n"
        "  expected: the environment that set-up makes\n"
        "  remedy:   make setup\n"
    )


def test_without_a_command_it_says_what_it_is_for(checkout: Path) -> None:
    done = run(checkout)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ./run COMMAND [ARGUMENT]...")
