"""The page of `omnichat web`: a turn goes in by microphone, file or words, and replies come out side by side.

A tab is known by the name that its browser made up for it, and has dialogues of its own. Replies are decoded one at a
time, in the order of gradio's queue.
"""

from __future__ import annotations

import contextlib
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from omnichat.chat.talking.desk import Desk, Update
from omnichat.chat.talking.examples import Examples
from omnichat.chat.talking.markup import css, example_html, model_html, now_html, past_html
from omnichat.chat.talking.settings import TalkConfig
from omnichat.chat.talking.shelf import Choice
from omnichat.chat.talking.sounds import read_upload
from omnichat.chat.talking.tabs import COLUMNS
from omnichat.chat.web.guard import App
from omnichat.chat.web.server import PAGE_PATHS, page_app
from omnichat.chat.web.uploads import SOUND_PATHS, Uploads, sound_routes, upload_paths
from omnichat.model.pretrained.conversation import Said
from omnichat.utils.errors import UserError
from omnichat.utils.log import get_logger

log = get_logger(__name__)

MAX_WORDS = 2000  # letters of a turn that is typed
NOBODY = ""  # of the dropdowns of the second model and of the voice
ANY = "any"
_TITLE = "That did not work"
_MULTIPART_BYTES = 10_000  # of an upload beside the file
_FILES_SEC = (300, 3600)  # how often uploads are looked at, and the age at which they go

# One player at a time; a reply that lies below the window's edge is brought into view.
_ON_DIALOGUE = """
element.addEventListener('play', event => {
  for (const player of document.querySelectorAll('audio')) if (player !== event.target) player.pause();
}, true);
watch('value', () => {
  const shown = element.querySelector('.ot-newest');
  if (shown && shown.getBoundingClientRect().top > window.innerHeight * 0.8) shown.scrollIntoView({block: 'nearest'});
});
"""


@dataclass(frozen=True, slots=True)
class _Inputs:
    recording: gr.Audio
    words: gr.Textbox
    runs: tuple[gr.Dropdown, ...]
    speaker: gr.Dropdown
    send: gr.Button
    stop: gr.Button
    again: gr.Button
    begin: gr.Button
    queue: gr.HTML
    alpha: gr.Dropdown | None
    example: gr.Dropdown | None
    ask_example: gr.Button | None


@dataclass(frozen=True, slots=True)
class _Shown:
    frames: tuple[gr.Column, ...]
    models: tuple[gr.HTML, ...]
    past: tuple[gr.HTML, ...]
    now: tuple[gr.HTML, ...]
    corpus: gr.HTML


def talk_app(desk: Desk, config: TalkConfig, folder: Path, examples: Examples | None = None) -> App:
    """The page and its recordings as one application.

    Args:
        desk: answers. folder: that uploads go to; gradio takes it from GRADIO_TEMP_DIR.
        examples: dialogues of a corpus that can be had.
    """
    routes = sound_routes(desk.sounds)
    room = round(config.uploads_mb * 1e6)
    routes.add_middleware(Uploads, folder=folder, max_file_bytes=config.max_file_bytes, max_bytes=room)
    return page_app(
        routes,
        talk_blocks(desk, config, folder, examples),
        config,
        css=css(),
        paths=f"{PAGE_PATHS}|{SOUND_PATHS}|{upload_paths(folder)}",
        max_bytes=config.max_file_bytes + _MULTIPART_BYTES,
    )


def talk_blocks(desk: Desk, config: TalkConfig, folder: Path, examples: Examples | None = None) -> gr.Blocks:
    """The page itself."""
    with gr.Blocks(analytics_enabled=False, title="omnichat web", fill_width=True, delete_cache=_FILES_SEC) as blocks:
        gr.HTML('<div class="ot-head"><h1>omnichat web</h1></div>')
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                inputs = _inputs(desk, config, examples)
            with gr.Column(scale=5, min_width=320):
                shown = _dialogues(desk)
        _asking(desk, config, folder, inputs, shown)
        _beside(blocks, desk, inputs, shown)
        if examples is not None:
            _having_examples(desk, examples, inputs, shown)
    blocks.queue(max_size=config.queue, default_concurrency_limit=8, api_open=False)
    blocks.state_session_capacity = 16 * config.tabs
    return blocks


