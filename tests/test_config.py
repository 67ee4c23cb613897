"""Records, presets, overrides and the messages of what is refused."""

import dataclasses
import math
import tomllib
import typing

import msgspec
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_health import config as cfg
from fedjax_health.config import ConfigError, load, parse, to_toml
from fedjax_health.config.schema import parse_path, parse_value

# What most overrides are tried on: a model that has fields of its own.
GRU = ("model=gru", "alignment=none")


def all_records():
    """Every record type that a configuration can hold, found by walking the types."""
    found = {}

    def walk(kind):
        for field in getattr(kind, "fields", ()):
            if field not in found.get(kind.cls, ()):
                found.setdefault(kind.cls, []).append(field)
                walk(field.type)
        for part in getattr(kind, "types", ()):
            walk(part)
        if hasattr(kind, "item_type"):
            walk(kind.item_type)

    walk(msgspec.inspect.type_info(cfg.Config))
    return list(found)


def overrides_that_name_a_file(name):
    """Presets of public data leave the path to the user."""
    kind = tomllib.loads(cfg.preset_text(name))["data"]["kind"]
    named = kind in ("hospital_sim", "mimic_demo")
    return [] if named else ["data.path=data.csv"]


@pytest.mark.parametrize("record", all_records(), ids=lambda r: r.__name__)
def test_every_record_has_defaults_is_frozen_and_documented(record):
    built = record()
    for field in record.__struct_fields__:
        assert f"  {field}: " in record.__doc__, f"{record.__name__}.{field}"
        with pytest.raises(AttributeError):
            setattr(built, field, 1)
    assert record.__struct_config__.forbid_unknown_fields


@pytest.mark.parametrize("record", all_records(), ids=lambda r: r.__name__)
def test_slot_defaults_are_their_kinds_defaults_and_none_is_a_default(record):
    # --set slot=kind gives the kind's defaults; a slot whose default were anything
    # else could not be set back. TOML has no null, so None must mean "left out".
    for name, default in zip(
        record.__struct_fields__, record.__struct_defaults__, strict=True
    ):
        if isinstance(default, msgspec.Struct):
            assert default == type(default)()
        hints = typing.get_type_hints(record)[name]
        if type(None) in typing.get_args(hints):
            assert default is None


@pytest.mark.parametrize("name", cfg.preset_names())
def test_presets_load_and_survive_saving(name):
    config = load(name, overrides_that_name_a_file(name))
    assert parse(to_toml(config)) == config
    assert cfg.preset_summary(name)
    assert f"--config {name}" in cfg.preset_text(name)


def test_preset_names_are_the_promised_ones():
    assert set(cfg.preset_names()) == {
        "demo",
        "paper",
        "many_clients",
        "private",
        "split",
        "wustl",
        "physionet2012",
        "eicu",
        "ton_iot",
        "heart",
        "mimic_demo",
    }


def test_wustl_preset_asks_for_the_file():
    with pytest.raises(ConfigError, match=r"data\.path.*--set data\.path=FILE"):
        load("wustl")


