"""Measures the rows that a core trains on in a second: ours beside a plain loop, libraries, and the limit.

    python -m benchmarks.training [--rows N] [--rounds R] [--peers a,b] [--streamed N,M] [--json FILE]

The rows are of the scoring benchmark's fields; the network is the published one at its size (embedding 32,
net 224→256→128→1), one epoch, batches of 512, one thread. What counts is rows per CPU second, over theirs;
`limit` is our rows per second over those of forward, backward and step alone. `--streamed` trains on so many
rows read from files, in a new process each, and reports the most memory it took.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.measure import (
    Report,
    Usage,
    alternate,
    measure,
    measure_fresh,
    missing_package,
    paired_ratio,
    parser,
    summarize,
)
from benchmarks.scoring_world import feature_tokens, vocabulary
from benchmarks.training_peers import BATCH_ROWS, LIMIT, OURS, PEERS, Peer, network_of
from pipelines.steps.labels.training_rows import TRAIN, VALIDATION, TrainingRows
from pipelines.steps.models.dnn_model import torch_threads

GOALS = {
    "plain_loop": (">=", 10.0),
    "deepctr_torch": (">=", 5.0),
    "limit": (">=", 0.85),
}
SAMPLE_SHARE = 0.05
"""Share of the rows, for peers too slow for all."""
VALIDATION_EVERY = 50
POSITIVE_SHARE = 0.1
TOLERANCE = 1e-4
"""Largest difference of logits: each sums its embeddings in another order."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is asked for; returns the process's exit status."""
    options = parser("training", __doc__ or "", rows=200_000, rounds=5)
    options.add_argument("--peers", type=_names, default=["limit", *PEERS], help="comma-separated, of these")
    options.add_argument(
        "--streamed", type=_counts, default=[], metavar="N,M", help="rows to stream, beside the above"
    )
    chosen = options.parse_args(arguments)
    rows, sizes = make_rows(chosen.rows, chosen.seed)
    sample = sample_of(rows)
    settings = {name: peer.setting for name, peer in {"ours": OURS, "limit": LIMIT, **PEERS}.items()}
    config = {"rows": rows.rows, "sample_rows": sample.rows, "batch_rows": BATCH_ROWS, "settings": settings}
    report = Report(config=config | {"rounds": chosen.rounds, "seed": chosen.seed}, goals=GOALS)
    all_ours: list[Usage] = []
    with torch_threads(1):
        for name in chosen.peers:
            peer = LIMIT if name == "limit" else PEERS[name]
            if reason := missing_package(peer.module):
                report.results[name] = {"missing": reason}
                continue
            print(f"{name} …", flush=True)
            of = sample if peer.of_sample else rows
            require_equal_networks(peer, sample, sizes)
            ours, theirs = _compare(peer, rows, of, sizes, chosen.rounds)
            all_ours += ours
            report.ratios[name] = paired_ratio(
                [usage.cpu_seconds / of.rows for usage in theirs],
                [usage.cpu_seconds / rows.rows for usage in ours],
                chosen.seed,
            )
            report.results[name] = summarize(theirs, of.rows)
            report.results["ours"] = summarize(all_ours, rows.rows)
            report.save(chosen.json)
    for count in chosen.streamed:
        print(f"streaming {count:,} rows …", flush=True)
        usage = measure_streamed(count, chosen.work_dir, chosen.seed)
        report.results[f"streamed_{count}"] = summarize([usage], count)
        print(f"    at most {usage.peak_process_bytes / 2**20:.0f} MiB", flush=True)
    report.publish(chosen.json)
    return 0


def _counts(given: str) -> list[int]:
    return [int(count) for count in given.split(",") if count]


STREAMED_PROGRAM = """
import sys
from pathlib import Path
from benchmarks.scoring_world import vocabulary
from pipelines.steps.models.dnn_model import DnnConfig
from pipelines.steps.models.dnn_training import train_dnn
from pipelines.steps.labels.training_rows import TrainingFiles
sizes = vocabulary().sizes
config = DnnConfig(embedding_dim=4, hidden=(8,), members=1, max_epochs=1, device="cpu")
train_dnn(TrainingFiles([Path(path) for path in sys.argv[1:]], list(sizes)), sizes, config, print)
"""
"""A program with a small network: what is measured is the feeding."""
FILE_ROWS = 250_000


