"""One cell against a run of the same configuration."""

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
