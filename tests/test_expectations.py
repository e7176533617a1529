"""Great Expectations as asset checks: a check passes only where every expectation was answered, and held."""

import importlib
import json
import pkgutil
from collections.abc import Sequence
from datetime import date
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from pyspark.sql import DataFrame

import assets
from resources import expectations
from resources.expectation_texts import wanted
from resources.expectations import VERSION, Check, Expected, Subject, check_specs, evaluate, expect
from tests.conftest import Frame

ASSET = dg.AssetKey(["buyers", "predictions"])
IN_RANGE = Check(
    "probabilities",
    "every probability is in [0, 1]",
    [
        expect("ExpectColumnValuesToNotBeNull", column="probability"),
        expect("ExpectColumnValuesToBeBetween", column="probability", min_value=0, max_value=1),
    ],
)
UNIQUE = Check(
    "unique_devices",
    "a device is scored once",
    [expect("ExpectColumnValuesToBeUnique", column="device_id")],
)
ADVICE = Check(
    "enough_rows",
    "there are some rows",
    [expect("ExpectTableRowCountToBeBetween", min_value=100)],
    blocking=False,
)
MISSING_COLUMN = Check(
    "no_such_column", "cannot be answered", [expect("ExpectColumnValuesToNotBeNull", column="no_such_column")]
)


@pytest.fixture(scope="module")
def scores(frame: Frame) -> DataFrame:
    rows = [("secret-1", 0.5), ("secret-1", 1.5), ("secret-2", -0.25), ("secret-3", 0.75)]
    return frame("device_id string, probability double", rows)


def results_of(evidence: DataFrame | pd.DataFrame, *checks: Check) -> dict[str | None, dg.AssetCheckResult]:
    verdicts = evaluate(ASSET, checks, evidence, [Subject("v1")])
    return {verdict.result.check_name: verdict.result for verdict in verdicts}


def figures(result: dg.AssetCheckResult) -> dict[str, Any]:
    """Without the version, which every result has."""
    return {name: value.value for name, value in result.metadata.items() if name != VERSION}


def text_of(result: dg.AssetCheckResult) -> str:
    return json.dumps([result.description, figures(result)])


# --- results --------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["spark", "pandas"])
def test_each_check_has_a_result_of_its_own(scores: DataFrame, engine: str) -> None:
    evidence = scores if engine == "spark" else scores.toPandas()
    always = Check("rows", "there are four", [expect("ExpectTableRowCountToEqual", value=4)])
    results = results_of(evidence, always, IN_RANGE, UNIQUE)
    assert {name: result.passed for name, result in results.items()} == {
        "rows": True, "probabilities": False, "unique_devices": False,
    }  # fmt: skip
    assert {result.asset_key for result in results.values()} == {ASSET}


def test_a_check_that_passed_shows_what_was_asked_and_found() -> None:
    [result] = results_of(pd.DataFrame({"probability": [0.5, 0.75]}), IN_RANGE).values()
    assert (result.passed, result.description) == (True, None)
    assert figures(result) == {
        "probability: a value": "in 2 rows",
        "probability: 0 to 1": "in 2 rows",
    }


