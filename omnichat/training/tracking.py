"""What a run writes while it runs: log.jsonl, which is the truth, and beside it wandb and TensorBoard.

A figure has one name everywhere: `loss` of a "step" row of log.jsonl is `step/loss` in wandb and in TensorBoard.
"""

from __future__ import annotations

import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from omnichat.audio.io import load_audio
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import read_json, write_json_atomic
from omnichat.utils.log import get_logger, rank

log = get_logger(__name__)
WANDB_MODES = ("offline", "online", "disabled")
MIRRORED = ("step", "dev")  # rows whose figures go to wandb and TensorBoard
SAMPLE_RATE_HZ = 16_000  # of recordings in TensorBoard
# A tracker must not hold up a run: these are how long wandb may take to begin and to end, in seconds.
WANDB_INIT_SEC = 30.0
WANDB_FINISH_SEC = 60.0


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    """Where figures go besides log.jsonl."""

    wandb: str = "offline"  # offline | online | disabled
    project: str = "omnichat"  # wandb project
    tensorboard: bool = False  # event files in <run>/tensorboard

    def __post_init__(self) -> None:
        if self.wandb not in WANDB_MODES:
            raise one_of("tracking.wandb", self.wandb, WANDB_MODES)


def check_tracking(config: TrackingConfig) -> None:
    """Raise UserError if a library that the config asks for is missing."""
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("tracking.tensorboard=true needs the package tensorboard: pip install omnichat[tensorboard]")


class _Sink(Protocol):
    """One place besides log.jsonl. Anything may raise; the Tracker then goes on without it."""

    def resumed(self, step: int) -> None:
        """The run goes on after `step`."""

    def figures(self, step: int, figures: dict[str, float]) -> None:
        """Take the figures of a step."""

    def samples(self, step: int, rows: Sequence[dict[str, Any]], audio: dict[str, Path]) -> None:
        """Take sample replies, and the recordings (by id of the row) that it has not seen yet."""

    def close(self) -> None:
        """Write what is left."""


