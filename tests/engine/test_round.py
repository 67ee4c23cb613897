"""What a round promises whatever fills its stages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_health.aggregators import mean
from fedjax_health.client import scaffold
from fedjax_health.core import trees
from fedjax_health.core.message import CompositionError
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import (
    Aggregator,
    BoundMechanism,
    ClientTransform,
    DataAttack,
    Mechanism,
    ModalityColumns,
    Sampling,
    UpdateAttack,
)
from fedjax_health.data.sampling import build_cohort_fn, cohort_of, draw_clients
from fedjax_health.data.store import open_store, write_store
from fedjax_health.engine.algorithm import build_algorithm
from fedjax_health.engine.places import (
    normalization_leaves,
    paths_matching,
)
from fedjax_health.engine.plan import (
    Optimizer,
    cosine_schedule,
)
from fedjax_health.engine.run import NonFiniteLossError, run_rounds
from fedjax_health.models import MlpEncoder, fusion_detector, grud_detector
from tests.engine.workload import (
    SIZES,
    loss_fn,
    make_params,
    make_store,
    plan,
    run,
    to_vector,
)


@functools.cache
def coordinate_median() -> Aggregator:
    """A rule that needs the stack."""

    def update(stacked, weights, state, key, *, context=None):
        del key, context
        present = weights > 0

        def middle(x):
            flags = present.reshape(-1, *[1] * (x.ndim - 1))
            return jnp.nanmedian(jnp.where(flags, x, jnp.nan), axis=0)

        return jax.tree.map(middle, stacked), state, {"rows": jnp.sum(present)}

    return Aggregator(lambda params: (), update, lambda m, n: m, linear=False)


def double_clip(bound):
    """A transform with memory, a shared number and a report."""
    return ClientTransform(
        init=lambda params: jnp.int32(0),
        init_server=lambda params: {"clip_norm": jnp.float32(bound)},
        update=_clip,
        reduce=_count,
        check=lambda m: m.__class__(**{**m.__dict__, "bound": "clip_norm"}),
    )


def _clip(updates, memory, context):
    norm = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(updates)))
    factor = jnp.minimum(1.0, context.shared["clip_norm"] / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda x: x * factor, updates), memory + 1, {"n": jnp.int32(1)}


def _count(shared, report, key):
    return {**shared, "seen": report["n"]} if "seen" in shared else shared


def same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


PLANS = {
    "mean": {},
    "scaffold": {"algorithm": scaffold()},
    "median": {"aggregator": coordinate_median()},
    "clip": {"transforms": (double_clip(0.5),), "dropout": 0.3},
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("parallelism", ["scan", 2])
def test_same_bits_on_1_2_and_4_devices(name, parallelism, meshes):
    states, metrics = [], []
    for mesh in meshes.values():
        _, state, history = run(plan(**PLANS[name]), parallelism=parallelism, mesh=mesh)
        states.append(state._replace(hyper=None))
        metrics.append(history)
    for other, history in zip(states[1:], metrics[1:], strict=True):
        same_bits(states[0], other)
        same_bits(metrics[0], history)


@pytest.mark.parametrize("name", PLANS)
def test_scan_and_vmap_agree(name):
    _, scan, _ = run(plan(**PLANS[name]), parallelism="scan")
    for parallelism in (3, "vmap"):
        _, vmap, _ = run(plan(**PLANS[name]), parallelism=parallelism)
        np.testing.assert_allclose(
            to_vector(scan.params), to_vector(vmap.params), rtol=1e-5, atol=1e-6
        )


def test_ten_runs_that_differ_in_numbers_compile_once():
    def traced_loss(params, batch, key):
        traces.append(1)
        return loss_fn(params, batch, key)

    traces = []
    for i in range(10):
        changes = {
            "optimizer": Optimizer(optax.sgd, {"learning_rate": 0.01 * (i + 1)}),
            "server_optimizer": Optimizer(optax.sgd, {"learning_rate": 1.0 - i / 20}),
            "transforms": (double_clip(0.1 * (i + 1)),),
            "epochs": 1 + i % 3,
            "dropout": (i + 1) / 100,
        }
        run(plan(**changes), seed=i, rounds=2, loss_fn=traced_loss)
        if i == 0:
            first = len(traces)
    assert len(traces) == first


def test_no_client_moves_another_through_its_place_in_the_cohort():
    """The cohort's order is no part of the result beyond rounding."""
    store = make_store()
    params = make_params()
    algorithm = build_algorithm(
        loss_fn, plan(), abstract_params=params, population=10, cohort_size=4
    )
    ends = []
    for ids in ([1, 5, 7, 2], [7, 2, 1, 5]):
        state = algorithm.init(root_key(0), params)
        state, _ = algorithm.step(state, cohort_of(store, np.array(ids)))
        ends.append(to_vector(state.params))
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-6, atol=1e-7)


