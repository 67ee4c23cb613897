"""Detectors as pairs of pure functions."""
