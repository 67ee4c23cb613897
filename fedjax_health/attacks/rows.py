"""What attacks on updates share: whose rows they see, statistics of rows, forged rows.

Everything works over trees with a leading cohort axis, leaf by leaf. Rows are walked
one after the other rather than reduced along the cohort axis, which takes XLA's CPU
backend many times as long; and a row that must not be seen is left out by a ``where``,
so that even a NaN in it changes nothing.
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from fedjax_health.core import trees
from fedjax_health.core.types import AttackContext, Key, Params, State, Updates

# Whose honest messages an attacker sees before it forges its own: those of the honest
# clients (omniscient), or those that the malicious clients would have sent.
Knowledge = Literal["honest", "colluders"]

# Coordinates whose inner products are summed at a time: they stay in the cache.
_BLOCK = 8192

# Accelerators round the factors of a product by default; a distance must not be.
_EXACT = jax.lax.Precision.HIGHEST


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses what is none of the choices.

    Raises:
      ValueError: naming them.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def check_knowledge(attack: str, value: str) -> None:
    """Refuses an unknown kind of knowledge.

    Raises:
      ValueError: naming the kinds.
    """
    check_choice(f"{attack}: knowledge", value, get_args(Knowledge))


def check_number(
    name: str, value: float, *, low: float = -float("inf"), high: float = float("inf")
) -> None:
    """Refuses a number that is not finite or lies outside ``[low, high]``.

    Raises:
      ValueError: naming the range.
    """
    if not (low <= value <= high and abs(value) < float("inf")):
        raise ValueError(
            f"{name} must be a finite number in [{low:g}, {high:g}], not {value}"
        )


def no_state(params: Params) -> State:
    """Returns the state of an attack without one."""
    del params
    return ()


def delivered(malicious: jax.Array, context: AttackContext) -> jax.Array:
    """Returns the rows that hold an honest message, bool ``[cohort]``."""
    if context.mask is None:
        return jnp.ones_like(malicious, dtype=bool)
    return context.mask


def visible(
    knowledge: Knowledge, malicious: jax.Array, context: AttackContext
) -> jax.Array:
    """Returns the rows that an attacker sees, bool ``[cohort]``."""
    present = delivered(malicious, context)
    return present & (~malicious if knowledge == "honest" else malicious)


def num_present(malicious: jax.Array, context: AttackContext) -> jax.Array:
    """Returns how many messages the server will receive, int32 ``[]``."""
    return jnp.sum(delivered(malicious, context) | malicious)


def client_ids(malicious: jax.Array, context: AttackContext) -> jax.Array:
    """Returns the clients of the rows, int32 ``[cohort]``."""
    if context.client_ids is None:
        return jnp.arange(malicious.shape[0], dtype=jnp.int32)
    return context.client_ids


def client_keys(malicious: jax.Array, context: AttackContext) -> Key:
    """Returns each client's key, the same in every round where the engine gives it."""
    if context.client_keys is not None:
        return context.client_keys
    ids = client_ids(malicious, context)
    return jax.vmap(lambda i: jax.random.fold_in(context.key, i))(ids)


def put(stacked: Updates, malicious: jax.Array, message: Updates) -> Updates:
    """Puts one message into the rows of malicious clients."""

    def leaf(x: jax.Array, m: jax.Array) -> jax.Array:
        return jnp.where(_wide(malicious, x), m.astype(x.dtype), x)

    return jax.tree.map(leaf, stacked, message)


def change_rows(
    stacked: Updates,
    malicious: jax.Array,
    change: Callable[[Updates, jax.Array], Updates],
) -> Updates:
    """Replaces each malicious row by a function of it and of its number alone.

    Honest rows cost nothing: the function is called for malicious ones only.
    """

    def forge(row: Updates, number: jax.Array) -> Updates:
        changed = change(row, number)
        return jax.tree.map(lambda new, old: new.astype(old.dtype), changed, row)

    def one(args):
        row, number, attacks = args
        return jax.lax.cond(attacks, forge, lambda row, number: row, row, number)

    numbers = jnp.arange(malicious.shape[0], dtype=jnp.int32)
    return jax.lax.map(one, (stacked, numbers, malicious))


def mean_of(stacked: Updates, rows: jax.Array) -> Updates:
    """Returns the mean of the given rows, all weighing alike; zeros without any."""
    return weighted_sum(stacked, rows, rows / jnp.maximum(jnp.sum(rows), 1))


def weighted_sum(
    stacked: Updates, rows: jax.Array, factors: jax.Array, origin: Updates | None = None
) -> Updates:
    """Returns ``sum_i factors[i] (x_i - origin)`` over the given rows, float32.

    Args:
      stacked: leaves ``[cohort, ...]``.
      rows: bool ``[cohort]``.
      factors: float32 ``[cohort]``.
      origin: a tree without the cohort axis; None stands for zero.
    """

    def add(i: jax.Array, total: jax.Array, x: jax.Array, start) -> jax.Array:
        row = jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False)
        row = row.astype(jnp.float32)
        if start is not None:
            row = row - start
        return total + jnp.where(rows[i], factors[i] * row, 0.0)

    return _over_rows(stacked, add, origin)


