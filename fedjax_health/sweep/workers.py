"""Cells spread over processes; one that dies costs the cell it worked on, no more."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

# A cell that brought a worker down is tried once more: another one's memory may have
# been the reason.
ATTEMPTS = 2


class Task(NamedTuple):
    """One cell that is to be measured.

    Attributes:
      key: of the cell.
      payload: what the worker is given.
    """

    key: str
    payload: Any


Measure = Callable[[Any], dict[str, Any]]
OnRecord = Callable[[str, dict[str, Any]], None]


def run_groups(
    groups: Iterable[Sequence[Task]],
    make_measure: Callable[[], Measure],
    on_record: OnRecord,
    *,
    workers: int,
) -> None:
    """Measures every task; tasks of a group go to one worker, one after the other.

    Args:
      groups: tasks that share compiled programs.
      make_measure: called once in every process; what it returns measures a payload.
        Both must be importable where ``workers`` is above 1.
      on_record: told the key and record of each task, in this process.
      workers: processes; 1 for this one.

    Raises:
      SweepError: if no process can measure anything.
    """
    waiting = deque(tuple(group) for group in groups if group)
    if not waiting:
        return
    if workers <= 1:
        measure = make_measure()
        for group in waiting:
            for task in group:
                on_record(task.key, measure(task.payload))
        return
    _Crew(waiting, make_measure, on_record).run(min(workers, len(waiting)))


class SweepError(RuntimeError):
    """A sweep that cannot go on, or that has found nothing."""


class _Ready(NamedTuple):
    """A worker's first word: it can measure."""


class _Unfit(NamedTuple):
    """A worker's only word: it cannot.

    Attributes:
      reason: what ``make_measure`` raised.
    """

    reason: str


class _Worker(NamedTuple):
    process: Any
    connection: Connection
    tasks: deque[Task]


class _Crew:
    """The processes, and what each of them works on."""

    def __init__(
        self,
        waiting: deque[tuple[Task, ...]],
        make_measure: Callable[[], Measure],
        on_record: OnRecord,
    ):
        self._waiting = waiting
        self._make_measure = make_measure
        self._on_record = on_record
        self._attempts: dict[str, int] = {}
        # Workers that were killed before they could measure anything.
        self._stillborn = 0
        # A fork would copy jax's threads, which no fork survives.
        self._context = multiprocessing.get_context("spawn")

    def run(self, workers: int) -> None:
        crew: list[_Worker] = []
        try:
            while True:
                busy = sum(bool(worker.tasks) for worker in crew)
                wanted = min(workers - self._stillborn, busy + len(self._waiting))
                while len(crew) < wanted:
                    crew.append(self._hire())
                if not crew:
                    return
                by_connection = {worker.connection: worker for worker in crew}
                for ready in wait(list(by_connection)):
                    worker = by_connection[ready]  # type: ignore[index]
                    if not self._hear(worker):
                        crew.remove(worker)
                if self._stillborn >= workers and not crew and self._waiting:
                    raise SweepError(
                        f"all {workers} worker processes were killed before they could "
                        "measure anything, of memory most likely: use fewer --workers"
                    )
        finally:
            for worker in crew:
                worker.process.kill()
                worker.process.join()
                worker.connection.close()

    def _hire(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(theirs, self._make_measure), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours, deque())

    def _hear(self, worker: _Worker) -> bool:
        """Takes one word from a worker; returns whether it stays."""
        try:
            word = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self._mourn(worker)
            return False
        match word:
            case _Unfit(reason):
                raise SweepError(f"a worker process cannot measure: {reason}")
            case _Ready():
                pass
            case record:
                task = worker.tasks.popleft()
                self._on_record(task.key, record)
        if worker.tasks or self._give(worker):
            return True
        _dismiss(worker)
        return False

    def _give(self, worker: _Worker) -> bool:
        """Hands over a group; returns False where none is left, or no worker is."""
        if not self._waiting:
            return False
        group = self._waiting.popleft()
        try:
            worker.connection.send(group)
        except (BrokenPipeError, ConnectionResetError):
            # It died between two groups: no cell is to blame.
            self._waiting.appendleft(group)
            return False
        worker.tasks.extend(group)
        return True

    def _mourn(self, worker: _Worker) -> None:
        """Gives the cells of a dead worker to another one."""
        _dismiss(worker)
        code = worker.process.exitcode
        if not worker.tasks:
            # It had not said that it is ready.
            if code is None or code >= 0:
                raise SweepError(
                    f"a worker process ended before it could measure ({_how(code)}): "
                    "its own words are above. A script that sweeps with several "
                    'workers needs `if __name__ == "__main__":` around what it does'
                )
            self._stillborn += 1
            return
        task = worker.tasks.popleft()
        attempts = self._attempts[task.key] = self._attempts.get(task.key, 0) + 1
        if attempts < ATTEMPTS:
            worker.tasks.appendleft(task)
        else:
            self._on_record(task.key, _death(code))
        if worker.tasks:
            self._waiting.appendleft(tuple(worker.tasks))


def _dismiss(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.join()


def _how(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    names = {number.value: number.name for number in signal.Signals}
    return f"by {names.get(-code, f'signal {-code}')}"


def _death(code: int | None) -> dict[str, Any]:
    reason = f"its process died {ATTEMPTS} times ({_how(code)})"
    if code == -signal.SIGKILL:
        reason += ", of memory most likely: use fewer --workers"
    return {"status": "failed", "reason": reason}


def _work(connection: Connection, make_measure: Callable[[], Measure]) -> None:
    """What a worker does until there is nothing left for it."""
    # The keyboard's interrupt is the parent's to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        measure = make_measure()
    except Exception as error:
        connection.send(_Unfit(f"{type(error).__name__}: {error}"))
        return
    try:
        connection.send(_Ready())
        while True:
            for task in connection.recv():
                connection.send(measure(task.payload))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # There is nothing left to do, or nobody to listen.
        return


def _end_with_parent() -> None:
    """Ends this process when its parent has gone: a cell may go on for hours."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
