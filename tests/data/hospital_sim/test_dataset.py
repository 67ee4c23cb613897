import dataclasses

import numpy as np
import pytest

from fedjax_health.data.hospital_sim import (
    PRESETS,
    SimSettings,
    build_plan,
    generate,
    generate_hospital,
)
from fedjax_health.data.hospital_sim import constants as c
from fedjax_health.data.schema import segment_starts

DEMO = PRESETS["demo"]


def test_rows_are_ordered_and_aligned(demo):
    assert 150_000 <= demo.num_rows <= 300_000
    assert demo.features["iot"].shape == (demo.num_rows, 16)
    assert demo.features["emr"].shape == (demo.num_rows, len(c.EMR_FEATURES))
    assert all(values.dtype == np.float32 for values in demo.features.values())
    assert (np.diff(demo.client) >= 0).all()
    starts = segment_starts(demo)
    assert (np.diff(starts) == DEMO.steps).all()
    pairs = np.stack([demo.client[starts], demo.entity[starts]], 1)
    assert len(np.unique(pairs, axis=0)) == len(starts)
    np.testing.assert_array_equal(demo.label, demo.attack > 0)
    assert np.isfinite(demo.oracle).all()
    for values in demo.features.values():
        assert not np.isinf(values).any()


def test_one_hospital_is_the_same_bits_as_its_part_of_the_whole(demo):
    for number in (3, 0):
        part = generate_hospital(DEMO, 0, number)
        rows = demo.client == number
        for name, values in part.features.items():
            np.testing.assert_array_equal(values, demo.features[name][rows])
        np.testing.assert_array_equal(part.oracle, demo.oracle[rows])
        np.testing.assert_array_equal(part.entity, demo.entity[rows])
        np.testing.assert_array_equal(part.attack, demo.attack[rows])
        assert part.client_names == demo.client_names


def test_another_seed_is_other_data(demo):
    other = generate_hospital(DEMO, 1, 0)
    mine = demo.features["iot"][demo.client == 0]
    size = min(len(mine), len(other.label))
    assert not np.array_equal(other.features["iot"][:size], mine[:size], equal_nan=True)


def test_department_clients_share_the_rows_of_hospital_clients(demo):
    settings = dataclasses.replace(DEMO, clients="department")
    plan = build_plan(settings, 0)
    part = generate_hospital(settings, 0, 1)
    rows = demo.client == 1
    np.testing.assert_array_equal(part.features["iot"], demo.features["iot"][rows])
    assert len(part.client_names) == plan.departments.sum()
    first = plan.departments[0]
    own = np.arange(first, first + plan.departments[1])
    np.testing.assert_array_equal(np.unique(part.client), own)
    assert part.client_names[first] == "hospital_001/icu"


def test_plan_of_many_clients_has_a_thousand():
    settings = PRESETS["many_clients"]
    plan = build_plan(settings, 0)
    assert plan.departments.sum() == 1000
    assert (~plan.has_iot).sum() == 40
    assert (~plan.has_emr).sum() == 20
    assert (~plan.has_attacks).sum() == 1
    assert not (~plan.has_iot & ~plan.has_emr).any()


@pytest.mark.slow
def test_many_clients_fills_every_client():
    dataset = generate(PRESETS["many_clients"], 0)
    assert len(np.unique(dataset.client)) == dataset.num_clients == 1000


@pytest.mark.slow
def test_paper_has_its_share_of_positive_windows():
    dataset = generate(PRESETS["paper"], 0)
    assert abs(dataset.label.mean() - 0.37) < 0.02
    # Window label = label of its last step, so every full window counts alike.
    late = dataset.time >= c.WINDOW - 1
    assert abs(dataset.label[late].mean() - 0.37) < 0.02


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hospitals": 0}, "hospitals must be"),
        ({"prevalence": float("nan")}, "prevalence"),
        ({"prevalence": 0.9}, "prevalence"),
        ({"departments": (4, 9)}, "departments"),
        ({"patients_per_hospital": (2, 40)}, "patients_per_hospital"),
        ({"clients": "ward"}, "clients"),
        ({"version": "0"}, "version"),
        ({"steps": 5}, "steps"),
    ],
)
def test_settings_out_of_range_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        SimSettings(**change)


def test_hospital_out_of_range_is_refused():
    with pytest.raises(ValueError, match="0 to 11"):
        generate_hospital(DEMO, 0, 12)


def test_a_refusal_names_the_field_and_its_value_alone():
    with pytest.raises(ValueError, match="departments") as caught:
        SimSettings(departments=(1, 9))
    assert str(caught.value) == (
        "hospital_sim: departments must be a range within 1 to 6, not [1, 9]"
    )
