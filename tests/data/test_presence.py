"""Which modalities examples have, against a loop and against what a fusion sees."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.client import gather
from fedjax_health.data.presence import present_modalities
from fedjax_health.data.schema import Dataset, examples_of, segment_ids
from fedjax_health.data.store import from_dataset, input_layout, to_examples
from fedjax_health.models.inputs import presence, split_batch

LENGTHS = (1, 7, 3, 5)


def make(target, *, seed=0):
    """Streams with long gaps in two modalities, one of them carried."""
    rng = np.random.default_rng(seed)
    rows = sum(LENGTHS)
    features = {
        name: rng.normal(size=(rows, width)).astype(np.float32)
        for name, width in (("flow", 2), ("vitals", 3), ("labs", 1))
    }
    for name in ("vitals", "labs"):
        features[name][rng.random(rows) < 0.75] = np.nan
    features["vitals"][:, 0] = np.nan
    return Dataset(
        features=features,
        feature_names={n: tuple("xyz"[: v.shape[1]]) for n, v in features.items()},
        label=np.zeros(rows, np.float32),
        attack=np.zeros(rows, np.int32),
        attack_names=("normal",),
        client=np.repeat([0, 0, 1, 1], LENGTHS).astype(np.int32),
        client_names=("u", "v"),
        entity=np.repeat(np.arange(4), LENGTHS).astype(np.int64),
        time=np.arange(rows, dtype=float),
        masked=frozenset({"vitals", "labs"}),
        carried=frozenset({"labs"}),
        target=target,
    )


@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize("target", ["row", "entity"])
@pytest.mark.parametrize("seed", range(3))
def test_presence_is_what_a_fusion_sees(target, window, seed):
    data = make(target, seed=seed)
    found = present_modalities(data, window=window)
    assert len(found) == examples_of(data).num_rows
    segment = segment_ids(data)
    want = []
    ends = range(data.num_rows)
    if target == "entity":
        ends = np.cumsum(LENGTHS) - 1
    for end in ends:
        rows = [
            r
            for r in range(max(0, end - (window or 1) + 1), end + 1)
            if segment[r] == segment[end]
        ]
        seen = [np.isfinite(values[rows]).any() for values in data.features.values()]
        want.append(seen)
    np.testing.assert_array_equal(found, want)
    assert 0 < np.mean(want) < 1
    store = from_dataset(data, window=window, pad=True)
    batch = gather(to_examples(store), jnp.arange(store.num_examples))
    streams = batch["x"].ndim == 3
    parts = split_batch(batch, input_layout(data), streams=streams, owner="test")
    axes = 0 if not streams else 1 if target == "row" else 2
    seen = jnp.stack([presence(part, axes=axes) for part in parts], axis=-1)
    np.testing.assert_array_equal(seen[-1] if axes == 1 else seen, found)
