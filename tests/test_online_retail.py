"""The shipped example on the real log of a shop: 541,909 transactions with all their dirt.

What is expected is counted with pandas from the file itself, beside the published facts.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from pyspark.sql import SparkSession

from assets.partitions import split_range
from pipelines.definitions import build_definitions
from pipelines.steps.models.metrics import comparison_table
from pipelines.steps.promotion.candidate_models import CANDIDATES, Measured
from resources.lake import Lake
from resources.model_store import ModelStore
from resources.spark import Spark
from tests.small_project import day_keys, failures, run, run_days, verdicts

ROOT = Path(__file__).parent.parent
EVENTS = Path(
    os.environ.get("RETAIL_EVENTS")
    or Path(os.environ.get("SAMPLE_DATA", "")) / "online_retail/events.parquet"
).resolve()
EXAMPLE = ROOT / "examples" / "online_retail"

FIRST_DAY, LAST_DAY = date(2010, 12, 1), date(2011, 12, 9)
AS_OF_DAYS = (date(2011, 8, 31), date(2011, 9, 30))
"""Fewer than the example's, to save time; their horizons end before the scored day."""
MAX_EPOCHS = 4
"""Fewer than the example's, likewise."""
SCORED_DAY = date(2011, 11, 8)
WINDOW_DAYS, HORIZON_DAYS = 90, 30
AUDIENCE = "buys_again"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not EVENTS.is_file(),
        reason=f"UCI Online Retail is not at {EVENTS}: SAMPLE_DATA has to hold online_retail/events.parquet",
    ),
]


@dataclass(frozen=True)
class Retail:
    """The example after its whole chain has run.

    Attributes:
        data_dir: What it made.
        results: Job → what came of its run.
        log: The raw rows, with the day, the customer as the chain writes it, and `kept`.
    """

    data_dir: Path
    results: Mapping[str, dg.ExecuteInProcessResult]
    log: pd.DataFrame

    @property
    def lake(self) -> Lake:
        return Lake(root=str(self.data_dir / "lake"))

    @property
    def models(self) -> ModelStore:
        return ModelStore(root=str(self.data_dir / "models"))

    @property
    def kept(self) -> pd.DataFrame:
        """Rows that are accepted, or repeat one that is."""
        return self.log[self.log["kept"]]


