"""Probabilities become segments, and segments are delivered."""
