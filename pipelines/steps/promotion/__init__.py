"""Candidates become the champion: choice, report, card."""
