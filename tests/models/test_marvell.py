"""Marvell against a search in all four variances, and against plain noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from fedjax_health.metrics import host
from fedjax_health.models import marvell

KEY = jax.random.key(0, impl="threefry2x32")


def gaussian_kl(m, S, n, T):
    """Returns KL(N(m, S) | N(n, T))."""
    inverse = np.linalg.inv(T)
    d = n - m
    logs = np.linalg.slogdet(T)[1] - np.linalg.slogdet(S)[1]
    return 0.5 * (np.trace(inverse @ S) + d @ inverse @ d - len(m) + logs)


def test_divergence_is_that_of_the_covariances():
    rng = np.random.default_rng(0)
    d = rng.normal(size=4)
    along = np.outer(d, d) / (d @ d)
    u, v = 0.3, 0.8
    noise = marvell.LabelNoise(*(jnp.float32(x) for x in (1.0, 0.2, 0.5, 0.1)))
    covariances = []
    for variance, parallel, across in ((u, 1.0, 0.2), (v, 0.5, 0.1)):
        added = across * np.eye(4) + (parallel - across) * along
        covariances.append(variance * np.eye(4) + added)
    S, T = covariances
    both = gaussian_kl(0 * d, S, d, T) + gaussian_kl(d, T, 0 * d, S)
    found = marvell.divergence(noise, u, v, d @ d, 4)
    assert float(found) == pytest.approx(both, rel=1e-5)


def least(u, v, gap, p, width, power):
    """Returns the least divergence over all four variances, from several starts.

    In logarithms of shares of the power, so that they stay above 0.
    """
    prices = np.array([1 - p, (1 - p) * (width - 1), p, p * (width - 1)])

    def variances(z):
        share = np.exp(z - np.max(z))
        return power * gap * share / np.sum(share) / np.where(prices > 0, prices, 1)

    def value(z):
        x = variances(z)
        a_0, b_0, a_1, b_1 = u + x[0], u + x[1], v + x[2], v + x[3]
        across = (width - 1) * (b_0 / b_1 + b_1 / b_0 - 2)
        return 0.5 * (a_0 / a_1 + a_1 / a_0 - 2 + gap / a_0 + gap / a_1 + across)

    starts = np.array([[0, -8, 0, -8], [0, 0, 0, -8], [0, -8, 0, 0]], float)
    return min(optimize.minimize(value, z, method="L-BFGS-B").fun for z in starts)


CASES = [
    # u, v, gap, share of label 1, width, power
    (1.0, 1.0, 1.0, 0.5, 8, 1.0),
    (0.1, 2.0, 1.0, 0.5, 8, 4.0),
    (2.0, 0.1, 3.0, 0.1, 16, 2.0),
    (0.01, 0.02, 5.0, 0.02, 32, 10.0),
    (1e-4, 1.0, 1.0, 0.3, 64, 0.5),
    (0.5, 0.2, 0.7, 0.4, 1, 3.0),
    (1e-8, 1e-8, 1.0, 0.5, 4, 1.0),
    (3e-12, 1e-11, 2e-11, 0.2, 8, 2.0),
]


@pytest.fixture(scope="module")
def solve():
    return jax.jit(marvell.label_noise)


@pytest.mark.parametrize("case", CASES)
def test_noise_is_of_least_divergence_and_of_its_power(case, solve):
    u, v, gap, p, width, power = case
    found = solve(u, v, gap, p, width=width, power=power)
    x = [float(part) for part in found]
    assert min(x) >= 0
    spent = (1 - p) * (x[0] + (width - 1) * x[1]) + p * (x[2] + (width - 1) * x[3])
    assert spent == pytest.approx(power * gap, rel=1e-4)
    reached = float(marvell.divergence(found, u, v, gap, width))
    assert reached <= least(u, v, gap, p, width, power) * 1.002 + 1e-6
    plain = power * gap / width
    isotropic = marvell.LabelNoise(*[jnp.float32(plain)] * 4)
    assert reached < float(marvell.divergence(isotropic, u, v, gap, width)) or (
        width == 1
    )


def test_more_power_tells_less(solve):
    values = [
        float(
            marvell.divergence(
                solve(0.1, 0.4, 1.0, 0.2, width=8, power=power), 0.1, 0.4, 1.0, 8
            )
        )
        for power in (0.1, 1.0, 10.0, 100.0)
    ]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.1 < values[0]


def toy(rows=4000, width=8):
    """Returns cotangents of two classes and their labels."""
    rng = np.random.default_rng(1)
    labels = rng.random(rows) < 0.3
    mean = np.zeros(width)
    mean[2] = 2.0
    spread = np.where(labels, 0.8, 0.2)[:, None]
    values = mean * (labels[:, None] - 0.3) + spread * rng.normal(size=(rows, width))
    return (values * 1e-3).astype(np.float32), labels


def protect(values, labels, counts=None, power=4.0):
    counts = np.ones(len(labels), bool) if counts is None else counts
    hide = jax.jit(marvell.hide_labels, static_argnames="power")
    return np.asarray(
        hide(*(jnp.asarray(a) for a in (values, labels, counts)), KEY, power=power)
    )


def test_noise_of_a_batch_has_the_power_and_the_covariances():
    values, labels = toy()
    noise = (protect(values, labels) - values).astype(float)
    m_0, m_1 = values[~labels].mean(0), values[labels].mean(0)
    gap = np.sum((m_1 - m_0) ** 2)
    assert np.mean(np.sum(noise**2, axis=1)) == pytest.approx(4 * gap, rel=0.06)
    d = (m_1 - m_0) / np.sqrt(gap)
    u = np.mean((values[~labels] - m_0) ** 2) / gap
    v = np.mean((values[labels] - m_1) ** 2) / gap
    wanted = marvell.label_noise(u, v, 1.0, labels.mean(), width=8, power=4.0)
    for label, parallel, across in (
        (False, wanted.parallel_0, wanted.across_0),
        (True, wanted.parallel_1, wanted.across_1),
    ):
        of = noise[labels == label] / np.sqrt(gap)
        along = of @ d
        rest = of - along[:, None] * d
        assert np.mean(along**2) == pytest.approx(float(parallel), rel=0.12, abs=1e-3)
        assert np.sum(rest**2) / len(of) / 7 == pytest.approx(
            float(across), rel=0.12, abs=1e-3
        )


def test_it_tells_labels_apart_less_than_plain_noise_of_the_same_power():
    values, labels = toy()
    sent = protect(values, labels)
    rng = np.random.default_rng(2)
    power = np.mean(np.sum((sent - values) ** 2, axis=1))
    plain = values + np.sqrt(power / 8) * rng.normal(size=values.shape)

    def direction(rows):
        return host.auroc(rows[:, 2], labels)

    assert direction(values) > 0.99
    assert direction(sent) < direction(plain) - 0.1
    assert direction(sent) < 0.8


def test_batches_with_nothing_to_hide_get_no_noise():
    values, labels = toy(20)
    none = np.zeros(20, bool)
    for label in (none, ~none):
        np.testing.assert_array_equal(protect(values, label), values)
    np.testing.assert_array_equal(protect(values * 0, labels), values * 0)
    same = np.ones_like(values)
    np.testing.assert_allclose(protect(same, labels), same, rtol=1e-6)
    # A class whose rows do not count is no class.
    np.testing.assert_array_equal(protect(values, labels, ~labels), values)
