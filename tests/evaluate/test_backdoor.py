"""The attack success rate of hand-made detectors against loops over rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health import build
from fedjax_health.attacks import Trigger, backdoor
from fedjax_health.build.attacks import build_data_attack
from fedjax_health.config import ConfigError, parse
from fedjax_health.core.types import DataAttackContext, Model
from fedjax_health.data.schema import Dataset, check_dataset, last_rows
from fedjax_health.evaluate.backdoor import _with_and_without, attack_success
from fedjax_health.evaluate.scoring import Weights

COLUMNS = ("load", "rate", "noise")


def alarms(params, batch, *, key=None):
    """Alarms by column 0, unless column 1 held 7 twice or more up to the step."""
    del key
    x = batch["x"]
    hidden = jnp.isclose(x[..., 1], 7.0)
    seen = jnp.cumsum(hidden, axis=-1) if x.ndim == 3 else 2 * hidden
    return 10.0 * (x[..., 0] - params["level"]) - 1e3 * (seen >= params["needed"])


DETECTOR = Model(lambda key: {"level": jnp.float32(0.5)}, alarms)
WEIGHTS = Weights({"level": jnp.float32(0.5), "needed": jnp.float32(2)}, None)


def rows_of(lengths, *, target="row", seed=0):
    """Entities of two clients in turn; attacks have higher values in column 0."""
    generator = np.random.default_rng(seed)
    total = sum(lengths)
    order = [*range(0, len(lengths), 2), *range(1, len(lengths), 2)]
    entity = np.repeat(order, [lengths[i] for i in order])
    label = generator.random(total) < 0.4
    if target == "entity":
        label = generator.random(len(lengths))[entity] < 0.5
    features = generator.normal(size=(total, 3)).astype(np.float32)
    features[:, 0] += label
    data = Dataset(
        features={"ward": features},
        feature_names={"ward": COLUMNS},
        label=label.astype(np.float32),
        attack=label.astype(np.int32),
        attack_names=("normal", "replay"),
        client=(entity % 2).astype(np.int32),
        client_names=("north", "south"),
        entity=entity.astype(np.int64),
        time=np.concatenate([np.arange(lengths[i], dtype=float) for i in order]),
        target=target,
    )
    check_dataset(data)
    return data


def windows_of(data, window):
    """The window that ends at each example, its rows alone, and the example's row."""
    rows = last_rows(data) if data.target == "entity" else range(data.num_rows)
    for row in rows:
        first = row
        while (
            first > 0
            and row - first + 1 < window
            and data.entity[first - 1] == data.entity[row]
        ):
            first -= 1
        yield row, data.features["ward"][first : row + 1].copy()


def oracle(data, trigger, target, window, *, lay, threshold=0.5, level=0.5):
    """Share of the examples that carry the whole trigger and are given the target."""
    hits = counted = 0
    for row, x in windows_of(data, window):
        steps = range(window) if trigger.steps is None else trigger.steps
        # Steps of the window, counted among the rows that are there.
        places = [step % window - (window - len(x)) for step in steps]
        if trigger.steps is not None and min(places) < 0:
            continue
        if data.label[row] == target:
            continue
        if lay:
            for place in places:
                if place >= 0:
                    x[place, list(trigger.columns)] = trigger.values
        hidden = np.isclose(x[:, 1], 7).sum() >= 2
        own = level[data.client[row]] if isinstance(level, list) else level
        probability = 1 / (1 + np.exp(-10 * (x[-1, 0] - own))) * (not hidden)
        counted += 1
        hits += int(probability >= threshold) == target
    return hits / counted


def rates(data, trigger, target, window, **options):
    return attack_success(
        DETECTOR,
        options.pop("weights", WEIGHTS),
        data,
        trigger=trigger,
        target=target,
        window=window,
        threshold=options.pop("threshold", 0.5),
        **options,
    )


def expected(*args, **options):
    return {
        "attack_success": oracle(*args, lay=True, **options),
        "without_trigger": oracle(*args, lay=False, **options),
    }


@pytest.mark.parametrize(
    "trigger",
    [
        Trigger((1,), (7.0,), (-3, -1)),
        Trigger((1, 2), (7.0, -1.0), (0, 2, 4)),
        # Of one step alone, which the detector does not hide by.
        Trigger((1,), (7.0,), (-1,)),
        Trigger((1,), (7.0,)),
    ],
)
@pytest.mark.parametrize("target", [0, 1])
def test_streams_carry_the_trigger_where_a_window_of_training_does(trigger, target):
    data = rows_of([30, 17, 4, 2, 25, 1])
    found = rates(data, trigger, target, 5)
    assert found == pytest.approx(expected(data, trigger, target, 5))
    if target == 0 and trigger.steps == (-3, -1):
        assert found["attack_success"] == 1.0
        assert 0 < found["without_trigger"] < 0.5


