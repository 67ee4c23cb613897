"""Clipping: a bound on one client's influence."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from fedjax_health.core import noise, trees
from fedjax_health.core.message import Message
from fedjax_health.core.types import (
    ClientContext,
    ClientTransform,
    Metrics,
    Params,
    Report,
    Shared,
    State,
    Updates,
)
from fedjax_health.transforms.compose import keep_shared, no_memory


def _clip(
    updates: Updates, memory: State, context: ClientContext
) -> tuple[Updates, State, Report]:
    clipped, norm = _scaled_down(updates, context.shared["clip_norm"])
    return clipped, memory, norm > context.shared["clip_norm"]


def _scaled_down(updates: Updates, bound: jax.Array) -> tuple[Updates, jax.Array]:
    """Returns updates of a norm of ``bound`` at most, and the norm they had."""
    norm = jnp.sqrt(trees.squared_norm(updates))
    # A norm of zero divides by the bound and stays zero.
    return trees.scale(updates, bound / jnp.maximum(norm, bound)), norm


def _check(message: Message) -> Message:
    return dataclasses.replace(message, bound="clip_norm")


def _measure(report: Report, shared: Shared, count: jax.Array) -> Metrics:
    del shared
    return {"clip_fraction": report / jnp.maximum(count, 1)}


def clip_l2(max_norm: float) -> ClientTransform:
    """Scales updates whose L2 norm over all leaves exceeds a bound down to it.

    McMahan et al., 2018, "Learning Differentially Private Recurrent Language Models"
    (arXiv:1710.06963), flat clipping. The bound is a leaf of the shared value and may
    vary without recompilation. Says ``clip_fraction``, the share of clients that were
    above it.

    Args:
      max_norm: the bound, above 0.

    Formal guarantees: the message's L2 norm is at most ``max_norm`` up to float32
    rounding; a non-finite update stays non-finite and is masked by the engine.

    Raises:
      ValueError: if the bound is not a finite positive number.
    """
    _positive("clip_l2", "max_norm", max_norm)
    return ClientTransform(
        no_memory,
        functools.partial(_init_server, float(max_norm)),
        _clip,
        keep_shared,
        _check,
        measure=_measure,
    )


def _positive(name: str, field: str, value: float):
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: {field} must be finite and above 0, not {value}")


def _init_server(max_norm: float, params: Params) -> Shared:
    del params
    return {"clip_norm": jnp.float32(max_norm)}


def _clip_leaves(
    updates: Updates, memory: State, context: ClientContext
) -> tuple[Updates, State, Report]:
    leaves, treedef = jax.tree.flatten(updates)
    bound = context.shared["clip_norm"] / math.sqrt(max(len(leaves), 1))
    parts = [_scaled_down(leaf, bound) for leaf in leaves]
    above = sum((norm > bound for _, norm in parts), jnp.float32(0))
    share = above / max(len(leaves), 1)
    return treedef.unflatten([clipped for clipped, _ in parts]), memory, share


def clip_per_leaf(max_norm: float) -> ClientTransform:
    """Scales each leaf down to its own bound, ``max_norm / sqrt(leaves)``.

    McMahan et al., 2018 (arXiv:1710.06963), per-layer clipping with equal parts: a
    large layer takes nothing from a small one. Says ``clip_fraction``, the share of
    leaves that were above their bound.

    Args:
      max_norm: the joint bound, above 0.

    Formal guarantees: the message's L2 norm over all leaves is at most ``max_norm`` up
    to float32 rounding.

    Raises:
      ValueError: if the bound is not a finite positive number.
    """
    _positive("clip_per_leaf", "max_norm", max_norm)
    return ClientTransform(
        no_memory,
        functools.partial(_init_server, float(max_norm)),
        _clip_leaves,
        keep_shared,
        _check,
        measure=_measure,
    )


def _clip_adaptively(
    updates: Updates, memory: State, context: ClientContext
) -> tuple[Updates, State, Report]:
    bound = context.shared["clip_norm"]
    clipped, norm = _scaled_down(updates, bound)
    # +-1/2 for within or above, doubled: a sum of integers whatever the cohort.
    return clipped, memory, jnp.where(norm <= bound, 1, -1).astype(jnp.int32)


def _adapt(shared: Shared, report: Report, key: jax.Array) -> Shared:
    noised = report + noise.draw(key, 1, shared["noise"])[0]
    # Back to a share of the expected cohort; who took part is not known exactly.
    within = noised.astype(jnp.float32) / (2 * shared["cohort"]) + 0.5
    step = shared["learning_rate"] * (within - shared["quantile"])
    # Where more than the quantile lie within the bound, it is too large: it falls.
    return {**shared, "clip_norm": shared["clip_norm"] * jnp.exp(-step)}


def _measure_adaptive(report: Report, shared: Shared, count: jax.Array) -> Metrics:
    above = (count - report) / 2
    return {
        "clip_fraction": above / jnp.maximum(count, 1),
        "clip_norm": shared["clip_norm"],
    }


def adaptive_clip(
    initial: float = 0.1,
    quantile: float = 0.5,
    learning_rate: float = 0.2,
    bit_noise: float | None = None,
    *,
    cohort: int,
) -> ClientTransform:
    """Clips to a bound that follows a quantile of the clients' norms.

    Andrew et al., 2021, "Differentially Private Learning with Adaptive Clipping"
    (arXiv:1905.03871): each client says in one bit whether it lies within the bound C;
    the sum of the bits, in +-1/2 encoding, is noised, and ``C <- C exp(-eta (b -
    gamma))`` with b the share of those within. All numbers may vary without
    recompilation. Says ``clip_fraction`` and ``clip_norm``.

    Args:
      initial: the first bound C0.
      quantile: gamma, the share of clients that should lie within the bound.
      learning_rate: eta.
      bit_noise: standard deviation of the noise on the sum of the bits, sigma_b; 0.05
        times the cohort where it is None.
      cohort: expected clients of a round.

    Formal guarantees: the message's L2 norm is at most this round's bound; the sum of
    the bits moves by 1/2 with one client, and its noise is a discrete Gaussian, so that
    it costs what a Gaussian release with multiplier ``2 bit_noise`` does. A mechanism
    that reads ``Message.side_multiplier`` pays for both together.

    Raises:
      ValueError: for numbers out of range.
    """
    _positive("adaptive_clip", "initial", initial)
    _positive("adaptive_clip", "learning_rate", learning_rate)
    if not 0 < quantile < 1:
        raise ValueError(f"adaptive_clip: quantile must lie in (0, 1), not {quantile}")
    if cohort < 1:
        raise ValueError(f"adaptive_clip: cohort must be 1 or more, not {cohort}")
    sigma = 0.05 * cohort if bit_noise is None else bit_noise
    if not noise.MIN_SIGMA <= 2 * sigma <= noise.MAX_SIGMA:
        raise ValueError(
            f"adaptive_clip: bit_noise={sigma:g}: must lie in "
            f"[{noise.MIN_SIGMA / 2:g}, 2**25]"
            + (": give it" if bit_noise is None else "")
        )

    def init_server(params: Params) -> Shared:
        del params
        return {
            "clip_norm": jnp.float32(initial),
            "quantile": jnp.float32(quantile),
            "learning_rate": jnp.float32(learning_rate),
            "cohort": jnp.float32(cohort),
            "noise": jax.tree.map(jnp.asarray, noise.discrete_gaussian(2 * sigma)),
        }

    def check(message: Message) -> Message:
        return dataclasses.replace(
            message, bound="clip_norm", side_multiplier=2.0 * sigma
        )

    return ClientTransform(
        no_memory,
        init_server,
        _clip_adaptively,
        _adapt,
        check,
        measure=_measure_adaptive,
    )
