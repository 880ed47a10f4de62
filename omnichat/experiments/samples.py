"""Sample replies for the report: what was heard, with its recording, and every run's answer beside the reference."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omnichat.evaluation.predictions import Line, Prediction
from omnichat.evaluation.scene import names_keyword
from omnichat.experiments.plots import Picture, heat_map, picture
from omnichat.experiments.runs import Run
from omnichat.schema import SCENARIOS, Style
from omnichat.utils.errors import UserError

AUDIO_LIMIT_BYTES = 12_000_000  # of all recordings in one page
_MIME = {".flac": "audio/flac", ".wav": "audio/wav", ".mp3": "audio/mpeg", ".ogg": "audio/ogg", ".opus": "audio/ogg"}


@dataclass(frozen=True, slots=True)
class Tag:
    """One style attribute of a reply: its label, and whether it is the reference's (None: nothing to compare with)."""

    text: str
    right: bool | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply: who gave it, its style tags (none: could not be parsed), its words, and if it names the sound."""

    who: str
    tags: tuple[Tag, ...]
    text: str
    parsed: bool = True
    names_scene: bool | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One reply slot of the page. `audio` is a data URI, `silent` says why there is none."""

    id: str
    source: str
    scenario: str
    stand_in: bool
    variant_of: str | None
    history: tuple[Line, ...]
    heard: str
    heard_tags: tuple[Tag, ...]
    scene: str | None
    audio: str | None
    silent: str
    answers: tuple[Answer, ...]
    heats: tuple[tuple[str, Picture], ...]


def choose(runs: Sequence[Run], split: str, limit: int) -> list[str]:
    """Return the keys of at most `limit` replies: recorded ones first, scenarios in turn, variants together."""
    rows: dict[str, Prediction] = {}
    heard: set[str] = set()
    for run in runs:
        for p in run.predictions.get(split, ()):
            rows.setdefault(p.key, p)
            if p.audio_file is not None:
                heard.add(p.key)
    pool = [p for p in rows.values() if p.key in heard] or list(rows.values())
    families: dict[str, dict[tuple[str, str], list[str]]] = {scenario: {} for scenario in SCENARIOS}
    for p in pool:
        family = (p.source, p.variant_of if p.variant_of is not None else p.id)
        families[p.scenario].setdefault(family, []).append(p.key)
    # a family of several variants shows most: it comes first
    queues = [sorted(found.values(), key=len, reverse=True) for found in families.values() if found]
    chosen: list[str] = []
    while any(queues) and len(chosen) < limit:
        for queue in queues:
            if queue and len(chosen) < limit:
                chosen += queue.pop(0)[: min(3, limit - len(chosen))]
    return chosen


def samples(runs: Sequence[Run], split: str, limit: int = 12, heats: bool = True) -> list[Sample]:
    """Build the sample replies of the report; `heats`: with a heat map of every run that kept its attention.

    Raises:
        UserError: an audio_file that leaves its run folder.
    """
    found: list[Sample] = []
    left = AUDIO_LIMIT_BYTES
    for name in choose(runs, split, limit):
        given = [(run, p) for run in runs for p in run.predictions.get(split, ()) if p.key == name]
        first = given[0][1]
        audio, silent, used = _audio(given, left)
        left -= used
        answers = [Answer("reference", _tags(first.reference.style, None), first.reference.text)]
        answers += [_answer(run.name, p) for run, p in given]
        drawn = [(run.name, _heat(run.name, p)) for run, p in given if heats and p.attention and p.experts]
        scene = first.heard.scene
        found.append(
            Sample(
                id=first.id,
                source=first.source,
                scenario=first.scenario,
                stand_in=first.stand_in,
                variant_of=first.variant_of,
                history=first.history,
                heard=first.heard.text,
                heard_tags=_tags(first.heard.style, None),
                scene=None if scene is None else scene.caption,
                audio=audio,
                silent=silent,
                answers=tuple(answers),
                heats=tuple(drawn),
            )
        )
    return found


def _answer(who: str, p: Prediction) -> Answer:
    named = None
    if p.heard.scene is not None and p.heard.scene.keywords:
        named = names_keyword(p.hypothesis.text, p.heard.scene.keywords)
    style = p.hypothesis.style
    text = p.hypothesis.text if style is not None else p.raw
    return Answer(who, _tags(style, p.reference.style), text, parsed=style is not None, names_scene=named)


def _tags(style: Style | None, reference: Style | None) -> tuple[Tag, ...]:
    """Tags of a style; without a `reference` nothing is judged."""
    tags = []
    for attribute in ("pitch", "speed", "emotion"):
        got = getattr(style, attribute) if style is not None else None
        wanted = getattr(reference, attribute) if reference is not None else None
        if got is not None:
            # a bare "normal" would not say of what
            text = f"{got} {attribute}" if attribute != "emotion" else got
            tags.append(Tag(text, None if wanted is None else got == wanted))
    return tuple(tags)


def _heat(name: str, p: Prediction) -> Picture:
    words = f"Attention mass of {name} by expert and window while it hears “{p.heard.text}”"
    return picture(heat_map(p), words, name)


def _audio(given: Sequence[tuple[Run, Prediction]], left: int) -> tuple[str | None, str, int]:
    """Return (data URI or None, why not, bytes used) of the first run that kept the recording."""
    for run, p in given:
        if p.audio_file is None:
            continue
        path = (run.folder / p.audio_file).resolve()
        if not path.is_relative_to(run.folder.resolve()):
            raise UserError(f"{run.folder}: audio_file of {p.id!r} lies outside the run folder: {p.audio_file}")
        mime = _MIME.get(path.suffix.lower())
        if mime is None:
            raise UserError(f"{run.folder}: audio_file of {p.id!r} is not one of {', '.join(_MIME)}: {p.audio_file}")
        if not path.is_file():
            continue
        if path.stat().st_size > left:
            return None, "left out: the page's recordings are at their size limit", 0
        content = path.read_bytes()
        return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}", "", len(content)
    named = [Path(p.audio_file).name for _, p in given if p.audio_file is not None]
    return None, f"recording {named[0]} is missing" if named else "no recording kept", 0
