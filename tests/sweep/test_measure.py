"""One cell against a run of the same configuration."""

import dp_accounting as dp
import pytest
from dp_accounting.pld import PLDAccountant

from fedjax_health import config, records, training
from fedjax_health.sweep.measure import Bench
from tests.sweep import grid


def test_early_stopping_is_that_of_a_run(tmp_path):
    changes = [
        "model=mlp",
        "model.hidden=[4]",
        "window.length=1",
        "window.stride=1",
        "rounds=12",
        "evaluation.every=1",
        "evaluation.patience=2",
        "local.optimizer.learning_rate=1.0",
    ]
    settings = config.load(grid.write(tmp_path).parent / "base.toml", changes)
    record = Bench().measure(settings)
    result = training.train(settings, tmp_path / "run", records.SILENT)
    assert record["final"]["round"] == result["rounds"] < 12
    assert record["best"]["round"] == result["best_round"]
    assert record["best"]["test"]["auroc"] == result["metrics"]["auroc"]
    assert len(record["curve"]) == result["rounds"]
    # Of the rounds that were run, not of those that were planned.
    told = result["communication"]
    assert record["cost"] == {
        "uplink_bytes": told["uplink_bytes_total"],
        "downlink_bytes": told["downlink_bytes_total"],
    }


def test_a_private_cell_tells_what_it_has_spent(tmp_path):
    changes = [
        "model=mlp",
        "model.hidden=[4]",
        "window.length=1",
        "window.stride=1",
        "rounds=2",
        'transforms=[{kind="clip_l2",max_norm=0.3}]',
        "mechanism=central_gaussian",
        "mechanism.noise_multiplier=2.0",
        "privacy.delta=1e-3",
        'weighting="uniform"',
    ]
    settings = config.load(grid.write(tmp_path).parent / "base.toml", changes)
    cost = Bench().measure(settings)["cost"]
    # Everybody takes part in both rounds: one release of half the squared noise.
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(dp.GaussianDpEvent(2.0), 2)
    assert cost["epsilon"] == pytest.approx(accountant.get_epsilon(1e-3), rel=1e-3)
