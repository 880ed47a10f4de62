"""Making one dialogue: speak a script, check it, mix its scene, write its clips. Runs in a worker process."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import soundfile

from omnichat.audio.io import encode_audio
from omnichat.synthesis.base import ClipFailed, Script, Sound, Utterance, Voice, Wave
from omnichat.synthesis.checked_voice import CheckedVoice
from omnichat.synthesis.checks.base import Clip, Finding
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.synthesis.plan import Stem
from omnichat.synthesis.scenes.compose import Composed
from omnichat.synthesis.scenes.maker import SceneMaker
from omnichat.synthesis.scenes.plan import speaker_of
from omnichat.synthesis.takes import Judged, Take, judge
from omnichat.synthesis.work import OUTCOME, WorkFolder, read_value, read_whole, remove, write_value, write_whole
from omnichat.utils.errors import UserError
from omnichat.utils.files import sha256_bytes, write_bytes_atomic
from omnichat.utils.log import get_logger
from omnichat.utils.seeding import derive_seed

log = get_logger(__name__)


@dataclass(slots=True)
class Outcome:
    """What came of one attempt at one dialogue: JSON that a resumed run reads back.

    `turns` maps a key ("h0", "h1", .. history; "u0", "r0", .. user turn and reply of variant 0, ..) to
    {"speaker", "text", "style", "file", "seconds", "sample_rate", "sha256", "asr_text"}, and where the scene has them
    "start_seconds" and "backchannels"; `findings` maps a check's name to its finding after the last of the `takes`
    (`takes.Take`); `speech_sec` is the length of all clips, those that a take replaced included.
    """

    stem: str
    key: str
    attempt: int
    reasons: list[str] = field(default_factory=list)
    topic: str = ""
    speech_sec: float = 0.0
    turns: dict[str, dict[str, Any]] = field(default_factory=dict)
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)
    takes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def accepted(self) -> bool:
        """Whether nothing has rejected it, as far as it was made."""
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
    work: WorkFolder
    until: str = "corpus"  # the stage after which a run stops; from "scenes" on there is nothing left to do here


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt at one dialogue; `key` names its place in the work folder."""

    stem: Stem
    attempt: int
    script: Script
    key: str


def make_stem(job: Job, parts: Parts) -> tuple[Outcome, dict[str, float]]:
    """Carry out a job up to the stage `parts.until`, from where an earlier run left it.

    Returns:
        The outcome and the seconds spent in each stage (empty if all was there already).
    """
    if (done := _finished(job, parts.work.finished(job.key))) is not None:
        return done, {}
    clock = _Clock()
    outcome = Outcome(job.stem.id, job.key, job.attempt, topic=job.script.topic)
    try:
        spoken = _spoken(job, parts, clock)
    except ClipFailed as error:
        clock.lap("voice")
        outcome.reasons = [error.reason]
        _finish(job, parts, {}, outcome, clock)
        return outcome, clock.seconds
    clips = {key: clip for key, clip in spoken.items() if not key.startswith("k")}  # "mm-hm" is no turn
    outcome.speech_sec = sum(clip.seconds for clip in clips.values())
    if parts.until == "speech":
        return outcome, clock.seconds
    try:
        judged = _checked(job, parts, clips, clock)
    except ClipFailed as error:  # a take that an earlier run heard cannot be spoken any more
        judged = Judged(clips)
        outcome.reasons = [error.reason]
    outcome.reasons += [reason for finding in judged.findings.values() for reason in finding.reasons]
    outcome.findings = {name: asdict(finding) for name, finding in judged.findings.items()}
    outcome.takes = [asdict(take) for take in judged.takes]
    outcome.speech_sec += judged.again_sec
    spoken |= judged.clips
    if parts.until == "checks" and outcome.accepted:
        return outcome, clock.seconds
    _finish(job, parts, spoken, outcome, clock)
    return outcome, clock.seconds


