"""Client transforms: what happens to one client's updates before they are sent."""

from fedjax_health.transforms.clip import adaptive_clip, clip_l2, clip_per_leaf
from fedjax_health.transforms.compose import chain, identity
from fedjax_health.transforms.feedback import ef21, error_feedback
from fedjax_health.transforms.momentum import local_momentum
from fedjax_health.transforms.quantise import qsgd, sign, terngrad
from fedjax_health.transforms.random_k import random_k
from fedjax_health.transforms.rotated import drive, eden
from fedjax_health.transforms.threshold import threshold
from fedjax_health.transforms.top_k import top_k

__all__ = [
    "adaptive_clip",
    "chain",
    "clip_l2",
    "clip_per_leaf",
    "drive",
    "eden",
    "ef21",
    "error_feedback",
    "identity",
    "local_momentum",
    "qsgd",
    "random_k",
    "sign",
    "terngrad",
    "threshold",
    "top_k",
]
