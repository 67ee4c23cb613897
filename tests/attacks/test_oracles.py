"""Every attack on updates against its formula, row by row in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from fedjax_health import attacks
from fedjax_health.attacks import own, rows, statistical
from fedjax_health.attacks.crafted import krum_takes
from tests.attacks import cases
from tests.attacks.cases import HONEST, MALICIOUS, D, forge, messages

X = messages()
SEEN = X[HONEST].astype(float)
MEAN = SEEN.mean(axis=0)
OWN = X[MALICIOUS].astype(float)


def assert_sent(attack, expected, *, rtol=2e-5, **known):
    forged, _ = forge(attack, X, **known)
    expected = np.broadcast_to(expected, (2, D))
    np.testing.assert_allclose(forged[MALICIOUS], expected, rtol=rtol, atol=2e-5)


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (attacks.sign_flip(), -MEAN),
        (attacks.sign_flip(scale=3), -3 * MEAN),
        (attacks.sign_flip(of="own", scale=2), -2 * OWN),
        (attacks.sign_flip(knowledge="colluders"), -OWN.mean(axis=0)),
        (attacks.ipm(), -2 * MEAN),
        (attacks.ipm(scale=0.1), -0.1 * MEAN),
        (attacks.alie(z=1.5), MEAN + 1.5 * SEEN.std(axis=0, ddof=1)),
        (attacks.alie(z=0.7, sign=-1, ddof=0), MEAN - 0.7 * SEEN.std(axis=0)),
        (
            attacks.alie(z=1, knowledge="colluders"),
            OWN.mean(axis=0) + OWN.std(axis=0, ddof=1),
        ),
        (attacks.sybil(scale=-2), -2 * OWN.mean(axis=0)),
        (attacks.model_replacement(scale=4), 4 * OWN),
        # Weights 3 1 4 1 5 2 6: 22 in all, 6 of them malicious.
        (attacks.model_replacement(), 22 / 6 * OWN),
        (attacks.model_replacement(server_learning_rate=0.5), 44 / 6 * OWN),
        (attacks.gaussian(std=0), MEAN),
        (attacks.gaussian(std=0, center="own"), OWN),
        (attacks.gaussian(std=0, center="zero"), 0),
        (attacks.nonfinite(), np.nan),
        (attacks.nonfinite(value="inf"), np.inf),
        (attacks.nonfinite(value="-inf"), -np.inf),
        (attacks.neurotoxin(scale=3), 3 * OWN),
    ],
)
def test_formulas(attack, expected):
    assert_sent(attack, expected)


def test_norms_are_projected():
    attack = attacks.model_replacement(scale=4, max_norm=2)
    sent = forge(attack, X)[0][MALICIOUS]
    np.testing.assert_allclose(np.linalg.norm(sent, axis=1), 2, rtol=1e-5)
    np.testing.assert_allclose(
        sent / np.linalg.norm(sent, axis=1, keepdims=True),
        OWN / np.linalg.norm(OWN, axis=1, keepdims=True),
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    ("n", "f", "known_f"), [(7, 2, None), (10, 3, None), (20, 4, 1), (50, 20, None)]
)
def test_alie_counts_what_the_paper_counts(n, f, known_f):
    x = messages(n=n + 1)
    malicious, mask = np.arange(n + 1) < f, np.arange(n + 1) < n
    attack = attacks.alie(num_malicious=known_f)
    sent, _ = forge(
        attack, x, malicious, mask=mask, weights=mask * 1.0, ids=np.arange(n + 1)
    )
    honest = x[f:n].astype(float)
    assumed = f if known_f is None else known_f
    s = np.floor(n / 2 + 1) - assumed
    z = norm.ppf((n - assumed - s) / (n - assumed))
    expected = honest.mean(axis=0) + z * honest.std(axis=0, ddof=1)
    np.testing.assert_allclose(sent[0], expected, rtol=1e-4, atol=1e-4)


def test_alie_of_a_malicious_majority_stays_finite():
    z = statistical.standard_deviations(jnp.int32(10), jnp.int32(-1), jnp.int32(8))
    assert z == pytest.approx(norm.ppf(1 - 1e-6), rel=2e-2)


# Min-max and min-sum


def squared(a, b):
    return ((a[:, None] - b[None]) ** 2).sum(axis=-1)


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("kind", ["unit", "std", "sign"])
@pytest.mark.parametrize("offset", [0.3, 30.0])
def test_the_strength_is_the_greatest_that_fits(summed, kind, offset):
    x = messages(1, offset=offset)
    build = attacks.min_sum if summed else attacks.min_max
    sent = forge(build(deviation=kind), x)[0][MALICIOUS][0].astype(float)
    seen = x[HONEST].astype(float)
    mean = seen.mean(axis=0)
    direction = {
        "unit": mean / np.linalg.norm(mean),
        "std": seen.std(axis=0, ddof=1),
        "sign": np.sign(mean),
    }[kind]
    gamma = -(sent - mean) @ direction / (direction @ direction)
    np.testing.assert_allclose(sent, mean - gamma * direction, rtol=1e-5, atol=1e-5)
    pick = np.sum if summed else np.max
    limit = pick(squared(seen, seen), axis=1).max()
    assert pick(squared(sent[None], seen)) <= limit
    beyond = mean - 1.001 * gamma * direction
    assert gamma > 0
    assert pick(squared(beyond[None], seen)) > limit


def test_equal_messages_leave_no_room():
    x = np.ones((cases.N, D), np.float32)
    for attack in (attacks.min_max(), attacks.min_sum(deviation="std")):
        np.testing.assert_allclose(forge(attack, x)[0], x, rtol=1e-6)


# Fang


def np_krum_takes(sent, honest, copies, f):
    """Krum itself, with n - f - 2 neighbours, on all messages."""
    everything = np.concatenate([np.repeat(sent[None], copies, 0), honest])
    n = len(everything)
    apart = squared(everything, everything)
    scores = [
        np.sort(np.delete(apart[i], i))[: max(n - f - 2, 1)].sum() for i in range(n)
    ]
    return min(scores[:copies]) < min(scores[copies:])


@pytest.mark.parametrize(("n", "copies", "f"), [(9, 2, None), (12, 5, 3), (11, 1, 2)])
def test_fang_halves_until_krum_takes_it(n, copies, f):
    x = messages(5, n=n, offset=1.0)
    malicious = np.arange(n) < copies
    everyone = {"mask": np.ones(n, bool), "weights": np.ones(n), "ids": np.arange(n)}
    attack = attacks.fang(num_malicious=f)
    sent = forge(attack, x, malicious, **everyone)[0][0].astype(float)
    honest = x[copies:].astype(float)
    signs = np.sign(honest.mean(axis=0))
    assumed = copies if f is None else f
    apart = np.sqrt(squared(honest, honest))
    sums = [
        np.sort(np.delete(row, i))[: n - assumed - 2].sum()
        for i, row in enumerate(apart)
    ]
    strength = min(sums) / max(n - 2 * assumed - 1, 1)
    strength = (strength + np.linalg.norm(honest, axis=1).max()) / np.sqrt(D)
    while not np_krum_takes(-strength * signs, honest, copies, assumed):
        strength /= 2
        if strength < 1e-5:
            break
    np.testing.assert_allclose(sent, -strength * signs, rtol=1e-4)


def test_a_tie_with_an_honest_message_is_not_taken():
    apart = np.array([[0, 1.0], [1, 0]])
    ask = {"honest": jnp.ones(2, bool), "copies": jnp.int32(1)}
    for away, taken in [([1.0, 1.0], False), ([0.5, 1.0], False), ([0.5, 0.6], True)]:
        found = krum_takes(
            jnp.asarray(apart), jnp.asarray(away), neighbors=jnp.int32(2), **ask
        )
        # Two neighbours: the honest ones have away + 1, the forged one the sum of away.
        expected = sum(away) < min(1 + away[0], 1 + away[1])
        assert bool(found) == expected == taken


def test_fang_lies_just_beyond_the_honest_messages():
    sent = forge(attacks.fang(form="trimmed_mean", spread=3), X)[0][MALICIOUS]
    low, high = SEEN.min(axis=0), SEEN.max(axis=0)
    for value, j in itertools.product(sent, range(D)):
        if MEAN[j] >= 0:
            far = low[j] / 3 if low[j] > 0 else low[j] * 3
            assert far - 1e-5 <= value[j] <= low[j] + 1e-5
        else:
            far = high[j] * 3 if high[j] > 0 else high[j] / 3
            assert high[j] - 1e-5 <= value[j] <= far + 1e-5
    assert (sent[0] != sent[1]).all()
    sent = forge(attacks.fang(form="trimmed_mean", knowledge="colluders"), X)[0][
        MALICIOUS
    ]
    mean, std = OWN.mean(axis=0), OWN.std(axis=0, ddof=1)
    away = -np.sign(mean) * (sent - mean) / std
    assert away.min() >= 3 - 1e-4
    assert away.max() <= 4 + 1e-4
    assert away.std() > 0.1


# Mimic


def np_mimic(stacks, ids, honest, warmup, start):
    """The authors' loop; returns the client that is copied in each round."""
    mean = z = target = None
    copied = []
    for t, x in enumerate(stacks):
        seen = x[honest].astype(float)
        if t < warmup:
            now = seen.mean(axis=0)
            mean = now if t == 0 else t / (t + 1) * mean + now / (t + 1)
            old = start if t == 0 else z
            pull = sum((g - mean) @ old * (g - mean) for g in seen)
            pull /= np.linalg.norm(pull)
            z = pull if t == 0 else t / (t + 1) * z + pull / (t + 1)
            z /= np.linalg.norm(z)
            target = ids[honest][np.argmax(seen @ z)]
        copied.append(target)
    return copied, mean, z


