"""Client transforms: what happens to one client's updates before they are sent."""

from fedjax_health.transforms.compose import chain, identity

__all__ = ["chain", "identity"]
