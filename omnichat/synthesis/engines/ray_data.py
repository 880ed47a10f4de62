"""The same work as Ray Data tasks, on a cluster that runs or on this machine.

The work folder must lie where every node sees it, at the same path (a shared file system): what crosses the network
are jobs and outcomes, not audio.
"""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import sys
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
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        try:
            self._probe(ray, function, shared)
            yield lambda jobs: self._run(function, shared, jobs)
        finally:
            if ours:
                ray.shutdown()

    def _join(self, ray: Any) -> None:
        """Enter the cluster, or start one of as many processors as the actors ask for, whatever this machine has."""
        own: dict[str, Any] = {}
        if place := re.fullmatch(r"(?:ray://)?(\[?[\w.:-]+\]?):(\d+)", self.address or ""):
            _knock(place[1].strip("[]"), int(place[2]), f"engine.address={self.address!r}")
        if self.address is None:
            own = {"num_cpus": max(1, math.ceil(self.workers * self.cpus)), "include_dashboard": False}
            # what this process can import, its workers can
            own["runtime_env"] = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}}
        try:
            ray.init(address=self.address, logging_level="warning", log_to_driver=False, **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"engine.address={self.address!r}: no Ray cluster answers ({_first_line(error)})") from None

    def _probe(self, ray: Any, function: Callable[[Any, Any], Any], shared: Any) -> None:
        """Raise UserError where a node cannot read the parts: an actor that fails to start is tried for ever."""
        try:
            ray.get(ray.remote(_look_at).options(num_cpus=self.cpus, num_gpus=0).remote(_Box((function, shared))))
        except ray.exceptions.RayError as error:
            raise UserError(
                "engine=ray: the cluster's nodes cannot load the parts; this omnichat must be installed there "
                f"({_last_line(error)})"
            ) from None

    def _run(self, function: Callable[[Any, Any], Any], shared: Any, jobs: Sequence[Any]) -> Iterator[Any]:
        import ray

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # ours counts dialogues and hours
        context.print_on_execution_start = False
        if not jobs:
            return
        rows = ray.data.from_items([{"job": _Box(job)} for job in jobs], override_num_blocks=len(jobs))
        done = rows.map(
            _Actor,  # type: ignore[arg-type]  # a class: its instances are called
            fn_constructor_args=(_Box((function, shared)),),
            compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(jobs))),
            num_cpus=self.cpus,
            num_gpus=self.gpus,
        )
        for row in done.iter_rows():
            if isinstance(row["result"].value, UserError):
                raise row["result"].value
            yield row["result"].value


class _Box:
    """Keeps a value as it is: Ray Data would turn tuples into lists and mappings into columns."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Actor:
    """One worker of the pool."""

    def __init__(self, work: _Box) -> None:
        torch.set_num_threads(1)
        self.function, self.shared = work.value

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"result": _Box(self.function(row["job"].value, self.shared))}
        except UserError as error:  # a result like any other: Ray would wrap it in its own, and log a trace
            return {"result": _Box(error)}


def _look_at(work: _Box) -> None:
    """A task that has read its argument has shown that it can."""
    assert callable(work.value[0])


def _knock(host: str, port: int, key: str) -> None:
    """Raise UserError where nobody listens: Ray itself would go on asking for minutes."""
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError as error:
        raise UserError(f"{key}: no Ray cluster answers ({error})") from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _last_line(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
