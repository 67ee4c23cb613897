"""Optimised attacks against this package's rules: cheap trials are the real ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health import aggregators, attacks
from fedjax_health.attacks import response
from fedjax_health.attacks.line import Line
from fedjax_health.core.types import AggregationContext, Defence
from tests.attacks import cases
from tests.attacks.cases import MALICIOUS, D

N = 8
X = cases.messages(11, offset=1.0)
EVERYONE = np.ones(N, bool)
PARAMS = cases.tree(np.zeros(D, np.float32))

slow = pytest.mark.slow
RULES = [
    pytest.param(lambda: aggregators.krum(2), id="krum"),
    pytest.param(
        lambda: aggregators.pipeline(aggregators.nnm(2), aggregators.krum(2)),
        id="nnm, krum",
    ),
    pytest.param(
        lambda: aggregators.centered_clip(radius=2.0, steps=2), id="centered_clip"
    ),
    pytest.param(aggregators.fltrust, id="fltrust"),
    pytest.param(lambda: aggregators.multi_krum(2), id="multi_krum", marks=slow),
    pytest.param(aggregators.geometric_median, id="geometric_median", marks=slow),
    pytest.param(lambda: aggregators.mda(2), id="mda", marks=slow),
    pytest.param(lambda: aggregators.smea(2), id="smea", marks=slow),
    pytest.param(lambda: aggregators.caf(2), id="caf", marks=slow),
    pytest.param(lambda: aggregators.monna(2, trusted=11), id="monna", marks=slow),
    pytest.param(lambda: aggregators.cge(2), id="cge", marks=slow),
    pytest.param(
        lambda: aggregators.pipeline(
            aggregators.clip_norms(2.0),
            aggregators.bucketing(2),
            aggregators.geometric_median(),
        ),
        id="clip_norms, bucketing, geometric_median",
        marks=slow,
    ),
]


def defence_of(rule, depends_on):
    state = rule.init(PARAMS)
    # A memory that is not zero, where there is one.
    state = jax.tree.map(
        lambda leaf: leaf + 0.3 if jnp.ndim(leaf) and leaf.size > 1 else leaf, state
    )
    known = AggregationContext(
        jnp.asarray(cases.IDS),
        jnp.asarray(EVERYONE),
        jnp.int32(0),
        cases.tree(cases.messages(4)[0]),
    )
    weights = jnp.ones(N)
    return Defence(rule.update, weights, state, known, depends_on)


@pytest.mark.parametrize("build", RULES)
def test_a_rule_turns_with_its_rows(build):
    rule = build()
    assert rule.depends_on == "gram"
    stacked, malicious = cases.tree(X), jnp.asarray(MALICIOUS)
    strengths = jnp.array([0.1, 0.7, 3.0, 9.0])

    def distances(depends_on):
        known = cases.context(mask=EVERYONE, weights=np.ones(N, np.float32))
        known = known._replace(defence=defence_of(rule, depends_on))
        trial = response.response_of(stacked, malicious, known, Line(True))
        return jax.jit(lambda s: jax.lax.map(trial, s))(strengths)

    np.testing.assert_allclose(
        distances("gram"), distances("rows"), rtol=1e-3, atol=2e-3
    )


@pytest.mark.parametrize(
    ("n", "absent", "bad"),
    [
        (8, (), 1),
        pytest.param(7, (), 1, marks=slow),
        (8, (6,), 1),
        pytest.param(8, (), np.nan, marks=slow),
    ],
)
def test_a_median_is_tried_between_two_honest_values(n, absent, bad):
    """Absent rows and rows that are not finite change the ranks: the plain path."""
    x = cases.messages(13, n=n)
    x[3, 2] *= bad
    present = ~np.isin(np.arange(n), absent)
    weights = present.astype(np.float32)
    malicious = jnp.arange(n) < 3
    sent = AggregationContext(jnp.arange(n), jnp.asarray(present), jnp.int32(0), None)
    rule = aggregators.median()

    def distances(depends_on):
        defence = Defence(rule.update, jnp.asarray(weights), (), sent, depends_on)
        mask = present & np.isfinite(x).all(axis=1)
        known = cases.context(mask=mask, weights=weights, ids=np.arange(n))
        known = known._replace(defence=defence)
        trial = response.response_of(cases.tree(x), malicious, known, Line(True))
        return jax.jit(lambda s: jax.lax.map(trial, s))(
            jnp.array([0.0, 0.3, 1.0, 2.5, 60.0])
        )

    wanted = distances("rows")
    np.testing.assert_allclose(distances("median"), wanted, rtol=1e-5, atol=1e-6)
    assert rule.depends_on == "median"
    assert 0 < wanted[1] < wanted[-1]


def test_the_search_goes_as_far_as_krum_lets_it():
    attack = attacks.optimized()
    known = cases.context(mask=EVERYONE, weights=np.ones(N, np.float32))
    known = known._replace(defence=defence_of(aggregators.krum(2), "gram"))
    stacked, malicious = cases.tree(X), jnp.asarray(MALICIOUS)
    _, state = jax.jit(lambda held: attack.forge(stacked, malicious, held, known))(
        attack.init(PARAMS)
    )
    honest = X[~MALICIOUS]
    mean, std = honest.mean(axis=0), honest.std(axis=0, ddof=1)

    @jax.jit
    @jax.vmap
    def moved(tau):
        sent = jnp.where(MALICIOUS[:, None], mean + tau * std, X)
        taken = known.defence(cases.tree(sent), known.key)
        away = jax.tree.map(jnp.subtract, taken, cases.tree(mean))
        return jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(away)))

    tau = state["strength"]
    grid = np.asarray(moved(jnp.linspace(0.02, 10, 500)))
    assert 0 < tau < 10
    assert moved(tau[None])[0] >= 0.9 * grid.max()
    assert grid.max() > 1.5 * np.median(grid)
