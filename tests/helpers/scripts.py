"""Requests for scripts, and answers to them as a language model would write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import cache
from typing import Any

from omnichat.schema import EMOTIONS, Style
from omnichat.synthesis.base import Script, ScriptRequest, Sound
from omnichat.synthesis.writers.grammar import GrammarWriter
from tests.helpers.fault_proxy import asking, completion

STYLES = (Style("low", "slow", "happy"), Style("high", "normal", "sad"), Style("normal", "fast", "disgusted"))
OWL = Sound("animals/owl.mp3", "an owl hooting", ("owl", "hooting"), {"animal": "owl", "action": "hooting"})
CALM = Sound("music/calm/x.opus", "calm acoustic music", ("calm",), {"mood": "calm", "kind": "acoustic"})
SOUNDS = {"emotion": None, "audio": OWL, "music": CALM}


def request(
    seed: int = 0, scenario: str = "emotion", turns: int = 4, split: str = "train", **more: Any
) -> ScriptRequest:
    """A request of three styles."""
    return ScriptRequest(scenario, split, seed, turns, more.pop("styles", STYLES), SOUNDS[scenario], **more)


@cache
def grammar() -> GrammarWriter:
    """The packaged grammar, mirroring emotions."""
    return GrammarWriter(None, {name: name for name in EMOTIONS})


def answer_of(script: Script, reply_style: str = "chosen") -> dict[str, Any]:
    """A script as the JSON object of the contract."""

    def labels(style: Style) -> dict[str, Any]:
        return {"pitch": style.pitch, "speed": style.speed, "emotion": style.emotion}

    history = [{"speaker": line.speaker, "text": line.text, **labels(line.style)} for line in script.history]
    replies = [
        {"variant": n, "text": v.reply.text, **(labels(v.reply.style) if reply_style == "chosen" else {})}
        for n, v in enumerate(script.variants, start=1)
    ]
    return {"topic": script.topic, "history": history, "current": script.current, "replies": replies}


def script_file_row(asked: ScriptRequest | None = None) -> dict[str, Any]:
    """The grammar's script of a request as a line of a script file."""
    asked = asked or request()
    script = grammar().write(asked)
    answer = answer_of(script)
    variants = [
        {"style": asdict(heard), "reply": {key: value for key, value in reply.items() if key != "variant"}}
        for heard, reply in zip(asked.styles, answer["replies"], strict=True)
    ]
    sound = asked.sound and {"caption": asked.sound.caption, "keywords": list(asked.sound.keywords)}
    head = {"scenario": asked.scenario, "split": asked.split, "topic": script.topic, "sound": sound}
    return {**head, "history": answer["history"], "current": answer["current"], "variants": variants}


def by_seed(requests: Iterable[ScriptRequest], wrap: Callable[[str], str] = str) -> Callable[[dict[str, Any]], Any]:
    """What a `ChatServer` replies: to each request, known by its seed, the grammar's script as JSON."""
    asked = {request.seed % 2**31: request for request in requests}

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        return completion(wrap(json.dumps(answer_of(grammar().write(asked[body["seed"]])))))

    return reply


def openai_writer(url: str, **changed: Any) -> Any:
    """The writer of configs/writer/openai.yaml with short waits, at an address."""
    from omnichat.synthesis.writers.openai import OpenAIWriter

    own: dict[str, Any] = {
        "model": "tiny",
        "licence": "test",
        "examples": 1,
        "reply_style": "chosen",
        "max_words": 14,
        "temperature": 0.9,
        "max_tokens": 900,
    }
    return OpenAIWriter(**asking(url, **own | changed))
