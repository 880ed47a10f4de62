"""One dialogue of each scenario to listen to on the data card; the recordings are inside the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omnichat.schema import SCENARIOS, Dialogue, Turn

PAGE_BYTES = 1_100_000  # of recordings in a page: 1.5 MB once they are text
_MOST_VARIANTS = 3
_MOST_TURNS = 12  # of a dialogue that are shown
_CANDIDATES = 40
_TYPES = {".flac": "audio/flac", ".wav": "audio/wav", ".ogg": "audio/ogg", ".mp3": "audio/mpeg", ".opus": "audio/ogg"}


@dataclass(frozen=True, slots=True)
class Heard:
    """A turn as it is shown: who, words, chips of its style, the recording as a data address or None."""

    speaker: str
    words: str
    chips: tuple[str, ...]
    audio: str | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Sample:
    """A dialogue as it is shown.

    `endings` are the turns from the one that is spoken in several styles on, of the dialogue and of its siblings; empty
    where it has none, and then `turns` are all of it. `left_out` counts turns before those that are shown.
    """

    scenario: str
    dialogue: str
    split: str
    topic: str | None
    scene: str | None
    turns: list[Heard]
    endings: list[list[Heard]]
    left_out: int


def samples(dialogues: Sequence[Dialogue], folder: Path) -> list[Sample]:
    """A dialogue of each scenario that has recordings, of the test split if there is one.

    Recordings are taken as they are, the last turns' first, until each scenario has had its share of `PAGE_BYTES`.
    """
    present = [scenario for scenario in SCENARIOS if any(_is_heard(d) for d in dialogues if d.scenario == scenario)]
    return [_sample(dialogues, scenario, folder, PAGE_BYTES // len(present)) for scenario in present]


def _is_heard(dialogue: Dialogue) -> bool:
    return any(turn.audio is not None for turn in dialogue.turns)


def _sample(dialogues: Sequence[Dialogue], scenario: str, folder: Path, budget: int) -> Sample:
    heard = [dialogue for dialogue in dialogues if dialogue.scenario == scenario and _is_heard(dialogue)]
    wanted = next(split for split in ("test", "dev", "train") if any(d.split == split for d in heard))
    candidates = [dialogue for dialogue in heard if dialogue.split == wanted][:_CANDIDATES]
    sizes = [sum(_size(turn, folder) for turn in dialogue.turns) for dialogue in candidates]
    fitting = [number for number, size in enumerate(sizes) if size <= budget]
    chosen = candidates[fitting[0] if fitting else sizes.index(min(sizes))]
    groups = {turn.variant_of for turn in chosen.turns} - {None}
    siblings = [
        dialogue
        for dialogue in heard
        if dialogue is not chosen and groups & ({turn.variant_of for turn in dialogue.turns} - {None})
    ][: _MOST_VARIANTS - 1]
    turns = chosen.turns[-_MOST_TURNS:]
    endings = [_ending(dialogue) for dialogue in (chosen, *siblings)] if siblings else []
    before = turns[: len(turns) - len(endings[0])] if endings else turns
    taken: set[str] = set()
    for turn in (*(turn for ending in endings for turn in ending), *reversed(before)):
        if turn.audio is not None and turn.audio not in taken and (size := _size(turn, folder)) <= budget:
            taken.add(turn.audio)
            budget -= size
    scene = chosen.scene
    told = None if scene is None else scene.caption
    if scene is not None and scene.snr_db is not None:
        told = f"{scene.caption} ({scene.placement}, {scene.snr_db:g} dB)"
    return Sample(
        scenario=scenario,
        dialogue=chosen.id,
        split=chosen.split,
        topic=chosen.topic,
        scene=told,
        turns=[_heard(turn, folder, taken) for turn in before],
        endings=[[_heard(turn, folder, taken) for turn in ending] for ending in endings],
        left_out=len(chosen.turns) - len(turns),
    )


def _ending(dialogue: Dialogue) -> tuple[Turn, ...]:
    """From the turn that is spoken in several styles on."""
    first = next(number for number, turn in enumerate(dialogue.turns) if turn.variant_of is not None)
    return dialogue.turns[first:]


def _size(turn: Turn, folder: Path) -> int:
    return 0 if turn.audio is None else (folder / turn.audio).stat().st_size


def _heard(turn: Turn, folder: Path, taken: set[str]) -> Heard:
    chips = tuple(
        f"{name} {value}" if name != "emotion" else value
        for name in ("emotion", "pitch", "speed")
        if (value := getattr(turn.style, name)) is not None
    )
    audio = None
    if turn.audio is not None and turn.audio in taken:
        path = folder / turn.audio
        kind = _TYPES.get(path.suffix.lower(), "application/octet-stream")
        audio = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
    return Heard(turn.speaker, turn.text, chips, audio, turn.seconds)
