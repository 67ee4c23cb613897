"""A cut model: the same parameters and answers, and each half by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_health as fh
from fedjax_health.core import trees
from fedjax_health.models import split as splits
from fedjax_health.models.encoders import num_layers, width_at

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


ENCODERS = [
    models.MlpEncoder((6, 5, 4)),
    models.TcnEncoder(hidden=6, levels=3, dense=(4,), dropout=0.2),
    models.TransformerEncoder(width=8, blocks=3, heads=2, dense=(5,), dropout=0.2),
    models.GruEncoder(hidden=6, statistics=True, dense=(4,)),
]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_is_cut_at_every_layer(encoder):
    names = trees.path_names(
        jax.eval_shape(models.encoder_detector(LAYOUT, encoder).init, jax.random.key(0))
    )
    own = [name for name in names if name.startswith("encoder")]
    for cut in range(1, num_layers(encoder)):
        split = models.Split(cut)
        server, client = splits.places(split, encoder)
        assert all(server(name) != client(name) for name in own)
        assert any(map(server, own))
        assert any(map(client, own))
        reads = splits.Reads("all", encoder, LAYOUT)
        found = splits.borders_of(split, reads, (), steps=7, window=7)
        up, down = (
            sum(b.num_bytes for b in found if b.up == towards)
            for towards in (True, False)
        )
        widths = [width_at(encoder, n, LAYOUT) for n in (cut, num_layers(encoder))]
        assert up == down == 4 * 7 * sum(widths)


INNER = [
    (models.TcnEncoder(hidden=4, levels=2, dropout=0.2), "row"),
    pytest.param(ENCODERS[1], "entity", marks=pytest.mark.slow),
    (models.TransformerEncoder(width=4, blocks=2, heads=2), "entity"),
    pytest.param(ENCODERS[2], "row", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("encoder", "target"), INNER)
def test_between_levels_and_blocks_identity_wires_change_no_gradient(encoder, target):
    data = batch()
    data["valid"] = jnp.ones((5, 7)).at[0, :3].set(0)
    params = None

    def gradient(split):
        nonlocal params
        model = models.encoder_detector(LAYOUT, encoder, target=target, split=split)
        if params is None:
            params = model.init(jax.random.key(0))
        loss = fh.losses.combine(model, fh.losses.bce())
        key = jax.random.key(1, impl="threefry2x32")
        return jax.jit(jax.grad(lambda p: loss(p, data, key)[0]))(params)

    whole = jax.tree.leaves(gradient(None))
    for cut in range(1, num_layers(encoder)):
        for a, b in zip(
            whole, jax.tree.leaves(gradient(models.Split(cut))), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("encoder", ENCODERS[1:3])
def test_what_lies_behind_an_inner_cut_sees_nothing_but_the_wire(encoder):
    """Of (almost) zeros that arrive, the server's answer is the same for any record."""
    data = batch()
    split = models.Split(1, activations=(models.ClipExample(1e-20),))
    model = models.encoder_detector(LAYOUT, encoder, split=split)
    params = model.init(jax.random.key(0))
    other = {**data, "x": data["x"][::-1] * 3}
    np.testing.assert_allclose(
        model.apply(params, data), model.apply(params, other), atol=1e-5
    )


def test_a_probe_shows_what_crosses_and_changes_nothing():
    split = models.Split(
        1,
        "emr",
        activations=(models.ClipExample(2.0), models.Quantise(4)),
        cotangents=(models.ClipExample(1e-3), models.Noise(0.5), models.Quantise(6)),
    )
    model = fusion(split)
    params, expected = gradients(model)
    loss = fh.losses.combine(model, fh.losses.bce(), unimodal_weight=0.3)
    key = jax.random.key(1, impl="threefry2x32")

    @jax.jit
    def both(params, probe):
        return loss(params, {**batch(), "probe": probe}, key)[0]

    probe = jnp.zeros((2, 7, 5, 4))
    found, (sent, bare) = jax.grad(both, (0, 1))(params, probe)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # The client's own cotangents, then clipped, noised and rounded by example.
    lengths = np.linalg.norm(np.swapaxes(bare, 0, 1).reshape(5, -1), axis=1)
    assert lengths.min() > 1e-3
    assert len(np.unique(np.abs(sent[:, 0]))) <= 2**6
    vanilla = fusion(models.Split(1, "emr", "server"))
    out = vanilla.apply(params, {**batch(), "probe": jnp.zeros(2)})
    shapes = {name: x.shape for name, x in out.smashed.items()}
    assert shapes == {"iot": (5, 7, 4), "emr": (5, 7, 6)}


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
    def sizes(split):
        reads = splits.Reads("emr", EMR, LAYOUT[1:])
        found = splits.borders_of(split, reads, (), steps=20, window=20)
        return np.array([border.num_bytes for border in found])

    short = (models.Quantise(4),)
    split = models.Split(1, "emr", activations=short, cotangents=short)
    # Beside the scale, 4 bytes a message.
    assert ((sizes(split) - 4) * 8).tolist() == sizes(models.Split(1, "emr")).tolist()


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


def test_statistics_must_not_pass_a_cut_inside_a_tcn_by():
    encoder = models.TcnEncoder(hidden=4, levels=2, statistics=True, dense=(3,))
    models.encoder_detector(4, encoder, split=models.Split(2))
    with pytest.raises(ValueError, match="statistics of the window pass"):
        models.encoder_detector(4, encoder, split=models.Split(1))


def test_equal_cuts_share_a_model():
    assert fusion(models.Split(1, "emr")) is fusion(models.Split(1, "emr"))
    a = splits.places(models.Split(1, "emr"), EMR)
    assert a is splits.places(models.Split(1, "emr"), EMR)
