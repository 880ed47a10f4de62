"""Tiny whole corpora of sine waves: all splits, style variants, scenes; no voice is needed to make them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from omnichat.audio.io import audio_info, save_audio
from omnichat.data.corpus import finish_corpus
from omnichat.schema import Dialogue, Scene, Style, Turn

RATE = 16000
STYLES = (Style("low", "slow", "sad"), Style("high", "fast", "happy"))
STEMS = {"train": 3, "dev": 1, "test": 2}  # dialogues before their variants


def synthetic_corpus(folder: Path) -> Path:
    """A synthetic corpus: 2 variants of each stem, scenarios emotion and music (with scene) in turn."""
    dialogues = []
    for split, count in STEMS.items():
        for number in range(count):
            dialogues += _variants(folder, f"{split}{number}", split, "music" if number % 2 else "emotion")
    return _finish(folder, dialogues, "made", "synthetic")


def real_corpus(folder: Path) -> Path:
    """A real corpus (it says so itself): one exchange a dialogue, emotions only, a stand-in."""
    dialogues = []
    for split, count in STEMS.items():
        for number in range(2 * count):
            name, style = f"r-{split}{number}", Style(emotion=("neutral", "angry")[number % 2])
            turns = (
                _turn(folder, "A", f"Good morning from {name}.", f"{name}-0", style, 180.0 + 10 * number),
                _turn(folder, "B", "Good morning to you, too.", f"{name}-1", style, 120.0),
            )
            dialogues.append(Dialogue(name, "spoken", "real", "daily", split, turns, stand_in=True))
    return _finish(folder, dialogues, "spoken", "real")


def _variants(folder: Path, stem: str, split: str, scenario: str) -> Iterator[Dialogue]:
    scene = Scene("a calm piano", "loop", 5.0, keywords=("piano", "calm")) if scenario == "music" else None
    history = (
        _turn(folder, "A", "I went to the station today.", f"{stem}-0", Style("normal", "normal", "neutral"), 220.0),
        _turn(folder, "B", "Did you catch your train?", f"{stem}-1", Style("normal", "normal", "neutral"), 110.0),
    )
    for number, style in enumerate(STYLES):
        heard = _turn(folder, "A", "It was really something.", f"{stem}-2v{number}", style, 200.0 + 60 * number, stem)
        words = ("I am sorry to hear that.", "How wonderful for you.")[number]
        reply = _turn(folder, "B", words, f"{stem}-3v{number}", style, 110.0)
        yield Dialogue(f"{stem}-v{number}", "made", "synthetic", scenario, split, (*history, heard, reply), scene=scene)


def _turn(
    folder: Path, speaker: str, text: str, name: str, style: Style, hz: float, variant_of: str | None = None
) -> Turn:
    path = folder / "audio" / f"{name}.flac"
    if not path.exists():
        samples = round(0.6 * RATE) + 16 * (_number(name) % 100)  # clips differ in length, and so in hash
        save_audio(path, 0.3 * np.sin(2 * np.pi * hz * np.arange(samples) / RATE), RATE)
    rate, seconds = audio_info(path)
    return Turn(speaker, text, style, f"audio/{name}.flac", rate, seconds, variant_of=variant_of)


def _number(name: str) -> int:
    """A number from a name, the same in every process."""
    return sum(ord(letter) * 31**place for place, letter in enumerate(name))


def _finish(folder: Path, dialogues: list[Dialogue], name: str, kind: str) -> Path:
    finish_corpus(
        folder, dialogues, name=name, kind=kind, seed=0, checks={}, licences=[], notes=["Sine waves."], versions={}
    )
    return folder