def deviation_of(
    stacked: Updates, rows: jax.Array, mean: Updates, ddof: jax.Array | float
) -> Updates:
    """Returns the standard deviation of each coordinate over the given rows, float32.

    The sum of squares is divided by the number of rows less ``ddof``; with too few rows
    for that the deviation is 0.
    """
    degrees = jnp.sum(rows) - ddof
    factor = jnp.where(degrees > 0, 1.0 / jnp.where(degrees > 0, degrees, 1.0), 0.0)

    def add(i: jax.Array, total: jax.Array, x: jax.Array, middle) -> jax.Array:
        row = jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False)
        away = row.astype(jnp.float32) - middle
        return total + jnp.where(rows[i], away * away, 0.0)

    squares = _over_rows(stacked, add, mean)
    return jax.tree.map(lambda total: jnp.sqrt(factor * total), squares)


def extremes_of(stacked: Updates, rows: jax.Array) -> tuple[Updates, Updates]:
    """Returns the least and the greatest value of each coordinate; 0 without rows."""

    def extreme(pick, worst: float) -> Updates:
        def add(i: jax.Array, held: jax.Array, x: jax.Array, _) -> jax.Array:
            row = jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False)
            return pick(held, jnp.where(rows[i], row.astype(jnp.float32), worst))

        found = _over_rows(stacked, add, None, start=worst)
        return jax.tree.map(lambda x: jnp.where(jnp.any(rows), x, 0.0), found)

    low = extreme(jnp.minimum, float("inf"))
    return low, extreme(jnp.maximum, -float("inf"))


def inner_products(stacked: Updates, vector: Updates) -> jax.Array:
    """Returns the inner product of every row with a vector, float32 ``[cohort]``."""

    def leaf(x: jax.Array, v: jax.Array) -> jax.Array:
        flat = x.reshape(x.shape[0], -1).astype(jnp.float32)
        return jnp.matmul(flat, v.reshape(-1).astype(jnp.float32), precision=_EXACT)

    products = jax.tree.leaves(jax.tree.map(leaf, stacked, vector))
    return jnp.asarray(sum(products, jnp.float32(0)))


def gram_around(
    stacked: Updates, rows: jax.Array, center: Updates, *more: Updates
) -> jax.Array:
    """Returns the inner products of ``x_i - center`` and of further vectors.

    Differences are formed before they are multiplied: distances of rows that lie close
    together and far from the origin would drown in the rounding of their norms.

    Args:
      stacked: leaves ``[cohort, ...]``.
      rows: bool ``[cohort]``; other rows count as zero.
      center: a tree without the cohort axis.
      *more: further trees like ``center``, which are not moved.

    Returns:
      float32 ``[cohort + len(more), cohort + len(more)]``.
    """
    leaves = jax.tree.leaves(stacked)
    centers = jax.tree.leaves(center)
    others = [jax.tree.leaves(tree) for tree in more]
    total = jnp.float32(0)
    for number, x in enumerate(leaves):
        flat = x.reshape(x.shape[0], -1)
        middle = centers[number].reshape(1, -1)
        rest = [tree[number].reshape(1, -1) for tree in others]
        total = total + _gram_leaf(flat, rows, middle, rest)
    return jnp.asarray(total)


def squared_distances(gram: jax.Array) -> jax.Array:
    """Returns the squared distances between vectors of given inner products."""
    norms = jnp.diagonal(gram)
    return jnp.maximum(norms[:, None] + norms[None, :] - 2.0 * gram, 0.0)


def along(origin: Updates, strength: jax.Array | float, direction: Updates) -> Updates:
    """Returns ``origin + strength * direction``."""
    return jax.tree.map(lambda o, d: o + strength * d, origin, direction)


def clip_norm(updates: Updates, max_norm: jax.Array) -> Updates:
    """Scales updates down to an L2 norm of at most ``max_norm``."""
    norm = jnp.sqrt(trees.squared_norm(updates))
    return trees.scale(updates, jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-30)))


def normal_like(key: Key, tree: Updates) -> Updates:
    """Returns standard normal numbers of a tree's shapes, float32."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    drawn = [
        jax.random.normal(k, x.shape, jnp.float32)
        for k, x in zip(keys, leaves, strict=False)
    ]
    return structure.unflatten(drawn)


def _wide(flags: jax.Array, x: jax.Array) -> jax.Array:
    return flags.reshape(-1, *[1] * (x.ndim - 1))


def _over_rows(stacked: Updates, add, extra: Updates | None, start: float = 0.0):
    """Folds ``add(i, held, leaf, extra leaf) -> held`` over the rows of every leaf."""

    def leaf(x: jax.Array, other=None) -> jax.Array:
        first = jnp.full(x.shape[1:], start, jnp.float32)
        return jax.lax.fori_loop(
            0, x.shape[0], lambda i, held: add(i, held, x, other), first
        )

    if extra is None:
        return jax.tree.map(leaf, stacked)
    return jax.tree.map(leaf, stacked, extra)


def _gram_leaf(flat, rows, middle, rest) -> jax.Array:
    width = flat.shape[1]

    def part(start: jax.Array | int, size: int) -> jax.Array:
        def cut(x: jax.Array) -> jax.Array:
            taken = jax.lax.dynamic_slice_in_dim(x, start, size, 1)
            return taken.astype(jnp.float32)

        moved = jnp.where(rows[:, None], cut(flat) - cut(middle), 0.0)
        block = jnp.concatenate([moved, *(cut(x) for x in rest)])
        return jnp.matmul(block, block.T, precision=_EXACT)

    whole, left = divmod(width, _BLOCK)
    total = part(whole * _BLOCK, left)
    if whole == 0:
        return total
    return jax.lax.fori_loop(
        0, whole, lambda i, held: held + part(i * _BLOCK, _BLOCK), total
    )
