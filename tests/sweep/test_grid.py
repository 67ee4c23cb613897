"""From the TOML of a sweep to its cells."""

import pytest

from fedjax_health import config
from fedjax_health.config import ConfigError
from fedjax_health.config.sweep import load_sweep, parse_sweep
from tests.sweep import grid


def test_cells_are_the_product_of_the_axes_in_their_order(tmp_path):
    sweep = grid.load(tmp_path)
    # 2 seeds, 2 shares, (1 + 2) settings of defences, 3 attacks.
    assert len(sweep.cells) == 2 * 2 * 3 * 3
    assert list(sweep.cells[0].values) == ["seed", "malicious", "defence", "attack"]
    assert [c.values["seed"] for c in sweep.cells] == [0] * 18 + [1] * 18
    tuned = [c.tuned for c in sweep.cells if c.values["defence"] == "mean"]
    assert tuned == [{}] * 12
    radii = {c.config.aggregator.radius for c in sweep.cells if c.tuned}
    assert radii == {0.001, 10.0}


def test_a_cell_is_the_base_with_the_changes_of_its_values(tmp_path):
    sweep = grid.load(tmp_path, "rounds=3")
    cell = next(
        c
        for c in sweep.cells
        if c.values
        == {"seed": 1, "malicious": 0.25, "defence": "mean", "attack": "sign flip"}
    )
    expected = config.load(
        str(tmp_path / "base.toml"),
        [
            "rounds=3",
            "model=mlp",
            "model.hidden=[4]",
            "window.length=1",
            "window.stride=1",
            "seed=1",
            "malicious=0.25",
            "aggregator=mean",
            "attack=sign_flip",
            "attack.scale=3.0",
        ],
    )
    assert cell.config == expected


def test_cells_that_compute_the_same_have_one_key(tmp_path):
    cells = [c for c in grid.load(tmp_path).cells if not c.config.malicious]
    assert all(c.config.attack is None for c in cells)
    quiet = [c for c in cells if c.values["malicious"] == 0.0 and not c.values["seed"]]
    # One for the mean, two settings of centred clipping.
    assert len({c.key for c in quiet}) == 3


def test_a_clean_value_leaves_nobody_malicious_and_assumptions_as_they_were(tmp_path):
    for cell in grid.load(tmp_path).cells:
        if cell.values["attack"] == "no attack":
            assert cell.config.malicious == 0.0
            assert cell.config.assumed_malicious == cell.values["malicious"]
        elif cell.values["malicious"]:
            assert cell.config.assumed_malicious is None


def test_the_kept_text_makes_the_same_sweep(tmp_path):
    sweep = grid.load(tmp_path, "rounds=3", only=["seed=1", "attack=ipm,no attack"])
    again = parse_sweep(sweep.toml)
    assert again.cells == sweep.cells
    assert again.axes == sweep.axes
    assert {c.values["attack"] for c in again.cells} == {"ipm", "no attack"}
    assert {c.config.rounds for c in again.cells} == {3}


def test_another_base_takes_the_place_of_the_own_one(tmp_path):
    other = tmp_path / "other.toml"
    path = grid.write(tmp_path)
    other.write_text((tmp_path / "base.toml").read_text().replace("= 4", "= 2", 1))
    assert {c.config.rounds for c in load_sweep(path, base=other).cells} == {2}


def test_fields_under_cell_hold_for_every_cell_and_overrides_come_after(tmp_path):
    axes = "[cell]\nrounds = 7\nlocal = { epochs = 2 }\n[axes]\nseed = [0]\n"
    (cell,) = grid.load(tmp_path, axes=axes).cells
    assert (cell.config.rounds, cell.config.local.epochs) == (7, 2)
    assert cell.config.local.batch_size == 16
    (cell,) = grid.load(tmp_path, "rounds=8", axes=axes).cells
    assert cell.config.rounds == 8


def test_an_axis_may_be_given_beside_the_file(tmp_path):
    sweep = grid.load(
        tmp_path, axes_given=["malicious=[0.0, 0.5]", "local.epochs=[1, 2]"]
    )
    assert "local.epochs" in [axis.name for axis in sweep.axes]
    assert {c.config.malicious for c in sweep.cells} == {0.0, 0.5}
    assert {c.config.local.epochs for c in sweep.cells} == {1, 2}
    with pytest.raises(ConfigError, match="write it as field="):
        grid.load(tmp_path, axes_given=["malicious=0.5"])


