"""Cells spread over processes; one that dies costs the cell it worked on, no more."""

import multiprocessing
import signal
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
    """
    waiting = deque(tuple(group) for group in groups if group)
    if workers <= 1:
        measure = make_measure()
        for group in waiting:
            for task in group:
                on_record(task.key, measure(task.payload))
        return
    _Crew(waiting, make_measure, on_record).run(min(workers, len(waiting)))


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
        # A fork would copy jax's threads, which no fork survives.
        self._context = multiprocessing.get_context("spawn")

    def run(self, workers: int) -> None:
        crew: list[_Worker] = []
        try:
            while True:
                while self._waiting and len(crew) < workers:
                    crew.append(self._hire())
                if not crew:
                    return
                by_connection = {worker.connection: worker for worker in crew}
                for ready in wait(list(by_connection)):
                    worker = by_connection[ready]  # type: ignore[index]
                    if not self._hear(worker):
                        crew.remove(worker)
        finally:
            for worker in crew:
                worker.process.kill()
                worker.process.join()

    def _hire(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(theirs, self._make_measure), daemon=True
        )
        process.start()
        theirs.close()
        worker = _Worker(process, ours, deque())
        self._give(worker)
        return worker

    def _give(self, worker: _Worker) -> None:
        group = self._waiting.popleft()
        worker.tasks.extend(group)
        worker.connection.send(group)

    def _hear(self, worker: _Worker) -> bool:
        """Takes one record from a worker; returns whether it stays."""
        try:
            record = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self._mourn(worker)
            return False
        task = worker.tasks.popleft()
        self._on_record(task.key, record)
        if worker.tasks:
            return True
        if self._waiting:
            self._give(worker)
            return True
        worker.connection.close()
        worker.process.join()
        return False

    def _mourn(self, worker: _Worker) -> None:
        """Gives the cells of a dead worker to another one."""
        worker.process.join()
        task = worker.tasks.popleft()
        attempts = self._attempts[task.key] = self._attempts.get(task.key, 0) + 1
        if attempts < ATTEMPTS:
            worker.tasks.appendleft(task)
        else:
            self._on_record(task.key, _death(worker.process.exitcode))
        if worker.tasks:
            self._waiting.appendleft(tuple(worker.tasks))


def _death(code: int | None) -> dict[str, Any]:
    how = f"exit code {code}"
    if code is not None and code < 0:
        how = f"by {signal.Signals(-code).name}"
    return {
        "status": "failed",
        "reason": f"its process died {ATTEMPTS} times ({how}): with SIGKILL, of memory "
        "most likely: use fewer --workers",
    }


def _work(connection: Connection, make_measure: Callable[[], Measure]) -> None:
    """What a worker does until there is nothing left for it."""
    # The keyboard's interrupt is the parent's to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    measure = make_measure()
    while True:
        try:
            group = connection.recv()
        except EOFError:
            return
        for task in group:
            try:
                connection.send(measure(task.payload))
            except BrokenPipeError:
                # Nobody is left to listen.
                return
