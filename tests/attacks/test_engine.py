"""Attacks inside the engine, and from a configuration to the files of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from fedjax_health import attacks, build, config, training
from fedjax_health.config import ConfigError, parse
from fedjax_health.core.types import Aggregator, DataAttack, Sampling, UpdateAttack
from fedjax_health.data.sampling import draw_clients
from fedjax_health.data.store import from_arrays, input_names
from fedjax_health.engine.round import compiled_step
from tests import tiny
from tests.engine.workload import SIZES, make_store, plan, run, to_vector

FLAGS = np.arange(len(SIZES)) % 3 == 1


def sums_of_rows():
    """An aggregator that moves nothing and reports the sum of every message."""

    def update(stacked, weights, state, key, *, context=None):
        rows = jax.vmap(lambda t: sum(jnp.sum(x) for x in jax.tree.leaves(t)))(stacked)
        return jax.tree.map(lambda x: x[0] * 0, stacked), state, {"rows": rows}

    return Aggregator(lambda p: (), update, lambda m, n: m, linear=False)


def constant():
    def forge(stacked, malicious, state, context):
        return jax.tree.map(lambda x: jnp.full_like(x, 100.0), stacked), state

    return UpdateAttack(lambda params: (), forge)


def broken_data(batch, context):
    return {**batch, "x": jnp.full_like(batch["x"], jnp.nan)}


def test_both_kinds_of_attack_draw_the_same_attackers():
    probe = sums_of_rows()
    both = plan(
        aggregator=probe,
        attack=attacks.during(constant(), start=1, share=0.5),
        data_attack=attacks.during(DataAttack(broken_data), start=1, share=0.5),
    )
    _, _, metrics = run(both, malicious=FLAGS, cohort=10, rounds=12)
    everyone = Sampling("fixed", population=10, expected=10)
    ids = np.array([draw_clients(everyone, 0, t) for t in range(12)])
    rows = np.array([m["rows"] for m in metrics])
    forged, flags = rows == 600.0, FLAGS[ids]
    assert not forged[0].any()
    # Whose data is broken is exactly who sends the forged message in its stead.
    assert not (rows == 0).any()
    assert all(m["non_finite"] == 0 for m in metrics)
    assert 0.25 < forged[1:][flags[1:]].mean() < 0.75
    assert not forged[~flags].any()


def test_a_data_attack_knows_a_record_again():
    store = make_store()
    number = np.concatenate([np.arange(n, dtype=np.int32) for n in SIZES])
    numbered = from_arrays({**store.rows, "number": number}, store.offsets)

    def check(batch, context):
        wrong = context.index != batch["number"]
        label = jnp.where(wrong, jnp.nan, batch["label"])
        return {**batch, "label": label}

    changed = plan(data_attack=DataAttack(check), aggregator=sums_of_rows())
    everyone = np.ones(len(SIZES), bool)
    _, _, metrics = run(changed, store=numbered, malicious=everyone, cohort=10)
    assert all(m["non_finite"] == 0 for m in metrics)


def test_numbers_of_a_data_attack_compile_nothing_anew():
    trigger = attacks.Trigger((0, 2), (1.0, 2.0))
    first, _, _ = run(
        plan(data_attack=attacks.backdoor(trigger)), malicious=FLAGS, rounds=1
    )
    before = compiled_step.cache_info().misses
    other = attacks.backdoor(trigger._replace(values=(5.0, 6.0)), target=1, share=0.9)
    _, state, _ = run(plan(data_attack=other), malicious=FLAGS, rounds=1)
    assert compiled_step.cache_info().misses == before
    np.testing.assert_array_equal(state.hyper["data_attack"]["values"], [5.0, 6.0])
    assert isinstance(hash(first.step), int)


def coordinate_median():
    def update(stacked, weights, state, key, *, context=None):
        def leaf(x):
            here = (weights > 0).reshape(-1, *[1] * (x.ndim - 1))
            return jnp.nanmedian(jnp.where(here, x, jnp.nan), axis=0)

        return jax.tree.map(leaf, stacked), state, {}

    return Aggregator(
        lambda p: (), update, lambda m, n: m, linear=False, depends_on="coordinates"
    )


def test_a_mesh_and_one_device_search_alike(meshes):
    rule = coordinate_median()
    found = {}
    for devices in (1, 4):
        _, state, _ = run(
            plan(attack=attacks.optimized(), aggregator=rule),
            malicious=FLAGS,
            cohort=10,
            rounds=2,
            mesh=meshes[devices],
        )
        found[devices] = state
        assert state.attack["state"]["strength"] > 0
    np.testing.assert_allclose(
        to_vector(found[1].params), to_vector(found[4].params), rtol=1e-5, atol=1e-6
    )


# From a configuration

EVERY_KIND = {
    "sign_flip": [],
    "ipm": ["attack.scale=0.5"],
    "alie": ["attack.z=1.5", "attack.sign=-1"],
    "optimized": ["attack.direction=ipm", "attack.limit=4"],
    "mimic": ["attack.warmup=1"],
    "min_max": ["attack.deviation=std"],
    "min_sum": ["attack.knowledge=colluders"],
    "fang": ["attack.form=trimmed_mean"],
    "gaussian": ["attack.std=0.1"],
    "nonfinite": ["attack.value=inf"],
    "free_rider": ["attack.noise=0.01"],
    "sybil": ["attack.jitter=0.1"],
    "model_replacement": ["attack.max_norm=3"],
    "neurotoxin": ["attack.masked=0.3"],
}
TRIGGER = ["data_attack.columns=['features.load', 'features.rate']"]
TRIGGER += ["data_attack.values=[3, -3]"]
EVERY_DATA_KIND = {
    "label_flip": [],
    "targeted_label_flip": ["data_attack.share=0.5"],
    "label_noise": ["data_attack.rate=0.2"],
    "backdoor": [*TRIGGER, "data_attack.steps=[-1]"],
    "distributed_backdoor": [*TRIGGER, "data_attack.parts=2"],
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return tiny.write_table(tmp_path_factory.mktemp("table") / "table.csv")


def short(table, *overrides):
    rounds = ["rounds=2", "malicious=[1, 3]"]
    return tiny.config(table, *rounds, *overrides)


def columns_of(table):
    settings = short(table)
    prepared = build.prepare(settings, build.build_dataset(settings))
    return input_names(prepared.parts.train)


def test_every_kind_of_record_builds_the_attack_of_its_name(table):
    kinds = [o.__struct_config__.tag for o in config.attacks.UpdateAttack.__args__]
    assert [*EVERY_KIND, "custom"] == kinds
    for kind, changes in EVERY_KIND.items():
        settings = short(table, f"attack={kind}", *changes)
        built = build.build_plan(settings).attack
        plain = getattr(attacks, kind)()
        assert isinstance(built, UpdateAttack)
        if kind not in ("optimized", "fang", "min_max", "min_sum"):
            assert built.forge is plain.forge
        params = {"w": jnp.zeros((2, 3))}
        state = jax.tree.leaves(built.init(params))
        assert len(state) == len(jax.tree.leaves(plain.init(params)))
    kinds = [o.__struct_config__.tag for o in config.attacks.DataAttack.__args__]
    assert [*EVERY_DATA_KIND, "custom"] == kinds
    names = columns_of(table)
    for kind, changes in EVERY_DATA_KIND.items():
        settings = short(table, f"data_attack={kind}", *changes)
        built = build.build_plan(settings, names).data_attack
        assert isinstance(built, DataAttack)
        assert built.init is not None
    alie = build.build_plan(short(table, "attack=alie", "attack.z=1.5")).attack
    assert alie.init(None)["z"] == 1.5
    timed = build.build_plan(
        short(table, "attack=alie", "attackers.start=3", "attackers.share=0.5"), names
    ).attack
    state = timed.init(None)
    assert (state["start"], state["share"]) == (3, 0.5)


def test_a_trigger_is_found_by_names_and_said_to_be_observed():
    record = config.Backdoor(columns=("a.x", "a.y"), values=(1.0, 2.0), steps=(0,))
    names = ("b.x", "a.y", "a.x", "a.y observed", "a.x observed", "a.x elapsed")
    trigger = build.attacks.build_trigger(record, names)
    assert trigger == attacks.Trigger((2, 4, 5, 1, 3), (1.0, 1.0, 0.0, 2.0, 1.0), (0,))
    with pytest.raises(ConfigError, match=r"no column 'a.x'; did you mean a.xx"):
        build.attacks.build_trigger(record, ("a.xx", "a.y"))


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["attack=fang", "attack.knowledge=colluders"], "config: attack: fang"),
        (["attack=fang", "attack.spread=0.5"], "config: attack: fang: spread"),
        (
            ["data_attack=targeted_label_flip", "data_attack.target=1"],
            "config: data_attack: targeted_label_flip",
        ),
        (["data_attack=backdoor"], "data_attack.columns: names no column"),
        (["data_attack=backdoor", TRIGGER[0]], "2 columns and 0 values"),
        (["attackers.start=3", "attackers.end=2"], "end=2 lies before start=3"),
        (["attack=alie", "attack.sign=2"], "attack.sign"),
    ],
)
def test_what_cannot_be_is_one_line(table, overrides, part):
    with pytest.raises(ConfigError, match=r"^config: ") as caught:
        build.build_plan(short(table, *overrides))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_with_both_kinds_of_attack(table, tmp_path):
    settings = short(
        table,
        "attack=optimized",
        "data_attack=backdoor",
        *EVERY_DATA_KIND["backdoor"],
        "attackers.start=1",
    )
    assert parse(config.to_toml(settings)) == settings
    attacked = tiny.Run(settings, tmp_path / "attacked")
    assert pd.notna([line["loss"] for line in attacked.lines]).all()
    honest = tiny.Run(short(table), tmp_path / "honest")
    first, second = (
        [line["aggregate_norm"] for line in side.lines] for side in (attacked, honest)
    )
    # The first round is not attacked; that it is stacked changes rounding alone.
    assert first[0] == pytest.approx(second[0], rel=1e-4)
    assert first[1] != pytest.approx(second[1], rel=1e-2)
    description = training.describe(settings)
    assert description["stages"]["3 forge messages"] == "optimized"
    assert description["stages"]["0 poison data"] == "backdoor"


@pytest.mark.slow
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_attack_on_updates_runs(table, tmp_path, kind):
    settings = short(table, f"attack={kind}", *EVERY_KIND[kind])
    lines = tiny.Run(settings, tmp_path).lines
    assert all(line["accepted"] for line in lines)
    expected = 2 if kind == "nonfinite" else 0
    assert all(line["non_finite"] == expected for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("kind", EVERY_DATA_KIND)
def test_every_attack_on_data_runs(table, tmp_path, kind):
    settings = short(table, f"data_attack={kind}", *EVERY_DATA_KIND[kind])
    attacked = tiny.Run(settings, tmp_path / "attacked").lines
    honest = tiny.Run(short(table), tmp_path / "honest").lines
    assert attacked[-1]["loss"] != pytest.approx(honest[-1]["loss"], rel=1e-4)