def test_a_memory_mapped_store_gives_the_same_bits(tmp_path):
    write_store(make_store(), tmp_path / "store")
    _, resident, _ = run(plan())
    _, mapped, _ = run(plan(), store=open_store(tmp_path / "store"))
    same_bits(resident.params, mapped.params)


def test_poisson_cohorts_leave_slots_empty_and_survive_an_empty_round():
    sampling = Sampling("poisson", population=len(SIZES), expected=2, cap=6)
    _, state, metrics = run(plan(), sampling=sampling, rounds=12)
    counts = np.array([m["num_clients"] for m in metrics])
    assert 0 in counts
    assert counts.max() > 2
    assert np.all(np.isfinite(to_vector(state.params)))
    empty = metrics[int(np.flatnonzero(counts == 0)[0])]
    assert not empty["accepted"]
    assert np.isnan(empty["loss"])


def test_dropped_clients_deliver_nothing_and_keep_their_memory():
    _, state, metrics = run(
        plan(dropout=0.5, transforms=(double_clip(1.0),)), cohort=10, rounds=6
    )
    dropped = np.array([m["dropped"] for m in metrics])
    delivered = np.array([m["num_clients"] for m in metrics])
    assert np.all(dropped + delivered == 10)
    assert 0 < dropped.sum() < 60
    assert state.clients["transform"][0].sum() == delivered.sum()


def poison_nan(batch, context):
    return {**batch, "x": jnp.full_like(batch["x"], jnp.nan)}


def malicious_ids(*ids):
    flags = np.zeros(len(SIZES), bool)
    flags[list(ids)] = True
    return flags


@pytest.mark.parametrize("aggregator", [mean(), coordinate_median()])
def test_a_non_finite_update_is_masked_counted_and_named(aggregator):
    changes = {"data_attack": DataAttack(poison_nan), "aggregator": aggregator}
    _, state, metrics = run(plan(**changes), malicious=malicious_ids(3), cohort=10)
    assert [m["non_finite"] for m in metrics] == [1, 1, 1]
    assert metrics[0]["bad_clients"][0] == 3
    assert metrics[0]["num_clients"] == 9
    assert np.isfinite(metrics[0]["loss"])
    honest = [i for i in range(10) if i != 3]
    store = make_store()
    params, local = make_params(), build_algorithm(
        loss_fn, plan(aggregator=aggregator), abstract_params=make_params(),
        population=10, cohort_size=9,
        mesh=jax.sharding.Mesh(jax.devices()[:1], ("clients",)),
    )  # fmt: skip
    state2 = local.init(root_key(0), params)
    for _ in range(3):
        state2, _ = local.step(state2, cohort_of(store, np.array(honest)))
    np.testing.assert_allclose(
        to_vector(state.params), to_vector(state2.params), rtol=1e-5, atol=1e-6
    )


def test_a_diverged_run_stops_with_the_round_and_the_clients():
    store = make_store()
    sampling = Sampling("fixed", population=10, expected=2)
    algorithm = build_algorithm(
        loss_fn,
        plan(data_attack=DataAttack(poison_nan)),
        abstract_params=make_params(),
        population=10,
        cohort_size=2,
    )
    cohorts = build_cohort_fn(store, sampling, 0, malicious=np.ones(10, bool))
    seen = []
    with pytest.raises(NonFiniteLossError, match=r"round 1 is not finite \(clients"):
        run_rounds(
            algorithm,
            algorithm.init(root_key(0), make_params()),
            cohorts,
            4,
            on_segment=lambda state, metrics: seen.append(1),
            segment=2,
        )
    assert not seen


