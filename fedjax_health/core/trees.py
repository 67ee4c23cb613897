"""Operations on parameter pytrees."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any

# Leaves up to this size are joined before their norm is taken: one kernel, not many.
_SMALL = 1024

# Accelerators round the factors of a product by default; a bound or a mean must not.
_EXACT = jax.lax.Precision.HIGHEST


def add(a: Tree, b: Tree) -> Tree:
    """Returns ``a + b``, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def subtract(a: Tree, b: Tree) -> Tree:
    """Returns ``a - b``, leaf by leaf."""
    return jax.tree.map(jnp.subtract, a, b)


def scale(tree: Tree, factor: jax.Array | float) -> Tree:
    """Returns ``factor * tree`` in the dtype of each leaf."""
    return jax.tree.map(lambda x: x * jnp.asarray(factor, x.dtype), tree)


def select(condition: jax.Array, a: Tree, b: Tree) -> Tree:
    """Returns ``a`` where the scalar condition holds, else ``b``."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def zeros_like(tree: Tree) -> Tree:
    """Returns zeros of the same structure."""
    return jax.tree.map(jnp.zeros_like, tree)


def squared_norm(tree: Tree) -> jax.Array:
    """Returns the squared L2 norm over all leaves, float32."""
    # As inner products: XLA's CPU reductions take several times as long.
    flat = [x.astype(jnp.float32).reshape(-1) for x in jax.tree.leaves(tree)]
    small = [x for x in flat if x.size <= _SMALL]
    if len(small) > 1:
        flat = [jnp.concatenate(small), *(x for x in flat if x.size > _SMALL)]
    products = (jnp.dot(x, x, precision=_EXACT) for x in flat)
    return sum(products, jnp.float32(0))


def elementwise_squared_norm(tree: Tree) -> jax.Array:
    """Returns the squared L2 norm over all leaves, float32, as sums of squares.

    For trees that are never held: XLA fuses what makes them into the sums, while an
    inner product asks for its factors.
    """
    leaves = jax.tree.leaves(tree)
    return sum(
        (jnp.sum(jnp.square(x.astype(jnp.float32))) for x in leaves), jnp.float32(0)
    )


def all_finite(tree: Tree) -> jax.Array:
    """Returns whether the squared norm of all floating leaves is finite, bool ``[]``.

    One pass; a norm beyond float32 counts as non-finite too.
    """
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.isfinite(squared_norm(floats))


def weighted_sum(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns ``sum_i weights[i] * rows[i]`` of one leaf, in its dtype."""
    return jnp.tensordot(weights.astype(rows.dtype), rows, 1, precision=_EXACT)


def num_params(tree: Tree) -> int:
    """Returns how many numbers a tree of arrays (or of their shapes) holds."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def num_bytes(tree: Tree) -> int:
    """Returns the bytes of a tree of arrays or of their shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def path_names(tree: Tree) -> list[str]:
    """Returns the leaves' paths, such as ``"head/kernel"``, in leaf order."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def split_by_path(tree: Tree, chosen: Callable[[str], bool]) -> tuple[Tree, Tree]:
    """Splits a tree into the leaves that are not chosen and those that are.

    Args:
      tree: any pytree.
      chosen: path such as ``"head/kernel"`` -> whether the leaf is chosen.

    Returns:
      ``(rest, chosen)``, both of the structure of ``tree`` with None where a leaf
      belongs to the other, so that every leaf-wise operation passes over the holes.
    """
    treedef = jax.tree.structure(tree)
    flags = [chosen(name) for name in path_names(tree)]
    leaves = jax.tree.leaves(tree)
    rest = [None if flag else leaf for leaf, flag in zip(leaves, flags, strict=True)]
    taken = [leaf if flag else None for leaf, flag in zip(leaves, flags, strict=True)]
    return treedef.unflatten(rest), treedef.unflatten(taken)


def join(a: Tree, b: Tree) -> Tree:
    """Undoes ``split_by_path``."""
    return jax.tree.map(
        lambda x, y: y if x is None else x, a, b, is_leaf=lambda x: x is None
    )


def take_row(tree: Tree, row: jax.Array) -> Tree:
    """Returns row ``row`` of every leaf; out of range is clipped."""
    return jax.tree.map(lambda x: jnp.take(x, row, axis=0, mode="clip"), tree)


def ordered_sum(terms: Sequence[Tree]) -> Tree:
    """Adds trees one after the other, so that the order of addition is stated."""
    total = terms[0]
    for term in terms[1:]:
        total = add(total, term)
    return total
