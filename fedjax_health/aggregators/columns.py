"""Stacked messages as blocks of columns, without flattening the tree.

Every leaf of a stack ``[cohort, ...]`` is a matrix with a row for each client, and so
is the stack as a whole. What is done to its columns is done block by block: a block
stays in the cache, its kernels stay small, and a sum over blocks has the same bits
wherever the blocks are computed. Small leaves are joined, so that a model of many of
them is one program and not one for each.

Inside a ``shard_map`` over the engine's mesh axis the blocks of a large stack are
shared out among the devices and what they made is gathered in block order.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_health.core.types import Params, Updates

BLOCK = 8192
"""Columns of a block."""

# The engine's mesh axis; outside of a shard_map over it everything runs in place.
AXIS = "clients"

# Groups of blocks whose sums are added in order, whatever the number of devices.
_GROUPS = 8

# Columns up to which a leaf is joined with others.
_SMALL = 1 << 16

EXACT = jax.lax.Precision.HIGHEST
"""Accelerators round the factors of a product by default; a distance must not be."""


class Block(NamedTuple):
    """Some columns of one matrix of a stack.

    Attributes:
      rows: ``[cohort, width]``, the whole matrix.
      start: int32 ``[]``, the first column.
      size: how many columns; static.
      piece: the number of the matrix in its stack; static.
    """

    rows: jax.Array
    start: jax.Array | int
    size: int
    piece: int

    def matrix(self) -> jax.Array:
        """Returns the block, float32 ``[cohort, size]``."""
        taken = jax.lax.dynamic_slice_in_dim(self.rows, self.start, self.size, 1)
        return taken.astype(jnp.float32)

    def row(self, number: jax.Array | int) -> jax.Array:
        """Returns one client's part of the block, float32 ``[size]``."""
        # A slice of its own for each row is read in place; a row of a block that was
        # sliced before makes XLA copy the block first.
        part = jax.lax.dynamic_slice(
            self.rows, (jnp.int32(number), jnp.int32(self.start)), (1, self.size)
        )
        return part.reshape(self.size).astype(jnp.float32)

    def part(self, vectors: Sequence[jax.Array]) -> jax.Array:
        """Returns this block's part of one more message, float32 ``[size]``.

        Args:
          vectors: the message's pieces (see ``vectors_of``).
        """
        vector = vectors[self.piece]
        return jax.lax.dynamic_slice_in_dim(vector, self.start, self.size, 0)


class Stack(NamedTuple):
    """A stack as matrices.

    Attributes:
      pieces: ``[cohort, width]`` each, in the dtype of their leaves.
      build: pieces of one message, ``[width]`` each -> its tree, in the leaves' dtypes.
    """

    pieces: tuple[jax.Array, ...]
    build: Callable[[Sequence[jax.Array]], Updates]

    @property
    def cohort(self) -> int:
        """Rows of the stack."""
        return self.pieces[0].shape[0]


def _groups_of(sizes: tuple[tuple[int, str], ...]) -> list[list[int]]:
    """Returns which leaves make each piece: small ones of one dtype together."""
    small: dict[str, list[int]] = {}
    groups = []
    for i, (size, dtype) in enumerate(sizes):
        if size > _SMALL:
            groups.append([i])
        elif size:
            if dtype not in small:
                small[dtype] = []
                groups.append(small[dtype])
            small[dtype].append(i)
    return groups


def stack_of(stacked: Updates) -> Stack:
    """Returns a stack's matrices and the way back.

    Args:
      stacked: a tree whose leaves are ``[cohort, ...]``.

    Raises:
      ValueError: for a tree without numbers.
    """
    leaves, treedef = jax.tree.flatten(stacked)
    sizes = tuple((math.prod(x.shape[1:]), str(x.dtype)) for x in leaves)
    groups = _groups_of(sizes)
    if not groups:
        raise ValueError("the messages hold no numbers: there is nothing to aggregate")
    cohort = leaves[0].shape[0]
    flat = [x.reshape(cohort, -1) for x in leaves]
    pieces = tuple(
        flat[g[0]] if len(g) == 1 else jnp.concatenate([flat[i] for i in g], axis=1)
        for g in groups
    )

    def build(made: Sequence[jax.Array]) -> Updates:
        parts: list[jax.Array] = [jnp.zeros(x.shape[1:], x.dtype) for x in leaves]
        for group, piece in zip(groups, made, strict=True):
            at = 0
            for i in group:
                size = sizes[i][0]
                taken = piece if len(group) == 1 else piece[..., at : at + size]
                lead = piece.shape[:-1]
                shape = (*lead, *leaves[i].shape[1:])
                parts[i] = taken.reshape(shape).astype(leaves[i].dtype)
                at += size
        return treedef.unflatten(parts)

    return Stack(pieces, build)