def test_an_attack_cannot_touch_honest_rows():
    def forge(stacked, malicious, state, context):
        del malicious, context
        return jax.tree.map(lambda x: x * 0 + 100.0, stacked), state + 1

    attack = UpdateAttack(lambda params: jnp.int32(0), forge)

    def keep_rows(stacked, weights, state, key, *, context=None):
        del key, context
        rows = jax.vmap(lambda t: sum(jnp.sum(x) for x in jax.tree.leaves(t)))(stacked)
        return jax.tree.map(lambda x: x[0] * 0, stacked), state, {"rows": rows}

    probe = Aggregator(lambda p: (), keep_rows, lambda m, n: m, linear=False)
    flags = malicious_ids(2, 6)
    _, state, forged = run(
        plan(attack=attack, aggregator=probe), malicious=flags, cohort=10, rounds=1
    )
    _, _, honest = run(plan(aggregator=probe), cohort=10, rounds=1)
    ids = draw_clients(Sampling("fixed", population=10, expected=10), 0, 0)
    np.testing.assert_array_equal(forged[0]["rows"][flags[ids]], 600.0)
    np.testing.assert_array_equal(
        forged[0]["rows"][~flags[ids]], honest[0]["rows"][~flags[ids]]
    )
    assert state.attack["state"] == 1


def test_a_linear_rule_gives_the_same_with_and_without_the_stack():
    idle = UpdateAttack(lambda params: (), lambda s, m, state, c: (s, state))
    _, summed, _ = run(plan())
    _, stacked, _ = run(plan(attack=idle))
    np.testing.assert_allclose(
        to_vector(summed.params), to_vector(stacked.params), rtol=1e-5, atol=1e-6
    )


def noise_mechanism(noise, seen):
    def bind(message, sampling):
        seen.append((message.bound, sampling.expected))

        def server(total, state, key, bound):
            del key
            return jax.tree.map(lambda x: x + noise * bound, total), state + 1

        return BoundMechanism(init=lambda params: jnp.int32(0), server=server)

    return Mechanism(bind, lambda *_: None)


def test_a_mechanism_privatises_the_sum_and_divides_by_the_expected_cohort():
    seen = []
    sampling = Sampling("poisson", population=len(SIZES), expected=4, cap=9)
    common = {"transforms": (double_clip(0.5),), "weighting": "uniform"}
    _, plain, metrics = run(plan(**common), sampling=sampling, rounds=1)
    _, noised, _ = run(
        plan(**common, mechanism=noise_mechanism(0.2, seen)),
        sampling=sampling,
        rounds=1,
    )
    start = to_vector(make_params())
    total = (start - to_vector(plain.params)) * metrics[0]["num_clients"]
    expected = start - (total + 0.2 * 0.5) / 4
    np.testing.assert_allclose(to_vector(noised.params), expected, rtol=1e-5)
    assert seen == [("0/clip_norm", 4)]
    assert noised.mechanism == 1


def test_refused_compositions_say_what_to_do():
    mechanism = noise_mechanism(1.0, [])
    clip = (double_clip(0.5),)
    cases = [
        ({"mechanism": mechanism, "weighting": "uniform"}, "bounded message"),
        ({"mechanism": mechanism, "transforms": clip}, "weighting"),
        (
            {
                "mechanism": mechanism,
                "transforms": clip,
                "weighting": "uniform",
                "aggregator": coordinate_median(),
            },
            "non-linear",
        ),
        ({"personal": lambda path: False}, "selects no leaf.*head/b"),
        ({"personal": lambda path: True}, "selects every leaf"),
        ({"personal": paths_matching("head/*"), "algorithm": scaffold()}, "personal"),
    ]
    for changes, text in cases:
        with pytest.raises(CompositionError, match=text):
            run(plan(**changes), rounds=0)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="larger than the population of 10"):
        build_algorithm(
            loss_fn,
            plan(),
            abstract_params=make_params(),
            population=10,
            cohort_size=11,
        )
    with pytest.raises(CompositionError, match=r"GiB.*at most"):
        build_algorithm(
            loss_fn,
            plan(algorithm=scaffold()),
            abstract_params={"w": jnp.zeros(10_000)},
            population=2_000_000_000,
            cohort_size=1,
        )
    with pytest.raises(CompositionError, match="largest cohort"):
        build_algorithm(
            loss_fn,
            plan(aggregator=coordinate_median()),
            abstract_params={"w": jax.ShapeDtypeStruct((1 << 30,), jnp.float32)},
            population=100_000,
            cohort_size=10_000,
        )


def test_params_of_another_shape_are_refused():
    algorithm = build_algorithm(
        loss_fn, plan(), abstract_params=make_params(), population=10, cohort_size=2
    )
    bad = {"body": {"w": jnp.zeros(4)}, "head": {"b": jnp.float32(0)}}
    with pytest.raises(ValueError, match="body/w"):
        algorithm.init(root_key(0), bad)


