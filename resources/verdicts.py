"""What checks said of the versions that something was made from: Dagster's history, asked by version.

Dagster blocks within one run alone. So whoever delivers asks for itself which versions its rows come from, as
recorded when they were made, and what the blocking checks said of exactly these.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import dagster as dg
from dagster._core.storage.event_log.base import PartitionKeyFilter  # type: ignore[attr-defined]

from pipelines.steps.errors import DataError
from resources.expectations import VERSION
from resources.lake import Lake
from resources.snapshots import Partition, day_of

PASSED, FAILED, NEVER = "passed", "failed", "never evaluated"
PAGE = 50
"""Evaluations of a day asked for at once; mostly the newest one is the one."""
FEW = 10
"""Days that are better asked for one by one than sought among all."""
PAGES = 3
"""Readings of twice as many evaluations as are sought; days further back are asked for one by one."""


@dataclass
class Verdicts:
    """The history of one instance, in which a verdict is looked up once.

    `get_asset_check_execution_history` is no public API of Dagster 1.13; tests/test_verdicts.py notices.
    """

    instance: dg.DagsterInstance
    _known: dict[tuple[dg.AssetCheckKey, str | None, str], str] = field(default_factory=dict)

    def of(self, asset: dg.AssetKey, check: str, version: str, day: str | None = None) -> str:
        """What the check said last of a version: PASSED, FAILED or NEVER.

        Args:
            asset: The asset.
            check: The check's name.
            version: Of the partition or the model.
            day: The partition, ISO; None where the asset has none.
        """
        key = (dg.AssetCheckKey(asset, check), day, version)
        if key not in self._known:
            self._known[key] = self._look_up(*key)
        return self._known[key]

    def look_up(self, asset: dg.AssetKey, check: str, versions: Collection[tuple[str | None, str]]) -> None:
        """Finds what a check said of many days at once, so that `of` has no need to ask for each.

        Args:
            asset: The asset.
            check: The check's name.
            versions: Days, and the version of each.
        """
        key = dg.AssetCheckKey(asset, check)
        waiting = {(day, version) for day, version in versions if (key, day, version) not in self._known}
        if len(waiting) <= FEW:
            return
        pages = self._pages(key, 2 * len(waiting) + PAGE)
        for _ in range(PAGES):
            page = next(pages, None)
            if page is None:
                self._known |= {(key, *version): NEVER for version in waiting}
                return
            for evaluation in page:
                found = (evaluation.partition, _version_of(evaluation))
                if found in waiting:
                    self._known[key, *found] = PASSED if evaluation.passed else FAILED
                    waiting.discard(found)
            if not waiting:
                return

    def _look_up(self, check: dg.AssetCheckKey, day: str | None, version: str) -> str:
        for page in self._pages(check, PAGE, PartitionKeyFilter(key=day)):
            for evaluation in page:
                if _version_of(evaluation) == version:
                    return PASSED if evaluation.passed else FAILED
        return NEVER

    def _pages(
        self, check: dg.AssetCheckKey, size: int, only: PartitionKeyFilter | None = None
    ) -> Iterator[list[dg.AssetCheckEvaluation]]:
        """A check's evaluations, newest first, in pages that are read when they are due."""
        cursor: int | None = None
        while True:
            page = self.instance.event_log_storage.get_asset_check_execution_history(
                check, limit=size, cursor=cursor, partition_filter=only
            )
            told = [execution.event.asset_check_evaluation for execution in page if execution.event]
            yield [evaluation for evaluation in told if evaluation is not None]
            if len(page) < size:
                return
            cursor = page[-1].id


def _version_of(evaluation: dg.AssetCheckEvaluation) -> str | None:
    value = evaluation.metadata.get(VERSION)
    return value.text if isinstance(value, dg.TextMetadataValue) else None


@dataclass(frozen=True)
class Link:
    """A table of a chain: its asset, and the checks that block what is made from it.

    Attributes:
        asset: The asset; of a table of many, as of signals, what their keys begin with.
        blocking_checks: Their names.
        parts: Which of the many count, by the first part of a partition's key; None: the table has one asset.
    """

    asset: dg.AssetKey
    blocking_checks: Sequence[str]
    parts: Collection[str] | None = None

    def asset_of(self, partition: Partition) -> dg.AssetKey | None:
        """The asset of a partition; None where it does not count."""
        if self.parts is None:
            return self.asset
        part = partition.key.partition("/")[0]
        return dg.AssetKey([*self.asset.path, part]) if part in self.parts else None


def trace(
    lake: Lake, table: str, partition: Partition, links: Mapping[str, Link]
) -> list[tuple[str, Partition]]:
    """A day's partition and all that it was made from, at the versions that were read.

    Raises:
        DataError: A table of the chain is not recorded for the day.
    """
    day = day_of(partition)
    chain = [(table, partition), *lake.made_from(partition)]
    needed = {name for name, link in links.items() if link.parts is None}
    missing = needed - {table for table, each in chain if day_of(each) == day}
    if missing:
        raise DataError(
            f"nothing is delivered for {day}: it is not recorded what {table} {partition.key} was made from",
            found=f"no version of {', '.join(sorted(missing))} of the day",
            expected=f"the versions of {', '.join(links)}",
            remedy="run daily_job for the day, which makes it anew",
        )
    return chain


def require_passed(
    verdicts: Verdicts,
    chain: Sequence[tuple[str, Partition]],
    links: Mapping[str, Link],
    others: Mapping[str, str],
) -> None:
    """Refuses a day unless every blocking check has passed on exactly what it was made from.

    Of the earlier days of the look-back window no check may have failed; those of the day must have passed.

    Args:
        verdicts: The history.
        chain: Table and partition, the day's own first.
        links: Table → its asset and checks.
        others: Check → what it said of what is in no table: the champion.

    Raises:
        DataError: A check failed, or was never evaluated.
    """
    day, found = day_of(chain[0][1]), dict(others)
    _look_up_all(verdicts, chain, links)
    for table, partition in chain:
        link, own_day = links[table], day_of(partition)
        asset = link.asset_of(partition)
        if asset is None:
            continue
        for name in link.blocking_checks:
            said = verdicts.of(asset, name, partition.version, own_day)
            check = f"{asset.to_user_string()}:{name}"
            if own_day == day:
                found[check] = said
            elif said == FAILED:
                found[f"{check} of {own_day}"] = said
    bad = {check: said for check, said in found.items() if said != PASSED}
    if bad:
        raise DataError(
            f"nothing is delivered for {day}: blocking checks upstream have not passed",
            found=bad,
            expected="every blocking check passed on exactly the versions that are to be delivered",
            remedy="see why they failed; then run daily_job for the day, which makes and checks all anew",
        )


def _look_up_all(
    verdicts: Verdicts, chain: Sequence[tuple[str, Partition]], links: Mapping[str, Link]
) -> None:
    """Asks each check for all days of the chain at once."""
    asked: dict[tuple[dg.AssetKey, str], set[tuple[str | None, str]]] = {}
    for table, partition in chain:
        if asset := links[table].asset_of(partition):
            for name in links[table].blocking_checks:
                asked.setdefault((asset, name), set()).add((day_of(partition), partition.version))
    for (asset, name), versions in asked.items():
        verdicts.look_up(asset, name, versions)
