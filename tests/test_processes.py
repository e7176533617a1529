"""No process outlives its run, a run that lost its Spark is tried again, and no scratch folder stays."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest

from resources.spark_scratch import LOCK, PREFIX, claim, remove_abandoned

REPOSITORY = Path(__file__).parent.parent
GONE_SECONDS = 20

# --- scratch folders ------------------------------------------------------------------------------


def test_a_scratch_folder_is_this_users_alone(tmp_path: Path) -> None:
    scratch = claim(tmp_path)
    assert scratch.path.parent == tmp_path
    assert scratch.path.name.startswith(f"{PREFIX}{os.getpid()}_")
    assert scratch.path.stat().st_mode & 0o777 == 0o700
    scratch.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_living_process_stays(tmp_path: Path) -> None:
    with claim_elsewhere(tmp_path) as other:
        mine = claim(tmp_path)
        assert remove_abandoned(tmp_path) == []
        assert len(list(tmp_path.iterdir())) == 2
        other.kill()
    mine.remove()


def test_the_folder_of_a_killed_process_is_removed_at_the_next_start(tmp_path: Path) -> None:
    with claim_elsewhere(tmp_path) as other:
        [abandoned] = tmp_path.iterdir()
        (abandoned / "blockmgr-1").mkdir()
        (abandoned / "blockmgr-1" / "ids").write_text("d-1")
        other.kill()
    mine = claim(tmp_path)
    assert list(tmp_path.iterdir()) == [mine.path]
    mine.remove()


def test_the_folder_stays_while_a_child_that_inherited_its_lock_lives(tmp_path: Path) -> None:
    """The JVM of a killed process: it ends a moment later."""
    scratch = claim(tmp_path)
    with subprocess.Popen(["sleep", "60"], pass_fds=[scratch.lock]) as child:
        os.close(scratch.lock)
        assert remove_abandoned(tmp_path) == []
        child.kill()
    assert remove_abandoned(tmp_path) == [scratch.path]


def test_a_folder_whose_removal_was_cut_short_is_removed(tmp_path: Path) -> None:
    scratch = claim(tmp_path)
    (scratch.path / LOCK).unlink()
    os.close(scratch.lock)
    assert remove_abandoned(tmp_path) == [scratch.path]


def test_folders_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "spark-1234").mkdir()
    assert remove_abandoned(tmp_path) == []
    assert (tmp_path / "spark-1234").exists()


def claim_elsewhere(root: Path) -> "subprocess.Popen[str]":
    """A process that holds a scratch folder; returns when it has it."""
    code = f"from pathlib import Path; from resources.spark_scratch import claim; import time; \
        claim(Path({str(root)!r})); print('claimed', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    return process


# --- ends at any moment ---------------------------------------------------------------------------

PROGRAM = """
    import time
    from collections.abc import Iterator
    from resources.spark import Spark

    def stay(batches):
        print("in a worker", flush=True)
        time.sleep(600)
        yield from batches

    spark = Spark(master="local[1]", conf={"spark.ui.enabled": "false"})
    spark.session.range(1).mapInArrow(stay, "id long").count()
"""


def started(tree: list[psutil.Process], printed: str) -> bool:
    """The JVM's launcher, a shell, has just begun."""
    return len(tree) > 0


def starting(tree: list[psutil.Process], printed: str) -> bool:
    """The JVM itself has begun, and has not yet told its address."""
    return any("org.apache.spark.deploy.SparkSubmit" in command_of(process) for process in tree)


