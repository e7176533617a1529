"""Command line: list, describe, promote and roll back the models of the store.

    ./run python -m pipelines.models list [AUDIENCE]
    ./run python -m pipelines.models describe AUDIENCE [VERSION] [--model MODEL]
    ./run python -m pipelines.models promote AUDIENCE VERSION [--model MODEL]
    ./run python -m pipelines.models rollback AUDIENCE [--model MODEL]

It starts no Spark and loads no pipeline, so that it answers in a second or two when a champion misbehaves.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.steps.config.project import load_project
from pipelines.steps.errors import AudienceFactoryError, BundleError, ConfigError
from resources.model_log import CHAMPION, LogEntry, ModelRecord
from resources.model_store import ModelStore

EPILOG = """\
A promotion and a rollback take effect with the next predictions. They last until the next one, or until
the next training, which chooses a champion anew: turn its schedule off to keep a version. Days that were
scored before keep the thresholds of the version that scored them. Exit status: 0, or 1 with the reason.
"""
SPLITS = ("validation", "test")
UNKNOWN = "–"
SERVES = "serves"


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what is asked; returns the process's exit status."""
    options = _parser().parse_args(arguments)
    store = ModelStore(root=str(options.data_dir / "models"))
    try:
        return int(options.act(store, options))
    except AudienceFactoryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.models",
        description="List, describe, promote and roll back the models of the store.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where, project, readable = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    where.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("DATA_DIR", "data")),
        help="directory of lake, models and deliveries (default: $DATA_DIR, else data)",
    )
    project.add_argument(
        "--audiences-dir",
        type=Path,
        default=Path(os.environ.get("AUDIENCES_DIR", "audiences")),
        help="directory of fields.yaml and the audiences, whose segments a champion must have the "
        "thresholds of (default: $AUDIENCES_DIR, else audiences)",
    )
    readable.add_argument("--json", action="store_true", help="print JSON, for other programs")
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--model", default=CHAMPION, help="which of its models (default: %(default)s)")
    actions = parser.add_subparsers(required=True, metavar="list | describe | promote | rollback")

    listing = actions.add_parser(
        "list",
        parents=[where, readable],
        help="every version of every model: what serves, then the newest first",
    )
    listing.add_argument("audience", nargs="?", help="this audience alone")
    listing.set_defaults(act=_list)

    describing = actions.add_parser(
        "describe", parents=[where, model, readable], help="all that is known of a version"
    )
    describing.add_argument("audience")
    describing.add_argument("version", nargs="?", help="in full (default: the current one)")
    describing.set_defaults(act=_describe)

    promoting = actions.add_parser(
        "promote",
        parents=[where, model, project],
        help="make a named version the champion",
        description="Makes a version current: one that the model had before or, as champion, one of any "
        "candidate. It must load, and have the thresholds of the audience's segments.",
    )
    promoting.add_argument("audience")
    promoting.add_argument("version", help="in full")
    promoting.set_defaults(act=_promote)

    returning = actions.add_parser(
        "rollback",
        parents=[where, model, project],
        help="return to the version that was current before",
        description='Like "undo": repeated, it goes further back, and it never returns to a version that '
        "was rolled back from; `promote` does.",
    )
    returning.add_argument("audience")
    returning.set_defaults(act=_rollback)
    return parser


def _list(store: ModelStore, options: argparse.Namespace) -> int:
    audiences = store.audiences()
    if options.audience is not None:
        _require_audience(store, options.audience)
        audiences = [options.audience]
    lines = [line for audience in audiences for line in _lines(store, audience)]
    if options.json:
        print(json.dumps(lines, indent=1))
        return 0
    if not lines:
        print(f"no model in {store.root}: run the training job, or name another --data-dir")
        return 0
    aucs = [f"{split} AUC" for split in SPLITS]
    titles = ["audience", "model", "version", "", "since (UTC)", "why", "engine", *aucs]
    _print_columns(
        [titles, *[_cells(line) for line in lines]], right=range(len(titles) - len(aucs), len(titles))
    )
    for line in lines:
        if line["problem"]:
            print(f"! {line['audience']} {line['model']} {line['version']}: {line['problem']}")
    return 0


