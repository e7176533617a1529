"""Accepted events become tokens, and tokens become ids."""
