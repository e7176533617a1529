"""The log of a run, as the UI shows it: each step says what it does, how many rows, and how long it took."""

import re

import dagster as dg
import pytest

from pipelines.steps.models.dnn_config import DnnConfig, weight_decays
from tests.small_project import (
    AUDIENCES,
    FIRST_DAY,
    LAST_DAY,
    SCORED_DAY,
    Chain,
    day_keys,
    failures,
    materialize,
)


def lines(chain: Chain, job: str, step: str) -> list[str]:
    """What a step of the chain says, Dagster's own events aside."""
    logs = chain.instance.all_logs(chain.results[job].run_id)
    return [entry.user_message for entry in logs if entry.dagster_event is None and entry.step_key == step]


@pytest.mark.slow
def test_a_step_says_what_it_read_and_wrote_and_for_how_long(chain: Chain) -> None:
    said = lines(chain, "ingestion_job", "daily_fields")

    days, lake = day_keys(FIRST_DAY, LAST_DAY), chain.project.lake
    events, rows = (lake.snapshot(table, days).rows for table in ("app_events", "daily_fields"))
    assert said[0] == f"reading app_events of {FIRST_DAY} to {LAST_DAY}: {events:,} rows"
    writing = f"writing daily_fields of {FIRST_DAY} to {LAST_DAY}"
    assert said[-2] == writing
    assert re.fullmatch(rf"{writing}: done in \d+\.\d s; {rows:,} rows", said[-1])


@pytest.mark.slow
def test_checks_say_what_they_look_at_and_whether_it_passed(chain: Chain) -> None:
    said = "\n".join(lines(chain, "daily_job", "car_buyers_segments_checks"))

    names = "every_probability_is_in_0_to_1, no_device_is_twice_in_a_segment"
    assert re.search(rf"checking car_buyers/segments: {names}: done in \d+\.\d s; passed", said)


@pytest.mark.slow
@pytest.mark.parametrize("audience", AUDIENCES)
def test_training_says_one_line_per_member_and_a_summary(chain: Chain, audience: str) -> None:
    said = lines(chain, "training_job", f"{audience}__dnn_model")

    members = [
        line
        for line in said
        if re.match(r"network \d of \d: \d+ epochs, validation auc_and_\w+ 0\.\d{4}", line)
    ]
    tried = [line for line in said if re.match(r"weight decay [\d.]+: validation auc_and_\w+ 0\.\d{4}", line)]
    assert len(tried) == len(weight_decays(devices=200))
    assert len(members) == DnnConfig().members * len(tried)
    summaries = [line for line in said if re.match(r"3 networks trained: \d+ epochs", line)]
    *of_trials, of_refit = summaries
    assert len(of_trials) == len(tried)
    assert said.index(of_trials[0]) < said.index(tried[0])
    refitted = [line for line in said if re.match(r"network \d of \d: \d+ epochs, as found, \d+\.\d s", line)]
    assert len(refitted) == DnnConfig().members
    began = said.index("refitting on train, validation and test rows")
    assert said.index(tried[-1]) < began < said.index(refitted[0]) < said.index(of_refit)
    assert not [line for line in said if "train loss" in line]


@pytest.mark.slow
def test_tuning_says_one_line_per_trial_and_which_is_best(chain: Chain) -> None:
    said = lines(chain, "training_job", "car_buyers__xgboost_model")

    assert [line.split(":")[0] for line in said if ": {" in line or "as configured" in line] == [
        f"trial {number}" for number in range(1, 7)
    ]
    assert len([line for line in said if re.match(r"trial \d is the best of 6: \d+ trees", line)]) == 1


@pytest.mark.slow
def test_a_delivery_says_what_it_sent_and_where(chain: Chain) -> None:
    said = lines(chain, "daily_job", "car_buyers__deliveries")

    place = f"deliveries/car_buyers/best_30/{SCORED_DAY}"
    assert [line for line in said if re.fullmatch(rf"delivered 30 rows to .*/{place} in \d+\.\d s", line)]


@pytest.mark.slow
def test_a_day_missing_upstream_names_the_job_and_the_day_to_run_it_for(chain: Chain) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        result = materialize(chain.project.definitions(), instance, ["car_buyers/predictions"], FIRST_DAY)

    assert failures(result).startswith(
        f"predictions: resources.step_body.StepFailed: feature_tokens of {FIRST_DAY} was never made\n"
    )
    assert f"remedy:   run features_job for {FIRST_DAY}\n" in failures(result)
