"""Composing configs in tests, and the families of parts that YAML files name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from omnichat.config import SCHEMAS, config_folder, typed
from omnichat.data.readers.base import Reader
from omnichat.encoders.base import AudioEncoder
from omnichat.evaluation.judge.base import Judge
from omnichat.experiments.layouts.base import Layout
from omnichat.fusion.base import Fusion
from omnichat.model.systems.base import System
from omnichat.model.systems.recogniser import Recogniser
from omnichat.synthesis.base import ScriptWriter, Voice
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.synthesis.engines.base import Engine
from omnichat.synthesis.sounds.base import SoundSource
from omnichat.synthesis.topics.base import TopicSource

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = config_folder()
FAMILIES: dict[str, type] = {  # config group -> base class of its parts
    "expert": AudioEncoder,
    "fusion": Fusion,
    "source": Reader,
    "voice": Voice,
    "writer": ScriptWriter,
    "checks": CheckSuite,
    "topics": TopicSource,
    "events": SoundSource,
    "music": SoundSource,
    "engine": Engine,
    "layout": Layout,
    "judge": Judge,
    "system": System,
    "asr": Recogniser,
}
# Arguments that come from the program and not from the config.
GIVEN = {"fusion": ("specs", "out_width", "out_rms"), "engine": ("workers",)}
NEEDED = {  # mandatory settings that a verb has no default for
    "evaluate": ["run=some/run"],
    "score": ["predictions=some/file.jsonl"],
    "judge": ["predictions=some/run"],
    "speak": ["predictions=some/run"],
    "chat": ["run=some/run"],
    "serve": ["run=some/run"],
    "report": ["runs=some/runs"],
    "export": ["run=some/run", "out=some/out"],
    "data": ["path=some/corpus"],
    "prepare": ["path=some/corpus", "out=some/out"],
}


def files(group: str) -> list[str]:
    """Names of the options of a config group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def composed(verb: str, overrides: Sequence[str] = ()) -> Any:
    """Hydra's tree of a verb."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        return compose(verb, overrides=list(overrides))


def config(verb: str, overrides: Sequence[str] = ()) -> Any:
    """The verb's config through the typed door."""
    return typed(composed(verb, overrides), SCHEMAS[verb])
