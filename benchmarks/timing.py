"""Worker loop of a benchmark of single calls, for ours and for rivals.

A worker holds named calls on one stack of messages, sleeps on its standard input and
runs one call when it is asked to (see ``protocol``). The module needs the standard
library and NumPy alone.

======================  ============================================================
request                 reply, one JSON object
======================  ============================================================
(after the start)       ``setup_seconds``, ``names``
``warm NAME``           ``seconds``, ``memory`` (bytes beside the messages, or None)
``time NAME CALLS``     ``wall`` and ``cpu``, milliseconds of each call, process CPU
``quit``                ``versions``
======================  ============================================================
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Call(NamedTuple):
    """Something to be timed.

    Attributes:
      run: returns when its result has been computed.
      memory: bytes that it takes beside the messages; None where it is not known.
    """

    run: Callable[[], Any]
    memory: Callable[[], int | None] = lambda: None


def messages(cohort: int, size: int) -> np.ndarray:
    """Returns the messages that every worker aggregates, float32 ``[cohort, size]``."""
    return np.random.default_rng(0).standard_normal((cohort, size), dtype=np.float32)


def serve(build: Callable[[], tuple[dict[str, Call], dict[str, str]]]) -> None:
    """Runs a worker until it is told to quit or its input ends.

    Args:
      build: returns the calls and the versions of what is measured.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(record: dict[str, Any]) -> None:
        replies.write(json.dumps(record) + "\n")
        replies.flush()

    start = time.perf_counter()
    calls, versions = build()
    reply({"setup_seconds": time.perf_counter() - start, "names": list(calls)})
    for line in sys.stdin:
        request, *rest = line.rstrip("\n").split("\t")
        if request == "quit":
            reply({"versions": {"python": platform.python_version(), **versions}})
            return
        call = calls[rest[0]]
        if request == "warm":
            begun = time.perf_counter()
            call.run()
            seconds = time.perf_counter() - begun
            reply({"seconds": seconds, "memory": call.memory()})
        elif request == "time":
            wall, cpu = [], []
            for _ in range(int(rest[1])):
                begun = time.perf_counter(), time.process_time()
                call.run()
                wall.append(1e3 * (time.perf_counter() - begun[0]))
                cpu.append(1e3 * (time.process_time() - begun[1]))
            reply({"wall": wall, "cpu": cpu})
        else:
            raise SystemExit(f"unknown request {request!r}")
