"""The package's front door: names, laziness and version."""

import ast
import importlib
import importlib.resources
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fedjax_health


def type_checking_imports():
    """Returns name -> module of every import under ``if TYPE_CHECKING``."""
    source = Path(fedjax_health.__file__).read_text(encoding="utf-8")
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                assert isinstance(line, ast.ImportFrom), ast.unparse(line)
                assert line.level == 0
                for alias in line.names:
                    assert alias.asname is None or alias.asname == alias.name
                    found[alias.name] = line.module
    return found


@pytest.mark.parametrize("name", fedjax_health.__all__)
def test_every_public_name_is_there(name):
    value = getattr(fedjax_health, name)
    assert value is not None
    if name in fedjax_health._HOME:
        home = importlib.import_module(fedjax_health._HOME[name])
        wanted = home if name in fedjax_health._MODULES else getattr(home, name)
        assert value is wanted
    assert name in dir(fedjax_health)


def test_public_names_are_unique():
    assert len(set(fedjax_health.__all__)) == len(fedjax_health.__all__)


def test_type_checkers_see_the_same_names():
    objects = {
        name: home
        for name, home in fedjax_health._HOME.items()
        if name not in fedjax_health._MODULES
    }
    seen = {
        name: module
        for name, module in type_checking_imports().items()
        if name not in fedjax_health._MODULES
    }
    assert seen == objects


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(
        AttributeError, match="'fedjax_health' has no attribute 'krumm'"
    ):
        _ = fedjax_health.krumm
    assert not hasattr(fedjax_health, "_no_such_name")


def test_the_version_is_a_release_number():
    assert re.fullmatch(r"\d+\.\d+\.\d+([.-]?\w+)*", fedjax_health.__version__)


def test_type_marker_and_presets_are_part_of_the_package():
    files = importlib.resources.files("fedjax_health")
    assert files.joinpath("py.typed").is_file()
    presets = files.joinpath("config").joinpath("presets")
    found = {file.name for file in presets.iterdir() if file.name.endswith(".toml")}
    assert {"demo.toml", "paper.toml", "many_clients.toml", "wustl.toml"} <= found


def test_importing_the_package_is_light():
    code = (
        "import sys, fedjax_health\n"
        "fedjax_health.__version__, dir(fedjax_health), fedjax_health.__all__\n"
        "heavy = {'jax', 'jaxlib', 'numpy', 'flax', 'optax', 'orbax', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"


def test_a_name_brings_only_its_own_module():
    """The errors that a command catches come without the engine."""
    code = (
        "import sys\n"
        "from fedjax_health import DataError\n"
        "print('jax' in sys.modules, 'fedjax_health.engine' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == ["False", "False"]
