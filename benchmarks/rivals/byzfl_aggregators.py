"""Worker: ByzFL's aggregators, on PyTorch with one thread.

Runs in the environment "byzfl". Of the package only the aggregators are imported: the
rest wants packages that they do not need.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import types
import warnings
from importlib import metadata

from benchmarks import timing

MEMORY = 7e9
"""Bytes beyond which a call is left out: NNM gathers all neighbours of all rows."""


def build(cohort: int, size: int):
    import torch

    spec = importlib.util.find_spec("byzfl")
    assert spec is not None
    package = types.ModuleType("byzfl")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["byzfl"] = package
    from byzfl.aggregators import aggregators as agg
    from byzfl.aggregators import preaggregators as pre

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    x = torch.from_numpy(timing.messages(cohort, size))
    f = cohort // 5
    # ByzFL's clipping writes into what it is given.
    spare = x.clone()

    def chain(*parts):
        def run():
            made = x
            for part in parts:
                made = part(made)
            return made

        return run

    rules = {
        "Median": chain(agg.Median()),
        "TrMean": chain(agg.TrMean(f)),
        "Meamed": chain(agg.Meamed(f)),
        "Krum": chain(agg.Krum(f)),
        "MultiKrum": chain(agg.MultiKrum(f)),
        "MoNNA": chain(agg.MoNNA(f, 0)),
        "GeometricMedian T=3": chain(agg.GeometricMedian(0.1, 3)),
        "GeometricMedian T=8": chain(agg.GeometricMedian(0.1, 8)),
        "GeometricMedian T=32": chain(agg.GeometricMedian(0.1, 32)),
        # A new rule each time: it keeps its centre from call to call.
        "CenteredClipping L=1": lambda: agg.CenteredClipping(L=1, tau=10.0)(x),
        "CenteredClipping L=5": lambda: agg.CenteredClipping(L=5, tau=10.0)(x),
        "CAF": chain(agg.CAF(f)),
        "Bucketing s=2": chain(pre.Bucketing(2)),
        "Clipping": lambda: pre.Clipping(2.0)(spare),
        "ARC": lambda: pre.ARC(f)(spare),
    }
    if 4.0 * cohort * (cohort - f) * size <= MEMORY:
        rules["NNM"] = chain(pre.NNM(f))
        rules["NNM+TrMean"] = chain(pre.NNM(f), agg.TrMean(f))
        rules["NNM+GeometricMedian T=8"] = chain(
            pre.NNM(f), agg.GeometricMedian(0.1, 8)
        )
    rules["READ"] = lambda: float(x.view(-1).sum())
    calls = {name: timing.Call(rule) for name, rule in rules.items()}
    return calls, {name: metadata.version(name) for name in ("byzfl", "torch")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cohort", type=int)
    parser.add_argument("size", type=int)
    args = parser.parse_args()
    timing.serve(lambda: build(args.cohort, args.size))