def test_file_and_preset_give_the_same_configuration(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(cfg.preset_text("demo"))
    assert load(file) == load("demo")


def test_empty_file_is_the_default_configuration():
    assert parse("") == cfg.Config()


def test_seed_wins_over_everything():
    assert load("demo", ["seed=4"], seed=7).seed == 7
    assert load("demo", ["seed=4"]).seed == 4


# Overrides


@pytest.mark.parametrize(
    ("overrides", "path", "expected"),
    [
        (["rounds=3"], "rounds", 3),
        (["local.optimizer.learning_rate=1e-2"], "local.optimizer.learning_rate", 0.01),
        (["local.optimizer.learning_rate=1"], "local.optimizer.learning_rate", 1.0),
        (["weighting=uniform"], "weighting", "uniform"),
        (['weighting="uniform"'], "weighting", "uniform"),
        (["data.link=false"], "data.link", False),
        (["data.departments=[2, 4]"], "data.departments", (2, 4)),
        (["model=mlp"], "model", cfg.Mlp()),
        (["model.kind=mlp"], "model", cfg.Mlp()),
        (["model=mlp", "model.hidden=[8]"], "model.hidden", (8,)),
        (["model=mlp", "model.hidden.1=7"], "model.hidden", (128, 7)),
        (["model=mlp", "model.hidden.2=7"], "model.hidden", (128, 64, 7)),
        (["model.hidden=8", "model=gru"], "model", cfg.Gru()),
        (['model={kind="mlp", hidden=[3]}'], "model", cfg.Mlp(hidden=(3,))),
        (["malicious=[4, 2]"], "malicious", (4, 2)),
        (["malicious.0=3"], "malicious", (3,)),
        (["malicious=0"], "malicious", 0.0),
        (["local.steps=5"], "local.epochs", None),
        (["local.epochs=3", "local.epochs=none"], "local.epochs", 1),
        (["chunk=4", "chunk=none"], "chunk", None),
        (["personal=norm", "personal=none"], "personal", None),
        (["transforms.0=identity"], "transforms", (cfg.Identity(),)),
        (["sampling=poisson"], "sampling", cfg.Poisson()),
    ],
)
def test_overrides(overrides, path, expected):
    value = load("demo", [*GRU, *overrides])
    for key in path.split("."):
        value = getattr(value, key)
    assert value == expected
    assert type(value) is type(expected)


def test_later_overrides_apply_to_the_replaced_record():
    config = load(
        "demo",
        [
            "local.optimizer.learning_rate=5",
            "local.optimizer=adam",
            "local.optimizer.beta1=0.5",
        ],
    )
    assert config.local.optimizer == cfg.Adam(beta1=0.5)


def test_custom_record_with_free_arguments_survives_saving():
    config = load(
        "demo",
        [
            "aggregator=custom",
            "aggregator.target=mine.rules:krum",
            "aggregator.args.num_malicious=3",
            "aggregator.args.name=plain text",
            "aggregator.args.nested.values=[1, 2.5]",
            "aggregator.args.nested.values.1=4",
        ],
    )
    assert config.aggregator == cfg.Custom(
        target="mine.rules:krum",
        args={"num_malicious": 3, "name": "plain text", "nested": {"values": [1, 4]}},
    )
    assert parse(to_toml(config)) == config


def test_table_with_roles_survives_saving_and_quoted_keys_hold_dots():
    config = load(
        "demo",
        [
            "data=table",
            "data.path=a b.csv",
            'data.modalities={flow = ["a", "b.c"]}',
            'data.modalities."vital.signs"=rest',
            "data.positive=[1, 'yes', true]",
            "data.client=none",
            "data.entity=bed",
        ],
    )
    assert config.data.modalities == {"flow": ("a", "b.c"), "vital.signs": "rest"}
    assert config.data.positive == (1, "yes", True)
    assert config.data.client is None
    assert parse(to_toml(config)) == config


def test_the_generators_settings_are_the_presets_with_what_is_given():
    from fedjax_health.data.hospital_sim import PRESETS

    assert set(PRESETS) == {"demo", "paper", "many_clients"}
    for name, preset in PRESETS.items():
        assert cfg.simulation_settings(cfg.HospitalSim(preset=name)) == preset
    given = cfg.simulation_settings(cfg.HospitalSim("paper", steps=99, link=False))
    assert given == dataclasses.replace(PRESETS["paper"], steps=99, link=False)
    fields = {field.name for field in dataclasses.fields(given)} - {"version"}
    assert fields < set(cfg.HospitalSim.__struct_fields__)


def test_quoted_none_is_a_name_and_bare_none_is_nothing():
    base = ["data=table", "data.path=x.csv"]
    assert load("demo", [*base, 'data.entity="none"']).data.entity == "none"
    assert load("demo", [*base, "data.entity=none"]).data.entity is None


@pytest.mark.parametrize(
    ("text", "value", "literal"),
    [
        ("3", 3, True),
        ("3.0", 3.0, True),
        ("true", True, True),
        ("True", "True", False),
        ("krum", "krum", False),
        ('"3"', "3", True),
        ("[1, 2]", [1, 2], True),
        ("/data/a b.csv", "/data/a b.csv", False),
        ("", "", False),
        ("2020-01-01", "2020-01-01", False),
        ("1\nrounds = 2", "1\nrounds = 2", False),
    ],
)
def test_values_are_toml_literals_or_else_text(text, value, literal):
    assert parse_value(text) == (value, literal)


def test_paths_follow_tomls_rules():
    assert parse_path('a."b.c".0.d') == ["a", "b.c", "0", "d"]
    for wrong in ("", "a..b", "a b", "a\nb", ".a"):
        with pytest.raises(ConfigError, match="not a path"):
            parse_path(wrong)


# What is refused, and how


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["modle=gru"], ["modle", "did you mean model", "valid: seed, rounds"]),
        (["model=grux"], ["model: unknown kind", "mean gru", "valid: gru, mlp"]),
        (["model.hiden=3"], ["model.hiden", "of gru", "mean hidden"]),
        (["fedavg.mu=1"], ["fedavg: no such field"]),
        (["algorithm.mu=1"], ["algorithm.mu", "of fedavg", "valid: none"]),
        (["model.hidden=-1"], ["model.hidden: -1: expected int >= 1"]),
        (["model.hidden=2.5"], ["model.hidden: 2.5: expected int"]),
        (["model.hidden=many"], ["model.hidden: 'many': expected int"]),
        (["dropout=true"], ["dropout: True: expected float"]),
        (["dropout=1"], ["dropout: 1: expected float < 1"]),
        (
            ["local.optimizer.learning_rate=nan"],
            ["local.optimizer.learning_rate: nan is not a finite number"],
        ),
        (["local.optimizer.learning_rate=inf"], ["inf is not a finite number"]),
        (["malicious=nan"], ["malicious: nan is not"]),
        (["malicious=[1, nan]"], ["malicious.1: nan is not"]),
        (["malicious=1.0"], ["malicious: 1.0", "[0, 1)"]),
        (["malicious=[2, 2]"], ["malicious", "twice"]),
        (["malicious=[-2]"], ["malicious.0: -2: expected int >= 0"]),
        (["attack=custom", "attack.args.a.b=[0, inf]"], ["attack.args.a.b.1: inf"]),
        (["attack=custom"], ["attack.target", "package.module:function"]),
        (["attack.args.x=1"], ["attack: say which kind", "--set attack=sign_flip"]),
        (["transforms.0=custom"], ["transforms.0.target"]),
        (["transforms.1=identity"], ["transforms is a list of 0"]),
        (["transforms.0.target=a:b"], ["first --set transforms.0=..."]),
        (["transforms.x=identity"], ["use an index"]),
        (["seed"], ["'seed'", "path.to.field=value"]),
        (["seed.x=3"], ["seed is a single value"]),
        (["seed=-1"], ["seed: -1: expected int >= 0"]),
        (["window=3"], ["window: 3: expected table"]),
        (["alignment.weight=1"], ["alignment: needs", "--set alignment=none"]),
        (["local.steps=4", "local.epochs=2"], ["local: epochs=2 and steps=4 exclude"]),
        (["data=wustl"], ["data.path: names no file"]),
        (["data=table"], ["data.path: names no file"]),
        (["data.preset=demoo"], ["data.preset: 'demoo'", "mean demo"]),
        (["data.departments=[4, 2]"], ["data: departments=[4, 2]"]),
        (["data.departments=[4]"], ["data.departments: [4]", "length >= 2"]),
        (["data.prevalence=0.9"], ["prevalence=0.9"]),
        (["weighting=often"], ["weighting: 'often'", "valid: examples, uniform"]),
        (["split.train=0.9"], ["split: 0.9 + 0.1 + 0.3 is 1.3"]),
        (
            ["split=episode_blocks", "split.fractions=[0.7, 0, 0.3]"],
            ["split.fractions"],
        ),
        (
            ["split=episode_blocks", "split.block=40"],
            ["split.block: 40", "20 rows (the window's length)", "more than 40"],
        ),
        (
            ["split=episode_blocks", "split.block=10", "split.embargo=5"],
            ["split.block: 10", "takes 5 rows off", "more than 10"],
        ),
        (["algorithm=scaffold"], ["local.optimizer.momentum: 0.9", "set it to 0"]),
        (
            ["algorithm=scaffold", "local.optimizer=adam"],
            ["local.optimizer: scaffold", "--set local.optimizer=sgd"],
        ),
        (["algorithm=ditto", "personal=norm"], ["personal: personal layers go with"]),
        (["personal=norm"], ["personal: norm", "--set model.norm=true"]),
        (["data.departments=[1, 9]"], ["data: hospital_sim: departments must be"]),
        (["data.steps=3"], ["data: hospital_sim: steps must lie in 20"]),
        (["seed=4294967296"], ["seed: 4294967296: expected int <= 4294967295"]),
        (["parallelism=scan", "chunk=8"], ["chunk: 8", "one client at a time"]),
        (
            ["partition=iid", "sampling.cohort_size=11"],
            ["sampling.cohort_size: 11: there are only 10 clients"],
        ),
        (["partition=iid", "malicious=[10]"], ["malicious: client id 10", "0 to 9"]),
        (["loss.burn_in=20"], ["loss.burn_in: 20: leaves no step"]),
        (["window.length=1"], ["window.length: 1: a gru needs windows"]),
        (
            ["sampling=poisson", "sampling.cohort_size=9", "sampling.cap=4"],
            ["sampling: cap=4 lies below"],
        ),
        (["local.schedule=exponential", "local.schedule.decay=2"], ["decay=2.0"]),
        (["personal=head", "personal.paths=[]"], ["personal: paths is empty"]),
    ],
)
def test_refusals_are_one_line_that_names_the_place(overrides, parts):
    with pytest.raises(ConfigError) as caught:
        load("demo", [*GRU, *overrides])
    message = str(caught.value)
    assert message.startswith("config: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("rounds = 3\nroundz = 4\n", "roundz: no such field; did you mean rounds"),
        ("[model]\nkind = 'gru'\nlayers = 2\n", "model.layers: no such field of gru"),
        ("[window]\nkind = 'x'\n", "window.kind: no such field"),
        ("[local.optimizer]\nlearning_rate = nan\n", "learning_rate: nan is not"),
        ("rounds = [", "not valid TOML"),
        ("[[transforms]]\n", "transforms.0: say which kind"),
        (
            "[attack]\nkind='custom'\ntarget='a:b'\nargs={when=2020-01-01}\n",
            "attack.args.when: 2020-01-01 is a date",
        ),
    ],
)
def test_refusals_in_a_file(text, part):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert part in str(caught.value)


