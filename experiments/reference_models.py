"""The federated gated detector on WUSTL-EHMS-2020 against the reference models.

python -m experiments.reference_models FILE [--seeds 3] [--out FOLDER] [--json]

Boosted trees on single flow rows and on rolling statistics, a GRU on flows, on
biometrics and on both side by side, two GRUs with gated fusion, all with the whole
training part in one place; and the federated detector of the preset `wustl`. All have
its split (chronological 60/10/30, an embargo as long as the window, identifiers
dropped). F1 at the threshold of the best validation F1; mean delays at 1 % and 5 %
false alarms *achieved on the test part*, so that they compare. The federated detector
against the best reference model by paired bootstrap over blocks of rows.
Expected on the first 70 % of the file: see experiments/README.md.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.runs import finished_run

CENTRALISED = ["partition.num_clients=1"]
FLOW = ['data.modalities=["flow"]', "model=gru"]
FEDERATED = "federated gated fusion, both"
GRUS = {
    "GRU-48, flow": [*CENTRALISED, *FLOW],
    "GRU-48, biometrics": [
        *CENTRALISED,
        'data.modalities=["biometrics"]',
        "model=gru",
    ],
    "GRU-48, both side by side": [*CENTRALISED, "model=gru"],
    "two GRUs, gated fusion, both": CENTRALISED,
    FEDERATED: [],
}
TREES = {"trees, one row, flow": False, "trees, rolling statistics, flow": True}
ACHIEVED = (0.01, 0.05)
SHOWN = ("auroc", "auprc", "f1", "delay_1", "delay_5")


class Part(NamedTuple):
    """One part of the split as a single stream.

    Attributes:
      x: float32 ``[rows, features]``.
      label: ``[rows]``, 0 or 1.
      segment: ``[rows]``; equal neighbours belong to one stream.
    """

    x: np.ndarray
    label: np.ndarray
    segment: np.ndarray


class Scores(NamedTuple):
    """What one model says of the test rows.

    Attributes:
      score: ``[rows]``, in the order of time.
      f1: at the threshold of the best validation F1.
    """

    score: np.ndarray
    f1: float


def main(arguments: list[str] | None = None) -> int:
    """Runs every model and seed and prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="the WUSTL-EHMS-2020 CSV")
    parser.add_argument("--config", default="wustl", help="preset or file")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--out", default="runs/reference_models", help="run folders")
    parser.add_argument("--json", action="store_true", help="JSON in place of tables")
    options = parser.parse_args(arguments)

    from fedjax_health import config

    given = [f"data.path={options.path}", *options.set]

    def settings(seed: int, changes: Sequence[str]) -> config.Config:
        return config.load(options.config, [*given, *changes], seed=seed)

    train, validation, test = stream_parts(settings(0, GRUS["GRU-48, flow"]))
    window = settings(0, []).window.length
    scores: dict[str, list[Scores]] = {name: [] for name in [*TREES, *GRUS]}
    for seed in range(options.seeds):
        for name, rolling in TREES.items():
            parts = [
                rolled(part, window) if rolling else part
                for part in (train, validation, test)
            ]
            scores[name].append(tree_scores(*parts, seed=seed))
        for name, changes in GRUS.items():
            folder = Path(options.out) / _folder_name(name) / str(seed)
            result = finished_run(settings(seed, changes), folder)
            score = predictions_in_time(folder, test.label)
            scores[name].append(Scores(score, result["metrics"]["f1"]))
            print(f"{name}, seed {seed}: done", file=sys.stderr)
    figures = compare(scores, test, window)
    text = json.dumps(figures, indent=2)
    Path(options.out).mkdir(parents=True, exist_ok=True)
    (Path(options.out) / "reference_models.json").write_text(text, encoding="utf-8")
    print(text if options.json else tables(figures))
    return 0


def stream_parts(settings: Any) -> tuple[Part, Part, Part]:
    """Returns training, validation and test part of a configuration of one client."""
    from fedjax_health import build
    from fedjax_health.data.schema import segment_ids

    prepared = build.prepare(settings, build.build_dataset(settings))
    training, validation, test = (
        Part(np.concatenate([*p.features.values()], 1), p.label, segment_ids(p))
        for p in prepared.parts
    )
    return training, validation, test


