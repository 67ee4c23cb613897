"""Every record of a rule or mixing builds it."""

import typing

import jax.numpy as jnp
import pytest

from fedjax_health import aggregators, config, secagg
from fedjax_health.build.aggregators import build_aggregator
from fedjax_health.build.algorithm import (
    assumed_malicious,
    build_sampling,
)
from fedjax_health.config import Config, ConfigError, Custom
from fedjax_health.config.aggregators import Aggregator, Mixing
from fedjax_health.core.message import Message


def records(union):
    return [r for r in typing.get_args(union) if r is not Custom]


# Their sums are of integers; see test_secure_rules_are_built_with_their_numbers.
SECURE = (config.SecureMean, config.GroupedSecure)


@pytest.mark.parametrize("record", [r for r in records(Aggregator) if r not in SECURE])
def test_a_record_builds_the_rule_of_its_name(record):
    name = record.__struct_config__.tag
    root = config.Root("ward") if record is config.FlTrust else None
    built = build_aggregator(Config(aggregator=record(), root=root), assumed=2)
    constructor = getattr(aggregators, name)
    fields = {f: getattr(record(), f) for f in record.__struct_fields__}
    if "num_malicious" in fields:
        fields["num_malicious"] = 2
    rule = constructor(**fields)
    assert built.update is rule.update
    mine, theirs = built.init(jnp.ones(3)), rule.init(jnp.ones(3))
    assert repr(mine) == repr(theirs)


def test_every_public_rule_has_a_record():
    tags = {r.__struct_config__.tag for r in (*records(Aggregator), *records(Mixing))}
    assert tags == {*aggregators.__all__, "secure_mean", "grouped_secure"}


def test_secure_rules_are_built_with_their_numbers():
    built = build_aggregator(Config(aggregator=config.SecureMean(bits=12)))
    rule = secagg.secure_mean(bits=12)
    assert built.update is rule.update
    assert repr(built.init(jnp.ones(3))) == repr(rule.init(jnp.ones(3)))
    grouped = build_aggregator(
        Config(aggregator=config.GroupedSecure(group_size=5)), assumed=1
    )
    assert grouped.secure is not None
    assert grouped.secure.finish is not None


def test_mixings_come_before_the_rule_in_their_order():
    parsed = config.parse(
        'aggregator = "trimmed_mean"\n'
        'mixings = [{kind = "clip_norms", max_norm = 2.0}, {kind = "nnm"}]\n'
    )
    rule = build_aggregator(parsed, assumed=1)
    parts = aggregators.clip_norms(2.0), aggregators.nnm(1), aggregators.trimmed_mean(1)
    assert rule.update is aggregators.pipeline(*parts).update
    assert rule.check(Message(num_params=3), 9).num_params == 3
    with pytest.raises(ValueError, match="2 num_malicious"):
        build_aggregator(Config(aggregator=config.Krum(num_malicious=4))).check(
            Message(num_params=3), 9
        )


def test_numbers_that_a_rule_refuses_are_named_with_their_place():
    with pytest.raises(ConfigError, match=r"aggregator: signguard: high"):
        build_aggregator(Config(aggregator=config.SignGuard(high=0.5)))


@pytest.mark.parametrize(
    ("changes", "f"),
    [
        ([], 0),
        (["malicious=0.25"], 2),
        (["malicious=[0, 3, 5]"], 3),
        (["malicious=0.25", "assumed_malicious=0.375"], 3),
        (["malicious=0.25", "sampling.cohort_size=4"], 1),
        (["malicious=0.25", "aggregator.num_malicious=3"], 3),
    ],
)
def test_a_rule_assumes_as_many_as_there_are_unless_told(changes, f):
    settings = config.parse('aggregator = "trimmed_mean"', changes)
    cohort = build_sampling(settings, 8).expected
    assumed = assumed_malicious(settings, 8, cohort)
    built = build_aggregator(settings, assumed=assumed)
    assert built.update is aggregators.trimmed_mean(f).update


@pytest.mark.parametrize("population", range(3, 12))
@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4])
def test_a_share_that_is_assumed_is_as_many_as_one_that_is_known(population, share):
    for cohort in range(1, population + 1):
        known = Config(malicious=share)
        told = Config(malicious=0.0, assumed_malicious=share)
        there = [assumed_malicious(c, population, cohort) for c in (known, told)]
        assert there[0] == there[1] <= cohort
