"""Thresholding: the coordinates that are large enough."""

import dataclasses
import functools

import jax.numpy as jnp

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
from fedjax_health.transforms.coding import Scheme
from fedjax_health.transforms.compose import keep_shared, no_memory
from fedjax_health.transforms.counting import byte_report, count_bytes, measure_bytes
from fedjax_health.transforms.flat import flatten, unflatten


def _threshold(
    updates: Updates, memory: State, context: ClientContext
) -> tuple[Updates, State, Report]:
    flat = flatten(updates)
    # Written so that a NaN, which is neither small nor large, is sent.
    sent = jnp.where(jnp.abs(flat) < context.shared["threshold"], 0, flat)
    report = byte_report(count_bytes(sent, Scheme(flat.size)))
    return unflatten(sent, updates), memory, report


def _init_server(value: float, params: Params) -> Shared:
    del params
    return {"threshold": jnp.float32(value)}


def _check(message: Message) -> Message:
    # How many are large depends on the data: at most, all of them are sent.
    overhead = message.overhead_bytes + 1
    return dataclasses.replace(
        message, density=1.0, bits=32, index_bits=0.0, overhead_bytes=overhead
    )


def threshold(value: float) -> ClientTransform:
    """Sends the coordinates of at least a given magnitude; zeros elsewhere.

    Strom, 2015, "Scalable distributed DNN training using commodity GPU cloud
    computing", without its quantisation; hard-threshold sparsification of Sahu et al.,
    2021 (arXiv:2108.00951). The value is traced. The static estimate of its bytes is
    that of a dense message; what a round really sent is in ``uplink_bytes``.

    Args:
      value: the least magnitude that is sent, above 0.

    Formal guarantees: the message's norm does not exceed the update's.

    Raises:
      ValueError: if the value is not a finite positive number.
    """
    if not 0 < value < float("inf"):
        raise ValueError(f"threshold: value must be finite and above 0, not {value}")
    return ClientTransform(
        no_memory,
        functools.partial(_init_server, float(value)),
        _threshold,
        keep_shared,
        _check,
        measure=measure_bytes,
    )
