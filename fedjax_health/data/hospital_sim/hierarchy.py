"""Hospitals, departments, units (patients and imaging devices) and their shifts.

A *unit* is a patient with one to four devices, or the one imaging device of a
department. Units are numbered through a hospital, department by department.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.core.rng import Key, Stream, key_for, root_key
from fedjax_health.data.hospital_sim import constants as c
from fedjax_health.data.hospital_sim import draws
from fedjax_health.data.hospital_sim.settings import SimSettings

_DOMAIN = 0x4853  # keeps the generator's draws apart from other uses of Stream.DATA


class Plan(NamedTuple):
    """Sizes and availability of all hospitals; a few numbers each, held on the host.

    Attributes:
      patients: int ``[hospitals]``.
      departments: int ``[hospitals]``.
      has_iot: bool ``[hospitals]``.
      has_emr: bool ``[hospitals]``.
      has_attacks: bool ``[hospitals]``.
      visibility: float ``[hospitals, 3]``, the share of a patient's attacks that show
        in IoT alone, in EMR alone, only in both.
      prevalence: float ``[hospitals]``, a little above the settings' where one
        hospital has no positives.
    """

    patients: np.ndarray
    departments: np.ndarray
    has_iot: np.ndarray
    has_emr: np.ndarray
    has_attacks: np.ndarray
    visibility: np.ndarray
    prevalence: np.ndarray


class Hospital(NamedTuple):
    """The parameters of one hospital, arrays of static shape.

    Attributes:
      key: the hospital's key.
      num_units: [] patients and imaging devices.
      department: int ``[max_units]``, the department of each unit.
      imaging: bool ``[max_units]``.
      first_unit: int ``[6]``, first unit of each department.
      unit_count: int ``[6]``, units of each department.
      access_factor: ``[6]``, factor on the access rates of a department.
      attack_mix: ``[10]``, share of each attack type within its visibility class.
      visibility: ``[3]``.
      prevalence: [] expected share of attacked steps.
      has_iot: bool [].
      has_emr: bool [].
      has_attacks: bool [].
      phase: [] minute of the daily maximum of traffic.
      iot_scale: ``[16]``.
      iot_shift: ``[16]``.
      emr_scale: ``[31]``.
      emr_shift: ``[31]``.
      coding: int ``[6]``, permutation of the code groups.
    """

    key: Key
    num_units: jax.Array
    department: jax.Array
    imaging: jax.Array
    first_unit: jax.Array
    unit_count: jax.Array
    access_factor: jax.Array
    attack_mix: jax.Array
    visibility: jax.Array
    prevalence: jax.Array
    has_iot: jax.Array
    has_emr: jax.Array
    has_attacks: jax.Array
    phase: jax.Array
    iot_scale: jax.Array
    iot_shift: jax.Array
    emr_scale: jax.Array
    emr_shift: jax.Array
    coding: jax.Array


def max_units(settings: SimSettings) -> int:
    """Returns the largest number of units of a hospital, rounded up to whole blocks."""
    units = settings.patients_per_hospital[1] + settings.departments[1]
    return -(-units // c.BLOCK) * c.BLOCK


def generator_key(seed: int) -> Key:
    """Returns the key from which a whole data set is drawn."""
    return key_for(root_key(seed), Stream.DATA, _DOMAIN)


def hospital_sizes(settings: SimSettings) -> np.ndarray:
    """Returns the sorted numbers of patients, quantiles of a truncated Pareto law."""
    low, high = settings.patients_per_hospital
    quantile = (np.arange(settings.hospitals) + 0.5) / settings.hospitals
    if not settings.imbalance:
        return np.full(settings.hospitals, (low + high) // 2)
    exponent = c.SIZE_EXPONENT
    tail = 1.0 - quantile * (1.0 - (low / high) ** exponent)
    return np.floor(low * tail ** (-1.0 / exponent)).astype(np.int64)


def draw_plan(settings: SimSettings, key: Key) -> Plan:
    """Draws sizes and availability; the hospital without positives is the smallest.

    The visibility classes keep their nominal shares over all rows: hospitals that can
    show one class only, and imaging devices, are made up for in the others.

    Args:
      settings: what to generate.
      key: from ``generator_key``.
    """
    count = settings.hospitals
    uniform = np.asarray(_plan_uniforms(key, count))
    place = np.argsort(uniform[0], kind="stable")
    patients = hospital_sizes(settings)[place]
    low, high = settings.departments
    departments = low + (uniform[1] * (high + 1 - low)).astype(np.int32)
    has_attacks = np.full(count, True)
    if settings.imbalance and count >= 3:
        has_attacks[np.argmin(place)] = False
    has_iot, has_emr = np.full(count, True), np.full(count, True)
    if settings.missing:
        candidates = np.argsort(uniform[2], kind="stable")
        candidates = candidates[has_attacks[candidates]]
        without_iot = round(c.NO_IOT_SHARE * count)
        without_emr = round(c.NO_EMR_SHARE * count)
        has_iot[candidates[:without_iot]] = False
        has_emr[candidates[without_iot : without_iot + without_emr]] = False
    devices = float(c.DEVICE_COUNT_WEIGHTS @ np.arange(1, c.MAX_DEVICES + 1))
    streams = np.where(has_iot, patients * devices, patients)
    imaging = np.where(has_iot, departments, 0)
    total = float((streams + imaging)[has_attacks].sum())
    only_iot = float(streams[~has_emr].sum() + imaging[has_attacks].sum()) / total
    only_emr = float(streams[~has_iot].sum()) / total
    shares = np.maximum(np.array(c.VISIBILITY) - [only_iot, only_emr, 0.0], 0.0)
    visibility = np.tile(shares / shares.sum(), (count, 1))
    visibility[~has_iot] = (0.0, 1.0, 0.0)
    visibility[~has_emr] = (1.0, 0.0, 0.0)
    clean = 1.0 - total / float((streams + imaging).sum())
    prevalence = settings.prevalence * min(1.0 / (1.0 - clean), c.LARGEST_MAKE_UP)
    return Plan(
        patients,
        departments,
        has_iot,
        has_emr,
        has_attacks,
        visibility,
        np.full(count, prevalence),
    )


def _running_sum(values: jax.Array) -> jax.Array:
    """Returns the cumulative sum of a short array; compiles faster than a scan."""
    return jnp.sum(jnp.tril(jnp.ones((len(values),) * 2, values.dtype)) * values, 1)


@partial(jax.jit, static_argnums=1)
def _plan_uniforms(key: Key, count: int) -> jax.Array:
    return draws.uniforms(jax.random.fold_in(key, 1), (3, count))


def client_names(settings: SimSettings, plan: Plan) -> tuple[str, ...]:
    """Returns the names of all clients, hospital by hospital."""
    hospitals = [f"hospital_{number:03d}" for number in range(settings.hospitals)]
    if settings.clients == "hospital":
        return tuple(hospitals)
    return tuple(
        f"{name}/{department}"
        for name, count in zip(hospitals, plan.departments, strict=True)
        for department in c.DEPARTMENTS[:count]
    )


def draw_hospital(
    settings: SimSettings, key: Key, hospital: jax.Array, plan_row: Plan
) -> Hospital:
    """Draws the parameters of one hospital; traced once for all hospitals.

    Args:
      settings: static.
      key: from ``generator_key``.
      hospital: [] its number.
      plan_row: its entry of the plan.
    """
    key = jax.random.fold_in(jax.random.fold_in(key, 4), hospital)
    uniform = draws.uniforms(jax.random.fold_in(key, 0), (8, 16))
    slots = len(c.DEPARTMENTS)
    present = jnp.arange(slots) < plan_row.departments
    alpha = c.DIRICHLET if settings.imbalance else 100.0
    weight = draws.dirichlet(uniform[:2, :slots], alpha) + 1e-6
    edges = _running_sum(jnp.where(present, weight, 0.0))
    edges = edges / edges[-1]
    places = jnp.arange(settings.patients_per_hospital[1])
    extra = plan_row.patients - plan_row.departments
    position = (places + uniform[0, 15]) / jnp.maximum(extra, 1)
    home = jnp.sum(position[:, None] > edges[:-1], axis=1)
    home = jnp.minimum(home, plan_row.departments - 1)
    # Each department has one patient at least, and one imaging device.
    housed = (home[:, None] == jnp.arange(slots)) & (places < extra)[:, None]
    patients = jnp.sum(housed, axis=0) + present
    unit_count = jnp.where(present, patients + 1, 0)
    last_unit = _running_sum(unit_count)
    units = jnp.arange(max_units(settings))
    department = jnp.sum(units[:, None] >= last_unit[:-1], axis=1)
    imaging = jnp.any(units[:, None] == last_unit - 1, axis=1)
    groups = (c.IOT_ATTACKS, c.EMR_ATTACKS, c.JOINT_ATTACKS)
    mix = [draws.dirichlet(uniform[2:4, jnp.asarray(group)], alpha) for group in groups]
    moved = 1.0 if settings.shift else 0.0
    normal = draws.normal(uniform[4:7])
    emr_scale = np.ones((len(c.OTHER_UNITS), len(c.EMR_FEATURES)))
    emr_shift = np.zeros_like(emr_scale)
    for row, (name, (factor, constant)) in enumerate(c.OTHER_UNITS.items()):
        emr_scale[row, c.EMR_FEATURES.index(name)] = factor
        emr_shift[row, c.EMR_FEATURES.index(name)] = constant
    share = moved * c.OTHER_UNIT_SHARE
    other = uniform[7, : len(c.OTHER_UNITS), None] < share
    recoded = uniform[7, 5] < moved * c.OTHER_CODING_SHARE
    shuffle = uniform[7, 6 : 6 + c.CODES]
    permutation = jnp.sum(shuffle[:, None] > shuffle, axis=1)
    return Hospital(
        key=key,
        num_units=last_unit[-1],
        department=department,
        imaging=imaging,
        first_unit=last_unit - unit_count,
        unit_count=unit_count,
        access_factor=jnp.exp(moved * c.ACCESS_RATE_SD * normal[2, :slots]),
        attack_mix=jnp.concatenate([jnp.zeros(1), *mix]),
        visibility=jnp.asarray(plan_row.visibility, jnp.float32),
        prevalence=jnp.asarray(plan_row.prevalence, jnp.float32),
        has_iot=jnp.asarray(plan_row.has_iot),
        has_emr=jnp.asarray(plan_row.has_emr),
        has_attacks=jnp.asarray(plan_row.has_attacks),
        phase=1440.0 * uniform[7, 15],
        iot_scale=jnp.exp(moved * c.FEATURE_SCALE_SD * normal[0]),
        iot_shift=moved * c.FEATURE_SHIFT_SD * normal[1],
        emr_scale=jnp.prod(jnp.where(other, emr_scale, 1.0), 0).astype(jnp.float32),
        emr_shift=jnp.sum(jnp.where(other, emr_shift, 0.0), 0).astype(jnp.float32),
        coding=jnp.where(recoded, permutation, jnp.arange(c.CODES)),
    )
