"""Behaviour in fields.yaml: which groups of it are computed."""

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field

from pipelines.steps.config.problems import closest, problem
from pipelines.steps.config.values import Section

Group = Literal[
    "activity", "distinct", "amounts", "signals", "recency", "tenure", "gaps", "trend", "hours"
]  # fmt: skip
"""What can be turned off together; docs/features.md lists each group's behaviours."""
GROUPS: tuple[Group, ...] = get_args(Group)


def _group(name: object) -> object:
    if name in GROUPS:
        return name
    remedy = closest(name, GROUPS) if isinstance(name, str) else None
    raise problem(f"one of {', '.join(GROUPS)}", remedy or "name a group of docs/features.md")


class BehaviourSection(Section):
    """How often, how lately and how much: computed of every device, unless it is turned off here.

    Attributes:
        without: Groups that are not computed.
    """

    without: Annotated[tuple[Annotated[Group, BeforeValidator(_group)], ...], Field(strict=False)] = ()
