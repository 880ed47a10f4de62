"""Worker processes whose number does not show in the result: one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch

from omnichat.synthesis.engines.base import Engine, Job, Result, Run, Shared
from omnichat.utils.errors import UserError

_AHEAD = 4  # jobs that wait for each worker
_WORK: tuple[Callable[[Any, Any], Any], Any] | None = None  # of this worker process


class LocalEngine(Engine):
    """Processes of this machine, or this process alone for one worker.

    Args:
        workers: how many.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise UserError(f"workers must be >= 1, got {workers}")
        self.workers = workers

    @contextmanager
    def start(self, function: Callable[[Job, Shared], Result], shared: Shared) -> Iterator[Run[Job, Result]]:
        """See `Engine.start`; results come in the order of the jobs."""
        if self.workers == 1:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # sums in another order are other samples: one thread everywhere
            try:
                yield lambda jobs: (function(job, shared) for job in jobs)
            finally:
                torch.set_num_threads(threads)
            return
        # spawn, not fork: ONNX Runtime and torch hold threads that a forked child would lack
        context = multiprocessing.get_context("spawn")
        with _one_thread_each():
            pool = ProcessPoolExecutor(self.workers, context, _start, (function, shared))
            try:
                yield lambda jobs: self._run(pool, jobs)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, pool: ProcessPoolExecutor, jobs: Sequence[Any]) -> Iterator[Any]:
        """Keep a few jobs waiting for each worker, however many there are in all."""
        left = iter(jobs)
        waiting = deque(pool.submit(_work_on, job) for job in islice(left, _AHEAD * self.workers))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(_work_on, job) for job in islice(left, 1))
        except BrokenProcessPool:
            raise UserError(
                "a worker process died, perhaps for want of memory (fewer workers need less); what is finished is kept "
                "and the same command goes on"
            ) from None


def _start(function: Callable[[Any, Any], Any], shared: Any) -> None:
    global _WORK
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent ends the work
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _WORK = (function, shared)


def _leave_with_parent() -> None:
    """End this process when the parent was killed: its queues stay open in its siblings, so none would ever tell."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work_on(job: Any) -> Any:
    assert _WORK is not None
    function, shared = _WORK
    return function(job, shared)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Children inherit the limit at their start, before their libraries read it."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
