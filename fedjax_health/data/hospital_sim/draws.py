"""Random numbers as one block of uniforms, and quantiles that turn them into laws.

XLA takes a large part of a second to compile each call of the threefry generator, so
each unit and each hospital draws all its uniforms in one call and hands out columns.
The quantiles are smooth and need no rejection loop, which keeps scans fast.
"""

import math

import jax
import jax.numpy as jnp

from fedjax_health.core.rng import Key


def uniforms(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Returns float32 uniforms inside (0, 1), neither end included."""
    return jax.random.uniform(key, shape, jnp.float32) + 2.0**-24


def normal(uniform: jax.Array) -> jax.Array:
    """Returns the standard normal quantile."""
    return math.sqrt(2.0) * jax.lax.erf_inv(2.0 * uniform - 1.0)


def gamma(standard_normal: jax.Array, shape: float) -> jax.Array:
    """Returns the Gamma(shape, 1) quantile of a normal (Wilson and Hilferty 1931).

    The cube-root approximation; good to about a per cent for shapes above 1.
    """
    rest = 1.0 / (9.0 * shape)
    root = 1.0 - rest + standard_normal * math.sqrt(rest)
    return shape * jnp.maximum(root, 0.02) ** 3


def poisson(standard_normal: jax.Array, rate: jax.Array) -> jax.Array:
    """Returns the Poisson quantile of a normal by the cube-root approximation.

    Mean and variance are within a few per cent from a rate of about 4 upwards.
    """
    rate = jnp.maximum(rate, 0.05)
    root = 1.0 - 1.0 / (9.0 * rate) + standard_normal / (3.0 * jnp.sqrt(rate))
    return jnp.floor(rate * jnp.maximum(root, 0.0) ** 3 + 0.5)


def dirichlet(uniform: jax.Array, alpha: float) -> jax.Array:
    """Returns a draw from the symmetric Dirichlet law.

    A Gamma(alpha) variable is a Gamma(alpha + 1) variable times U^(1 / alpha).

    Args:
      uniform: ``[2, categories]``.
      alpha: the concentration.
    """
    log_weight = jnp.log(gamma(normal(uniform[0]), alpha + 1.0))
    return jax.nn.softmax(log_weight + jnp.log(uniform[1]) / alpha)


def pick(uniform: jax.Array, shares: jax.Array) -> jax.Array:
    """Returns the category into which a uniform falls.

    Args:
      uniform: any shape.
      shares: ``[categories]``, which sum to 1.
    """
    size = len(shares)
    edges = (jnp.tri(size) @ shares)[:-1]
    return jnp.sum(uniform[..., None] > edges, axis=-1)