def test_mimic_learns_as_the_authors_code_does():
    stacks = [messages(seed) for seed in range(6)]
    # One client stands out, the same in every round.
    for x in stacks:
        x[5] += 4 * np.sin(np.arange(D))
    attack = attacks.mimic(warmup=4)
    state = attack.init(cases.tree(np.zeros(D, np.float32)))
    start = cases.vector(
        rows.normal_like(cases.context().key, cases.tree(np.zeros(D, np.float32)))
    )
    copied, mean, z = np_mimic(stacks, cases.IDS, HONEST, 4, start.astype(float))
    for t, x in enumerate(stacks):
        forged, state = forge(attack, x, state=state, round=t)
        row = np.flatnonzero(copied[t] == cases.IDS)[0]
        np.testing.assert_array_equal(forged[MALICIOUS], [x[row], x[row]])
    assert state.target == copied[-1]
    assert int(state.seen) == 6
    np.testing.assert_allclose(cases.vector(state.mean), mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cases.vector(state.direction), z, rtol=1e-3, atol=1e-4)
    # The target is known by its id, wherever it stands; without it another is copied.
    assert copied[-1] == cases.IDS[3]
    turned = np.roll(cases.IDS, 3)
    forged, _ = forge(attack, X, MALICIOUS, state=state, ids=turned, round=6)
    np.testing.assert_array_equal(forged[1], X[6])
    absent = cases.MASK & (copied[-1] != cases.IDS)
    forged, after = forge(attack, X, state=state, mask=absent, round=6)
    along = np.where(absent & ~MALICIOUS, X @ z, -np.inf)
    np.testing.assert_array_equal(forged[1], X[np.argmax(along)])
    assert after.target == copied[-1]


