"""docs/extend.md: its code runs, and every entry does what it says."""

import itertools
import re
import shlex
import sys
from pathlib import Path

import dp_accounting
import jax
import numpy as np
import pandas as pd
import pytest

from fedjax_health import build, records, training
from fedjax_health.config import ConfigError, Custom, call_custom, parse
from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.rng import SERVER, Stream, key_for, root_key
from fedjax_health.core.types import Sampling
from fedjax_health.data.sampling import draw_clients
from fedjax_health.data.schema import DataError, check_dataset
from fedjax_health.engine.round import compiled_step

PAGE = (Path(__file__).parents[1] / "docs" / "extend.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def commands():
    """The overrides of each command on the page."""
    found = re.findall(r"^PYTHONPATH=\. fedjax-health run (.*)$", PAGE, re.MULTILINE)
    words = [shlex.split(line) for line in found]
    return [
        [word for flag, word in itertools.pairwise(w) if flag == "--set"] for w in words
    ]


@pytest.fixture(scope="module")
def my_rules(tmp_path_factory):
    """The page's module, on the path as a user's would be."""
    folder = tmp_path_factory.mktemp("extend")
    parts = [b for b in blocks("python") if b.startswith("# my_rules.py")]
    assert len(parts) == 12
    (folder / "my_rules.py").write_text("\n\n".join(parts), encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        import my_rules

        yield my_rules
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("my_rules", None)


def config(*overrides):
    (text,) = blocks("toml")
    return parse(text, ["devices=1", *overrides])


def train(settings, folder):
    result = training.train(settings, folder, records.SILENT)
    paths = records.run_folder(folder)
    return result, records.read_jsonl(paths.metrics), pd.read_parquet(paths.predictions)


# The same rounds in NumPy: a linear detector, one step on all rows of a client.


def focal_loss(w, x, y, gamma):
    right = 1 / (1 + np.exp(-np.where(y > 0, 1, -1) * (x @ w[1:] + w[0])))
    return np.mean(-((1 - right) ** gamma) * np.log(right))


def gradient(w, x, y, gamma, step=1e-5):
    def slope(i):
        ahead, behind = w.copy(), w.copy()
        ahead[i] += step
        behind[i] -= step
        up, down = (focal_loss(v, x, y, gamma) for v in (ahead, behind))
        return (up - down) / (2 * step)

    return np.array([slope(i) for i in range(len(w))])


def simulate(settings, *, local, shape=None, combine=None, server=None, invert=()):
    """Returns (parameters after each round, loss of each round, messages of each).

    Parameters are ``[bias, *kernel]``; ``local(gradient, round)`` is one client's
    update, ``shape`` its transform, ``combine(messages, clients, round)`` the rule.
    """
    prepared = build.prepare(settings, build.build_dataset(settings))
    built = build.build(settings, prepared)
    head = build.initial_params(settings, built.model)["head"]
    w = np.append(head["bias"], head["kernel"]).astype(float)
    store, gamma = prepared.store, settings.loss.args["gamma"]
    memory = np.zeros_like(w)
    models, losses, sent = [], [], []
    for round in range(settings.rounds):
        clients = np.sort(draw_clients(built.sampling, settings.seed, round))
        messages, values = [], []
        for client in clients:
            rows = slice(*store.offsets[client : client + 2])
            x = store.rows["x"][rows].astype(float)
            y = store.rows["label"][rows]
            y = 1 - y if client in invert else y
            values.append(focal_loss(w, x, y, gamma))
            update = local(gradient(w, x, y, gamma), round)
            messages.append(shape(update) if shape else update)
        messages = np.array(messages).reshape(len(clients), len(w))
        rule = combine or (lambda messages, clients, round: messages.mean(axis=0))
        aggregate = rule(messages, clients, round)
        memory = aggregate + (server or 0.0) * memory
        w = w - memory
        models.append(w)
        losses.append(np.mean(values))
        sent.append(messages)
    return models, losses, sent


def scores_of(settings, w):
    """The detector's scores of the test part."""
    part = build.prepare(settings, build.build_dataset(settings)).parts.test
    return 1 / (1 + np.exp(-(part.features["pump"] @ w[1:] + w[0])))


def by_clip(bound):
    return lambda update: update * min(1, bound / np.linalg.norm(update))


def differ(one, other):
    return np.abs(np.array(one) - np.array(other)).max() > 1e-3


def test_data_model_loss_and_all_three_optimisers_from_a_config(my_rules, tmp_path):
    settings = config()
    result, lines, predictions = train(settings, tmp_path / "run")

    def signs(g, round):
        return 0.1 * 0.5**round * np.sign(g)

    models, losses, _ = simulate(settings, local=signs, server=0.5)
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-4)
    assert [line["update_norm"] for line in lines] == pytest.approx([0.2, 0.1])
    best = models[result["best_round"] - 1]
    np.testing.assert_allclose(predictions.score, scores_of(settings, best), rtol=1e-4)
    assert set(predictions.client) == {"ward 0", "ward 1", "ward 2", "ward 3"}
    assert set(predictions.attack) == {"normal", "tampering"}
    assert all(0 < line["surprise"] < 1 for line in lines)
    # Each entry matters: without it the run would end elsewhere.
    others = [
        simulate(settings, local=lambda g, _: 0.1 * g, server=0.5),
        simulate(settings, local=lambda g, _: 0.1 * np.sign(g), server=0.5),
        simulate(settings, local=signs),
    ]
    assert all(differ(other[0][-1], models[-1]) for other in others)
    other = config("loss.args.gamma=0.0")
    assert differ(simulate(other, local=signs, server=0.5)[1], losses)


def test_transform_attacks_and_rule_from_a_config(my_rules, tmp_path):
    robust, _, _ = commands()
    settings = config(*robust, "server=sgd")
    result, lines, predictions = train(settings, tmp_path / "run")
    clip = by_clip(0.01)

    def forge_then_rank(messages, clients, round):
        return np.median(np.where(clients[:, None] == 0, -3 * messages, messages), 0)

    def plain(g, round):
        return 0.1 * 0.5**round * g

    stages = {
        "local": plain,
        "shape": clip,
        "combine": forge_then_rank,
        "invert": (0,),
    }
    models, losses, sent = simulate(settings, **stages)
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-4)
    norms = [np.linalg.norm(messages, axis=1).mean() for messages in sent]
    assert [line["update_norm"] for line in lines] == pytest.approx(norms, rel=1e-4)
    assert [line["ranked"] for line in lines] == [4, 4]
    best = models[result["best_round"] - 1]
    np.testing.assert_allclose(predictions.score, scores_of(settings, best), rtol=1e-4)

    def mean_rule(messages, clients, round):
        return np.where(clients[:, None] == 0, -3 * messages, messages).mean(axis=0)

    def honest(messages, clients, round):
        return np.median(messages, axis=0)

    for change in (
        {"shape": None},
        {"combine": mean_rule},
        {"combine": honest},
        {"invert": ()},
    ):
        other = simulate(settings, **{**stages, **change})[0][-1]
        assert np.abs(other - models[-1]).max() > 1e-4, change


