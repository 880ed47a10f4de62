"""`omnichat synthesize`: scripts, voices, scenes and checks -> a corpus folder."""

from __future__ import annotations

from pathlib import Path

from omnichat.config import SynthesizeRun
from omnichat.synthesis.base import ScriptWriter, Voice
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.synthesis.pipeline import synthesize
from omnichat.utils.files import check_writable
from omnichat.utils.parts import build_part, check_part


def run(config: SynthesizeRun) -> None:
    """Make the corpus; a second call with the same settings continues one that was stopped."""
    for key, base in (("writer", ScriptWriter), ("voice", Voice), ("checks", CheckSuite)):
        check_part(getattr(config, key) or {}, key, base)
    check_writable(Path(config.out), "out")
    writer = build_part(config.writer, "writer", ScriptWriter)
    voice = build_part(config.voice, "voice", Voice)
    checks = build_part(config.checks, "checks", CheckSuite)
    corpus = synthesize(config, writer, voice, checks)
    summary = corpus.summary()
    print(f"{corpus.root}: {summary['dialogues']} dialogues, {summary['turns']} turns, {summary['hours']:.2f} h")
    print(f"data card: {corpus.root / 'card.html'}")
    print(f"next: omnichat train mixture.sources.sharechatx.path={corpus.root}")
