"""Rules inside a round: on a mesh, with root data, and what is recorded of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fedjax_health import aggregators as agg
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import ClientBatches, UpdateAttack
from fedjax_health.data.store import to_examples
from fedjax_health.engine.round import detection_metrics
from tests.engine.workload import SIZES, make_store, plan, run

KEY = root_key(0)


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("name", ["median", "krum", "nnm"])
def test_blocks_are_shared_out_and_the_bits_are_the_same(name, devices, meshes):
    rule = {
        "median": agg.median,
        "krum": lambda: agg.krum(1),
        "nnm": lambda: agg.pipeline(agg.nnm(1), agg.trimmed_mean(1)),
    }[name]()
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(5, 100_003)), jnp.float32)

    def update(x):
        return rule.update(x, jnp.ones(5), rule.init(x[0]), KEY)[0]

    everywhere = PartitionSpec()
    spread = jax.jit(
        jax.shard_map(
            update,
            mesh=meshes[devices],
            in_specs=everywhere,
            out_specs=everywhere,
            check_vma=False,
        )
    )
    assert "all-gather" in spread.lower(x).compile().as_text()
    for stack in (x, x.at[1, 70_000].set(jnp.nan)):
        np.testing.assert_array_equal(spread(stack), update(stack))


def forge(stacked, malicious, state, context):
    del malicious, context
    return jax.tree.map(lambda x: jnp.full_like(x, 9.0), stacked), state


LOUD = UpdateAttack(lambda params: (), forge)


def malicious():
    return np.isin(np.arange(len(SIZES)), [1, 4])


def test_a_selecting_rule_is_compared_with_who_is_malicious():
    _, _, metrics = run(
        plan(aggregator=agg.multi_krum(2), attack=LOUD),
        cohort=len(SIZES),
        rounds=1,
        malicious=malicious(),
    )
    (record,) = metrics
    assert record["kept"].shape == (len(SIZES),)
    assert record["masked_rows"] == 0
    assert record["detection_precision"] == 1
    assert record["detection_recall"] == 1


def test_precision_and_recall_by_hand():
    def flags(text):
        return jnp.array([c == "1" for c in text])

    made = detection_metrics(flags("11110"), flags("10001"), flags("00111"))
    # Three were dropped (the last one sent nothing), two of them malicious; of two
    # malicious that sent something both were dropped.
    np.testing.assert_allclose(made["detection_precision"], 2 / 3)
    np.testing.assert_allclose(made["detection_recall"], 1)
    nobody = detection_metrics(flags("11111"), flags("11111"), flags("00000"))
    assert all(np.isnan(value) for value in nobody.values())


def test_broken_messages_count_towards_the_malicious_in_a_round():
    def broken(stacked, malicious, state, context):
        del malicious, context
        return jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), stacked), state

    _, _, metrics = run(
        plan(
            aggregator=agg.trimmed_mean(3),
            attack=UpdateAttack(lambda params: (), broken),
        ),
        cohort=len(SIZES),
        rounds=1,
        malicious=malicious(),
    )
    assert metrics[0]["masked_rows"] == 2
    assert metrics[0]["non_finite"] == 2


def test_root_data_feed_fltrust():
    store = make_store()
    batches = ClientBatches(
        num_examples=jnp.int32(SIZES[5]),
        num_steps=jnp.int32(2**31 - 1),
        index=jnp.int32(sum(SIZES[:5])),
        arrays=to_examples(store),
    )
    _, state, metrics = run(
        plan(aggregator=agg.fltrust(), attack=LOUD, root_batches=batches),
        cohort=len(SIZES),
        rounds=2,
        malicious=malicious(),
        store=store,
    )
    assert metrics[1]["trust"].shape == (len(SIZES),)
    assert np.all(np.isfinite(state.params["body"]["w"]))
    assert metrics[1]["loss"] < metrics[0]["loss"]
