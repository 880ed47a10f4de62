"""The views as HTML. Whatever a corpus's texts hold is shown as text; recordings are named by two numbers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from omnichat.chat.browse.index import CorpusIndex
from omnichat.chat.browse.view import DialogueView, PageOf
from omnichat.data.card import STAND_IN_NOTE
from omnichat.schema import SPLITS

_FOLDER = Path(__file__).parent


def css() -> str:
    """The style sheet of what is rendered here."""
    return (_FOLDER / "browse.css").read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _render(template: str, **values: object) -> str:
    return _environment().get_template(template).render(**values)


def head_html(index: CorpusIndex) -> str:
    """Name and amounts of the corpus."""
    corpus = index.corpus
    summary = corpus.summary()
    parts = [f"{corpus.count(split):,} {split}" for split in SPLITS if corpus.count(split)]
    amounts = [f"{len(index):,} dialogues ({', '.join(parts)})", f"{summary['turns']:,} turns"]
    amounts += [f"{summary['recordings']:,} recordings", f"{summary['hours']:.2f} h"] if summary["recordings"] else []
    amounts += [f"{len(index.rejects):,} rejects"] if index.rejects else []
    return _render(
        "head.html.j2",
        name=corpus.name,
        kind=corpus.kind,
        amounts=amounts,
        bad=len(index.bad),
        note=STAND_IN_NOTE if corpus.stand_in else "",
    )


def list_html(page: PageOf, opened: int | None) -> str:
    """The list; the entry of the dialogue that is open is marked."""
    return _render("list.html.j2", page=page, opened=opened)


def dialogue_html(view: DialogueView) -> str:
    """A dialogue with a player for each turn."""
    return _render("dialogue.html.j2", view=view)


def rejects_html(page: PageOf, stages: Sequence[tuple[str, int]], reasons: Sequence[tuple[str, int]]) -> str:
    """The rejects, below counts by stage and reason."""
    return _render("rejects.html.j2", page=page, counts=[*stages, *reasons])


def note_html(text: str) -> str:
    """One line that says what is wrong."""
    return _render("note.html.j2", text=text)
