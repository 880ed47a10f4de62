"""`omnichat synthesize`: scripts, voices, scenes and checks -> a corpus folder."""

from __future__ import annotations

from pathlib import Path

from omnichat.config import SynthesizeRun
from omnichat.synthesis.base import ScriptWriter, Voice
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.synthesis.pipeline import synthesize
from omnichat.synthesis.scenes.maker import SceneMaker
from omnichat.synthesis.sounds.base import SoundSource
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
}


def run(config: SynthesizeRun) -> None:
    """Make the corpus; a second call with the same settings continues one that was stopped."""
    for key, base in PARTS.items():
        check_part(getattr(config, key) or {}, key, base)
    check_writable(Path(config.out), "out")
    writer = build_part(config.writer, "writer", ScriptWriter)
    voice = build_part(config.voice, "voice", Voice)
    checks = build_part(config.checks, "checks", CheckSuite)
    topics = build_part(config.topics, "topics", TopicSource)
    asked = {scenario for scenario, splits in config.dialogues.items() if any(splits.values())}
    events = build_part(config.events, "events", SoundSource) if "audio" in asked else None
    music = build_part(config.music, "music", SoundSource) if "music" in asked else None
    scenes = SceneMaker(config.scene, events, music, voice.sample_rate)
    corpus = synthesize(config, writer, voice, checks, scenes, topics)
    summary = corpus.summary()
    print(f"{corpus.root}: {summary['dialogues']} dialogues, {summary['turns']} turns, {summary['hours']:.2f} h")
    print(f"data card: {corpus.root / 'README.md'}")
    print(f"next: omnichat train mixture.sources.sharechatx.path={corpus.root}")
