"""Detectors as pairs of pure functions."""

from fedjax_health.models.detectors import gru_detector, mlp
from fedjax_health.models.encoders import Encoder, GruEncoder, MlpEncoder
from fedjax_health.models.functional import build_model
from fedjax_health.models.fusion import fusion_detector
from fedjax_health.models.recurrent import gru
from fedjax_health.models.statistics import statistics_detector

__all__ = [
    "Encoder",
    "GruEncoder",
    "MlpEncoder",
    "build_model",
    "fusion_detector",
    "gru",
    "gru_detector",
    "mlp",
    "statistics_detector",
]
