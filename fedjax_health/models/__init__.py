"""Detectors as pairs of pure functions."""

from fedjax_health.models.detectors import (
    encoder_detector,
    ft_transformer,
    gru_detector,
    grud_detector,
    mlp,
    tcn_detector,
)
from fedjax_health.models.encoders import (
    Encoder,
    GruDEncoder,
    GruEncoder,
    MlpEncoder,
    TcnEncoder,
    TransformerEncoder,
)
from fedjax_health.models.functional import build_model
from fedjax_health.models.fusion import fusion_detector
from fedjax_health.models.recurrent import gru
from fedjax_health.models.wide_deep import wide_deep

__all__ = [
    "Encoder",
    "GruDEncoder",
    "GruEncoder",
    "MlpEncoder",
    "TcnEncoder",
    "TransformerEncoder",
    "build_model",
    "encoder_detector",
    "ft_transformer",
    "fusion_detector",
    "gru",
    "gru_detector",
    "grud_detector",
    "mlp",
    "tcn_detector",
    "wide_deep",
]
