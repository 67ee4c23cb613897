"""Every kind of detector and loss from a configuration, on rows, stays and records."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health import config as cfg
from fedjax_health import losses, models
from fedjax_health.build import detector
from fedjax_health.build.detector import build_loss, build_model
from fedjax_health.build.prepared import Prepared
from fedjax_health.client import gather
from fedjax_health.config import ConfigError, parse, to_toml
from fedjax_health.core.types import Detection, Model, logits_of
from fedjax_health.data.schema import Dataset
from fedjax_health.data.splits import Parts
from fedjax_health.data.store import from_dataset, input_layout, to_examples

ENTITIES, STEPS = 6, 5


@functools.cache
def prepared(*, target="row", window=STEPS, modalities=("labs", "vitals", "static")):
    """Scaled data of one client: one modality carried, one masked, one complete."""
    rng = np.random.default_rng(0)
    rows = ENTITIES * STEPS
    features = {
        name: rng.normal(size=(rows, width)).astype(np.float32)
        for name, width in (("labs", 2), ("vitals", 3), ("static", 1))
        if name in modalities
    }
    for name in features.keys() - {"static"}:
        features[name][rng.random(features[name].shape) < 0.4] = np.nan
    label = np.repeat(np.arange(ENTITIES) % 2, STEPS).astype(np.float32)
    entity = np.repeat(np.arange(ENTITIES), STEPS)
    data = Dataset(
        features=features,
        feature_names={
            n: tuple(map(str, range(v.shape[1]))) for n, v in features.items()
        },
        label=label,
        attack=label.astype(np.int32),
        attack_names=("normal", "attack"),
        client=np.zeros(rows, np.int32),
        client_names=("here",),
        entity=entity.astype(np.int64),
        time=np.tile(np.arange(STEPS, dtype=np.float64), ENTITIES),
        masked=frozenset({"labs", "vitals"} & features.keys()),
        carried=frozenset({"labs"} & features.keys()),
        target=target,
    )
    extra = {"patient": entity.astype(np.int32)}
    store = from_dataset(data, window=window, stride=STEPS, extra=extra)
    fields = {
        "parts": Parts(data, data, data),
        "store": store,
        "window": window,
        "layout": input_layout(data),
    }
    others = dict.fromkeys(set(Prepared._fields) - fields.keys())
    return Prepared(**fields, **others)


def settings(*changes, window=STEPS):
    return parse(f"[window]\nlength = {window}", changes)


def run(config, data):
    """Returns shapes of the outputs, and the metrics of one batch."""
    model = build_model(config, data)
    loss_fn = build_loss(config, model, data)
    examples = to_examples(data.store)
    batch = gather(examples, jnp.arange(data.store.num_examples))
    batch["weight"] = jnp.ones(data.store.num_examples)
    key, rng = jax.random.key(0), np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(0, 0.3, p.shape), p.dtype),
        jax.eval_shape(model.init, key),
    )
    step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, metrics), gradients = step(params, batch, key)
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))
    return jax.eval_shape(model.apply, params, batch), metrics


ENCODERS = (
    'model.encoders={labs={kind="grud",hidden=4},vitals={kind="tcn",hidden=4,levels=2},'
    'static={kind="ft_transformer",width=4,heads=2,blocks=1}}'
)
SINGLE = ["model=gru", "model=mlp", "model=tcn", "model=grud", "model=ft_transformer"]


@pytest.mark.parametrize("model", SINGLE)
@pytest.mark.parametrize("target", ["row", "entity"])
def test_one_encoder_for_everything(model, target):
    size = "model.hidden=[4]" if model == "model=mlp" else "model.hidden=4"
    size = "model.width=4" if "transformer" in model else size
    outputs, metrics = run(settings(model, size), prepared(target=target))
    shape = (ENTITIES, STEPS) if target == "row" else (ENTITIES,)
    assert outputs.shape == shape
    assert set(metrics) == {"accuracy"}


@pytest.mark.parametrize(
    ("target", "temporal"),
    [("row", "logit"), ("row", "embedding"), ("entity", "window")],
)
def test_fusion_with_every_part_of_the_loss(target, temporal):
    changes = ["loss=focal", "alignment.weight=0.2", f"temporal={temporal}"]
    config = settings("model=fusion", ENCODERS, *changes)
    outputs, metrics = run(config, prepared(target=target))
    assert isinstance(outputs, Detection)
    assert outputs.shares.shape[-1] == 3
    parts = {"accuracy", "supervised", "unimodal", "temporal", "alignment"}
    assert set(metrics) == parts
    assert all(float(metrics[name]) > 0 for name in parts - {"accuracy"})


def halves(width):
    """A model of one's own that says what a fusion says, of the two halves of x."""

    def init(key):
        return {"first": jnp.ones(width // 2), "second": jnp.ones(width - width // 2)}

    def apply(params, batch, *, key=None):
        del key
        parts = jnp.split(batch["x"], [width // 2], axis=-1)
        each = [x @ params[n] for x, n in zip(parts, params, strict=True)]
        both = jnp.stack(each, axis=-1)
        return Detection(
            logits=sum(each),
            unimodal=dict(zip(params, each, strict=True)),
            aligned=dict(zip(params, (both, both[..., ::-1]), strict=True)),
            embedding=both,
            shares=jax.nn.softmax(both, axis=-1),
            present=jnp.ones(both.shape, bool),
        )

    return Model(init, apply)


def test_a_model_of_ones_own_may_say_what_a_fusion_says():
    config = settings(
        *("model=custom", "model.target=tests.build.test_detector:halves"),
        *("temporal=embedding", "alignment.weight=0.2"),
    )
    outputs, metrics = run(config, prepared())
    assert outputs.shares.shape == (ENTITIES, STEPS, 2)
    parts = {"supervised", "unimodal", "temporal", "alignment"}
    assert set(metrics) == parts | {"accuracy"}
    assert all(float(metrics[name]) > 0 for name in parts)


def test_terms_over_values_know_where_they_lie():
    data = prepared()
    for kind, build in (
        ("embedding", losses.embedding_smoothness),
        ("window", losses.window_contrast),
    ):
        config = settings("model=fusion", f"temporal={kind}")
        assert detector._temporal(config, data) == build(layout=data.layout)


def test_parts_without_weight_are_left_out():
    config = settings(
        "model=fusion", "unimodal_weight=0", "temporal={kind='logit',weight=0.0}"
    )
    _, metrics = run(config, prepared())
    assert set(metrics) == {"accuracy"}


@pytest.mark.parametrize("model", ["mlp", "ft_transformer", "fusion"])
def test_single_records(model):
    config = settings(f"model={model}", window=1)
    outputs, _ = run(config, prepared(window=None))
    assert logits_of(outputs).shape == (ENTITIES * STEPS,)


def test_fields_reach_the_detector():
    data = prepared()
    changes = [
        ["model=tcn", "model.levels=2", "model.kernel=2", "model.dropout=0.1"],
        ["model=grud", "model.hidden_decay=false", "model.hidden=7"],
        ["model=mlp", "model.skip=true", "model.input_dropout=0.2", "model.norm=true"],
        ["model=ft_transformer", "model.blocks=1", "model.heads=2"],
    ]
    encoders = [
        models.TcnEncoder(levels=2, kernel=2, dropout=0.1),
        models.GruDEncoder(7, hidden_decay=False),
        models.MlpEncoder(skip=True, input_dropout=0.2, norm=True),
        models.TransformerEncoder(blocks=1, heads=2),
    ]
    for change, encoder in zip(changes, encoders, strict=True):
        built = build_model(settings(*change), data)
        assert built is models.encoder_detector(data.layout, encoder)
    fused = settings("model=fusion", "model.encoders.labs={kind='gru',norm=true}")
    assert build_model(fused, data) is models.fusion_detector(
        data.layout, encoders={"labs": models.GruEncoder(norm=True)}
    )
    assert parse(to_toml(fused)) == fused
    changes = (
        "model.fuse=cross_attention",
        "model.heads=2",
        "model.disagreement=false",
    )
    attending = settings("model=fusion", *changes)
    assert build_model(attending, data) is models.fusion_detector(
        data.layout, fuse="cross_attention", heads=2, disagreement=False
    )
    assert parse(to_toml(attending)) == attending


def test_alignment_without_a_kind_is_infonce():
    named = settings("model=fusion", "alignment.kind=infonce", "alignment.weight=0.2")
    assert settings("model=fusion", "alignment.weight=0.2") == named
    assert parse('model = "fusion"\n[alignment]\n').alignment == cfg.InfoNce()
    assert parse(to_toml(named)) == named
    changed = settings("model=fusion", "alignment=comm", "alignment.jitter=0.3")
    assert changed.alignment == cfg.Comm(jitter=0.3)
    assert parse(to_toml(changed)) == changed


def test_comm_becomes_its_term():
    data = prepared()
    found = settings("model=fusion", "model.aligned=0", "alignment=comm")
    assert build_loss(found, build_model(found, data), data) is losses.combine(
        models.fusion_detector(data.layout, aligned=0),
        losses.bce(),
        alignment=losses.comm(layout=data.layout),
    )


@pytest.mark.parametrize(
    ("changes", "data", "parts"),
    [
        (
            ["model=fusion", "model.encoders.flw='gru'"],
            {},
            ["model.encoders.flw", "labs, vitals, static"],
        ),
        (["model=fusion", "model.encoders.vitals='grud'"], {}, ["encoders.vitals"]),
        (["model=grud"], {"modalities": ("vitals",)}, ["carried forward"]),
        (
            ["model=fusion", "alignment.step=last"],
            {"modalities": ("vitals",)},
            ["alignment", "one modality, vitals"],
        ),
        (["temporal=logit"], {"target": "entity"}, ["temporal", "one label"]),
        (["loss.burn_in=2"], {"target": "entity"}, ["loss.burn_in: 2", "one label"]),
    ],
)
def test_what_the_data_cannot_give_is_refused(changes, data, parts):
    config, found = settings(*changes), prepared(**data)

    def build():
        build_loss(config, build_model(config, found), found)

    with pytest.raises(ConfigError) as caught:
        build()
    message = str(caught.value)
    assert message.startswith("config: ")
    assert "\n" not in message
    assert all(part in message for part in parts)


@pytest.mark.parametrize(
    ("changes", "window", "parts"),
    [
        (["model=tcn"], 1, ["window.length", "a tcn needs"]),
        (
            ["model=fusion", "model.encoders.a='gru'"],
            1,
            ["window.length", "a gru needs"],
        ),
        (["temporal=logit", "model=mlp"], 1, ["temporal", "no time"]),
        (["temporal=embedding"], 5, ["temporal", "model=fusion"]),
        (["alignment.step=last"], 5, ["alignment", "model=fusion"]),
        (
            ["model=fusion", "model.aligned=0", "alignment.step=last"],
            5,
            ["model.aligned"],
        ),
        (
            ["loss=custom", "loss.target=a:b", "temporal=logit"],
            5,
            ["temporal", "stands alone"],
        ),
        (["loss=focal", "loss.burn_in=5"], 5, ["loss.burn_in", "no step"]),
        (["model=ft_transformer", "model.heads=5"], 5, ["width=32", "heads=5"]),
        (
            ["model=fusion", "model.encoders.a.hidden=3"],
            5,
            ["model.encoders.a", "kind"],
        ),
        (["alignment=comm"], 5, ["alignment", "model=fusion"]),
        (["alignment=com"], 5, ["alignment", "did you mean comm?"]),
        (["alignment.jitter=0.1"], 5, ["alignment.jitter", "no such field of infonce"]),
        (
            ["model=fusion", "model.fuse=late", "alignment=comm"],
            5,
            ["alignment: comm", "model.fuse=gated"],
        ),
        (
            ["model=fusion", "model.fuse=late", "temporal=window"],
            5,
            ["temporal: window", "model.fuse=gated"],
        ),
        (["model=fusion", "model.fuse=early"], 5, ["model.fuse", "cross_attention"]),
        (
            ["model=fusion", "model.fuse=cross_attention", "model.heads=5"],
            5,
            ["joint=32", "heads=5"],
        ),
        (
            ["model=fusion", "model.fuse=late", "model.dropout=0.1"],
            5,
            ["dropout=0.1", "fuse=late"],
        ),
        (["personal=norm", "model=grud"], 5, ["personal", "no normalisation"]),
        (["personal=norm", "model=fusion"], 5, ["personal", "no encoder"]),
    ],
)
def test_what_cannot_work_is_refused(changes, window, parts):
    with pytest.raises(ConfigError) as caught:
        settings(*changes, window=window)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts)


def test_personal_norm_layers_of_models_that_have_them():
    named = "model.encoders={a={kind='tcn'},b={kind='mlp'}}"
    for change in (["model=tcn"], ["model=ft_transformer"], ["model=fusion", named]):
        assert settings("personal=norm", *change).personal is not None
