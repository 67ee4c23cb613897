"""From settings and a seed to a ``Dataset``, hospital by hospital."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.data.hospital_sim import constants as c
from fedjax_health.data.hospital_sim.blocks import (
    simulate_block,
    simulate_hospital_parameters,
)
from fedjax_health.data.hospital_sim.hierarchy import (
    Plan,
    client_names,
    draw_plan,
    generator_key,
)
from fedjax_health.data.hospital_sim.settings import SimSettings
from fedjax_health.data.schema import Dataset

# More units than any hospital has: numbers patients apart over all hospitals.
_UNITS = 1 << 20


class HospitalRows(NamedTuple):
    """The rows of one hospital with the ids that a ``Dataset`` does not hold.

    Attributes:
      dataset: the rows; client numbers count over all hospitals.
      department: int32 ``[rows]``, index into ``constants.DEPARTMENTS``.
      unit: int32 ``[rows]``, patient (or imaging device) inside the hospital.
      device: int32 ``[rows]``, slot of the device at its unit.
      device_type: int32 ``[rows]``, index into ``constants.DEVICE_TYPES``.
    """

    dataset: Dataset
    department: np.ndarray
    unit: np.ndarray
    device: np.ndarray
    device_type: np.ndarray


def build_plan(settings: SimSettings, seed: int) -> Plan:
    """Returns sizes and availability of all hospitals.

    Args:
      settings: what to generate.
      seed: a non-negative integer below 2**32.
    """
    return draw_plan(settings, generator_key(seed))


def generate_hospital_rows(
    settings: SimSettings, seed: int, hospital: int, *, plan: Plan | None = None
) -> HospitalRows:
    """Generates one hospital, a pure function of settings, seed and its number.

    Args:
      settings: what to generate.
      seed: a non-negative integer below 2**32.
      hospital: number of the hospital, from 0.
      plan: from ``build_plan`` for the same settings and seed, to save drawing it.

    Raises:
      ValueError: if there is no such hospital.
    """
    if not 0 <= hospital < settings.hospitals:
        raise ValueError(
            f"hospital must lie in 0 to {settings.hospitals - 1}, not {hospital}"
        )
    plan = plan or build_plan(settings, seed)
    row = jax.tree.map(lambda values: jnp.asarray(values[hospital]), plan)
    # What does not shape the simulation must not make it compile again.
    static = dataclasses.replace(settings, hospitals=1, clients="hospital")
    parameters, campaigns = simulate_hospital_parameters(
        static, generator_key(seed), jnp.int32(hospital), row
    )
    num_units = int(parameters.num_units)
    department_of = np.asarray(parameters.department)
    parts: list[tuple[np.ndarray, ...]] = []
    for first in range(0, num_units, c.BLOCK):
        units = np.arange(first, first + c.BLOCK)
        block = jax.tree.map(
            np.asarray,
            simulate_block(static, parameters, campaigns, jnp.asarray(units)),
        )
        exists = np.arange(c.MAX_DEVICES) < block.devices[:, None]
        exists &= (units < num_units)[:, None]
        unit, slot = np.nonzero(exists)
        parts.append(
            (
                block.iot[exists],
                block.emr[exists],
                block.oracle[exists],
                block.attack[unit],
                units[unit],
                slot,
                block.device_type[exists],
            )
        )
    iot, emr, oracle, attack, unit, slot, device_type = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    department = department_of[unit]
    names = client_names(settings, plan)
    if settings.clients == "hospital":
        client = np.full(len(unit), hospital)
    else:
        client = int(plan.departments[:hospital].sum()) + department

    def per_row(values: np.ndarray, dtype: type) -> np.ndarray:
        return np.repeat(values.astype(dtype), settings.steps)

    attack = attack.reshape(-1).astype(np.int32)
    dataset = Dataset(
        features={
            "iot": iot.reshape(-1, len(c.IOT_FEATURES)),
            "emr": emr.reshape(-1, len(c.EMR_FEATURES)),
        },
        feature_names={"iot": c.IOT_FEATURES, "emr": c.EMR_FEATURES},
        label=(attack > 0).astype(np.float32),
        attack=attack,
        attack_names=c.ATTACK_NAMES,
        client=per_row(client, np.int32),
        client_names=names,
        entity=per_row(unit * c.PATIENT_STRIDE + slot, np.int64),
        time=np.tile(np.arange(settings.steps, dtype=np.float64), len(unit)),
        masked=frozenset({"iot", "emr"}),
        oracle=oracle.reshape(-1),
        patient=per_row(hospital * _UNITS + unit, np.int64),
        step_seconds=60.0,
    )
    return HospitalRows(
        dataset=dataset,
        department=per_row(department, np.int32),
        unit=per_row(unit, np.int32),
        device=per_row(slot, np.int32),
        device_type=per_row(device_type, np.int32),
    )


def generate_hospital(
    settings: SimSettings, seed: int, hospital: int, *, plan: Plan | None = None
) -> Dataset:
    """Returns one hospital of ``generate(settings, seed)``, to the bit.

    Args:
      settings: what to generate.
      seed: a non-negative integer below 2**32.
      hospital: number of the hospital, from 0.
      plan: from ``build_plan`` for the same settings and seed, to save drawing it.

    Raises:
      ValueError: if there is no such hospital.
    """
    return generate_hospital_rows(settings, seed, hospital, plan=plan).dataset


def generate(settings: SimSettings, seed: int) -> Dataset:
    """Generates a whole data set.

    Entities are numbered ``PATIENT_STRIDE * unit + device slot`` inside a hospital, so
    ``entity // PATIENT_STRIDE`` tells the streams of one patient, which share their
    record, and a patient-disjoint split must keep them together.

    Args:
      settings: what to generate; see ``PRESETS``.
      seed: a non-negative integer below 2**32.

    Returns:
      Rows by hospital, unit, device and minute. A window's label is that of its last
      step. ``oracle`` is the log-odds of an attack, so 0 is the Bayes threshold.
    """
    plan = build_plan(settings, seed)
    parts = [
        generate_hospital(settings, seed, number, plan=plan)
        for number in range(settings.hospitals)
    ]
    return parts[0]._replace(
        features={
            name: np.concatenate([part.features[name] for part in parts])
            for name in parts[0].features
        },
        label=np.concatenate([part.label for part in parts]),
        attack=np.concatenate([part.attack for part in parts]),
        client=np.concatenate([part.client for part in parts]),
        entity=np.concatenate([part.entity for part in parts]),
        time=np.concatenate([part.time for part in parts]),
        oracle=np.concatenate(
            [part.oracle for part in parts if part.oracle is not None]
        ),
        patient=np.concatenate(
            [part.patient for part in parts if part.patient is not None]
        ),
    )
