"""Deep feature synthesis with boosted trees, as a peer of the chain on an event log; a program of its own.

    PYTHON -m benchmarks.events_featuretools EVENTS ROWS WINDOW_DAYS SCORES

PYTHON is one that has featuretools, xgboost and a pandas that featuretools works with (below 3), in an
environment of its own: nothing of this project is imported here.

What does not belong here: reading the log and its labels (`events_chain`).
"""

import sys
from typing import Any

AGGREGATIONS = (
    *("count", "sum", "mean", "max", "min", "std", "skew", "num_unique", "mode"),
    *("percent_true", "time_since_last", "avg_time_between", "trend"),
)
OF_CONVERSIONS = ("count", "sum", "time_since_last")
"""Aggregations that are also made of the label's own past alone."""
TREES = 600
PATIENCE = 30


def main(arguments: list[str]) -> None:
    """Reads events and rows, and writes a probability for each row of the scored day.

    Args:
        arguments: Paths of the events (`device_id`, `event_time`, `category`, `money`, `converts`), the rows
            (`device_id`, `end`: the midnight after the as-of day, `label`: null on the scored day), the
            look-back in days, and the path of the scores.
    """
    import numpy as np
    import pandas as pd
    from xgboost import XGBClassifier

    events, rows = pd.read_parquet(arguments[0]), pd.read_parquet(arguments[1])
    matrix = _synthesize(events, rows, int(arguments[2])).to_numpy(dtype=np.float64)
    labels = rows["label"].to_numpy(dtype=np.float64)
    scored = np.isnan(labels)
    days = rows["end"].to_numpy()
    newest = ~scored & (days == days[~scored].max())
    settings: dict[str, Any] = {
        "max_depth": 4,
        "learning_rate": 0.05,
        "min_child_weight": 10,
        "subsample": 0.8,
        "colsample_bytree": 0.5,
        "random_state": 0,
    }
    trees = TREES // 3
    if (~scored & ~newest).any():
        earlier = ~scored & ~newest
        tried = XGBClassifier(
            n_estimators=TREES, early_stopping_rounds=PATIENCE, eval_metric="logloss", **settings
        )
        held_out = [(matrix[newest], labels[newest])]
        tried.fit(matrix[earlier], labels[earlier], eval_set=held_out, verbose=False)
        trees = tried.best_iteration + 1
    model = XGBClassifier(n_estimators=trees, **settings).fit(matrix[~scored], labels[~scored])
    said = model.predict_proba(matrix[scored])[:, 1]
    devices = rows.loc[scored, "device_id"].to_numpy()
    pd.DataFrame({"device_id": devices, "probability": said}).to_parquet(arguments[3])
    print(f"{matrix.shape[1]} features, {trees} trees")


def _synthesize(events: Any, rows: Any, window_days: int) -> Any:
    """Features of each row, in the order of the rows."""
    import featuretools as ft
    import pandas as pd

    events = events.reset_index(drop=True).rename_axis("event_id").reset_index()
    types = {"device_id": "Categorical", "money": "Double", "converts": "Boolean"}
    if events["category"].notna().any():
        types["category"] = "Categorical"
    else:
        events = events.drop(columns="category")
    entities = ft.EntitySet("log")
    entities.add_dataframe(
        dataframe_name="events",
        dataframe=events,
        index="event_id",
        time_index="event_time",
        logical_types=types,
    )
    devices = pd.DataFrame({"device_id": pd.unique(rows["device_id"])})
    entities.add_dataframe(
        dataframe_name="devices",
        dataframe=devices,
        index="device_id",
        logical_types={"device_id": "Categorical"},
    )
    entities.add_relationship("devices", "device_id", "events", "device_id")
    entities.add_last_time_indexes(["events"])
    entities.add_interesting_values(dataframe_name="events", values={"converts": [True]})
    matrix, made = ft.dfs(
        entityset=entities,
        target_dataframe_name="devices",
        cutoff_time=rows[["device_id", "end"]].rename(columns={"end": "time"}),
        cutoff_time_in_index=True,
        training_window=f"{window_days} days",
        include_cutoff_time=False,  # the midnight after the day belongs to the horizon
        agg_primitives=list(AGGREGATIONS),
        where_primitives=list(OF_CONVERSIONS),
        trans_primitives=["weekday", "is_weekend"],
        n_jobs=1,
    )
    encoded, _ = ft.encode_features(matrix, made, top_n=20, include_unknown=False)
    return encoded.loc[list(zip(rows["device_id"], rows["end"], strict=True))]


if __name__ == "__main__":
    main(sys.argv[1:])
