"""Worker processes whose number does not show in the result: one thread each, results in the order of the jobs."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Job = TypeVar("Job")
Shared = TypeVar("Shared")
Result = TypeVar("Result")

_WORK: tuple[Callable[[Any, Any], Any], Any] | None = None  # of this worker process


@contextmanager
def worker_pool(
    count: int, function: Callable[[Job, Shared], Result], shared: Shared
) -> Iterator[Callable[[Sequence[Job]], Iterable[Result]]]:
    """Yield a function that maps jobs to `function(job, shared)` over `count` processes, or in this one for 1.

    `shared` is pickled once for each process. An exception of a job is raised here.
    """
    if count == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums in another order are other samples: one thread everywhere
        try:
            yield lambda jobs: (function(job, shared) for job in jobs)
        finally:
            torch.set_num_threads(threads)
        return
    # spawn, not fork: ONNX Runtime and torch hold threads that a forked child would lack
    context = multiprocessing.get_context("spawn")
    with _one_thread_each(), context.Pool(count, _start, (function, shared)) as pool:
        yield lambda jobs: pool.imap(_work_on, jobs, chunksize=1)


def _start(function: Callable[[Any, Any], Any], shared: Any) -> None:
    global _WORK
    torch.set_num_threads(1)
    _WORK = (function, shared)


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
