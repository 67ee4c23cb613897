"""Cosines of rows, from their distances where these are the precise ones."""

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.gram import Geometry


def inner_products(geometry: Geometry) -> jax.Array:
    """Returns the inner products of all points about the origin, ``[m, m]``."""
    gram = geometry.gram
    points, origin = gram[:-1, :-1], gram[:-1, -1]
    return points - origin[:, None] - origin[None, :] + gram[-1, -1]


def cosine_distances(geometry: Geometry) -> jax.Array:
    """Returns 1 - cos of all points, ``[m, m]``; 1 where a point is zero or invalid.

    From ``norm(x - y)^2 = (norm(x) - norm(y))^2 + 2 norm(x) norm(y) (1 - cos)``, which
    keeps the small differences of nearly parallel rows.
    """
    norms = geometry.norms
    squared = geometry.squared_distances()
    both = norms[:, None] * norms[None, :]
    length = (norms[:, None] - norms[None, :]) ** 2
    known = (both > 0) & jnp.isfinite(squared)
    apart = (jnp.where(known, squared, 0.0) - length) / jnp.where(
        known, 2.0 * both, 1.0
    )
    return jnp.where(known, jnp.clip(apart, 0.0, 2.0), 1.0)
