"""Child processes that cannot die unnoticed: whatever ends one ends the run, with its traceback."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.multiprocessing

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 5.0
"""How long workers that were told to stop may take, where nobody says otherwise."""
_PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Sent to the whole process group by Ctrl-C or a batch system; the parent stops its workers itself, after it saved."""


class WorkerDied(RuntimeError):  # noqa: N818 (it is what happened, and is read aloud in tracebacks)
    """A worker ended before it was told to; the message holds its traceback or its exit code."""


class StopWorker(Exception):  # noqa: N818
    """Raised inside a worker that has been told to stop, or whose parent is gone."""


class WorkerLink:
    """What a worker sees of its parent: the order to stop, and questions to answer.

    Args:
        stop: Shared flag, not 0 once the workers must stop.
        connection: Pipe to the parent.
    """

    def __init__(self, stop: torch.Tensor, connection: Connection) -> None:
        self._stop, self._connection = stop, connection
        self.answers: dict[str, Callable[[], Any]] = {}

    def poll(self) -> None:
        """Answer the parent's questions.

        Raises:
            StopWorker: If the parent asks to stop or has died.
        """
        parent = multiprocessing.parent_process()
        if int(self._stop) or (parent is not None and not parent.is_alive()):
            raise StopWorker
        while self._connection.poll():
            question = self._connection.recv()
            self._connection.send(("answer", self.answers[question]()))


class WorkerGroup:
    """Starts named workers, notices their death, asks them questions and stops them.

    Args:
        context: Multiprocessing context, as of ``torch.multiprocessing.get_context("spawn")``.
        patience: Seconds that they may take to stop before they are killed.
    """

    def __init__(self, context: Any, patience: float = PATIENCE_SECONDS) -> None:
        self._context, self._patience = context, patience
        self._stop = torch.zeros((), dtype=torch.int64).share_memory_()
        self._processes: dict[str, Any] = {}
        self._connections: dict[str, Connection] = {}
        # multiprocessing would end forgotten workers by SIGTERM, which they ignore, and wait for them for ever
        atexit.register(self.stop)

    def start(self, name: str, target: Callable[..., None], *args: Any) -> None:
        """Start ``target(link, *args)`` in a process; it returns or raises ``StopWorker`` only when told to stop."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_worker_main, args=(target, self._stop, theirs, args), name=name, daemon=True
        )
        # a worker is born with these signals blocked: one that comes while it still imports must not kill it
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS_SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
        self._processes[name], self._connections[name] = process, ours

    def pid(self, name: str) -> int:
        """Return the process id of a worker."""
        return self._processes[name].pid

    def check(self) -> None:
        """Make sure that all workers live.

        Raises:
            WorkerDied: If one does not.
        """
        for name, process in self._processes.items():
            if not process.is_alive():
                raise WorkerDied(self._obituary(name))

    def ask(self, question: str, names: Sequence[str]) -> dict[str, Any]:
        """Put a question to the named workers, one after the other, and return their answers.

        Raises:
            WorkerDied: If one dies instead of answering.
        """
        answers = {}
        for name in names:
            try:
                self._connections[name].send(question)
            except OSError as error:
                raise WorkerDied(self._obituary(name)) from error
            answers[name] = self._receive(name)
        return answers

    def stop(self) -> None:
        """End all workers, by force where they do not react."""
        atexit.unregister(self.stop)
        self._stop.fill_(1)
        deadline = time.monotonic() + self._patience
        for process in self._processes.values():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                logger.warning("Worker %s did not stop within %g s; killing it.", process.name, self._patience)
                process.kill()
                process.join()
            process.close()
        for connection in self._connections.values():
            connection.close()
        self._processes, self._connections = {}, {}

    def _receive(self, name: str) -> Any:
        connection = self._connections[name]
        while True:
            try:
                if connection.poll(0.1):
                    kind, content = connection.recv()
                    if kind == "error":
                        raise WorkerDied(f"The {name} died:\n{content}")
                    return content
            except (EOFError, OSError) as error:
                raise WorkerDied(self._obituary(name)) from error
            if not self._processes[name].is_alive() and not connection.poll():
                raise WorkerDied(self._obituary(name))

    def _obituary(self, name: str) -> str:
        process, connection = self._processes[name], self._connections[name]
        process.join(self._patience)
        try:
            while connection.poll():
                kind, content = connection.recv()
                if kind == "error":
                    return f"The {name} died:\n{content}"
        except (EOFError, OSError):
            pass
        return f"The {name} died without a word, exit code {process.exitcode} (negative: killed by that signal)."


def _worker_main(target: Callable[..., None], stop: torch.Tensor, connection: Connection, args: tuple) -> None:
    """Run a worker; its last word, if it fails, goes to the parent."""
    for number in _PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    try:
        target(WorkerLink(stop, connection), *args)
    except StopWorker:
        return
    except BaseException:
        connection.send(("error", traceback.format_exc()))
        raise SystemExit(1) from None
