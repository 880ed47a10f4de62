"""What is shown of a corpus: a page of the list, a dialogue, the rejects. Plain values, no markup."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omnichat.chat.browse.findings import Reject, Row, clip_figures, clip_key, dialogue_figures, stem_id
from omnichat.chat.browse.index import CorpusIndex, heard_turn
from omnichat.chat.browse.query import Query
from omnichat.schema import Dialogue, Turn

SHORT = 140  # characters of the words in a list
# Figures that a list shows of each dialogue, where the corpus has them: (figure, what it is called)
LISTED = (("words.wer", "WER"), ("speakers.gap", "speakers' gap"), ("mos.overall", "DNSMOS"))


@dataclass(frozen=True, slots=True)
class PageOf:
    """A page of a list: `rows` of `total`; `number` from 1 to `pages`, of which there is always one."""

    rows: tuple[Any, ...]
    number: int
    pages: int
    total: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A dialogue in the list; `chips` are the style of the turn that the model answers."""

    number: int
    id: str
    split: str
    scenario: str
    words: str
    chips: tuple[str, ...]
    turns: int
    seconds: str | None
    figures: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TurnView:
    """A turn.

    Attributes:
        mark: "heard" for the turn that the model answers, "reply" for what follows it, else "history".
        playable: whether there is a recording to hear; if not, `problem` says why (None: the corpus has none).
        heard: what the recogniser heard, where that is not what was said but for case and punctuation.
        figures: what the checks measured, [(name, number)].
    """

    number: int
    speaker: str
    voice: str | None
    mark: str
    words: str
    chips: tuple[str, ...]
    seconds: str | None
    start: str | None
    playable: bool
    problem: str | None
    heard: str | None
    backchannels: tuple[str, ...]
    figures: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class DialogueView:
    """A dialogue; `siblings` are the numbers of those with the same words in other styles, itself among them."""

    number: int
    total: int
    id: str
    facts: tuple[tuple[str, str], ...]
    scene: str | None
    turns: tuple[TurnView, ...]
    siblings: tuple[int, ...]
    figures: tuple[tuple[str, str], ...]
    rejects: tuple[Reject, ...]


def page_place(total: int, number: int, size: int) -> tuple[slice, int, int]:
    """(where the items of a page are, its number, number of pages); a number outside becomes the nearest page."""
    pages = max(1, math.ceil(total / size))
    number = min(max(1, number), pages)
    return slice((number - 1) * size, number * size), number, pages


def list_page(index: CorpusIndex, query: Query, number: int, size: int) -> PageOf:
    """A page of the dialogues that a query asks for; only its own dialogues are read."""
    found = index.find(query)
    place, number, pages = page_place(len(found), number, size)
    return PageOf(tuple(_entry(index, int(each), query.figure) for each in found[place]), number, pages, len(found))


def rejects_page(found: Sequence[Reject], number: int, size: int) -> PageOf:
    """A page of rejects."""
    place, number, pages = page_place(len(found), number, size)
    return PageOf(tuple(found[place]), number, pages, len(found))


def _entry(index: CorpusIndex, number: int, figure: str | None) -> Entry:
    dialogue = index.dialogue(number)
    turn = dialogue.turns[heard_turn(dialogue)]
    columns = index.columns.figures
    listed = [*LISTED, *([(figure, figure)] if figure is not None and figure not in dict(LISTED) else [])]
    figures = [
        (title, _number(float(columns[name][number])))
        for name, title in listed
        if name in columns and not math.isnan(columns[name][number])
    ]
    seconds = float(columns["seconds"][number])
    return Entry(
        number=number,
        id=dialogue.id,
        split=dialogue.split,
        scenario=dialogue.scenario,
        words=turn.text if len(turn.text) <= SHORT else turn.text[: SHORT - 3] + "...",
        chips=chips(turn),
        turns=len(dialogue.turns),
        seconds=None if math.isnan(seconds) else f"{seconds:.1f} s",
        figures=tuple(figures),
    )