def test_a_table_without_kind_is_of_the_default_kind_and_a_string_names_one():
    assert parse("[model]\nhidden = 7\n").model == cfg.Gru(hidden=7)
    assert parse("model = 'mlp'\n").model == cfg.Mlp()


def test_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match=r"no preset 'dem'; did you mean demo\?"):
        load("dem")
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="directory"):
        load(f"{tmp_path}/")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(binary)


def test_records_built_in_python_are_checked_by_validate():
    assert cfg.validate(cfg.Config()) == cfg.Config()
    wrong = cfg.Config(local=cfg.Local(optimizer=cfg.Sgd(learning_rate=math.nan)))
    with pytest.raises(ConfigError, match=r"local\.optimizer\.learning_rate: nan"):
        cfg.validate(wrong)
    with pytest.raises(ConfigError, match=r"rounds: 0: expected int >= 1"):
        cfg.validate(cfg.Config(rounds=0))


# Saving and hashing


def test_the_hash_follows_every_field_and_nothing_else():
    base = load("demo", GRU)
    assert cfg.config_hash(base) == cfg.config_hash(parse(to_toml(base)))
    assert len(cfg.config_hash(base)) == 64
    for change in ("seed=1", "dropout=0.1", "model.hidden=9", "chunk=2"):
        assert cfg.config_hash(load("demo", [*GRU, change])) != cfg.config_hash(base)


