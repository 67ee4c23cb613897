"""Access events on the record of one patient, and the evidence in them.

Events are marked with type, role, relation to the patient and shift; each mark is a
Poisson stream given the past. Events of treating staff on shift excite one another
(an encounter): excitation decays by exp(-beta), alpha / beta = .4 (Hawkes 1971).
Attacks add events to streams that are rare otherwise.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.data.hospital_sim import constants as c
from fedjax_health.data.hospital_sim import draws
from fedjax_health.data.hospital_sim.attacks import Schedule

STREAMS = len(c.EVENTS) * len(c.ROLES) * len(c.RELATION) * len(c.SHIFT)
ACCESS_DRAWS = STREAMS + 2  # columns of uniforms
STRENGTHS = (0.5, 1.0)  # at which a likelihood ratio is evaluated and averaged
_LARGEST_COUNT = 7  # of one stream in one minute


class Access(NamedTuple):
    """Events of one patient.

    Attributes:
      features: ``[length, 13]``, columns ``constants.ACCESS``; the delay of notes is
        NaN in a step without notes.
      evidence: ``[length, 3, 2]``, log-likelihood ratio of each EMR attack at each of
        ``STRENGTHS`` against none.
    """

    features: jax.Array
    evidence: jax.Array


def _stream_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    shape = (len(c.EVENTS), len(c.ROLES), len(c.RELATION), len(c.SHIFT))
    role = c.EVENT_RATE[:, None] * c.EVENT_ROLE
    base = np.einsum("er,l,s->erls", role, c.RELATION, c.SHIFT)
    encounter = np.zeros(shape)
    encounter[:, :, 0, 0] = base[:, :, 0, 0] / base[:, :, 0, 0].sum()
    added = np.zeros((len(c.ACCESS_ATTACKS), *shape))
    for row, (rate, event, roles, relations, shifts) in enumerate(c.ACCESS_ATTACKS):
        added[row, event] = rate * np.einsum("r,l,s->rls", roles, relations, shifts)
    event, role, relation, shift = np.indices(shape)
    columns = [event == number for number in range(len(c.EVENTS))]
    columns += [role == number for number in range(len(c.ROLES))]
    columns += [relation > 0, relation == 2, shift == 1]
    sums = np.stack([column.reshape(-1) for column in columns], axis=1)
    return (
        base.reshape(-1).astype(np.float32),
        encounter.reshape(-1).astype(np.float32),
        added.reshape(len(c.ACCESS_ATTACKS), -1).astype(np.float32),
        sums.astype(np.float32),
    )


def poisson_count(uniform: jax.Array, rate: jax.Array) -> jax.Array:
    """Returns Poisson counts by inversion, truncated at 7; for rates below about 2."""
    term = jnp.exp(-rate)
    total = term
    count = (uniform > total).astype(jnp.float32)
    for number in range(1, _LARGEST_COUNT):
        term = term * rate / number
        total = total + term
        count += uniform > total
    return count


def simulate_access(
    uniform: jax.Array, factor: jax.Array, schedule: Schedule
) -> Access:
    """Simulates the events of one patient.

    Args:
      uniform: ``[length, ACCESS_DRAWS]``.
      factor: [] of the base rates in the patient's department.
      schedule: what is done to the patient.
    """
    base, encounter, added, sums = _stream_tables()
    size_noise = draws.normal(uniform[:, STREAMS:])
    attack = schedule.kind[:, None] == jnp.asarray(c.EMR_ATTACKS)
    strength = jnp.where(attack, schedule.strength[:, None], 0.0)
    decay = float(np.exp(-c.ACCESS_BETA))
    strengths = jnp.asarray(STRENGTHS, jnp.float32)

    def step(excitation, inputs):
        uniform_t, strength_t = inputs
        normal = factor * base + excitation * encounter
        count = poisson_count(uniform_t, normal + strength_t @ added)
        ratio = strengths[None, :, None] * added[:, None, :] / normal
        evidence = jnp.log1p(ratio) @ count - strengths * added.sum(-1, keepdims=True)
        visits = count @ (encounter > 0).astype(np.float32)
        excitation = decay * (excitation + c.ACCESS_ALPHA * visits)
        return excitation, (count @ sums, evidence)

    _, (counts, evidence) = jax.lax.scan(
        step, jnp.float32(0.0), (uniform[:, :STREAMS], strength)
    )
    events, bulk, late = counts[:, :5], strength[:, 1], strength[:, 2]
    records = c.EXPORT_LOG + c.EXPORT_BULK * bulk + c.EXPORT_SD * size_noise[:, 0]
    delay = c.NOTE_LOG + c.NOTE_BACKDATED * late + c.NOTE_SD * size_noise[:, 1]

    def size_ratio(value, mean, extra, deviation, seen):
        shift = extra * strengths
        ratio = shift * (value[:, None] - mean - 0.5 * shift) / deviation**2
        return jnp.where(seen[:, None], ratio, 0.0)

    exported, noted = events[:, c.EXPORT] > 0, events[:, c.NOTE] > 0
    evidence = evidence.at[:, 1].add(
        size_ratio(records, c.EXPORT_LOG, c.EXPORT_BULK, c.EXPORT_SD, exported)
    )
    evidence = evidence.at[:, 2].add(
        size_ratio(delay, c.NOTE_LOG, c.NOTE_BACKDATED, c.NOTE_SD, noted)
    )
    columns = (
        counts,
        jnp.where(exported, records, 0.0)[:, None],
        jnp.where(noted, delay, jnp.nan)[:, None],
    )
    return Access(jnp.concatenate(columns, axis=1), evidence)
