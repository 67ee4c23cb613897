"""Nearest-neighbour mixing."""

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.gram import Geometry
from fedjax_health.aggregators.mixing import MixingKernel, build_mixing, check_smaller
from fedjax_health.aggregators.rows import Rows, check_malicious, smallest
from fedjax_health.core.message import Message
from fedjax_health.core.types import Key, Mixing, State


def _build(
    geometry: Geometry, rows: Rows, numbers: State, key: Key
) -> tuple[jax.Array, jax.Array]:
    del key
    n = rows.valid.shape[0]
    keep = rows.count - rows.malicious(numbers["num_malicious"])
    near = smallest(geometry.squared_distances()[:n, :n], keep)
    near = jnp.where(rows.valid[:, None], near, 0.0)
    total = jnp.sum(near, axis=1, keepdims=True)
    return near / jnp.where(total > 0, total, 1.0), rows.valid


_KERNEL = MixingKernel(_build, "gram")


def nnm(num_malicious: int) -> Mixing:
    """Every row becomes the mean of its n - f nearest rows, itself included.

    Allouah et al., 2023, "Fixing by Mixing: A Recipe for Optimal Byzantine ML under
    Heterogeneity" (arXiv:2302.01772). Rows that tie for the last place share it. In
    front of a rule that is robust to f malicious rows it keeps that, and makes honest
    rows of unlike clients alike. Weights are not used. Traced: f.

    Args:
      num_malicious: f, the malicious rows that are assumed.

    Raises:
      ValueError: if f is negative; a ``CompositionError`` of ``check`` if f >= n.
    """
    f = check_malicious("nnm", num_malicious)

    def check(message: Message, cohort_size: int) -> tuple[Message, int]:
        check_smaller("nnm", "num_malicious", f, cohort_size)
        return message, cohort_size

    return build_mixing(_KERNEL, {"num_malicious": f}, check)
