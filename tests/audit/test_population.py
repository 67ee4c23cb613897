"""Which examples are asked about, and what a detector says of them."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health import models
from fedjax_health.audit import population, shadows
from fedjax_health.data.store import ClientStore, from_arrays


@pytest.fixture
def windows():
    rows = {
        "x": np.arange(60, dtype=np.float32)[:, None],
        "label": (np.arange(60) % 3 == 0).astype(np.float32),
        "valid": np.ones(60, np.float32),
    }
    # Two clients, windows of 4 rows that overlap by 2.
    starts = np.concatenate([np.arange(0, 26, 2), np.arange(30, 56, 2)])
    return ClientStore(rows, starts.astype(np.int32), 4, np.array([0, 13, 26]))


def test_no_two_examples_share_a_row(windows):
    kept = population.take(windows, population.apart(windows))
    assert np.diff(np.sort(kept.starts)).min() >= 4
    assert kept.offsets.tolist() == [0, 7, 14]
    assert set(population.clients_of(kept)) == {0, 1}


def test_records_are_always_apart():
    store = from_arrays({"x": np.zeros((5, 2))}, np.array([0, 2, 5]))
    assert population.apart(store).tolist() == [0, 1, 2, 3, 4]


def test_each_client_keeps_its_part_of_what_is_chosen():
    store = from_arrays({"x": np.arange(100.0)}, np.array([0, 1, 20, 100]))
    chosen = population.choose(store, 20, np.random.default_rng(0))
    assert np.diff(chosen.offsets).tolist() == [1, 3, 16]
    client = np.searchsorted([1, 20], chosen.rows["x"], side="right")
    assert client.tolist() == population.clients_of(chosen).tolist()


def test_halves_are_halves_of_every_client():
    store = from_arrays({"x": np.zeros(35)}, np.array([0, 1, 11, 11, 35]))
    member = shadows.halves(store, 200, 0)
    sums = [member[:, a:b].sum(1) for a, b in ((0, 1), (1, 11), (11, 35))]
    assert (sums[0] == 1).all()
    assert (sums[1] == 5).all()
    assert (sums[2] == 12).all()
    chances = member[:, 1:].mean(axis=0)
    assert np.abs(chances - 0.5).max() < 0.2


def test_members_come_first_at_their_clients_place(windows):
    member = shadows.halves(windows, 3, 1)
    examples, _ = shadows._members_first(windows, member)
    for row, starts in zip(member, np.asarray(examples.starts), strict=True):
        for first, end in ((0, 13), (13, 26)):
            count = row[first:end].sum()
            found = set(starts[first : first + count].tolist())
            assert found == set(windows.starts[first:end][row[first:end]].tolist())


def test_confidence_is_that_of_the_true_label():
    model = models.mlp(2, hidden=())
    params = model.init(jax.random.key(0))
    batch = {"x": jnp.array([[1.0, 2.0], [0.5, -1.0]]), "label": jnp.array([1.0, 0.0])}
    found = population.confidence(model.apply, params, batch)
    p = jax.nn.sigmoid(model.apply(params, batch))
    true = jnp.array([p[0], 1 - p[1]])
    np.testing.assert_allclose(found.logit, jnp.log(true / (1 - true)), rtol=1e-5)
    np.testing.assert_allclose(found.loss, -jnp.log(true), rtol=1e-5)


def test_steps_that_fill_a_window_up_do_not_count():
    def apply(params, batch):
        return batch["x"][..., 0]

    batch = {
        "x": jnp.array([[[9.0], [1.0], [3.0]]]),
        "label": jnp.array([[1.0, 1.0, 0.0]]),
        "valid": jnp.array([[0.0, 1.0, 1.0]]),
    }
    found = population.confidence(apply, None, batch)
    assert found.logit[0] == pytest.approx((1.0 - 3.0) / 2)


@pytest.mark.slow
def test_shadows_of_two_recurrent_encoders_begin(tmp_path):
    # Batched decompositions at the same time once waited for one another for ever.
    program = """
import sys
from pathlib import Path
from fedjax_health import build, records
from fedjax_health.audit import shadows
from tests import tiny
config = tiny.config(
    tiny.write_table(Path(sys.argv[1]) / "ward.csv"),
    "model=fusion",
    "data.modalities={one = ['load'], two = ['rate', 'noise']}",
)
prepared = build.prepare(config, build.build_dataset(config))
member = shadows.halves(prepared.store, 16, 0)
shadows.train_shadows(
    config,
    prepared,
    prepared.store,
    member,
    rounds=1,
    seed=0,
    progress=records.SILENT,
)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    subprocess.run(command, check=True, timeout=240)