def _lines(store: ModelStore, audience: str) -> list[dict[str, Any]]:
    """Models of an audience to list: what serves, what served, and its candidates, each newest first."""
    entries = [
        (place, entry)
        for model in store.models(audience)
        for place, entry in enumerate(store.versions_of(audience, model))
    ]
    entries.sort(key=lambda each: each[1].recorded_at, reverse=True)
    # Stable: by date within the champion that serves (its place is 0), the former ones, and all others.
    entries.sort(key=lambda each: each[0] > 0 if each[1].record.model == CHAMPION else 2)
    return [_line(store, entry, current=place == 0) for place, entry in entries]


def _line(store: ModelStore, entry: LogEntry, *, current: bool) -> dict[str, Any]:
    record, engine, problem = entry.record, None, None
    try:
        engine = store.manifest(record).engine
    except BundleError as error:  # one that is gone must not hide the others
        problem = error.what
    metrics = record.properties.get("metrics", {})
    return {
        **_identity(record),
        "current": current,
        "state": _state(record, current=current),
        "recorded_at": entry.recorded_at.isoformat(timespec="seconds"),
        "reason": entry.reason,
        "engine": engine,
        **{f"{split}_auc": metrics.get(split, {}).get("auc") for split in SPLITS},
        "problem": problem,
    }


def _state(record: ModelRecord, *, current: bool) -> str:
    if not current:
        return ""
    return SERVES if record.model == CHAMPION else "newest"


def _cells(line: Mapping[str, Any]) -> list[str]:
    candidate = line["candidate"]
    return [
        line["audience"],
        line["model"] if candidate == line["model"] else f"{line['model']} ({candidate})",
        line["version"],
        line["state"],
        _shown_time(line["recorded_at"]),
        line["reason"],
        _shown(line["engine"]),
        *[_shown(line[f"{split}_auc"], ".4f") for split in SPLITS],
    ]


def _describe(store: ModelStore, options: argparse.Namespace) -> int:
    record = store.find(options.audience, options.model, options.version)
    versions = store.versions_of(record.audience, record.model)
    [entry] = [each for each in versions if each.record.version == record.version]
    stored = store.describe(record)
    intact = stored.content_hash == record.version
    described: dict[str, Any] = {
        **_identity(record),
        "current": entry is versions[0],
        "recorded_at": entry.recorded_at.isoformat(timespec="seconds"),
        "reason": entry.reason,
        **asdict(stored.manifest),
        "properties": dict(record.properties),
        "card": str(card) if (card := store.card(record)).exists() else None,
        "path": str(stored.path),
        "files": stored.files,
        "bytes": stored.bytes,
        "content_hash": stored.content_hash,
        "intact": intact,
    }
    if options.json:
        print(json.dumps(described, indent=1))
    else:
        _print_description(described)
    return 0 if intact else 1


def _print_description(described: Mapping[str, Any]) -> None:
    """Prints what a person reads of a version: what it is, then a table for each thing known of it."""
    state = "serves" if described["model"] == CHAMPION else "is the newest"
    _print_columns(
        [
            [described["audience"], f"{described['model']}: {described['candidate']} {described['version']}"],
            ["", f"{state if described['current'] else 'is not current'}, {described['reason']}"],
            ["since", f"{_shown_time(described['recorded_at'])} UTC"],
            ["trained on", ", ".join(described["training_days"])],
            ["integrity", _integrity(described)],
        ]
    )
    for title, rows in _tables(described).items():
        if rows:
            print(f"\n{title}")
            numeric = range(1, len(rows[0])) if title in {"metrics", "thresholds"} else ()
            _print_columns([["", *row] for row in rows], right=[place + 1 for place in numeric])


def _integrity(described: Mapping[str, Any]) -> str:
    if described["intact"]:
        return "intact: weights, manifest and vocabulary have the hash that names the version"
    return f"DAMAGED: the content has hash {described['content_hash']}; restore it, or train again"


