"""Attacks on data: labels, triggers, and what stays with a record for good."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health import attacks
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import DataAttack, DataAttackContext

BATCH, STEPS, WIDTH = 400, 5, 6
TRIGGER = attacks.Trigger(columns=(1, 4), values=(9.0, -9.0))
LATE = attacks.Trigger(columns=(1, 4), values=(9.0, -9.0), steps=(-2, 2))


def batch(seed=0, *, windows=False, classes=2, dtype=np.float32, size=BATCH):
    rng = np.random.default_rng(seed)
    shape = (size, STEPS) if windows else (size,)
    return {
        "x": rng.normal(size=(*shape, WIDTH)).astype(np.float32),
        "label": rng.integers(0, classes, size=shape).astype(dtype),
    }


def context(client=3, round=0, step=0, index=None, size=BATCH):
    return DataAttackContext(
        key=jax.random.fold_in(root_key(9), 100 * round + step),
        client_id=jnp.int32(client),
        malicious=jnp.bool_(True),
        round=jnp.int32(round),
        client_key=jax.random.fold_in(root_key(5), client),
        index=jnp.arange(size) if index is None else jnp.asarray(index),
    )


def poison(attack, data, **known):
    numbers = attack.init()
    seen = context(**known)._replace(numbers=numbers)
    made = jax.jit(attack.poison)(data, seen)
    assert {k: (v.shape, v.dtype) for k, v in made.items()} == {
        k: (v.shape, v.dtype) for k, v in data.items()
    }
    return {name: np.asarray(values) for name, values in made.items()}


@pytest.mark.parametrize("windows", [False, True])
def test_labels_are_turned_round(windows):
    data = batch(windows=windows)
    made = poison(attacks.label_flip(), data)
    np.testing.assert_array_equal(made["label"], 1 - data["label"])
    np.testing.assert_array_equal(made["x"], data["x"])
    digits = batch(classes=10, dtype=np.int32)
    made = poison(attacks.label_flip(num_classes=10), digits)
    np.testing.assert_array_equal(made["label"], 9 - digits["label"])


def test_one_class_becomes_another():
    digits = batch(classes=10, dtype=np.int32)
    made = poison(attacks.targeted_label_flip(source=7, target=1), digits)
    expected = np.where(digits["label"] == 7, 1, digits["label"])
    np.testing.assert_array_equal(made["label"], expected)
    data = batch()
    made = poison(attacks.targeted_label_flip(share=0.3), data)
    hit = data["label"] != made["label"]
    assert (data["label"][hit] == 1).all()
    assert hit[data["label"] == 1].mean() == pytest.approx(0.3, abs=0.08)


def test_noise_makes_other_classes_alike():
    digits = batch(classes=4, dtype=np.int32, size=4000)
    attack = attacks.label_noise(rate=0.6, num_classes=4)
    made = poison(attack, digits, size=4000)
    moved = (made["label"] - digits["label"]) % 4
    shares = np.bincount(moved, minlength=4) / 4000
    np.testing.assert_allclose(shares, [0.4, 0.2, 0.2, 0.2], atol=0.03)
    stream = batch(windows=True)
    wrong = poison(attacks.label_noise(rate=0.25), stream)["label"] != stream["label"]
    assert wrong.mean() == pytest.approx(0.25, abs=0.04)
    assert not (wrong.all(axis=1) | ~wrong.any(axis=1)).all()
    always = poison(attacks.label_noise(rate=1), batch())
    np.testing.assert_array_equal(always["label"], 1 - batch()["label"])


SHARED = {
    "targeted": attacks.targeted_label_flip(share=0.5),
    "noise": attacks.label_noise(rate=0.5),
    "backdoor": attacks.backdoor(TRIGGER, share=0.5),
    "dba": attacks.distributed_backdoor(TRIGGER, share=0.5, parts=2),
}


@pytest.mark.parametrize("name", SHARED)
def test_a_record_is_poisoned_for_good_and_by_its_client_alone(name):
    attack, data = SHARED[name], batch()
    made = poison(attack, data)
    order = np.random.default_rng(1).permutation(BATCH)
    shuffled = {key: values[order] for key, values in data.items()}
    later = poison(attack, shuffled, round=7, step=3, index=order)
    for key in made:
        np.testing.assert_array_equal(later[key], made[key][order])
    # Another client with the same part of the trigger poisons other records.
    other = poison(attack, data, client=5)
    assert (other["label"] != made["label"]).any()


@pytest.mark.parametrize("trigger", [TRIGGER, LATE])
def test_a_backdoor_in_windows(trigger):
    data = batch(windows=True)
    made = poison(attacks.backdoor(trigger, target=1, share=0.4), data)
    hit = (made["x"] != data["x"]).any(axis=(1, 2))
    assert hit.mean() == pytest.approx(0.4, abs=0.08)
    expected = data["x"].copy()
    steps = slice(None) if trigger.steps is None else [2, 3]
    for column, value in zip(trigger.columns, trigger.values, strict=True):
        expected[:, steps, column] = value
    np.testing.assert_array_equal(made["x"][hit], expected[hit])
    np.testing.assert_array_equal(made["x"][~hit], data["x"][~hit])
    first = 0 if trigger.steps is None else 2
    labels = data["label"].copy()
    labels[hit, first:] = 1
    np.testing.assert_array_equal(made["label"], labels)
    np.testing.assert_array_equal(
        attacks.affected_steps(trigger, STEPS), np.arange(STEPS) >= first
    )
    np.testing.assert_array_equal(attacks.apply_trigger(trigger, data["x"]), expected)


def test_a_backdoor_in_single_records():
    data = batch()
    made = poison(attacks.backdoor(TRIGGER, share=1.0), data)
    expected = data["x"].copy()
    expected[:, 1], expected[:, 4] = 9, -9
    np.testing.assert_array_equal(made["x"], expected)
    assert not made["label"].any()
    np.testing.assert_array_equal(attacks.apply_trigger(TRIGGER, data["x"]), expected)


def cells(trigger, client, parts, windows):
    data = batch(windows=windows)
    attack = attacks.distributed_backdoor(trigger, share=1.0, parts=parts)
    made = poison(attack, data, client=client)
    changed = made["x"] != data["x"]
    assert (changed == changed[:1]).all()
    return np.argwhere(changed[0]).tolist()


def test_the_parts_of_a_trigger_make_the_whole():
    wide = attacks.Trigger((0, 1, 2, 3, 5), (1.0, 2.0, 3.0, 4.0, 5.0))
    parts = [cells(wide, client, 3, False) for client in (0, 1, 2, 3)]
    assert parts == [[[0], [1]], [[2], [3]], [[5]], [[0], [1]]]
    late = [cells(LATE, client, 4, True) for client in (4, 5, 6, 7)]
    assert sorted(cell for part in late for cell in part) == [
        [2, 1],
        [2, 4],
        [3, 1],
        [3, 4],
    ]
    assert all(len(part) == 1 for part in late)


def test_an_attack_on_data_in_some_rounds_by_some():
    data = batch()
    attack = attacks.during(attacks.label_flip(), start=2, end=5)
    flipped = [
        (poison(attack, data, round=t)["label"] != data["label"]).any()
        for t in range(7)
    ]
    assert flipped == [False, False, True, True, True, False, False]
    attack = attacks.during(attacks.label_flip(), share=0.4)
    hit = np.array(
        [
            [
                (poison(attack, data, round=t, step=s)["label"] != data["label"]).all()
                for s in (0, 5)
            ]
            for t in range(60)
        ]
    )
    # Drawn once in a round, not at every step.
    np.testing.assert_array_equal(hit[:, 0], hit[:, 1])
    assert hit[:, 0].mean() == pytest.approx(0.4, abs=0.2)


def test_an_attack_without_numbers_can_be_timed_too():
    plain = DataAttack(lambda batch, known: {**batch, "label": batch["label"] + 1})
    attack = attacks.during(plain, start=1)
    data = batch()
    np.testing.assert_array_equal(poison(attack, data)["label"], data["label"])
    np.testing.assert_array_equal(
        poison(attack, data, round=1)["label"], data["label"] + 1
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (attacks.label_flip(), attacks.label_flip(num_classes=10)),
        (attacks.label_noise(), attacks.label_noise(rate=0.1, num_classes=3)),
        (
            attacks.backdoor(TRIGGER),
            attacks.backdoor(TRIGGER._replace(values=(1.0, 2.0)), target=1, share=0.1),
        ),
        (
            attacks.during(attacks.label_flip()),
            attacks.during(attacks.label_flip(), start=2, end=3, share=0.5),
        ),
    ],
)
def test_numbers_are_no_part_of_the_program(one, other):
    assert one.poison is other.poison


def test_success_counts_triggered_records_of_other_classes():
    label = np.array([1, 1, 1, 0, 0, 1])
    predicted = np.array([0, 1, 0, 0, 1, 1])
    rate = attacks.attack_success_rate(predicted, label, target=0)
    assert float(rate) == pytest.approx(2 / 4)
    some = np.array([1, 0, 0, 1, 1, 1])
    rate = attacks.attack_success_rate(predicted, label, target=0, weight=some)
    assert float(rate) == pytest.approx(1 / 2)
    rate = attacks.attack_success_rate(predicted, np.zeros(6), target=0)
    assert np.isnan(rate)
    streams = np.tile(label, (2, 1))
    rate = attacks.attack_success_rate(
        np.tile(predicted, (2, 1)), streams, target=0, weight=jnp.arange(6) >= 2
    )
    assert float(rate) == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("build", "part"),
    [
        (lambda: attacks.label_flip(num_classes=1), "not 1"),
        (lambda: attacks.label_noise(rate=2), "not 2"),
        (lambda: attacks.targeted_label_flip(source=1, target=1), "both 1"),
        (lambda: attacks.targeted_label_flip(source=-1), "-1"),
        (lambda: attacks.targeted_label_flip(share=-0.5), "-0.5"),
        (lambda: attacks.backdoor(attacks.Trigger((), ())), "0 columns"),
        (lambda: attacks.backdoor(attacks.Trigger((1,), (1, 2))), "2 values"),
        (lambda: attacks.backdoor(attacks.Trigger((1, 1), (1, 2))), "distinct"),
        (lambda: attacks.backdoor(attacks.Trigger((-1,), (1,))), "distinct"),
        (lambda: attacks.backdoor(attacks.Trigger((1,), (np.nan,))), "finite"),
        (lambda: attacks.backdoor(attacks.Trigger((1,), (1,), ())), "at least one"),
        (lambda: attacks.backdoor(TRIGGER, target=-1), "not -1"),
        (lambda: attacks.backdoor(TRIGGER, share=1.5), "not 1.5"),
        (lambda: attacks.distributed_backdoor(TRIGGER, parts=3), "2 cell"),
        (lambda: attacks.distributed_backdoor(TRIGGER, parts=1), "2 or more"),
        (lambda: attacks.apply_trigger(TRIGGER, np.zeros((2, 3))), "3 columns"),
        (lambda: attacks.apply_trigger(LATE, np.zeros(5)), "windows of 1 steps"),
        (lambda: attacks.apply_trigger(LATE, np.zeros((2, 5))), "windows of 2 steps"),
    ],
)
def test_what_cannot_be_is_refused(build, part):
    with pytest.raises(ValueError, match=r"trigger|attack|label|backdoor") as caught:
        build()
    assert part in str(caught.value)
