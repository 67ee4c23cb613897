"""The subcommands and their options; imports nothing heavy, so that help is instant."""

import argparse
from collections.abc import Sequence

from absl.flags import argparse_flags


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line; help exits 0, wrong usage exits 2.

    Args:
      argv: the program's name and its arguments.

    Returns:
      The options, with ``command``.
    """
    parser = build_parser()
    options, unknown = parser.parse_known_args(list(argv)[1:])
    if unknown:
        hint = ""
        if not unknown[0].startswith("-") and hasattr(options, "config"):
            hint = f"; a configuration is given as --config {unknown[0]}"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return options


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command line."""
    parser = argparse_flags.ArgumentParser(
        prog="fedjax-health",
        description="Federated learning for healthcare cyber-security, simulated.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = _add(commands, "run", "train a detector and score it")
    _add_config(run)
    _add_device(run)
    run.add_argument(
        "--out",
        metavar="FOLDER",
        help="run folder, new or empty (default: runs/CONFIG-SEED, then -2, -3, ...)",
    )
    _add_report(run)

    sweep = _add(commands, "sweep", "run a grid of configurations and compare them")
    sweep.add_argument(
        "--config",
        required=True,
        metavar="SWEEP",
        help="TOML file with axes, or a preset such as robustness",
    )
    sweep.add_argument(
        "--base",
        metavar="CONFIG",
        help="configuration of every cell in place of the sweep's own",
    )
    _add_overrides(sweep)
    sweep.add_argument(
        "--axis",
        dest="axes",
        action="append",
        default=[],
        metavar="FIELD=[VALUE,VALUE]",
        help="values of an axis, new or in place of the sweep's own; may be repeated",
    )
    sweep.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="AXIS=VALUE,VALUE",
        help="keep these values of an axis; may be repeated",
    )
    sweep.add_argument(
        "--out",
        metavar="FOLDER",
        help="folder, new or empty (default: runs/SWEEP-0, then -2, -3, ...)",
    )
    _add_workers(sweep)
    _add_report(sweep)
    _add_device(sweep)

    resume = _add(
        commands, "resume", "go on with a run from its last checkpoint, or with a sweep"
    )
    resume.add_argument("folder", metavar="DIR", help="folder of a run or a sweep")
    _add_workers(resume)
    _add_report(resume)
    _add_device(resume)

    plan = _add(
        commands, "plan", "say what a run would do; builds the data, trains nothing"
    )
    _add_config(plan)
    _add_device(plan)

    evaluate = _add(
        commands, "evaluate", "score new data with the detector of a finished run"
    )
    evaluate.add_argument("folder", metavar="DIR", help="run folder")
    evaluate.add_argument(
        "--data",
        required=True,
        metavar="PATH",
        help="file or folder of the kind that the run was trained on; labels optional",
    )
    evaluate.add_argument(
        "--out",
        metavar="FOLDER",
        help="where scores go, new or empty (default: DIR/evaluations/NAME)",
    )
    _add_report(evaluate)
    _add_device(evaluate)

    report = _add(commands, "report", "write the report of a finished run as one page")
    report.add_argument(
        "folder", metavar="DIR", help="folder of run, sweep or evaluate"
    )
    report.add_argument(
        "--out", metavar="FILE", help="the page (default: DIR/report.html)"
    )
    report.add_argument(
        "--tensorboard",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="write TensorBoard's event file too (default folder: DIR/tensorboard)",
    )

    leakcheck = _add(
        commands,
        "leakcheck",
        "say what gives the label away in data, whether it is used or not",
    )
    leakcheck.add_argument(
        "path",
        nargs="?",
        metavar="PATH",
        help="table, or what the configuration's data is (default: as configured)",
    )
    _add_config(leakcheck, default=None)

    privacy = _add(
        commands, "privacy", "say what a run, a plan or bare numbers protect"
    )
    _add_privacy(privacy)

    audit = _add(
        commands, "audit", "attack a finished run and say what it leaks, and to whom"
    )
    _add_audit(audit)
    _add_device(audit)

    generate = _add(commands, "generate", "write the embedded data as CSV or Parquet")
    _add_config(generate)
    generate.add_argument(
        "--out",
        metavar="FILE",
        help="file ending in .csv or .parquet (default: CONFIG-SEED.parquet)",
    )
    _add_device(generate)

    presets = _add(commands, "presets", "list the ready configurations, or print one")
    presets.add_argument("name", nargs="?", metavar="NAME", help="print this one")
    return parser


