"""Campaigns of a hospital and the attack schedule of each unit.

Campaigns arrive as a Poisson process per hospital. Each has a type, an onset, up to
three targets in one department that are reached one after the other, and for each
target a log-normal duration, an amplitude and a ramp. Targets are uniform over the
units, onsets uniform over time, and a campaign takes hours from one target to the
next, so that neither ids nor time give a label away.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.core.rng import Key
from fedjax_health.data.hospital_sim import constants as c
from fedjax_health.data.hospital_sim import draws
from fedjax_health.data.hospital_sim.hierarchy import Hospital, max_units
from fedjax_health.data.hospital_sim.settings import SimSettings

_GOLDEN, _SILVER, _BRONZE = 0.6180339887, 0.4142135624, 0.3027756377


class Campaigns(NamedTuple):
    """Attacks on single targets, flattened over campaigns: all arrays ``[attacks]``.

    Attributes:
      unit: the target, -1 where there is none.
      onset: step, counted from the start of the burn-in.
      duration: steps.
      kind: attack type on a patient.
      iot_kind: attack type on an imaging device, which has no record.
      amplitude: 0 for a dormant attack.
      factor: of the packet counts under DDoS.
    """

    unit: jax.Array
    onset: jax.Array
    duration: jax.Array
    kind: jax.Array
    iot_kind: jax.Array
    amplitude: jax.Array
    factor: jax.Array


class Schedule(NamedTuple):
    """What is done to one unit at each step of ``[BURN_IN + steps]``.

    Attributes:
      kind: attack type, 0 where there is none.
      strength: ramp times amplitude; 0 for dormant attacks.
      onset: first step of the attack that is on.
      progress: share of its duration that is over.
      factor: of the packet counts under DDoS.
    """

    kind: jax.Array
    strength: jax.Array
    onset: jax.Array
    progress: jax.Array
    factor: jax.Array


def mean_duration() -> float:
    """Returns the mean of the log-normal duration, in steps (clipping moves it < 1)."""
    return c.DURATION_MEDIAN * math.exp(c.DURATION_SIGMA**2 / 2)


def attack_rate(prevalence: Any) -> Any:
    """Returns the attacks offered to a unit per step that yield a prevalence.

    An attack that would start during another, or within the minimal gap after it, is
    dropped (a counter with dead time): p = r D / (1 + r (D + gap)).

    Args:
      prevalence: share of attacked steps, a number or an array [].
    """
    duration = mean_duration()
    return prevalence / (duration - prevalence * (duration + c.MIN_GAP))


def draw_campaigns(settings: SimSettings, key: Key, hospital: Hospital) -> Campaigns:
    """Draws the campaigns of one hospital; shapes depend on the settings alone."""
    length = c.BURN_IN + settings.steps
    span = c.LEAD_IN + length
    campaigns_per_attack = 1.0 / float(c.TARGET_WEIGHTS @ np.arange(1, c.TARGETS + 1))
    largest = attack_rate(settings.prevalence * c.LARGEST_MAKE_UP)
    bound = largest * span * campaigns_per_attack * max_units(settings)
    size = math.ceil(bound + 6 * math.sqrt(bound) + 8)
    uniform = draws.uniforms(key, (size + 1, 4 * c.TARGETS + 3))
    start, uniform = uniform[0], uniform[1:]
    expected = attack_rate(hospital.prevalence) * span * campaigns_per_attack
    count = draws.poisson(draws.normal(start[0]), expected * hospital.num_units)
    number = jnp.arange(size)
    valid = (number < count) & hospital.has_attacks
    # Low-discrepancy choices hold the shares in every hospital, however few attacks.
    place = draws.pick((start[1] + number * _GOLDEN) % 1.0, hospital.visibility)
    kinds = []
    groups = (c.IOT_ATTACKS, c.EMR_ATTACKS, c.JOINT_ATTACKS)
    for part, group in enumerate(groups):
        draw = (start[2 + part] + number * _SILVER) % 1.0
        kinds.append(
            group[0] + draws.pick(draw, hospital.attack_mix[jnp.asarray(group)])
        )
    kind = jnp.stack(kinds)[place, number]
    shape = (size, c.TARGETS)
    target, wait, length_draw, size_draw = (
        uniform[:, part * c.TARGETS : (part + 1) * c.TARGETS] for part in range(4)
    )
    count_draw, onset_draw, factor_draw = uniform[:, 4 * c.TARGETS :].T[..., None]
    first = jnp.floor(target[:, 0] * hospital.num_units).astype(jnp.int32)
    department = hospital.department[first]
    inside = target * hospital.unit_count[department][:, None]
    unit = hospital.first_unit[department][:, None] + jnp.floor(inside).astype(int)
    unit = unit.at[:, 0].set(first)
    targets = 1 + draws.pick(count_draw, jnp.asarray(c.TARGET_WEIGHTS, jnp.float32))
    unit = jnp.where(valid[:, None] & (jnp.arange(c.TARGETS) < targets), unit, -1)
    delay = -c.LATERAL_DELAY * jnp.log(wait)
    delay = delay.at[:, 0].set(0.0)
    delay = delay @ jnp.triu(jnp.ones((c.TARGETS, c.TARGETS), jnp.float32))
    onset = span * onset_draw - c.LEAD_IN + delay
    log_duration = c.DURATION_SIGMA * draws.normal(length_draw)
    duration = jnp.clip(c.DURATION_MEDIAN * jnp.exp(log_duration), *c.DURATION_RANGE)
    amplitude = c.AMPLITUDE[0] + (c.AMPLITUDE[1] - c.AMPLITUDE[0]) * size_draw
    serial = jnp.arange(size * c.TARGETS).reshape(shape)
    dormant = (start[5] + serial * _BRONZE) % 1.0
    low, high = map(math.log, c.DDOS_FACTOR)
    factor = low + (high - low) * factor_draw

    def flat(values):
        return jnp.broadcast_to(values, shape).reshape(-1)

    return Campaigns(
        unit=flat(unit),
        onset=flat(jnp.floor(onset).astype(jnp.int32)),
        duration=flat(jnp.round(duration).astype(jnp.int32)),
        kind=flat(kind[:, None]),
        iot_kind=flat(kinds[0][:, None]),
        amplitude=flat(jnp.where(dormant < c.DORMANT, 0.0, amplitude)),
        factor=flat(jnp.exp(factor)),
    )


def unit_schedule(
    settings: SimSettings, campaigns: Campaigns, unit: jax.Array, imaging: jax.Array
) -> Schedule:
    """Returns what is done to one unit, without overlaps.

    Args:
      settings: static.
      campaigns: of the unit's hospital.
      unit: [] its number.
      imaging: [] whether it is an imaging device.
    """
    length = c.BURN_IN + settings.steps
    offered = attack_rate(settings.prevalence * c.LARGEST_MAKE_UP)
    offered *= c.LEAD_IN + length
    keep = min(math.ceil(offered + 8 * math.sqrt(offered) + 8), len(campaigns.unit))
    far = 2 * length + 10_000
    order = jnp.where(campaigns.unit == unit, campaigns.onset, far)
    negative, index = jax.lax.top_k(-order, keep)
    onset = -negative
    end = onset + campaigns.duration[index]

    def accept(free_from, interval):
        first, last = interval
        taken = (first >= free_from) & (first < far)
        return jnp.where(taken, last + c.MIN_GAP, free_from), taken

    _, taken = jax.lax.scan(accept, jnp.int32(-c.LEAD_IN), (onset, end))
    time = jnp.arange(length)
    active = taken[:, None] & (time >= onset[:, None]) & (time < end[:, None])
    which = jnp.argmax(active, axis=0)
    attacked = jnp.any(active, axis=0)
    picked = index[which]
    kind = jnp.where(imaging, campaigns.iot_kind[picked], campaigns.kind[picked])
    kind = jnp.where(attacked, kind, 0)
    age = time - onset[which]
    ramp = jnp.clip((age + 1.0) / jnp.asarray(c.RAMP)[kind], 0.0, 1.0)
    strength = jnp.where(attacked, ramp * campaigns.amplitude[picked], 0.0)
    return Schedule(
        kind=kind,
        strength=strength.astype(jnp.float32),
        onset=jnp.where(attacked, onset[which], 0),
        progress=jnp.where(attacked, age / campaigns.duration[picked], 0.0),
        factor=jnp.where(attacked, campaigns.factor[picked], 1.0),
    )
