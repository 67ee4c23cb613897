"""One compiled call simulates a block of units of one hospital.

A unit's numbers depend on the hospital's key and the unit's number alone, so blocks,
hospitals and whole data sets agree to the bit however they are cut. Everything has a
static shape; what does not exist (a fourth device, a unit past the last) is simulated
and left out by ``dataset``.
"""

import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_health.core.rng import Key
from fedjax_health.data.hospital_sim import constants as c
from fedjax_health.data.hospital_sim import draws
from fedjax_health.data.hospital_sim.access import ACCESS_DRAWS, simulate_access
from fedjax_health.data.hospital_sim.attacks import (
    Campaigns,
    draw_campaigns,
    unit_schedule,
)
from fedjax_health.data.hospital_sim.hierarchy import Hospital, Plan, draw_hospital
from fedjax_health.data.hospital_sim.oracle import (
    iot_evidence,
    joint_evidence,
    oracle_score,
)
from fedjax_health.data.hospital_sim.patients import (
    CHART_DRAWS,
    LATENT_DRAWS,
    chart,
    latent_paths,
)
from fedjax_health.data.hospital_sim.settings import SimSettings
from fedjax_health.data.hospital_sim.traffic import (
    TRAFFIC_DRAWS,
    replay_lags,
    simulate_traffic,
)

# Columns of a unit's uniforms: latent, chart, access, losses, types, traffic.
_COLUMNS = (
    LATENT_DRAWS,
    CHART_DRAWS,
    ACCESS_DRAWS,
    1 + c.MAX_DEVICES,
    1 + c.MAX_DEVICES,
    TRAFFIC_DRAWS * c.MAX_DEVICES,
)


class Block(NamedTuple):
    """The rows of ``BLOCK`` units.

    Attributes:
      iot: ``[units, devices, steps, 16]``.
      emr: ``[units, devices, steps, 31]``.
      oracle: ``[units, devices, steps]``.
      attack: int ``[units, steps]``.
      devices: int ``[units]``, how many of the device slots exist.
      device_type: int ``[units, devices]``.
    """

    iot: jax.Array
    emr: jax.Array
    oracle: jax.Array
    attack: jax.Array
    devices: jax.Array
    device_type: jax.Array


def sample_losses(uniform: jax.Array, share: jax.Array) -> jax.Array:
    """Returns bool ``[length, streams]``: runs of lost rows.

    A two-state Markov chain with the mean length of the constants; whether a row is
    attacked plays no part.

    Args:
      uniform: ``[1 + length, streams]``.
      share: ``[streams]`` of the rows that are lost.
    """
    leave = 1.0 / c.LOSS_LENGTH
    enter = leave * share / (1.0 - share)

    def step(lost, uniform_t):
        lost = jnp.where(lost, uniform_t >= leave, uniform_t < enter)
        return lost, lost

    return jax.lax.scan(step, uniform[0] < share, uniform[1:])[1]


def _device_types(
    uniform: jax.Array, imaging: jax.Array
) -> tuple[jax.Array, jax.Array]:
    weights = jnp.asarray(c.DEVICE_COUNT_WEIGHTS, jnp.float32)
    count = 1 + draws.pick(uniform[0], weights)
    extra = jnp.asarray(c.EXTRA_DEVICE_WEIGHTS, jnp.float32)
    types = draws.pick(uniform[1 : 1 + c.MAX_DEVICES], extra)
    types = types.at[0].set(jnp.where(imaging, len(c.DEVICE_TYPES) - 1, 0))
    return jnp.where(imaging, 1, count), types


