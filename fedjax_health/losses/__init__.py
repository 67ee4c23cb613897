"""Training losses."""

from fedjax_health.losses.supervised import masked_bce, step_weight

__all__ = ["masked_bce", "step_weight"]
