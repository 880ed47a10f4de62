"""Making one dialogue: speak a script, check it, mix its scene, write its clips. Runs in a worker process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omnichat.audio.io import encode_audio
from omnichat.schema import Style
from omnichat.synthesis.base import Script, Sound, Voice, Wave
from omnichat.synthesis.checks.base import Clip, Finding
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.synthesis.plan import Stem
from omnichat.synthesis.scenes.compose import Composed
from omnichat.synthesis.scenes.maker import SceneMaker
from omnichat.synthesis.scenes.plan import speaker_of
from omnichat.utils.files import (
    fsync_folder,
    read_json,
    replace_folder,
    sha256_bytes,
    write_bytes_atomic,
    write_json_atomic,
)
from omnichat.utils.seeding import derive_seed

OUTCOME = "outcome.json"


@dataclass(slots=True)
class Outcome:
    """What came of one attempt at one dialogue: JSON that a resumed run reads back.

    `turns` maps a key ("h0", "h1", .. history; "u0", "r0", .. user turn and reply of variant 0, ..) to
    {"speaker", "text", "style", "file", "seconds", "sample_rate", "sha256", "asr_text"}, and where the scene has them
    "start_seconds" and "backchannels".
    """

    stem: str
    attempt: int
    reasons: list[str] = field(default_factory=list)
    topic: str = ""
    turns: dict[str, dict[str, Any]] = field(default_factory=dict)
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        """Whether no check rejected it."""
        return not self.reasons

    def check_findings(self) -> dict[str, Finding]:
        """The checks' findings as objects."""
        return {name: Finding(**value) for name, value in self.findings.items()}


@dataclass(slots=True)
class Parts:
    """What a worker needs; all of it pickles."""

    voice: Voice
    checks: CheckSuite
    scenes: SceneMaker
    seed: int


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt at one dialogue; `folder` will hold the clips and the outcome."""

    stem: Stem
    attempt: int
    script: Script
    folder: Path


def make_stem(job: Job, parts: Parts) -> tuple[Outcome, dict[str, float]]:
    """Carry out a job, or read its outcome if an earlier run finished it.

    Returns:
        The outcome and the seconds spent in each stage (empty if it was read). The job's folder appears by one rename.
    """
    if (job.folder / OUTCOME).is_file():
        return Outcome(**read_json(job.folder / OUTCOME)), {}
    clock = _Clock()
    spoken = _speak(job, parts)
    clips = {key: clip for key, clip in spoken.items() if not key.startswith("k")}  # "mm-hm" is no turn
    clock.lap("voice")
    findings: dict[str, Finding] = {}
    for name, check in parts.checks.checks.items():
        findings[name] = check.examine(list(clips.values()))
        clock.lap(f"check {name}")
        if findings[name].reasons:
            break
    reasons = [reason for finding in findings.values() for reason in finding.reasons]
    outcome = Outcome(job.stem.id, job.attempt, reasons, job.script.topic)
    outcome.findings = {name: asdict(finding) for name, finding in findings.items()}
    temporary = job.folder.with_name(f".{job.folder.name}.tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    if outcome.accepted:
        heard = _compose(job.stem, {key: clip.wave_N for key, clip in spoken.items()}, parts)
        clock.lap("scene")
        texts = [c.get("asr_text") for c in findings["words"].clips] if "words" in findings else [None] * len(clips)
        for (key, clip), asr_text in zip(clips.items(), texts, strict=True):
            content = encode_audio(heard.waves[key], clip.sample_rate)
            (temporary / f"{key}.flac").write_bytes(content)
            outcome.turns[key] = _turn_json(key, clip, heard, content, asr_text)
        clock.lap("write")
    write_json_atomic(temporary / OUTCOME, asdict(outcome))
    fsync_folder(temporary)
    replace_folder(temporary, job.folder)
    return outcome, clock.seconds


def _speak(job: Job, parts: Parts) -> dict[str, Clip]:
    """Speak every line once; the seed of a line is that of its words, so variants differ by style alone."""
    script, stem = job.script, job.stem
    lines: dict[str, tuple[str, str, Style]] = {}
    for index, line in enumerate(script.history):
        lines[f"h{index}"] = (line.speaker, line.text, line.style)
    for index, variant in enumerate(script.variants):
        lines[f"u{index}"] = ("A", script.current, variant.style)
        lines[f"r{index}"] = ("B", variant.reply.text, variant.reply.style)
    lines |= parts.scenes.lines(stem.scene)
    clips = {}
    for key, (speaker, text, style) in lines.items():
        name = stem.user_voice if speaker == "A" else stem.model_voice
        seed = derive_seed(parts.seed, "speak", stem.id, job.attempt, text)
        wave, rate = parts.voice.speak(text, name, style, seed)
        clips[key] = Clip(wave, rate, text, name, style)
    return clips


def _compose(stem: Stem, waves: Mapping[str, Wave], parts: Parts) -> Composed:
    """Put the dialogue and its variants into their scene."""
    seed = derive_seed(parts.seed, "scene", stem.id)
    return parts.scenes.compose(waves, stem.scene, len(stem.styles), stem.split, seed)


def _turn_json(key: str, clip: Clip, heard: Composed, content: bytes, asr_text: str | None) -> dict[str, Any]:
    turn = {
        "speaker": speaker_of(key),
        "text": clip.text,
        "style": asdict(clip.style),
        "file": f"{key}.flac",
        "seconds": len(heard.waves[key]) / clip.sample_rate,
        "sample_rate": clip.sample_rate,
        "sha256": sha256_bytes(content),
        "asr_text": asr_text,
    }
    if key in heard.start_seconds:
        turn["start_seconds"] = heard.start_seconds[key]
    if key in heard.backchannels:
        turn["backchannels"] = [asdict(said) for said in heard.backchannels[key]]
    return turn


def write_background(scenes: SceneMaker, sound: Sound, path: Path) -> None:
    """Keep a background recording beside the corpus, at the corpus's rate."""
    if not path.is_file():
        write_bytes_atomic(path, encode_audio(scenes.recording(sound), scenes.sample_rate))


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
