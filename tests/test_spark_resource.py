"""The Spark session: started when first asked for, stopped by who started it, alike in every worker."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

import pipelines
from pipelines.steps.errors import ConfigError
from resources.spark import Spark, parse_conf

REPOSITORY = Path(__file__).parent.parent


def run(code: str) -> dict[str, Any]:
    """What a fresh interpreter prints as JSON."""
    finished = subprocess.run(
        [sys.executable, "-c", dedent(code)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    printed: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return printed


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "conf"),
    [
        ("", {}),
        ("  spark.executor.memory=8g ", {"spark.executor.memory": "8g"}),
        (
            "spark.a=1 spark.executor.extraJavaOptions='-Da=b -Dc=d'",
            {"spark.a": "1", "spark.executor.extraJavaOptions": "-Da=b -Dc=d"},
        ),
    ],
)
def test_settings_are_read_as_a_shell_would(text: str, conf: dict[str, str]) -> None:
    assert parse_conf(text) == conf


@pytest.mark.parametrize("text", ["8g", "executor.memory=8g", "spark.a=1, x", "spark.a='1", "spark.=1"])
def test_what_is_no_setting_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="SPARK_CONF holds what is no Spark setting"):
        parse_conf(text)


# --- starting and stopping ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def life() -> dict[str, Any]:
    """A session from beginning to end, in a process of its own."""
    return run(
        """
        import json, threading
        import dagster as dg
        from pyspark import SparkContext
        from pyspark.sql import SparkSession
        from resources.spark import Spark

        seen = {}
        spark = Spark(master="local[1]", conf={
            "spark.ui.enabled": "false",
            "spark.app.name": "from conf",
            # Short jobs, as in conftest.py.
            "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        })
        seen["started by construction"] = SparkContext._gateway is not None
        never_asked = Spark(master="local[1]")
        never_asked.teardown_after_execution(dg.build_init_resource_context())
        seen["started by teardown"] = SparkContext._gateway is not None

        session = spark.session
        seen["same session"] = spark.session is session
        names = ["spark.master", "spark.sql.session.timeZone", "spark.driver.host", "spark.app.name"]
        seen["settings"] = [session.conf.get(name) for name in names]

        def borrow():
            second = Spark(master="local[1]")
            second.session.range(1).count()
            second.teardown_after_execution(dg.build_init_resource_context())

        borrow()
        seen["survives another's teardown"] = session.range(3).count() == 3
        thread = threading.Thread(target=borrow)
        thread.start()
        thread.join()
        seen["survives another thread's teardown"] = session.range(3).count() == 3

        spark.teardown_after_execution(dg.build_init_resource_context())
        seen["stopped by its own"] = SparkSession.getActiveSession() is None
        print(json.dumps(seen))
        """
    )


def test_constructing_starts_nothing(life: dict[str, Any]) -> None:
    assert not life["started by construction"]


def test_a_session_never_asked_for_is_not_started_to_be_stopped(life: dict[str, Any]) -> None:
    assert not life["started by teardown"]


def test_one_resource_has_one_session(life: dict[str, Any]) -> None:
    assert life["same session"]


def test_settings_of_the_user_win(life: dict[str, Any]) -> None:
    assert life["settings"] == ["local[1]", "UTC", "127.0.0.1", "from conf"]


def test_teardown_leaves_a_session_that_it_did_not_start(life: dict[str, Any]) -> None:
    assert life["survives another's teardown"]
    assert life["survives another thread's teardown"]


def test_teardown_stops_the_session_that_it_started(life: dict[str, Any]) -> None:
    assert life["stopped by its own"]


def test_a_run_that_borrows_the_session_gives_it_back(spark: SparkSession) -> None:
    @dg.asset
    def counted(spark: Spark) -> dg.MaterializeResult:  # type: ignore[type-arg]
        return dg.MaterializeResult(metadata={"rows": spark.session.range(5).count()})

    result = dg.materialize([counted], resources={"spark": Spark(master="local[1]")})
    assert result.success
    assert spark.range(3).count() == 3


# --- the session of the tests ---------------------------------------------------------------------


def test_times_are_utc(spark: SparkSession) -> None:
    assert spark.conf.get("spark.sql.session.timeZone") == "UTC"
    [row] = spark.sql("SELECT CAST(TIMESTAMP '2025-03-10 00:00:00' AS long) AS seconds").toArrow().to_pylist()
    assert row["seconds"] == 1_741_564_800


def test_nothing_listens_beyond_this_machine(spark: SparkSession) -> None:
    assert spark.conf.get("spark.driver.bindAddress") == "127.0.0.1"
    assert spark.conf.get("spark.driver.host") == "127.0.0.1"


def test_workers_are_this_interpreter_with_these_packages(spark: SparkSession) -> None:
    def tell(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pipelines

        for _ in batches:
            yield pa.RecordBatch.from_pylist([{"python": sys.executable, "pipelines": pipelines.__file__}])

    [row] = (
        spark.range(1, numPartitions=1)
        .mapInArrow(tell, "python string, pipelines string")
        .toArrow()
        .to_pylist()
    )
    assert row == {"python": sys.executable, "pipelines": pipelines.__file__}
    assert os.environ["PYSPARK_PYTHON"] == sys.executable


@pytest.mark.parametrize("wrong", [{"shuffle_partitions": 0}, {"shuffle_partitions": "many"}], ids=str)
def test_a_wrong_setting_is_refused_where_it_is_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Spark(**wrong)
