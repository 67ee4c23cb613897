"""Clipping as a mixing: to a norm that is given, or to one that the rows give."""

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.gram import Geometry
from fedjax_health.aggregators.mixing import MixingKernel, build_mixing, check_smaller
from fedjax_health.aggregators.rows import Rows, check_malicious, check_number
from fedjax_health.core.message import Message
from fedjax_health.core.types import Key, Mixing, State


def _scales(norms: jax.Array, bound: jax.Array, valid: jax.Array) -> jax.Array:
    # A norm of zero divides by the bound and stays zero.
    larger = jnp.maximum(jnp.maximum(norms, bound), jnp.finfo(jnp.float32).tiny)
    scales = jnp.where(norms > bound, bound / larger, 1.0)
    return jnp.where(valid, scales, 0.0)


def _clip(
    geometry: Geometry, rows: Rows, numbers: State, key: Key
) -> tuple[jax.Array, jax.Array]:
    del key
    norms = geometry.norms[: rows.valid.shape[0]]
    return _scales(norms, numbers["max_norm"], rows.valid), rows.valid


def _clip_largest(
    geometry: Geometry, rows: Rows, numbers: State, key: Key
) -> tuple[jax.Array, jax.Array]:
    del key
    n = rows.valid.shape[0]
    norms = geometry.norms[:n]
    count, f = rows.count, rows.malicious(numbers["num_malicious"])
    clipped = (2 * f * jnp.maximum(count - f, 0)) // jnp.maximum(count, 1)
    ordered = jnp.sort(jnp.where(rows.valid, norms, jnp.inf))
    bound = ordered[jnp.clip(count - clipped - 1, 0, n - 1)]
    return _scales(norms, bound, rows.valid), rows.valid


_CLIP = MixingKernel(_clip, "norms")
_ARC = MixingKernel(_clip_largest, "norms")


def _same_cohort(message: Message, cohort_size: int) -> tuple[Message, int]:
    return message, cohort_size


def clip_norms(max_norm: float = 1.0) -> Mixing:
    """Scales rows whose L2 norm exceeds a bound down to it.

    By itself it protects nobody; in front of a rule it bounds what passes it. Weights
    are not used. Traced: the bound.

    Args:
      max_norm: the bound, above 0.

    Raises:
      ValueError: if the bound is not a finite positive number.
    """
    bound = check_number("clip_norms", "max_norm", max_norm, above=0)
    return build_mixing(_CLIP, {"max_norm": bound}, _same_cohort)


def arc(num_malicious: int) -> Mixing:
    """Clips the k = floor(2 f (n - f) / n) largest rows to the next norm below theirs.

    Adaptive robust clipping: Allouah et al., 2025, "Adaptive Gradient Clipping for
    Robust Federated Learning" (arXiv:2405.14432). Weights are not used. Traced: f.

    Args:
      num_malicious: f, the malicious rows that are assumed.

    Raises:
      ValueError: if f is negative; a ``CompositionError`` of ``check`` if f >= n.
    """
    f = check_malicious("arc", num_malicious)

    def check(message: Message, cohort_size: int) -> tuple[Message, int]:
        check_smaller("arc", "num_malicious", f, cohort_size)
        return message, cohort_size

    return build_mixing(_ARC, {"num_malicious": f}, check)