def vectors_of(stacked: Updates, message: Updates) -> list[jax.Array]:
    """Returns one more message's pieces, float32 ``[width]`` each.

    Args:
      stacked: the stack that it goes with.
      message: a tree like one of its rows.
    """
    leaves = jax.tree.leaves(stacked)
    sizes = tuple((math.prod(x.shape[1:]), str(x.dtype)) for x in leaves)
    flat = [
        jnp.asarray(x, jnp.float32).reshape(-1)
        for x in jax.tree.leaves(message, is_leaf=lambda x: x is None)
        if x is not None
    ]
    return [
        flat[g[0]] if len(g) == 1 else jnp.concatenate([flat[i] for i in g])
        for g in _groups_of(sizes)
    ]


def num_devices() -> int:
    """Returns how many devices share the blocks."""
    try:
        return jax.lax.axis_size(AXIS)
    except NameError:
        return 1


def _shares(count: int) -> int:
    """Returns the devices among which that many blocks are shared, or 1."""
    devices = num_devices()
    return devices if devices > 1 and count >= _GROUPS else 1


def map_columns(
    stack: Stack, block: Callable[[Block], jax.Array], *, size: int = BLOCK
) -> list[jax.Array]:
    """Maps every column block to as many columns.

    Args:
      stack: the matrices.
      block: a block -> ``[..., size]``.
      size: columns of a block.

    Returns:
      One array ``[..., width]`` for each piece.
    """
    return [_map_piece(i, rows, block, size) for i, rows in enumerate(stack.pieces)]