def _simulate_unit(
    settings: SimSettings, hospital: Hospital, campaigns: Campaigns, unit: jax.Array
) -> Block:
    key = jax.random.fold_in(jax.random.fold_in(hospital.key, 21), unit)
    place = jnp.minimum(unit, len(hospital.department) - 1)
    department, imaging = hospital.department[place], hospital.imaging[place]
    schedule = unit_schedule(settings, campaigns, unit, imaging)
    length = c.BURN_IN + settings.steps
    uniform = draws.uniforms(key, (1 + length, sum(_COLUMNS)))
    for_latent, for_chart, for_access, for_losses, for_types, for_traffic = jnp.split(
        uniform, list(itertools.accumulate(_COLUMNS))[:-1], axis=1
    )
    latent = latent_paths(for_latent, schedule)
    record = chart(for_chart, hospital, department, latent, schedule.kind)
    factor = hospital.access_factor[department]
    access = simulate_access(for_access[1:], factor, schedule)
    count, types = _device_types(for_types[0], imaging)
    lags = replay_lags(latent.true)
    traffic = jax.vmap(
        lambda uniform, kind: simulate_traffic(
            settings, uniform, hospital, kind, latent, lags, schedule
        ),
        (1, 0),
    )(for_traffic[1:].reshape(length, c.MAX_DEVICES, TRAFFIC_DRAWS), types)

    losable = (hospital.has_iot & hospital.has_emr & ~imaging) & settings.missing
    # One modality at most is lost, so the second share makes up for the first.
    share = jnp.full(1 + c.MAX_DEVICES, c.LOSS_SHARE / (1.0 - c.LOSS_SHARE))
    lost = sample_losses(for_losses, share.at[0].set(c.LOSS_SHARE)).T
    no_emr, no_iot = lost[0], lost[1:] & ~lost[0]
    iot_seen = hospital.has_iot & ~(losable & no_iot)
    emr_seen = hospital.has_emr & ~imaging & ~(losable & no_emr)

    iot_ratio = jnp.where(
        iot_seen[..., None], jax.vmap(iot_evidence)(traffic.innovations), 0.0
    )
    emr_ratio = jax.nn.logsumexp(access.evidence, axis=-1) - jnp.log(2.0)
    emr_ratio = jnp.where(emr_seen[:, None], emr_ratio, 0.0)
    joint_ratio = jax.vmap(joint_evidence, (0, None))(
        traffic.features[..., c.PAYLOAD], record.vitals[:, :4]
    )
    joined = iot_seen & emr_seen & settings.link
    joint_ratio = jnp.where(joined, joint_ratio, 0.0)
    score = jax.vmap(
        lambda iot, joint: oracle_score(hospital, imaging, iot, emr_ratio, joint)
    )(iot_ratio, joint_ratio)

    scale = jnp.asarray(c.IOT_SCALE, jnp.float32)
    iot = traffic.features * hospital.iot_scale + hospital.iot_shift
    iot = iot * scale + jnp.asarray(c.IOT_CENTRE, jnp.float32)[types][:, None]
    vitals = record.vitals * jnp.asarray(c.VITAL_SCALE, jnp.float32)
    vitals += jnp.asarray(c.VITAL_CENTRE, jnp.float32)
    labs = record.labs * jnp.asarray(c.LAB_SCALE, jnp.float32)
    labs += jnp.asarray(c.LAB_CENTRE, jnp.float32)
    codes = jnp.broadcast_to(record.codes, (length, c.CODES))
    emr = jnp.concatenate([vitals, labs, codes, access.features], axis=1)
    emr = emr * hospital.emr_scale + hospital.emr_shift
    emr = jnp.where(emr_seen[:, None], emr, jnp.nan)
    return Block(
        iot=jnp.where(iot_seen[..., None], iot, jnp.nan)[:, c.BURN_IN :],
        emr=jnp.broadcast_to(emr, (c.MAX_DEVICES, *emr.shape))[:, c.BURN_IN :],
        oracle=score[:, c.BURN_IN :],
        attack=schedule.kind[c.BURN_IN :],
        devices=jnp.where(hospital.has_iot, count, jnp.where(imaging, 0, 1)),
        device_type=types,
    )


@partial(jax.jit, static_argnums=0)
def simulate_hospital_parameters(
    settings: SimSettings, key: Key, number: jax.Array, plan_row: Plan
) -> tuple[Hospital, Campaigns]:
    """Draws the parameters and the campaigns of one hospital.

    Args:
      settings: static; recompiles when it changes.
      key: from ``hierarchy.generator_key``.
      number: [] of the hospital.
      plan_row: its entry of the plan.
    """
    hospital = draw_hospital(settings, key, number, plan_row)
    campaigns = draw_campaigns(settings, jax.random.fold_in(hospital.key, 20), hospital)
    return hospital, campaigns


@partial(jax.jit, static_argnums=0)
def simulate_block(
    settings: SimSettings, hospital: Hospital, campaigns: Campaigns, units: jax.Array
) -> Block:
    """Simulates units ``[BLOCK]`` of one hospital.

    Args:
      settings: static; recompiles when it changes.
      hospital: from ``simulate_hospital_parameters``.
      campaigns: from the same call.
      units: their numbers; those past the last unit give rows without meaning.
    """
    return jax.vmap(partial(_simulate_unit, settings, hospital, campaigns))(units)
