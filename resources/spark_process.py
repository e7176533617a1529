"""The JVM behind a Spark session: started so that it never outlives this process, and watched.

PySpark's own start, when interrupted, removes the folder where the JVM is to write its address; the JVM fails
to write it and stays for ever, since only its main thread ends (Spark 4.3). Here the start owns the process
and ends it. Should this process be killed, the JVM reads the end of its standard input, and ends itself.
"""

import atexit
import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyspark
from py4j.protocol import Py4JError  # type: ignore[import-untyped]
from pyspark import SparkContext
from pyspark.java_gateway import launch_gateway
from pyspark.sql import SparkSession, SQLContext

from pipelines.steps.errors import AudienceFactoryError, ConfigError
from resources.spark_scratch import Scratch, claim

ENDING_SECONDS = 20
"""Time for a JVM to stop its tasks and remove its files; then it is killed."""
_EXIT_STATUSES = {52: "out of memory", 50: "an exception that nothing caught", 3: "out of memory"}
"""Spark's own (`SparkExitCode`), and that of `-XX:+ExitOnOutOfMemoryError`."""


class SparkLostError(AudienceFactoryError):
    """Spark's JVM, context or server went away by itself: the infrastructure's fault, no asset's."""

    def __init__(self, what: str, *, found: str) -> None:
        super().__init__(
            what,
            found=found,
            expected="a Spark that lives as long as the run",
            remedy="give the machine more memory, or Spark's driver less of it (spark.driver.memory in "
            "SPARK_CONF); Dagster tries the run again, as `run_retries` of dagster.yaml says",
        )


@dataclass(frozen=True)
class _Jvm:
    process: subprocess.Popen[bytes]
    scratch: Scratch
    owner: int


_running: _Jvm | None = None
"""What `start` has started: one for a process, as PySpark's own gateway."""


def start(settings: Mapping[str, str]) -> None:
    """Starts a JVM and hands it to PySpark, which then starts no other; does nothing where one runs already.

    Args:
        settings: Of the session to be made; some, such as the driver's memory, the JVM needs at its start.

    Raises:
        ConfigError: Spark ended at once, without being killed.
        SparkLostError: The JVM was killed before it could be used.
    """
    global _running
    if SparkContext._gateway is not None:
        return
    roots = os.environ.get("SPARK_LOCAL_DIRS") or settings.get("spark.local.dir") or tempfile.gettempdir()
    scratch = claim(Path(roots.split(",")[0]))
    address = scratch.path / "address"
    try:
        _running = _Jvm(_launch(settings, scratch, address), scratch, os.getpid())
        _connect(_running.process, address)
    except BaseException:
        # Interrupted before Popen returned, the process is unknown: it ends at the end of its input, provided
        # that it finds the scratch folder, which the next start removes.
        end(patience=0)
        raise
    atexit.register(end)


def end(patience: float = ENDING_SECONDS) -> None:
    """Ends the JVM that `start` has started, and makes PySpark forget it.

    Args:
        patience: Seconds until it is killed.
    """
    global _running
    jvm, _running = _running, None
    atexit.unregister(end)
    if jvm is None or jvm.owner != os.getpid():
        return  # in a fork, it is the parent's
    try:
        if patience and jvm.process.poll() is None:
            _end_by_itself(jvm.process, patience)
    finally:
        _kill(jvm.process)
        jvm.scratch.remove()
        _forget()


def end_lost() -> None:
    """Clears away a Spark that was lost, so that the next session finds a new one; leaves one that lives."""
    if find_loss() is not None:
        end(patience=0)
        _forget()


def find_loss() -> SparkLostError | None:
    """What happened to the JVM that PySpark holds; None while it answers, and where there is none."""
    if SparkContext._gateway is None:
        return None
    process: subprocess.Popen[bytes] | None = getattr(SparkContext._gateway, "proc", None)
    status = process.poll() if process else None
    if status is None:
        if _answers():
            return _find_stop()
        status = _await_end(process)
    what = "Spark's JVM died" if status is not None else "Spark's JVM does not answer"
    return SparkLostError(what, found=_describe_exit(status))


