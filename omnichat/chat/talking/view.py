"""Exchanges and replies under way as plain values, ready for the templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omnichat.chat.base import Answer
from omnichat.chat.talking.desk import Pending
from omnichat.chat.talking.heard import HeardView, heard_view
from omnichat.chat.talking.tabs import Column, Exchange
from omnichat.model.pretrained.conversation import Said
from omnichat.schema import Style
from omnichat.text.style_format import parse_reply


@dataclass(frozen=True, slots=True)
class ExchangeView:
    """A turn and its reply.

    Attributes:
        number: of the exchange in its dialogue, from 1. run: name of the model.
        sound, reply: names of recordings in the store. seconds: of the turn's recording.
        said: the turn's words. chips: the style of the reply. words: of the reply.
        heard: how the turn was heard. figures: names and values.
        state: what is being done, "" once the reply is there. note: what went wrong.
        newest: whether it is the last of its column.
    """

    number: int
    run: str
    sound: str | None
    seconds: str
    said: str
    chips: tuple[str, ...] = ()
    words: str = ""
    reply: str | None = None
    heard: HeardView | None = None
    figures: tuple[tuple[str, str], ...] = ()
    state: str = ""
    note: str = ""
    newest: bool = True


@dataclass(frozen=True, slots=True)
class TurnView:
    """A turn of the history before the first exchange."""

    who: str
    words: str
    chips: tuple[str, ...]


def exchange_views(column: Column) -> tuple[ExchangeView, ...]:
    """The exchanges of a column, in order."""
    last = len(column.exchanges)
    return tuple(_exchange(number, exchange, number == last) for number, exchange in enumerate(column.exchanges, 1))


def history_views(column: Column) -> tuple[TurnView, ...]:
    """The turns before a column's first exchange."""
    return tuple(
        TurnView("user" if said.role == "user" else "model", _words(said), style_chips(said.style))
        for said in column.history
    )


def pending_view(pending: Pending, column: Column) -> ExchangeView:
    """A reply that is under way, or that failed."""
    style, rest = parse_reply(pending.text)
    words = _reply(style, rest, pending.text)
    if style is None and pending.text.lstrip().startswith("[") and "]" not in pending.text:
        words = ""  # half a style: it will be chips
    return ExchangeView(
        number=len(column.exchanges) + 1,
        run=pending.run,
        sound=pending.sound,
        seconds=_seconds(pending.said),
        said=pending.said.words,
        chips=style_chips(style),
        words=words,
        state=pending.state,
        note=pending.problem,
    )


def style_chips(style: Style | None) -> tuple[str, ...]:
    """The style in short words, one for each attribute that it has."""
    if style is None:
        return ()
    found = [style.emotion, style.pitch and f"pitch {style.pitch}", style.speed and f"speed {style.speed}"]
    return tuple(chip for chip in found if chip)


def figures(answer: Answer) -> tuple[tuple[str, str], ...]:
    """How much was read and said, and how fast."""
    found = [("tokens", f"{answer.tokens}"), ("first token", _time(answer.first_token_sec))]
    after = answer.seconds - answer.first_token_sec
    if answer.tokens > 1 and after > 0:
        found.append(("tokens/s", f"{(answer.tokens - 1) / after:.1f}"))
    kept = f", {answer.kept_tokens:,} of them kept" if answer.kept_tokens else ""
    return (*found, ("whole reply", _time(answer.seconds)), ("prompt", f"{answer.prompt_tokens:,} tokens{kept}"))


def _exchange(number: int, exchange: Exchange, newest: bool) -> ExchangeView:
    answer, said = exchange.answer, exchange.said
    heard = heard_view(answer.heard, said.sound) if answer.heard is not None and said.sound is not None else None
    notes: Sequence[str] = [
        "" if answer.style is not None else "the reply states no style",
        "" if answer.complete else "cut off: it reached a limit, or was stopped",
        exchange.note,
    ]
    return ExchangeView(
        number=number,
        run=exchange.run,
        sound=exchange.sound,
        seconds=_seconds(said),
        said=said.words,
        chips=style_chips(answer.style),
        words=_reply(answer.style, answer.words, answer.text),
        reply=exchange.reply,
        heard=heard,
        figures=figures(answer),
        note="; ".join(note for note in notes if note),
        newest=newest,
    )


def _words(said: Said) -> str:
    return said.words if said.words.strip() else f"(a recording, {_seconds(said)})"


def _reply(style: Style | None, words: str, text: str) -> str:
    """The words without the style; with brackets that state none, all that was said."""
    return words if style is not None else text.strip()


def _seconds(said: Said) -> str:
    return f"{said.sound.seconds:.1f} s" if said.sound is not None else ""


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
