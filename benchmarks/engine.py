"""The engine against rivals and against its limit: ``python -m benchmarks.engine``.

Every engine trains the same workload in a process of its own (``protocol.py``). In each
repeat ours and one opponent train the same cohorts one straight after the other, the
order turning round from repeat to repeat, and one ratio comes out of each such pair;
what is reported is the median of the ratios and their range. A FedJAX back-end is
chosen by a first measurement: the rival runs with the one that is faster here.

With ``--json`` standard output is one JSON object, otherwise a table. Exits 1 when the
final losses do not agree: speeds of engines that learn different things say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import environments, machine, protocol, workloads

REPEAT_SECONDS = 2.0
"""What one repeat of one engine should take, within 0.5 and 5."""

LOSS_TOLERANCE = 0.002
"""Largest difference of final losses: engines shuffle examples differently."""

TARGETS = {
    "mlp": {"fedjax": 7.0, "pfl": 20.0},
    "gru": {"fedjax": 4.0, "pfl": 9.0},
}
"""Ratios that the project has set itself."""


class Rival(NamedTuple):
    """An engine to compare with.

    Attributes:
      module: its worker.
      variants: name -> arguments; the fastest is kept.
    """

    module: str
    variants: dict[str, tuple[str, ...]]


RIVALS = {
    "fedjax": Rival(
        "benchmarks.rivals.fedjax_fedavg",
        {"jit": ("--backend", "jit"), "pmap": ("--backend", "pmap")},
    ),
    "pfl": Rival("benchmarks.rivals.pfl_fedavg", {"one thread": ("--threads", "1")}),
}


class Opponent(NamedTuple):
    """A warm worker and what its start has told."""

    worker: protocol.Worker
    variant: str
    variant_speeds: dict[str, float]


def _request(kind: str, rounds: Sequence[int]) -> str:
    return " ".join([kind, *(str(number) for number in rounds)])


def _speed(record: dict[str, float]) -> float:
    return record["rounds"] / record["seconds"]


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "all": list(values),
    }


def start_rival(name: str, workload: str, env_root: Path) -> Opponent:
    """Starts a rival's worker with its fastest variant.

    Raises:
      WorkerError: if a worker fails.
    """
    rival = RIVALS[name]
    python = str(environments.python_of(name, env_root.absolute()))
    probe = range(workloads.WARM_ROUNDS, workloads.WARM_ROUNDS + 3)
    best, speeds = None, {}
    for variant, arguments in rival.variants.items():
        worker = protocol.start(
            f"{name} ({variant})",
            [python, "-m", rival.module, workload, *arguments],
        )
        if len(rival.variants) == 1:
            return Opponent(worker, variant, {})
        speeds[variant] = _speed(protocol.ask(worker, _request("run", probe)))
        if best is None or speeds[variant] > speeds[best.variant]:
            loser = best.worker if best is not None else None
            best = Opponent(worker, variant, speeds)
        else:
            loser = worker
        if loser is not None:
            protocol.stop(loser)
    assert best is not None
    return best


def plan_repeat(
    first_speed: float, second_speed: float, *, repeat: int, rounds: int
) -> tuple[list[int], list[int]]:
    """Chooses the rounds that two engines train in one repeat.

    Both train the same slice of the schedule, the faster one several times over, so
    that each is busy for about ``REPEAT_SECONDS``.

    Args:
      first_speed: rounds per second of the first engine, roughly.
      second_speed: of the second.
      repeat: the number of the repeat; each takes the next slice of the schedule.
      rounds: rounds of the schedule, behind those of the warm-up.

    Returns:
      The rounds of the first and of the second engine.
    """
    slower = min(first_speed, second_speed)
    length = min(rounds, max(1, round(REPEAT_SECONDS * slower)))
    slice_of_schedule = [
        workloads.WARM_ROUNDS + (repeat * length + offset) % rounds
        for offset in range(length)
    ]

    def times(speed: float) -> int:
        return max(1, round(REPEAT_SECONDS * speed / length))

    return (
        slice_of_schedule * times(first_speed),
        slice_of_schedule * times(second_speed),
    )


def compare(
    ours: protocol.Worker,
    other: protocol.Worker,
    *,
    speeds: tuple[float, float],
    rounds: int,
    repeats: int,
) -> dict[str, Any]:
    """Alternates two workers.

    Args:
      ours: our worker.
      other: the opponent.
      speeds: rounds per second of both, roughly.
      rounds: rounds of the schedule.
      repeats: how many pairs.

    Returns:
      ``ratio`` (ours over theirs), ``ours`` and ``theirs`` (rounds per second),
      ``seconds`` of each repeat, and the processor seconds per second of each engine
      while it ran and of the other while it should have slept.
    """
    ratios, seconds = [], {"ours": [], "theirs": []}
    measured: dict[str, list[float]] = {"ours": [], "theirs": []}
    busy: dict[str, list[float]] = {"ours": [], "theirs": []}
    idle: list[float] = []
    for repeat in range(repeats):
        our_rounds, their_rounds = plan_repeat(*speeds, repeat=repeat, rounds=rounds)
        turns = [
            ("ours", ours, our_rounds, other),
            ("theirs", other, their_rounds, ours),
        ]
        pair = {}
        for name, worker, numbers, sleeper in turns if repeat % 2 == 0 else turns[::-1]:
            before = protocol.cpu_seconds_of(sleeper)
            record = protocol.ask(worker, _request("run", numbers))
            after = protocol.cpu_seconds_of(sleeper)
            if before is not None and after is not None:
                idle.append((after - before) / record["seconds"])
            pair[name] = _speed(record)
            measured[name].append(pair[name])
            seconds[name].append(record["seconds"])
            busy[name].append(record["cpu_seconds"] / record["seconds"])
        ratios.append(pair["ours"] / pair["theirs"])
    return {
        "ratio": _spread(ratios),
        "ours": _spread(measured["ours"]),
        "theirs": _spread(measured["theirs"]),
        "seconds": seconds,
        "cores_busy": {name: statistics.median(busy[name]) for name in busy},
        "cores_busy_while_asleep": max(idle) if idle else None,
    }


def measure_workload(
    workload: str,
    *,
    rivals: Sequence[str],
    env_root: Path,
    rounds: int,
    repeats: int,
    say,
) -> dict[str, Any]:
    """Measures one workload; returns its part of the report."""
    schedule = range(workloads.WARM_ROUNDS, workloads.WARM_ROUNDS + rounds)
    train = _request("train", schedule)
    running: list[protocol.Worker] = []
    report: dict[str, Any] = {"rivals": {}}
    try:
        say(f"{workload}: our engine")
        ours = protocol.start(
            "ours", [sys.executable, "-m", "benchmarks.ours", workload]
        )
        running.append(ours)
        our_speed = _speed(protocol.ask(ours, train))

        def against(opponent: protocol.Worker) -> dict[str, Any]:
            their_speed = _speed(protocol.ask(opponent, train))
            result = compare(
                ours,
                opponent,
                speeds=(our_speed, their_speed),
                rounds=rounds,
                repeats=repeats,
            )
            running.remove(opponent)
            return {**opponent.ready, **protocol.stop(opponent), **result}

        for name in rivals:
            say(f"{workload}: {name}")
            if not environments.is_ready(name, env_root):
                report["rivals"][name] = {
                    "status": "environment missing or out of date",
                    "make_it_with": environments.command_for(name, env_root),
                }
                continue
            opponent = start_rival(name, workload, env_root)
            running.append(opponent.worker)
            result = against(opponent.worker)
            target = TARGETS[workload].get(name)
            report["rivals"][name] = {
                "status": "measured",
                "variant": opponent.variant,
                "variant_rounds_per_second": opponent.variant_speeds,
                "target_ratio": target,
                **result,
            }
        say(f"{workload}: centralised limit")
        central = protocol.start(
            "central", [sys.executable, "-m", "benchmarks.rivals.central_sgd", workload]
        )
        running.append(central)
        report["central"] = against(central)
        running.remove(ours)
        report["ours"] = {**ours.ready, **protocol.stop(ours)}
    finally:
        for worker in running:
            protocol.kill(worker)
    _summarise(report)
    return report


def _summarise(report: dict[str, Any]) -> None:
    measured = [r for r in report["rivals"].values() if r["status"] == "measured"]
    speeds = [s for r in [*measured, report["central"]] for s in r["ours"]["all"]]
    report["ours"]["rounds_per_second"] = _spread(speeds)
    # The share of the limit is the ratio to a centralised run.
    report["share_of_limit"] = report["central"]["ratio"]
    losses = [report["ours"]["loss"], *(r["loss"] for r in measured)]
    report["loss_difference"] = max(losses) - min(losses)
    report["losses_agree"] = report["loss_difference"] <= LOSS_TOLERANCE


def count_compilations() -> dict[str, Any]:
    """Counts compilations in a process of its own; see ``compilations``."""
    # Status 3 says that later runs compiled something: that is a result too.
    output = protocol.run_to_end(
        [sys.executable, "-m", "benchmarks.compilations"], ok=(0, 3)
    )
    return json.loads(output)


def table(report: dict[str, Any]) -> str:
    """Returns the report as text."""
    host = report["machine"]
    lines = [
        f"{host['processor']}, {host['cores']} cores, {host['system']}, load "
        + "/".join(f"{x:.2f}" for x in host["load"]),
        "",
    ]
    head = f"{'':22}{'rounds/s':>10}{'ratio':>8}{'range':>14}{'warm s':>8}"
    head += f"{'peak MiB':>10}{'loss':>9}  setting"
    for workload, part in report["workloads"].items():
        lines += [f"{workload}", head]
        ours = part["ours"]
        lines.append(
            _row("ours", ours["rounds_per_second"]["median"], None, ours)
            + f"  {ours['details']['devices']} devices"
        )
        for name, rival in part["rivals"].items():
            if rival["status"] != "measured":
                text = f"{rival['status']}: {rival['make_it_with']}"
                lines.append(f"  {name:20}{text}")
                continue
            text = rival["variant"]
            if rival["target_ratio"] is not None:
                text += f", target {rival['target_ratio']:g}x"
            lines.append(
                _row(name, rival["theirs"]["median"], rival["ratio"], rival)
                + f"  {text}"
            )
        central = part["central"]
        lines.append(
            _row(
                "central, batch 2,000",
                central["theirs"]["median"],
                central["ratio"],
                {**central, "loss": None},
            )
            + "  the practical limit"
        )
        agree = "agree" if part["losses_agree"] else "DO NOT AGREE"
        lines += [f"  losses {agree}: {part['loss_difference']:.4f} apart", ""]
    compiled = report["compilations"]
    if compiled is not None:
        lines.append(
            f"{compiled['runs']} runs that differ in {', '.join(compiled['varied'])}: "
            f"step compiled {compiled['step_compiled']} time(s), "
            f"{compiled['later_runs']} compilation(s) after the first run"
        )
    return "\n".join(lines)


def _row(name: str, speed: float, ratio: dict | None, record: dict) -> str:
    ratios = ("", "")
    if ratio is not None:
        ratios = (f"{ratio['median']:.2f}x", f"{ratio['min']:.2f}-{ratio['max']:.2f}")
    loss = "" if record["loss"] is None else f"{record['loss']:.4f}"
    return (
        f"  {name:20}{speed:>10.2f}{ratios[0]:>8}{ratios[1]:>14}"
        f"{record['warm_seconds']:>8.1f}{record['peak_rss_bytes'] / 2**20:>10.0f}"
        f"{loss:>9}"
    )


def _names(text: str, known: Sequence[str], option: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in known:
            raise SystemExit(f"{option}: unknown name {name!r}: {', '.join(known)}")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--workloads", default=",".join(workloads.NAMES))
    parser.add_argument("--rivals", default=",".join(RIVALS), help='"" for none')
    parser.add_argument("--rounds", type=int, default=20, help="of the schedule")
    parser.add_argument("--repeats", type=int, default=5, help="pairs per opponent")
    parser.add_argument("--env-root", type=Path, default=environments.DEFAULT_ROOT)
    parser.add_argument("--out", type=Path, help="write the JSON object there too")
    parser.add_argument(
        "--no-compilations", action="store_true", help="do not count compilations"
    )
    args = parser.parse_args()
    if args.rounds < 1 or args.repeats < 1:
        parser.error("--rounds and --repeats must be 1 or more")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    report: dict[str, Any] = {
        "benchmark": "engine",
        "machine": machine.describe(),
        "protocol": {
            "rounds": args.rounds,
            "repeats": args.repeats,
            "warm_rounds": workloads.WARM_ROUNDS,
            "repeat_seconds": REPEAT_SECONDS,
            "loss_tolerance": LOSS_TOLERANCE,
        },
        "workloads": {},
        "compilations": None,
    }
    chosen = _names(args.workloads, workloads.NAMES, "--workloads")
    rivals = _names(args.rivals, list(RIVALS), "--rivals")
    try:
        for workload in chosen:
            report["workloads"][workload] = measure_workload(
                workload,
                rivals=rivals,
                env_root=args.env_root,
                rounds=args.rounds,
                repeats=args.repeats,
                say=say,
            )
        if not args.no_compilations:
            say("compilations")
            report["compilations"] = count_compilations()
    except protocol.WorkerError as error:
        say(str(error))
        return 1
    report["load_after"] = list(os.getloadavg())
    text = json.dumps(report, indent=1)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")
    print(text if args.json else table(report))
    disagree = [
        w for w, part in report["workloads"].items() if not part["losses_agree"]
    ]
    for workload in disagree:
        say(f"{workload}: the final losses do not agree")
    return 1 if disagree else 0


if __name__ == "__main__":
    raise SystemExit(main())
