"""Traffic of one device: packet counts, the 16 IoT features and their innovations.

lambda_t = lambda_type (1 + a cos(2 pi (t - phi_h) / 1440)) exp(gamma norm(s_t))
           + sum over past benign counts of alpha exp(-beta dt),
N_t negative binomial around it, x_t = Phi x_{t-1} + W [log1p N_t; s_t] + noise.
A flood multiplies the counts after they were drawn and excites nothing.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_health.data.hospital_sim import constants as c
from fedjax_health.data.hospital_sim import draws
from fedjax_health.data.hospital_sim.attacks import Schedule
from fedjax_health.data.hospital_sim.hierarchy import Hospital
from fedjax_health.data.hospital_sim.patients import Latent
from fedjax_health.data.hospital_sim.settings import SimSettings

TRAFFIC_DRAWS = 18  # columns of uniforms
_BENIGN_SHARE = c.HAWKES_ALPHA / (math.exp(c.HAWKES_BETA) - 1.0)  # branching ratio


class Traffic(NamedTuple):
    """Traffic of one device over ``[length]`` steps.

    Attributes:
      features: ``[length, 16]`` as deviations from the device type's centre (payload
        in z), NaN for the payload of imaging devices.
      innovations: ``[length, 16]``, the part that the past, the benign intensity and
        the true state do not explain.
      counts: ``[length]``.
      intensity: ``[length]``, of benign packets.
    """

    features: jax.Array
    innovations: jax.Array
    counts: jax.Array
    intensity: jax.Array


def negative_binomial(
    gamma_normal: jax.Array, poisson_normal: jax.Array, mean: jax.Array
) -> jax.Array:
    """Returns counts of a Gamma-Poisson mixture from two standard normals.

    Args:
      gamma_normal: drives the Gamma mixture.
      poisson_normal: drives the Poisson count.
      mean: of the counts; their variance is mean + mean^2 / DISPERSION.
    """
    mixing = draws.gamma(gamma_normal, c.DISPERSION) / c.DISPERSION
    return draws.poisson(poisson_normal, mean * mixing)


def replay_lags(state: jax.Array) -> jax.Array:
    """Returns int ``[length]``: the lag whose vitals are nearest to those of a step.

    The attacker starts the repeated window where it fits the present one, so that no
    seam shows in the traffic alone.
    """
    vitals = state @ jnp.asarray(c.VITAL_LOADINGS[:4].T, jnp.float32)
    lags = jnp.arange(*c.REPLAY_LAG)
    past = jnp.arange(len(state))[:, None] - lags
    distance = jnp.sum((vitals[:, None] - vitals[jnp.maximum(past, 0)]) ** 2, -1)
    return lags[jnp.argmin(jnp.where(past >= 0, distance, jnp.inf), axis=1)]


def simulate_traffic(
    settings: SimSettings,
    uniform: jax.Array,
    hospital: Hospital,
    device_type: jax.Array,
    latent: Latent,
    lags: jax.Array,
    schedule: Schedule,
) -> Traffic:
    """Simulates one device.

    Args:
      settings: static; ``link`` False severs the traffic from the patient.
      uniform: ``[length, TRAFFIC_DRAWS]``.
      hospital: its hospital.
      device_type: [] index into ``constants.DEVICE_TYPES``.
      latent: the patient's paths.
      lags: from ``replay_lags``.
      schedule: what is done to the unit.
    """
    length = len(schedule.kind)
    imaging = device_type == len(c.DEVICE_TYPES) - 1
    linked = jnp.where(imaging, 0.0, 1.0 if settings.link else 0.0)
    time = jnp.arange(length) - c.BURN_IN
    daily = jnp.cos(2 * jnp.pi * (time - hospital.phase) / 1440)
    base = jnp.asarray(c.TRAFFIC_RATE, jnp.float32)[device_type]
    norm = jnp.linalg.norm(latent.true, axis=1)
    outside = base * (1.0 + c.DIURNAL * daily) * jnp.exp(linked * c.GAMMA * norm)
    reference = jnp.log1p(base / (1.0 - _BENIGN_SHARE))
    noise = draws.normal(uniform)
    width = jnp.asarray(c.IOT_NOISE, jnp.float32)
    width = width.at[c.PAYLOAD].multiply(
        jnp.asarray(c.PAYLOAD_NOISE_TYPE, jnp.float32)[device_type]
    )
    shift = jnp.asarray(c.IOT_SHIFT, jnp.float32)[schedule.kind]
    burst = (schedule.kind == c.RANSOMWARE) & (schedule.progress >= c.BURST_START)
    shift += burst[:, None] * jnp.asarray(c.BURST_SHIFT, jnp.float32)
    shift *= schedule.strength[:, None] * width
    flood = 1.0 + (schedule.kind == 1) * (schedule.factor - 1.0) * schedule.strength
    blend = c.FORGED_BLEND * jnp.minimum(schedule.strength, 1.0)
    blend = jnp.where(schedule.kind == c.SPOOFING, blend, 0.0)[:, None]
    shown = (1.0 - blend) * latent.true + blend * latent.forged
    weight = jnp.asarray(c.W_STATE.T, jnp.float32)
    driven = linked * (shown @ weight)
    expected_state = linked * (latent.true @ weight)
    phi = jnp.asarray(c.PHI, jnp.float32)[device_type]
    w_count = jnp.asarray(c.W_COUNT, jnp.float32)
    decay = math.exp(-c.HAWKES_BETA)

    def step(carry, inputs):
        excitation, previous = carry
        outside_t, noise_t, added_t, flood_t, driven_t, expected_t = inputs
        mean = outside_t + excitation
        benign = negative_binomial(noise_t[16], noise_t[17], mean)
        count = jnp.floor(benign * flood_t)
        excitation = decay * (excitation + c.HAWKES_ALPHA * benign)
        traffic = w_count * (jnp.log1p(count) - reference)
        value = phi * previous + traffic + driven_t + added_t
        usual = jnp.log1p(mean) - 0.5 * (1.0 / c.DISPERSION + 1.0 / mean) - reference
        innovation = value - phi * previous - w_count * usual - expected_t
        return (excitation, value), (value, innovation, count, mean)

    carry = (base * _BENIGN_SHARE, jnp.zeros(16, jnp.float32))
    added = width * noise[:, :16] + shift
    inputs = (outside, noise, added, flood, driven, expected_state)
    _, (features, innovations, counts, intensity) = jax.lax.scan(step, carry, inputs)
    replayed = (schedule.kind == c.REPLAY) & (schedule.strength > 0)
    source = jnp.maximum(jnp.arange(length) - lags[schedule.onset], 0)
    source = jnp.where(replayed, source, jnp.arange(length))
    payload = features[source, c.PAYLOAD] + linked * latent.offset[:4]
    features = features.at[:, c.PAYLOAD].set(payload)
    absent = imaging & (jnp.arange(16) >= c.PAYLOAD.start) & (jnp.arange(16) < 15)
    features = jnp.where(absent, jnp.nan, features)
    return Traffic(features, innovations, counts, intensity)
