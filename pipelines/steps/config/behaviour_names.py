"""Names of the fields that tell of behaviour, for what scores, too: it reads no configuration."""

BEHAVIOUR = "behaviour"
"""The field that holds what is told of all of a device's events."""
DISTINCT, AMOUNTS, PAST = "_distinct", "_amounts", "_past"
"""End the names of the fields that tell of one field, measure or signal, after its name."""


def is_behaviour(field: str) -> bool:
    """Whether a field's tokens are codes of behaviour; nothing else has such a name."""
    return field == BEHAVIOUR or field.endswith((DISTINCT, AMOUNTS, PAST))
