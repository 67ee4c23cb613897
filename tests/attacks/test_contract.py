"""What every attack on updates promises: rows, threat model, jit, no one to attack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health import attacks
from fedjax_health.core.types import UpdateAttack
from tests.attacks import cases
from tests.attacks.cases import HONEST, KNOWS, MALICIOUS, MASK, forge, messages

every_attack = pytest.mark.parametrize("name", KNOWS)


def test_every_attack_on_updates_is_here():
    made = {
        name
        for name in attacks.__all__
        if isinstance(_built(getattr(attacks, name)), UpdateAttack)
    }
    assert made - {"optimized"} == {name.split()[0] for name in KNOWS} - {"during"}


def _built(constructor):
    try:
        return constructor()
    except TypeError:
        return None


@every_attack
def test_rows_of_others_stay_and_no_absent_row_is_seen(name):
    attack, knows = KNOWS[name]
    x = messages()
    forged, _ = forge(attack, x)
    np.testing.assert_array_equal(forged[~MALICIOUS], x[~MALICIOUS])
    assert np.any(forged[MALICIOUS] != x[MALICIOUS], axis=1).all()
    if name != "nonfinite":
        assert np.isfinite(forged).all()
    broken = x.copy()
    broken[~MASK] = np.nan
    again, _ = forge(attack, broken)
    np.testing.assert_array_equal(again[MASK], forged[MASK])

    # What must not be seen is changed, and nothing that is sent changes.
    def sent(rows, **known):
        changed = np.where(rows[:, None], 1e3 * messages(7), x)
        return forge(attack, changed, **known)[0][MALICIOUS]

    hidden = {
        "honest": MALICIOUS,
        "colluders": HONEST,
        "own": HONEST,
        "nothing": MASK,
    }[knows]
    np.testing.assert_array_equal(sent(hidden), forged[MALICIOUS])
    if knows != "nothing":
        seen = HONEST if knows == "honest" else MALICIOUS
        assert (sent(seen) != forged[MALICIOUS]).any()
    if knows == "own":
        other = np.arange(cases.N) == 4
        np.testing.assert_array_equal(sent(other)[0], forged[1])
    previous = sent(np.zeros(cases.N, bool), previous=messages(3)[0])
    uses = name in ("free_rider", "neurotoxin")
    same = np.array_equal(previous, forged[MALICIOUS], equal_nan=True)
    assert same != uses


@every_attack
def test_nobody_and_everybody_malicious(name):
    attack, _ = KNOWS[name]
    x = messages()
    forged, _ = forge(attack, x, np.zeros(cases.N, bool))
    np.testing.assert_array_equal(forged, x)
    forged, state = forge(attack, x, np.ones(cases.N, bool))
    assert name == "nonfinite" or np.isfinite(forged).all()
    assert all(np.isfinite(s).all() or np.isinf(s) for s in jax.tree.leaves(state))


@every_attack
def test_one_honest_row_is_enough(name):
    attack, _ = KNOWS[name]
    malicious = np.arange(cases.N) != 2
    x = messages()
    forged, _ = forge(attack, x, malicious)
    assert name == "nonfinite" or np.isfinite(forged).all()
    np.testing.assert_array_equal(forged[2], x[2])


@pytest.mark.parametrize("name", ["alie", "fang krum", "min_max", "sybil"])
def test_jit_equals_eager_and_bfloat16_stays(name):
    attack, _ = KNOWS[name]
    x = messages()
    known = cases.context()._replace(defence=None)
    state = attack.init(cases.tree(np.zeros(cases.D, np.float32)))
    eager, _ = attack.forge(cases.tree(x), jnp.asarray(MALICIOUS), state, known)
    compiled, _ = forge(attack, x)
    np.testing.assert_allclose(cases.matrix(eager), compiled, rtol=2e-5, atol=2e-5)
    small = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), cases.tree(x))
    shape = jax.eval_shape(attack.forge, small, jnp.asarray(MALICIOUS), state, known)
    assert {leaf.dtype for leaf in jax.tree.leaves(shape[0])} == {
        jnp.dtype(jnp.bfloat16)
    }
    assert jax.tree.structure(shape[0]) == jax.tree.structure(small)
    assert jax.tree.structure(shape[1]) == jax.tree.structure(state)


def test_a_bare_array_and_a_bare_context_are_enough():
    x = messages(n=5)
    malicious = jnp.array([False, True, False, False, True])
    known = cases.context()._replace(
        client_ids=None,
        client_keys=None,
        mask=None,
        weights=None,
        params=x[0],
        previous_aggregate=x[0],
        defence=lambda stacked, key: jnp.mean(stacked, axis=0),
    )
    some = ("alie", "fang krum", "free_rider", "model_replacement", "during")
    for attack in [*(KNOWS[name][0] for name in some), attacks.optimized()]:
        run = jax.jit(
            lambda x, flags, state, run=attack.forge: run(x, flags, state, known)
        )
        forged, _ = run(jnp.asarray(x), malicious, attack.init(x[0]))
        assert forged.shape == x.shape
        np.testing.assert_array_equal(forged[~malicious], x[~malicious])
        assert (forged[malicious] != x[malicious]).any()


def test_seeds_side_by_side_equal_seeds_one_by_one():
    x = np.stack([messages(seed) for seed in range(3)])
    known = [cases.context(seed=seed)._replace(defence=None) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *known)
    for name in ("fang krum", "mimic", "during"):
        attack, _ = KNOWS[name]
        state = attack.init(cases.tree(np.zeros(cases.D, np.float32)))
        together, _ = jax.jit(jax.vmap(attack.forge, in_axes=(0, None, None, 0)))(
            cases.tree(x), jnp.asarray(MALICIOUS), state, stacked
        )
        for seed in range(3):
            alone, _ = forge(attack, x[seed], seed=seed)
            one = cases.matrix(jax.tree.map(lambda leaf, s=seed: leaf[s], together))
            np.testing.assert_allclose(one, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (attacks.alie(z=1.0), attacks.alie(sign=-1, num_malicious=3, ddof=0)),
        (attacks.sign_flip(), attacks.ipm(scale=0.3)),
        (attacks.fang(), attacks.fang(num_malicious=1, threshold=1e-3)),
        (attacks.free_rider(), attacks.free_rider(replay=0, noise=2, decay=1)),
        (attacks.model_replacement(), attacks.model_replacement(scale=3, max_norm=1)),
        (attacks.nonfinite(), attacks.nonfinite(value="inf")),
        (attacks.optimized(), attacks.optimized(limit=3, sign=-1)),
        (
            attacks.during(attacks.mimic()),
            attacks.during(attacks.mimic(warmup=1), start=3, end=9, share=0.1),
        ),
    ],
)
def test_numbers_are_no_part_of_the_program(one, other):
    assert one.forge is other.forge
    params = jnp.zeros(3)
    shapes = [jax.eval_shape(attack.init, params) for attack in (one, other)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("build", "part"),
    [
        (lambda: attacks.sign_flip(of="mine"), "mean, own"),
        (lambda: attacks.sign_flip(scale=-1), "not -1"),
        (lambda: attacks.ipm(scale=float("nan")), "not nan"),
        (lambda: attacks.ipm(knowledge="all"), "honest, colluders"),
        (lambda: attacks.alie(sign=0.5), "1 or -1"),
        (lambda: attacks.alie(z=float("inf")), "not inf"),
        (lambda: attacks.alie(num_malicious=-2), "not -2"),
        (lambda: attacks.optimized(direction="up"), "alie, ipm"),
        (lambda: attacks.optimized(limit=0), "not 0"),
        (lambda: attacks.optimized(sign=2), "1 or -1"),
        (lambda: attacks.mimic(warmup=-1), "not -1"),
        (lambda: attacks.min_max(deviation="mean"), "unit, std, sign"),
        (lambda: attacks.fang(form="median"), "krum, trimmed_mean"),
        (lambda: attacks.fang(knowledge="colluders"), "trimmed_mean"),
        (lambda: attacks.fang(threshold=0), "not 0"),
        (lambda: attacks.fang(spread=0.5), "not 0.5"),
        (lambda: attacks.gaussian(std=-1), "not -1"),
        (lambda: attacks.gaussian(center="honest"), "mean, zero, own"),
        (lambda: attacks.nonfinite(value="zero"), "nan, inf, -inf"),
        (lambda: attacks.free_rider(noise=-1), "not -1"),
        (lambda: attacks.free_rider(decay=-1), "not -1"),
        (lambda: attacks.sybil(jitter=-1), "not -1"),
        (lambda: attacks.model_replacement(server_learning_rate=0), "not 0"),
        (lambda: attacks.model_replacement(max_norm=0), "not 0"),
        (lambda: attacks.neurotoxin(masked=1.5), "not 1.5"),
        (lambda: attacks.during(attacks.ipm(), start=-1), "start=-1"),
        (lambda: attacks.during(attacks.ipm(), start=5, end=4), "end=4"),
        (lambda: attacks.during(attacks.ipm(), share=2), "not 2"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_built(build, part):
    with pytest.raises(ValueError, match=r"must|needs") as caught:
        build()
    assert part in str(caught.value)