def test_mimic_without_a_warmup_copies_the_first_honest_client_for_good():
    attack = attacks.mimic(warmup=0)
    first = np.flatnonzero(HONEST)[0]
    forged, state = forge(attack, X)
    np.testing.assert_array_equal(forged[MALICIOUS], [X[first]] * 2)
    assert state.target == cases.IDS[first]
    turned = np.roll(cases.IDS, 3)
    row = np.flatnonzero(turned == cases.IDS[first])[0]
    assert HONEST[row]
    assert row != first
    forged, after = forge(attack, X, state=state, ids=turned, round=1)
    np.testing.assert_array_equal(forged[MALICIOUS], [X[row]] * 2)
    absent = cases.MASK & (turned != cases.IDS[first])
    forged, after = forge(attack, X, state=after, ids=turned, mask=absent, round=2)
    other = np.flatnonzero(absent & ~MALICIOUS)[0]
    np.testing.assert_array_equal(forged[MALICIOUS], [X[other]] * 2)
    assert after.target == cases.IDS[first]
    assert int(after.seen) == 3


def test_mimic_without_anyone_to_copy_stays_itself():
    attack = attacks.mimic()
    forged, state = forge(attack, X, mask=MALICIOUS)
    np.testing.assert_array_equal(forged, X)
    assert (int(state.seen), int(state.target)) == (0, -1)


