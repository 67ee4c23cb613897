"""Training losses."""

from fedjax_health.losses.alignment import alignment
from fedjax_health.losses.combine import Term, combine
from fedjax_health.losses.comm import comm
from fedjax_health.losses.nopeek import nopeek
from fedjax_health.losses.supervised import (
    bce,
    focal,
    focal_bce,
    masked_bce,
    step_weight,
)
from fedjax_health.losses.temporal import (
    embedding_smoothness,
    logit_smoothness,
    window_contrast,
)

__all__ = [
    "Term",
    "alignment",
    "bce",
    "combine",
    "comm",
    "embedding_smoothness",
    "focal",
    "focal_bce",
    "logit_smoothness",
    "masked_bce",
    "nopeek",
    "step_weight",
    "window_contrast",
]