def _map_piece(
    number: int, rows: jax.Array, block: Callable[[Block], jax.Array], size: int
) -> jax.Array:
    width = rows.shape[1]
    if width <= size:
        # What follows must not be fused with it: a network inside a reduction would be
        # evaluated anew for every term.
        return jax.lax.optimization_barrier(block(Block(rows, 0, width, number)))
    count = -(-width // size)
    shape = jax.eval_shape(lambda: block(Block(rows, 0, size, number)))
    empty = jnp.zeros((*shape.shape[:-1], width), shape.dtype)

    # The last block ends where the matrix does and repeats some columns.
    def start_of(i: jax.Array) -> jax.Array:
        return jnp.minimum(i * size, width - size)

    def make(i: jax.Array) -> jax.Array:
        return block(Block(rows, start_of(i), size, number))

    def fill(made: Callable[[jax.Array], jax.Array]) -> jax.Array:
        # Blocks are written where they belong: joining them later costs several times
        # as much as making them.
        def write(i: jax.Array, held: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(held, made(i), start_of(i), -1)

        return jax.lax.fori_loop(0, count, write, empty)

    devices = _shares(count)
    if devices == 1:
        return fill(make)
    per_device = -(-count // devices)
    index = jnp.arange(per_device, dtype=jnp.int32)
    index += jax.lax.axis_index(AXIS) * per_device
    gathered = jax.lax.all_gather(jax.lax.map(make, index), AXIS)
    gathered = gathered.reshape(-1, *gathered.shape[2:])
    return fill(lambda i: gathered[i])


def sum_columns(
    stack: Stack, block: Callable[[Block], jax.Array], *, size: int = BLOCK
) -> jax.Array:
    """Adds up an array that every column block makes, in block order.

    Args:
      stack: the matrices.
      block: a block -> an array, of one shape for all blocks.
      size: columns of a block.
    """
    parts = [_sum_piece(i, rows, block, size) for i, rows in enumerate(stack.pieces)]
    return functools.reduce(jnp.add, parts)


def _sum_piece(
    number: int, rows: jax.Array, block: Callable[[Block], jax.Array], size: int
) -> jax.Array:
    width = rows.shape[1]
    whole, left = divmod(width, size)
    rest = block(Block(rows, whole * size, left, number)) if left else None
    if not whole:
        assert rest is not None
        return rest
    shape = jax.eval_shape(lambda: block(Block(rows, 0, size, number)))
    zero = jnp.zeros(shape.shape, shape.dtype)
    groups = min(_GROUPS, whole)
    per_group = -(-whole // groups)

    def group(g: jax.Array) -> jax.Array:
        def add(i: jax.Array, held: jax.Array) -> jax.Array:
            return held + block(Block(rows, i * size, size, number))

        first = g * per_group
        last = jnp.minimum(first + per_group, whole)
        return jax.lax.fori_loop(first, last, add, zero)

    devices = _shares(whole)
    if groups % devices:
        devices = 1
    index = jnp.arange(groups // devices, dtype=jnp.int32)
    if devices > 1:
        index += jax.lax.axis_index(AXIS) * (groups // devices)
    sums = jax.lax.map(group, index)
    if devices > 1:
        sums = jax.lax.all_gather(sums, AXIS).reshape(-1, *zero.shape)
    total = sums[0]
    for g in range(1, groups):
        total = total + sums[g]
    return total if rest is None else total + rest


def row_norms(stack: Stack) -> jax.Array:
    """Returns the squared norm of every row, float32 ``[cohort]``."""

    def leaf(x: jax.Array) -> jax.Array:
        return jnp.einsum(
            "nd,nd->n", x, x, precision=EXACT, preferred_element_type=jnp.float32
        )

    return functools.reduce(jnp.add, [leaf(x) for x in stack.pieces])


# Parts of a block that are added to one another before anything is summed along it.
_LANES = 8


def squared_distances_to(stack: Stack, vectors: Sequence[jax.Array]) -> jax.Array:
    """Returns the squared distance of every row to one message, float32 ``[cohort]``.

    The differences are formed first; see ``gram`` for why.

    Args:
      stack: the matrices.
      vectors: the message's pieces.
    """

    def block(part: Block) -> jax.Array:
        width = part.size // _LANES
        if not width or part.size % _LANES:
            moved = part.matrix() - part.part(vectors)[None]
            return jnp.einsum("nd,nd->n", moved, moved, precision=EXACT)

        def squares(lane: int) -> jax.Array:
            own = part._replace(start=part.start + lane * width, size=width)
            moved = own.matrix() - own.part(vectors)[None]
            return moved * moved

        # XLA's CPU reductions along a row take several times as long as a product.
        added = functools.reduce(jnp.add, map(squares, range(_LANES)))
        added = jax.lax.optimization_barrier(added)
        return jnp.matmul(added, jnp.ones(width), precision=EXACT)

    return sum_columns(stack, block)


def weighted_rows(
    stack: Stack,
    weights: jax.Array,
    clean: jax.Array,
    extra: Sequence[tuple[jax.Array, Sequence[jax.Array]]] = (),
) -> list[jax.Array]:
    """Returns the pieces of ``sum_i weights[i] x_i``, float32.

    Rows of weight 0 reach nothing, whatever they hold.

    Args:
      stack: the matrices.
      weights: float32 ``[cohort]``.
      clean: bool ``[]``, whether every row is finite; then one product is enough.
      extra: further messages, each with its weight.
    """

    def plain() -> list[jax.Array]:
        if all(x.dtype == jnp.float32 for x in stack.pieces):
            return [jnp.dot(weights, x, precision=EXACT) for x in stack.pieces]
        return careful()

    def careful() -> list[jax.Array]:
        used = (weights != 0)[:, None]

        def block(part: Block) -> jax.Array:
            kept = jnp.where(used, part.matrix(), 0.0)
            return jnp.dot(weights, kept, precision=EXACT)

        return map_columns(stack, block)

    made = jax.lax.cond(clean, plain, careful)
    for weight, vectors in extra:
        made = [m + weight * v for m, v in zip(made, vectors, strict=True)]
    return made


def zeros(params: Params) -> Updates:
    """Returns zeros of a tree's shapes, float32."""
    return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.float32), params)
