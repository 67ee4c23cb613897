"""Trained detectors: scoring, files, and new data."""

from fedjax_health.evaluate.apply import evaluate

__all__ = ["evaluate"]
