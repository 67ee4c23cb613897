"""fedjax-health privacy: bare numbers, configurations, run folders, bad input."""

import json
import subprocess
import sys

import dp_accounting as dp
import pytest
from dp_accounting import pld, rdp

from fedjax_health import config as cfg
from fedjax_health.cli.main import execute
from fedjax_health.cli.parser import parse_flags

PRIVATE = (
    *("--config", "demo", "--set", "mechanism=central_gaussian"),
    *("--set", "transforms=[{kind='clip_l2'}]", "--set", "weighting=uniform"),
    *("--set", "sampling=poisson", "--set", "sampling.cohort_size=50"),
)


def invoke(*arguments):
    return execute(parse_flags(["fedjax-health", "privacy", *map(str, arguments)]))


def asked(capsys, *arguments):
    assert invoke(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    assert invoke(*arguments) == 2
    return capsys.readouterr().err


def direct(z, q, rounds, delta, accountant):
    used = (
        rdp.RdpAccountant()
        if accountant == "rdp"
        else pld.PLDAccountant(value_discretization_interval=1e-3)
    )
    used.compose(dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(z)), rounds)
    return used.get_epsilon(delta)


NUMBERS = ("--sampling-rate", 0.05, "--rounds", 30, "--delta", 1e-4)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_bare_numbers(capsys, accountant):
    told = asked(
        capsys, "--noise-multiplier", 1.2, *NUMBERS, "--accountant", accountant
    )
    assert told["epsilon"] == pytest.approx(direct(1.2, 0.05, 30, 1e-4, accountant))
    assert told["epsilon_by_round"][-1] == {"round": 30, "epsilon": told["epsilon"]}
    assert told["epsilon_by_round"][0]["round"] == 1
    assert [row["epsilon"] for row in told["noise_for_epsilon"]] == [1, 3, 8]


def test_a_target_gives_the_noise(capsys):
    told = asked(capsys, "--target-epsilon", 2.0, *NUMBERS)
    assert 1.999 < told["epsilon"] <= 2.0
    (row,) = told["noise_for_epsilon"]
    assert row["noise_multiplier"] == told["noise_multiplier"]


def test_the_relation_matters(capsys):
    add, replace = (
        asked(capsys, "--noise-multiplier", 2, "--relation", relation)["epsilon"]
        for relation in ("add-or-remove", "replace")
    )
    assert (add, replace) == pytest.approx((1.993, 4.377), abs=2e-3)


def test_the_four_answers_come_first(capsys):
    assert invoke("--noise-multiplier", 2, "--rounds", 4) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["what", "against", "how", "how"]
    assert lines[2].startswith("how much epsilon 4.37")
    assert any("seed" in line for line in lines)


def test_a_configuration(capsys, tmp_path):
    plot = tmp_path / "epsilon.svg"
    told = asked(
        capsys,
        *PRIVATE,
        *("--noise-multiplier", 1.0, "--population", 1000, "--rounds", 20),
        *("--plot", plot),
    )
    assert told["clients"] == 1000
    assert told["rounds"] == 20
    # A cap six deviations out costs next to nothing.
    exact = direct(1.0, 0.05, 20, 1e-5, "pld")
    assert exact - 1e-3 <= told["epsilon"] < exact * 1.02
    assert "truncated" in told["sampler"]
    assert plot.read_text().startswith("<?xml")


def test_a_target_of_a_configuration(capsys):
    told = asked(
        capsys,
        *PRIVATE,
        *("--set", "sampling=fixed", "--population", 100, "--rounds", 9),
        *("--target-epsilon", 3.0, "--delta", 1e-3),
    )
    assert 2.99 < told["epsilon"] <= 3.0
    assert told["noise_multiplier"] == pytest.approx(
        3 * dp.get_sigma_gaussian(3.0, 1e-3), rel=2e-3
    )
    assert not told["warnings"]


def test_a_delta_of_one_over_n_is_warned_of(capsys):
    arguments = (*PRIVATE, "--set", "sampling=fixed", "--population", 10)
    assert invoke(*arguments, "--noise-multiplier", 3, "--delta", 0.1) == 0
    assert "WARNING delta=0.1 is 1/n or more" in capsys.readouterr().out