def rolled(part: Part, window: int) -> Part:
    """Returns a part whose rows bring statistics of the last ``window`` rows.

    Mean, deviation, least and greatest value of each feature over the row and those
    before it in its stream, fewer at the start of it.
    """
    import pandas as pd

    frame = pd.DataFrame(part.x)
    groups = frame.groupby(part.segment, sort=False).rolling(window, min_periods=1)
    columns = [part.x]
    for statistic in ("mean", "std", "min", "max"):
        columns.append(getattr(groups, statistic)().fillna(0).to_numpy(np.float32))
    return part._replace(x=np.concatenate(columns, axis=1))


def tree_scores(train: Part, validation: Part, test: Part, *, seed: int) -> Scores:
    """Returns what boosted trees say of the test part."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    from fedjax_health.metrics import threshold

    trees = HistGradientBoostingClassifier(
        learning_rate=0.05,
        max_iter=200,
        max_leaf_nodes=15,
        l2_regularization=1.0,
        max_features=0.5,
        early_stopping=False,
        random_state=seed,
    )
    trees.fit(train.x, train.label)
    score = trees.predict_proba(test.x)[:, 1]
    level = threshold.threshold_at_f1(
        trees.predict_proba(validation.x)[:, 1], validation.label
    )
    counts = threshold.confusion(score, test.label, threshold=level)
    return Scores(score, threshold.f1(counts))


def predictions_in_time(folder: Path, label: np.ndarray) -> np.ndarray:
    """Returns a run's scores of the test rows in the order of time.

    Raises:
      ValueError: if the run was tested on other rows.
    """
    import pandas as pd

    from fedjax_health import records

    path = records.run_folder(folder).predictions
    frame = pd.read_parquet(path).sort_values("time", kind="stable")
    if not np.array_equal(frame["label"], label):
        raise ValueError(f"{path} holds other rows than the split: delete {folder}")
    return frame["score"].to_numpy(np.float64)


def compare(scores: dict[str, list[Scores]], test: Part, window: int) -> dict[str, Any]:
    """Returns the figures of every model and how the federated one differs."""
    from fedjax_health.metrics import host
    from fedjax_health.metrics.delay import delay_at_matched_far
    from fedjax_health.metrics.intervals import blocks, paired_difference

    models: dict[str, Any] = {}
    for name, seeds in scores.items():
        rows = []
        for one in seeds:
            row = {
                "auroc": host.auroc(one.score, test.label),
                "auprc": host.auprc(one.score, test.label),
                "f1": one.f1,
            }
            for achieved in ACHIEVED:
                delays = delay_at_matched_far(
                    one.score,
                    test.label,
                    test.segment,
                    window=window,
                    achieved=achieved,
                )
                row[f"delay_{100 * achieved:g}"] = delays["mean_delay"]
                row[f"missed_{100 * achieved:g}"] = delays["missed_episodes"]
            rows.append(row)
        models[name] = rows
    unit = blocks(test.segment, 3 * window)
    differences = {}
    for metric in ("auroc", "auprc"):
        means = {
            name: float(np.mean([row[metric] for row in rows]))
            for name, rows in models.items()
            if name != FEDERATED
        }
        best = max(means, key=means.__getitem__)
        pairs = zip(scores[FEDERATED], scores[best], strict=True)
        differences[metric] = {
            "reference": best,
            "seeds": [
                paired_difference(ours.score, theirs.score, test.label, unit)[
                    metric
                ]._asdict()
                for ours, theirs in pairs
            ],
        }
    return {
        "test_rows": len(test.label),
        "prevalence": float(np.mean(test.label)),
        "block_rows": 3 * window,
        "models": models,
        "differences": differences,
    }


def tables(figures: dict[str, Any]) -> str:
    """Returns the figures as two Markdown tables: mean and range over the seeds."""
    lines = [
        "| model | AUROC | AUPRC | F1 | delay at 1 % | delay at 5 % |",
        "|---|---|---|---|---|---|",
    ]
    for name, rows in figures["models"].items():
        cells = []
        for metric in SHOWN:
            values = np.array([row[metric] for row in rows])
            digits = 1 if metric.startswith("delay") else 3
            mean, low, high = (
                f"{x:.{digits}f}" for x in (values.mean(), values.min(), values.max())
            )
            cells.append(mean if low == high else f"{mean} ({low}-{high})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| metric | best reference model | seed | federated minus it | 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for metric, found in figures["differences"].items():
        for seed, one in enumerate(found["seeds"]):
            lines.append(
                f"| {metric.upper()} | {found['reference']} | {seed} | "
                f"{one['difference']:+.3f} | {one['low']:+.3f} to {one['high']:+.3f} |"
            )
    return "\n".join(lines)


def _folder_name(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


if __name__ == "__main__":
    from fedjax_health import use_cpu_devices

    use_cpu_devices()
    sys.exit(main())
