"""What receivers of a delivery see, and whether it belongs to what the lake says that it was made from."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos_chain_world import (
    AUDIENCE,
    DAY,
    NEW,
    OLD,
    TABLES,
    Broken,
    Delivered,
    Places,
    World,
    read_delivered,
    read_pointers,
    segment_rows,
)
from pipelines.steps.errors import AudienceFactoryError
from pipelines.steps.targeting.deliveries import OUR_FILE
from resources.snapshots import Partition, day_of

READER_SECONDS = 0.1
OTHER = "of another model"
"""The state of a delivery that another champion scored: what it must be is not known beforehand."""


@dataclass(frozen=True)
class Found:
    """What the places hold after a run.

    Attributes:
        states: Segment and format → OLD, NEW, OTHER, or what is wrong.
        violations: What must not be.
    """

    states: Mapping[str, str]
    violations: tuple[str, ...]


def look(world: World, places: Places, *, lake_is_damaged: bool = False) -> Found:
    """Reads every place, and holds it against the lake.

    Args:
        world: What is expected.
        places: Of the copy that was disturbed.
        lake_is_damaged: Its rows cannot be compared.
    """
    states: dict[str, str] = {}
    violations: list[str] = []
    for name, place in places.delivered().items():
        try:
            delivered = read_delivered(place)
        except Broken as broken:
            states[name] = "not whole"
            violations.append(f"{name} is not whole: {broken}")
            continue
        states[name] = state_of(world, name, delivered)
        if states[name] not in (OLD, NEW, OTHER):
            violations.append(f"{name} holds neither the old rows nor the new: {states[name]}")
        violations += [f"{name}: {text}" for text in _strangers(places, delivered, lake_is_damaged)]
    try:
        read_pointers(places)
    except Broken as broken:
        violations.append(str(broken))
    return Found(states, tuple(violations))


def state_of(world: World, name: str, delivered: Delivered) -> str:
    """OLD, NEW, OTHER, or what the rows are instead."""
    state = world.judge(name.partition(".")[0], delivered.rows)
    if delivered.manifest.model_version == world.champion:
        return state
    return f"the {state} rows, which the manifest says another model scored" if state in (OLD, NEW) else OTHER


def leftovers(places: Places) -> Iterator[str]:
    """What a run that ended well leaves nothing of: staging folders, files that no manifest names."""
    for place in places.delivered().values():
        yield from (f"{left} was left behind" for left in place.parent.glob(".staging-*"))
        named = read_delivered(place).manifest.file
        files = [file.name for file in place.iterdir() if OUR_FILE.fullmatch(file.name)]
        yield from (f"{place / file} is named by no manifest" for file in files if file != named)


def _strangers(places: Places, delivered: Delivered, lake_is_damaged: bool) -> Iterator[str]:
    """Versions that the manifest names and that do not belong together."""
    manifest, key = delivered.manifest, f"{AUDIENCE}/{DAY}"
    made_from = {f"segments/{key}": manifest.segments_version}
    delivery = Partition(f"delivery/{DAY}", "", "", 0, "", made_from=made_from)
    try:
        chain = {table: p for table, p in places.lake.made_from(delivery) if day_of(p) == str(DAY)}
    except AudienceFactoryError as error:
        yield f"the chain of its versions is broken: {error}"
        return
    if missing := set(TABLES) - set(chain):
        yield f"its chain of versions lacks {', '.join(sorted(missing))}"
        return
    segments, predictions = chain["segments"], chain["predictions"]
    if predictions.version != manifest.predictions_version:
        yield f"predictions_version is not {predictions.version}, which its segments were cut from"
    bundles = {segments.properties["bundle"], predictions.properties["bundle"], manifest.model_version}
    if len(bundles) != 1:
        yield f"manifest, segments and predictions name the models {', '.join(sorted(bundles))}"
    if not lake_is_damaged:
        rows = segment_rows(places.lake.at("segments", [segments]).files(), manifest.segment)
        if rows != delivered.rows:
            yield "its rows are not those of its segments_version"


class Reader:
    """Reads what is delivered again and again while runs go on, as receivers do, and the lake's pointers."""

    def __init__(self, world: World, places: Places, damaged: set[str]) -> None:
        """Begins nothing yet.

        Args:
            world: What is expected.
            places: What to read.
            damaged: Deliveries that are excused, as long as they are in it.
        """
        self._world = world
        self._places = places
        self._damaged = damaged
        self._seen: dict[str, set[str]] = {name: set() for name in places.delivered()}
        self._troubles: dict[str, None] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="reader")
        self.reads = 0

    def __enter__(self) -> "Reader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def violations(self) -> Iterator[str]:
        """What it saw that must not be."""
        yield from (f"a reader saw: {trouble}" for trouble in self._troubles)
        for name, states in self._seen.items():
            if wrong := states - {OLD, NEW, OTHER}:
                yield f"a reader of {name} saw {'; '.join(sorted(wrong))}"

    def _poll(self) -> None:
        while not self._ended.wait(READER_SECONDS):
            for name, place in self._places.delivered().items():
                self._read(name, place)
            try:
                read_pointers(self._places)
            except Broken as broken:
                self._troubles[str(broken)] = None
            self.reads += 1

    def _read(self, name: str, place: Path) -> None:
        excused = name in self._damaged  # asked before, and again after: either may change meanwhile
        try:
            self._seen[name].add(state_of(self._world, name, read_delivered(place)))
        except Broken as broken:
            if not excused and name not in self._damaged:
                self._troubles[f"{name} is not whole: {broken}"] = None