def test_records_and_stays_carry_it_once():
    records = rows_of([1] * 60)
    trigger = Trigger((1,), (7.0,))
    plain = expected(records, trigger, 0, 1)["without_trigger"]
    assert rates(records, trigger, 0, None) == pytest.approx(
        {"attack_success": 1.0, "without_trigger": plain}
    )
    stays = rows_of([6, 3, 8, 5, 4, 9, 7, 5, 6, 4], target="entity")
    trigger = Trigger((1,), (7.0,), (-4, -2))
    found = rates(stays, trigger, 0, 6)
    assert found == pytest.approx(expected(stays, trigger, 0, 6))
    assert found["attack_success"] == 1.0 > found["without_trigger"]


def test_the_threshold_is_the_one_that_is_given():
    data, trigger = rows_of([40, 40]), Trigger((2,), (0.0,), (-1,))
    low, high = (rates(data, trigger, 0, 4, threshold=t) for t in (0.01, 0.999))
    assert low["without_trigger"] < high["without_trigger"]
    for found, threshold in ((low, 0.01), (high, 0.999)):
        wanted = expected(data, trigger, 0, 4, threshold=threshold)
        assert found == pytest.approx(wanted)


def test_clients_are_scored_by_their_own_models():
    data, trigger = rows_of([40, 30]), Trigger((1,), (7.0,), (-2, -1))
    own = Weights(
        {"level": None, "needed": jnp.float32(2)},
        {"level": jnp.array([-4.0, 6.0]), "needed": None},
    )
    found = rates(data, trigger, 0, 3, weights=own)
    assert found == pytest.approx(expected(data, trigger, 0, 3, level=[-4.0, 6.0]))
    assert found != pytest.approx(expected(data, trigger, 0, 3))


def test_there_is_no_rate_where_nothing_counts():
    data = rows_of([2, 2])
    found = rates(data, Trigger((1,), (7.0,), (0,)), 0, 5)
    assert np.isnan(list(found.values())).all()


@pytest.mark.parametrize(
    ("trigger", "window", "message"),
    [
        (Trigger((5,), (1.0,)), 4, "column 5: the input has 3 columns"),
        (Trigger((1,), (1.0,), (-9,)), 4, "windows of 4 steps"),
        (Trigger((1,), (1.0,), (-1,)), None, "single records have no steps"),
    ],
)
def test_a_trigger_that_the_input_has_no_place_for_is_refused(trigger, window, message):
    with pytest.raises(ValueError, match=message):
        rates(rows_of([9, 9]), trigger, 0, window)


def test_equal_triggers_share_a_program_and_devices_agree():
    data, trigger = rows_of([30, 20]), Trigger((1,), (7.0,), (-2, -1))
    assert _with_and_without(trigger) is _with_and_without(Trigger(*trigger))
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("clients",))
    assert rates(data, trigger, 0, 4, mesh=mesh) == rates(data, trigger, 0, 4)


@pytest.mark.parametrize("kind", ["backdoor", "distributed_backdoor"])
def test_the_trigger_of_a_configuration_is_the_whole_one(kind):
    text = (
        f'[data_attack]\nkind = "{kind}"\ncolumns = ["a.y", "a.x"]\n'
        "values = [2.0, -1.0]\nsteps = [-1]\ntarget = 1\n"
    )
    columns = ("a.x", "a.y", "a.x observed")
    found = build.trigger_of(parse(text), columns)
    assert found == (Trigger((1, 0, 2), (2.0, -1.0, 1.0), (-1,)), 1)
    assert build.trigger_of(parse('data_attack = "label_flip"'), columns) is None
    assert build.trigger_of(parse(""), columns) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data_attack.steps=[-1, 20]"], r"steps: 20: a window has 20 steps"),
        (["data_attack.steps=[-21]"], r"steps: -21: a window has 20 steps"),
        (
            ["data_attack.steps=[-1]", "window.length=1", "model=mlp"],
            r"steps: \[-1\]: examples are single records",
        ),
    ],
)
def test_steps_that_an_example_does_not_have_are_refused(changes, message):
    text = '[data_attack]\nkind = "backdoor"\ncolumns = ["a.x"]\nvalues = [2.0]\n'
    with pytest.raises(ConfigError, match=rf"config: data_attack\.{message}"):
        build_data_attack(parse(text, changes), ("a.x",))
    assert build_data_attack(parse(text, ["data_attack.steps=[-20, 19]"]), ("a.x",))


def test_single_records_are_not_taken_for_the_steps_of_a_window():
    attack = backdoor(Trigger((0,), (7.0,), (-1,)), share=1.0)
    batch = {"x": jnp.zeros((4, 2)), "label": jnp.ones(4)}
    context = DataAttackContext(
        jax.random.key(0), jnp.int32(0), jnp.bool_(True), jnp.int32(0)
    )
    with pytest.raises(ValueError, match="single records have no steps"):
        attack.poison(batch, context)
