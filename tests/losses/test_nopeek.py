"""NoPeek against the distance correlation of the rows that count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core.correlation import distance_correlation
from fedjax_health.core.types import Detection, ModalityColumns
from fedjax_health.losses import nopeek

oracle = jax.jit(distance_correlation)

LAYOUT = (
    ModalityColumns("flow", (0, 2)),
    ModalityColumns("ehr", (2, 4), (4, 6)),
)


def make(time=None):
    rng = np.random.default_rng(0)
    axes = (12,) if time is None else (12, time)
    x = rng.normal(size=(*axes, 6)).astype(np.float32)
    x[..., 4:] = rng.random((*axes, 2)) < 0.7
    x[3, ..., 2:] = 0
    weight = np.ones(12, np.float32)
    weight[-2:] = 0
    smashed = np.tanh(x[..., 2:4] + 0.5 * rng.normal(size=(*axes, 2)))
    outputs = Detection(jnp.zeros(axes), {}, {}, smashed={"ehr": jnp.asarray(smashed)})
    return outputs, {"x": jnp.asarray(x), "weight": jnp.asarray(weight)}


def value(term, outputs, batch):
    return float(jax.jit(lambda o, b: term.value(o, b, None, None))(outputs, batch))


@pytest.mark.parametrize("time", [None, 4])
def test_it_is_the_correlation_of_values_and_smashed_data(time):
    outputs, batch = make(time)
    x, smashed = np.asarray(batch["x"]), np.asarray(outputs.smashed["ehr"])
    seen = (x[..., 4:] > 0).reshape(12, -1).any(1)
    kept = seen & (np.arange(12) < 10)
    assert not kept[3]
    want = float(oracle(x[kept][..., 2:4], smashed[kept]))
    term = nopeek(weight=2.0, layout=LAYOUT)
    assert term.weight == 2
    assert value(term, outputs, batch) == pytest.approx(want, rel=1e-4)
    # Filling holds anything.
    filled = batch | {"x": batch["x"].at[10:].set(jnp.nan)}
    assert value(term, outputs, filled) == pytest.approx(want, rel=1e-4)
    slope = jax.jit(
        jax.grad(
            lambda s: term.value(
                outputs._replace(smashed={"ehr": s}), filled, None, None
            )
        )
    )(outputs.smashed["ehr"])
    assert np.all(np.isfinite(slope))
    assert np.any(slope)


def test_several_modalities_are_summed_and_no_layout_means_every_column():
    outputs, batch = make()
    both = outputs._replace(
        smashed={"flow": batch["x"][:, :2], "ehr": outputs.smashed["ehr"]}
    )
    term = nopeek(weight=1.0, layout=LAYOUT)
    # Flow crosses as it is: correlation 1.
    alone = value(term, outputs, batch)
    assert value(term, both, batch) == pytest.approx(1 + alone, rel=1e-4)
    whole = float(oracle(batch["x"][:10], outputs.smashed["ehr"][:10]))
    assert value(nopeek(weight=1.0), outputs, batch) == pytest.approx(whole, rel=1e-4)


def test_equal_settings_are_equal():
    assert nopeek(weight=1.0, layout=LAYOUT) == nopeek(weight=1, layout=tuple(LAYOUT))


def test_what_is_not_split_is_refused():
    outputs, batch = make()
    term = nopeek(weight=1.0, layout=LAYOUT[:1])
    for wrong in (outputs.logits, outputs._replace(smashed=None)):
        with pytest.raises(ValueError, match="give the detector a split"):
            term.value(wrong, batch, None, None)
    with pytest.raises(ValueError, match="'ehr'"):
        term.value(outputs, batch, None, None)