@pytest.mark.parametrize("done", [0, 7])
def test_a_run_folder_is_accounted_as_far_as_it_is(capsys, tmp_path, done):
    settings = cfg.load(
        "demo",
        [*PRIVATE[3::2], "mechanism.noise_multiplier=2.0", "sampling=fixed"],
    )
    (tmp_path / "config.toml").write_text(cfg.to_toml(settings))
    lines = [json.dumps({"round": n + 1}) + "\n" for n in range(done)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    (tmp_path / "detector.json").write_text(json.dumps({"client_names": ["a"] * 30}))
    told = asked(capsys, tmp_path)
    assert told["rounds"] == done
    assert told["clients"] == 30
    expected = dp.get_epsilon_gaussian(2.0 / done**0.5, 1e-5) if done else 0
    assert told["epsilon"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_the_population_comes_from_the_data_where_it_is_not_given(capsys):
    told = asked(
        capsys,
        *PRIVATE,
        *("--set", "sampling=fixed", "--noise-multiplier", 4, "--rounds", 2),
    )
    assert told["clients"] >= 2


def test_bad_input_is_one_line(capsys, tmp_path):
    assert "exactly one" in refused(capsys)
    both = ("--noise-multiplier", 1, "--target-epsilon", 1)
    assert "exactly one" in refused(capsys, *both)
    assert "sampling-rate" in refused(
        capsys, "--noise-multiplier", 1, "--sampling-rate", 2
    )
    assert "no noise reaches" in refused(
        capsys,
        *("--target-epsilon", 1e-4, "--delta", 1e-9, "--accountant", "rdp"),
    )
    assert "delta=2.0" in refused(capsys, "--noise-multiplier", 1, "--delta", 2)
    assert ".png" in refused(capsys, "--noise-multiplier", 1, "--plot", "x.pdf")
    assert "nothing is private" in refused(
        capsys, "--config", "demo", "--population", 9
    )
    assert "privacy.target_epsilon" in refused(capsys, *PRIVATE, "--population", 1000)
    assert "bare numbers" in refused(
        capsys, *PRIVATE, "--noise-multiplier", 1, "--sampling-rate", 0.1
    )
    assert "no such folder" in refused(capsys, tmp_path / "nothing")
    assert "not both" in refused(capsys, tmp_path, "--config", "demo")


def test_noise_is_given_once():
    for changes in (
        ["mechanism=central_gaussian"],
        [
            "mechanism={kind='central_gaussian',noise_multiplier=1.0}",
            "privacy.target_epsilon=1.0",
        ],
        ["privacy.target_epsilon=1.0"],
    ):
        with pytest.raises(cfg.ConfigError, match=r"privacy\.target_epsilon"):
            cfg.load("demo", changes)
    assert cfg.load(
        "demo", ["mechanism=distributed_skellam", "privacy.target_epsilon=1.0"]
    )
    with pytest.raises(cfg.ConfigError, match="exclude each other"):
        cfg.load(
            "demo",
            ["mechanism={kind='local_gaussian',epsilon=1.0,noise_multiplier=2.0}"],
        )


def test_bare_numbers_need_no_jax():
    code = (
        "import sys\n"
        "from fedjax_health.cli.main import execute\n"
        "from fedjax_health.cli.parser import parse_flags\n"
        "execute(parse_flags(['x', 'privacy', '--noise-multiplier', '2', '--json']))\n"
        "sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


EXAMPLES = (
    *("--config", "demo", "--set", "local.example_privacy.noise_multiplier=1.3"),
    *("--set", "alignment=none"),
)


@pytest.mark.slow
def test_examples_of_a_configuration(capsys):
    told = asked(capsys, *EXAMPLES, "--rounds", 4, "--target-epsilon", 3)
    assert told["unit"] == "example"
    assert "messages of the client" in told["protected_against"]
    assert told["epsilon_by_round"][-1] == {"round": 4, "epsilon": told["epsilon"]}
    config = cfg.load("demo")
    size, batch = told["examples_of_least_protected"], config.local.batch_size
    steps = config.local.steps or config.local.epochs * -(-size // batch)
    expected = direct(1.3, min(batch / size, 1), 4 * steps, told["delta"], "pld")
    assert told["epsilon"] == pytest.approx(expected, rel=1e-3)
    (wanted,) = told["noise_for_epsilon"]
    least = direct(
        wanted["noise_multiplier"], min(batch / size, 1), 4 * steps, 1e-5, "pld"
    )
    assert least == pytest.approx(3, rel=2e-3)


def test_examples_of_bare_numbers(capsys):
    told = asked(capsys, "--unit", "example", "--noise-multiplier", 1.2, *NUMBERS)
    assert told["unit"] == "example"
    assert "example is there or is not" in told["relation"]
    assert told["epsilon"] == pytest.approx(direct(1.2, 0.05, 30, 1e-4, "pld"))


def test_examples_that_nothing_protects(capsys):
    said = refused(capsys, "--config", "demo", "--unit", "example")
    assert "no example is protected" in said
