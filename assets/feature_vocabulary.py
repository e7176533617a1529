"""feature_vocabulary: token → id, fitted on the training as-of days, versioned, append-only."""

from collections.abc import Iterator, Sequence

import dagster as dg
import pandas as pd
import pyarrow as pa

from assets.descriptions import HOLDS_NO_IDS, page
from assets.partitions import SPARK_POOL, keys_of
from pipelines.steps.config.project import Project
from pipelines.steps.config.settings import code_version
from pipelines.steps.features.encoded_rows import RESERVED_IDS
from pipelines.steps.features.feature_vocabulary import (
    Vocabulary,
    count_token_devices,
    fit_vocabulary,
    show_tokens,
    table_columns,
)
from pipelines.steps.features.token_fields import names_of, settings_of_tokens, token_fields
from pipelines.steps.labels.as_of_days import matured_as_of_days
from resources.asset_metadata import ROW_COUNT, TableDescription, text_table
from resources.expectations import Check, Subject, check_specs, evaluate, expect, report
from resources.lake import Lake
from resources.model_store import ModelStore
from resources.spark import Spark
from resources.step_body import step_body

KEY = dg.AssetKey("feature_vocabulary")

CHECKS = [
    Check(
        "ids_have_no_gaps",
        "the tokens of a field have the ids after the reserved ones, without a gap",
        [expect("ExpectColumnPairValuesToBeEqual", column_A="id", column_B="dense_id")],
    ),
    Check(
        "reserved_ids_stay_free",
        "no token has the id of a missing or an unknown one",
        [expect("ExpectColumnValuesToBeBetween", column="id", min_value=RESERVED_IDS)],
    ),
    Check(
        "each_token_has_one_id",
        "a token stands once in its field",
        [expect("ExpectCompoundColumnsToBeUnique", column_list=["field", "token"])],
    ),
    Check(
        "there_is_a_token",
        "there is at least one token",
        [expect("ExpectTableRowCountToBeBetween", min_value=1)],
    ),
]


def build(project: Project) -> Sequence[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    fields, window_days = token_fields(project), project.fields.window_days
    names, settings = names_of(fields), settings_of_tokens(project, project.signals)
    shown_settings = settings_of_tokens(project, project.declared_signals)
    limits = [(field.name, field.min_devices, field.max_vocabulary) for field in project.fields.fields]

    @dg.asset(
        key=KEY,
        deps=["training_days", "feature_tokens", "app_events"],
        group_name="features",
        kinds={"spark", "json"},
        code_version=code_version([shown_settings, limits]),
        metadata={**TableDescription(table_columns(names)).known(), **page("docs/models.md")},
        tags={"stage": "features", **HOLDS_NO_IDS},
        pool=SPARK_POOL,
    )
    @step_body
    def feature_vocabulary(spark: Spark, lake: Lake, models: ModelStore) -> dg.MaterializeResult[None]:
        """Tokens seen on enough devices on the training as-of days of all audiences."""
        known = [pd.Timestamp(key).date() for key in lake.partition_keys("app_events")]
        days = {day for a in project.audiences for day in matured_as_of_days(a, known, window_days)}
        tokens = lake.snapshot("feature_tokens", keys_of(sorted(days))).made_with(settings)
        rows = tokens.frame(spark.session, ["device_id", *names])
        counts = count_token_devices(rows, names).toArrow()
        previous = models.find_vocabulary()
        vocabulary = fit_vocabulary(counts, fields, previous)
        models.save_vocabulary(vocabulary)
        shown = show_tokens(counts, fields, vocabulary)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(vocabulary.hash),
            metadata={
                ROW_COUNT: sum(len(field.tokens) for field in vocabulary.fields),
                "vocabulary_hash": vocabulary.hash,
                "appended": sum(vocabulary.sizes.values())
                - sum((previous.sizes if previous else {}).values()),
                "as_of_days": [day.isoformat() for day in sorted(days)],
                **{f"size/{name}": size for name, size in vocabulary.sizes.items()},
                **({"sample": text_table(shown)} if shown else {}),
            },
        )

    @dg.multi_asset_check(name="feature_vocabulary_checks", specs=check_specs(KEY, CHECKS))
    @step_body
    def feature_vocabulary_checks(
        context: dg.AssetCheckExecutionContext, models: ModelStore
    ) -> Iterator[dg.AssetCheckResult]:
        vocabulary = models.vocabulary()
        subjects = [Subject(vocabulary.hash)]
        yield from report(context, evaluate(KEY, CHECKS, _ids_given(vocabulary), subjects))

    return [feature_vocabulary, feature_vocabulary_checks]


def _ids_given(vocabulary: Vocabulary) -> pd.DataFrame:
    """The id that encoding really gives each token, beside the one its place says."""
    parts = [
        pd.DataFrame(
            {
                "field": field.name,
                "token": field.tokens,
                "id": field.encode(
                    pa.array([[token] for token in field.tokens], pa.list_(pa.string()))
                ).values,
                "dense_id": range(RESERVED_IDS, field.size),
            }
        )
        for field in vocabulary.fields
    ]
    return pd.concat(parts, ignore_index=True)
