"""The simulated world as labelled users, a row a device, without Spark: users.parquet beside the truth."""

from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pipelines.simulated_world.config import WorldConfig
from pipelines.simulated_world.truth import rank_auc, true_propensities
from pipelines.simulated_world.world import EVENTS_FOLDER, TRUTH_FILE, simulate_world, stored_world
from pipelines.steps.errors import DataError
from pipelines.steps.features.normalize import normalize_values

WORLD_FOLDER = "world"
"""Apart from what is made of it: simulating again replaces only what it made."""
EVENTS_PER_DEVICE = 150
LOOK_BACK_DAYS = 150
HORIZON_DAYS = 90
FIELDS = {
    "apps": ("app_package", "package"),
    "campaigns": ("campaign", "text"),
    "device_model": ("device_model", "device_model"),
    "device_name": ("device_name", "device_name"),
}
"""Field → its column and normalizer."""


def write_users(folder: Path, devices: int, seed: int) -> Path:
    """Simulates a world, and writes who had which tokens and who bought a car in the 90 days after.

    Returns:
        The folder, with `id`, `label` and a list of tokens per field in users.parquet.
    """
    days = LOOK_BACK_DAYS + HORIZON_DAYS
    per_day = EVENTS_PER_DEVICE * devices // days
    world = WorldConfig(devices=devices, days=days, events_per_day=per_day, seed=seed)
    simulate_world(world, folder / WORLD_FOLDER)
    events = ds.dataset(folder / WORLD_FOLDER / EVENTS_FOLDER, format="parquet").to_table()
    events = events.append_column("id", pc.utf8_lower(pc.utf8_trim_whitespace(events["device_id"])))
    as_of = datetime.combine(world.first_day, time(), UTC) + timedelta(days=LOOK_BACK_DAYS)
    is_before = pc.less(events["event_time"], pa.scalar(as_of, events["event_time"].type))
    before, after = events.filter(is_before), events.filter(pc.invert(is_before))
    truth = pq.read_table(folder / WORLD_FOLDER / TRUTH_FILE)
    known = truth.filter(pc.invert(truth["emulator"]))["device_id"]
    seen = pc.unique(before["id"].drop_null())
    ids = seen.filter(pc.is_in(seen, value_set=known.combine_chunks()))
    bought = after.filter((pc.field("event_name") == "purchase") & (pc.field("product") == "car"))["id"]
    columns = {"id": ids, "label": pc.is_in(ids, value_set=bought.combine_chunks()).cast(pa.int8())}
    for name, (column, normalizer) in FIELDS.items():
        columns[name] = _tokens(ids, before["id"], normalize_values(before[column], normalizer))
    pq.write_table(pa.table(columns), folder / "users.parquet")
    return folder


def attainable(folder: Path, ids: pa.Array, labels: np.ndarray) -> float:
    """AUC of the true propensity on these users, by all that their events tell; lists tell less."""
    world = stored_world(folder / WORLD_FOLDER)
    if world is None:
        raise DataError(
            f"{folder / WORLD_FOLDER} holds no world of this generator",
            found="none, or one of another version",
            expected="the world that the users were taken from",
            remedy="simulate the users again",
        )
    truth = true_propensities(world, LOOK_BACK_DAYS, HORIZON_DAYS).set_index("device_id")
    return rank_auc(truth.loc[ids.to_pylist(), "propensity"].to_numpy(), labels == 1)


def _tokens(ids: pa.Array, owners: pa.ChunkedArray, tokens: pa.ListArray) -> pa.Array:
    """The distinct tokens of each id, in no order that matters."""
    rows = pc.list_parent_indices(tokens)
    pairs = pa.table({"id": owners.take(rows), "token": pc.list_flatten(tokens)})
    pairs = pairs.group_by(["id", "token"]).aggregate([]).drop_null().sort_by([("id", "ascending")])
    places = pc.index_in(pairs["id"], value_set=ids)
    pairs = pairs.append_column("place", places).filter(pc.is_valid(places)).sort_by("place")
    lengths = np.bincount(pairs["place"].to_numpy(), minlength=len(ids))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pairs["token"].combine_chunks())