def working(tree: list[psutil.Process], printed: str) -> bool:
    """A Python worker is in the middle of a task."""
    return "in a worker" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "with_signal"),
    [
        (started, signal.SIGINT),
        (starting, signal.SIGINT),
        (starting, signal.SIGKILL),
        (working, signal.SIGTERM),
    ],
    ids=lambda value: getattr(value, "__name__", None) or value.name,
)
def test_no_process_outlives_the_program(
    moment: Callable[[list[psutil.Process], str], bool],
    with_signal: signal.Signals,
    program_environment: Mapping[str, str],
    tmp_path: Path,
) -> None:
    mark, log = uuid.uuid4().hex, tmp_path / "printed"
    environment = {**program_environment, "TEST_MARK": mark, "TMPDIR": str(tmp_path)}
    with log.open("w") as stream:
        program = subprocess.Popen(
            [sys.executable, "-c", dedent(PROGRAM)],
            cwd=REPOSITORY,
            env=environment,
            stdout=stream,
            stderr=stream,
        )
    try:
        while not moment(psutil.Process(program.pid).children(recursive=True), log.read_text()):
            assert program.poll() is None, log.read_text()
            time.sleep(0.02)
        program.send_signal(with_signal)
        program.wait(60)
        assert wait_until_gone(mark) == []
    finally:
        for process in marked(mark):
            process.kill()
    # A process that ends loses its environment a moment before its lock on the folder.
    end = time.monotonic() + 10
    while scratch_of(tmp_path) and time.monotonic() < end:
        claim(tmp_path).remove()
        time.sleep(0.1)
    assert scratch_of(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == [log.name]


def scratch_of(root: Path) -> list[str]:
    return [path.name for path in root.glob("audience_factory_spark_*")]


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def marked(mark: str) -> Iterator[psutil.Process]:
    """Living processes that were started with this mark in their environment, whoever their parent is now."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("TEST_MARK") == mark:
                yield process
        except psutil.Error:
            continue  # another user's, or it has just ended


def wait_until_gone(mark: str) -> list[list[str]]:
    """The commands of those that are still there after a while."""
    until = time.monotonic() + GONE_SECONDS
    while (left := [command_of(process) for process in marked(mark)]) and time.monotonic() < until:
        time.sleep(0.2)
    return left


# --- Spark lost in a run --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lost(program_environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Runs of one process: one whose JVM is killed, its retry, and one whose asset fails."""
    code = """
        import json, os, signal
        import dagster as dg
        from dagster._core.storage.tags import RUN_FAILURE_REASON_TAG, WILL_RETRY_TAG
        from dagster._daemon.auto_run_reexecution.auto_run_reexecution import should_retry
        from pyspark import SparkContext
        from pathlib import Path
        from resources.spark import Spark

        @dg.asset
        def counted(spark: Spark) -> None:
            session = spark.session
            if not Path("killed").exists():
                Path("killed").touch()
                os.kill(SparkContext._gateway.proc.pid, signal.SIGKILL)
            session.range(10).count()

        @dg.asset
        def later(spark: Spark) -> None:
            spark.session.range(10).count()

        @dg.asset(deps=[counted])
        def wrong(spark: Spark) -> None:
            spark.session.range(10).count()
            raise ValueError("wrong")

        job = dg.define_asset_job("job")
        spark = Spark(master="local[1]", conf={"spark.ui.enabled": "false"})
        definitions = dg.Definitions([counted, later, wrong], jobs=[job], resources={"spark": spark})
        defined = definitions.resolve_job_def("job")
        retries = {"enabled": True, "max_retries": 2, "retry_on_asset_or_op_failure": False}
        logs = {"python_log_level": "INFO", "managed_python_loggers": ["pipelines", "resources"]}

        def tell(instance, result):
            run = instance.get_run_by_id(result.run_id)
            steps = {
                event.step_key: event.step_failure_data.error.to_string()
                for event in result.all_events if event.is_step_failure
            }
            entries = instance.all_logs(run.run_id)
            messages = [entry.user_message for entry in entries if entry.dagster_event is None]
            return {
                "reason": run.tags.get(RUN_FAILURE_REASON_TAG),
                "will retry": run.tags.get(WILL_RETRY_TAG),
                "daemon retries": should_retry(run, instance),
                "failures": steps,
                "messages": messages,
                "scratch": [p.name for p in Path(os.environ["TMPDIR"]).glob("audience_factory_spark_*")],
            }

        overrides = {"run_retries": retries, "python_logs": logs}
        with dg.DagsterInstance.local_temp(overrides=overrides) as instance:
            first = defined.execute_in_process(instance=instance, raise_on_error=False)
            told = [tell(instance, first)]
            parent = instance.get_run_by_id(first.run_id)
            # what the daemon does: the steps that did not succeed, with the parent's tags
            names = ["audience_factory/spark_lost_in", "dagster/retry_on_asset_or_op_failure"]
            tags = {name: parent.tags[name] for name in names}
            second = defined.execute_in_process(instance=instance, raise_on_error=False, tags=tags)
            told.append(tell(instance, second))
        print(json.dumps(told))
    """
    home = tmp_path_factory.mktemp("lost")
    environment = {**program_environment, "TMPDIR": str(home), "PYTHONPATH": str(REPOSITORY)}
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", dedent(code)],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    first, second = json.loads(finished.stdout.splitlines()[-1])
    return {"killed": first, "wrong": second, "left": [path.name for path in home.iterdir()]}


@pytest.mark.slow
def test_a_run_whose_jvm_was_killed_is_tried_again(lost: dict[str, Any]) -> None:
    assert lost["killed"]["reason"] == "STEP_FAILURE"
    assert lost["killed"]["will retry"] == "true"
    assert lost["killed"]["daemon retries"]


@pytest.mark.slow
def test_its_log_says_why(lost: dict[str, Any]) -> None:
    said = "\n".join(lost["killed"]["messages"])
    assert "Spark's JVM died" in said
    assert "found:    exit status -9: killed, often by the kernel for lack of memory" in said
    assert "Dagster tries the run again" in said


@pytest.mark.slow
def test_its_log_tells_of_the_start_of_spark_and_its_seconds(lost: dict[str, Any]) -> None:
    for run in (lost["killed"], lost["wrong"]):
        starts, started, *_ = run["messages"]
        assert starts == "Spark starts"
        assert re.fullmatch(r"Spark starts: done in \d+\.\d s; Spark \d\S+, local\[1\]", started)


@pytest.mark.slow
def test_a_later_asset_of_the_run_fails_with_the_cause(lost: dict[str, Any]) -> None:
    assert re.search(r"SparkLostError: .*\n\s+found: +exit status -9", lost["killed"]["failures"]["later"])


@pytest.mark.slow
def test_the_next_run_of_the_process_has_a_new_jvm(lost: dict[str, Any]) -> None:
    assert set(lost["wrong"]["failures"]) == {"wrong"}


@pytest.mark.slow
def test_a_run_whose_asset_failed_is_not_tried_again_even_as_a_retry(lost: dict[str, Any]) -> None:
    """A retry inherits the tags of the run that lost its Spark."""
    assert lost["wrong"]["reason"] == "STEP_FAILURE"
    assert lost["wrong"]["will retry"] == "false"
    assert not lost["wrong"]["daemon retries"]


@pytest.mark.slow
def test_no_scratch_folder_is_left(lost: dict[str, Any]) -> None:
    assert lost["killed"]["scratch"] == lost["wrong"]["scratch"] == []
    assert [name for name in lost["left"] if "spark" in name or "blockmgr" in name] == []


@pytest.mark.slow
def test_a_run_whose_connect_server_went_away_is_tried_again(tmp_path: Path) -> None:
    code = """
        from functools import partialmethod
        import dagster as dg
        from dagster._core.storage.tags import WILL_RETRY_TAG
        from pyspark.sql.connect.client.retries import DefaultPolicy
        from resources.spark import Spark

        @dg.asset
        def counted(spark: Spark) -> None:
            spark.session.range(10).count()

        # Not for ten minutes.
        DefaultPolicy.__init__ = partialmethod(DefaultPolicy.__init__, max_retries=0)
        retries = {"enabled": True, "max_retries": 2, "retry_on_asset_or_op_failure": False}
        with dg.DagsterInstance.local_temp(overrides={"run_retries": retries}) as instance:
            result = dg.materialize(
                [counted],
                resources={"spark": Spark(remote="sc://127.0.0.1:1")},  # where nothing listens
                instance=instance,
                raise_on_error=False,
            )
            run = instance.get_run_by_id(result.run_id)
            print([entry.user_message for entry in instance.all_logs(run.run_id)])
            print(run.tags[WILL_RETRY_TAG])
    """
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", dedent(code)],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    said, will_retry = finished.stdout.splitlines()[-2:]
    assert "Spark's Connect server went away" in said
    assert "found:    StatusCode.UNAVAILABLE" in said
    assert will_retry == "true"
