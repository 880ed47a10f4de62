"""The views as HTML. Whatever a model, a user or a file's name says is shown as text."""

from __future__ import annotations

import functools
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from omnichat.chat.talking import heard
from omnichat.chat.talking.desk import Pending
from omnichat.chat.talking.examples import Example
from omnichat.chat.talking.shelf import Choice
from omnichat.chat.talking.tabs import Column
from omnichat.chat.talking.view import exchange_views, history_views, pending_view, style_chips

_FOLDER = Path(__file__).parent


def css() -> str:
    """The style sheet of what is rendered here."""
    return (_FOLDER / "talk.css").read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["picture"] = {
        "width": heard.WIDTH,
        "height": heard.HEIGHT,
        "wave": heard.WAVE_HEIGHT,
        "top": heard.HEIGHT - heard.BAND_HEIGHT,
        "band": heard.BAND_HEIGHT,
    }
    return environment


def _render(template: str, **values: object) -> str:
    return _environment().get_template(template).render(**values)


def model_html(choice: Choice) -> str:
    """Name and facts of the model of a column."""
    return _render("model.html.j2", choice=choice)


def past_html(column: Column) -> str:
    """A column's dialogue so far."""
    return _render(
        "column.html.j2", notice=column.notice, history=history_views(column), exchanges=exchange_views(column)
    )


def now_html(pending: Pending | None, column: Column) -> str:
    """The reply that is under way; "" where there is none."""
    return "" if pending is None else _render("now.html.j2", exchange=pending_view(pending, column))


def example_html(example: Example) -> str:
    """What the corpus answers in an example."""
    return _render("example.html.j2", words=example.words, chips=style_chips(example.style))
