"""How the clients of a cohort are mapped onto devices.

One function trains one client. With chunk size 1 it is scanned over the clients, each
to its own number of steps (CPU); with chunk size K it is vmapped over chunks of
clients of like length, each chunk to its longest (GPU, TPU). Chunks are dealt into
blocks and blocks to devices; sums are formed inside each block and then added in block
order, so that the result has the same bits on every number of devices that divides
the number of blocks.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

AXIS = "clients"
BLOCKS = 4
# Share of an accelerator's memory that a vmapped chunk may take.
CHUNK_MEMORY_SHARE = 0.25

ParallelismName = Literal["auto", "scan", "vmap"]


class Mapping(NamedTuple):
    """A resolved mapping; hashable, part of a program's structure.

    Attributes:
      chunk: clients per vmapped chunk; 1 is a scan.
      blocks: partial sums per aggregate.
      per_block: chunks in each block.
      mesh: the mesh with axis ``"clients"``, or None for the default device alone.
      in_turn: whether each client starts where the one before it ended, in a drawn
        order.
    """

    chunk: int
    blocks: int
    per_block: int
    mesh: jax.sharding.Mesh | None
    in_turn: bool = False

    @property
    def num_devices(self) -> int:
        """Devices that share the work."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def slots(self) -> int:
        """Places for clients, empty ones included."""
        return self.blocks * self.per_block * self.chunk

    def describe(self) -> str:
        """Returns the mapping in words."""
        how = (
            "scan over clients, each to its own step count"
            if self.chunk == 1
            else f"vmap over chunks of {self.chunk} clients sorted by steps"
        )
        if self.in_turn:
            return "one client after another, in a drawn order; 1 device"
        devices = "1 device" if self.num_devices == 1 else f"{self.num_devices} devices"
        return f"{how}; {self.blocks} blocks on {devices}"


def one_after_another(cohort_size: int) -> Mapping:
    """Returns the mapping of clients that pass a part of the model on."""
    return Mapping(chunk=1, blocks=1, per_block=cohort_size, mesh=None, in_turn=True)


def resolve_mapping(
    parallelism: ParallelismName | int,
    *,
    cohort_size: int,
    client_bytes: int,
    mesh: jax.sharding.Mesh | None,
) -> Mapping:
    """Picks chunk size, blocks and mesh.

    Args:
      parallelism: "auto" (scan on CPU, vmap elsewhere), "scan", "vmap" (chunk from the
        memory budget), or a chunk size.
      cohort_size: slots of a cohort.
      client_bytes: memory that training one client takes, for the budget.
      mesh: one-dimensional with axis "clients", or None for all devices of this
        process.

    Raises:
      ValueError: for an unknown parallelism or a mesh of another shape.
    """
    if mesh is None:
        devices = jax.local_devices()
        if len(devices) > 1:
            mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    elif mesh.axis_names != (AXIS,):
        raise ValueError(
            f"the mesh must have the one axis {AXIS!r}, not {mesh.axis_names}: "
            f"jax.make_mesh((n,), ({AXIS!r},))"
        )
    num_devices = 1 if mesh is None else mesh.size
    device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
    if isinstance(parallelism, bool) or not (
        parallelism in ("auto", "scan", "vmap") or isinstance(parallelism, int)
    ):
        raise ValueError(
            f"parallelism={parallelism!r}: one of auto, scan, vmap or a chunk size"
        )
    if parallelism == "scan" or (parallelism == "auto" and device.platform == "cpu"):
        chunk = 1
    elif isinstance(parallelism, int):
        if parallelism < 1:
            raise ValueError(f"a chunk holds 1 client or more, not {parallelism}")
        chunk = min(parallelism, cohort_size)
    else:
        share = math.ceil(cohort_size / num_devices)
        chunk = min(share, _chunk_budget(device, client_bytes))
    chunks = math.ceil(cohort_size / chunk)
    blocks = min(BLOCKS, 1 << (chunks - 1).bit_length())
    blocks = math.lcm(blocks, num_devices)
    return Mapping(chunk, blocks, math.ceil(chunks / blocks), mesh)


def _chunk_budget(device, client_bytes: int) -> int:
    stats = device.memory_stats() if device.platform != "cpu" else None
    limit = (stats or {}).get("bytes_limit", 4 << 30)
    return max(1, int(limit * CHUNK_MEMORY_SHARE / max(client_bytes, 1)))


def arrange(num_steps: jax.Array, mapping: Mapping) -> tuple[jax.Array, jax.Array]:
    """Deals a cohort's slots to blocks so that each gets about the same work.

    Slots are sorted by falling step count, cut into chunks, and the chunks dealt to the
    blocks back and forth; block b belongs to device ``b % devices``.

    Args:
      num_steps: int32 ``[cohort]``.
      mapping: the mapping.

    Returns:
      ``(layout, place)``: ``layout`` int32 ``[devices, blocks / devices, per_block,
      chunk]`` holds slot numbers (``cohort`` marks an empty place); ``place`` int32
      ``[cohort]`` says where each slot went in the flattened layout.
    """
    cohort = num_steps.shape[0]
    order = jnp.argsort(-num_steps, stable=True).astype(jnp.int32)
    order = jnp.pad(order, (0, mapping.slots - cohort), constant_values=cohort)
    rows = order.reshape(mapping.per_block, mapping.blocks, mapping.chunk)
    odd = (jnp.arange(mapping.per_block) % 2 == 1)[:, None, None]
    rows = jnp.where(odd, rows[:, ::-1], rows)
    local = mapping.blocks // mapping.num_devices
    layout = rows.reshape(
        mapping.per_block, local, mapping.num_devices, mapping.chunk
    ).transpose(2, 1, 0, 3)
    flat = layout.reshape(-1)
    place = (
        jnp.zeros(cohort + 1, jnp.int32)
        .at[flat]
        .set(jnp.arange(mapping.slots, dtype=jnp.int32))
    )
    return layout, place[:cohort]
