"""The run folder of a baseline: the files of a trained run, as far as there is anything to say."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from omnichat.baseline_config import BaselineRun
from omnichat.config import to_plain
from omnichat.model.systems.base import System
from omnichat.run_folder import clear_requeue, first_error_counts, hardware, source_facts, versions, write_requeue
from omnichat.schema import Dialogue
from omnichat.training.data import Source
from omnichat.training.samples import keep_recording
from omnichat.training.trainer import Stopped
from omnichat.utils.errors import UserError
from omnichat.utils.files import check_writable, read_json, write_json_atomic, write_text_atomic

_SETS_NO_REPLY = ("name", "runs", "split", "limit", "replies", "batch_size", "audio_samples", "score")
_BEAT_SEC = 60.0  # between signs of life in log.jsonl


class Folder:
    """The folder of a baseline's run.

    Args:
        config: of the verb.
        system: what answers; not loaded yet.
        sources: that it is tested on.

    Attributes:
        facts: what `run.json` says of the system. warnings: what the report shall say.

    Raises:
        UserError: the folder holds another run, or cannot be written to.
    """

    def __init__(self, config: BaselineRun, system: System, sources: Sequence[Source]) -> None:
        self.config, self.system, self.sources = config, system, sources
        self.name = config.name if config.name != "auto" else auto_name(config, system)
        self.path = Path(config.runs).expanduser() / self.name
        check_writable(self.path, "runs")
        self.plain = to_plain(config) | {
            "name": self.name,
            "chat": {"input": system.input},
            "llm": {"path": self._llm()},
        }
        self._refuse_another()
        self.facts: dict[str, Any] = {}
        self.warnings: list[str] = []
        self._earlier_sec = 0.0
        self._last_beat = time.monotonic()

    @contextmanager
    def running(self, started: float) -> Iterator[None]:
        """Write config.yaml, data.json and run.json now, and run.json again at the end, however it comes."""
        self.path.mkdir(parents=True, exist_ok=True)
        clear_requeue(self.path, "baseline")
        if (self.path / "run.json").is_file():
            self._earlier_sec = float(read_json(self.path / "run.json").get("wall_seconds", 0.0))
        text = yaml.safe_dump(self.plain, sort_keys=False, allow_unicode=True)
        write_text_atomic(self.path / "config.yaml", text)
        self._write_data()
        self._write_run("running", started)
        self._log("baseline", system=self.system.name, split=self.config.split)
        state = "failed"
        try:
            yield
            state = "finished"
        except Stopped as stopped:
            state = "stopped"
            write_requeue(self.path, "baseline", stopped)
            raise
        finally:
            with first_error_counts():
                self._log("end", state=state)
                self._write_run(state, started)

    def beat(self, done: int, of: int) -> None:
        """A sign of life for `omnichat runs`, now and then."""
        if time.monotonic() - self._last_beat >= _BEAT_SEC:
            self._last_beat = time.monotonic()
            self._log("answered", split=self.config.split, replies=done, of=of)

    def recordings(self, asked: Sequence[tuple[Source, Dialogue, int]]) -> dict[int, str]:
        """Keep the heard turn's recording of the first replies of each scenario: number of the reply -> path inside."""
        taken: Counter[str] = Counter()
        kept: dict[int, str] = {}
        for number, (source, dialogue, turn) in enumerate(asked):
            if dialogue.turns[turn - 1].audio is None or taken[dialogue.scenario] >= self.config.audio_samples:
                continue
            taken[dialogue.scenario] += 1
            kept[number] = keep_recording(source, dialogue, turn - 1, self.path, "predictions")
        return kept

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Write the split's figures beside those of other splits, and print them."""
        path = self.path / "metrics.json"
        older = [row for row in read_json(path) if row["split"] != self.config.split] if path.is_file() else []
        write_json_atomic(path, older + rows)
        for row in rows:
            if row["scenario"] == "all":
                low, high = row["ci95"]
                print(f"{row['metric']:<28} {row['value']:8.3f}   [{low:.3f}, {high:.3f}]   n={row['n']}")
        print(f"metrics: {path}")

    def _llm(self) -> str:
        """Which model answers, for the report's table."""
        if self.config.run is not None:
            return f"run {Path(self.config.run).name}"
        node = self.config.system
        return str(node.get("llm", node).get("path"))

    def _refuse_another(self) -> None:
        """A folder holds one baseline: its splits may come one after the other, other settings need another name."""
        path = self.path / "config.yaml"
        if not path.is_file():
            return
        try:
            saved = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
        if not isinstance(saved, dict) or "system" not in saved:
            raise UserError(f"{self.path}: holds a trained run; give the baseline another name=...")
        for key, value in self.plain.items():
            if key not in _SETS_NO_REPLY and saved.get(key) != value:
                raise UserError(
                    f"{self.path}: holds a baseline with another {key}; give this one another name=..., or remove the "
                    "folder"
                )

    def _write_data(self) -> None:
        """The corpora; nothing was drawn from them to train on."""
        sources = [source_facts(source) | {"drawn": 0} for source in self.sources]
        write_json_atomic(self.path / "data.json", {"alpha": None, "trained": False, "sources": sources})

    def _write_run(self, state: str, started: float) -> None:
        parameters = self.facts.get("parameters", self.facts.get("llm", {}).get("parameters", 0))
        value = {
            "name": self.name,
            "state": state,
            "baseline": self.facts,
            "warnings": self.warnings,
            "experts": [],
            "parameters": {"trainable": 0, "frozen": parameters},
            "fusion": None,
            "hardware": hardware(),
            "versions": versions(),
            "wall_seconds": round(self._earlier_sec + time.time() - started, 1),
            "command": shlex.join(["omnichat", "baseline", *sys.argv[1:]]),
        }
        write_json_atomic(self.path / "run.json", value)

    def _log(self, event: str, **fields: Any) -> None:
        with open(self.path / "log.jsonl", "a", encoding="utf-8") as handle:
            handle.write(json.dumps({"event": event, "time": round(time.time(), 1), **fields}) + "\n")


def auto_name(config: BaselineRun, system: System) -> str:
    """`<system>-<model>-<shots>`, e.g. cascade-smollm2-shots4; a trained LLM has no shots."""
    if config.run is not None:
        parts = [
            system.name,
            Path(config.run).resolve().name,
            *([] if config.checkpoint == "last" else [config.checkpoint]),
        ]
    else:
        node = config.system
        path = str(node.get("llm", node).get("path"))
        leaf = path.removeprefix("asset:").rstrip("/").rpartition("/")[2]
        shots = f"shots{config.shots}" + ("" if config.shots_from == "prompts" else f"train-seed{config.seed}")
        parts = [system.name, leaf, shots]
    return re.sub(r"[^\w.=,+-]+", "_", "-".join(parts))
