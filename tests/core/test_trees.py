"""Tree operations against NumPy, with holes, several dtypes and shapes alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core import trees


def make(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "body": [
            {"kernel": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)},
            {"kernel": jnp.asarray(rng.normal(size=(2,)), jnp.float16)},
        ],
        "head": (jnp.float32(rng.normal()), {"bias": jnp.ones((0, 4), jnp.float32)}),
    }


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(leaves(a), leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_arithmetic_keeps_structure_and_dtype():
    a, b = make(0), make(1)
    assert_same(trees.add(a, b), jax.tree.map(lambda x, y: x + y, a, b))
    assert_same(trees.subtract(a, b), jax.tree.map(lambda x, y: x - y, a, b))
    for x, y in zip(leaves(trees.scale(a, 0.5)), leaves(a), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y * np.asarray(0.5, y.dtype))
    assert_same(trees.scale(a, jnp.float32(2.0)), trees.add(a, a))
    assert_same(trees.zeros_like(a), trees.subtract(a, a))


def test_select_takes_a_whole_tree_even_from_nan():
    good = make(0)
    bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), good)
    assert_same(trees.select(jnp.bool_(True), good, bad), good)
    assert_same(trees.select(jnp.bool_(False), bad, good), good)


def test_squared_norm_is_float32_over_all_leaves():
    tree = make(2)
    norm = trees.squared_norm(tree)
    assert norm.dtype == jnp.float32
    expected = sum(np.sum(x.astype(np.float64) ** 2) for x in leaves(tree))
    np.testing.assert_allclose(norm, expected, rtol=1e-6)
    # Squares of float16 values would overflow in their own dtype.
    np.testing.assert_allclose(
        trees.squared_norm({"w": jnp.full(3, 1000.0, jnp.float16)}), 3e6
    )
    assert trees.squared_norm({}) == 0


def test_sizes_are_read_from_arrays_and_from_shapes():
    tree = make()
    assert trees.num_params(tree) == 6 + 2 + 1 + 0
    assert trees.num_bytes(tree) == 24 + 4 + 4 + 0
    shapes = jax.eval_shape(lambda: tree)
    assert trees.num_params(shapes) == trees.num_params(tree)
    assert trees.num_bytes(shapes) == trees.num_bytes(tree)
    huge = {"w": jax.ShapeDtypeStruct((1 << 20, 1 << 20), jnp.float32)}
    assert trees.num_bytes(huge) == 1 << 42


def test_paths_are_named_in_leaf_order():
    assert trees.path_names(make()) == [
        "body/0/kernel",
        "body/1/kernel",
        "head/0",
        "head/1/bias",
    ]


@pytest.mark.parametrize(
    "chosen",
    [
        lambda path: path.startswith("head"),
        lambda path: path.endswith("kernel"),
        lambda path: True,
        lambda path: False,
    ],
)
def test_split_and_join_are_inverse(chosen):
    tree = make()
    rest, taken = trees.split_by_path(tree, chosen)
    names = trees.path_names(tree)
    assert trees.path_names(taken) == [name for name in names if chosen(name)]
    assert trees.path_names(rest) == [name for name in names if not chosen(name)]
    assert_same(trees.join(rest, taken), tree)
    assert_same(trees.join(taken, rest), tree)


def test_operations_pass_over_the_holes_of_a_split():
    tree = make()
    rest, taken = trees.split_by_path(tree, lambda path: path.startswith("head"))
    doubled = trees.join(trees.add(rest, rest), trees.scale(taken, 3.0))
    assert_same(doubled["body"], trees.scale(tree["body"], 2.0))
    assert_same(doubled["head"], trees.scale(tree["head"], 3.0))
    total = trees.squared_norm(rest) + trees.squared_norm(taken)
    np.testing.assert_allclose(total, trees.squared_norm(tree), rtol=1e-6)


def test_a_row_out_of_range_is_clipped():
    table = {"a": jnp.arange(6.0).reshape(3, 2), "b": jnp.arange(3)}
    for row, expected in [(0, 0), (2, 2), (3, 2), (1000, 2), (-5, 0)]:
        taken = trees.take_row(table, jnp.int32(row))
        np.testing.assert_array_equal(taken["a"], table["a"][expected])
        assert taken["b"] == expected


def test_ordered_sum_adds_from_the_left():
    terms = [{"x": jnp.float32(x)} for x in (1e8, -1e8, 1.0)]
    assert trees.ordered_sum(terms)["x"] == 1.0
    assert trees.ordered_sum([terms[2], terms[0], terms[1]])["x"] == 0.0
    assert_same(trees.ordered_sum(terms[:1]), terms[0])