names = st.text(
    st.characters(min_codepoint=1, exclude_categories=("Cs",)), min_size=1, max_size=6
)
numbers = st.floats(1e-300, 1e38, exclude_min=True)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    learning_rate=numbers,
    momentum=st.floats(0, 1, exclude_max=True),
    malicious=st.one_of(
        st.floats(0, 1, exclude_max=True),
        st.lists(st.integers(0, 99), max_size=4, unique=True).map(tuple),
    ),
    args=st.dictionaries(
        names,
        st.recursive(
            st.one_of(
                st.booleans(),
                st.integers(-(2**63), 2**63 - 1),
                st.floats(allow_nan=False, allow_infinity=False),
                names,
            ),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)
            ),
            max_leaves=5,
        ),
        max_size=3,
    ),
    modalities=st.dictionaries(
        names, st.one_of(st.just("rest"), st.lists(names, max_size=3).map(tuple))
    ),
)
def test_saving_is_exact(seed, learning_rate, momentum, malicious, args, modalities):
    config = cfg.Config(
        seed=seed,
        data=cfg.Table(path="x.csv", modalities=modalities),
        local=cfg.Local(
            optimizer=cfg.Sgd(learning_rate=learning_rate, momentum=momentum), steps=3
        ),
        malicious=malicious,
        attack=cfg.Custom(target="a.b:c", args=args),
        transforms=(cfg.Identity(), cfg.Custom(target="a:b")),
    )
    again = parse(to_toml(config))
    assert again == config
    assert to_toml(again) == to_toml(config)
    assert cfg.config_hash(again) == cfg.config_hash(config)


