"""Detectors as pairs of pure functions."""

from fedjax_health.models.baselines import mlp
from fedjax_health.models.functional import build_model
from fedjax_health.models.recurrent import gru
from fedjax_health.models.streams import gru_detector

__all__ = ["build_model", "gru", "gru_detector", "mlp"]
