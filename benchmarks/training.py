"""How many rows a core trains on in a second: ours beside a plain loop, libraries, and the limit.

    python -m benchmarks.training [--rows N] [--rounds R] [--peers a,b] [--json FILE]

The rows are of the scoring benchmark's fields; the network is the published one at its size (embedding 32,
net 224→256→128→1), one epoch, batches of 512, one thread. What counts is rows per CPU second, over theirs;
`limit` is our rows per second over those of forward, backward and step alone.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch

from benchmarks.measure import (
    Report,
    Usage,
    alternate,
    measure,
    missing_package,
    paired_ratio,
    parser,
    summarize,
)
from benchmarks.scoring_world import feature_tokens, vocabulary
from benchmarks.training_peers import BATCH_ROWS, LIMIT, OURS, PEERS, Peer, network_of
from pipelines.steps.dnn_model import torch_threads
from pipelines.steps.training_rows import TRAIN, VALIDATION, TrainingRows

GOALS = {
    "plain_loop": (">=", 10.0),
    "pytorch_widedeep": (">=", 5.0),
    "deepctr_torch": (">=", 5.0),
    "limit": (">=", 0.85),
}
SAMPLE_SHARE = 0.05
"""Of the rows, for peers too slow for all."""
VALIDATION_EVERY = 50
POSITIVE_SHARE = 0.1
TOLERANCE = 1e-4
"""Of logits: each sums its embeddings in another order."""
NOT_TOGETHER = {"pytorch_widedeep": "it needs numpy below 2, and so cannot be installed beside this project"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is asked for; returns the process's exit status."""
    options = parser("training", __doc__ or "", rows=200_000, rounds=5)
    options.add_argument("--peers", type=_names, default=["limit", *PEERS], help="comma-separated, of these")
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
            if reason := NOT_TOGETHER.get(name) or missing_package(peer.module):
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
    report.publish(chosen.json)
    return 0


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
