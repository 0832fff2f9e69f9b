"""Slow, obvious versions of fast things, to test against."""
