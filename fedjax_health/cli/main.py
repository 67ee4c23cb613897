"""Entry point: parses, runs one command, and turns errors into one line each.

Exit codes: 0 success, 1 a fault of the program, 2 wrong usage or input, 130 after an
interrupt.
"""

import argparse
import contextlib
import dis
import os
import sys
import traceback
from collections.abc import Sequence

from absl import app, logging

from fedjax_health.cli import commands
from fedjax_health.cli.parser import parse_flags
from fedjax_health.records import FULL_DISK, canonical_json

PACKAGE = "fedjax_health"


def main(argv: Sequence[str] | None = None):
    """Runs the command line and exits.

    Args:
      argv: the program's name and its arguments; those of the process where absent.
    """
    arguments = list(sys.argv if argv is None else argv)
    app.run(execute, argv=arguments, flags_parser=parse_flags)


def execute(options: argparse.Namespace) -> int:
    """Runs one command.

    Args:
      options: what ``parse_flags`` returned.

    Returns:
      The exit code.
    """
    # absl shows what every library says about its own work; a run has its own lines.
    logging.set_verbosity(logging.DEBUG if options.debug else logging.WARNING)
    try:
        # Whatever a library prints while it works must not mix with the result.
        with contextlib.redirect_stdout(sys.stderr):
            outcome = commands.run_command(options)
        if options.json:
            print(canonical_json(outcome.result))
        else:
            outcome.show(sys.stdout)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt as interrupt:
        # A way to go on is given as the interrupt's text by the command that knows it.
        print(f"fedjax-health: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away; a second error at exit would say nothing new.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        text = explain(error)
        if text is None or options.debug:
            traceback.print_exc()
        if text is None:
            return 1
        print(f"fedjax-health: error: {text}", file=sys.stderr)
        return 2


def explain(error: Exception) -> str | None:
    """Returns the line that a user should read, or None for a fault of the program.

    Every exception class of this package carries a message for the user, and so does
    a plain ``ValueError`` raised by one of its constructors.

    Args:
      error: what a command raised.
    """
    own = type(error).__module__.split(".")[0] == PACKAGE
    if own or (type(error) is ValueError and _raised_here(error)):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        if error.errno in FULL_DISK:
            place = error.filename or "output"
            return f"{place}: the disk is full: free some space, then resume the run"
        return (
            f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        )
    return None


def _raised_here(error: Exception) -> bool:
    """Says whether a ``raise`` of this package is where an error began."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    frame = trace.tb_frame
    own = frame.f_globals.get("__name__", "").split(".")[0] == PACKAGE
    # A call into C that fails has no frame of its own: it ends at a call instead.
    instruction = dis.opname[frame.f_code.co_code[trace.tb_lasti]]
    return own and instruction == "RAISE_VARARGS"
