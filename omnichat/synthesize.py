"""`omnichat synthesize`: scripts, voices, scenes and checks -> a corpus folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omnichat.config import SynthesizeRun
from omnichat.synthesis.base import ScriptWriter, Voice
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.synthesis.engines.base import Engine
from omnichat.synthesis.pipeline import PLAN, SCRIPTS, next_stage, synthesize
from omnichat.synthesis.scenes.maker import SceneMaker
from omnichat.synthesis.sounds.base import SoundSource
from omnichat.synthesis.tally import Made
from omnichat.synthesis.topics.base import TopicSource
from omnichat.utils.files import check_writable
from omnichat.utils.parts import build_part, check_part

PARTS: dict[str, type] = {
    "topics": TopicSource,
    "events": SoundSource,
    "music": SoundSource,
    "writer": ScriptWriter,
    "voice": Voice,
    "checks": CheckSuite,
    "engine": Engine,
}
GIVEN = {"engine": ("workers",)}  # arguments that come from other settings
HEARD_IN = {"events": "audio", "music": "music"}  # source of sounds -> scenario


def build(config: SynthesizeRun) -> dict[str, Any]:
    """The parts of a config, as the arguments of `synthesize`; sources of sounds only where a dialogue hears them."""
    asked = {scenario for scenario, splits in config.dialogues.items() if any(splits.values())}
    parts = {
        key: build_part(getattr(config, key), key, base)
        for key, base in PARTS.items()
        if key not in GIVEN and (key not in HEARD_IN or HEARD_IN[key] in asked)
    }
    parts["engine"] = build_part(config.engine, "engine", Engine, workers=config.workers)
    events, music = parts.pop("events", None), parts.pop("music", None)
    return parts | {"scenes": SceneMaker(config.scene, events, music, parts["voice"].sample_rate)}


def run(config: SynthesizeRun) -> None:
    """Make the corpus, or go as far as `until`; a second call with the same settings continues."""
    for key, base in PARTS.items():
        check_part(getattr(config, key) or {}, key, base, GIVEN.get(key, ()))
    check_writable(Path(config.out), "out")
    made = synthesize(config, **build(config))
    if made.corpus is None:
        print(_where_it_ended(config, made))
        return
    summary = made.corpus.summary()
    print(f"{made.corpus.root}: {summary['dialogues']} dialogues, {summary['turns']} turns, {summary['hours']:.2f} h")
    print(f"data card: {made.corpus.root / 'card.html'}")
    print(f"next: omnichat train mixture.sources.sharechatx.path={made.corpus.root}")


def _where_it_ended(config: SynthesizeRun, made: Made) -> str:
    """What a run that made no corpus has done, and the command that goes on."""
    kept = made.work.root
    if config.shard is not None and config.until == "corpus":
        done = f"shard {config.shard}: {len(made.outcomes)} of {len(made.stems)} dialogues are finished in {kept}"
        return f"{done}\nnext, when all shards are done: the same command without shard"
    facts = {
        "plan": f"{len(made.stems)} dialogues planned: {kept / PLAN}",
        "scripts": f"{len(made.scripts)} of {len(made.stems)} scripts written: {kept / SCRIPTS}",
        "speech": f"{len(made.outcomes)} of {len(made.stems)} dialogues spoken: {kept / 'speech'}",
        "checks": f"{len(made.outcomes)} of {len(made.stems)} dialogues passed their checks",
        "scenes": f"{len(made.outcomes)} of {len(made.stems)} dialogues finished: {kept / 'stems'}",
    }
    return f"{facts.get(config.until, '')}\nnext: the same command with until={next_stage(config.until)}, or without it"
