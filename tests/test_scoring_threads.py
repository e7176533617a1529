"""Every library that scores uses as many threads as a task has CPUs."""

import json
import subprocess
import sys

import pytest

COUNT = """
import json, os, sys
import numpy, torch, xgboost
from pipelines.steps.scoring.scoring_threads import count_threads, limit_threads, require_threads
wanted = int(sys.argv[1])
before = count_threads()
limit_threads(wanted)
print(json.dumps({"before": before, "after": require_threads(wanted)}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_every_library_gets_as_many_as_asked_for(threads: int) -> None:
    # A process of its own: the limits are the process's, for good.
    run = subprocess.run(
        [sys.executable, "-c", COUNT, str(threads)], capture_output=True, text=True, check=True
    )
    counts = json.loads(run.stdout)["after"]
    assert {"arrow", "torch", "torch_interop", "blas (openblas)", "openmp (openmp)"} <= set(counts)
    assert counts.pop("torch_interop") == 1
    assert set(counts.values()) == {threads}


@pytest.mark.slow
def test_a_library_that_would_use_more_is_named() -> None:
    module = "pipelines.steps.scoring.scoring_threads"
    code = f"import torch\nfrom {module} import *\nlimit_threads(2)\nrequire_threads(1)\n"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "would use more threads than its task has CPUs" in run.stderr
    assert "'torch': 2" in run.stderr
