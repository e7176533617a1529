"""The Spark session: lazy, typed, local, on a cluster, or through Spark Connect."""

import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster_pyspark import LazyPySparkResource
from pydantic import Field, PrivateAttr
from pyspark import SparkContext
from pyspark.sql import SparkSession

from pipelines.steps.errors import ConfigError
from pipelines.steps.progress import working
from pipelines.steps.scoring import worker_daemon
from resources import run_retries, spark_process

LOCAL_MASTER = "local[*,4]"
"""All cores; and a task whose Python worker dies is tried again, up to 4 times, as it is on a cluster."""

_ALWAYS = {
    "spark.sql.session.timeZone": "UTC",
    # A partition is written to a directory of its own, so nothing is ever overwritten in place.
    "spark.sql.sources.partitionOverwriteMode": "static",
    # Parquet rows keep the writer's types: a field that is missing is an error, never a silent null.
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    # A task writes so many partitions side by side; with one at a time Spark would sort its rows by them.
    "spark.sql.maxConcurrentOutputFileWriters": "64",
    # A Python worker that stands still is ended, so that Spark tries its task again.
    "spark.sql.execution.pyspark.udf.killOnIdleTimeout": "true",
}
_LOCAL = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    # A year of days is 366 directories: listed in the driver in a moment, but as 366 tasks in a minute.
    "spark.sql.sources.parallelPartitionDiscovery.threshold": "10000",
}


def parse_conf(text: str) -> dict[str, str]:
    """Spark settings written as "key=value key=value"; quotes as in a shell.

    Raises:
        ConfigError: An entry is not of that form.
    """
    try:
        entries = shlex.split(text)
    except ValueError:  # a quote without its other half
        entries = [text]
    for entry in entries:
        if not re.fullmatch(r"spark\.[\w.-]+=[^\"']*", entry):
            raise ConfigError(
                "SPARK_CONF holds what is no Spark setting",
                found=entry,
                expected="entries like spark.executor.memory=8g, with spaces between them",
                remedy="correct it in the environment or in .env; quote a value that holds a space",
            )
    return dict(entry.split("=", 1) for entry in entries)


