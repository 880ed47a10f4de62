"""Making one dialogue: speak a script, check it, mix its scene, write its clips. Runs in a worker process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omnichat.audio.io import encode_audio
from omnichat.schema import Style
from omnichat.synthesis.base import Script, Voice, Wave
from omnichat.synthesis.checks.base import Clip, Finding
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.synthesis.plan import Stem
from omnichat.synthesis.scene import SceneLibrary
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
    {"speaker", "text", "style", "file", "seconds", "sample_rate", "sha256", "asr_text"}.
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
    library: SceneLibrary
    seed: int
    speech_level_db: float


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
    clips = _speak(job, parts)
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
        heard = _mix_scene(job.stem, {key: clip.wave_N for key, clip in clips.items()}, parts)
        clock.lap("scene")
        texts = [c.get("asr_text") for c in findings["words"].clips] if "words" in findings else [None] * len(clips)
        for (key, clip), asr_text in zip(clips.items(), texts, strict=True):
            content = encode_audio(heard[key], clip.sample_rate)
            (temporary / f"{key}.flac").write_bytes(content)
            outcome.turns[key] = _turn_json(key, clip, heard[key], content, asr_text)
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
    clips = {}
    for key, (speaker, text, style) in lines.items():
        name = stem.user_voice if speaker == "A" else stem.model_voice
        seed = derive_seed(parts.seed, "speak", stem.id, job.attempt, text)
        wave, rate = parts.voice.speak(text, name, style, seed)
        clips[key] = Clip(wave, rate, text, name, style)
    return clips


def _mix_scene(stem: Stem, waves: Mapping[str, Wave], parts: Parts) -> dict[str, Wave]:
    """Add the background: an event to the current turn, or music to every turn. Variants share the background."""
    mixed = dict(waves)
    if stem.sound is None or stem.snr_db is None or stem.placement is None:
        return mixed
    seed = derive_seed(parts.seed, "scene", stem.id)
    history = [key for key in waves if key.startswith("h")]
    for index in range(len(stem.styles)):
        user, reply = f"u{index}", f"r{index}"
        if stem.placement == "loop":
            keys = [*history, user, reply]
            turns = [waves[key] for key in keys]
            beds = parts.library.with_music(turns, stem.sound, seed, parts.speech_level_db, stem.snr_db)
            mixed |= dict(zip(keys, beds, strict=True))
        else:
            mixed[user] = parts.library.with_event(
                waves[user], stem.sound, stem.split, seed, stem.placement, stem.snr_db
            )
    return mixed


def _turn_json(key: str, clip: Clip, heard: Wave, content: bytes, asr_text: str | None) -> dict[str, Any]:
    speaker = "A" if key.startswith("u") or (key.startswith("h") and int(key[1:]) % 2 == 0) else "B"
    return {
        "speaker": speaker,
        "text": clip.text,
        "style": asdict(clip.style),
        "file": f"{key}.flac",
        "seconds": len(heard) / clip.sample_rate,
        "sample_rate": clip.sample_rate,
        "sha256": sha256_bytes(content),
        "asr_text": asr_text,
    }


def write_background(library: SceneLibrary, name: str, path: Path) -> None:
    """Keep a background recording beside the corpus, at the corpus's rate."""
    if not path.is_file():
        write_bytes_atomic(path, encode_audio(library.load(name).clip(-1.0, 1.0), library.sample_rate))


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
