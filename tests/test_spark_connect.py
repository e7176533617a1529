"""The chain through Spark Connect, in a process of its own: one process cannot hold both kinds of session."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path

import dagster as dg

from resources.spark import Spark
from tests import small_project

root = Path(sys.argv[1])
project = small_project.write_small_project(root / "project")
definitions = project.definitions(spark=Spark(remote="local[2]"))
instance = dg.DagsterInstance.local_temp(str(root))
first, last = small_project.FIRST_DAY, small_project.AS_OF_DAYS[0]
for job, begin in (("ingestion_job", first), ("features_job", last)):
    result = small_project.run_days(definitions, instance, job, begin, last)
    assert result.success, small_project.failures(result)
print("rows", project.lake.partition("feature_tokens", last.isoformat()).rows)
"""


@pytest.mark.slow
def test_events_become_feature_tokens_through_spark_connect(
    program_environment: Mapping[str, str], tmp_path: Path
) -> None:
    """SPARK_REMOTE is offered to users; the checks (Great Expectations) must run on Connect frames, too."""
    # The local Connect server starts workers itself; another Python has none of our packages.
    environment = {**program_environment, "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path)],
        cwd=Path(__file__).parent.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = int(done.stdout.split("rows")[-1])
    assert rows > 100
