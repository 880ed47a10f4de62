"""The page of `omnichat browse`: filters and a list, a dialogue with its players, the rejects.

Nothing is kept between two requests: every one carries all its filters, and the index answers them. So tabs and users
do not touch each other.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from omnichat.chat.browse.findings import count_by, find_rejects
from omnichat.chat.browse.index import CorpusIndex
from omnichat.chat.browse.markup import css, dialogue_html, head_html, list_html, note_html, rejects_html
from omnichat.chat.browse.query import FACETS, LABELS, MAX_WORDS, ORDERS, Query
from omnichat.chat.browse.settings import BrowseConfig
from omnichat.chat.browse.view import dialogue_view, list_page, rejects_page
from omnichat.chat.web.guard import App
from omnichat.chat.web.recordings import RECORDING_PATHS, recording_routes
from omnichat.chat.web.server import PAGE_BYTES, PAGE_PATHS, page_app
from omnichat.utils.errors import UserError

ANY = ""  # of a dropdown: nothing is asked for
_TURN_CHOICES = [("any turn", "any"), ("turn heard", "heard"), ("reply", "reply"), ("earlier turns", "history")]
_ORDER_CHOICES = [("as in corpus", "corpus"), ("lowest first", "lowest"), ("highest first", "highest")]
assert {value for _, value in _ORDER_CHOICES} == set(ORDERS)

# A click on an entry becomes an event that carries its number.
_ON_CLICK = """
element.addEventListener('click', event => {
  const entry = event.target.closest('[data-number]');
  if (entry) trigger('click', {number: Number(entry.dataset.number)});
});
"""
# One player at a time. On a narrow screen the dialogue lies below the list, and is gone to when one is chosen.
_ON_DIALOGUE = (
    _ON_CLICK
    + """
