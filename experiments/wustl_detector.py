"""Federated detectors on WUSTL-EHMS-2020: both modalities, flows alone, no memory.

python -m experiments.wustl_detector FILE [--seeds 3] [--out FOLDER]

Identifiers dropped, chronological 60/10/30 with an embargo as long
as the window, ten clients that are blocks of the stream; thresholds from validation.
Expected on the first 70 % of the file: see experiments/README.md.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from experiments.runs import finished_run

SHOWN = (
    "auroc",
    "auprc",
    "accuracy",
    "f1",
    "mean_delay",
    "missed_episodes",
    "achieved_far",
)
FLOW = 'data.modalities=["flow"]'
MODELS = {
    "federated gated fusion, 20 steps": [],
    "federated GRU on flows, 20 steps": [FLOW, "model=gru"],
    "federated MLP on flows, single rows": [FLOW, "model=mlp", "window.length=1"],
}


def main(arguments: list[str] | None = None) -> int:
    """Runs every model and seed and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="the WUSTL-EHMS-2020 CSV")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--rounds", type=int, help="rounds; those of the preset else")
    parser.add_argument("--out", default="runs/wustl_detector", help="run folders")
    options = parser.parse_args(arguments)

    from fedjax_health import config

    print("| model | " + " | ".join(SHOWN) + " |")
    print("|---|" + "---|" * len(SHOWN))
    for name, changes in MODELS.items():
        results = []
        for seed in range(options.seeds):
            overrides = [f"data.path={options.path}", *changes]
            if options.rounds is not None:
                overrides.append(f"rounds={options.rounds}")
            settings = config.load("wustl", overrides, seed=seed)
            folder = Path(options.out) / name.replace(" ", "-").replace(",", "")
            folder = folder / str(seed)
            try:
                result = finished_run(settings, folder)
            except ValueError as error:
                parser.error(str(error))
            results.append(result["metrics"])
            print(f"{name}, seed {seed}: {results[-1]}", file=sys.stderr)
        cells = [_cell([r.get(metric) for r in results]) for metric in SHOWN]
        print(f"| {name} | " + " | ".join(cells) + " |")
    return 0


def _cell(values: list[float | None]) -> str:
    """Returns mean and range over the seeds."""
    if any(value is None for value in values):
        return "-"
    numbers = np.array(values, float)
    return f"{numbers.mean():.3f} ({numbers.min():.3f}-{numbers.max():.3f})"


if __name__ == "__main__":
    from fedjax_health import use_cpu_devices

    use_cpu_devices()
    sys.exit(main())
