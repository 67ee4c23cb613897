"""The statistics that the specification asks for, in the demo preset."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.data.hospital_sim import PRESETS, build_plan, draws
from fedjax_health.data.hospital_sim import constants as c
from fedjax_health.data.hospital_sim.access import poisson_count
from fedjax_health.data.hospital_sim.traffic import negative_binomial


def test_frozen_constants_keep_the_specified_limits():
    radius = np.abs(np.linalg.eigvals(c.TRANSITION)).max()
    assert radius == pytest.approx(0.97)
    stationary = c.TRANSITION @ c.TRANSITION.T + c.NOISE_ROOT @ c.NOISE_ROOT.T
    np.testing.assert_allclose(stationary, np.eye(4), atol=1e-12)
    assert c.HAWKES_ALPHA / c.HAWKES_BETA <= 0.6
    assert c.ACCESS_ALPHA / c.ACCESS_BETA <= 0.6
    assert np.all(np.abs(c.PHI) < 1)
    assert len(c.IOT_FEATURES) == 16
    assert c.DDOS_FACTOR == (5.0, 50.0)


def test_counts_follow_their_laws():
    uniform = draws.uniforms(jax.random.key(0), (2, 200_000))
    first, second = draws.normal(uniform)
    counts = np.asarray(negative_binomial(first, second, jnp.float32(30.0)))
    assert counts.mean() == pytest.approx(30.0, rel=0.02)
    assert counts.var() == pytest.approx(30.0 + 900.0 / c.DISPERSION, rel=0.05)
    small = np.asarray(poisson_count(uniform[0], jnp.float32(0.8)))
    assert small.mean() == pytest.approx(0.8, rel=0.02)
    assert small.var() == pytest.approx(0.8, rel=0.03)
    pairs = draws.uniforms(jax.random.key(1), (20_000, 2, 4))
    shares = np.asarray(jax.vmap(lambda u: draws.dirichlet(u, 0.3))(pairs))
    np.testing.assert_allclose(shares.sum(1), 1.0, rtol=1e-5)
    # Var of a symmetric Dirichlet share: (k - 1) / (k^2 (k alpha + 1))
    assert shares.var(0).mean() == pytest.approx(3 / (16 * 2.2), rel=0.05)


def test_labs_are_missing_as_specified_and_informative(demo):
    emr = demo.features["emr"]
    has_record = np.isfinite(emr[:, c.EMR_FEATURES.index("code_0")])
    start = len(c.VITALS)
    missing = np.isnan(emr[has_record, start : start + len(c.LABS)]).mean(0)
    assert (missing > 0.60).all()
    assert (missing < 0.95).all()
    normal = has_record & (demo.label == 0) & (demo.client == 2)
    heart = emr[normal, 0]
    centre = np.nanmedian(heart)
    extreme = np.abs(heart - centre) > 1.5 * np.nanstd(heart)
    seen = np.isfinite(emr[normal, start : start + len(c.LABS)]).mean(1)
    assert seen[extreme].mean() > seen[~extreme].mean() + 0.01


def test_availability_shares(demo):
    plan = build_plan(PRESETS["demo"], 0)
    no_iot = np.isnan(demo.features["iot"]).all(1)
    no_emr = np.isnan(demo.features["emr"]).all(1)
    assert not (no_iot & no_emr).any()
    by_client = [
        (no_iot[demo.client == k].all(), no_emr[demo.client == k].all())
        for k in range(demo.num_clients)
    ]
    np.testing.assert_array_equal([pair[0] for pair in by_client], ~plan.has_iot)
    np.testing.assert_array_equal([pair[1] for pair in by_client], ~plan.has_emr)
    full = plan.has_iot & plan.has_emr
    assert full.sum() >= 5
    # An imaging device has no record and no payload; a lost sample has no traffic.
    imaging = np.isnan(demo.features["iot"][:, 10]) & ~no_iot
    both = full[demo.client] & ~imaging & (demo.entity % c.PATIENT_STRIDE >= 0)
    lost = (no_iot | no_emr)[both].mean()
    assert lost == pytest.approx(0.15, abs=0.015)


def test_prevalence_mix_and_the_clean_hospital(demo):
    assert demo.label.mean() == pytest.approx(0.05, abs=0.015)
    kinds = demo.attack[demo.label > 0]
    for group, share in zip(
        (c.IOT_ATTACKS, c.EMR_ATTACKS, c.JOINT_ATTACKS), c.VISIBILITY, strict=True
    ):
        assert np.isin(kinds, group).mean() == pytest.approx(share, abs=0.08)
    assert set(kinds) == set(range(1, len(c.ATTACK_NAMES)))
    counts = np.bincount(demo.client, demo.label, demo.num_clients)
    assert (counts == 0).sum() == 1


def test_sizes_are_skewed(demo):
    patients = build_plan(PRESETS["demo"], 0).patients
    assert patients.max() > 2.5 * np.median(patients) * 0.8
    assert patients.min() >= PRESETS["demo"].patients_per_hospital[0]