def _inputs(desk: Desk, config: TalkConfig, examples: Examples | None) -> _Inputs:
    """The left side: the turn, the buttons, what is talked to."""
    recording = gr.Audio(
        sources=["upload", "microphone"],
        type="filepath",
        label=f"Your turn, up to {config.max_sec:g} s",
        buttons=[],
        elem_id="ot-recording",
    )
    words = gr.Textbox(
        label="Words",
        placeholder="for a model that reads them, or in place of a recording",
        max_length=MAX_WORDS,
        lines=1,
        elem_id="ot-words",
    )
    with gr.Row():
        send = gr.Button("Send", variant="primary", min_width=90, elem_id="ot-send")
        stop = gr.Button("Stop", min_width=90, elem_id="ot-stop")
    with gr.Row():
        again = gr.Button("Answer again", size="sm", min_width=90, elem_id="ot-again")
        begin = gr.Button("New dialogue", size="sm", min_width=90, elem_id="ot-begin")
    queue = gr.HTML("&nbsp;", elem_id="ot-queue")
    alpha, runs, speaker = _choices(desk)
    example: gr.Dropdown | None = None
    ask_example: gr.Button | None = None
    if examples is not None:
        with gr.Accordion("Dialogues of a corpus", open=False):
            listed = [(title, number) for number, title in enumerate(examples.titles())]
            example = gr.Dropdown(listed, value=0, label="Dialogue", elem_id="ot-example")
            ask_example = gr.Button("Have this dialogue", size="sm", elem_id="ot-ask-example")
    return _Inputs(recording, words, runs, speaker, send, stop, again, begin, queue, alpha, example, ask_example)


def _choices(desk: Desk) -> tuple[gr.Dropdown | None, tuple[gr.Dropdown, ...], gr.Dropdown]:
    """(alpha, the models, the voice) as dropdowns."""
    choices = list(desk.shelf.choices.values())
    listed = [(choice.title, choice.name) for choice in choices]
    alphas = sorted({_alpha(choice) for choice in choices if choice.alpha is not None}, key=float)
    alpha: gr.Dropdown | None = None
    with gr.Accordion("Models and voice", open=True):
        if len(alphas) > 1:
            alpha = gr.Dropdown([ANY, *alphas], value=ANY, label="Alpha of the models", elem_id="ot-alpha")
        run = gr.Dropdown(listed, value=choices[0].name, label="Model", elem_id="ot-run")
        other = gr.Dropdown([("none", NOBODY), *listed], value=NOBODY, label="Beside it", elem_id="ot-other")
        speakers = [("not spoken", NOBODY)]
        if desk.speech is not None:
            speakers += [
                (name if sex is None else f"{name} ({sex})", name) for name, sex in desk.speech.speakers.items()
            ]
        speaker = gr.Dropdown(
            speakers,
            value=speakers[:2][-1][1],
            label="Voice of the replies",
            visible=len(speakers) > 1,
            elem_id="ot-speaker",
        )
    return alpha, (run, other), speaker


def _dialogues(desk: Desk) -> _Shown:
    """The right side: a column for each model that is asked."""
    frames, models, past, now = [], [], [], []
    with gr.Row():
        for number in range(COLUMNS):
            with gr.Column(min_width=300, visible=number == 0, elem_id=f"ot-column-{number}") as frame:
                first = next(iter(desk.shelf.choices.values()))
                models.append(gr.HTML(model_html(first) if number == 0 else ""))
                past.append(gr.HTML(js_on_load=_ON_DIALOGUE, elem_id=f"ot-past-{number}"))
                now.append(gr.HTML(js_on_load=_ON_DIALOGUE, elem_id=f"ot-now-{number}"))
            frames.append(frame)
    corpus = gr.HTML(elem_id="ot-corpus")
    return _Shown(tuple(frames), tuple(models), tuple(past), tuple(now), corpus)


def _asking(desk: Desk, config: TalkConfig, folder: Path, inputs: _Inputs, shown: _Shown) -> None:
    """Send, answer again, new dialogue, stop."""
    chosen = [*inputs.runs, inputs.speaker]
    outputs = [*shown.now, *shown.past, inputs.recording, inputs.words, shown.corpus]

    def ask(request: gr.Request, path: Any, typed: Any, run: Any, other: Any, speaker: Any) -> Iterator[list[Any]]:
        with _one_line():
            sound = None if path is None else read_upload(str(path), folder, config.max_sec)
            words = str(typed or "").strip()[:MAX_WORDS]
            if sound is None and not words:
                raise UserError("record or upload a turn, or type its words")
            updates = desk.ask(request.session_hash, _runs(run, other), Said("user", sound, words), _speaker(speaker))
            yield from _shown_as(updates, clears=True)

    def again(request: gr.Request, run: Any, other: Any, speaker: Any) -> Iterator[list[Any]]:
        with _one_line():
            yield from _shown_as(desk.again(request.session_hash, _runs(run, other), _speaker(speaker)), clears=False)

    def begin(request: gr.Request) -> list[Any]:
        with _one_line():
            columns = desk.begin(request.session_hash)
        return ["" for _ in columns] + [past_html(column) for column in columns] + [None, "", ""]

    def stop(request: gr.Request) -> None:
        desk.stop(request.session_hash)

    asking = _decoding(inputs)
    gr.on(
        [inputs.send.click, inputs.words.submit],
        ask,
        [inputs.recording, inputs.words, *chosen],
        outputs,
        api_name="ask",
        **asking,
    )
    inputs.again.click(again, chosen, outputs, api_name="again", **asking)
    inputs.begin.click(begin, None, outputs, api_visibility="private", show_progress="hidden")
    # Not in the queue: a full one must not keep it out.
    inputs.stop.click(
        stop, None, None, queue=False, api_name="stop", api_visibility="undocumented", show_progress="hidden"
    )


