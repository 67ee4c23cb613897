"""A cut model: the same parameters and answers, and each half by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_health as fh
from fedjax_health.core import trees
from fedjax_health.models import split as splits

LAYOUT = (
    fh.ModalityColumns("iot", (0, 3)),
    fh.ModalityColumns("emr", (3, 7), observed=(7, 11)),
)
models = fh.models
EMR = models.GruEncoder(hidden=6, dense=(5, 4))


def batch(steps=7, examples=5):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, steps, 11)).astype(np.float32)
    x[..., 7:] = rng.random((examples, steps, 4)) < 0.5
    return {
        "x": jnp.asarray(x),
        "label": jnp.asarray(rng.random((examples, steps)) < 0.4, jnp.float32),
        "weight": jnp.ones(examples),
    }


def fusion(split=None, **settings):
    return models.fusion_detector(
        LAYOUT,
        encoders={"iot": models.GruEncoder(hidden=4), "emr": EMR},
        joint=8,
        aligned=4,
        split=split,
        **settings,
    )


def gradients(model, key=None):
    params = model.init(jax.random.key(0, impl="threefry2x32"))
    loss = fh.losses.combine(model, fh.losses.bce(), unimodal_weight=0.3)
    key = jax.random.key(1, impl="threefry2x32") if key is None else key
    return params, jax.jit(jax.grad(lambda p: loss(p, batch(), key)[0]))(params)


@pytest.mark.parametrize("labels", ["client", "server"])
@pytest.mark.parametrize("cut", [1, 2])
def test_identity_wires_leave_parameters_and_gradients_as_they_are(labels, cut):
    whole_params, whole = gradients(fusion())
    cut_params, cut = gradients(fusion(models.Split(cut, "emr", labels)))
    assert trees.path_names(whole_params) == trees.path_names(cut_params)
    for a, b in zip(
        jax.tree.leaves((whole_params, whole)),
        jax.tree.leaves((cut_params, cut)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "encoder",
    [
        models.MlpEncoder((6, 5, 4)),
        models.TcnEncoder(hidden=6, levels=2, dense=(4,)),
        models.TransformerEncoder(width=8, blocks=1, heads=2, dense=(5, 4)),
        models.GruEncoder(hidden=6, statistics=True, dense=(4,)),
    ],
)
def test_every_encoder_is_cut_at_every_layer(encoder):
    whole = models.encoder_detector(LAYOUT, encoder)
    params = whole.init(jax.random.key(0))
    expected = whole.apply(params, batch())
    from fedjax_health.models.encoders import num_layers, width_at

    for cut in range(1, num_layers(encoder)):
        seen = []
        split = models.Split(cut)
        server, client = splits.places(split, encoder)
        names = trees.path_names(params)
        halves = [(server(n), client(n)) for n in names if n.startswith("encoder")]
        assert all(a != b for a, b in halves)
        assert any(a for a, _ in halves)
        assert any(b for _, b in halves)
        cut_model = models.encoder_detector(LAYOUT, encoder, split=split)
        np.testing.assert_allclose(
            cut_model.apply(params, batch()), expected, rtol=1e-6, atol=1e-6
        )
        seen.append(width_at(encoder, cut))
        up, down = splits.bytes_of(split, encoder, (), steps=7)
        assert up == down == 4 * 7 * (seen[0] + width_at(encoder, num_layers(encoder)))


def test_what_the_server_learns_comes_over_the_wire_alone():
    """With the first layer's output fixed, the clients' inputs move nothing above."""
    split = models.Split(1, "emr", activations=(models.ClipExample(1e-12),))
    _, gradient = gradients(fusion(split))
    server, client = splits.places(split, EMR)
    leaves = dict(
        zip(trees.path_names(gradient), jax.tree.leaves(gradient), strict=True)
    )
    # Nothing but (almost) zeros arrives, so that what multiplies it learns nothing.
    assert server("modality_emr/encoder/dense/dense_0/kernel")
    assert np.abs(leaves["modality_emr/encoder/dense/dense_0/kernel"]).max() < 1e-9
    assert client("modality_emr/encoder/recurrent/wi")
    assert not server("modality_iot/encoder/recurrent/wi")
    assert not server("head/kernel")


def test_with_the_labels_at_the_server_the_rest_is_the_servers():
    server, client = splits.places(models.Split(1, "emr", "server"), EMR)
    assert server("head/kernel")
    assert server("modality_iot/head/kernel")
    assert not server("modality_iot/encoder/recurrent/wi")
    assert not client("modality_iot/encoder/recurrent/wi")


def test_noise_and_label_protection_change_training_and_not_evaluation():
    noisy = models.Split(
        1,
        "emr",
        activations=(models.ClipExample(5.0), models.Noise(1.0)),
        cotangents=(models.Marvell(4.0),),
    )
    still = models.Split(1, "emr", activations=(models.ClipExample(5.0),))
    params, with_noise = gradients(fusion(noisy))
    _, without = gradients(fusion(still))
    assert any(
        np.abs(a - b).max() > 1e-6
        for a, b in zip(
            jax.tree.leaves(with_noise), jax.tree.leaves(without), strict=True
        )
    )
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(with_noise))
    a, b = (fusion(s).apply(params, batch()).logits for s in (noisy, still))
    np.testing.assert_array_equal(a, b)


def test_a_4_bit_wire_takes_an_eighth_of_the_bytes():
    dense = splits.bytes_of(models.Split(1, "emr"), EMR, (), steps=20)
    short = (models.Quantise(4),)
    split = models.Split(1, "emr", activations=short, cotangents=short)
    up, down = splits.bytes_of(split, EMR, (), steps=20)
    # Beside the scales, 4 bytes a message.
    assert (up - 8) * 8 == dense[0]
    assert (down - 8) * 8 == dense[1]


@pytest.mark.parametrize(
    ("split", "said"),
    [
        (lambda: models.Split(3, "emr"), "outside the encoder of 3"),
        (lambda: models.Split(0, "emr"), "1 or more layers"),
        (lambda: models.Split(1, "ecg"), "one of iot, emr"),
        (lambda: models.Split(1, "iot"), "give it dense layers"),
        (
            lambda: models.Split(1, "emr", "server", cotangents=(models.MaxNorm(),)),
            "nothing of a client",
        ),
    ],
)
def test_a_cut_that_cannot_be_is_refused(split, said):
    with pytest.raises(ValueError, match=said):
        fusion(split())


def test_inputs_must_not_pass_a_cut_by():
    encoder = models.MlpEncoder((4, 4), skip=True)
    with pytest.raises(ValueError, match="skip"):
        models.encoder_detector(4, encoder, streams=False, split=models.Split(1))


def test_equal_cuts_share_a_model():
    assert fusion(models.Split(1, "emr")) is fusion(models.Split(1, "emr"))
    a = splits.places(models.Split(1, "emr"), EMR)
    assert a is splits.places(models.Split(1, "emr"), EMR)