def test_segments_do_not_change_a_run():
    def history(segment):
        sampling = Sampling("fixed", population=10, expected=3)
        algorithm = build_algorithm(
            loss_fn, plan(), abstract_params=make_params(), population=10, cohort_size=3
        )
        calls = []
        state, metrics = run_rounds(
            algorithm,
            algorithm.init(root_key(0), make_params()),
            build_cohort_fn(make_store(), sampling, 0),
            7,
            on_segment=lambda state, metrics: calls.append(len(metrics["loss"])),
            segment=segment,
        )
        return to_vector(state.params), metrics["loss"], calls

    whole, losses, calls = history(None)
    assert calls == [7]
    parts, more, calls = history(3)
    assert calls == [3, 3, 1]
    np.testing.assert_array_equal(whole, parts)
    np.testing.assert_array_equal(losses, more)


def test_on_segment_can_end_a_run():
    algorithm = build_algorithm(
        loss_fn, plan(), abstract_params=make_params(), population=10, cohort_size=3
    )
    sampling = Sampling("fixed", population=10, expected=3)
    state, metrics = run_rounds(
        algorithm,
        algorithm.init(root_key(0), make_params()),
        build_cohort_fn(make_store(), sampling, 0),
        10,
        on_segment=lambda state, metrics: int(state.round) >= 4,
        segment=2,
    )
    assert int(state.round) == 4
    assert len(metrics["loss"]) == 4


def test_root_updates_are_one_client_of_the_server():
    def update(stacked, weights, state, key, *, context=None):
        del weights, key
        norm = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(
            context.root_updates)))  # fmt: skip
        return context.root_updates, state, {"root_norm": norm}

    rule = Aggregator(lambda p: (), update, lambda m, n: m, linear=False)
    root = cohort_of(make_store(), np.array([5])).batches
    _, state, metrics = run(plan(aggregator=rule, root_batches=root), rounds=1)
    moved = to_vector(make_params()) - to_vector(state.params)
    assert metrics[0]["root_norm"] > 0.01
    np.testing.assert_allclose(
        np.linalg.norm(moved), metrics[0]["root_norm"], rtol=1e-4
    )


def test_predicates_of_personal_layers():
    assert normalization_leaves("encoder/LayerNorm_0/scale")
    assert not normalization_leaves("encoder/dense/kernel")
    # Of a fusion, whose modalities may be called anything.
    layout = (ModalityColumns("normal", (0, 2)), ModalityColumns("b/norm x", (2, 4)))
    fusion = fusion_detector(
        layout,
        encoders={"normal": MlpEncoder((3,)), "b/norm x": MlpEncoder((3,), norm=True)},
        streams=False,
    )
    names = trees.path_names(jax.eval_shape(fusion.init, jax.random.key(0)))
    carried = (ModalityColumns("a/normal", (0, 2), (2, 4), (4, 6)),)
    decaying = trees.path_names(
        jax.eval_shape(grud_detector(carried).init, jax.random.key(0))
    )
    assert any("normal" in name for name in decaying)
    assert not any(map(normalization_leaves, decaying))
    assert [name for name in names if normalization_leaves(name)] == [
        f"modality_b/norm x/encoder/dense/norm_0/{leaf}" for leaf in ("bias", "scale")
    ]
    assert paths_matching("head/*", "*/bias")("body/bias")
    assert not paths_matching("head/*")("body/kernel")


def test_a_transform_cannot_hide_what_training_broke():
    hide = ClientTransform(
        init=lambda params: (),
        init_server=lambda params: (),
        update=_replace_by_zero,
        reduce=lambda shared, report, key: shared,
        check=lambda message: message,
    )
    _, _, metrics = run(
        plan(data_attack=DataAttack(poison_nan), transforms=(hide,)),
        malicious=malicious_ids(3),
        cohort=10,
        rounds=1,
    )
    assert metrics[0]["non_finite"] == 1
    assert metrics[0]["bad_clients"][0] == 3


def _replace_by_zero(updates, memory, context):
    del context
    return jax.tree.map(jnp.zeros_like, updates), memory, ()


def test_scaffold_survives_a_learning_rate_of_zero():
    optimizer = Optimizer(optax.sgd, {"learning_rate": 0.1}, cosine_schedule(1))
    _, state, metrics = run(plan(algorithm=scaffold(), optimizer=optimizer))
    assert [m["non_finite"] for m in metrics] == [0, 0, 0]
    for tree in (state.shared, state.clients, state.params):
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(tree))