def measure_streamed(count: int, work_dir: Path, seed: int) -> Usage:
    """One epoch over `count` rows in files, as a new process."""
    home = work_dir / f"training-rows-{seed}"
    home.mkdir(parents=True, exist_ok=True)
    paths = [home / f"{place}.parquet" for place in range(ceil(count / FILE_ROWS))]
    for place, path in enumerate(paths):
        if path.exists():
            continue
        rows, _ = make_rows(FILE_ROWS, seed * 1_000 + place)
        ids = pa.list_(pa.int32())
        columns = {
            name: pa.ListArray.from_arrays(pa.array(bag.offsets.astype(np.int32)), pa.array(bag.values)).cast(
                ids
            )
            for name, bag in rows.bags.items()
        }
        table = pa.table({"label": rows.labels.astype(np.int8), "split": rows.split, **columns})
        draft = path.with_suffix(".tmp")
        pq.write_table(table, draft, row_group_size=FILE_ROWS // 2, compression="zstd")
        draft.replace(path)
    return measure_fresh([sys.executable, "-c", STREAMED_PROGRAM, *map(str, paths)])


def _compare(
    peer: Peer, rows: TrainingRows, of: TrainingRows, sizes: Mapping[str, int], rounds: int
) -> tuple[list[Usage], list[Usage]]:
    ours, theirs = OURS.epoch(rows, sizes), peer.epoch(of, sizes)
    theirs()  # allocators and kernels warm up
    return alternate(lambda: _said(ours, "ours"), lambda: _said(theirs, "theirs"), rounds)


def _said(epoch: Callable[[], object], whose: str) -> Usage:
    usage = measure(epoch)
    print(f"    {whose}: {usage.cpu_seconds:.1f} s of CPU", flush=True)
    return usage


def _names(given: str) -> list[str]:
    names = given.split(",")
    if unknown := sorted(set(names) - {"limit", *PEERS}):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
    return names


def make_rows(count: int, seed: int) -> tuple[TrainingRows, Mapping[str, int]]:
    """Seeded rows and the sizes of their vocabularies; labels are random, which costs no more to learn."""
    words = vocabulary()
    random = np.random.default_rng(seed)
    bags = words.encode(pa.concat_tables(feature_tokens(count, seed)))
    labels = (random.random(count) < POSITIVE_SHARE).astype(np.float32)
    split = np.where(np.arange(count) % VALIDATION_EVERY, TRAIN, VALIDATION).astype(np.int8)
    return TrainingRows(labels, split, bags), words.sizes


def sample_of(rows: TrainingRows) -> TrainingRows:
    """The first few of the rows."""
    stop = max(2 * BATCH_ROWS, round(rows.rows * SAMPLE_SHARE))
    bags = {name: bag.slice(0, min(stop, rows.rows)) for name, bag in rows.bags.items()}
    return TrainingRows(rows.labels[:stop], rows.split[:stop], bags)


def require_equal_networks(peer: Peer, rows: TrainingRows, sizes: Mapping[str, int]) -> None:
    """
    Raises:
        RuntimeError: The peer's network gives other logits than ours under the same weights.
    """
    torch.manual_seed(0)
    weights = network_of(sizes).state_dict()
    few = TrainingRows(
        rows.labels[:BATCH_ROWS],
        rows.split[:BATCH_ROWS],
        {name: bag.slice(0, BATCH_ROWS) for name, bag in rows.bags.items()},
    )
    difference = np.abs(OURS.logits(few, sizes, weights) - peer.logits(few, sizes, weights)).max()
    if not difference <= TOLERANCE:
        raise RuntimeError(f"its network is not ours: logits differ by {difference}")


if __name__ == "__main__":
    raise SystemExit(main())
