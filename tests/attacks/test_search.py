"""Optimised attacks: the strength against brute force; cheap trials against plain."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health import attacks
from fedjax_health.attacks import response, search
from fedjax_health.attacks.line import Line
from fedjax_health.core import trees
from fedjax_health.core.types import AggregationContext, Defence
from tests.attacks import cases
from tests.attacks.cases import HONEST, MALICIOUS, MASK, D, messages

X = messages()
SEEN = X[HONEST].astype(float)
MEAN, STD = SEEN.mean(axis=0), SEEN.std(axis=0, ddof=1)


def defence_of(update, depends_on="rows", *, state=(), root=None):
    known = AggregationContext(
        jnp.asarray(cases.IDS), jnp.asarray(MASK), jnp.int32(0), root
    )
    weights = jnp.asarray(cases.WEIGHTS)
    return Defence(update, weights, state, known, depends_on)


def median(stacked, weights, state, key, *, context=None):
    def leaf(x):
        here = (weights > 0).reshape(-1, *[1] * (x.ndim - 1))
        return jnp.nanmedian(jnp.where(here, x, jnp.nan), axis=0)

    return jax.tree.map(leaf, stacked), state, {}


def mean(stacked, weights, state, key, *, context=None):
    shares = weights / jnp.sum(weights)
    return jax.tree.map(lambda x: jnp.tensordot(shares, x, 1), stacked), state, {}


def clipped_mean(bound, stacked, weights, state, key, *, context=None):
    norms = jnp.sqrt(jax.vmap(trees.squared_norm)(stacked))
    shares = jnp.minimum(1.0, bound / jnp.maximum(norms, 1e-12)) * (weights > 0)
    shares = shares / jnp.sum(weights > 0)
    return jax.tree.map(lambda x: jnp.tensordot(shares, x, 1), stacked), state, {}


class Memory(NamedTuple):
    radius: jax.Array
    center: dict


def centered(stacked, weights, state, key, *, context=None):
    """A Gram rule with a memory and root data of the parameters' shape."""
    away = jax.tree.map(lambda x, c: x - c, stacked, state.center)
    norms = jnp.sqrt(jax.vmap(trees.squared_norm)(away))
    pull = jnp.minimum(1.0, state.radius / jnp.maximum(norms, 1e-12)) * (weights > 0)
    pull = pull / jnp.sum(weights > 0)
    made = jax.tree.map(
        lambda c, a, r: c + jnp.tensordot(pull, a, 1) + 0.1 * r,
        state.center,
        away,
        context.root_updates,
    )
    return made, state, {}


def np_median(rows_):
    return np.median(rows_, axis=0)


def np_mean(rows_):
    present = MASK | MALICIOUS
    return np.average(rows_, axis=0, weights=cases.WEIGHTS[present])


def np_clipped(rows_):
    norms = np.linalg.norm(rows_, axis=1, keepdims=True)
    return (rows_ * np.minimum(1, 2.0 / np.maximum(norms, 1e-9))).mean(axis=0)


def np_distances(rule, direction, strengths):
    found = []
    for tau in strengths:
        sent = X.astype(float).copy()
        sent[MALICIOUS] = MEAN + tau * direction
        found.append(np.linalg.norm(rule(sent[MASK | MALICIOUS]) - MEAN))
    return np.array(found)


def forge(attack, defence, x=X):
    known = cases.context()._replace(defence=None)
    state = attack.init(cases.tree(np.zeros(D, np.float32)))
    forged, state = jax.jit(
        lambda stacked, flags, held: attack.forge(
            stacked, flags, held, known._replace(defence=defence)
        )
    )(cases.tree(x), jnp.asarray(MALICIOUS), state)
    return cases.matrix(forged), state


def clip_to(bound):
    return lambda *arguments, **known: clipped_mean(bound, *arguments, **known)


RULES = {
    "mean": (mean, "gram", np_mean),
    "median": (median, "coordinates", np_median),
    "clipped": (clip_to(2.0), "gram", np_clipped),
    "clipped, its rows": (clip_to(2.0), "rows", np_clipped),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("direction", "sign"), [("alie", 1), ("alie", -1), ("ipm", 1)])
