"""Names of columns beside those of fields.yaml, for what scores, too: it reads no configuration."""

BEHAVIOUR = "behaviour"
"""The field that holds what is told of all of a device's events."""
DISTINCT, AMOUNTS, PAST = "_distinct", "_amounts", "_past"
"""End the names of the fields that tell of one field, measure or signal, after its name."""
WEIGHTS = "_weights"
"""Ends the name of the column of what a field's tokens weigh, after the field's."""


def weights_column(field: str) -> str:
    """The column that holds a byte for each token of a field, in their order (`token_weights`)."""
    return field + WEIGHTS


def is_behaviour(field: str) -> bool:
    """Whether a field's tokens are codes of behaviour; nothing else has such a name."""
    return field == BEHAVIOUR or field.endswith((DISTINCT, AMOUNTS, PAST))