def _launch(settings: Mapping[str, str], scratch: Scratch, address: Path) -> subprocess.Popen[bytes]:
    home = Path(os.environ.get("SPARK_HOME") or Path(pyspark.__file__).parent)
    command = [str(home / "bin" / "spark-submit")]
    for key, value in settings.items():
        command += ["--conf", f"{key}={value}"]
    command += shlex.split(os.environ.get("PYSPARK_SUBMIT_ARGS", "pyspark-shell"))
    temporary = shlex.quote(f"-Djava.io.tmpdir={scratch.path}")
    environment = {
        **os.environ,
        "SPARK_CONNECT_MODE": "0",
        "_PYSPARK_DRIVER_CONN_INFO_PATH": str(address),
        # By environment, not as spark.local.dir, which would reach executors on other machines.
        "SPARK_LOCAL_DIRS": str(scratch.path),
        "SPARK_SUBMIT_OPTS": f"{temporary} {os.environ.get('SPARK_SUBMIT_OPTS', '')}".strip(),
    }
    environment.pop("SPARK_REMOTE", None)  # this one is a JVM of our own, perhaps of a local Connect server
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        env=environment,
        pass_fds=[scratch.lock],
        # Ctrl-C in a terminal is for us, who then end it; and one signal reaches all that it starts.
        start_new_session=True,
    )


def _connect(process: subprocess.Popen[bytes], address: Path) -> None:
    while not address.exists():
        if process.poll() is not None:
            raise _explain_failed_start(process.returncode)
        time.sleep(0.05)
    told = address.read_bytes()  # the port, the secret's length, the secret
    port, secret = int.from_bytes(told[:4]), told[8:].decode()
    # How spark-submit tells a Python program of the JVM that is there already.
    variables = {"PYSPARK_GATEWAY_PORT": str(port), "PYSPARK_GATEWAY_SECRET": secret}
    try:
        os.environ.update(variables)
        gateway: Any = launch_gateway()  # type: ignore[no-untyped-call]
    finally:
        for name in variables:
            os.environ.pop(name, None)
    gateway.proc = process
    SparkContext._ensure_initialized(gateway=gateway)


def _explain_failed_start(status: int) -> AudienceFactoryError:
    if status < 0:
        return SparkLostError("Spark's JVM died while it started", found=_describe_exit(status))
    return ConfigError(
        "Spark does not start",
        found=_describe_exit(status),
        expected="a JVM that takes these settings",
        remedy="read what it wrote to stderr; correct SPARK_CONF, SPARK_HOME or JAVA_HOME (Java 17 or newer)",
    )


def _end_by_itself(process: subprocess.Popen[bytes], patience: float) -> None:
    if process.stdin:
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience)


def _kill(process: subprocess.Popen[bytes]) -> None:
    # Of its group, too: the launcher while it starts, executors that a dead driver leaves.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin:
        process.stdin.close()


def _forget() -> None:
    """Lets PySpark start anew: it keeps its gateway and sessions for ever, those of a dead JVM too."""
    context: Any = SparkContext._active_spark_context
    if context is not None:
        context._jsc = None  # else it would call the JVM
        context.stop()
    gateway: Any = SparkContext._gateway
    SparkContext._gateway = SparkContext._jvm = None
    SparkSession._instantiatedSession = SparkSession._activeSession = None
    SQLContext._instantiatedContext = None
    if gateway is not None:
        gateway.shutdown()


def _answers() -> bool:
    try:
        jvm: Any = SparkContext._jvm
        jvm.java.lang.System.nanoTime()
    except (Py4JError, OSError):
        return False
    return True


def _await_end(process: subprocess.Popen[bytes] | None) -> int | None:
    if process is None:
        return None
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(5)
    return None


def _find_stop() -> SparkLostError | None:
    """Whether a context stopped that nobody stopped here: its master went away, or it ran out of memory."""
    context: Any = SparkContext._active_spark_context
    try:
        if context is None or context._jsc is None or not context._jsc.sc().isStopped():
            return None
    except (Py4JError, OSError):
        return SparkLostError("Spark's JVM died", found="no answer")
    return SparkLostError("Spark's context stopped by itself", found="its log, in the run's stderr, says why")


def _describe_exit(status: int | None) -> str:
    if status is None:
        return "no answer"
    if status == -signal.SIGKILL:
        return f"exit status {status}: killed, often by the kernel for lack of memory"
    if status < 0:
        return f"exit status {status}: ended by {signal.Signals(-status).name}"
    return f"exit status {status}: {_EXIT_STATUSES.get(status, 'see the log, in the stderr of this process')}"
