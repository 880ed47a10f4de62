"""`omnichat web`: talk to trained models on a web page."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from omnichat.chat.address import address_of, listen
from omnichat.chat.base import Talker
from omnichat.chat.talking.desk import Desk
from omnichat.chat.talking.examples import Examples
from omnichat.chat.talking.shelf import Choice
from omnichat.chat.talking.speech import Speech
from omnichat.config import WebRun
from omnichat.experiments.run_list import find_runs, summarise
from omnichat.experiments.runs import setting
from omnichat.synthesis.base import Voice
from omnichat.talk import open_talker
from omnichat.training.checkpoint import checkpoints
from omnichat.utils.errors import UserError
from omnichat.utils.extras import of_extra
from omnichat.utils.files import read_json
from omnichat.utils.log import get_logger
from omnichat.utils.parts import build_part

log = get_logger(__name__)


def run(config: WebRun) -> None:
    """Serve the page until Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="omnichat-web-") as made:
        folder = Path(made).resolve()
        # Read at gradio's import: where uploads go, and that nothing is told to its makers.
        os.environ["GRADIO_TEMP_DIR"], os.environ["GRADIO_ANALYTICS_ENABLED"] = str(folder), "False"
        with of_extra("omnichat web", "web", "gradio", "fastapi", "uvicorn"):
            from omnichat.chat.web.server import serve
            from omnichat.chat.web.talk_page import talk_app
        config.password()  # what is wrong is said at once, before anything is loaded
        choices = model_choices(config)
        examples = None if config.examples is None else Examples(config.examples, config.shown_examples)
        speech = None if config.voice is None else Speech(build_part(config.voice, "voice", Voice), config.seed)
        with listen(config.host, config.port) as listening:
            desk = Desk(choices, config, speech)
            with desk.shelf.use(choices[0].name):
                log.info("%s is loaded", choices[0].name)
            app = talk_app(desk, config, folder, examples)
            address = f"{address_of(listening)}/"
            told = f"{len(choices)} model{'s' if len(choices) > 1 else ''}: {address}   (Ctrl-C ends it)"
            serve(app, listening, lambda: print(told, flush=True))
    print(f"next: omnichat evaluate run={config.run or config.runs}")


def model_choices(config: WebRun) -> list[Choice]:
    """The models of the page: the one that was named first, then the runs with a checkpoint.

    Raises:
        UserError: none is named and none is found.
    """
    found: dict[str, Choice] = {}
    root = Path(config.runs).expanduser() if config.runs is not None else None
    folders = find_runs(root) if root is not None and (root.is_dir() or config.run is None) else []
    with_weights = {folder.resolve(): folder for folder in folders if checkpoints(folder / "checkpoints")}
    names = {place: _name_below(root, folder) for place, folder in with_weights.items() if root is not None}
    if config.run is not None:
        named = Path(config.run).expanduser()
        # A long path would hide the name.
        short = "/".join(named.parts[-2:]) if named.is_dir() else config.run
        name = names.get(named.resolve(), config.run if short in names.values() else short)
        found[name] = _choice(config, name, named)
    for place, name in names.items():
        found.setdefault(name, _choice(config, name, with_weights[place]))
    if not found:
        raise UserError(f"runs={config.runs}: no run has a checkpoint yet; train one, or name a model as run=...")
    return list(found.values())


def _name_below(root: Path, folder: Path) -> str:
    return str(folder.relative_to(root)) if folder != root else folder.name


def _choice(config: WebRun, name: str, path: Path) -> Choice:
    """A run folder, an exported folder or a hub id as a choice, with what its small files say of it."""

    def load() -> Talker:
        return open_talker(str(path) if path.is_dir() else config.run or name, config)

    if (path / "config.yaml").is_file():
        summary, figures = summarise(path, name, 0.0)
        return Choice(name, load, _text(summary.input), _number(summary.alpha), figures.get("test/emotion_f1"))
    saved = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    facts = setting(saved, "facts")
    facts = facts if isinstance(facts, dict) else {}
    metrics = _emotion_f1(facts.get("metrics.json"))
    return Choice(name, load, _text(setting(saved, "chat.input")), _number(facts.get("alpha")), metrics)


def _number(value: Any) -> float | None:
    """A file may hold anything in a number's place."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _emotion_f1(rows: Any) -> float | None:
    """Of the test dialogues of a model that was exported with its metrics."""
    wanted = {"split": "test", "scenario": "all", "metric": "emotion_f1"}
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and wanted.items() <= row.items() and isinstance(row.get("value"), int | float):
            return float(row["value"])
    return None
