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
from fedjax_health.models.split import Split
from fedjax_health.models.wide_deep import wide_deep
from fedjax_health.models.wire import (
    ClipExample,
    DropActivations,
    Marvell,
    MaxNorm,
    Noise,
    Quantise,
    TopK,
    crossing,
    wire_bytes,
)

__all__ = [
    "ClipExample",
    "DropActivations",
    "Encoder",
    "GruDEncoder",
    "GruEncoder",
    "Marvell",
    "MaxNorm",
    "MlpEncoder",
    "Noise",
    "Quantise",
    "Split",
    "TcnEncoder",
    "TopK",
    "TransformerEncoder",
    "build_model",
    "crossing",
    "encoder_detector",
    "ft_transformer",
    "fusion_detector",
    "gru",
    "gru_detector",
    "grud_detector",
    "mlp",
    "tcn_detector",
    "wide_deep",
    "wire_bytes",
]