element.addEventListener('play', event => {
  for (const player of document.querySelectorAll('audio')) if (player !== event.target) player.pause();
}, true);
let chosen = location.search.includes('dialogue=');
watch('value', () => {
  element.scrollTop = 0;
  const top = element.getBoundingClientRect().top;
  if (chosen && (top < 0 || top > window.innerHeight * 0.8)) element.scrollIntoView();
  chosen = true;
});
"""
)


def browse_app(index: CorpusIndex, config: BrowseConfig) -> App:
    """The page and the recordings of a corpus as one application."""
    return page_app(
        recording_routes(index, config.follow_links),
        browse_blocks(index, config),
        config,
        css=css(),
        paths=f"{PAGE_PATHS}|{RECORDING_PATHS}",
        max_bytes=PAGE_BYTES,
    )


def browse_blocks(index: CorpusIndex, config: BrowseConfig) -> gr.Blocks:
    """The page itself."""
    with gr.Blocks(analytics_enabled=False, title=f"{index.corpus.name} - omnichat browse", fill_width=True) as blocks:
        gr.HTML(head_html(index))
        if not index.rejects:
            _dialogues(blocks, index, config)
            return blocks
        with gr.Tab("Dialogues"):
            _dialogues(blocks, index, config)
        with gr.Tab(f"Rejected ({len(index.rejects):,})"):
            _rejects(blocks, index, config)
    return blocks


def _dialogues(blocks: gr.Blocks, index: CorpusIndex, config: BrowseConfig) -> None:
    """Filters, list and dialogue."""
    opened = gr.State(None)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            filters = _filters(index)
            listed = gr.HTML(js_on_load=_ON_CLICK, elem_id="oc-list")
            number, before, after = _pager("dialogues")
        with gr.Column(scale=3, min_width=320):
            shown = gr.HTML(js_on_load=_ON_DIALOGUE, elem_id="oc-dialogue")
    names = list(filters)
    inputs = [opened, number, *filters.values()]

    def show_list(open_now: Any, page: Any, *values: Any) -> tuple[str, int]:
        try:
            found = list_page(index, _query(dict(zip(names, values, strict=True))), _whole(page), config.page_size)
        except UserError as error:
            return note_html(str(error)), 1
        return list_html(found, open_now), found.number

    def first_page(open_now: Any, _: Any, *values: Any) -> tuple[str, int]:
        return show_list(open_now, 1, *values)

    def next_page(open_now: Any, page: Any, *values: Any) -> tuple[str, int]:
        return show_list(open_now, _whole(page) + 1, *values)

    def previous_page(open_now: Any, page: Any, *values: Any) -> tuple[str, int]:
        return show_list(open_now, _whole(page) - 1, *values)

    def open_one(event: gr.EventData) -> tuple[int | None, str]:
        return _opened(index, config, getattr(event, "number", None))

    def begin(request: gr.Request, page: Any, *values: Any) -> tuple[int | None, str, str, int]:
        wanted = request.query_params.get("dialogue", "0")
        open_now, html = _opened(index, config, int(wanted) if wanted.isdecimal() and len(wanted) < 10 else None)
        return (open_now, html, *show_list(open_now, page, *values))

    quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
    for part in filters.values():
        part.change(first_page, inputs, [listed, number], trigger_mode="always_last", **quiet)
    number.submit(show_list, inputs, [listed, number], **quiet)
    before.click(previous_page, inputs, [listed, number], **quiet)
    after.click(next_page, inputs, [listed, number], **quiet)
    for clicked in (listed, shown):
        clicked.click(open_one, None, [opened, shown], **quiet).then(show_list, inputs, [listed, number], **quiet)
    blocks.load(begin, inputs[1:], [opened, shown, listed, number], **quiet)


def _filters(index: CorpusIndex) -> dict[str, Any]:
    """A field for each attribute of Query that can part this corpus, by its name."""
    fields: dict[str, Any] = {
        "words": gr.Textbox(
            label="Words", placeholder='all of these; "a phrase"', max_length=MAX_WORDS, lines=1, elem_id="oc-words"
        )
    }
    with gr.Accordion("Filters", open=True), gr.Row(elem_id="oc-filters"):
        for name in (*FACETS, *LABELS):
            values = index.present(name)
            if len(values) > 1:
                fields[name] = _dropdown(name.capitalize(), [("any", ANY), *((value, value) for value in values)], ANY)
        if any(name in fields for name in LABELS):
            fields["turn"] = _dropdown("Labels of", _TURN_CHOICES, "any")
        figures = sorted(index.columns.figures)
        fields["figure"] = _dropdown("Figure", [("none", ANY), *((name, name) for name in figures)], ANY)
        # texts: a number field shows 0 where it is empty
        fields["order"] = _dropdown("Order", _ORDER_CHOICES, "corpus")
        fields["low"] = gr.Textbox(label="At least", max_length=20, min_width=110, elem_id="oc-low")
        fields["high"] = gr.Textbox(label="At most", max_length=20, min_width=110, elem_id="oc-high")
    return fields


def _dropdown(label: str, choices: list[tuple[str, str]], value: str, scale: int = 1) -> gr.Dropdown:
    name = label.lower().replace(" ", "-")
    return gr.Dropdown(choices, value=value, label=label, min_width=110, scale=scale, elem_id=f"oc-{name}")


def _pager(name: str) -> tuple[gr.Number, gr.Button, gr.Button]:
    """(page number, previous, next)."""
    with gr.Row():
        before = gr.Button("Previous", size="sm", min_width=80, elem_id=f"oc-{name}-previous")
        number = gr.Number(
            1, label="Page", precision=0, min_width=80, show_label=False, container=False, elem_id=f"oc-{name}-page"
        )
        after = gr.Button("Next", size="sm", min_width=80, elem_id=f"oc-{name}-next")
    return number, before, after


def _rejects(blocks: gr.Blocks, index: CorpusIndex, config: BrowseConfig) -> None:
    """Filters and list of what was refused."""
    stages, reasons = count_by(index.rejects, "stage"), count_by(index.rejects, "reason")
    with gr.Row():
        stage = _dropdown("Stage", [("any", ANY), *((f"{name} ({n:,})", name) for name, n in stages)], ANY)
        reason = _dropdown("Reason", [("any", ANY), *((f"{name} ({n:,})", name) for name, n in reasons)], ANY, 3)
        words = gr.Textbox(label="Plan or topic", max_length=MAX_WORDS, min_width=160, elem_id="oc-plan")
    listed = gr.HTML(elem_id="oc-rejected")
    number, before, after = _pager("rejects")
    inputs = [number, stage, reason, words]

    def show(page: Any, of_stage: Any, with_reason: Any, with_words: Any) -> tuple[str, int]:
        found = find_rejects(index.rejects, of_stage or None, with_reason or None, str(with_words or ""))
        part = rejects_page(found, _whole(page), config.page_size)
        return rejects_html(part, stages, reasons), part.number

    def first(_: Any, *values: Any) -> tuple[str, int]:
        return show(1, *values)

    def earlier(page: Any, *values: Any) -> tuple[str, int]:
        return show(_whole(page) - 1, *values)

    def later(page: Any, *values: Any) -> tuple[str, int]:
        return show(_whole(page) + 1, *values)

    quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
    for part in (stage, reason, words):
        part.change(first, inputs, [listed, number], trigger_mode="always_last", **quiet)
    number.submit(show, inputs, [listed, number], **quiet)
    before.click(earlier, inputs, [listed, number], **quiet)
    after.click(later, inputs, [listed, number], **quiet)
    blocks.load(show, inputs, [listed, number], **quiet)


def _query(fields: dict[str, Any]) -> Query:
    """What the fields ask for; an empty field asks for nothing. Raises UserError for what cannot be asked."""
    asked = {name: value for name, value in fields.items() if value is not None and value != ANY}
    for name in ("low", "high"):
        if name in asked:
            asked[name] = _number(f"at {'least' if name == 'low' else 'most'}", asked[name])
    return Query(**asked)


def _number(name: str, text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        raise UserError(f"{name} must be a number, got {str(text)[:20]!r}") from None


def _whole(value: Any) -> int:
    """The number that a page field holds; 1 where it holds none."""
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 else 1


def _opened(index: CorpusIndex, config: BrowseConfig, number: Any) -> tuple[int | None, str]:
    """(number of the dialogue that is open, its HTML)."""
    if isinstance(number, bool) or not isinstance(number, int):
        return None, note_html("a dialogue is opened by its number")
    try:
        return number, dialogue_html(dialogue_view(index, number, config.follow_links))
    except UserError as error:
        return None, note_html(str(error))
