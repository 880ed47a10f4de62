"""How many processes a run has, and what they tell each other: sums, votes, barriers."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed import Store

from omnichat.training.liveness import Progress
from omnichat.utils.errors import UserError, one_of

STRATEGIES = ("ddp", "fsdp2", "zero2", "zero3")
SETUP_LIMIT = timedelta(minutes=10)  # for the first process to come to where the others wait for its word


@dataclass(kw_only=True, slots=True)
class LaunchConfig:
    """How many processes train together, where, and how they share the model."""

    processes: int = 1  # on each node
    nodes: int = 1  # the same command is started once on each of them
    strategy: str = "ddp"  # ddp | fsdp2 | zero2 | zero3
    cpu: bool = False  # processors even where there is a GPU
    offload_params: bool = False  # fsdp2: shards wait in the host's memory until they are needed
    timeout_sec: float = 1800.0  # without progress of the slowest process, after which the run is ended
    rendezvous: str | None = None  # host:port of a node that all nodes can reach
    rendezvous_id: str | None = None  # name that all nodes of this start share, e.g. the number of a Slurm job

    def __post_init__(self) -> None:
        for name in ("processes", "nodes"):
            if getattr(self, name) < 1:
                raise UserError(f"launch.{name} must be at least 1, got {getattr(self, name)}")
        if self.strategy not in STRATEGIES:
            raise one_of("launch.strategy", self.strategy, STRATEGIES)
        if not 1 <= self.timeout_sec <= 86_400:
            raise UserError(f"launch.timeout_sec must lie between 1 and 86400, got {self.timeout_sec}")
        if self.nodes > 1 and not (self.rendezvous and self.rendezvous_id):
            raise UserError(
                f"launch.nodes={self.nodes} needs launch.rendezvous=HOST:PORT (a node that all can reach) and "
                "launch.rendezvous_id=NAME (the same on all nodes, another for every start)"
            )
        if self.offload_params and self.strategy != "fsdp2":
            raise UserError(f"launch.offload_params belongs to fsdp2, but launch.strategy={self.strategy}")

    @property
    def count(self) -> int:
        """Processes over all nodes."""
        return self.processes * self.nodes

    @property
    def collective_timeout(self) -> timedelta:
        """How long one process waits for another: longer than the driver, which can say which one is missing."""
        return timedelta(seconds=2 * self.timeout_sec)


class ProcessFailure(Exception):
    """A process of the run died, hung or met an error that is no user's; the message names it."""


class Setup:
    """What the processes of a run tell each other before there is a trainer.

    Args:
        rank: of this process.
        store: the launcher's key-value store; None for a run of one process.
        progress: where this process is.
        count: of the processes.
    """

    def __init__(
        self, rank: int = 0, store: Store | None = None, progress: Progress | None = None, count: int = 1
    ) -> None:
        self.rank, self.count = rank, count
        self.store = store
        self.progress = progress or Progress()
        self._calls = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def main_says(self, make: Callable[[], Any]) -> Any:
        """What `make` returns in the first process, a JSON value; a UserError that it raises reaches all processes."""
        if self.store is None:
            return make()
        self._calls += 1
        key = f"omnichat/{self._calls}"
        if self.is_main:
            try:
                answer = {"value": make()}
            except UserError as error:
                answer = {"error": str(error)}
            self.store.set(key, json.dumps(answer))
        else:
            self.store.wait([key], SETUP_LIMIT)
            answer = json.loads(self.store.get(key))
        if "error" in answer:
            raise UserError(answer["error"])
        return answer["value"]

    def say_stopped(self, which: signal.Signals) -> None:
        """This process was asked to stop: whoever looks with `stopped` knows."""
        if self.store is not None:
            self.store.set("omnichat/stopped", which.name)

    def stopped(self) -> signal.Signals | None:
        """The signal by which one of the processes was asked to stop, None while none was."""
        if self.store is None or not self.store.check(["omnichat/stopped"]):
            return None
        return signal.Signals[self.store.get("omnichat/stopped").decode()]

    def all_here(self, place: str) -> bool:
        """This process has come to `place`; wait for the others there. The first process alone waits.

        Whether all are there: not if one was asked to stop. One that dies or hangs is the driver's to notice.
        """
        if self.store is None:
            return True
        self.store.set(f"omnichat/{place}/{self.rank}", "here")
        names = [f"omnichat/{place}/{rank}" for rank in range(self.count)]
        while self.is_main and not self.store.check(names):
            if self.stopped() is not None:
                return False
            time.sleep(0.1)
        return True


class Processes:
    """The processes of a run, seen from one of them.

    Raises:
        UserError: a launcher started more processes than accelerate sees.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.count = accelerator.num_processes
        self.index = accelerator.process_index
        self.is_main = accelerator.is_main_process
        if (started := int(os.environ.get("WORLD_SIZE", "1"))) != self.count:
            raise UserError(
                f"{started} processes were started, but accelerate runs {self.count}: start the run once, by itself, "
                "with launch=cpu2 or another file of configs/launch"
            )

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, on the accelerator's device."""
        value = value.to(self.accelerator.device)
        return value if self.count == 1 else self.accelerator.reduce(value, reduction="sum")

    def any(self, value: bool) -> bool:
        """Whether any process says yes; all of them get the same answer."""
        return bool(self.sum(torch.tensor(float(value))) > 0)
