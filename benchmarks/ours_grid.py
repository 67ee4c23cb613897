"""Worker: the robustness grid by our engine, cold, in one program.

``python -m benchmarks.ours_grid DATA --steps 800`` trains the cells and prints one JSON
object.

What differs between cells is a number of the plan's state: the attack's strength, which
attack and which rule, the malicious clients that are there, seed and initial
parameters. One compiled program, a ``scan`` over rounds of ``step``, so serves the
whole grid; a rule with a static f is one branch for each f. Cells run side by side, one
thread per core.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import digits, protocol

SLOTS = digits.HONEST + max(digits.FRACTIONS)


def _build_loss():
    import jax
    import jax.numpy as jnp

    def loss_fn(params, batch, key):
        del key
        hidden = jax.nn.relu(batch["x"] @ params["w1"] + params["b1"])
        logits = hidden @ params["w2"] + params["b2"]
        known = jax.nn.one_hot(batch["label"], digits.CLASSES)
        losses = -jnp.sum(known * jax.nn.log_softmax(logits), axis=1)
        weight = batch["weight"]
        return jnp.sum(weight * losses) / jnp.maximum(jnp.sum(weight), 1.0), {}

    return loss_fn


def _rules(defence: str) -> dict[int, Any]:
    """Returns the rule of each f; the same object where f is not part of it."""
    import fedjax_health as fh

    rules = fh.aggregators
    if defence == "mean":
        return dict.fromkeys(digits.FRACTIONS, rules.mean())
    if defence == "geometric_median":
        steps, smoothing = digits.WEISZFELD_STEPS, digits.SMOOTHING
        rule = rules.geometric_median(steps=steps, smoothing=smoothing)
        return dict.fromkeys(digits.FRACTIONS, rule)

    def of(f: int):
        if defence == "median":
            return rules.median()
        if defence == "trimmed_mean":
            return rules.trimmed_mean(f)
        return rules.pipeline(rules.nnm(f), rules.trimmed_mean(f))

    return {f: _of_first(of(f), digits.HONEST + f) for f in digits.FRACTIONS}


def _of_first(rule, size: int):
    """Returns a rule for the first rows, where the others are absent for good.

    An order statistic has a selection network for a number of rows that is known.
    """
    import jax

    def update(stacked, weights, state, key, *, context):
        rows = jax.tree.map(lambda x: x[:size], stacked)
        context = context._replace(
            client_ids=context.client_ids[:size], mask=context.mask[:size]
        )
        return rule.update(rows, weights[:size], state, key, context=context)

    def check(message, cohort_size):
        return rule.check(message, min(cohort_size, size))

    return rule._replace(update=update, check=check, kernel=None)


def _attack(name: str):
    import fedjax_health as fh

    return {
        "sign_flip": lambda: fh.attacks.sign_flip(of="mean"),
        "ipm": lambda: fh.attacks.ipm(scale=digits.IPM_SCALE),
        "alie": lambda: fh.attacks.alie(z=digits.ALIE_Z, sign=1, ddof=1.0),
        "mimic": lambda: fh.attacks.mimic(warmup=0),
    }[name]()


def _any_attack(attacks):
    """Returns the attack that carries out the one that its state names.

    ``init`` takes the first; attacks whose functions are the same share a branch.
    """
    import jax
    import jax.numpy as jnp

    import fedjax_health as fh

    forges = list(dict.fromkeys(attack.forge for attack in attacks))

    def init(params):
        firsts = {attack.forge: attack for attack in reversed(attacks)}
        return jnp.int32(0), [firsts[forge].init(params) for forge in forges]

    def forge(stacked, malicious, state, context):
        which, own = state

        def branch(place):
            def carry_out(own):
                made, after = forges[place](stacked, malicious, own[place], context)
                return made, [*own[:place], after, *own[place + 1 :]]

            return carry_out

        made, own = jax.lax.switch(which, [branch(i) for i in range(len(forges))], own)
        return made, (which, own)

    def chosen(attack, params):
        """Returns the state in which it is this attack."""
        which = forges.index(attack.forge)
        own = init(params)[1]
        own[which] = attack.init(params)
        return jnp.int32(which), own

    return fh.UpdateAttack(init, forge), chosen


def _any_rule(rules):
    """Returns the rule that applies the one that its state names."""
    import jax
    import jax.numpy as jnp

    import fedjax_health as fh

    def init(params):
        return jnp.int32(0), [rule.init(params) for rule in rules]

    def update(stacked, weights, state, key, *, context=None):
        which, own = state

        def branch(place):
            def apply(own):
                made, after, _ = rules[place].update(
                    stacked, weights, own[place], key, context=context
                )
                return made, [*own[:place], after, *own[place + 1 :]]

            return apply

        made, own = jax.lax.switch(which, [branch(i) for i in range(len(rules))], own)
        return made, (which, own), {}

    def check(message, cohort_size):
        for rule in rules:
            message = rule.check(message, cohort_size)
        return message

    return fh.Aggregator(init, update, check, False)


class _Clock:
    """Wall and process seconds of one phase after the other."""

    def __init__(self):
        self.laps: dict[str, dict[str, float]] = {}
        self._last = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        now = time.perf_counter(), time.process_time()
        wall, cpu = (b - a for a, b in zip(self._last, now, strict=True))
        self.laps[name] = {"seconds": wall, "cpu_seconds": cpu}
        self._last = now


def train(
    data: digits.Data, cells: list[digits.Cell], *, steps: int, batch_size: int
) -> tuple[list[dict[str, np.ndarray]], dict[str, dict[str, float]]]:
    """Trains cells; returns the parameters of each and the time of each phase."""
    clock = _Clock()
    import jax
    import optax

    import fedjax_health as fh
    from fedjax_health.data.sampling import cohort_of
    from fedjax_health.data.store import from_arrays, to_examples
    from fedjax_health.engine.devices import available_cores

    clock.lap("import")
    # A malicious client has data like anyone; these attacks do not look at what it
    # would have learnt.
    sizes = np.diff(data.offsets)
    extra = SLOTS - digits.HONEST
    taken = int(sizes[:extra].sum())
    store = from_arrays(
        {
            "x": np.concatenate([data.x, data.x[:taken]]),
            "label": np.concatenate([data.label, data.label[:taken]]),
        },
        np.concatenate([data.offsets, data.offsets[-1] + np.cumsum(sizes[:extra])]),
    )
    kinds = {name: _rules(name) for name in dict.fromkeys(c.defence for c in cells)}
    rules = list({id(r): r for of_f in kinds.values() for r in of_f.values()}.values())
    attacks = {name: _attack(name) for name in digits.ATTACKS}
    attack, chosen = _any_attack(list(attacks.values()))
    params = data.params
    first = {name: value[0] for name, value in params.items()}
    algorithm = fh.build_algorithm(
        _build_loss(),
        fh.RoundPlan(
            # A step at rate 1: the message is the gradient, as it is in ByzFL.
            local=fh.LocalTraining(
                algorithm=fh.fedavg(),
                optimizer=fh.Optimizer(optax.sgd, {"learning_rate": 1.0}),
                steps=1,
                batch_size=batch_size,
            ),
            attack=attack,
            aggregator=_any_rule(rules),
            server_optimizer=fh.Optimizer(
                optax.sgd, {"learning_rate": digits.LEARNING_RATE}
            ),
            weighting="uniform",
        ),
        abstract_params=first,
        population=SLOTS,
        cohort_size=SLOTS,
        # The clients are small and alike: one batch of them is faster than a scan.
        parallelism=SLOTS,
    )
    ids = np.arange(SLOTS)
    cohort = cohort_of(
        store, ids, malicious=ids >= digits.HONEST, resident=to_examples(store)
    )

    @jax.jit
    def run(key, params, attack_state, rule, mask):
        state = algorithm.init(key, params)
        state = state._replace(
            attack={**state.attack, "state": attack_state},
            aggregator=(rule, state.aggregator[1]),
        )
        # An absent client has no step to take and no message.
        present = cohort._replace(mask=mask)

        def a_round(state, _):
            return algorithm.step(state, present)[0], None

        return jax.lax.scan(a_round, state, None, length=steps)[0].params

    keys = {seed: fh.root_key(seed) for seed in digits.SEEDS}
    states = {name: chosen(one, first) for name, one in attacks.items()}

    def arguments(cell: digits.Cell):
        return (
            keys[cell.seed],
            {name: value[cell.seed] for name, value in params.items()},
            states[cell.attack],
            np.int32(rules.index(kinds[cell.defence][cell.malicious])),
            ids < digits.HONEST + cell.malicious,
        )

    lowered = run.lower(*arguments(cells[0]))
    clock.lap("trace")
    compiled = lowered.compile()
    clock.lap("compile")

    def one(cell: digits.Cell):
        return jax.device_get(compiled(*arguments(cell)))

    with concurrent.futures.ThreadPoolExecutor(available_cores()) as pool:
        trained = list(pool.map(one, cells))
    clock.lap("run")
    return trained, clock.laps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--exact", type=Path, help="whole clients; parameters to here")
    args = parser.parse_args()
    data = digits.read(args.data)
    cells = digits.cells()
    size = digits.BATCH_SIZE
    if args.exact is not None:
        cells = [cell for cell in cells if cell.seed == digits.SEEDS[0]]
        size = int(np.diff(data.offsets).max())
    trained, phases = train(data, cells, steps=args.steps, batch_size=size)
    if args.exact is not None:
        pairs = zip(cells, trained, strict=True)
        named = {f"{c.name}:{k}": x for c, p in pairs for k, x in p.items()}
        np.savez(args.exact, **named)
    from benchmarks import ours

    report = {
        "accuracy": {
            cell.name: digits.accuracy(params, data)
            for cell, params in zip(cells, trained, strict=True)
        },
        "phases": phases,
        "cpu_seconds": time.process_time(),
        "peak_rss_bytes": protocol.memory_status()["peak"],
        "versions": ours.versions(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
