"""Run folders by hand, with every file that a report reads and names that bite."""

import contextlib
import json
from unittest import mock

import numpy as np
import pandas as pd

from fedjax_health import records

SCRIPT = "<script>document.title='owned'</script>"
IMAGE = '"><img src=x onerror="document.title=1">'
# Formulas, underscores, directions, control characters and other scripts.
NAMES = (
    SCRIPT,
    IMAGE,
    "$x^{2}$ & $",
    "_hidden",
    "ward \u202e7\x00",
    "\u5fc3\u96fb\u56f3 \u00dcberwachung",
)

CONFIG = f"""\
seed = 0
rounds = 4

[data]
kind = "table"
path = "/data/ward {SCRIPT}.csv"
modalities = {{ "vitals{SCRIPT}" = ["pulse"], network = "rest" }}

[partition]
kind = "natural"

[window]
length = 4

[model]
kind = "fusion"

[algorithm]
kind = "fedavg"

[aggregator]
kind = "mean"

[evaluation]
false_alarm_rate = 0.01
"""


# One pixel.
PICTURE = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x00\x00\x00"
    b"\x00:~\x9bU\x00\x00\x00\nIDATx\x9cc`\x00\x00\x00\x02\x00\x01H\xaf\xa4q\x00\x00\x00\x00"
    b"IEND\xaeB`\x82"
)


@contextlib.contextmanager
def no_pictures():
    """Leaves out the drawing of PNGs, half of a report's time, where none is tested."""
    with mock.patch("fedjax_health.report.plots.to_png", return_value=PICTURE):
        yield


def predictions(*, labels=True, streams=True, names=NAMES, steps=40):
    """Streams of one entity a client: the first misses an attack, the last has none."""
    rng = np.random.default_rng(0)
    frames = []
    for i, name in enumerate(names):
        label = np.zeros(steps, int)
        if i < len(names) - 1:
            label[10:20] = 1
        score = np.where(label == 1, 0.9, 0.1) + rng.uniform(-0.05, 0.05, steps)
        if i == 0:
            score[10:20] = 0.2
        if i == 1:
            score[10:13] = 0.3
            score[30:32] = 0.95
        kind = NAMES[i % 2] if i % 3 else "replay"
        frames.append(
            pd.DataFrame(
                {
                    "client": name,
                    "entity": i,
                    "time": np.arange(steps, dtype=float),
                    "label": label.astype(np.int8),
                    "attack": np.where(label == 1, kind, "normal"),
                    "score": score.astype(np.float32),
                    "detected": score >= 0.5,
                    "alarm": score >= 0.6,
                    f"share_vitals{SCRIPT}": np.float32(0.25),
                    "share_network": np.float32(0.75),
                }
            )
        )
    frame = pd.concat(frames, ignore_index=True)
    if not labels:
        frame = frame.drop(columns=["label", "attack"])
    return frame if streams else frame.assign(alarm=frame["detected"])


def figures(names=NAMES):
    """The content of figures.json."""
    rates = [0.001, 0.01, 0.05, 0.2]
    return {
        "format": 1,
        "rows": 240,
        "positives": 50,
        "prevalence": 50 / 240,
        "threshold": 0.5,
        "delay_threshold": 0.6,
        "metrics": {
            "accuracy": 0.93,
            "f1": 0.86,
            "mcc": 0.8,
            "auroc": 0.912,
            "auprc": 0.83,
            "ece": 0.05,
            "brier": 0.07,
            "mean_delay": 2.6,
            "median_delay": 0.0,
            "missed_episodes": 1.0,
            "achieved_far": 0.0105,
        },
        "intervals": {"auroc": [0.88, 0.94], "auprc": [0.7, 0.9], "mean_delay": None},
        "interval_unit": "patients",
        "resamples": 1000,
        "resamples_left_out": 3,
        "confusion": {
            "true_positives": 37,
            "false_positives": 2,
            "false_negatives": 13,
            "true_negatives": 188,
        },
        "curves": {
            "roc": {"false_alarm_rate": [0, 0, 0.5, 1], "recall": [0, 0.8, 0.9, 1]},
            "pr": {"recall": [0, 0.8, 1], "precision": [1, 0.9, 0.2]},
            "calibration": {
                "predicted": [0.1, 0.9],
                "observed": [0.06, 0.95],
                "rows": [200, 40],
            },
            "delay": {
                "rate": rates,
                "achieved_far": [0, 0.0105, 0.06, 0.3],
                "mean_delay": [4.0, 2.6, 1.0, 0.0],
                "median_delay": [1.0, 0.0, 0.0, 0.0],
                "missed_episodes": [2, 1, 0, 0],
                "false_alarms_per_entity_day": [0.0, 15.1, 86.4, 432.0],
            },
        },
        "clients": [
            {
                "client": name,
                "rows": 40,
                "positives": 10 * (i < len(names) - 1),
                "auroc": 0.5 + 0.08 * i if i < len(names) - 1 else None,
                "auprc": 0.4 + 0.1 * i if i < len(names) - 1 else None,
                "f1": 0.3,
                "achieved_far": 0.01 * i,
            }
            for i, name in enumerate(names)
        ],
        "client_spread": {
            "auprc": {"mean": 0.6, "worst": 0.4, "worst_decile": 0.4, "std": 0.1},
            "auroc": {
                "mean": 0.66,
                "worst": 0.5,
                "worst_decile": 0.5,
                "std": 0.1,
                "ranked": 5,
                "excluded": 1,
            },
        },
        "patterns": [
            {
                "pattern": f"network + vitals{SCRIPT}",
                "rows": 700,
                "positives": 40,
                "auroc": 0.91,
                "auprc": 0.62,
                "f1": 0.5,
            },
            {"pattern": "network only", "rows": 20, "positives": 0},
        ],
        "attacks": [
            {
                "attack": name,
                "rows": 20,
                "auroc": 0.9,
                "auprc": 0.8,
                "recall": 0.5,
                "episodes": 2,
                "missed_episodes": 1,
                "mean_delay": 5.0,
            }
            for name in ("replay", SCRIPT, IMAGE)
        ],
        "control": {
            "random": {
                "auroc": 0.49,
                "auprc": 0.21,
                "f1": 0.3,
                "mean_delay": 9.7,
                "achieved_far": 0.0105,
            }
        },
        "false_alarms": {"per_1000_rows": 10.5, "per_entity_day": 15.12},
        "oracle": {"auroc": 0.97, "auprc": 0.95},
    }