@pytest.fixture(scope="module")
def retail(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Retail:
    root = tmp_path_factory.mktemp("online_retail")
    audiences = shutil.copytree(EXAMPLE, root / "audiences")
    file = audiences / f"{AUDIENCE}.yaml"
    text = file.read_text()
    begin, end = text.index("as_of_days:"), text.index("segments:")
    days = "".join(f"  - {day}\n" for day in AS_OF_DAYS)
    training = f"training: {{max_epochs: {MAX_EPOCHS}}}\n"
    file.write_text(f"{text[:begin]}as_of_days:\n{days}\n{training}\n{text[end:]}")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RETAIL_EVENTS", str(EVENTS))
        definitions = build_definitions(
            audiences, root / "data", {"spark": Spark(master="local[2]", shuffle_partitions=2)}
        )
    results = {}
    with dg.DagsterInstance.ephemeral() as instance:
        for first, last in split_range(FIRST_DAY, LAST_DAY):
            job = f"ingestion_job {first}"
            results[job] = run_days(definitions, instance, "ingestion_job", first, last)
        results["training_job"] = run(definitions, instance, "training_job")
        results["daily_job"] = run_days(definitions, instance, "daily_job", SCORED_DAY, SCORED_DAY)
    return Retail(root / "data", results, read_log())


def read_log() -> pd.DataFrame:
    log = pd.read_parquet(EVENTS)
    log["day"] = log["InvoiceDate"].dt.date
    log["customer"] = log["CustomerID"].str.removesuffix(".0")
    log["kept"] = log["customer"].notna() & (log["Quantity"] > 0)
    return log


def customers_seen(retail: Retail, as_of: date) -> set[str]:
    days = retail.kept["day"]
    return set(retail.kept.loc[(days > as_of - timedelta(days=WINDOW_DAYS)) & (days <= as_of), "customer"])


def test_every_run_succeeds(retail: Retail) -> None:
    assert {job: failures(result) for job, result in retail.results.items() if not result.success} == {}


def test_checks_pass_but_the_warnings_of_odd_days(retail: Retail) -> None:
    """A day whose rows mostly have no customer, a Saturday with none: a warning, no reason to stop."""
    rejected_shares = 1 - retail.log.groupby("day")["kept"].mean()
    assert rejected_shares.max() > 0.5 >= rejected_shares[SCORED_DAY]

    failed = {
        (job.split()[0], check)
        for job, run in retail.results.items()
        for check, passed in verdicts(run).items()
        if not passed
    }

    warnings = {"most_rows_are_accepted", "no_unusual_share_is_rejected", "number_of_events_is_usual"}
    assert failed == {("ingestion_job", f"app_events:{check}") for check in warnings}


def test_every_transaction_is_accounted_for(spark: SparkSession, retail: Retail) -> None:
    keys = day_keys(FIRST_DAY, LAST_DAY)
    accepted = retail.lake.read(spark, "app_events", keys)
    rejected = retail.lake.read(spark, "rejected_events", keys)

    copies = [row["copies"] for row in accepted.select("copies").collect()]
    reasons = {
        row["rejected_because"]: row["count"]
        for row in rejected.groupBy("rejected_because").count().collect()
    }

    without_id = retail.log["customer"].isna()
    duplicates = retail.kept.duplicated().sum()
    assert reasons == {
        "missing_id": without_id.sum(),
        "filter:not_a_return": (~without_id & (retail.log["Quantity"] <= 0)).sum(),
    }
    assert sum(copies) - len(copies) == duplicates > 5_000
    assert len(copies) == (~retail.kept.duplicated()).sum()
    assert sum(copies) + sum(reasons.values()) == len(retail.log) == 541_909
    assert reasons["missing_id"] == 135_080


def test_each_day_has_its_own_transactions(retail: Retail) -> None:
    expected = retail.kept.drop_duplicates().groupby("day").size()
    expected = expected.reindex(
        [date.fromisoformat(key) for key in day_keys(FIRST_DAY, LAST_DAY)], fill_value=0
    )

    found = [retail.lake.partition("app_events", key).rows for key in day_keys(FIRST_DAY, LAST_DAY)]

    assert found == expected.tolist()
    assert 0 in found  # the shop is closed on Saturdays


def test_the_training_set_says_who_bought_again(spark: SparkSession, retail: Retail) -> None:
    rows = retail.lake.read(spark, "training_set", [AUDIENCE]).select("device_id", "day", "label").toPandas()
    sold = retail.kept[~retail.kept["InvoiceNo"].str.startswith("C")]

    expected = set()
    for as_of in AS_OF_DAYS:
        horizon = (sold["day"] > as_of) & (sold["day"] <= as_of + timedelta(days=HORIZON_DAYS))
        again = set(sold.loc[horizon, "customer"])
        expected |= {(customer, as_of, int(customer in again)) for customer in customers_seen(retail, as_of)}

    assert set(rows.itertuples(index=False, name=None)) == expected
    assert len(rows) == len(expected)
    assert 0.2 < rows["label"].mean() < 0.6


def test_three_models_are_compared_in_one_table(retail: Retail) -> None:
    records = [retail.models.current(AUDIENCE, name) for name in CANDIDATES]
    measured = {record.model: Measured.from_dict(record.properties["metrics"]) for record in records}

    table = comparison_table({name: each.test for name, each in measured.items()})
    metadata = (
        retail.results["training_job"]
        .asset_materializations_for_node(f"{AUDIENCE}__champion_model")[0]
        .metadata
    )

    assert set(measured) == {"dnn", "xgboost", "logistic"}
    assert all(each.test.auc > 0.5 for each in measured.values()), table
    assert max(each.test.auc for each in measured.values()) > 0.6, table
    header, _, *rows = table.splitlines()
    assert all(row in str(metadata["card"].value) for row in (header, *rows))
    for column in ("AUC", "log-loss", "recall"):
        assert column.lower() in header.lower()


def test_the_segments_are_delivered(spark: SparkSession, retail: Retail) -> None:
    scored = retail.lake.partition("predictions", f"{AUDIENCE}/{SCORED_DAY}").rows
    rows = (
        retail.lake.read(spark, "segments", [f"{AUDIENCE}/{SCORED_DAY}"])
        .select("segment", "device_id")
        .toPandas()
    )

    assert scored == len(customers_seen(retail, SCORED_DAY))
    assert set(rows["segment"]) == {"top_10_percent", "likely_again"}
    for segment, members in rows.groupby("segment")["device_id"]:
        assert 0 < len(members) < scored
        [file] = (retail.data_dir / "deliveries" / AUDIENCE / str(segment) / str(SCORED_DAY)).glob(
            "devices-*.csv"
        )
        delivered = pd.read_csv(file, dtype={"device_id": str})
        assert sorted(delivered["device_id"]) == sorted(members)
        assert delivered["probability"].between(0, 1).all()
