"""How clients are dealt to blocks and devices."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.engine.parallel import BLOCKS, Mapping, arrange, resolve_mapping


def mesh_of(devices):
    return jax.sharding.Mesh(jax.devices()[:devices], ("clients",))


def mapping_for(cohort, parallelism, devices=1, client_bytes=1000):
    return resolve_mapping(
        parallelism,
        cohort_size=cohort,
        client_bytes=client_bytes,
        mesh=mesh_of(devices),
    )


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
@pytest.mark.parametrize("parallelism", ["auto", "scan", "vmap", 1, 3, 1000])
def test_there_is_a_place_for_everyone_and_few_are_empty(parallelism, devices):
    for cohort in range(1, 131):
        mapping = mapping_for(cohort, parallelism, devices)
        assert mapping.num_devices == devices
        assert mapping.blocks % devices == 0
        assert 1 <= mapping.chunk <= cohort
        assert mapping.slots >= cohort
        chunks = math.ceil(cohort / mapping.chunk)
        assert mapping.per_block == math.ceil(chunks / mapping.blocks)


@pytest.mark.parametrize("parallelism", ["scan", 3])
def test_blocks_do_not_depend_on_a_device_count_that_divides_them(parallelism):
    """The order of every sum is that of the blocks, empty ones at the end."""
    for cohort in range(1, 70):
        orders = []
        for devices in (1, 2, 4):
            mapping = mapping_for(cohort, parallelism, devices)
            chunks = math.ceil(cohort / mapping.chunk)
            rows = np.arange(mapping.blocks * mapping.per_block)
            rows = rows.reshape(mapping.per_block, mapping.blocks)
            rows[1::2] = rows[1::2, ::-1]
            blocks = [[int(c) for c in b if c < chunks] for b in rows.T]
            orders.append([b for b in blocks if b])
        assert orders[0] == orders[1] == orders[2]


def test_auto_scans_on_cpu():
    assert mapping_for(20, "auto").chunk == 1
    assert mapping_for(20, "auto") == mapping_for(20, "scan")
    assert mapping_for(500, "scan").blocks == BLOCKS


def test_vmap_takes_a_devices_share_unless_memory_forbids():
    assert mapping_for(20, "vmap", 1).chunk == 20
    assert mapping_for(20, "vmap", 4).chunk == 5
    assert mapping_for(20, "vmap", 1, client_bytes=1 << 28).chunk == 4
    assert mapping_for(20, "vmap", 1, client_bytes=1 << 40).chunk == 1
    assert mapping_for(20, "vmap", 1, client_bytes=0).chunk == 20


def test_a_chunk_is_no_larger_than_the_cohort():
    assert mapping_for(5, 64).chunk == 5


def test_without_a_mesh_all_devices_share_the_work():
    mapping = resolve_mapping("scan", cohort_size=8, client_bytes=1, mesh=None)
    assert mapping.num_devices == len(jax.local_devices()) == 4


@pytest.mark.parametrize("parallelism", ["loop", "", True, False, None, 2.0, "4"])
def test_unknown_parallelism_is_refused(parallelism):
    with pytest.raises(ValueError, match="one of auto, scan, vmap or a chunk size"):
        mapping_for(4, parallelism)


@pytest.mark.parametrize("chunk", [0, -3])
def test_an_empty_chunk_is_refused(chunk):
    with pytest.raises(ValueError, match=f"1 client or more, not {chunk}"):
        mapping_for(4, chunk)


def test_another_mesh_is_refused_with_the_right_one():
    devices = np.array(jax.devices()[:4])
    for mesh in (
        jax.sharding.Mesh(devices, ("batch",)),
        jax.sharding.Mesh(devices.reshape(2, 2), ("clients", "model")),
    ):
        with pytest.raises(ValueError, match=r"one axis 'clients'.*jax\.make_mesh"):
            resolve_mapping("scan", cohort_size=4, client_bytes=1, mesh=mesh)


def test_a_mapping_is_told_in_words():
    assert mapping_for(20, "scan").describe() == (
        "scan over clients, each to its own step count; 4 blocks on 1 device"
    )
    assert mapping_for(20, 5, 4).describe() == (
        "vmap over chunks of 5 clients sorted by steps; 4 blocks on 4 devices"
    )


def test_mappings_are_values():
    assert hash(mapping_for(9, 2, 2)) == hash(mapping_for(9, 2, 2))
    assert mapping_for(9, 2, 2) != mapping_for(9, 2, 4)


CASES = [
    (cohort, parallelism, devices)
    for devices in (1, 2, 4)
    for cohort, parallelism in [
        (1, "scan"),
        (7, "scan"),
        (8, 3),
        (33, "scan"),
        (50, 4),
        (50, "vmap"),
    ]
]


def steps_for(cohort):
    rng = np.random.default_rng(cohort)
    steps = rng.pareto(1.2, size=cohort) * 10
    steps[rng.random(cohort) < 0.2] = 0
    return steps.astype(np.int32)


@pytest.mark.parametrize(("cohort", "parallelism", "devices"), CASES)
def test_every_slot_has_exactly_one_place(cohort, parallelism, devices):
    mapping = mapping_for(cohort, parallelism, devices)
    steps = steps_for(cohort)
    layout, place = jax.jit(arrange, static_argnums=1)(jnp.asarray(steps), mapping)
    layout, place = np.asarray(layout), np.asarray(place)
    shape = (devices, mapping.blocks // devices, mapping.per_block, mapping.chunk)
    assert layout.shape == shape
    assert layout.dtype == place.dtype == np.int32
    flat = layout.ravel()
    assert np.all((flat >= 0) & (flat <= cohort))
    np.testing.assert_array_equal(np.sort(flat[flat < cohort]), np.arange(cohort))
    assert np.sum(flat == cohort) == mapping.slots - cohort
    np.testing.assert_array_equal(flat[place], np.arange(cohort))

    # The work of a chunk is that of its longest client.
    padded = np.append(steps, 0)
    work = padded[layout].max(axis=3)
    per_block = work.sum(axis=2)
    assert per_block.max() - per_block.min() <= steps.max()
    # Clients of a chunk are neighbours in the order by steps: spans do not overlap.
    filled = layout.reshape(-1, mapping.chunk)
    spans = [
        (padded[row[row < cohort]].max(), padded[row[row < cohort]].min())
        for row in filled
        if np.any(row < cohort)
    ]
    spans.sort(reverse=True)
    for (_, low), (high, _) in itertools.pairwise(spans):
        assert low >= high


def test_slots_of_equal_steps_keep_their_order():
    mapping = Mapping(chunk=1, blocks=4, per_block=2, mesh=None)
    layout, _ = arrange(jnp.full(8, 3, jnp.int32), mapping)
    np.testing.assert_array_equal(
        np.asarray(layout)[0, :, :, 0], [[0, 7], [1, 6], [2, 5], [3, 4]]
    )


def test_a_block_is_dealt_alike_on_any_number_of_devices():
    steps = jnp.asarray(steps_for(40))
    blocks = []
    for devices in (1, 2, 4):
        mapping = mapping_for(40, "scan", devices)
        layout = np.asarray(arrange(steps, mapping)[0])
        local = mapping.blocks // devices
        blocks.append(
            [layout[b % devices, b // devices].tolist() for b in range(mapping.blocks)]
        )
        assert local * devices == mapping.blocks
    assert blocks[0] == blocks[1] == blocks[2]