def test_rows_of_spark_that_pass_are_counted_and_none_of_them_is_looked_for(
    frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence, formats = frame("device_id string, probability double", [("a", 0.5), ("b", 0.75)]), []
    results = expectations._results

    def note(batch: Any, asked: Sequence[Expected], result_format: Any) -> dict[str, Any]:
        formats.append(([expected.name for expected in asked], result_format))
        return results(batch, asked, result_format)

    monkeypatch.setattr(expectations, "_results", note)
    result = results_of(evidence, IN_RANGE)["probabilities"]

    assert figures(result) == {"probability: a value": "in 2 rows", "probability: 0 to 1": "in 2 rows"}
    assert formats == [
        (["ExpectColumnValuesToNotBeNull", "ExpectColumnValuesToBeBetween"], "BOOLEAN_ONLY"),
        (["ExpectTableRowCountToBeBetween"], "SUMMARY"),
    ]


def test_figures_of_one_row_are_shown() -> None:
    check = Check(
        "better_than_chance",
        "the interval is above chance",
        [
            expect("ExpectColumnValuesToBeBetween", column="auc_low", min_value=0.5, strict_min=True),
            expect("ExpectColumnValuesToBeInSet", column="unaccounted", value_set=[0]),
            expect("ExpectColumnValuesToBeNull", column="unusual"),
            expect("ExpectColumnPairValuesToBeEqual", column_A="scored", column_B="devices"),
        ],
    )
    evidence = pd.DataFrame(
        {"auc_low": [0.61234567], "unaccounted": [0], "unusual": [None], "scored": [3], "devices": [3]}
    )
    [result] = results_of(evidence, check).values()
    assert figures(result) == {
        "auc_low: above 0.5": "0.612346",
        "unaccounted: 0": "0",
        "unusual: none": "none",
        "scored: equal to devices": "3 and 3",
    }


def test_a_check_that_failed_shows_what_was_found_with_a_sample(scores: DataFrame) -> None:
    [result] = results_of(scores, IN_RANGE).values()
    assert not result.passed
    assert figures(result)["probability: 0 to 1"] == "1.5, -0.25 found in 2 of 4 rows"
    assert result.description == "probability: 0 to 1 expected, 1.5, -0.25 found in 2 of 4 rows"


@pytest.mark.parametrize(
    ("expectation", "sentence"),
    [
        (
            expect("ExpectColumnValuesToBeBetween", column="auc_low", min_value=0.5),
            "auc_low: at least 0.5 expected, 0.48 found",
        ),
        (
            expect("ExpectColumnValuesToBeBetween", column="auc_low", min_value=0.5, strict_min=True),
            "auc_low: above 0.5 expected, 0.48 found",
        ),
        (
            expect("ExpectColumnValuesToBeBetween", column="auc_low", max_value=0.4),
            "auc_low: at most 0.4 expected, 0.48 found",
        ),
        (
            expect("ExpectColumnValuesToBeBetween", column="rows", min_value=0, max_value=3, strict_max=True),
            "rows: at least 0 and below 3 expected, 3 found",
        ),
        (
            expect("ExpectColumnValuesToBeInSet", column="rows", value_set=[0]),
            "rows: 0 expected, 3 found",
        ),
        (
            expect("ExpectColumnValuesToBeInSet", column="split", value_set=["train", "test"]),
            "split: one of train, test expected, tset found",
        ),
        (expect("ExpectColumnValuesToNotBeNull", column="missing"), "missing: a value expected, null found"),
        (expect("ExpectColumnValuesToBeNull", column="rows"), "rows: none expected, 3 found"),
        (
            expect("ExpectColumnPairValuesToBeEqual", column_A="rows", column_B="manifest_rows"),
            "rows: equal to manifest_rows expected, 3 and 4 found",
        ),
        (expect("ExpectTableRowCountToBeBetween", min_value=2), "rows: at least 2 expected, 1 found"),
        (expect("ExpectTableRowCountToEqual", value=2), "rows: 2 expected, 1 found"),
    ],
)
def test_a_failure_is_a_sentence(expectation: Expected, sentence: str) -> None:
    evidence = pd.DataFrame(
        {"auc_low": [0.48], "rows": [3], "manifest_rows": [4], "split": ["tset"], "missing": [None]}
    )
    [result] = results_of(evidence, Check("sentence", "", [expectation])).values()
    assert result.description == sentence


def test_a_failure_about_several_rows_is_a_sentence(frame: Frame) -> None:
    rows = frame("field string, token string", [("apps", "a"), ("apps", "a"), ("model", "a")])
    checks = [
        Check("type", "", [expect("ExpectColumnValuesToBeOfType", column="token", type_="IntegerType")]),
        Check("pairs", "", [expect("ExpectCompoundColumnsToBeUnique", column_list=["field", "token"])]),
        Check("tokens", "", [expect("ExpectColumnValuesToBeUnique", column="token")]),
    ]
    assert {name: result.description for name, result in results_of(rows, *checks).items()} == {
        "type": "token: IntegerType expected, StringType found",
        "pairs": "field, token: nothing twice expected, apps and a found in 2 of 3 rows",
        "tokens": "token: nothing twice expected, a found in 3 of 3 rows",
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_probability_that_is_no_number_fails(frame: Frame, value: float | None) -> None:
    [result] = results_of(
        frame("device_id string, probability double", [("a", 0.5), ("b", value)]), IN_RANGE
    ).values()
    assert not result.passed


def test_a_sample_is_short_and_has_no_value_twice() -> None:
    evidence = pd.DataFrame({"probability": [2.0, 2.0, *(2.0 + number for number in range(50))]})
    [result] = results_of(evidence, IN_RANGE).values()
    assert result.description == ("probability: 0 to 1 expected, 2, 3, 4, 5, 6 found in 52 of 52 rows")


@pytest.mark.parametrize("engine", ["spark", "pandas"])
def test_device_ids_are_never_shown(scores: DataFrame, engine: str) -> None:
    evidence = scores if engine == "spark" else scores.toPandas()
    revealing = [
        UNIQUE,
        Check("set", "", [expect("ExpectColumnValuesToBeInSet", column="device_id", value_set=["x"])]),
        Check(
            "together",
            "",
            [expect("ExpectCompoundColumnsToBeUnique", column_list=["device_id", "device_id"])],
        ),
        Check(
            "pair",
            "",
            [expect("ExpectColumnPairValuesToBeEqual", column_A="device_id", column_B="probability")],
        ),
    ]
    results = results_of(evidence, *revealing)
    for result in results.values():
        assert not result.passed
        assert "secret" not in text_of(result)
    assert results["unique_devices"].description == (
        "device_id: nothing twice expected, others found in 2 of 4 rows (device ids are never shown)"
    )


def test_the_id_of_the_only_row_is_not_shown() -> None:
    check = Check("known", "", [expect("ExpectColumnValuesToNotBeNull", column="device_id")])
    [result] = results_of(pd.DataFrame({"device_id": ["secret-1"]}), check).values()
    assert figures(result) == {"device_id: a value": "in 1 row"}


def test_expectations_over_pairs_of_columns_are_told_apart() -> None:
    check = Check(
        "rows_equal",
        "all counts are equal",
        [
            expect("ExpectColumnPairValuesToBeEqual", column_A="delivered", column_B="manifest"),
            expect("ExpectColumnPairValuesToBeEqual", column_A="delivered", column_B="segment"),
        ],
    )
    [result] = results_of(pd.DataFrame({"delivered": [3], "manifest": [3], "segment": [4]}), check).values()
    assert figures(result) == {
        "delivered: equal to manifest": "3 and 3",
        "delivered: equal to segment": "3 and 4 found",
    }


def test_the_same_expectation_may_stand_in_two_checks() -> None:
    twin = Check("twin", "the same again", IN_RANGE.expectations)
    results = results_of(pd.DataFrame({"probability": [0.5]}), IN_RANGE, twin)
    assert {name: result.passed for name, result in results.items()} == {"probabilities": True, "twin": True}


def test_what_a_caller_adds_is_shown_with_each_result() -> None:
    evidence = pd.DataFrame({"probability": [0.5], "device_id": ["a"]})
    for verdict in evaluate(ASSET, [IN_RANGE, UNIQUE], evidence, [Subject("v1")], metadata={"rows": 1}):
        assert figures(verdict.result)["rows"] == 1


# --- what cannot be answered ----------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["spark", "pandas"])
def test_an_expectation_that_raises_fails_its_check_and_no_other(scores: DataFrame, engine: str) -> None:
    evidence = scores.where("probability > 0") if engine == "spark" else scores.toPandas()
    rows = Check("rows", "there are rows", [expect("ExpectTableRowCountToBeBetween", min_value=1)])
    results = results_of(evidence, MISSING_COLUMN, rows)
    assert {name: result.passed for name, result in results.items()} == {
        "no_such_column": False,
        "rows": True,
    }
    assert results["no_such_column"].description == (
        "no_such_column: a value expected, which cannot be answered: "
        'Error: The column "no_such_column" in BatchData does not exist.'
    )
    assert figures(results["no_such_column"]) == {"no_such_column: a value": "no answer"}


def test_an_expectation_that_does_not_exist_is_an_error() -> None:
    misspelt = Check("misspelt", "", [expect("ExpectColumnValuesToBeFine", column="probability")])
    with pytest.raises(AttributeError, match="ExpectColumnValuesToBeFine"):
        results_of(pd.DataFrame({"probability": [0.5]}), misspelt)


def test_no_rows_are_no_proof_of_a_row_count() -> None:
    [result] = results_of(pd.DataFrame({"probability": []}), ADVICE).values()
    assert not result.passed


# --- several days ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["spark", "pandas"])
def test_a_check_that_fails_over_many_days_names_the_days_that_it_fails_for(
    frame: Frame, engine: str
) -> None:
    days = [date(2025, 3, day) for day in range(1, 8)]
    probabilities = {day: 1.5 if day.day in (2, 7) else 0.5 for day in days}
    rows = frame("day date, probability double", list(probabilities.items()))
    subjects = [Subject("v1", str(day)) for day in days]

    evidence = rows if engine == "spark" else rows.toPandas()
    always = Check("rows", "none", [expect("ExpectColumnValuesToNotBeNull", column="probability")])
    found = {v.result.check_name: v for v in evaluate(ASSET, [IN_RANGE, always], evidence, subjects)}

    assert found["probabilities"].bad_days == {"2025-03-02", "2025-03-07"}
    assert not found["probabilities"].result.passed
    assert (found["rows"].bad_days, found["rows"].result.passed) == (set(), True)


def test_a_check_that_cannot_be_answered_fails_for_every_day() -> None:
    evidence = pd.DataFrame({"day": ["2025-03-01", "2025-03-02"], "probability": [0.5, 0.5]})
    subjects = [Subject("v1", "2025-03-01"), Subject("v1", "2025-03-02")]
    [found] = evaluate(ASSET, [MISSING_COLUMN], evidence, subjects)
    assert found.bad_days == {"2025-03-01", "2025-03-02"}


def test_a_result_names_the_version_that_it_is_about() -> None:
    [found] = evaluate(ASSET, [IN_RANGE], pd.DataFrame({"probability": [0.5]}), [Subject("v7")])
    assert found.result.metadata[VERSION].value == "v7"


# --- blocking -------------------------------------------------------------------------------------


def test_checks_block_unless_they_say_otherwise() -> None:
    specs = check_specs(ASSET, [IN_RANGE, ADVICE])
    assert [(spec.name, spec.blocking, spec.description) for spec in specs] == [
        ("probabilities", True, "every probability is in [0, 1]"),
        ("enough_rows", False, "there are some rows"),
    ]


def test_a_failed_check_is_an_error_where_it_blocks_and_a_warning_elsewhere() -> None:
    evidence = pd.DataFrame({"probability": [2.0]})
    severities = {name: result.severity for name, result in results_of(evidence, IN_RANGE, ADVICE).items()}
    assert severities == {
        "probabilities": dg.AssetCheckSeverity.ERROR,
        "enough_rows": dg.AssetCheckSeverity.WARN,
    }


# --- the checks of the assets ---------------------------------------------------------------------


def declared_checks() -> list[tuple[str, Check]]:
    found = []
    for module in pkgutil.iter_modules(assets.__path__):
        for value in vars(importlib.import_module(f"assets.{module.name}")).values():
            checks = value if isinstance(value, list) else [value]
            found += [(module.name, check) for check in checks if isinstance(check, Check)]
    return found


DECLARED = declared_checks()


def test_every_asset_module_declares_checks() -> None:
    modules = {module.name for module in pkgutil.iter_modules(assets.__path__)} - {
        "partitions",
        "descriptions",
        "training_data",
        "trained_models",
    }
    assert {module for module, _ in DECLARED} == modules


@pytest.mark.parametrize(("module", "check"), DECLARED, ids=[f"{m}:{check.name}" for m, check in DECLARED])
def test_a_declared_check_names_real_expectations(module: str, check: Check) -> None:
    import great_expectations.expectations as gxe  # 4 CPU seconds that collecting the tests need not take

    assert check.description
    assert check.expectations
    for expectation in check.expectations:
        assert isinstance(expectation, Expected)
        known: Any = getattr(gxe, expectation.name)
        assert set(expectation.arguments) <= set(known.__fields__)  # others it would ignore
        assert wanted(known(**expectation.arguments).configuration)