def _add(commands, name: str, text: str) -> argparse.ArgumentParser:
    # absl's own flags belong to the program, not to every subcommand.
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        inherited_absl_flags=None,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on stdout"
    )
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an error"
    )
    return parser


def _add_config(parser: argparse.ArgumentParser, *, default: str | None = "demo"):
    parser.add_argument(
        "--config",
        default=default,
        metavar="CONFIG",
        help=f"TOML file or preset name (default: {default or 'a table as it is'})",
    )
    _add_overrides(parser)
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the run")


def _add_privacy(parser: argparse.ArgumentParser):
    parser.add_argument(
        "folder", nargs="?", metavar="DIR", help="run folder, accounted as far as it is"
    )
    _add_config(parser, default=None)
    parser.add_argument(
        "--population",
        type=_positive,
        metavar="N",
        help="clients of the configuration (default: those of its data)",
    )
    parser.add_argument(
        "--noise-multiplier",
        type=float,
        metavar="Z",
        help="standard deviation of the noise over the bound of a message",
    )
    parser.add_argument(
        "--target-epsilon",
        type=float,
        metavar="EPSILON",
        help="find the noise multiplier that reaches it",
    )
    parser.add_argument(
        "--sampling-rate",
        type=float,
        metavar="Q",
        help="probability with which a client takes part in a round (default: 1)",
    )
    parser.add_argument(
        "--rounds",
        type=_positive,
        metavar="N",
        help="rounds; local steps of all rounds for bare numbers of an example",
    )
    parser.add_argument(
        "--unit",
        choices=("client", "example"),
        help="whose presence is hidden (default: the client, or what is protected)",
    )
    parser.add_argument(
        "--delta", type=float, metavar="DELTA", help="(default: 1e-5, or as configured)"
    )
    parser.add_argument(
        "--accountant",
        choices=("pld", "rdp"),
        help="privacy loss distributions or Renyi divergences (default: pld)",
    )
    parser.add_argument(
        "--relation",
        choices=("add-or-remove", "replace"),
        help="which data sets are neighbours, of bare numbers (default: add-or-remove)",
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="draw epsilon over rounds, .svg or .png"
    )


def _add_audit(parser: argparse.ArgumentParser):
    parser.add_argument("folder", metavar="DIR", help="run folder")
    parser.add_argument(
        "--shadows",
        type=_positive,
        default=16,
        metavar="N",
        help="models trained on random halves of the data (default: 16)",
    )
    parser.add_argument(
        "--canaries",
        type=_positive,
        default=100,
        metavar="N",
        help="clients whose message is known (default: 100)",
    )
    parser.add_argument(
        "--rounds",
        type=_positive,
        metavar="N",
        help="at most so many rounds of a training that is repeated (default: 60)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="seed of the audit, not the run's"
    )


def _add_overrides(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="override one field, such as local.batch_size=64; may be repeated",
    )


def _add_workers(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        help="processes of a sweep (default: one per core, as memory allows)",
    )


def _add_report(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--no-report", action="store_true", help="write no report.html at the end"
    )


def _add_device(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--device-count",
        type=_positive,
        metavar="N",
        help="CPU devices to ask for (default: one per core, at most 8)",
    )
    parser.add_argument(
        "--cache-dir",
        metavar="FOLDER",
        help="where compiled programs are kept (default: the user's cache folder)",
    )
    parser.add_argument(
        "--no-cache", action="store_true", help="keep no compiled programs"
    )


def _positive(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return value