def test_mechanism_on_the_transforms_bound_from_a_config(my_rules, tmp_path):
    _, private, _ = commands()
    settings = config(*private, "server=sgd", "seed=3")
    _, lines, predictions = train(settings, tmp_path / "run")
    bound, multiplier = 0.01, 0.5

    def noised(messages, clients, round):
        key = key_for(root_key(settings.seed), Stream.MECHANISM, round, SERVER)
        of_bias, of_kernel = jax.random.split(key, 2)
        noise = np.append(
            jax.random.normal(of_bias, ()), jax.random.normal(of_kernel, (3,))
        )
        total = messages.sum(axis=0) + multiplier * bound * noise
        return total / 3

    models, _, sent = simulate(
        settings,
        local=lambda g, round: 0.1 * 0.5**round * g,
        shape=by_clip(bound),
        combine=noised,
    )
    assert any(len(messages) != 3 for messages in sent)
    last = [scores_of(settings, model) for model in models]
    found = [np.allclose(predictions.score, scores, rtol=1e-4) for scores in last]
    assert any(found)
    assert [line["num_clients"] for line in lines] == [len(m) for m in sent]

    sampling = Sampling("poisson", population=4, expected=3)
    event = my_rules.gaussian(multiplier).event(Message(1), sampling, 2)
    accountant = dp_accounting.rdp.RdpAccountant()
    assert accountant.compose(event).get_epsilon(1e-3) > 0


