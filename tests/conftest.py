"""Four virtual CPU devices, so that every test can spread clients over 1, 2 or 4."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the public data sets; the test is skipped where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("FEDJAX_HEALTH_DATA", default))
    if not root.is_dir():
        pytest.skip(
            f"public data sets not found in {root}: set FEDJAX_HEALTH_DATA to a folder "
            "that holds them"
        )
    return root


@pytest.fixture(scope="session")
def meshes() -> dict[int, jax.sharding.Mesh]:
    """Meshes of 1, 2 and 4 devices."""
    return {n: jax.sharding.Mesh(jax.devices()[:n], ("clients",)) for n in (1, 2, 4)}
