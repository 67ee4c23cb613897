"""Gradients of single examples whose sum and norms are asked for, and not they.

The gradient of a dense layer's weights by one example is an outer product of what goes
into the layer and what comes back to it. Its norm is the product of two norms, and a
weighted sum of such gradients is one matrix product: it need never be made ("ghost
clipping", Goodfellow, 2015, arXiv:1510.01799; Li et al., 2022, arXiv:2110.05679).

Which leaves are of that kind is read off the gradient's own program, where the last
operation says so. What a model is made of does not matter: a leaf that is used twice,
shared over time or regularised ends in another operation and is taken as it is.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from fedjax_health.core import trees

# Operations that move numbers without changing them.
_MOVES = ("transpose", "reshape", "squeeze")


class _Leaf(NamedTuple):
    """How the gradient of one leaf is made.

    Attributes:
      factors: the variables of the outer product's factors, or the gradient itself.
      shapes: of the factors without the dimension that is summed over.
      moves: operations that bring the product into the leaf's shape, in order.
    """

    factors: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...]
    moves: tuple[Any, ...]


class ExampleGradients(NamedTuple):
    """The gradients of several examples, as factors.

    Attributes:
      values: what was differentiated, ``[examples]``.
      extra: what came beside it, ``[examples, ...]``.
      squared_norms: of each example's gradient, float32 ``[examples]``.
      weighted_sum: float32 ``[examples]`` weights -> the weighted sum of the
        gradients; an example of weight 0 counts nothing, finite or not.
      held: numbers of one example's gradient that are held and not as factors.
    """

    values: jax.Array
    extra: Any
    squared_norms: jax.Array
    weighted_sum: Callable[[jax.Array], Any]
    held: int


def example_gradients(
    loss: Callable[[Any, Any], tuple[jax.Array, Any]], params: Any, examples: Any
) -> ExampleGradients:
    """Returns the gradients of several examples by the parameters.

    Args:
      loss: ``(params, example) -> (value [], extra)``.
      params: by which it is differentiated.
      examples: a tree of arrays ``[examples, ...]``.
    """

    def one(params: Any, example: Any):
        (value, extra), gradients = jax.value_and_grad(loss, has_aux=True)(
            params, example
        )
        return value, extra, gradients

    first = jax.tree.map(lambda x: x[0], examples)
    closed, shapes = jax.make_jaxpr(one, return_shape=True)(params, first)
    jaxpr = closed.jaxpr
    before = len(jaxpr.outvars) - len(jax.tree.leaves(params))
    made_by = {out: eqn for eqn in jaxpr.eqns for out in eqn.outvars}
    leaves = [_read(made_by, var) for var in jaxpr.outvars[before:]]
    wanted = [*jaxpr.outvars[:before], *(v for leaf in leaves for v in leaf.factors)]
    run = _program(closed, wanted)
    inputs = jax.tree.leaves(params)
    rows = jax.tree.leaves(examples)
    outputs = jax.vmap(lambda *rows: run(*inputs, *rows))(*rows)
    told = jax.tree.structure(shapes[:2]).unflatten(outputs[:before])
    factors, rest = [], list(outputs[before:])
    for leaf in leaves:
        taken, rest = rest[: len(leaf.factors)], rest[len(leaf.factors) :]
        factors.append(
            [x.reshape(len(x), *s) for x, s in zip(taken, leaf.shapes, strict=True)]
        )

    def weighted_sum(weights: jax.Array) -> Any:
        sums = [
            _sum(leaf, own, weights) for leaf, own in zip(leaves, factors, strict=True)
        ]
        return jax.tree.structure(params).unflatten(sums)

    squares = jnp.zeros(len(rows[0]), jnp.float32)
    for own in factors:
        # A product's squared norm is the product of its factors'.
        first, *others = (_row_squares(x) for x in own)
        squares = squares + (first * others[0] if others else first)
    held = sum(math.prod(leaf.shapes[0]) for leaf in leaves if len(leaf.factors) == 1)
    return ExampleGradients(told[0], told[1], squares, weighted_sum, held)


def _read(made_by: dict[Any, Any], var: Any) -> _Leaf:
    """Returns how a gradient is made, going back from where it comes out."""
    whole = _Leaf((var,), (tuple(var.aval.shape),), ())
    moves = []
    while not isinstance(var, core.Literal) and var in made_by:
        eqn = made_by[var]
        if eqn.primitive.name in _MOVES:
            moves.append(eqn)
            var = eqn.invars[0]
            continue
        if eqn.primitive.name != "dot_general":
            break
        (left, right), batched = eqn.params["dimension_numbers"]
        a, b = eqn.invars
        sizes = [a.aval.shape[d] for d in left]
        same = a.aval.dtype == b.aval.dtype == var.aval.dtype == jnp.float32
        if any(batched) or any(size != 1 for size in sizes) or not same:
            break
        shapes = (_without(a.aval.shape, left), _without(b.aval.shape, right))
        return _Leaf((a, b), shapes, tuple(reversed(moves)))
    return whole


def _without(shape: tuple[int, ...], dimensions: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for d, size in enumerate(shape) if d not in dimensions)


def _program(closed: Any, wanted: list[Any]) -> Callable[..., list[jax.Array]]:
    """Returns a program with other variables as its results."""
    jaxpr = closed.jaxpr.replace(
        outvars=wanted, debug_info=closed.jaxpr.debug_info.with_unknown_names()
    )
    return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, closed.consts))


def _row_squares(x: jax.Array) -> jax.Array:
    """Returns the sum of squares of each row, float32 ``[rows]``."""
    flat = x.astype(jnp.float32).reshape(len(x), -1)
    return jnp.sum(jnp.square(flat), axis=1)


def _sum(leaf: _Leaf, factors: list[jax.Array], weights: jax.Array) -> jax.Array:
    """Returns the weighted sum of one leaf's gradients."""
    first, *others = (
        jnp.where(weights.reshape(-1, *[1] * (x.ndim - 1)) != 0, x, 0) for x in factors
    )
    if not others:
        return trees.weighted_sum(weights, first)
    scaled = first * weights.reshape(-1, *[1] * (first.ndim - 1))
    total = jnp.tensordot(scaled, others[0], axes=(0, 0))
    for eqn in leaf.moves:
        total = eqn.primitive.bind(total, **eqn.params)
    return total
