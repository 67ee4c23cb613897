"""Every record of a transform builds it."""

import types
import typing

import jax.numpy as jnp
import pytest

from fedjax_health import config, transforms
from fedjax_health.build.transforms import build_transform
from fedjax_health.config import Custom
from fedjax_health.config.transforms import Transform
from fedjax_health.core.message import CompositionError

PARAMS = jnp.ones(40)


def records(union):
    found = []
    for part in typing.get_args(union):
        nested = isinstance(part, types.UnionType)
        found += records(part) if nested else [part]
    return [r for r in found if r is not Custom]


def test_every_public_transform_has_a_record():
    tags = {r.__struct_config__.tag for r in records(Transform)}
    assert tags == set(transforms.__all__) - {"chain"}


@pytest.mark.parametrize("record", records(Transform))
def test_a_record_builds_the_transform_of_its_name(record):
    built = build_transform(record(), path="transforms.0", cohort=100)
    constructor = getattr(transforms, record.__struct_config__.tag)
    fields = {f: getattr(record(), f) for f in record.__struct_fields__}
    if "inner" in fields:
        fields["inner"] = transforms.top_k(0.1)
    if record is config.AdaptiveClip:
        fields["cohort"] = 100
    assert built.update is constructor(**fields).update


def test_a_compressor_nests_in_a_memory():
    parsed = config.parse(
        "transforms = [\n"
        '  {kind = "error_feedback", inner = {kind = "random_k", keep = 0.25}},\n'
        '  {kind = "clip_l2", max_norm = 2.0},\n'
        '  {kind = "ef21", inner = {kind = "eden", bits = 3}, participation = 0.5},\n'
        "]\n"
    )
    first, _, last = (
        build_transform(entry, path=f"transforms.{i}")
        for i, entry in enumerate(parsed.transforms)
    )
    expected = transforms.error_feedback(transforms.random_k(0.25))
    assert first.update is expected.update
    assert first.init_server(PARAMS)["indices"].shape == (10,)
    assert last.update is transforms.ef21(transforms.eden(3)).update
    assert last.init_server(PARAMS)["participation"] == 0.5
    assert config.parse(config.to_toml(parsed)) == parsed


@pytest.mark.parametrize(
    "text",
    [
        'transforms = [{kind = "top_k", keep = 0.0}]',
        'transforms = [{kind = "eden", bits = 9}]',
        'transforms = [{kind = "qsgd", levels = 0}]',
        'transforms = [{kind = "error_feedback", inner = {kind = "clip_l2"}}]',
        'transforms = [{kind = "ef21", inner = {kind = "top_k", kep = 0.1}}]',
    ],
)
def test_what_cannot_be_is_refused_with_its_place(text):
    with pytest.raises(config.ConfigError, match=r"transforms"):
        config.parse(text)


def test_an_unbiased_random_k_inside_a_memory_is_refused():
    entry = config.ErrorFeedback(inner=config.RandomK(unbiased=True))
    with pytest.raises(CompositionError, match="diverges"):
        build_transform(entry, path="transforms.0")
