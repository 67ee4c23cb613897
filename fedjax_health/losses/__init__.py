"""Training losses."""

from fedjax_health.losses.combine import Term, combine
from fedjax_health.losses.supervised import (
    bce,
    focal,
    focal_bce,
    masked_bce,
    step_weight,
)

__all__ = ["Term", "bce", "combine", "focal", "focal_bce", "masked_bce", "step_weight"]