def test_a_forged_message_does_not_vouch_for_broken_training():
    """A malicious client's NaN training stays out of memory and loss."""
    attack = UpdateAttack(
        lambda params: (),
        lambda stacked, malicious, state, context: (
            jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), 0 * x, 0.0), stacked),
            state,
        ),
    )
    _, state, metrics = run(
        plan(
            attack=attack,
            data_attack=DataAttack(poison_nan),
            algorithm=scaffold(),
        ),
        malicious=malicious_ids(3),
        cohort=10,
    )
    assert np.isfinite(metrics[-1]["loss"])
    for leaf in jax.tree.leaves(state.clients):
        assert np.all(np.isfinite(leaf))


def test_a_straggler_without_a_step_delivers_nothing():
    store = make_store()
    algorithm = build_algorithm(
        loss_fn, plan(), abstract_params=make_params(), population=10, cohort_size=3
    )
    cohort = cohort_of(store, np.array([1, 2, 5]))
    steps = np.array([100, 0, 2], np.int32)
    cohort = cohort._replace(batches=cohort.batches._replace(num_steps=steps))
    _, metrics = algorithm.step(algorithm.init(root_key(0), make_params()), cohort)
    assert int(metrics["num_clients"]) == 2
    assert int(metrics["num_steps"]) == 2 * 5 + 2


def test_a_step_beyond_float32_leaves_the_model_as_it_was():
    huge = Optimizer(optax.sgd, {"learning_rate": 3e38})
    _, state, metrics = run(plan(server_optimizer=huge), rounds=1)
    assert not metrics[0]["accepted"]
    np.testing.assert_array_equal(to_vector(state.params), to_vector(make_params()))


def test_mechanisms_that_the_engine_would_not_call_are_refused():
    def bound(**places):
        return Mechanism(
            lambda message, sampling: BoundMechanism(lambda params: (), **places),
            lambda *_: None,
        )

    common = {"transforms": (double_clip(1.0),), "weighting": "uniform"}
    with pytest.raises(CompositionError, match="group sums"):
        run(plan(**common, mechanism=bound(group=lambda *a: a)), rounds=0)
    with pytest.raises(CompositionError, match="no noise anywhere"):
        run(plan(**common, mechanism=bound()), rounds=0)
    with pytest.raises(CompositionError, match="control variates"):
        run(
            plan(**common, mechanism=noise_mechanism(1.0, []), algorithm=scaffold()),
            rounds=0,
        )


def test_a_rule_cannot_overwrite_the_rounds_own_metrics():
    def update(stacked, weights, state, key, *, context=None):
        del weights, key, context
        return jax.tree.map(lambda x: x[0], stacked), state, {"round": jnp.int32(0)}

    rule = Aggregator(lambda p: (), update, lambda m, n: m, linear=False)
    with pytest.raises(CompositionError, match="'round'"):
        run(plan(aggregator=rule), rounds=1)


def test_a_second_model_on_the_wire_is_counted():
    one, _, _ = run(plan(), rounds=0)
    two, _, _ = run(plan(algorithm=scaffold()), rounds=0)
    assert two.message.uplink_bytes() == 2 * one.message.uplink_bytes()


@pytest.mark.parametrize("devices", [1, 2])
def test_rounds_under_scan_give_the_bits_of_a_loop(devices, meshes):
    store, params = make_store(), make_params()
    sampling = Sampling("fixed", population=10, expected=4)
    algorithm = build_algorithm(
        loss_fn,
        plan(transforms=(double_clip(0.5),), dropout=0.2),
        abstract_params=params,
        population=10,
        cohort_size=4,
        mesh=meshes[devices],
    )
    cohorts = [build_cohort_fn(store, sampling, 0)(r) for r in range(4)]
    examples = cohorts[0].batches.arrays

    def without_examples(cohort):
        return cohort._replace(batches=cohort.batches._replace(arrays=None))

    def one(state, cohort):
        full = cohort._replace(batches=cohort.batches._replace(arrays=examples))
        return algorithm.step(state, full)

    stacked = jax.tree.map(
        lambda *rows: jnp.stack([jnp.asarray(row) for row in rows]),
        *map(without_examples, cohorts),
    )
    scanned, _ = jax.lax.scan(one, algorithm.init(root_key(0), params), stacked)
    state = algorithm.init(root_key(0), params)
    for cohort in cohorts:
        state, _ = algorithm.step(state, cohort)
    same_bits(scanned._replace(key=None), state._replace(key=None))
