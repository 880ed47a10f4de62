"""What a run writes while it runs: log.jsonl always, wandb beside it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from omnichat.utils.errors import one_of
from omnichat.utils.log import rank

WANDB_MODES = ("offline", "online", "disabled")


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    """Where figures go besides log.jsonl."""

    wandb: str = "offline"  # offline | online | disabled
    project: str = "omnichat"  # wandb project

    def __post_init__(self) -> None:
        if self.wandb not in WANDB_MODES:
            raise one_of("tracking.wandb", self.wandb, WANDB_MODES)


class Tracker:
    """Appends rows to log.jsonl, one JSON object a line, flushed at once; mirrors steps to wandb. Rank 0 only."""

    def __init__(self, run: Path, config: TrackingConfig, run_config: dict[str, Any]) -> None:
        self._log = None
        self._wandb: Any = None
        if rank() != 0:
            return
        run.mkdir(parents=True, exist_ok=True)
        _end_torn_line(run / "log.jsonl")
        self._log = open(run / "log.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (closed by finish)
        if config.wandb != "disabled":
            os.environ.setdefault("WANDB_SILENT", "true")
            import wandb

            self._wandb = wandb.init(
                dir=str(run),
                project=config.project,
                name=run.name,
                mode=cast("Literal['offline', 'online']", config.wandb),
                config=run_config,
            )

    def row(self, event: str, **values: Any) -> None:
        """Write one row."""
        if self._log is None:
            return
        self._log.write(json.dumps({"event": event, **values}) + "\n")
        self._log.flush()
        if self._wandb is not None and event in ("step", "dev"):
            figures = {f"{event}/{k}": v for k, v in values.items() if isinstance(v, int | float) and k != "step"}
            self._wandb.log(figures, step=values["step"])

    def finish(self) -> None:
        """Close log and wandb."""
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None


def _end_torn_line(path: Path) -> None:
    """A killed writer may leave half a line; the next row must not be glued to it."""
    if path.is_file() and path.stat().st_size:
        lines = path.read_bytes()
        if not lines.endswith(b"\n"):
            path.write_bytes(lines[: lines.rfind(b"\n") + 1])
