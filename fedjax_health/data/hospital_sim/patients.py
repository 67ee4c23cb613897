"""Patients: the latent state, and the vitals, labs and codes that the record shows.

The latent state of a stable patient is a stationary vector autoregression in R^4 with
identity covariance and spectral radius .97; a two-state regime adds a mean and more
noise while the patient deteriorates. Beside the true path runs a *forged* one, which
leaves it at the onset of an attack and follows the same law with noise of its own: a
record that is written from the forged path has unchanged marginals, and only its
disagreement with the device's payload gives it away.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_health.data.hospital_sim import constants as c
from fedjax_health.data.hospital_sim import draws
from fedjax_health.data.hospital_sim.attacks import Schedule
from fedjax_health.data.hospital_sim.hierarchy import Hospital

LATENT_DRAWS = 9  # columns of uniforms
CHART_DRAWS = 4 * len(c.VITALS) + 2 * len(c.LABS)


class Latent(NamedTuple):
    """Paths of one patient over ``[length]`` steps.

    Attributes:
      true: ``[length, 4]``.
      forged: ``[length, 4]``; equals ``true`` outside forging attacks.
      worse: ``[length]``, 1 while deteriorating.
      offset: ``[5]``, the patient's own level of each vital, in z.
    """

    true: jax.Array
    forged: jax.Array
    worse: jax.Array
    offset: jax.Array


class Chart(NamedTuple):
    """What the record shows of the body, NaN where nothing was charted.

    Attributes:
      vitals: ``[length, 5]`` in z.
      labs: ``[length, 7]`` in z.
      codes: ``[6]`` one-hot.
    """

    vitals: jax.Array
    labs: jax.Array
    codes: jax.Array


def latent_paths(uniform: jax.Array, schedule: Schedule) -> Latent:
    """Simulates the true and the forged path of one patient.

    Args:
      uniform: ``[1 + length, LATENT_DRAWS]``, the first row for what stays constant.
      schedule: what is done to the patient; forging types are spoofing and tampering.
    """
    length = len(schedule.kind)
    constant = draws.normal(uniform[0])
    noise = draws.normal(uniform[1:, :8]).reshape(length, 2, 4)
    noise = noise @ jnp.asarray(c.NOISE_ROOT.T, jnp.float32)
    switch = uniform[1:, 8]
    forging = (schedule.kind == c.SPOOFING) | (schedule.kind == c.TAMPERING)
    forging = forging & (schedule.strength > 0)
    transition = jnp.asarray(c.TRANSITION, jnp.float32)
    pull = jnp.asarray(
        c.DETERIORATED_MEAN - c.TRANSITION @ c.DETERIORATED_MEAN, jnp.float32
    )

    def step(carry, inputs):
        state, forged, worse = carry
        noise_t, switch_t, forging_t = inputs
        rate = jnp.where(worse > 0, c.RECOVER_RATE, c.DETERIORATE_RATE)
        worse = jnp.where(switch_t < rate, 1.0 - worse, worse)
        drift = worse * pull
        scale = 1.0 + worse * (c.DETERIORATED_NOISE - 1.0)
        state = transition @ state + drift + scale * noise_t[0]
        forged = transition @ forged + drift + scale * noise_t[1]
        forged = jnp.where(forging_t, forged, state)
        return (state, forged, worse), (state, forged, worse)

    carry = (constant[:4], constant[:4], jnp.float32(0.0))
    _, (true, forged, worse) = jax.lax.scan(step, carry, (noise, switch, forging))
    offset = c.OFFSET_SD * constant[4:]
    return Latent(true, forged, worse, offset)


def chart(
    uniform: jax.Array,
    hospital: Hospital,
    department: jax.Array,
    latent: Latent,
    kind: jax.Array,
) -> Chart:
    """Writes the record of one patient; a tampered record follows the forged path.

    Args:
      uniform: ``[1 + length, CHART_DRAWS]``, the first row for what stays constant.
      hospital: its hospital.
      department: [] its department.
      latent: its paths.
      kind: int ``[length]``, the attack type at each step.
    """
    length = len(kind)
    vital_draws = uniform[1:, : 4 * len(c.VITALS)].reshape(length, 4, -1)
    lab_draws = uniform[1:, 4 * len(c.VITALS) :].reshape(length, 2, -1)
    state = jnp.where((kind == c.TAMPERING)[:, None], latent.forged, latent.true)
    norm = jnp.linalg.norm(state, axis=1) - c.NORM_CENTRE
    vitals = state @ jnp.asarray(c.VITAL_LOADINGS.T, jnp.float32) + latent.offset
    vitals += c.VITAL_NOISE * draws.normal(vital_draws[:, 0])
    wrong = vital_draws[:, 1] < c.ARTEFACT_RATE
    spike = c.ARTEFACT_SD * draws.normal(vital_draws[:, 2])
    vitals += jnp.where(wrong, spike, 0.0)
    seen = jax.nn.sigmoid(c.VITAL_CHARTED[0] + c.VITAL_CHARTED[1] * norm)[:, None]
    seen = vital_draws[:, 3] < seen
    labs = state @ jnp.asarray(c.LAB_LOADINGS.T, jnp.float32)
    labs += c.LAB_NOISE * draws.normal(lab_draws[:, 0])
    rate = jnp.asarray(c.LAB_RATE, jnp.float32) * jnp.exp(
        c.LAB_STATE_SLOPE * norm[:, None]
    )
    ordered = lab_draws[:, 1] < -jnp.expm1(-rate)
    before = jnp.mean(latent.true[: c.BURN_IN], axis=0)
    logits = jnp.asarray(c.CODE_BIAS, jnp.float32)[department]
    logits += jnp.asarray(c.CODE_LOADINGS, jnp.float32) @ before
    code = hospital.coding[draws.pick(uniform[0, 0], jax.nn.softmax(logits))]
    return Chart(
        vitals=jnp.where(seen, vitals, jnp.nan),
        labs=jnp.where(ordered, labs, jnp.nan),
        codes=jax.nn.one_hot(code, c.CODES),
    )