# Noise, free riders, sybils


def draws(attack, count=40, **known):
    sent = [forge(attack, X, round=t, **known)[0][MALICIOUS] for t in range(count)]
    return np.array(sent)


def test_noise_has_the_stated_spread_and_is_everyones_own():
    sent = draws(attacks.gaussian(std=0.5))
    z = (sent - MEAN) / 0.5
    assert abs(z.mean()) < 0.15
    assert z.std() == pytest.approx(1, abs=0.1)
    assert abs(np.corrcoef(z[:, 0].ravel(), z[:, 1].ravel())[0, 1]) < 0.2
    again = draws(attacks.gaussian(std=0.5), count=2)
    np.testing.assert_array_equal(again, sent[:2])
    # A client's noise goes with its id, wherever it stands.
    turned = np.roll(cases.IDS, 3)
    flags = np.isin(turned, cases.IDS[MALICIOUS])
    attack = attacks.gaussian(std=0.5, center="zero")
    everyone = np.ones(cases.N, bool)
    here = forge(attack, X, mask=everyone)[0][MALICIOUS]
    there = forge(attack, X, flags, ids=turned, mask=everyone)[0][flags]
    np.testing.assert_array_equal(there, here)


def test_a_free_rider_replays_and_its_noise_falls():
    previous = messages(9)[0]
    assert_sent(attacks.free_rider(replay=0.5), 0.5 * previous, previous=previous)
    assert_sent(attacks.free_rider(), 0)
    attack = attacks.free_rider(replay=0, noise=2, decay=1)
    sent = draws(attack, previous=previous)
    sizes = sent.std(axis=(1, 2)) * (np.arange(40) + 1) / 2
    assert sizes.mean() == pytest.approx(1, abs=0.1)
    assert (sent[:, 0] != sent[:, 1]).all()


def test_sybils_differ_by_their_jitter_alone():
    sent = draws(attacks.sybil(scale=2, jitter=0.1))
    common = 2 * OWN.mean(axis=0)
    size = np.linalg.norm(sent - common, axis=-1) / np.linalg.norm(common)
    assert np.sqrt((size**2).mean()) == pytest.approx(0.1, rel=0.1)
    exact = forge(attacks.sybil(), X)[0][MALICIOUS]
    np.testing.assert_array_equal(exact[0], exact[1])


# Neurotoxin


@pytest.mark.parametrize("masked", [0.0, 0.3, 0.35, 0.99, 1.0])
def test_the_largest_magnitudes_are_masked_whatever_their_sign(masked):
    previous = messages(9)[0]
    previous[3] = -50.0
    sent = forge(attacks.neurotoxin(masked=masked), X, previous=previous)[0][MALICIOUS]
    count = int(masked * D + 1e-3)
    hidden = np.argsort(-np.abs(previous))[:count]
    expected = OWN.copy()
    expected[:, hidden] = 0
    np.testing.assert_allclose(sent, expected, rtol=1e-6)


