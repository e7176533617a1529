"""The events' files: codes become strings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.simulated_world.catalogue import Catalogue
from pipelines.simulated_world.events import Events
from pipelines.simulated_world.population import Population
from pipelines.simulated_world.rules import (
    CAR,
    EVENT_NAMES,
    MISSING_SPELLINGS,
    OTHER_PRODUCTS,
    ZERO_ID,
)

TIMESTAMP = pa.timestamp("us", tz="UTC")
_EVENT_FIELDS: list["pa.Field[Any]"] = [
    pa.field("device_id", pa.string()),
    pa.field("event_time", TIMESTAMP),
    pa.field("received_at", TIMESTAMP, nullable=False),
    pa.field("event_name", pa.string(), nullable=False),
    pa.field("device_name", pa.string()),
    pa.field("device_model", pa.string()),
    pa.field("app_package", pa.string()),
    pa.field("campaign", pa.string()),
    pa.field("product", pa.string()),
]
EVENT_SCHEMA = pa.schema(_EVENT_FIELDS)
"""Columns of one day's file; the hive column `day` (UTC day of `received_at`) is in the path only."""


@dataclass(frozen=True)
class Spellings:
    """The strings that the codes of `Events` stand for, NO_VALUE (the last entry of each) for null."""

    device_id: pa.StringArray
    event_name: pa.StringArray
    device_name: pa.StringArray
    device_model: pa.StringArray
    app_package: pa.StringArray
    campaign: pa.StringArray
    product: pa.StringArray


def spellings_of(catalogue: Catalogue, population: Population) -> Spellings:
    ids = population.ids
    pairs = list(zip(catalogue.model_brands, catalogue.models, strict=True))
    names = [spelling for brand, _ in pairs for spelling in _name_spellings(brand)]
    models = [spelling for brand, model in pairs for spelling in _model_spellings(brand, model)]
    return Spellings(
        device_id=_strings(ids, [device_id.upper() for device_id in ids], [ZERO_ID, ""]),
        event_name=_strings(EVENT_NAMES),
        device_name=_strings(names, MISSING_SPELLINGS),
        device_model=_strings(models, MISSING_SPELLINGS),
        app_package=_strings(catalogue.apps, MISSING_SPELLINGS),
        campaign=_strings(catalogue.campaigns, MISSING_SPELLINGS),
        product=_strings([CAR], OTHER_PRODUCTS),
    )


def _strings(*parts: Sequence[str]) -> pa.StringArray:
    return pa.array([*(value for part in parts for value in part), None], type=pa.string())


def _name_spellings(brand: str) -> tuple[str, ...]:
    title = brand.title()
    return brand, brand.upper(), title, f" {brand}  ", f"{title} ", _full_width(brand)


def _model_spellings(brand: str, model: str) -> tuple[str, ...]:
    return (
        model,
        model.lower(),
        f"{brand} {model}",
        f"{brand.upper()}  {model.lower()}",
        f"  {model} ",
        _full_width(model),
    )


def _full_width(text: str) -> str:
    """The text in full-width Unicode letters, which NFKC folds back."""
    first, last, offset = 0x21, 0x7E, 0xFEE0
    return text.translate({code: code + offset for code in range(first, last + 1)})


def write_events(events: Events, spellings: Spellings, file: Path) -> None:
    """Writes one file whole, or not at all: it is made beside the events and moved to them."""
    unfinished = file.parent.parent / f".{file.parent.name}.{file.name}"
    pq.write_table(_table(events, spellings), unfinished, compression="zstd")
    file.parent.mkdir(exist_ok=True)
    unfinished.replace(file)


def _table(events: Events, spellings: Spellings) -> pa.Table:
    columns: list[pa.Array[Any]] = []
    for name in EVENT_SCHEMA.names:
        if name == "event_time":
            columns.append(
                pa.array(events.event_us, mask=events.time_missing, type=pa.int64()).cast(TIMESTAMP)
            )
        elif name == "received_at":
            columns.append(pa.array(events.received_us, type=pa.int64()).cast(TIMESTAMP))
        else:
            values: pa.StringArray = getattr(spellings, name)
            codes = getattr(events, name) % len(values)  # NO_VALUE becomes the last entry, the null
            columns.append(values.take(pa.array(codes)))
    return pa.table(columns, schema=EVENT_SCHEMA)
