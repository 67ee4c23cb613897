"""Worker: our aggregators on one stack of messages."""

from __future__ import annotations

import argparse
from importlib import metadata

from benchmarks import timing


def build(cohort: int, size: int):
    """Returns the calls, each under the rival's name where it has the same rule."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from fedjax_health import aggregators as agg

    x = jnp.asarray(timing.messages(cohort, size))
    weights, key = jnp.ones(cohort), jax.random.key(0)
    f = cohort // 5
    others = cohort - f - 1
    rules = {
        "Median": agg.median(),
        "TrMean": agg.trimmed_mean(f),
        "Meamed": agg.mean_around_median(f),
        "Krum": agg.krum(f, neighbors=others),
        "MultiKrum": agg.multi_krum(f, neighbors=others),
        "MoNNA": agg.monna(f, trusted=0),
        "CAF": agg.caf(f),
        "NNM+TrMean": agg.pipeline(agg.nnm(f), agg.trimmed_mean(f)),
        "ours: Bulyan": agg.bulyan((cohort - 3) // 4),
        "ours: CGE": agg.cge(f),
        "ours: sign majority": agg.sign_majority(),
        "ours: robust learning rate": agg.robust_learning_rate(),
        "ours: DnC": agg.dnc(f),
        "ours: FoolsGold": agg.foolsgold(),
        "ours: FLAME": agg.flame(),
        "ours: SignGuard": agg.signguard(),
        "ours: ARC+NNM+GeometricMedian": agg.pipeline(
            agg.arc(f), agg.nnm(f), agg.geometric_median(smoothing=0.1)
        ),
        "ours: Bucketing+Median": agg.pipeline(agg.bucketing(2), agg.median()),
        "ours: Clipping+TrMean": agg.pipeline(agg.clip_norms(2.0), agg.trimmed_mean(f)),
    }
    for steps in (3, 8, 32):
        rule = agg.geometric_median(steps=steps, smoothing=0.1)
        rules[f"GeometricMedian T={steps}"] = rule
        if steps == 8:
            rules["NNM+GeometricMedian T=8"] = agg.pipeline(agg.nnm(f), rule)
    for steps in (1, 5):
        rule = agg.centered_clip(radius=10.0, steps=steps)
        rules[f"CenteredClipping L={steps}"] = rule

    def call(rule) -> timing.Call:
        state = rule.init(x[0])

        def memory() -> int | None:
            whole = jax.jit(rule.update).lower(x, weights, state, key).compile()
            used = whole.memory_analysis()
            if used is None:
                return None
            return used.temp_size_in_bytes + used.output_size_in_bytes

        def run() -> None:
            jax.block_until_ready(rule.update(x, weights, state, key))

        return timing.Call(run, memory)

    calls = {name: call(rule) for name, rule in rules.items()}
    mixings = {
        "NNM": agg.nnm(f),
        "Bucketing s=2": agg.bucketing(2),
        "Clipping": agg.clip_norms(2.0),
        "ARC": agg.arc(f),
    }

    def mixed(mixing) -> timing.Call:
        return timing.Call(lambda: jax.block_until_ready(agg.mix(mixing, x, key)))

    calls |= {name: mixed(mixing) for name, mixing in mixings.items()}
    read = jax.jit(lambda x: jnp.dot(x.reshape(-1), x.reshape(-1)))
    calls["READ"] = timing.Call(lambda: read(x).block_until_ready())
    host = np.asarray(x)
    calls["NumPy sort"] = timing.Call(lambda: np.sort(host, axis=0))
    return calls, {name: metadata.version(name) for name in ("jax", "jaxlib", "numpy")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cohort", type=int)
    parser.add_argument("size", type=int)
    args = parser.parse_args()
    timing.serve(lambda: build(args.cohort, args.size))
