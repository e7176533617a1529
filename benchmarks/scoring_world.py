"""What scoring is measured with: seeded feature tokens as our lake writes them, and a bundle.

Fresh processes of peers import this module, so it loads neither dagster nor torch before data are made.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession

from pipelines.steps.config.behaviour_names import weights_column
from pipelines.steps.features.encoded_rows import offsets_of
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.features.token_weights import codes_of, to_bytes

DAY = date(2025, 5, 30)
EMBEDDING_DIM = 32
HIDDEN = (256, 128)
UNKNOWN_SHARE = 0.02
EMPTY_SHARE = 0.02
"""Share of rows without a value in a single-valued field; a multi-valued one may be of length 0."""
CHUNK_ROWS = 50_000
SAMPLE_SHARE = 0.05
"""Share of the rows, written once more to a folder of their own, for peers too slow to score all."""
LENGTH_SHAPE = 2.0
"""Shape of the gamma distribution of list lengths: as uneven as real devices', most short, few long."""


@dataclass(frozen=True)
class Field:
    """One field of the world.

    Attributes:
        name: The column.
        tokens: Size of its vocabulary.
        mean_length: Tokens per row on average; 1 means single-valued.
        max_length: Tokens per row at most.
        pattern: How token number n reads, from `{n}` and the vendor `{v}`.
    """

    name: str
    tokens: int
    mean_length: int
    max_length: int
    pattern: str


FIELDS = (
    Field("country", 200, 1, 1, "country-{n:03}"),
    Field("device_model", 5_000, 1, 1, "sm-{n:04}u"),
    Field("device_name", 60, 1, 1, "vendor{n}"),
    Field("os_version", 40, 1, 1, "android-{n}"),
    Field("apps", 50_000, 30, 100, "com.vendor{v}.app{n:05}"),
    Field("campaigns", 5_000, 10, 40, "vendor{v}-campaign-{n:04}"),
    Field("categories", 1_000, 5, 20, "category-{n:03}"),
)


@dataclass(frozen=True)
class World:
    """The folders and files of a world.

    Attributes:
        rows: Of `files`.
        files: Parquet files of the feature tokens: `device_id`, `day`, and per field a list of strings and
            a byte for each of them, what it weighs.
        sample_rows: Of `sample_files`.
        sample_files: Some of the same rows.
        bundle: The model's bundle; it reads tokens alone.
    """

    rows: int
    files: tuple[Path, ...]
    sample_rows: int
    sample_files: tuple[Path, ...]
    bundle: Path

    @property
    def weighted_bundle(self) -> Path:
        """The same model, but that its tokens weigh."""
        return self.bundle.parent / "weighted"

    @property
    def path(self) -> Path:
        """The file that describes it, for another process to load."""
        return self.bundle.parent / "world.json"

    def save(self) -> None:
        self.path.write_text(json.dumps(asdict(self), default=str, indent=2))

    @classmethod
    def load(cls, path: Path) -> "World":
        read = json.loads(path.read_text())
        files, sample_files = (tuple(map(Path, read[name])) for name in ("files", "sample_files"))
        return cls(read["rows"], files, read["sample_rows"], sample_files, Path(read["bundle"]))


def make_world(spark: SparkSession, work_dir: Path, rows: int, seed: int, files: int = 4) -> World:
    """The world of these numbers: made now, unless it was made before by the code as it is now."""
    home = (work_dir / f"scoring-{rows}-{seed}-{files}-{_code_version()}").absolute()
    made = home / "world.json"
    if not made.exists():
        if home.exists():
            shutil.rmtree(home)
        home.mkdir(parents=True)
        _write(spark, home, rows, seed, files).save()
    return World.load(made)


def vocabulary(*, weighted: bool = False) -> Vocabulary:
    """Every field's known tokens, the most popular first."""
    return Vocabulary(
        tuple(
            FieldVocabulary(field.name, field.max_length, tuple(token_names(field)[: field.tokens]), weighted)
            for field in FIELDS
        )
    )


def token_names(field: Field) -> list[str]:
    """All tokens that occur, the most popular first; those past `field.tokens` are in no vocabulary."""
    return [field.pattern.format(n=n, v=n % 97) for n in range(field.tokens + _unknown_tokens(field))]


def feature_tokens(rows: int, seed: int) -> Iterator[pa.Table]:
    """Devices' tokens, chunk by chunk; the same numbers give the same rows."""
    names = {field.name: pa.array(token_names(field)) for field in FIELDS}
    for start in range(0, rows, CHUNK_ROWS):
        count = min(CHUNK_ROWS, rows - start)
        random = np.random.default_rng([seed, start])
        columns: dict[str, pa.Array] = {
            "device_id": _device_ids(start, count),
            "day": pa.array([DAY] * count, pa.date32()),
        }
        for field in FIELDS:
            ids, offsets = _draw(field, count, random)
            # The offsets are int32 because that is a list, not a large_list, as Spark writes it.
            columns[field.name] = pa.ListArray.from_arrays(
                pa.array(offsets, pa.int32()), names[field.name].take(pa.array(ids))
            )
        weighing = np.random.default_rng([seed, start, 1])  # apart, so that tokens stay as they were
        for field in FIELDS:
            columns[weights_column(field.name)] = some_weights(columns[field.name], weighing)
        yield pa.table(columns)


def some_weights(bags: pa.Array, random: np.random.Generator) -> pa.Array:
    """A byte for each token of a column of lists: most seen a few times, of late or long ago."""
    offsets = offsets_of(pc.fill_null(pc.list_value_length(bags), 0).to_numpy())
    events, days = random.geometric(0.3, offsets[-1]), random.geometric(0.5, offsets[-1])
    return to_bytes(codes_of(events, np.minimum(events, days), random.integers(0, 90, offsets[-1])), offsets)


