"""How the driver of a benchmark talks to the engines that it compares.

Each engine is a process of its own, in an environment of its own. It sets itself up,
warms up, says that it is ready, and then sleeps on its standard input: only the
process that has been asked something computes, so that the driver can alternate
engines inside one run. Requests and replies are single lines.

========================  ===========================================================
request                   reply, one JSON object
========================  ===========================================================
(after the start)         ``setup_seconds``, ``warm_seconds``
``run ROUND...``          ``seconds``, ``cpu_seconds``, ``rounds``: trains these rounds
                          of the schedule, from wherever training stands
``train ROUND...``        the same, from the initial parameters; the final loss is the
                          loss after the last such request
``quit``                  ``loss``, ``versions``, ``details``, ``peak_rss_bytes``
========================  ===========================================================

The module needs the standard library alone and runs on Python 3.10.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds the package ``benchmarks``."""


class Trainer(NamedTuple):
    """An engine as its worker process sees it.

    Attributes:
      train: rounds of the schedule -> how many rounds' worth of work was done; returns
        when the parameters have been computed. The numbers agree but for an engine
        that has no rounds, such as centralised training.
      reset: goes back to the initial parameters.
      loss: returns the final loss of the parameters.
      versions: what is being measured.
      details: how it has been set up (devices, threads, back-end).
    """

    train: Callable[[list[int]], float]
    reset: Callable[[], None]
    loss: Callable[[], float]
    versions: dict[str, str]
    details: dict[str, Any]


class WorkerError(RuntimeError):
    """A worker process that ended or fell silent; the text has its last words."""


class Worker(NamedTuple):
    """A worker process as the driver sees it.

    Attributes:
      name: for messages.
      process: the process; asleep unless it has been asked something.
      requests: its standard input.
      replies: its standard output.
      log: the descriptor of the file that collects its standard error.
      ready: its first reply.
    """

    name: str
    process: subprocess.Popen[bytes]
    requests: IO[bytes]
    replies: IO[bytes]
    log: int
    ready: dict[str, Any]


def memory_status() -> dict[str, int]:
    """Returns this process's resident memory in bytes.

    Returns:
      ``peak``, ``resident``, ``anonymous`` and ``file``, read from Linux's
      ``/proc/self/status``; only ``peak`` on other systems.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    names = {
        "peak": "VmHWM",
        "resident": "VmRSS",
        "anonymous": "RssAnon",
        "file": "RssFile",
    }
    return {key: int(fields[name].split()[0]) * 1024 for key, name in names.items()}


def _timed(train: Callable[[list[int]], float], rounds: list[int]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    done = train(rounds)
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "rounds": done,
    }


def serve(build: Callable[[], Trainer], *, warm_rounds: list[int]) -> None:
    """Runs a worker process until the driver says ``quit`` or closes the pipe.

    Standard output belongs to the protocol: whatever a library prints goes to standard
    error instead.

    Args:
      build: sets the engine up, imports included.
      warm_rounds: rounds to train before the engine is ready, so that everything is
        compiled and every page touched.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(record: dict[str, Any]) -> None:
        replies.write(json.dumps(record) + "\n")
        replies.flush()

    start = time.perf_counter()
    trainer = build()
    built = time.perf_counter()
    trainer.train(warm_rounds)
    reply(
        {
            "setup_seconds": built - start,
            "warm_seconds": time.perf_counter() - built,
        }
    )
    loss = None
    for line in sys.stdin:
        request, *numbers = line.split()
        if request == "quit":
            peak = memory_status()["peak"]
            reply(
                {
                    "loss": loss,
                    "versions": {
                        "python": platform.python_version(),
                        **trainer.versions,
                    },
                    "details": trainer.details,
                    "peak_rss_bytes": peak,
                }
            )
            return
        rounds = [int(number) for number in numbers]
        if request == "train":
            trainer.reset()
            record = _timed(trainer.train, rounds)
            loss = trainer.loss()
            reply(record)
        elif request == "run":
            reply(_timed(trainer.train, rounds))
        else:
            raise SystemExit(f"unknown request {request!r}")


def _last_words(log: int, lines: int = 12) -> str:
    size = os.fstat(log).st_size
    text = os.pread(log, size, 0).decode(errors="replace").strip().splitlines()
    return "\n".join(text[-lines:]) or "(it said nothing)"


def _read_reply(
    name: str,
    process: subprocess.Popen[bytes],
    replies: IO[bytes],
    log: int,
    timeout: float,
) -> dict[str, Any]:
    readable, _, _ = select.select([replies], [], [], timeout)
    line = replies.readline() if readable else b""
    if line:
        return json.loads(line)
    what = "ended" if readable else f"gave no answer within {timeout:.0f} s"
    process.kill()
    process.wait()
    raise WorkerError(f"the worker {name} {what}; its last words:\n{_last_words(log)}")


def start(
    name: str,
    command: list[str],
    *,
    environ: dict[str, str] | None = None,
    timeout: float = 600.0,
) -> Worker:
    """Starts a worker process and waits until it is warm.

    Args:
      name: for messages.
      command: an interpreter and its arguments; runs in the repository's root.
      environ: variables to set beside those of this process.
      timeout: seconds to wait for it to be ready.

    Raises:
      WorkerError: if it ends or is not ready in time.
    """
    # Compilation is part of what is measured, so no program comes from a cache.
    variables = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        **(environ or {}),
    }
    # The rivals' environments are to hold what they installed and nothing else.
    variables.pop("PYTHONPATH", None)
    log, path = tempfile.mkstemp()
    os.unlink(path)
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=ROOT,
        env=variables,
        bufsize=0,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    ready = _read_reply(name, process, process.stdout, log, timeout)
    return Worker(name, process, process.stdin, process.stdout, log, ready)


def run_to_end(command: list[str], *, ok: tuple[int, ...] = (0,)) -> str:
    """Runs a program in the repository's root and returns its standard output.

    Raises:
      WorkerError: if it exits with a status that is not in ``ok``.
    """
    variables = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=variables
    )
    if done.returncode not in ok:
        words = "\n".join(done.stderr.strip().splitlines()[-12:])
        raise WorkerError(f"{' '.join(command)} failed:\n{words}")
    return done.stdout


def ask(worker: Worker, request: str, *, timeout: float = 600.0) -> dict[str, Any]:
    """Sends one request and waits for its reply.

    Raises:
      WorkerError: if the worker ends or does not answer in time.
    """
    # Of a worker that has ended, the reply that is missing tells more.
    with contextlib.suppress(BrokenPipeError):
        worker.requests.write(request.encode() + b"\n")
    return _read_reply(worker.name, worker.process, worker.replies, worker.log, timeout)


def stop(worker: Worker) -> dict[str, Any]:
    """Asks a worker for its final reply, waits for its end and returns the reply."""
    record = ask(worker, "quit")
    worker.requests.close()
    worker.process.wait(timeout=60)
    worker.replies.close()
    os.close(worker.log)
    return record


def kill(worker: Worker) -> None:
    """Ends a worker that may no longer answer; safe to call on one that has ended."""
    if worker.process.poll() is None:
        worker.process.kill()
        worker.process.wait()


def cpu_seconds_of(worker: Worker) -> float | None:
    """Returns the processor seconds a worker has used so far; None where not Linux."""
    try:
        text = Path(f"/proc/{worker.process.pid}/stat").read_text()
    except OSError:
        return None
    user, system = text.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
