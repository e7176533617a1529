"""What several test files share: one local Spark session, and tables written as literals."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import dagster as dg
import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType
from sqlalchemy import Engine, event

from resources.spark import Spark

if TYPE_CHECKING:
    from tests.small_project import Chain
    from tests.ui_server import UiServer

Frame = Callable[[str, Sequence[Sequence[object]]], DataFrame]
"""Schema as DDL, and rows in its order → a frame."""
FAST_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:ReservedCodeCacheSize=240m"
"""On tables of a few rows nothing runs often enough to pay for the JVM's second compiler. Without it the JVM
has a fifth of the room for code, unless told otherwise, and Spark fills that in a minute."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Lets the workers of `make test` share the files, those that need the small project's chain as one.

    A file's fixtures are made once that way; the chain takes longer than most files.
    """
    from xdist.scheduler import LoadFileScheduling  # here: whoever runs a single file need not have it

    tests = Path(__file__).parent
    need_chain = {path.name for path in tests.glob("test_*.py") if "chain: Chain" in path.read_text()}

    class Sharing(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "chain" if Path(file).name in need_chain else file

    return Sharing(config, log)


@pytest.fixture(scope="session", autouse=True)
def hasty_histories() -> Iterator[None]:
    """Lets Dagster's histories, in SQLite, wait for no disk: no test cuts the power."""

    def hurry(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", hurry)
    yield
    event.remove(Engine, "connect", hurry)


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """One session for all tests: starting a JVM takes longer than most of them."""
    resource = Spark(
        master="local[2]",
        app_name="tests",
        driver_memory="1g",
        shuffle_partitions=2,
        conf={
            "spark.ui.enabled": "false",
            "spark.driver.extraJavaOptions": FAST_JVM,
        },
    )
    yield resource.session
    resource.teardown_after_execution(dg.build_init_resource_context())


@pytest.fixture(scope="session")
def program_environment() -> Mapping[str, str]:
    """The environment of a program with its own Spark."""
    return {**os.environ, "JDK_JAVA_OPTIONS": FAST_JVM}


@pytest.fixture(scope="session")
def frame(spark: SparkSession) -> Frame:
    """Makes a frame from literal rows, by way of Arrow: times mean UTC wherever the tests run."""

    def make(ddl: str, rows: Sequence[Sequence[object]]) -> DataFrame:
        schema = cast("StructType", StructType.fromDDL(ddl))
        columns: list[Any] = [[row[place] for row in rows] for place in range(len(schema))]
        arrow = to_arrow_schema(schema, timezone="UTC")
        arrays = [pa.array(column, field.type) for column, field in zip(columns, arrow, strict=True)]
        table: Any = pa.Table.from_arrays(arrays, schema=arrow)  # Spark's types do not know that it takes one
        return spark.createDataFrame(table, schema)

    return make


@pytest.fixture(scope="session")
def chain(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Chain]":
    """The small project, after its whole chain has run: once for all tests."""
    # Here, because it binds the project: tests of single steps need not wait for that.
    from tests.small_project import run_chain, write_small_project

    root = tmp_path_factory.mktemp("small_project")
    finished = run_chain(write_small_project(root), root / "dagster_home")
    yield finished
    finished.instance.dispose()


@pytest.fixture(scope="session")
def ui_server(
    chain: "Chain", program_environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[UiServer]":
    """The UI, with its daemon, on a copy of the small project's history and data, and one run of a demo."""
    from tests.ui_server import run_as_the_demo_does, serving  # binds the project, too

    root = tmp_path_factory.mktemp("ui")
    home = shutil.copytree(chain.home, root / "dagster_home")
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        run_as_the_demo_does(instance)
    with serving(home, chain.project.copied_to(root / "data"), program_environment) as server:
        yield server


@pytest.fixture(scope="session")
def ui(ui_server: "UiServer") -> str:
    """The address of the UI."""
    return ui_server.address


@pytest.fixture(scope="session")
def launched_run(ui: str) -> str:
    """The id of a finished run that the UI launched: `daily_fields` for the first day."""
    from tests.small_project import FIRST_DAY
    from tests.ui_server import launch_day

    return launch_day(ui, str(FIRST_DAY))