def _write(spark: SparkSession, home: Path, rows: int, seed: int, files: int) -> World:
    # Here: the lake brings dagster along, which a peer's own process must not pay for.
    from pipelines.steps.features.feature_tokens import PARQUET_OPTIONS
    from resources.lake import Lake

    staging = home / "staging"
    staging.mkdir()
    for number, chunk in enumerate(feature_tokens(rows, seed)):
        pq.write_table(chunk, staging / f"{number:05}.parquet")
    frame = spark.read.parquet(str(staging))

    lake, day = Lake(root=str(home / "lake")), DAY.isoformat()

    def write(rows: DataFrame, table: str) -> tuple[int, tuple[Path, ...]]:
        written = lake.write(
            rows,
            table,
            by=["day"],
            keys=[day],
            sort=["device_id"],
            files_per_partition=files,
            options=PARQUET_OPTIONS,
        )[day]
        return written.rows, tuple(sorted((home / "lake" / table / written.directory).glob("*.parquet")))

    all_rows, all_files = write(frame, "feature_tokens")
    sample_rows, sample_files = write(frame.sample(SAMPLE_SHARE, seed), "sample")
    shutil.rmtree(staging)
    world = World(all_rows, all_files, sample_rows, sample_files, home / "bundle")
    _write_bundle(world.bundle, seed)
    _write_bundle(world.weighted_bundle, seed, weighted=True)
    return world


def _write_bundle(directory: Path, seed: int, *, weighted: bool = False) -> None:
    import torch

    from pipelines.steps.models.bundle import write_bundle
    from pipelines.steps.models.dnn_config import DnnConfig
    from pipelines.steps.models.dnn_model import AudienceNet, TrainedDnn

    words = vocabulary(weighted=weighted)
    config = DnnConfig.published(
        embedding_dim=EMBEDDING_DIM, hidden=HIDDEN, seed=seed, token_weights=weighted
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AudienceNet(
            list(words.sizes.values()),
            embedding_dim=EMBEDDING_DIM,
            hidden=HIDDEN,
            embedding_init_std=1.0,
            token_weights=weighted,
        )
        # As if trained: the last layer spreads probabilities over (0, 1), so that an error shows in them.
        last = list(network.feed_forward.parameters())[-2]
        torch.nn.init.normal_(last, std=0.5)
        last.data -= last.mean()
    model = TrainedDnn(network.state_dict(), config, curves=(), best_epochs=())
    write_bundle(
        directory, model, words, training_days=[DAY.isoformat()], code_version="benchmark", metrics={}
    )


def _draw(field: Field, rows: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the tokens, distinct within a row and popular ones first, and the rows' offsets."""
    popularity = _popularity(field)
    if field.mean_length == 1:
        lengths = (random.random(rows) >= EMPTY_SHARE).astype(np.int64)
        draws = lengths
    else:
        mean = random.gamma(LENGTH_SHAPE, field.mean_length / LENGTH_SHAPE, rows)
        lengths = np.minimum(random.poisson(mean), field.max_length)
        draws = _draws_for(lengths, popularity)
    owner = np.repeat(np.arange(rows), draws)
    tokens = np.searchsorted(np.cumsum(popularity), random.random(len(owner)), side="right")
    tokens = np.minimum(tokens, len(popularity) - 1)
    _, first = np.unique(owner * len(popularity) + tokens, return_index=True)
    first.sort()
    owner, tokens = owner[first], tokens[first]
    counts = np.bincount(owner, minlength=rows)
    starts = np.cumsum(counts) - counts
    kept = np.arange(len(owner)) - np.repeat(starts, counts) < field.max_length
    offsets = np.zeros(rows + 1, dtype=np.int64)
    np.cumsum(np.minimum(counts, field.max_length), out=offsets[1:])
    return tokens[kept], offsets


def _popularity(field: Field) -> np.ndarray:
    """Probability of each token: Zipf's law over the vocabulary, and an even rest for unknown ones."""
    zipf = 1 / (np.arange(field.tokens) + 3)
    unknown = np.full(_unknown_tokens(field), 1.0)
    known = zipf / zipf.sum() * (1 - UNKNOWN_SHARE)
    return np.concatenate([known, unknown / unknown.sum() * UNKNOWN_SHARE])


def _draws_for(lengths: np.ndarray, popularity: np.ndarray) -> np.ndarray:
    """Draws with replacement that leave about these many distinct tokens."""
    draws = np.unique(np.geomspace(1, 8 * max(lengths.max(), 1), 40).astype(np.int64))
    distinct = [(1 - (1 - popularity) ** count).sum() for count in draws]
    return np.asarray(np.rint(np.interp(lengths, [0, *distinct], [0, *draws])), dtype=np.int64)


def _unknown_tokens(field: Field) -> int:
    return max(10, field.tokens // 2)


def _device_ids(start: int, count: int) -> pa.Array:
    """Like UUIDs, distinct."""
    digests = (
        hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()
        for number in range(start, start + count)
    )
    return pa.array([f"{d[:8]}-{d[8:12]}-{d[12:16]}-{d[16:20]}-{d[20:]}" for d in digests])


def _code_version() -> str:
    """A hash of this file and of what writes the lake: older data are not those of the code as it is."""
    sources = [Path(__file__), Path(__file__).parent.parent / "resources/lake.py"]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:8]
