"""Cost of an optimised attack: ``python -m benchmarks.optimized_attack``.

For every rule two compiled functions of the same stack of messages take turns: the
plain aggregation, and optimised ALIE, which searches its strength against that rule,
followed by the aggregation of what it made. One ratio of process CPU time comes out of
each such pair; ``attack`` is what the search adds, in plain aggregations, and the
median over the pairs is reported. As in a round the messages are a buffer that may be
written over: forged rows take the places of those that malicious clients would have
sent, and nothing else is copied.

With ``--json`` standard output is one JSON object, otherwise a table.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import machine, timing

TARGET = 3.0
"""Plain aggregations that the attack may cost, for Gram rules and the median."""


def rules(cohort: int) -> dict[str, Any]:
    """Returns the rules; the last ones have no target."""
    from fedjax_health import aggregators as agg

    f = cohort // 5
    median = agg.geometric_median(smoothing=0.1)
    return {
        "krum": agg.krum(f),
        "multi_krum": agg.multi_krum(f),
        "monna": agg.monna(f),
        "caf": agg.caf(f),
        "geometric_median": median,
        "centered_clip": agg.centered_clip(radius=10.0),
        "nnm + geometric_median": agg.pipeline(agg.nnm(f), median),
        "median": agg.median(),
        "trimmed_mean": agg.trimmed_mean(f),
        "nnm + trimmed_mean": agg.pipeline(agg.nnm(f), agg.trimmed_mean(f)),
    }


NO_TARGET = frozenset({"trimmed_mean", "nnm + trimmed_mean"})


def pair(rule: Any, cohort: int, size: int):
    """Returns the plain aggregation and the attacked one, compiled."""
    import jax
    import jax.numpy as jnp

    import fedjax_health as fh
    from fedjax_health.core.types import AggregationContext, AttackContext, Defence

    x = jnp.asarray(timing.messages(cohort, size))
    weights, key = jnp.ones(cohort), jax.random.key(0)
    malicious = jnp.arange(cohort) < cohort // 5
    state, attack = rule.init(x[0]), fh.attacks.optimized()
    ids = jnp.arange(cohort)
    known = AggregationContext(ids, weights > 0, jnp.int32(0), None)
    found = attack.init(x[0])

    @jax.jit
    def plain(x):
        return rule.update(x, weights, state, key)[0]

    @functools.partial(jax.jit, donate_argnums=0)
    def attacked(x):
        context = AttackContext(
            key=key,
            round=jnp.int32(0),
            params=x[0],
            previous_aggregate=jnp.zeros_like(x[0]),
            defence=Defence(rule.update, weights, state, known, rule.depends_on),
            client_ids=ids,
            client_keys=jax.vmap(lambda i: jax.random.fold_in(key, i))(ids),
            mask=weights > 0,
            weights=weights,
        )
        forged, _ = attack.forge(x, malicious, found, context)
        sent = jnp.where(malicious[:, None], forged, x)
        return rule.update(sent, weights, state, key)[0], sent

    held = [jnp.array(x)]

    def call():
        made, held[0] = attacked(held[0])
        made.block_until_ready()

    return (lambda: plain(x).block_until_ready()), call


def measure(rule: Any, cohort: int, size: int, *, repeats: int) -> dict[str, Any]:
    """Returns what one rule costs, and what the attack adds to it."""
    both = pair(rule, cohort, size)
    for call in both:
        call()
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        for which in order:
            start = time.process_time()
            both[which]()
            seconds[which].append(time.process_time() - start)
    added = [b / a - 1.0 for a, b in zip(*seconds, strict=True)]
    return {
        "plain_ms": 1e3 * statistics.median(seconds[0]),
        "attacked_ms": 1e3 * statistics.median(seconds[1]),
        "attack": statistics.median(added),
        "range": [min(added), max(added)],
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohort", type=int, default=20, help="messages")
    parser.add_argument("--size", type=int, default=1_000_000, help="numbers in each")
    parser.add_argument("--repeats", type=int, default=15, help="pairs per rule")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--out", type=Path, help="write the JSON object there too")
    options = parser.parse_args(arguments)
    report: dict[str, Any] = {
        "benchmark": "optimized_attack",
        "cohort": options.cohort,
        "size": options.size,
        "target": TARGET,
        "machine": machine.describe(),
        "rules": {},
    }
    for name, rule in rules(options.cohort).items():
        found = measure(rule, options.cohort, options.size, repeats=options.repeats)
        if name not in NO_TARGET:
            found["within_target"] = found["attack"] <= TARGET
        report["rules"][name] = found
        if not options.json:
            print(
                f"{name:24} {found['plain_ms']:8.1f} ms  attack "
                f"{found['attack']:6.2f} x ({found['range'][0]:.2f}-"
                f"{found['range'][1]:.2f})",
                flush=True,
            )
    text = json.dumps(report, indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    if options.json:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
