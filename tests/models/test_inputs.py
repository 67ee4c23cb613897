"""What an encoder sees of a batch, against slices and loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core.types import ModalityColumns
from fedjax_health.models import inputs

# Complete, with flags, and carried.
LAYOUT = (
    ModalityColumns("flow", (0, 2)),
    ModalityColumns("vitals", (2, 4), (4, 6)),
    ModalityColumns("labs", (6, 7), (7, 8), (8, 9)),
)
EXAMPLES, TIME = 3, 5


def make(*, streams=True, seed=0):
    rng = np.random.default_rng(seed)
    shape = (EXAMPLES, TIME, 9) if streams else (EXAMPLES, 9)
    x = rng.normal(size=shape).astype(np.float32)
    x[..., [4, 5, 7]] = rng.random((*shape[:-1], 3)) < 0.4
    batch = {"x": jnp.asarray(x)}
    if streams:
        valid = np.ones((EXAMPLES, TIME), np.float32)
        valid[0, :2] = 0
        batch["valid"] = jnp.asarray(valid)
    return batch, x


@pytest.mark.parametrize("streams", [True, False])
def test_a_batch_is_cut_into_modalities_time_first(streams):
    batch, x = make(streams=streams)
    parts = inputs.split_batch(batch, LAYOUT, streams=streams, owner="m")
    x = np.swapaxes(x, 0, 1) if streams else x
    flow, vitals, labs = parts
    np.testing.assert_array_equal(flow.values, x[..., :2])
    assert flow.observed is None
    assert flow.elapsed is None
    # Without flags what stands in a gap would be read; the last value is meant to be.
    np.testing.assert_array_equal(vitals.values, x[..., 2:4] * (x[..., 4:6] > 0))
    np.testing.assert_array_equal(vitals.observed, x[..., 4:6])
    np.testing.assert_array_equal(labs.values, x[..., 6:7])
    np.testing.assert_array_equal(labs.elapsed, x[..., 8:9])
    for part in parts:
        if streams:
            np.testing.assert_array_equal(part.valid, batch["valid"].T)
        else:
            assert part.valid is None
    together = inputs.side_by_side(parts)
    assert together.shape[-1] == inputs.num_inputs(LAYOUT) == 9
    np.testing.assert_array_equal(
        together[..., :4], np.concatenate([flow.values, vitals.values], axis=-1)
    )
    np.testing.assert_array_equal(together[..., 4:], x[..., 4:])
    alone = inputs.side_by_side((flow,))
    np.testing.assert_array_equal(alone, flow.values)


def test_widths_are_those_of_the_spans():
    assert inputs.layout_width(LAYOUT) == 9
    assert inputs.layout_width(LAYOUT[:2]) == 6
    assert [inputs.num_values(columns) for columns in LAYOUT] == [2, 2, 1]
    assert inputs.spans(LAYOUT[1]) == [(2, 4), (4, 6)]
    # A modality alone leaves out the columns before it.
    assert inputs.num_inputs(LAYOUT[2:]) == 3
    assert inputs.layout_width(LAYOUT[2:]) == 9


def test_presence_is_any_observation_so_far_or_at_all():
    batch, x = make()
    parts = inputs.split_batch(batch, LAYOUT, streams=True, owner="m")
    seen = x[..., 4:6].any(axis=-1)
    causal = inputs.presence(parts[1], axes=1)
    whole = inputs.presence(parts[1], axes=2)
    for example in range(EXAMPLES):
        assert bool(whole[example]) == seen[example].any()
        for step in range(TIME):
            assert bool(causal[step, example]) == seen[example, : step + 1].any()
    assert 0 < np.asarray(causal).sum() < causal.size
    record, _ = make(streams=False)
    row = inputs.split_batch(record, LAYOUT, streams=False, owner="m")
    want = np.asarray(record["x"])[:, 7] > 0
    np.testing.assert_array_equal(inputs.presence(row[2], axes=0), want)
    # Without flags it is always there.
    for axes, shape in ((1, (TIME, EXAMPLES)), (2, (EXAMPLES,))):
        always = inputs.presence(parts[0], axes=axes)
        assert always.shape == shape
        assert always.all()
    assert inputs.presence(row[0], axes=0).shape == (EXAMPLES,)


def test_the_last_row_is_a_record():
    batch, x = make()
    labs = inputs.split_batch(batch, LAYOUT, streams=True, owner="m")[2]
    last = inputs.last_row(labs)
    np.testing.assert_array_equal(last.values, x[:, -1, 6:7])
    np.testing.assert_array_equal(last.elapsed, x[:, -1, 8:9])
    assert last.valid is None


def test_a_number_stands_for_one_complete_modality():
    assert inputs.as_layout(4, owner="m") == (ModalityColumns("features", (0, 4)),)
    assert inputs.as_layout(LAYOUT, owner="m") is LAYOUT
    for wrong, message in (
        (0, "m: features=0 must be 1 or more"),
        ((), "one or more, each once"),
        ((LAYOUT[0], LAYOUT[0]), "'flow', 'flow'"),
    ):
        with pytest.raises(ValueError, match=message):
            inputs.as_layout(wrong, owner="m")


@pytest.mark.parametrize(
    ("streams", "shape", "message"),
    [
        (True, (EXAMPLES, 9), r"\[examples, time, 9\], not \(3, 9\)"),
        (False, (EXAMPLES, TIME, 9), r"\[examples, 9\], not"),
        (False, (EXAMPLES, 10), r"not \(3, 10\)"),
    ],
)
def test_other_shapes_are_refused(streams, shape, message):
    with pytest.raises(ValueError, match=message):
        inputs.split_batch({"x": jnp.zeros(shape)}, LAYOUT, streams=streams, owner="m")