def test_local_algorithm_from_a_config(my_rules, tmp_path):
    _, _, bounded = commands()
    settings = config(*bounded, "server=sgd")
    result, lines, predictions = train(settings, tmp_path / "run")
    bound = by_clip(0.02)

    def plain(g, round):
        return 0.1 * 0.5**round * g

    models, losses, _ = simulate(settings, local=lambda g, r: plain(bound(g), r))
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-4)
    assert [line["update_norm"] for line in lines] == pytest.approx([0.002, 0.001])
    best = models[result["best_round"] - 1]
    np.testing.assert_allclose(predictions.score, scores_of(settings, best), rtol=1e-4)
    assert differ(simulate(settings, local=plain)[0][-1], models[-1])


def test_the_bound_is_named_by_the_position_in_the_chain(my_rules):
    _, private, _ = commands()
    description = training.describe(config(*private))
    assert description["message"]["bound"] == "0/clip_norm"
    assert description["stages"]["5 privatise"] == "custom my_rules:gaussian"
    assert my_rules.clip(2.0).check(Message(4)).bound == "clip_norm"


def test_the_library_block_runs_and_numbers_compile_nothing_anew(my_rules, capsys):
    (block,) = (b for b in blocks("python") if "run_rounds" in b)
    names = {}
    exec(compile(block, "extend.md", "exec"), names)
    assert names["metrics"]["ranked"].tolist() == [5, 5]
    assert np.isfinite(names["metrics"]["loss"]).all()
    assert capsys.readouterr().out
    state = names["state"]
    assert 0 <= float(state.shared["transform"][0]["clipped"]) <= 5
    before = compiled_step.cache_info().misses
    changed = block.replace("clip(1.0)", "clip(0.01)").replace("scale=3.0", "scale=7.0")
    changed = changed.replace("decay=0.5", "decay=0.9").replace("sgd(0.05)", "sgd(0.1)")
    assert changed.count("0.01") == changed.count("7.0") == changed.count("0.9") == 1
    again = {}
    exec(compile(changed, "extend.md", "exec"), again)
    assert compiled_step.cache_info().misses == before
    assert float(again["state"].shared["transform"][0]["clipped"]) == 5


def test_the_page_shows_every_slot_that_takes_a_function():
    (text,) = blocks("toml")
    changes = [change for command in commands() for change in command]
    shown = set(re.findall(r'my_rules:(\w+)"', text))
    shown |= {name for c in changes for name in re.findall(r"my_rules:(\w+)", c)}
    defined = set(re.findall(r"^def ([a-z]\w*)\(", "\n".join(blocks("python")), re.M))
    assert shown == defined
    assert len(shown) == 12