def _finished(job: Job, folder: Path) -> Outcome | None:
    """What an earlier run finished, if it is whole and this job's; a damaged folder is removed, to be made again."""
    if (files := read_whole(folder)) is None:
        return None
    try:
        outcome = Outcome(**json.loads(files[OUTCOME]))
        if (outcome.stem, outcome.key, outcome.attempt) != (job.stem.id, job.key, job.attempt):
            raise UserError(f"{folder / OUTCOME}: is another attempt's")
        for key, raw in outcome.turns.items():
            name = f"{key}.flac"
            if raw["file"] != name or raw["sha256"] != sha256_bytes(files[name]):
                raise UserError(f"{folder / name}: is not the one of {OUTCOME}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("%s is damaged and is made again (%s)", folder, error)
        remove(folder)
        return None
    return outcome


def _spoken(job: Job, parts: Parts, clock: _Clock) -> dict[str, Clip]:
    """The clean clips by key, from the work folder where they are there, else spoken now."""
    return _voiced(parts, _lines(job, parts), parts.work.speech(job.key), clock)


def _spoken_again(job: Job, parts: Parts, take: Take, number: int, clock: _Clock) -> dict[str, Clip]:
    """The clips of a further take; its seeds are those of the words in this take."""
    lines = {
        key: replace(
            line,
            seed=derive_seed(parts.seed, "speak", job.stem.id, job.attempt, line.text, "take", number),
            stretch=take.turns[key],
        )
        for key, line in _lines(job, parts).items()
        if key in take.turns
    }
    return _voiced(parts, lines, parts.work.speech(_take_key(job, number)), clock)


def _take_key(job: Job, number: int) -> str:
    return f"{job.key}-{number}"


def _voiced(parts: Parts, lines: Mapping[str, Utterance], folder: Path, clock: _Clock) -> dict[str, Clip]:
    """Clips of lines, from a folder where they are there, else spoken now."""
    names = [f"{key}.flac" for key in lines]
    contents = read_whole(folder, names)
    if contents is None:
        spoken = CheckedVoice(parts.voice).speak_batch(list(lines.values()))
        rate = parts.voice.sample_rate
        contents = {f"{key}.flac": encode_audio(wave, rate) for key, wave in zip(lines, spoken, strict=True)}
        clock.lap("voice")
        if parts.until in ("speech", "checks") or not parts.voice.reproducible:
            write_whole(folder, contents)
            contents = read_whole(folder, names) or contents  # another process may have been first
    # As 16-bit samples in any case: a stage that reads them from disk measures what one in memory measured.
    waves = {key: _decode(contents[f"{key}.flac"]) for key in lines}
    clock.lap("encode")
    return {
        key: Clip(waves[key], parts.voice.sample_rate, line.text, line.speaker, line.style)
        for key, line in lines.items()
    }


def _lines(job: Job, parts: Parts) -> dict[str, Utterance]:
    """Every line once; the seed of a line is that of its words, so variants differ by style alone."""
    stem = job.stem
    return {
        key: Utterance(
            line.text,
            stem.user_voice if line.speaker == "A" else stem.model_voice,
            line.style,
            derive_seed(parts.seed, "speak", stem.id, job.attempt, line.text),
        )
        for key, line in (job.script.lines() | parts.scenes.lines(stem.scene)).items()
    }


def _checked(job: Job, parts: Parts, clips: Mapping[str, Clip], clock: _Clock) -> Judged:
    """What the checks say, and the clips of which they say it: turns at fault are spoken again."""

    def speak(take: Take, number: int) -> dict[str, Clip]:
        return _spoken_again(job, parts, take, number, clock)

    path = parts.work.checks(job.key)
    if (kept := read_value(path)) is not None:
        judged = Judged(dict(clips), {name: Finding(**value) for name, value in kept["findings"].items()})
        for raw in kept["takes"]:
            judged.takes.append(take := Take(**raw))
            if take.failed is None:
                judged.hear(take, speak)
        return judged
    judged = judge(parts.checks, clips, speak, clock.lap)
    if parts.until == "checks" and not any(finding.reasons for finding in judged.findings.values()):
        findings = {name: asdict(finding) for name, finding in judged.findings.items()}
        write_value(path, {"findings": findings, "takes": [asdict(take) for take in judged.takes]})
    return judged


def _finish(job: Job, parts: Parts, spoken: Mapping[str, Clip], outcome: Outcome, clock: _Clock) -> None:
    """Put the dialogue into its scene, write the clips and the outcome, and clear what earlier stages left for this."""
    files: dict[str, bytes] = {}
    if outcome.accepted:
        stem, seed = job.stem, derive_seed(parts.seed, "scene", job.stem.id)
        waves = {key: clip.wave_N for key, clip in spoken.items()}
        heard = parts.scenes.compose(waves, stem.scene, len(stem.styles), stem.split, seed)
        clock.lap("scene")
        turns = {key: clip for key, clip in spoken.items() if not key.startswith("k")}
        words = outcome.findings.get("words", {"clips": [{} for _ in turns]})["clips"]
        for (key, clip), measured in zip(turns.items(), words, strict=True):
            content = encode_audio(heard.waves[key], clip.sample_rate)
            files[f"{key}.flac"] = content
            outcome.turns[key] = _turn_json(key, clip, heard, content, measured.get("asr_text"))
    write_whole(parts.work.finished(job.key), files, {OUTCOME: asdict(outcome)})
    for key in (job.key, *(_take_key(job, number) for number in range(1, parts.checks.max_retakes + 1))):
        remove(parts.work.speech(key))
    remove(parts.work.checks(job.key))
    clock.lap("write")


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


def _decode(content: bytes) -> Wave:
    return soundfile.read(io.BytesIO(content), dtype="float32")[0]


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
