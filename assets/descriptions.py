"""Words that every asset says of itself beside columns and numbers: owner, audience, pages to read.

What does not belong here: what one asset alone says.
"""

import inspect
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg

from pipelines.steps.config.audience import Audience
from pipelines.steps.config.project import Project

HOLDS_IDS = {"personal_data": "device_ids"}
HOLDS_NO_IDS = {"personal_data": "none"}
CODE_REFERENCES, DOCS = "dagster/code_references", "docs"
REPOSITORY = Path(__file__).parent.parent


def page(path: str) -> dict[str, Any]:
    """The page of the documentation that an asset's metadata names, relative to the repository."""
    return {DOCS: dg.MetadataValue.path(path)}


def describe_assets(
    definitions: Iterable[dg.AssetsDefinition], project: Project
) -> list[dg.AssetsDefinition]:
    """Adds owners, the audience's own words, and where to look: code, the user's file, documentation."""
    audiences = {audience.name: audience for audience in project.audiences}

    def described(spec: dg.AssetSpec, code: dg.LocalFileCodeReference) -> dg.AssetSpec:
        audience = audiences.get(spec.key.path[0]) if len(spec.key.path) > 1 else None
        file = audience.file if audience else project.fields.file
        owner = (audience.owner if audience else None) or project.fields.owner
        references: list[dg.LocalFileCodeReference | dg.UrlCodeReference] = [
            code,
            dg.LocalFileCodeReference(file_path=str(file.absolute()), label=file.name),
            dg.LocalFileCodeReference(
                file_path=str(REPOSITORY / spec.metadata[DOCS].path), label=spec.metadata[DOCS].path
            ),
        ]
        return spec.replace_attributes(
            owners=[owner] if owner else [],
            description=_with_audience(spec.description or "", audience),
            metadata={
                **spec.metadata,
                CODE_REFERENCES: dg.CodeReferencesMetadataValue(code_references=references),
            },
        )

    return [each.map_asset_specs(partial(described, code=_code_of(each))) for each in definitions]


def _code_of(definition: dg.AssetsDefinition) -> dg.LocalFileCodeReference:
    """The file and line of an asset's function, whatever decorates it.

    `dg.with_source_code_references` would name the file of the decorator. `decorated_fn` is no public API of
    Dagster 1.13; tests/test_asset_descriptions.py notices.
    """
    function = inspect.unwrap(definition.op.compute_fn.decorated_fn)  # type: ignore[union-attr]
    return dg.LocalFileCodeReference(
        file_path=str(Path(inspect.getfile(function)).absolute()),
        line_number=inspect.getsourcelines(function)[1],
    )


def _with_audience(description: str, audience: Audience | None) -> str:
    if audience is None or not audience.description:
        return description
    return f"{description}\n\n**{audience.name}**: {audience.description}"
