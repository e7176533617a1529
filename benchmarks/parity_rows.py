"""Awkward rows of the parity benchmark, in several layouts, and the networks trained to score them."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import scoring_world
from pipelines.steps.config.behaviour_names import weights_column
from pipelines.steps.features.encoded_rows import Ragged
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.labels.training_rows import TRAIN, VALIDATION, TrainingRows
from pipelines.steps.models.bundle import write_bundle
from pipelines.steps.models.dnn_config import DnnConfig, Pooling
from pipelines.steps.models.dnn_model import TrainedDnn
from pipelines.steps.models.dnn_training import train_dnn

TRAINING_ROWS = 24_000
"""The most rows; fewer where fewer are scored."""
EPOCHS = 2
ODD_SHARE = 0.05
"""Share of the bags of each field, for each way of being odd."""


@dataclass(frozen=True)
class Net:
    """The shape of a network; a `narrow` one knows fewer fields, fewer tokens and shorter bags."""

    embedding_dim: int
    hidden: tuple[int, ...]
    pooling: Pooling
    narrow: bool = False
    weighted: bool = False


NETS = {
    "audience_0": Net(32, (256, 128), "mean"),
    "audience_1": Net(32, (256, 128), "sqrt_n", weighted=True),
    "audience_2": Net(16, (128, 64), "mean"),
    "audience_3": Net(16, (128, 64), "sqrt_n"),
    "audience_4": Net(8, (64, 32), "mean", weighted=True),
    "audience_5": Net(8, (50,), "sqrt_n"),
    "audience_6": Net(16, (), "mean"),
    "audience_7": Net(7, (33,), "mean", narrow=True),
    "audience_8": Net(24, (100, 30), "sqrt_n", narrow=True, weighted=True),
    "audience_9": Net(64, (256, 128, 64), "mean", narrow=True),
}


@dataclass(frozen=True)
class Layout:
    """One way the same rows are written.

    Attributes:
        rows_per_group: None: one group for each task, where there are most of them.
        dictionary_bytes: At a few, long columns fall back to plain strings, which the reader reads otherwise.
        shuffled: Rows lie in another order.
    """

    rows_per_group: int | None
    dictionary_bytes: int
    shuffled: bool


LAYOUTS = {
    "codes": Layout(None, 8 << 20, shuffled=False),
    "strings": Layout(131_072, 1 << 16, shuffled=False),
    "shuffled": Layout(1_000, 8 << 20, shuffled=True),
}


@dataclass(frozen=True)
class World:
    """The folders of the rows, in every layout, and of the bundles.

    Attributes:
        home: The folder.
        nets: Audience → its network.
        group_rows: Rows of a row group of the layout "codes".
    """

    home: Path
    nets: Mapping[str, Net]
    group_rows: int

    def file(self, layout: str) -> Path:
        return self.home / f"{layout}.parquet"

    @property
    def bundles(self) -> dict[str, Path]:
        return {audience: self.home / "bundles" / audience for audience in self.nets}


def make_world(work_dir: Path, rows: int, seed: int, nets: int, most_tasks: int) -> World:
    """Rows and trained bundles of these numbers: made now, unless made before by the code as it is now."""
    code = b"".join(Path(file).read_bytes() for file in (__file__, scoring_world.__file__))
    name = f"parity-{rows}-{seed}-{nets}-{most_tasks}-{hashlib.sha256(code).hexdigest()[:8]}"
    chosen = dict(list(NETS.items())[:nets])
    world = World((work_dir / name).absolute(), chosen, group_rows=ceil(rows / most_tasks))
    done = world.home / "made"
    if done.exists():
        return world
    if world.home.exists():
        shutil.rmtree(world.home)
    (world.home / "bundles").mkdir(parents=True)
    table = pa.concat_tables(odd_rows(rows, seed))
    for name, layout in LAYOUTS.items():
        order = np.random.default_rng(seed).permutation(rows) if layout.shuffled else None
        pq.write_table(
            table if order is None else table.take(pa.array(order)),
            world.file(name),
            row_group_size=layout.rows_per_group or world.group_rows,
            dictionary_pagesize_limit=layout.dictionary_bytes,
            compression="zstd",
        )
    del table
    train(world, seed, min(rows, TRAINING_ROWS))
    done.touch()
    return world


def odd_rows(rows: int, seed: int) -> Iterator[pa.Table]:
    """The scoring benchmark's devices; of each field's bags, ODD_SHARE of each kind made odd."""
    for number, table in enumerate(scoring_world.feature_tokens(rows, seed)):
        random = np.random.default_rng([seed, number])
        for field in scoring_world.FIELDS:
            place = table.schema.get_field_index(field.name)
            bags = _with_odd_bags(table.column(place), field, random)
            table = table.set_column(place, field.name, bags)
            weights = weights_column(field.name)
            place = table.schema.get_field_index(weights)
            table = table.set_column(place, weights, scoring_world.some_weights(bags, random))
        yield table


def _with_odd_bags(
    column: pa.ChunkedArray, field: scoring_world.Field, random: np.random.Generator
) -> pa.Array:
    kinds = list(_odd_bags(field, random).values())
    kind = random.integers(int(1 / ODD_SHARE), size=len(column))  # those past the last kind stay as they are
    chosen = np.flatnonzero(kind < len(kinds))
    odd = [
        kinds[k](bag) for k, bag in zip(kind[chosen], column.take(pa.array(chosen)).to_pylist(), strict=True)
    ]
    source = np.arange(len(column))
    source[chosen] = len(column) + np.arange(len(chosen))
    bags = pa.concat_arrays([*column.chunks, pa.array(odd, column.type)])
    return bags.take(pa.array(source))


Bag = list[str | None]


def _odd_bags(
    field: scoring_world.Field, random: np.random.Generator
) -> dict[str, Callable[[Bag], Bag | None]]:
    """Kind → what makes a bag so."""
    names = scoring_world.token_names(field)

    def others(count: int) -> Bag:
        return [names[n] for n in random.integers(len(names), size=count)]

    return {
        "empty": lambda _: [],
        "null": lambda _: None,
        "null_tokens": lambda bag: [*bag[::2], None, *bag[1::2], None],
        "unknown": lambda bag: [f"unheard-of-{place}" for place in range(max(1, len(bag)))],
        "repeated": lambda bag: (bag or others(1)) * 3,
        "truncated": lambda bag: [*bag, *others(3 * field.max_length)],
    }


def odd_shares(table: pa.Table) -> dict[str, dict[str, float]]:
    """Field → kind of bag → its share, counted in the rows as they are."""
    shares = {}
    for field in scoring_world.FIELDS:
        known = set(scoring_world.token_names(field)[: field.tokens])
        counts = dict.fromkeys(_odd_bags(field, np.random.default_rng()), 0)
        for bag in bags_of(table.column(field.name)):
            if not bag:
                counts["null" if bag is None else "empty"] += 1
                continue
            counts["null_tokens"] += None in bag
            counts["unknown"] += not known.issuperset(bag)
            counts["repeated"] += len(set(bag)) < len(bag)
            counts["truncated"] += len(bag) > field.max_length
        shares[field.name] = {kind: count / table.num_rows for kind, count in counts.items()}
    return shares


def bags_of(column: pa.ChunkedArray) -> Iterator[Bag | None]:
    """Row by row; few of them as Python objects at a time."""
    for chunk in column.chunks:
        for start in range(0, len(chunk), 10_000):
            yield from chunk.slice(start, 10_000).to_pylist()


def train(world: World, seed: int, rows: int) -> None:
    """Trains every network, each on labels of its own, and writes its bundle."""
    sample = pa.concat_tables(odd_rows(rows, seed + 1))
    for number, (audience, directory) in enumerate(world.bundles.items()):
        net = world.nets[audience]
        vocabulary = vocabulary_of(net)
        labelled = _labelled(dict(vocabulary.encode(sample)), np.random.default_rng([seed, number]))
        config = DnnConfig.published(
            embedding_dim=net.embedding_dim,
            hidden=net.hidden,
            pooling=net.pooling,
            token_weights=net.weighted,
            max_epochs=EPOCHS,
            learning_rate=5e-3,
            seed=number,
        )
        trained = train_dnn(labelled, vocabulary.sizes, config, lambda _: None)
        _write(directory, trained, vocabulary)
        print(f"{audience}: {trained.curves[-1]}", flush=True)


def _write(directory: Path, trained: TrainedDnn, vocabulary: Vocabulary) -> None:
    days = [scoring_world.DAY.isoformat()]
    write_bundle(directory, trained, vocabulary, training_days=days, code_version="benchmark", metrics={})


def vocabulary_of(net: Net) -> Vocabulary:
    whole = scoring_world.vocabulary(weighted=net.weighted)
    if not net.narrow:
        return whole
    return Vocabulary(
        tuple(
            FieldVocabulary(
                field.name,
                max(1, field.max_length // 2),
                field.tokens[: len(field.tokens) // 3],
                field.weighted,
            )
            for field in reversed(whole.fields[1:])
        )
    )


def _labelled(bags: dict[str, Ragged], random: np.random.Generator) -> TrainingRows:
    """Rows whose chance of a 1 follows from their tokens, each of which has a hidden weight."""
    rows = next(iter(bags.values())).rows
    hidden = np.zeros(rows)
    for bag in bags.values():
        weights = random.normal(size=bag.values.max() + 1)
        hidden += np.add.reduceat(weights[bag.values], bag.offsets[:-1]) / np.sqrt(bag.lengths)
    chance = 1 / (1 + np.exp(1 - 3 * (hidden - hidden.mean()) / hidden.std()))
    labels = (random.random(rows) < chance).astype(np.float32)
    split = np.where(random.random(rows) < 0.8, TRAIN, VALIDATION).astype(np.int8)
    return TrainingRows(labels, split, bags)
