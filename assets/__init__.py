"""One module per box of the flow: a thin asset and the checks beside it."""
