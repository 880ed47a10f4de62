"""The same work as Ray Data tasks, on a cluster that runs or on this machine.

The work folder must lie where every node sees it, at the same path (a shared file system): what crosses the network
are jobs and outcomes, not audio.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from omnichat.synthesis.engines.base import Engine, Job, Result, Run, Shared
from omnichat.utils.errors import UserError

_EXTRA = "engine=ray needs the extra 'ray': pip install omnichat[ray]"


class RayEngine(Engine):
    """A pool of Ray actors, each with the parts loaded once.

    Args:
        workers: actors.
        address: of a running cluster ("auto" = the one that this machine belongs to); None = start one here.
        cpus: processors that each actor reserves; its arithmetic keeps to one thread, whatever they are.
        gpus: accelerators that each actor reserves, e.g. 0.25.
    """

    def __init__(self, workers: int, address: str | None = None, cpus: float = 1.0, gpus: float = 0.0) -> None:
        if workers < 1:
            raise UserError(f"workers must be >= 1, got {workers}")
        if cpus < 0 or gpus < 0:
            raise UserError(f"engine.cpus and engine.gpus must be >= 0, got {cpus}, {gpus}")
        self.workers = workers
        self.address = address
        self.cpus = cpus
        self.gpus = gpus

    @contextmanager
    def start(self, function: Callable[[Job, Shared], Result], shared: Shared) -> Iterator[Run[Job, Result]]:
        """See `Engine.start`; results come as actors finish them. A cluster that was started here ends here."""
        try:
            import ray
        except ImportError as error:
            raise UserError(f"{_EXTRA} ({error})") from None
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # without a GPU, leave its variables alone
        ours = not ray.is_initialized()
        if ours:
            self._join(ray)
        try:
            yield lambda jobs: self._run(function, shared, jobs)
        finally:
            if ours:
                ray.shutdown()

    def _join(self, ray: Any) -> None:
        # a cluster of our own has as many processors as its actors ask for, whatever this machine has: they take turns
        own = {} if self.address else {"num_cpus": max(1, round(self.workers * self.cpus)), "include_dashboard": False}
        try:
            ray.init(address=self.address, logging_level="warning", log_to_driver=False, **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"engine.address={self.address!r}: no Ray cluster answers ({_first_line(error)})") from None

    def _run(self, function: Callable[[Any, Any], Any], shared: Any, jobs: Sequence[Any]) -> Iterator[Any]:
        import ray

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # ours counts dialogues and hours
        context.print_on_execution_start = False
        if not jobs:
            return
        rows = ray.data.from_items([{"job": job} for job in jobs], override_num_blocks=len(jobs))
        done = rows.map(
            _Actor,
            fn_constructor_args=(function, shared),
            compute=ray.data.ActorPoolStrategy(size=self.workers),
            num_cpus=self.cpus,
            num_gpus=self.gpus,
        )
        try:
            for row in done.iter_rows():
                yield row["result"]
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, UserError):
                raise UserError(str(cause)) from None
            raise


class _Actor:
    """One worker of the pool."""

    def __init__(self, function: Callable[[Any, Any], Any], shared: Any) -> None:
        torch.set_num_threads(1)
        self.function = function
        self.shared = shared

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"result": self.function(row["job"], self.shared)}


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
