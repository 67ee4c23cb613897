"""Clipping: a bound on one client's influence."""

import dataclasses
import functools

import jax.numpy as jnp

from fedjax_health.core import trees
from fedjax_health.core.message import Message
from fedjax_health.core.types import (
    ClientContext,
    ClientTransform,
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
    bound = context.shared["clip_norm"]
    norm = jnp.sqrt(trees.squared_norm(updates))
    # A norm of zero divides by the bound and stays zero.
    factor = bound / jnp.maximum(norm, bound)
    return trees.scale(updates, factor), memory, ()


def _check(message: Message) -> Message:
    return dataclasses.replace(message, bound="clip_norm")


def clip_l2(max_norm: float) -> ClientTransform:
    """Scales updates whose L2 norm over all leaves exceeds a bound down to it.

    McMahan et al., 2018, "Learning Differentially Private Recurrent Language Models"
    (arXiv:1710.06963), flat clipping. The bound is a leaf of the shared value and may
    vary without recompilation.

    Args:
      max_norm: the bound, above 0.

    Formal guarantees: the message's L2 norm is at most ``max_norm`` up to float32
    rounding; a non-finite update stays non-finite and is masked by the engine.

    Raises:
      ValueError: if the bound is not a finite positive number.
    """
    if not 0 < max_norm < float("inf"):
        raise ValueError(
            f"clip_l2: max_norm must be finite and above 0, not {max_norm}"
        )
    return ClientTransform(
        no_memory,
        functools.partial(_init_server, float(max_norm)),
        _clip,
        keep_shared,
        _check,
    )


def _init_server(max_norm: float, params: Params) -> Shared:
    del params
    return {"clip_norm": jnp.float32(max_norm)}