def test_equal_magnitudes_at_the_limit_are_kept():
    found = jax.jit(own._magnitude_exceeded_by)
    values = {"a": jnp.array([1.0, 2.0, 2.0, 2.0]), "b": jnp.array([0.0, 5.0])}
    assert found(values, 0.5) == 2.0
    assert found(values, 0.0) == 5.0
    assert found(values, 1.0) == 0.0
    zeros = {"a": jnp.zeros(4)}
    assert found(zeros, 0.5) == 0.0


# Rounds and sampled attackers


def test_an_attack_rests_outside_its_rounds():
    attack = attacks.during(attacks.mimic(warmup=1), start=2, end=4)
    state = attack.init(cases.tree(np.zeros(D, np.float32)))
    for t in range(6):
        forged, state = forge(attack, X, state=state, round=t)
        assert np.array_equal(forged, X) == (t not in (2, 3))
        assert int(state["attack"].seen) == np.clip(t - 1, 0, 2)


def test_sampled_attackers_and_honest_ones_among_the_malicious():
    attack = attacks.during(attacks.ipm(scale=1), share=0.5)
    counts = np.zeros(3)
    for t in range(60):
        forged, _ = forge(attack, X, round=t)
        active = MALICIOUS & (forged != X).any(axis=1)
        counts[active.sum()] += 1
        if active.any():
            # A malicious client that rests counts as honest for what is seen.
            mean = X[cases.MASK & ~active].mean(axis=0)
            np.testing.assert_allclose(forged[active][0], -mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(counts / 60, [0.25, 0.5, 0.25], atol=0.2)


# Statistics of rows


def test_statistics_of_rows_and_inner_products():
    x = messages(2, n=6, d=D, offset=1000.0)
    some = np.array([True, False, True, True, False, True])
    x[1] = np.nan
    seen = x[some].astype(float)
    stacked, flags = cases.tree(x), jnp.asarray(some)
    mean = jax.jit(rows.mean_of)(stacked, flags)
    np.testing.assert_allclose(cases.vector(mean), seen.mean(axis=0), rtol=1e-6)
    for ddof in (0, 1):
        std = jax.jit(rows.deviation_of)(stacked, flags, mean, ddof)
        np.testing.assert_allclose(
            cases.vector(std), seen.std(axis=0, ddof=ddof), rtol=2e-4
        )
    nobody = jnp.zeros(6, bool)
    assert not cases.vector(jax.jit(rows.deviation_of)(stacked, nobody, mean, 1)).any()
    assert not cases.vector(jax.jit(rows.mean_of)(stacked, nobody)).any()
    assert not cases.vector(jax.jit(rows.extremes_of)(stacked, nobody)[0]).any()
    low, high = jax.jit(rows.extremes_of)(stacked, flags)
    np.testing.assert_array_equal(cases.vector(low), seen.min(axis=0))
    np.testing.assert_array_equal(cases.vector(high), seen.max(axis=0))
    other = cases.tree(messages(3)[0])
    gram = np.asarray(jax.jit(rows.gram_around)(stacked, flags, mean, other))
    apart = squared(seen, seen)
    found = np.asarray(rows.squared_distances(jnp.asarray(gram)))[:6, :6]
    np.testing.assert_allclose(found[np.ix_(some, some)], apart, rtol=1e-4, atol=1e-3)
    assert not gram[1].any()


def test_inner_products_in_blocks():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 20_000)).astype(np.float32)
    other = rng.normal(size=20_000).astype(np.float32)
    gram = rows.gram_around(
        jnp.asarray(x), jnp.ones(4, bool), jnp.asarray(x[0]), jnp.asarray(other)
    )
    points = np.concatenate([x - x[0], other[None]]).astype(float)
    np.testing.assert_allclose(gram, points @ points.T, rtol=1e-4, atol=2e-2)
