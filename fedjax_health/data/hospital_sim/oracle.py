"""The oracle: a causal Bayes filter that knows how the data were generated.

At each step every attack type gets a log-likelihood ratio against "normal", and a
hidden Markov filter with the true onset rates and the mean duration joins them over
time. The score is the posterior log-odds of any attack given the past and the present
of that stream. Evidence, by where the attack shows:

- IoT: Gaussian ratio of the innovations (true Phi, W, intensity and state), with the
  count noise as a common factor, averaged over half and full strength.
- EMR: exact Poisson ratio of the marked events (true intensities), with export sizes
  and note delays.
- Both: ratio of the differences between payload and charted vitals, a wide against a
  narrow Gaussian with artefacts. It is zero in the negative control, where payload
  and record have nothing in common.

A modality that was erased from the data gives no evidence.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.data.hospital_sim import constants as c
from fedjax_health.data.hospital_sim.access import STRENGTHS
from fedjax_health.data.hospital_sim.attacks import attack_rate, mean_duration
from fedjax_health.data.hospital_sim.hierarchy import Hospital

_COUNT_VARIANCE = 1.0 / c.DISPERSION + 0.05  # of log1p N given its intensity
_DIFFERENCE_NORMAL = 0.30  # standard deviations of payload minus vital, in z
_DIFFERENCE_FORGED = (0.8, 1.4)
_LIMITS = (-6.0, 12.0)  # of one step's evidence, which is not independent over time


def _iot_signatures() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns projections [s, 16], their constants [s] and the attack of each row."""
    use = np.ones(16)
    use[c.PAYLOAD] = 0.0
    variance = c.IOT_NOISE**2
    # Sherman-Morrison inverse of diag(variance) + v w w'
    scaled = use * c.W_COUNT / variance
    inverse = np.diag(use / variance) - _COUNT_VARIANCE * np.outer(scaled, scaled) / (
        1.0 + _COUNT_VARIANCE * (c.W_COUNT * scaled).sum()
    )
    rows, kinds = [], []
    for kind in c.IOT_ATTACKS:
        shapes = [c.IOT_SHIFT[kind]]
        if kind == c.RANSOMWARE:
            shapes.append(c.IOT_SHIFT[kind] + c.BURST_SHIFT)
        for shape in shapes:
            for strength in STRENGTHS:
                shift = strength * shape * c.IOT_NOISE
                if kind == 1:
                    shift = shift + c.W_COUNT * math.log(1 + 15 * strength)
                rows.append(shift)
                kinds.append(kind)
    signatures = np.stack(rows)
    projections = signatures @ inverse
    constants = 0.5 * np.sum(projections * signatures, axis=1)
    return projections.astype(np.float32), constants.astype(np.float32), np.array(kinds)


def iot_evidence(innovations: jax.Array) -> jax.Array:
    """Returns ``[length, 4]`` log-likelihood ratios of the IoT attacks."""
    projections, constants, kinds = _iot_signatures()
    ratios = innovations @ projections.T - constants
    columns = [
        jax.nn.logsumexp(ratios[:, kinds == kind], axis=1)
        - math.log(sum(kinds == kind))
        for kind in c.IOT_ATTACKS
    ]
    return jnp.stack(columns, axis=1)


def joint_evidence(payload: jax.Array, vitals: jax.Array) -> jax.Array:
    """Returns ``[length]`` evidence in the disagreement of payload and record.

    Args:
      payload: ``[length, 4]`` in z, NaN where not observed.
      vitals: ``[length, 4]`` in z, NaN where not charted.
    """
    difference = payload - vitals
    seen = jnp.isfinite(difference)
    difference = jnp.where(seen, difference, 0.0)

    def log_density(deviation):
        body = -0.5 * (difference / deviation) ** 2 - math.log(deviation)
        spike = math.hypot(deviation, c.ARTEFACT_SD)
        tail = -0.5 * (difference / spike) ** 2 - math.log(spike)
        share = c.ARTEFACT_RATE
        joined = jnp.logaddexp(math.log(1 - share) + body, math.log(share) + tail)
        return jnp.sum(jnp.where(seen, joined, 0.0), axis=1)

    forged = jnp.stack([log_density(width) for width in _DIFFERENCE_FORGED])
    forged = jax.nn.logsumexp(forged, axis=0) - math.log(len(_DIFFERENCE_FORGED))
    return forged - log_density(_DIFFERENCE_NORMAL)


def oracle_score(
    hospital: Hospital,
    imaging: jax.Array,
    iot: jax.Array,
    emr: jax.Array,
    joint: jax.Array,
) -> jax.Array:
    """Filters the evidence of one stream into the posterior log-odds of an attack.

    Args:
      hospital: the stream's hospital, whose attack mix is known to the oracle.
      imaging: [] whether the stream is an imaging device.
      iot: ``[length, 4]`` evidence, 0 where IoT is not observed.
      emr: ``[length, 3]`` evidence, 0 where EMR is not observed.
      joint: ``[length]`` evidence, 0 where either is not observed.

    Returns:
      ``[length]`` log-odds.
    """
    groups = (c.IOT_ATTACKS, c.EMR_ATTACKS, c.JOINT_ATTACKS)
    shares = jnp.where(imaging, jnp.array([1.0, 0.0, 0.0]), hospital.visibility)
    share = jnp.concatenate(
        [jnp.full(len(group), shares[part]) for part, group in enumerate(groups)]
    )
    prior = share * hospital.attack_mix[1:] * (1.0 - c.DORMANT) + 1e-5
    leave = 1.0 / mean_duration()
    enter = attack_rate(hospital.prevalence)
    both = jnp.stack([joint, joint], axis=1)
    evidence = jnp.clip(jnp.concatenate([iot, emr, both], axis=1), *_LIMITS)
    gain = jnp.exp(evidence)

    def step(weights, gain_t):
        normal, attacks = weights
        now = attacks.sum()
        attacks = (1.0 - leave) * attacks + enter * normal * prior
        normal = (1.0 - enter * prior.sum()) * normal + leave * now
        attacks = attacks * gain_t
        total = normal + attacks.sum()
        score = jnp.log(attacks.sum()) - jnp.log(normal)
        return (normal / total, attacks / total), score

    start = (jnp.float32(1.0), jnp.zeros(len(c.ATTACK_NAMES) - 1, jnp.float32))
    return jax.lax.scan(step, start, gain)[1]
