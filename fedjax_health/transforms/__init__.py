"""Client transforms: what happens to one client's updates before they are sent."""

from fedjax_health.transforms.clip import clip_l2
from fedjax_health.transforms.compose import chain, identity

__all__ = ["chain", "clip_l2", "identity"]