def _tables(described: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Title → rows of cells."""
    properties, metrics = described["properties"], described["metrics"]
    splits = [split for split in SPLITS if split in metrics] + sorted(metrics.keys() - set(SPLITS))
    measured = sorted({name for split in splits for name in metrics[split]})
    shown_above = {*described, "model", "metrics", "thresholds", "as_of_days"}
    others = {name: value for name, value in properties.items() if name not in shown_above}
    scalars = {name: value for name, value in others.items() if not isinstance(value, Mapping)}
    return {
        "metrics": [
            ["", *splits],
            *[
                [_words(name), *[_shown(metrics[split].get(name), ".4f") for split in splits]]
                for name in measured
            ],
        ]
        if measured
        else [],
        "thresholds": [[name, _shown(value)] for name, value in properties.get("thresholds", {}).items()],
        "fields": [
            [field["name"], f"{field['vocabulary_size']:,} ids", f"{field['max_length']:,} a row at most"]
            for field in described["fields"]
        ],
        "architecture": [["engine", described["engine"]], *_pairs(described["architecture"])],
        **{_words(name): _pairs(value) for name, value in others.items() if isinstance(value, Mapping)},
        "made from": [
            *_pairs(scalars),
            ["vocabulary hash", described["vocabulary_hash"]],
            ["code version", described["code_version"]],
        ],
        "files": [
            ["bundle", described["path"]],
            ["size", f"{described['bytes']:,} bytes in {described['files']} files"],
            ["weights sha256", described["weights_sha256"]],
            ["card", _shown(described["card"])],
        ],
    }


def _promote(store: ModelStore, options: argparse.Namespace) -> int:
    before = store.versions_of(options.audience, options.model)[:1]
    record = store.promote(
        options.audience, options.version, model=options.model, by_precision=_by_precision(store, options)
    )
    if before and before[0].record.version == record.version:
        print(f"{_named(record)} is current already; nothing changed")
    else:
        print(f"{_named(record)} is current now; before: {_version(before)}")
    return 0


def _rollback(store: ModelStore, options: argparse.Namespace) -> int:
    before = store.versions_of(options.audience, options.model)[:1]
    record = store.rollback(options.audience, model=options.model, by_precision=_by_precision(store, options))
    print(f"{_named(record)} is current again; before: {_version(before)}")
    return 0


def _by_precision(store: ModelStore, options: argparse.Namespace) -> list[str]:
    """The segments that cut at a threshold, of which a champion must have one for each."""
    _require_audience(store, options.audience)
    if options.model != CHAMPION:
        return []
    audiences = {audience.name: audience for audience in load_project(options.audiences_dir).audiences}
    if options.audience not in audiences:
        raise ConfigError(
            f"{options.audiences_dir} has no audience {options.audience}, whose segments a champion must fit",
            found=", ".join(audiences),
            expected=options.audience,
            remedy="name the directory of its file with --audiences-dir",
        )
    segments = audiences[options.audience].segments
    return [segment.name for segment in segments if segment.min_precision is not None]


def _require_audience(store: ModelStore, audience: str) -> None:
    if audience not in store.audiences():
        raise BundleError(
            f"there is no audience {audience} in {store.root}",
            found=", ".join(store.audiences()) or "no model at all",
            expected=audience,
            remedy="name one that there is or another --data-dir, or run the training job first",
        )


def _identity(record: ModelRecord) -> dict[str, str]:
    return {
        "audience": record.audience,
        "model": record.model,
        "candidate": record.properties.get("model", record.model),
        "version": record.version,
    }


def _named(record: ModelRecord) -> str:
    candidate = record.properties.get("model", record.model)
    kind = "" if candidate == record.model else f" ({candidate})"
    return f"{record.model} of {record.audience}: {record.version}{kind}"


def _version(before: Sequence[LogEntry]) -> str:
    return before[0].record.version if before else "none"


def _shown_time(moment: str) -> str:
    return moment[:19].replace("T", " ")


def _words(name: str) -> str:
    """A key as a person reads it; one with a dot names a setting, and stays."""
    return name if "." in name else re.sub(r"\bauc\b", "AUC", name.replace("_", " "))


def _pairs(values: Mapping[str, Any]) -> list[list[str]]:
    return [[_words(name), _shown(value)] for name, value in values.items()]


def _shown(value: object, of_float: str = ".4g") -> str:
    """A scalar or a list as a person reads it."""
    match value:
        case None | "":
            return UNKNOWN
        case bool():
            return "yes" if value else "no"
        case float():
            return format(value, of_float)
        case int():
            return f"{value:,}"
        case list() | tuple():
            return ", ".join(map(_shown, value)) or "none"
        case Mapping():
            return ", ".join(f"{_words(name)} {_shown(each)}" for name, each in value.items()) or "none"
        case _:
            return str(value)


def _print_columns(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> None:
    """Prints rows as aligned columns, those of `right` flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    flush_right = set(right)
    for row in rows:
        cells = [
            cell.rjust(width) if place in flush_right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    sys.exit(main())