def test_values_whose_names_hold_commas_can_be_kept(tmp_path):
    axes = (
        "[axes]\nmalicious = [0.0, 0.25]\n"
        '[axes.attack]\n"Fang, Krum" = { attack = "fang" }\nFang = { attack = "ipm" }\n'
        'ALIE = { attack = "alie" }\n'
    )
    sweep = grid.load(
        tmp_path, axes=axes, only=["attack=ALIE,Fang, Krum", "malicious=0"]
    )
    assert [c.values["attack"] for c in sweep.cells] == ["Fang, Krum", "ALIE"]
    assert {c.values["malicious"] for c in sweep.cells} == {0.0}
    sweep = grid.load(tmp_path, axes=axes, only=["attack=Fang"])
    assert {c.values["attack"] for c in sweep.cells} == {"Fang"}


@pytest.mark.parametrize("override", ["seed=7", "aggregator=median", "malicious=0.3"])
def test_an_override_that_an_axis_would_undo_is_refused(tmp_path, override):
    with pytest.raises(ConfigError, match="in every cell: use --axis or --only"):
        grid.load(tmp_path, override)


def test_a_sweep_is_no_configuration_and_the_other_way_round(tmp_path):
    path = grid.write(tmp_path)
    with pytest.raises(ConfigError, match="this is a sweep: fedjax-health sweep"):
        config.load(path)
    with pytest.raises(ConfigError, match="a base is one configuration"):
        load_sweep(path, base=path)
    broken = tmp_path / "broken.toml"
    broken.write_text("a = ")
    for arguments in ((broken,), (path,)):
        base = broken if arguments == (path,) else None
        with pytest.raises(ConfigError, match=r"broken\.toml: not valid TOML"):
            load_sweep(*arguments, base=base)


BAD = {
    "[axes.status.a]\nseed = 0\n": "tables of results have a column of that name",
    "[axes.final_auroc.a]\nseed = 0\n": "tables of results have a column",
    "[axes]\nassumed_malicious = ['none', 0.25]\n": "numbers and words in one list",
    "base = 3\n[axes]\nseed = [0]\n": "base: 3: name a preset or a file",
    "[axes.attack.ipm]\nattack = 'ipm'\ntune = {'attack.scale' = [1.0, 2.0]}\n": (
        "this axis is report.worst"
    ),
    "[axes.attack.ipm]\nattack = 'ipm'\n[report]\nrows = 'attack'\n": (
        "axis 'attack' is report.rows already"
    ),
    "[axes.defence.c]\naggregator = 'centered_clip'\n"
    "tune = {'aggregator.radius' = [0.1, 0.1]}\n": "0.1 occurs twice",
    "rows = 3\n[axes]\nseed = [0]\n": "rows: no such field",
    "": "there is nothing to vary",
    "[axes]\nseed = 3\n": "axes.seed: 3: a list of values",
    "[axes]\nseed = [0, 0]\n": "axes.seed: 0 occurs twice",
    "[axes]\nattack = [{kind = 'ipm'}]\n": "give it a name",
    "[axes]\nsede = [0]\n": "first value of every axis: config: sede: no such field",
    "[axes]\nseed = [0, -1]\n": "axes.seed: -1: config: seed",
    "[axes.defence]\nmean = 3\n": "axes.defence.mean: 3: a table of fields",
    "[axes.defence.cc]\naggregator = 'centered_clip'\ntune = 3\n": "tune: write it as",
    "[axes]\nmalicious = [0.1]\n[axes.a.b]\nmalicious = 0.2\n": "would undo the other",
    "[axes]\nseed = [0]\n[report]\nmetric = 'auc'\n": "report: Invalid enum value",
    "[axes]\nseed = [0]\n[report]\nrows = 'rule'\n": "there is no axis 'rule'",
    "[cell]\nmalicious = [1]\n[axes.a.n]\nclean = true\n": "needs a share",
}


@pytest.mark.parametrize("axes", BAD)
def test_a_wrong_grid_is_refused_before_anything_runs(tmp_path, axes):
    path = grid.write(tmp_path, axes)
    if axes.startswith("base"):
        path.write_text(axes)
    with pytest.raises(ConfigError) as error:
        load_sweep(path)
    assert BAD[axes] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("only", "said"),
    [
        ("sede=0", "there is no axis 'sede'"),
        ("seed=5", "axis seed has no value '5'; values: 0, 1"),
        ("seed", "write it as axis=value,value"),
    ],
)
def test_values_to_keep_must_be_there(tmp_path, only, said):
    with pytest.raises(ConfigError, match=said):
        grid.load(tmp_path, only=[only])


def test_names_of_runs_and_sweeps_are_told_apart():
    with pytest.raises(ConfigError, match="demo is a single run"):
        load_sweep("demo")
    with pytest.raises(ConfigError, match="did you mean robustness"):
        load_sweep("robustnes")
    with pytest.raises(ConfigError, match="fedjax-health sweep --config robustness"):
        config.load("robustness")


@pytest.mark.parametrize("name", config.sweep_names())
def test_every_sweep_that_is_a_preset_can_be_read(name):
    sweep = load_sweep(name)
    assert sweep.cells
    assert config.preset_summary(name).endswith(".")