class Tracker:
    """Appends rows to log.jsonl, one JSON object a line, flushed at once; mirrors figures to its sinks. Rank 0 only.

    A sink that fails is dropped with one warning: no tracker may end a run.

    Args:
        run: the run's folder.
        config: which sinks.
        run_config: the whole config, for wandb.
    """

    def __init__(self, run: Path, config: TrackingConfig, run_config: dict[str, Any]) -> None:
        self.run = run
        self._log = None
        self._sinks: dict[str, _Sink] = {}
        self._audio_sent: set[str] = set()
        if rank() != 0:
            return
        run.mkdir(parents=True, exist_ok=True)
        _end_torn_line(run / "log.jsonl")
        self._log = open(run / "log.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (closed by finish)
        if config.wandb != "disabled":
            self._guard("wandb", lambda: self._sinks.update(wandb=_Wandb(run, config, run_config)))
        if config.tensorboard:
            self._guard("tensorboard", lambda: self._sinks.update(tensorboard=_TensorBoard(run)))

    def row(self, event: str, **values: Any) -> None:
        """Write one row."""
        if self._log is None:
            return
        self._log.write(json.dumps({"event": event, **values}) + "\n")
        self._log.flush()
        if event == "resume":
            self._each(lambda sink: sink.resumed(values["step"]))
        if event in MIRRORED:
            numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float) and k != "step"}
            figures = {f"{event}/{name}": value for name, value in numbers.items()}
            self._each(lambda sink: sink.figures(values["step"], figures))

    def samples(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Mirror sample replies (see `samples.Sampler`); their own file is the truth."""
        if self._log is None or not rows:
            return
        self.row("samples", step=step, file=f"samples/step-{step:06d}.jsonl", count=len(rows))
        audio = {row["id"]: self.run / row["audio"] for row in rows if row["audio"] is not None}
        new = {name: path for name, path in audio.items() if name not in self._audio_sent}
        self._each(lambda sink: sink.samples(step, rows, new))
        self._audio_sent |= set(new)

    def finish(self) -> None:
        """Close log and sinks."""
        if self._log is not None:
            self._log.close()
            self._log = None
        self._each(lambda sink: sink.close())
        self._sinks = {}

    def _each(self, call: Callable[[_Sink], None]) -> None:
        for name, sink in list(self._sinks.items()):
            self._guard(name, lambda sink=sink: call(sink))  # type: ignore[misc]

    def _guard(self, name: str, call: Callable[[], None]) -> None:
        """Call a sink; whatever it raises drops it, and is said once."""
        try:
            call()
        except Exception as error:
            self._sinks.pop(name, None)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            log.warning("%s failed and gets nothing more of this run; log.jsonl goes on: %s", name, reason)


class _Wandb:
    """A wandb run whose id stays in the run folder, so that a resumed run continues it."""

    def __init__(self, run: Path, config: TrackingConfig, run_config: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self._library = wandb
        path = run / "tracking.json"
        again = path.is_file()
        name = read_json(path)["wandb_id"] if again else uuid.uuid4().hex[:12]
        write_json_atomic(path, {"wandb_id": name, "project": config.project})
        mode = config.wandb
        if mode == "online" and not wandb.login(prompt=False, verify=False):  # a prompt would hold the run up
            log.warning("wandb: nobody is logged in (wandb login, or WANDB_API_KEY); this run is kept offline")
            mode = "offline"
        if again and mode == "offline":
            # The library resumes nothing offline: it begins another folder, which its upload joins by the id.
            log.info(
                "wandb: one more offline folder of run %s; `wandb sync %s/wandb/offline-run-*` joins them", name, run
            )
        try:
            self._run = self._begin(run, config, run_config, name, mode)
        except wandb.errors.Error as error:
            if mode == "offline":
                raise
            log.warning("wandb: cannot go online, so this run is kept offline: %s", str(error).splitlines()[0])
            self._run = self._begin(run, config, run_config, name, "offline")

    def _begin(self, run: Path, config: TrackingConfig, run_config: dict[str, Any], name: str, mode: str) -> Any:
        return self._library.init(
            dir=str(run),
            id=name,
            resume="allow" if mode == "online" else None,
            project=config.project,
            name=run.name,
            mode=cast("Literal['offline', 'online']", mode),
            config=run_config,
            settings=self._library.Settings(
                console="off", init_timeout=WANDB_INIT_SEC, finish_timeout=WANDB_FINISH_SEC, silent=True
            ),
        )

    def resumed(self, step: int) -> None:
        """Nothing to do: rows that it has are passed over by their step, and the repeated ones are the same."""

    def figures(self, step: int, figures: dict[str, float]) -> None:
        self._run.log(figures, step=step)

    def samples(self, step: int, rows: Sequence[dict[str, Any]], audio: dict[str, Path]) -> None:
        columns: list[str | int] = ["id", "heard", "reference", "reply"]
        table = self._library.Table(columns=columns, data=[[row[str(name)] for name in columns] for row in rows])
        media: dict[str, Any] = {"samples/replies": table}
        for name, path in audio.items():
            media[f"samples/{name}"] = self._library.Audio(str(path), caption=name)
        self._run.log(media, step=step)

    def close(self) -> None:
        self._run.finish()


class _TensorBoard:
    """Event files in <run>/tensorboard. They are begun at the first figure: only then is known where it resumes."""

    def __init__(self, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make = SummaryWriter
        self._folder = run / "tensorboard"
        self._purge_step: int | None = None
        self._writer: Any = None

    def _open(self) -> Any:
        if self._writer is None:
            self._writer = self._make(str(self._folder), purge_step=self._purge_step)
        return self._writer

    def resumed(self, step: int) -> None:
        self._purge_step = step + 1  # what a killed run wrote after its last checkpoint is written anew

    def figures(self, step: int, figures: dict[str, float]) -> None:
        writer = self._open()
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def samples(self, step: int, rows: Sequence[dict[str, Any]], audio: dict[str, Path]) -> None:
        writer = self._open()
        for row in rows:
            text = "\n\n".join(f"{title}: {row[title]}" for title in ("heard", "reference", "reply"))
            writer.add_text(f"samples/{row['id']}", text, step)
        for name, path in audio.items():
            writer.add_audio(f"samples/{name}", load_audio(path, SAMPLE_RATE_HZ), step, SAMPLE_RATE_HZ)
        writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _end_torn_line(path: Path) -> None:
    """A killed writer may leave half a line; the next row must not be glued to it."""
    if path.is_file() and path.stat().st_size:
        lines = path.read_bytes()
        if not lines.endswith(b"\n"):
            path.write_bytes(lines[: lines.rfind(b"\n") + 1])