def dialogue_view(index: CorpusIndex, number: int, follow_links: bool = False) -> DialogueView:
    """All that is shown of a dialogue.

    Raises:
        UserError: no such dialogue, or a checks.jsonl that has changed since it was indexed.
    """
    dialogue = index.dialogue(number)
    row = index.findings.row(stem_id(dialogue)) or {"checks": {}}
    families = {turn.variant_of for turn in dialogue.turns} - {None}
    siblings = sorted({each for family in families for each in index.columns.families.get(str(family), ())})
    plan = row.get("plan")
    return DialogueView(
        number=number,
        total=len(index),
        id=dialogue.id,
        facts=_facts(dialogue, row),
        scene=_scene(dialogue),
        turns=tuple(_turn(index, dialogue, place, row, follow_links) for place in range(len(dialogue.turns))),
        siblings=tuple(siblings) if len(siblings) > 1 else (),
        figures=_told(dialogue_figures(row)),
        rejects=tuple(reject for reject in index.rejects if reject.plan == plan),
    )


def _facts(dialogue: Dialogue, row: Row) -> tuple[tuple[str, str], ...]:
    facts = [("split", dialogue.split), ("scenario", dialogue.scenario), ("source", dialogue.source)]
    facts += [("kind", dialogue.kind + (", a stand-in" if dialogue.stand_in else "")), ("language", dialogue.language)]
    if dialogue.topic:
        facts.append(("topic", dialogue.topic))
    facts += [("plan", str(row["plan"]))] if "plan" in row else []
    if isinstance(row.get("attempt"), int):
        facts.append(("accepted at attempt", str(row["attempt"] + 1)))
    return tuple(facts + list(dialogue.attributes.items()))


def _scene(dialogue: Dialogue) -> str | None:
    scene = dialogue.scene
    if scene is None:
        return None
    level = "" if scene.snr_db is None else f", speech {scene.snr_db:+g} dB above it"
    words = f"; words of a good reply: {', '.join(scene.keywords)}" if scene.keywords else ""
    return f"{scene.caption} ({scene.placement}{level}){words}"


def _turn(index: CorpusIndex, dialogue: Dialogue, place: int, row: Row, follow_links: bool) -> TurnView:
    turn = dialogue.turns[place]
    heard = heard_turn(dialogue)
    problem = None if turn.audio is None else index.problem(turn, follow_links)
    speaker = dialogue.speakers.get(turn.speaker)
    key = clip_key(turn.audio)
    misheard = turn.asr_text is not None and _plain(turn.asr_text) != _plain(turn.text)
    return TurnView(
        number=place,
        speaker=turn.speaker,
        voice=None if speaker is None else speaker.voice,
        mark="heard" if place == heard else "reply" if place > heard else "history",
        words=turn.text,
        chips=chips(turn),
        seconds=None if turn.seconds is None else f"{turn.seconds:.1f} s",
        start=None if turn.start_seconds is None else f"at {turn.start_seconds:.1f} s",
        playable=turn.audio is not None and problem is None,
        problem=problem,
        heard=turn.asr_text if misheard else None,
        backchannels=tuple(
            f"{said.speaker}: {said.text} (at {said.start_seconds:.1f} s)" for said in turn.backchannels
        ),
        figures=() if key is None else _told(clip_figures(row, key)),
    )


def chips(turn: Turn) -> tuple[str, ...]:
    """The style in words: "sad", "pitch low", "speed slow"; what a corpus lacks is left out."""
    style = turn.style
    named = ((style.emotion, "{}"), (style.pitch, "pitch {}"), (style.speed, "speed {}"))
    return tuple(form.format(value) for value, form in named if value is not None)


def _plain(words: str) -> str:
    return " ".join("".join(letter if letter.isalnum() else " " for letter in words.lower()).split())


def _told(figures: dict[str, float]) -> tuple[tuple[str, str], ...]:
    return tuple((name, _number(value)) for name, value in figures.items())


def _number(value: float) -> str:
    return f"{value:.4g}"
