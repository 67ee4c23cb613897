"""Client transforms: what happens to one client's updates before they are sent."""

from fedjax_health.transforms.clip import adaptive_clip, clip_l2, clip_per_leaf
from fedjax_health.transforms.compose import chain, identity

__all__ = ["adaptive_clip", "chain", "clip_l2", "clip_per_leaf", "identity"]