def test_no_strength_of_a_fine_grid_does_better(rule, direction, sign):
    update, depends_on, oracle = RULES[rule]
    attack = attacks.optimized(direction=direction, sign=sign, limit=6.0)
    forged, state = forge(attack, defence_of(update, depends_on))
    away = sign * STD if direction == "alie" else -MEAN
    tau = float(state["strength"])
    np.testing.assert_allclose(
        forged[MALICIOUS], [MEAN + tau * away] * 2, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_array_equal(forged[~MALICIOUS], X[~MALICIOUS])
    assert 0 < tau <= 6
    best = np_distances(oracle, away, np.linspace(0.01, 6, 600)).max()
    assert np_distances(oracle, away, [tau])[0] >= 0.98 * best


def test_of_strengths_that_do_as_well_the_smallest_is_sent():
    # The mean of clipped rows goes on by rounding for ever; a plain maximum would too.
    update, depends_on, oracle = RULES["clipped"]
    attack = attacks.optimized(limit=1e6)
    _, state = forge(attack, defence_of(update, depends_on))
    tau = float(state["strength"])
    assert tau < 1e6 / 128
    one, far = np_distances(oracle, STD, [tau, 1e6])
    assert one >= (1 - 2e-4) * far

    def strongest(response, limit=8.0):
        found = jax.jit(lambda: search.strongest(response, jnp.float32(limit)))()
        return float(found)

    least = 8 / 128 / 9
    assert strongest(lambda s: jnp.float32(1)) == pytest.approx(least)
    assert strongest(lambda s: jnp.float32(0)) == pytest.approx(least)
    assert strongest(lambda s: jnp.where(s > 3, jnp.nan, s)) == pytest.approx(
        3, abs=0.4
    )
    assert strongest(lambda s: s) == 8.0
    assert strongest(lambda s: -((s - 0.3) ** 2) + 1) == pytest.approx(0.3, abs=0.05)
    assert strongest(lambda s: 1 - 5e-5 * s) == pytest.approx(least)
    assert strongest(lambda s: 1 + 1e-3 * s) == 8.0


def test_sixteen_trials_and_no_more():
    tried = []

    def note(strength):
        jax.debug.callback(lambda s: tried.append(float(s)), strength)
        return -jnp.abs(strength - 1.3)

    found = search.strongest(note, jnp.float32(8))
    jax.effects_barrier()
    assert len(tried) == search.TRIALS == 16
    assert float(found) in tried
    assert min(abs(t - 1.3) for t in tried) == pytest.approx(abs(float(found) - 1.3))


@pytest.mark.parametrize("update", [mean, clip_to(1.0), centered])
def test_trials_in_the_span_of_the_messages_are_the_real_ones(update):
    root = cases.tree(messages(4)[0])
    state = (
        Memory(jnp.float32(1.5), cases.tree(messages(5)[1]))
        if (update is centered)
        else ()
    )
    stacked, malicious = cases.tree(X), jnp.asarray(MALICIOUS)

    def distances(depends_on):
        known = cases.context()._replace(
            defence=defence_of(update, depends_on, state=state, root=root)
        )
        trial = response.response_of(stacked, malicious, known, Line(True))
        return jax.jit(jax.vmap(trial))(jnp.array([0.0, 0.4, 3.0, 40.0]))

    np.testing.assert_allclose(
        distances("gram"), distances("rows"), rtol=1e-4, atol=1e-5
    )


def test_short_vectors_keep_their_lengths_among_long_ones():
    points = messages(1, n=5, d=7).astype(float) * [[1], [1e4], [1e-3], [1], [0]]
    gram = points @ points.T
    made = np.asarray(response.embedding(jnp.asarray(gram, jnp.float32)), float)
    scale = np.linalg.norm(points, axis=1)
    scale = np.outer(scale, scale) + 1e-30
    np.testing.assert_allclose((made @ made.T - gram) / scale, 0, atol=2e-6)


def test_a_sample_of_coordinates_stands_for_all_of_them():
    rng = np.random.default_rng(0)
    sizes = {"small": (3, 5), "large": (500, 300), "odd": (70_001,)}
    scales = {"small": 5.0, "large": 1.0, "odd": 0.2}
    stacked = {
        name: jnp.asarray(scales[name] * rng.normal(size=(4, *size)), jnp.float32)
        for name, size in sizes.items()
    }
    origin = jax.tree.map(lambda x: x[0], stacked)
    key = jax.random.key(3)
    sampled, counts = response.sampled_coordinates(key, stacked)
    total = sum(x.shape[1] for x in sampled)
    assert total < 1.1 * response.SAMPLED
    held = [x.shape[1] * count for x, count in zip(sampled, counts, strict=True)]
    assert held == pytest.approx([150_000, 70_001, 15])
    estimate = sum(
        c * float(jnp.sum(part[0] ** 2))
        for c, part in zip(counts, sampled, strict=True)
    )
    assert estimate == pytest.approx(float(trees.squared_norm(origin)), rel=0.05)
    places = jnp.broadcast_to(jnp.arange(150_000.0), (4, 150_000))
    (runs,), _ = response.sampled_coordinates(key, [places])
    runs = np.asarray(runs[0]).reshape(-1, 128)
    np.testing.assert_array_equal(np.diff(runs, axis=1), 1)
    assert np.all(np.diff(runs[:, 0]) >= 128)
    again = response.sampled_coordinates(jax.random.key(4), stacked)[0]
    assert not np.array_equal(again[0], sampled[0])
    few = jax.tree.map(lambda x: x[:, :3], stacked)
    whole, counts = response.sampled_coordinates(key, few)
    assert counts == [1.0, 1.0, 1.0]
    np.testing.assert_array_equal(whole[1], few["odd"])


def test_a_defence_that_draws_at_random_draws_for_the_attacker():
    drawn = []

    def random_row(stacked, weights, state, key, *, context=None):
        jax.debug.callback(
            lambda k: drawn.append(np.asarray(k).tolist()), (jax.random.key_data(key))
        )
        row = jax.random.randint(key, (), 0, cases.N)
        return jax.tree.map(lambda x: x[row], stacked), state, {}

    forge(attacks.optimized(), defence_of(random_row))
    jax.effects_barrier()
    own = jax.random.key_data(cases.context().key).tolist()
    assert drawn
    assert all(key == own for key in drawn)
