"""A stand-in for DailyTalk: everyday dialogues, generated, in exactly the layout of DailyTalk's official release.

DailyTalk itself (Lee et al., 2022, CC-BY-SA 4.0) cannot be shipped. What is made here lets every step that reads real
data run, and is not real data: the folder holds a file STAND_IN that readers look for, and all that is made from the
folder says so. Grammar, voices and wording differ from the synthetic corpus, no words are spoken in two styles, and
most turns carry "no emotion", as in DailyTalk.

    metadata.json                 {"0": {"0": {"index": "0-0", "turn": 6, "topic": 1, "emotion": ..., ...}}}
    data/0/0_1_d0.wav, .txt       <utterance>_<speaker>_d<dialogue>
    DATA.md, STAND_IN
"""

from __future__ import annotations

import random
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from omnichat.audio.io import encode_audio
from omnichat.data.readers.dailytalk import EMOTIONS, STAND_IN_FILE
from omnichat.schema import PITCHES, SPEEDS, Style
from omnichat.synthesis.base import Voice
from omnichat.synthesis.engines.local import LocalEngine
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import replace_folder, write_bytes_atomic, write_json_atomic, write_text_atomic
from omnichat.utils.progress import progress
from omnichat.utils.seeding import derive_seed, python_rng

WRITERS = Path(__file__).parent / "writers"
WORDS = ("everyday", "errands")  # grammars: files in that folder
_NOTICE = """This folder is a stand-in, not DailyTalk.

It has the layout of DailyTalk's official release and holds generated dialogues: sentences from a grammar, spoken by a
speech synthesiser. Figures from it say nothing about DailyTalk.
"""
_DATA_MD = """# Stand-in for DailyTalk

{notice}
| | |
| --- | --- |
| dialogues | {dialogues} |
| turns | {turns} |
| hours | {hours:.3f} |
| speakers 0 and 1 | {voices} |
| sample rate | {rate} Hz |
| seed | {seed} |
| words | grammar of everyday talk ({words}), part of omnichat, Apache-2.0 |
| voice | {voice}, {licence} |

Turns by emotion: {emotions}. Turns by act: {acts}.
"""


@dataclass(kw_only=True, slots=True)
class StandInConfig:
    """A stand-in to be made.

    Attributes:
        out: its folder; replaced when the new one is whole. seed: all randomness derives from it.
        dialogues: how many. workers: processes; any number gives the same folder.
        exchanges: number of exchanges (two turns each) of a dialogue -> probability.
        voices: names of the speakers that are number 0 and number 1; not those of the synthetic corpus.
        emotional_share: probability that an exchange with an emotion is taken where its topic has one.
        words: one of WORDS.
    """

    out: str
    seed: int = 0
    dialogues: int = 60
    workers: int = 2
    exchanges: dict[int, float] = field(default_factory=lambda: {2: 0.5, 3: 0.35, 4: 0.15})
    voices: list[str] = field(default_factory=lambda: ["lea", "max"])
    emotional_share: float = 0.25
    words: str = "everyday"

    def __post_init__(self) -> None:
        if self.words not in WORDS:
            raise one_of("stand_in.words", self.words, WORDS)
        for key in ("dialogues", "workers"):
            if getattr(self, key) < 1:
                raise UserError(f"stand_in.{key} must be >= 1, got {getattr(self, key)}")
        if not self.exchanges or any(n < 1 or share < 0 for n, share in self.exchanges.items()):
            raise UserError("stand_in.exchanges: numbers >= 1 with shares >= 0")
        if abs(sum(self.exchanges.values()) - 1) > 1e-6:
            raise UserError(f"stand_in.exchanges must sum to 1, got {sum(self.exchanges.values()):g}")
        if len(self.voices) != 2 or self.voices[0] == self.voices[1]:
            raise UserError(f"stand_in.voices must be two different speakers, got {self.voices}")
        if not 0 <= self.emotional_share <= 1:
            raise UserError(f"stand_in.emotional_share must be in [0, 1], got {self.emotional_share}")


@dataclass(frozen=True, slots=True)
class _Job:
    dialogue: int
    turns: tuple[dict[str, Any], ...]
    folder: Path
    seed: int
    voices: tuple[str, str]


def write_stand_in(config: StandInConfig, voice: Voice) -> Path:
    """Make the stand-in and return its folder.

    Raises:
        UserError: a speaker that the voice lacks.
    """
    for name in config.voices:
        if name not in voice.speakers:
            raise one_of("stand_in.voices", name, voice.speakers)
    words = yaml.safe_load((WRITERS / f"{config.words}.yaml").read_text(encoding="utf-8"))
    out = Path(config.out)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    scripts = [_write_dialogue(words, config, number) for number in range(config.dialogues)]
    try:
        _fill(temporary, config, voice, scripts)
        replace_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # there only if something went wrong
    return out


