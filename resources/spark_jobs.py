"""The jobs of this process's Spark: how far they are, and their end when nobody waits for them any more."""

import contextlib
from typing import Any

from py4j.protocol import Py4JError  # type: ignore[import-untyped]
from pyspark import SparkContext


def describe_jobs() -> str:
    """Tasks and stages done, for a person who waits; empty where no job runs, and for Spark Connect."""
    context = _living_context()
    if context is None:
        return ""
    try:
        tracker = context.statusTracker()
        jobs = [tracker.getJobInfo(job) for job in tracker.getActiveJobsIds()]
        known = [tracker.getStageInfo(stage) for job in jobs if job for stage in job.stageIds]
    except (Py4JError, OSError):
        return ""  # it is going away, which is the step's to tell
    # Of a stage that has yet to begin, or that an earlier job has done already, nothing is known.
    stages = [stage for stage in known if stage]
    if not stages:
        return ""
    done, tasks = sum(s.numCompletedTasks for s in stages), sum(s.numTasks for s in stages)
    finished = sum(s.numCompletedTasks == s.numTasks for s in stages)
    return f"Spark has done {done:,} of {tasks:,} tasks, {finished} of {len(known)} stages"


def cancel_jobs() -> None:
    """Ends the jobs of this process's Spark; of Spark Connect, whose session is released, none."""
    context = _living_context()
    if context is not None:
        with contextlib.suppress(Py4JError, OSError):  # a Spark that is gone has no jobs
            context.cancelAllJobs()


def _living_context() -> Any:
    context: Any = SparkContext._active_spark_context
    return None if context is None or context._jsc is None else context