def leakcheck():
    """The content of leakcheck.json."""
    return {
        "passed": False,
        "checks": [
            {
                "check": "single columns",
                "value": 0.999,
                "limit": 0.95,
                "passed": False,
                "message": f"column {SCRIPT} tells the label",
            },
            {
                "check": "duplicates",
                "value": 0.0,
                "limit": 0.0,
                "passed": True,
                "message": "",
            },
        ],
        "columns": [
            {"column": IMAGE, "role": "vitals", "auroc": 0.999, "suspicious": True},
            {"column": "pulse", "role": "vitals", "auroc": None, "suspicious": False},
        ],
    }


def write_run(root, *, streams=True, **parts):
    """Writes the folder of a finished run.

    Args:
      root: the folder.
      streams: whether rows follow each other in time.
      **parts: ``figures``, ``leakcheck``, ``predictions`` and ``result`` in place of
        those above; None leaves a file out.

    Returns:
      The paths of the folder.
    """
    paths = records.run_folder(root)
    paths.root.mkdir(parents=True)
    records.write_text(paths.config, CONFIG)
    environment = {
        "python": "3.11.0",
        "platform": "cpu",
        "packages": {"fedjax-health": "0.1.0", "jax": "0.10.0"},
        "context": {"config": "ab", "data": "cd"},
        "resumed": [{"threads": 4}],
    }
    records.write_json(paths.environment, environment)
    lines = [
        {
            "round": i,
            "loss": 1 / i,
            "non_finite": int(i == 2),
            **({"validation_auroc": 0.7 + 0.05 * i} if i % 2 == 0 else {}),
        }
        for i in range(1, 5)
    ]
    records.append_jsonl(paths.metrics, lines)
    timing = {"round": 4, "rounds": 4, "training_s": 2.0, "clients_per_s": 12.0}
    records.append_jsonl(paths.timings, [timing])
    made = {
        "figures": figures(),
        "leakcheck": leakcheck(),
        "predictions": predictions(streams=streams),
        "result": {
            "metrics": {"auroc": 0.912, "f1": 0.86},
            "details": {"episodes": 5.0},
            "rounds": 4,
            "best_round": 4,
            "seed": 0,
        },
        **parts,
    }
    for name in ("figures", "leakcheck", "result"):
        if made[name] is not None:
            getattr(paths, name).write_text(json.dumps(made[name]))
    if made["predictions"] is not None:
        made["predictions"].to_parquet(paths.predictions, index=False)
    return paths


def write_evaluation(root, *, labels=True):
    """Writes what ``evaluate`` leaves, into any folder."""
    root.mkdir(parents=True)
    frame = predictions(labels=labels)
    frame["top_features"] = ""
    frame.loc[frame["alarm"], "top_features"] = (
        f"vitals.pulse +1.50; network.{SCRIPT} -0.25"
    )
    frame.to_parquet(root / "scores.parquet", index=False)
    if labels:
        (root / "figures.json").write_text(json.dumps(figures()))
    result = {
        "rows": len(frame),
        "clients": len(NAMES),
        "unseen_clients": [SCRIPT],
        "labels": labels,
        "alarms": int(frame["alarm"].sum()),
        "threshold": 0.5,
        "alarm_threshold": 0.6,
    }
    (root / "result.json").write_text(json.dumps(result))
    return root
