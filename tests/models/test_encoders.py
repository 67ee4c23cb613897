"""Settings of encoders, and pooling, statistics and skips of the branch they become."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_health.core.types import ModalityColumns
from fedjax_health.models import (
    GruDEncoder,
    GruEncoder,
    MlpEncoder,
    TcnEncoder,
    TransformerEncoder,
)
from fedjax_health.models.encoders import Branch
from fedjax_health.models.inputs import last_row, side_by_side, split_batch
from fedjax_health.models.window import num_statistics, window_statistics

LAYOUT = (ModalityColumns("a", (0, 2), (2, 4), (4, 6)),)
EXAMPLES, TIME, HIDDEN = 4, 6, 5
KEY = jax.random.key(0)
EVERY = [
    GruEncoder(HIDDEN),
    GruEncoder(HIDDEN, norm=True, statistics=True),
    GruDEncoder(HIDDEN, statistics=True),
    TcnEncoder(HIDDEN, levels=2),
    TransformerEncoder(8, blocks=1, heads=2),
    MlpEncoder((HIDDEN,)),
    MlpEncoder((), skip=True),
    MlpEncoder((7, HIDDEN), statistics=False, skip=True),
]


def make(encoder, *, streams=True, target="row"):
    branch = Branch(LAYOUT, encoder, streams=streams, target=target, rngs=nnx.Rngs(KEY))
    rng = np.random.default_rng(1)
    state = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), leaf.dtype),
        nnx.state(branch, nnx.Param),
    )
    nnx.update(branch, state)
    return branch


def parts(*, streams=True):
    rng = np.random.default_rng(0)
    shape = (EXAMPLES, TIME, 6) if streams else (EXAMPLES, 6)
    x = rng.normal(size=shape).astype(np.float32)
    x[..., 2:4] = rng.random((*shape[:-1], 2)) < 0.5
    x[..., 4:6] = np.abs(x[..., 4:6])
    batch = {"x": jnp.asarray(x)}
    if streams:
        batch["valid"] = jnp.ones((EXAMPLES, TIME)).at[0, :3].set(0)
    return split_batch(batch, LAYOUT, streams=streams, owner="a")


@pytest.mark.parametrize("encoder", EVERY)
def test_the_width_is_that_of_the_embedding(encoder):
    by_step = make(encoder)
    assert by_step(parts()).shape == (TIME, EXAMPLES, by_step.width)
    whole = make(encoder, target="entity")
    assert whole(parts()).shape == (EXAMPLES, whole.width)
    if isinstance(encoder, MlpEncoder | TransformerEncoder):
        record = make(encoder, streams=False)
        assert record(parts(streams=False)).shape == (EXAMPLES, record.width)
    else:
        with pytest.raises(ValueError, match="needs examples with a time axis"):
            make(encoder, streams=False)


@pytest.mark.parametrize("encoder", [GruEncoder, GruDEncoder, TcnEncoder])
@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_pooling_equals_a_loop_over_the_steps_that_count(encoder, pooling):
    given = parts()
    branch = make(encoder(HIDDEN, pooling=pooling), target="entity")
    states = np.asarray(branch._states(given, branch.settings, None), np.float64)
    valid = np.asarray(given[0].valid)
    want = np.zeros((EXAMPLES, HIDDEN))
    for example in range(EXAMPLES):
        counted = np.flatnonzero(valid[:, example])
        assert len(counted) == (3 if example == 0 else TIME)
        share = np.full(len(counted), 1 / len(counted))
        if pooling == "last":
            share = np.append(np.zeros(len(counted) - 1), 1)
        if pooling == "attention":
            kernel = np.asarray(branch.attention.kernel[...], np.float64)[:, 0]
            score = np.exp(states[counted, example] @ kernel)
            share = score / score.sum()
        want[example] = share @ states[counted, example]
    np.testing.assert_allclose(branch(given), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["row", "entity"])
def test_statistics_stand_beside_the_state(target):
    given = parts()
    branch = make(GruEncoder(HIDDEN, statistics=True), target=target)
    found = np.asarray(branch(given))
    numbers = np.asarray(window_statistics(given, causal=target == "row"))
    assert numbers.shape[-1] == num_statistics(LAYOUT)
    dense = branch.summary.dense_0
    want = np.maximum(numbers @ dense.kernel[...] + dense.bias[...], 0)
    np.testing.assert_allclose(found[..., HIDDEN:], want, rtol=1e-4, atol=1e-5)
    states = np.asarray(branch._states(given, branch.settings, None))
    states = states if target == "row" else states[-1]
    np.testing.assert_allclose(found[..., :HIDDEN], states, rtol=1e-5)


@pytest.mark.parametrize("target", ["row", "entity"])
@pytest.mark.parametrize("statistics", [True, False])
def test_a_skip_hands_on_what_is_read(target, statistics):
    given = parts()
    encoder = MlpEncoder((7, HIDDEN), statistics=statistics, skip=True)
    branch = make(encoder, target=target)
    if statistics:
        read = window_statistics(given, causal=target == "row")
    else:
        read = side_by_side(
            tuple(map(last_row, given)) if target == "entity" else given
        )
    found = branch(given)
    np.testing.assert_array_equal(found[..., HIDDEN:], read)
    np.testing.assert_allclose(found[..., :HIDDEN], branch.dense(read), rtol=1e-6)
    # Without layers there is nothing beside which it could stand.
    alone = make(MlpEncoder((), statistics=statistics, skip=True), target=target)
    np.testing.assert_array_equal(alone(given), read)


def test_input_dropout_draws_apart_from_the_layers():
    given = parts(streams=False)
    branch = make(MlpEncoder((HIDDEN,), input_dropout=0.5, skip=True), streams=False)
    still = branch(given)[:, HIDDEN:]
    np.testing.assert_array_equal(still, side_by_side(given))
    drawn = np.asarray(branch(given, key=KEY)[:, HIDDEN:])
    # Dropped, or scaled up by as much as is dropped.
    assert np.all((drawn == 0) | np.isclose(drawn, 2 * np.asarray(still), rtol=1e-5))
    present = np.asarray(still) != 0
    assert 0 < (drawn[present] == 0).sum() < present.sum()
    np.testing.assert_array_equal(drawn, branch(given, key=KEY)[:, HIDDEN:])


def test_equal_settings_are_equal_records():
    assert MlpEncoder([128, 64], dropout=0) == MlpEncoder()
    assert hash(MlpEncoder([4])) == hash(MlpEncoder((4,)))
    assert GruEncoder(np.int64(48)) == GruEncoder()
    assert GruEncoder(dropout=0.1) != GruEncoder()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GruEncoder(0), "gru: hidden=0 must be 1 or more"),
        (lambda: GruEncoder(pooling="max"), "gru: pooling='max'"),
        (lambda: GruDEncoder(dropout=1.0), r"grud: dropout=1.0 must lie in \[0, 1\)"),
        (lambda: TcnEncoder(kernel=1), "tcn: kernel=1 must be 2 or more"),
        (lambda: TcnEncoder(levels=0), "tcn: levels=0"),
        (lambda: TransformerEncoder(width=6, heads=4), "width=6 must be a multiple"),
        (lambda: MlpEncoder((3, 0)), r"mlp: hidden=\(3, 0\)"),
        (lambda: MlpEncoder(input_dropout=-0.1), "mlp: input_dropout=-0.1"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
