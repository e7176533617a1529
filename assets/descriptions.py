"""What every asset says of itself beside columns and numbers: whose it is, whom it is about, what to read.

What does not belong here: what one asset alone says.
"""

from collections.abc import Iterable
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

    def described(spec: dg.AssetSpec) -> dg.AssetSpec:
        audience = audiences[spec.key.path[0]] if len(spec.key.path) > 1 else None
        file = audience.file if audience else project.fields.file
        owner = (audience.owner if audience else None) or project.fields.owner
        references = [
            *spec.metadata[CODE_REFERENCES].code_references,
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

    referenced = dg.with_source_code_references(list(definitions))
    return [each.map_asset_specs(described) for each in referenced if isinstance(each, dg.AssetsDefinition)]


def _with_audience(description: str, audience: Audience | None) -> str:
    if audience is None or not audience.description:
        return description
    return f"{description}\n\n**{audience.name}**: {audience.description}"
