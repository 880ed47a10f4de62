"""The prompts of script writers: versioned files, filled in for a request, with examples of how it is answered.

A prompt version is a folder: system.md, one .md for each scenario, what they include, and examples.jsonl. The templates
are Jinja2 in its sandbox. Names that they may use: max_words, pitches, speeds, emotions (the labels), topic (or none),
history_turns, styles (pitch, speed, emotion of each), sound (caption, keywords; or none), reply_style.

A line of examples.jsonl holds scenario, topic, sound (or none), styles, and answer, which is an answer as
contract.py describes it. The examples of a request's scenario come before it as an exchange of messages, for small
models learn most from what they see themselves say.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omnichat.remote.prompts import PromptFolder
from omnichat.schema import EMOTIONS, PITCHES, SPEEDS, Style
from omnichat.synthesis.base import Rejected, ScriptRequest, Sound
from omnichat.synthesis.writers.contract import MAX_ANSWER_CHARS, check_reply_style, parse_script
from omnichat.synthesis.writers.labels import plain
from omnichat.utils.errors import UserError
from omnichat.utils.files import iterate_jsonl
from omnichat.utils.log import get_logger

log = get_logger(__name__)

Message = dict[str, str]  # role and content
PACKAGED = Path(__file__).with_name("prompts")
SCENARIOS = ("emotion", "audio", "music")
_EXAMPLE_FIELDS = {"scenario", "topic", "styles", "answer"}


class Prompts:
    """The messages that ask a chat model for a script.

    Args:
        version: name of a packaged version (v1), or a folder of the user's own.
        examples: how many examples precede a request, 0 or more; as many as there are for its scenario, at most.
        max_words: longest sentence. reply_style: see contract.py.

    Raises:
        UserError: no such version, a file that is missing, a template that does not compile, an example that is none.
    """

    def __init__(self, version: str, examples: int, max_words: int, reply_style: str) -> None:
        if examples < 0:
            raise UserError(f"writer.examples must be >= 0, got {examples}")
        check_reply_style(reply_style)
        self._templates = PromptFolder("writer.prompts", version, PACKAGED)
        self.folder = self._templates.folder
        self.version, self.max_words, self.reply_style = version, max_words, reply_style
        self._examples: dict[str, list[Message]] = {name: [] for name in SCENARIOS}
        for where, request, answer in _read_examples(self.folder, reply_style):
            script = parse_script(answer, request, MAX_ANSWER_CHARS, reply_style)
            if isinstance(script, Rejected):
                raise UserError(f"{where}: not a valid example: {script.reasons[0]}")
            if max(len(sentence.split()) for sentence in script.sentences()) > max_words:
                log.info("%s: an example with sentences of more than %d words is left out", where, max_words)
            elif len(self._examples[request.scenario]) < 2 * examples:
                asked = {"role": "user", "content": self._filled(request.scenario, request)}
                self._examples[request.scenario] += [asked, {"role": "assistant", "content": answer}]
        for scenario in SCENARIOS:  # a template that fails does so now, not after an hour
            self.messages(_trial(scenario))

    def messages(self, request: ScriptRequest) -> list[Message]:
        """System message, examples, and the request itself."""
        if request.scenario not in SCENARIOS:
            raise UserError(f"no prompt for scenario {request.scenario!r}; there is one for: {', '.join(SCENARIOS)}")
        if request.scenario != "emotion" and request.sound is None:
            raise UserError(f"a script of scenario {request.scenario!r} needs a sound")
        system = {"role": "system", "content": self._filled("system", request)}
        asked = {"role": "user", "content": self._filled(request.scenario, request)}
        return [system, *self._examples[request.scenario], asked]

    def describe(self) -> dict[str, Any]:
        """JSON facts for the data card."""
        return {"version": self.version, "sha256": self._templates.sha256}

    def _filled(self, name: str, request: ScriptRequest) -> str:
        sound = request.sound and {
            "caption": plain(request.sound.caption),
            "keywords": [plain(word) for word in request.sound.keywords],
        }
        values = {
            "max_words": self.max_words,
            "pitches": PITCHES,
            "speeds": SPEEDS,
            "emotions": EMOTIONS,
            "topic": None if request.topic is None else plain(request.topic),
            "history_turns": request.history_turns,
            "styles": [asdict(style) for style in request.styles],
            "sound": sound,
            "reply_style": self.reply_style,
        }
        return self._templates.fill(name, values)


def _read_examples(folder: Path, reply_style: str) -> list[tuple[str, ScriptRequest, str]]:
    """(file:line, request, answer as JSON) of each example."""
    path = folder / "examples.jsonl"
    found = []
    for number, row in iterate_jsonl(path) if path.is_file() else ():
        where = f"{path}:{number}"
        if missing := sorted(_EXAMPLE_FIELDS - set(row)):
            raise UserError(f"{where}: the example lacks {missing[0]!r}")
        try:
            sound = (
                Sound(words={}, **{**row["sound"], "keywords": tuple(row["sound"]["keywords"])})
                if row.get("sound")
                else None
            )
            answer = row["answer"]
            styles = tuple(Style(**style) for style in row["styles"])
            turns = len(answer["history"])
            request = ScriptRequest(row["scenario"], "train", 0, turns, styles, sound, row["topic"])
            if reply_style == "heard":
                answer = {**answer, "replies": [{k: r[k] for k in ("variant", "text")} for r in answer["replies"]]}
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{where}: not an example of the documented form ({error})") from None
        if request.scenario not in SCENARIOS:
            raise UserError(f"{where}: scenario must be one of: {', '.join(SCENARIOS)}")
        found.append((where, request, json.dumps(answer, ensure_ascii=False)))
    return found


def _trial(scenario: str) -> ScriptRequest:
    sound = None if scenario == "emotion" else Sound("x", "a sound", ("sound",), {})
    return ScriptRequest(scenario, "train", 0, 2, (Style("low", "slow", "sad"), Style()), sound)