@settings(max_examples=100, deadline=None)
@given(
    tree=st.dictionaries(
        st.sampled_from(["seed", "model", "local", "data", "malicious", "x", "kind"]),
        st.recursive(
            st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(
                    st.sampled_from(["kind", "hidden", "optimizer", "path", "y"]),
                    inner,
                    max_size=3,
                ),
            ),
            max_leaves=6,
        ),
    )
)
def test_whatever_a_file_holds_the_error_is_a_config_error(tree):
    try:
        text = tomli_w.dumps(tree)
    except ValueError:
        return
    try:
        config = parse(text)
    except ConfigError:
        return
    assert parse(to_toml(config)) == config


# Custom functions


def test_custom_targets_are_found_and_called():
    half = cfg.Custom(target="fractions:Fraction", args={"denominator": 2})
    assert cfg.call_custom(half, 1) == 0.5


@pytest.mark.parametrize(
    ("target", "part"),
    [
        ("fractions", "package.module:function"),
        ("fractions:Fraction:x", "package.module:function"),
        ("no_such_module_here:f", "no module 'no_such_module_here'"),
        ("fractions:Fractoin", "did you mean 'Fraction'"),
        ("sys:maxsize", "has no function"),
    ],
)
def test_custom_targets_that_cannot_be_found(target, part):
    with pytest.raises(ConfigError, match=r"aggregator\.target") as caught:
        cfg.import_target(target, path="aggregator")
    assert part in str(caught.value)


def test_wrong_arguments_are_the_configurations_fault_and_others_are_not(
    tmp_path, monkeypatch
):
    (tmp_path / "own_rules.py").write_text(
        "def rule(size):\n    return size + 1\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.args.*sise"):
        cfg.call_custom(cfg.Custom("own_rules:rule", {"sise": 1}), path="model")
    with pytest.raises(TypeError):
        cfg.call_custom(cfg.Custom("own_rules:rule", {"size": "x"}), path="model")


@pytest.mark.parametrize(
    "term",
    ["alignment.weight=0.1", "temporal=window"],
)
def test_private_gradients_refuse_terms_that_compare_examples(term):
    with pytest.raises(ConfigError, match="takes each by itself"):
        load(
            "demo",
            ["alignment=none", "local.example_privacy.clip_norm=1.0", term],
        )
