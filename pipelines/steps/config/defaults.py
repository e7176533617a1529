"""Defaults that a user's settings share with the models', each written once. Importing it loads nothing."""

MAX_EPOCHS = 40
"""Passes of the network over the training rows at most, as the published system has it."""
PATIENCE = 15
"""Passes without a better validation metric after which it stops."""
XGBOOST_TRIALS = 6
"""Settings of the boosted trees that are tried."""
