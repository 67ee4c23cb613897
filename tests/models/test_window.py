import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core.types import ModalityColumns
from fedjax_health.models.inputs import split_batch
from fedjax_health.models.window import num_statistics, window_statistics

LABS = ModalityColumns("labs", (0, 2), (2, 4), (4, 6))
VITALS = ModalityColumns("vitals", (6, 8), (8, 10))
FLOW = ModalityColumns("flow", (10, 11))
LAYOUT = (LABS, VITALS, FLOW)


def make(examples=4, time=6):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, time, 11)).astype(np.float32)
    for first in (2, 8):
        x[..., first : first + 2] = rng.random((examples, time, 2)) < 0.5
    x[0, :, 8] = 0
    x[1, :, 2] = np.eye(time)[1]
    valid = np.ones((examples, time), np.float32)
    valid[2, :3] = 0
    x[2, :3] = 0
    return x, valid


def oracle(x, valid, columns, upto, causal):
    """The numbers of one modality of one example, by loops."""
    width = columns.values[1] - columns.values[0]
    spans = [span for span in columns[1:] if span is not None]
    now = [list(x[upto, first:end]) for first, end in spans]
    means, lows, highs, counts = ([0.0] * width for _ in range(4))
    for i in range(width):
        seen = [
            x[t, columns.values[0] + i]
            for t in range(upto + 1)
            if valid[t] and (columns.observed is None or x[t, columns.observed[0] + i])
        ]
        if seen:
            means[i], lows[i], highs[i] = sum(seen) / len(seen), min(seen), max(seen)
        counts[i] = np.log(1 + len(seen))
        if columns.elapsed is None and columns.observed is not None:
            gone = not x[upto, columns.observed[0] + i]
            if causal:
                now[0][i] = 0 if gone else now[0][i]
            else:
                now[0][i] = seen[-1] if seen else 0
    numbers = [n for part in now for n in part] + means + lows + highs
    return numbers + (counts if columns.observed is not None else [])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("filled", [True, False])
def test_equals_loops(causal, filled):
    x, valid = make()
    batch = {"x": jnp.asarray(x)}
    if filled:
        batch["valid"] = jnp.asarray(valid)
    else:
        valid = np.ones_like(valid)

    @jax.jit
    def run(batch):
        parts = split_batch(batch, LAYOUT, streams=True, owner="test")
        return window_statistics(parts, causal=causal)

    found = np.asarray(run(batch))
    assert found.shape[-1] == num_statistics(LAYOUT)
    for e in range(4):
        for t in range(6) if causal else [5]:
            want = [
                n
                for columns in LAYOUT
                for n in oracle(x[e], valid[e], columns, t, causal)
            ]
            got = found[t, e] if causal else found[e]
            np.testing.assert_allclose(got, want, atol=1e-5)