def _fill(folder: Path, config: StandInConfig, voice: Voice, scripts: list[list[dict[str, Any]]]) -> None:
    """Speak every dialogue and write the folder's files."""
    voices = (config.voices[0], config.voices[1])
    jobs = [_Job(n, tuple(turns), folder / "data" / str(n), config.seed, voices) for n, turns in enumerate(scripts)]
    seconds = 0.0
    with (
        LocalEngine(config.workers).start(_speak_dialogue, voice) as run,
        progress(len(jobs), "stand-in", unit="dialogue") as bar,
    ):
        for spoken in run(jobs):
            seconds += spoken
            bar.update()
    metadata = {str(n): {str(turn["utterance_idx"]): turn for turn in turns} for n, turns in enumerate(scripts)}
    write_json_atomic(folder / "metadata.json", metadata)
    write_text_atomic(folder / "DATA.md", _describe(config, voice, scripts, seconds))
    write_text_atomic(folder / STAND_IN_FILE, _NOTICE)


def _write_dialogue(words: Mapping[str, Any], config: StandInConfig, number: int) -> list[dict[str, Any]]:
    """One dialogue's metadata rows, in DailyTalk's fields."""
    rng = python_rng(config.seed, "stand-in", number)
    count = rng.choices(list(config.exchanges), weights=list(config.exchanges.values()))[0]
    topic = rng.choice(list(words["exchanges"]))
    slots = {name: rng.choice(values) for name, values in words["slots"].items()}
    picked = [rng.choice(words["openings"])]
    pool = list(words["exchanges"][topic])
    while len(picked) < count:
        if len(picked) == count - 1 and count > 2 and rng.random() < 0.5:
            picked.append(rng.choice(words["endings"]))
            break
        if not pool:  # a talk that has said all on its topic moves on to another
            pool = list(words["exchanges"][rng.choice(list(words["exchanges"]))])
        picked.append(pool.pop(pool.index(_pick(pool, config.emotional_share, rng))))
    first = rng.randrange(2)
    turns = [turn for exchange in picked for turn in exchange]
    return [
        {
            "index": f"{number}-{i}",
            "turn": len(turns),
            "topic": topic,
            "emotion": emotion,
            "act": act,
            "speaker": (first + i) % 2,
            "text": _sentence(text, slots),
            "dialog_idx": number,
            "utterance_idx": i,
        }
        for i, (act, emotion, text) in enumerate(turns)
    ]


def _pick(pool: list[Any], emotional_share: float, rng: random.Random) -> Any:
    """An exchange, one with an emotion at the asked rate where there are both kinds."""
    emotional = [exchange for exchange in pool if any(turn[1] != "no emotion" for turn in exchange)]
    plain = [exchange for exchange in pool if exchange not in emotional]
    if emotional and plain:
        return rng.choice(emotional if rng.random() < emotional_share else plain)
    return rng.choice(pool)


def _sentence(template: str, slots: Mapping[str, str]) -> str:
    text = template.format(**slots)
    return text[0].upper() + text[1:]


def _speak_dialogue(job: _Job, voice: Voice) -> float:
    """Write a dialogue's wav and txt files; returns its seconds. Pitch and speed vary a little and carry no label."""
    seconds = 0.0
    for turn in job.turns:
        number, speaker = turn["utterance_idx"], turn["speaker"]
        rng = python_rng(job.seed, "style", job.dialogue, number)
        pitch, speed = (rng.choices(names, weights=(1, 4, 1))[0] for names in (PITCHES, SPEEDS))
        style = Style(pitch, speed, EMOTIONS[turn["emotion"]])
        seed = derive_seed(job.seed, "stand-in speech", job.dialogue, number)
        wave, rate = voice.speak(turn["text"], job.voices[speaker], style, seed)
        stem = job.folder / f"{number}_{speaker}_d{job.dialogue}"
        write_bytes_atomic(stem.with_suffix(".wav"), encode_audio(wave, rate, "WAV"))
        write_text_atomic(stem.with_suffix(".txt"), turn["text"])
        seconds += len(wave) / rate
    return seconds


def _describe(config: StandInConfig, voice: Voice, scripts: list[list[dict[str, Any]]], seconds: float) -> str:
    def counts(key: str) -> str:
        values = [turn[key] for script in scripts for turn in script]
        return ", ".join(f"{value} {values.count(value)}" for value in sorted(set(values)))

    facts = voice.describe()
    return _DATA_MD.format(
        notice=_NOTICE.partition("\n\n")[2],
        dialogues=len(scripts),
        turns=sum(len(script) for script in scripts),
        hours=seconds / 3600,
        voices=" and ".join(config.voices),
        rate=voice.sample_rate,
        seed=config.seed,
        words=config.words,
        voice=facts["name"],
        licence=facts["licence"],
        emotions=counts("emotion"),
        acts=counts("act"),
    )
