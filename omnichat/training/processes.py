"""What the processes of a run tell each other: sums, votes, barriers."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator

from omnichat.utils.errors import UserError


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
                f"{started} processes were started, but accelerate runs {self.count}: on CPU start them with "
                "ACCELERATE_USE_CPU=true torchrun --nproc_per_node=..."
            )

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, on the accelerator's device."""
        value = value.to(self.accelerator.device)
        return value if self.count == 1 else self.accelerator.reduce(value, reduction="sum")

    def any(self, value: bool) -> bool:
        """Whether any process says yes; all of them get the same answer."""
        return bool(self.sum(torch.tensor(float(value))) > 0)

    def wait(self) -> None:
        """Return once every process has come here."""
        self.accelerator.wait_for_everyone()