# What a user gets wrong


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (["loss.target=my_rules:median", "loss.args={}"], "loss.args: "),
        (["loss.target=my_rules:logistic", "loss.args={}"], "takes a LossFn"),
        (["model.target=my_rules:median", "model.args={}"], "model.args: "),
        (["server.target=my_rules:median"], "this slot takes a Optimizer"),
        (
            ["algorithm=custom", "algorithm.target=my_rules:median"],
            "this slot takes a LocalAlgorithm",
        ),
        (["server.target=my_rules:medain"], "did you mean 'median'?"),
        (["server.target=my_ruled:median"], "no module 'my_ruled'"),
        (["transforms=[{kind='custom',target='my_rules:clip'}]"], None),
    ],
)
def test_a_misfit_is_one_line(my_rules, changes, part):
    settings = config(*changes)
    if part is None:
        settings = config(*changes, "transforms.0.args.max_norm=-1")
        part = "config: transforms.0: my_rules:clip: max_norm must be above 0, not -1"
    with pytest.raises(ConfigError, match=r"^config: ") as caught:
        training.describe(settings)
    assert part in str(caught.value)


def test_errors_of_this_package_keep_their_class(monkeypatch):
    def refuse():
        raise CompositionError("cannot be")

    def slip():
        return {}["absent"]

    monkeypatch.setattr(build, "refuse", refuse, raising=False)
    monkeypatch.setattr(build, "slip", slip, raising=False)
    with pytest.raises(CompositionError, match="cannot be"):
        call_custom(Custom(target="fedjax_health.build:refuse"))
    with pytest.raises(KeyError):
        call_custom(Custom(target="fedjax_health.build:slip"))


def test_a_schedule_goes_with_an_optimizer_of_ones_own(my_rules):
    plan = build.build_plan(config())
    assert plan.local.optimizer.constructor is my_rules._sign_steps
    assert plan.local.optimizer.schedule == my_rules.halving(every=1)
    constant = build.build_plan(config("local.schedule=constant"))
    assert constant.local.optimizer.schedule is None


def changed(dataset, **fields):
    return dataset._replace(
        **{
            name: change(getattr(dataset, name).copy())
            for name, change in fields.items()
        }
    )


def put(row, value):
    def change(values):
        values[row] = value
        return values

    return change


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"label": put(3, 0.5)}, "row 3 (from 0): label is not 0 or 1"),
        ({"label": lambda v: v.astype(int)}, "label is int64 (800,); give float32"),
        ({"label": lambda v: v[:-1]}, "attack is int32 (800,); give int32 (799,)"),
        ({"label": np.zeros_like}, "every label is 0"),
        ({"attack": put(19, 0)}, "row 19 (from 0): attack contradicts label"),
        ({"attack": put(19, 2)}, "attack is no index into its 2 names"),
        ({"client": put(5, 3)}, "row 6 (from 0): client falls"),
        ({"client": put(slice(None), 9)}, "client is no index into its 4 names"),
        ({"entity": put(5, 1)}, "row 6 (from 0): entity comes back"),
        ({"time": put(5, 0.0)}, "row 5 (from 0): time falls"),
        ({"time": put(5, np.nan)}, "row 5 (from 0): time is not finite"),
    ],
)
def test_data_of_ones_own_is_checked(my_rules, fields, part):
    dataset = my_rules.infusion_pumps()
    check_dataset(dataset)
    with pytest.raises(DataError) as caught:
        check_dataset(changed(dataset, **fields), source="mine")
    assert str(caught.value).startswith("mine")
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("value", "part"),
    [(np.inf, "is infinite"), (np.nan, "has no value; add 'pump' to masked")],
)
def test_features_of_ones_own_are_checked(my_rules, value, part):
    dataset = my_rules.infusion_pumps()
    dataset.features["pump"][7, 1] = value
    with pytest.raises(DataError, match=r"row 7 \(from 0\)") as caught:
        check_dataset(dataset)
    assert part in str(caught.value)
    if np.isnan(value):
        check_dataset(dataset._replace(masked=frozenset({"pump"})))
    wide = dataset._replace(features={"pump": np.zeros((800, 2), np.float32)})
    with pytest.raises(DataError, match="float32 \\(800, 3\\)"):
        check_dataset(wide)