def _decoding(inputs: _Inputs) -> dict[str, Any]:
    """What all events that decode have in common: one of them at a time, all tabs together."""
    return {
        "concurrency_limit": 1,
        "concurrency_id": "decode",
        "api_visibility": "undocumented",
        "show_progress": "minimal",
        "show_progress_on": inputs.queue,  # the place in the queue, while there is no reply to look at
    }


def _beside(blocks: gr.Blocks, desk: Desk, inputs: _Inputs, shown: _Shown) -> None:
    """What follows from a choice, and the end of a tab."""
    quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}

    def model(name: Any) -> str:
        choice = desk.shelf.choices.get(str(name))
        return "" if choice is None else model_html(choice)

    def other(name: Any) -> tuple[Any, str]:
        return gr.Column(visible=name != NOBODY), model(name)

    def narrowed(alpha: Any, run: Any, second: Any) -> tuple[Any, Any]:
        choices = desk.shelf.choices.values()
        fitting = [choice for choice in choices if alpha in (ANY, _alpha(choice))]
        listed = [(choice.title, choice.name) for choice in fitting]
        names = [choice.name for choice in fitting]
        first = run if run in names else next(iter(names), run)
        return (
            gr.Dropdown(choices=listed, value=first),
            gr.Dropdown(choices=[("none", NOBODY), *listed], value=second if second in names else NOBODY),
        )

    def leave(request: gr.Request) -> None:
        desk.leave(request.session_hash)

    inputs.runs[0].change(model, inputs.runs[0], shown.models[0], **quiet)
    inputs.runs[1].change(other, inputs.runs[1], [shown.frames[1], shown.models[1]], **quiet)
    if inputs.alpha is not None:
        inputs.alpha.change(narrowed, [inputs.alpha, *inputs.runs], list(inputs.runs), **quiet)
    blocks.unload(leave)


def _having_examples(desk: Desk, examples: Examples, inputs: _Inputs, shown: _Shown) -> None:
    """A dialogue of a corpus: its history is taken over, its last turn is asked."""
    assert inputs.example is not None and inputs.ask_example is not None

    def have(request: gr.Request, number: Any, run: Any, other: Any, speaker: Any) -> Iterator[list[Any]]:
        with _one_line():
            example = examples.get(number)
            updates = desk.ask_example(request.session_hash, _runs(run, other), example, _speaker(speaker))
            yield from _shown_as(updates, clears=False, corpus=example_html(example))

    outputs = [*shown.now, *shown.past, inputs.recording, inputs.words, shown.corpus]
    asked = [inputs.example, *inputs.runs, inputs.speaker]
    inputs.ask_example.click(have, asked, outputs, api_name="example", **_decoding(inputs))


def _shown_as(updates: Iterator[Update], clears: bool, corpus: str = "") -> Iterator[list[Any]]:
    """Updates as values of the outputs: what is under way, what is done, the turn's fields, the corpus's reply.

    Args:
        clears: whether the turn's fields are emptied once a model has answered.
    """
    answered = False
    for update in updates:
        values: list[Any] = [gr.skip() for _ in range(2 * COLUMNS + 2)]
        values[update.number] = now_html(update.pending, update.column)
        if update.pending is None or not update.pending.text:  # the first and the last look at a reply
            values[COLUMNS + update.number] = past_html(update.column)
        answered = answered or update.pending is None
        yield [*values, corpus]
    if clears and answered:
        yield [*(gr.skip() for _ in range(2 * COLUMNS)), None, "", corpus]


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """What goes wrong becomes one line on the page; a user's mistake leaves no trace in the log."""
    try:
        yield
    except UserError as error:
        line = html.escape(str(error).splitlines()[0])  # gradio shows it as HTML
        raise gr.Error(line, title=_TITLE, print_exception=False) from None
    except Exception:
        log.exception("a request failed")
        raise gr.Error("it failed; the log of omnichat web says how", title=_TITLE, print_exception=False) from None


def _alpha(choice: Choice) -> str:
    return "" if choice.alpha is None else f"{choice.alpha:g}"


def _runs(run: Any, other: Any) -> Sequence[str]:
    return [str(name) for name in (run, other) if name not in (None, NOBODY)]


def _speaker(value: Any) -> str | None:
    return None if value in (None, NOBODY) else str(value)