@contextmanager
def _kept_signal_handler() -> Iterator[None]:
    """Takes back PySpark's handler of Ctrl-C.

    It would call the JVM in the middle of another call, which breaks both, and take the place of Dagster's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


class Spark(dg.ConfigurableResource):  # type: ignore[type-arg]
    """A Spark session that starts when first asked for and stops with the run that started it.

    It composes dagster-pyspark's `LazyPySparkResource`, which has no Connect and never stops.
    """

    master: str = Field(default=LOCAL_MASTER, description="Spark master URL, used unless `remote` is set.")
    remote: str | None = Field(default=None, description="Spark Connect URL, such as sc://host:15002.")
    app_name: str = Field(default="audience_factory", description="Name shown in Spark's own UI.")
    driver_memory: str = Field(default="2g", description="Heap of the driver's JVM.")
    python_memory: str | None = Field(
        default=None,
        description="Limit of an executor's Python workers, such as 4g; none if unset. It limits address "
        "space: a worker that loads XGBoost needs 3g of it, whatever it uses.",
    )
    python_idle_seconds: int = Field(
        default=600,
        ge=0,
        description="Seconds of silence after which a Python worker is ended and its task tried again.",
    )
    shuffle_partitions: int = Field(default=8, ge=1, description="Tasks after a shuffle, before coalescing.")
    conf: dict[str, str] = Field(default={}, description="Any other Spark setting; wins over the above.")

    _session: Any = PrivateAttr(default=None)
    _owned: bool = PrivateAttr(default=False)
    _context: Any = PrivateAttr(default=None)
    _loss: spark_process.SparkLostError | None = PrivateAttr(default=None)

    @classmethod
    def from_environment(cls, **settings: Any) -> "Spark":
        """The Spark that SPARK_MASTER, SPARK_REMOTE and SPARK_CONF ask for.

        Args:
            settings: Other fields of this class.

        Raises:
            ConfigError: As `parse_conf`.
        """
        return cls(
            master=os.environ.get("SPARK_MASTER", LOCAL_MASTER),
            remote=os.environ.get("SPARK_REMOTE") or None,
            conf=parse_conf(os.environ.get("SPARK_CONF", "")),
            **settings,
        )

    @property
    def session(self) -> SparkSession:
        """The session, started now if there is none.

        Raises:
            SparkLostError: It went away by itself; a new run, or this one after `stop`, gets a new one.
        """
        if self._session is None:
            try:
                self._open()
            except spark_process.SparkLostError as error:
                self._loss = error
                raise
        elif loss := self._find_loss():
            raise loss
        return self._session  # type: ignore[no-any-return]

    @property
    def is_local(self) -> bool:
        """Whether there are no executors but this machine's own process."""
        return self.remote is None and self.master.startswith("local")

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Takes back what the run inherited from one that lost Spark, of which it is the retry."""
        run_retries.forget_inherited_loss(context)

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Stops the session, unless it was there before; a run that lost its Spark is to be tried again."""
        self._loss = self._find_loss() or run_retries.find_lost_server(context)
        if self._loss:
            run_retries.request_retry(context, self._loss)
        self.stop()

    def stop(self) -> None:
        """Stops the session and its JVM, unless they were there before (in a notebook, shared by tests)."""
        if self._session is not None and self._owned:
            self._close()
            spark_process.end()
        self._session = self._context = self._loss = None

    def _close(self) -> None:
        if self.remote:
            # Spark Connect asks a server that is gone for ten minutes, here to forget the session.
            self._session.release_session_on_close = self._loss is None
            self._session.stop()
        elif self._find_loss() is None and self._context is SparkContext._active_spark_context:
            self._session.stop()

    def _open(self) -> None:
        spark_process.end_lost()
        # Each thread has its own active session; the context tells of one that another thread started.
        self._owned = SparkSession.getActiveSession() is None and SparkContext._active_spark_context is None
        try:
            name = "Spark starts" if self._owned else "taking the Spark of this process"
            with working(name) as work, _kept_signal_handler():
                self._session = self._connect() if self.remote else self._start()
                work.result = f"Spark {self._session.version}, {self.remote or self.master}"
        except BaseException:
            if self._owned:  # interrupted half-way, or refused: nothing of it is of use
                spark_process.end(patience=0)
            raise
        self._context = SparkContext._active_spark_context

    def _find_loss(self) -> spark_process.SparkLostError | None:
        if self._session is not None:
            self._loss = self._loss or spark_process.find_loss()
        return self._loss

    def _settings(self) -> dict[str, str]:
        return {
            **_ALWAYS,
            "spark.app.name": self.app_name,
            "spark.sql.shuffle.partitions": str(self.shuffle_partitions),
            "spark.sql.execution.pyspark.udf.idleTimeoutSeconds": str(self.python_idle_seconds),
            **self.conf,
        }

    def _start(self) -> SparkSession:
        # Workers must be this interpreter: another one has neither our packages nor our versions.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        if self.master.startswith("local"):
            os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        settings = {
            "spark.master": self.master,
            "spark.driver.memory": self.driver_memory,
            **({"spark.executor.pyspark.memory": self.python_memory} if self.python_memory else {}),
            "spark.ui.showConsoleProgress": "false",
            "spark.log.level": "ERROR",
            "spark.python.daemon.module": worker_daemon.__name__,
            **(_LOCAL if self.master.startswith("local") else {}),
            **self._settings(),
        }
        spark_process.start(settings)
        return LazyPySparkResource(spark_config=settings).spark_session  # type: ignore[no-any-return]

    def _connect(self) -> SparkSession:
        if self.remote and self.remote.startswith("local"):
            spark_process.start(self._settings())  # its server runs in a JVM of this process
        builder = SparkSession.builder.remote(self.remote or "")
        for key, value in self._settings().items():
            builder = builder.config(key, value)
        return builder.getOrCreate()
