"""The judge's prompts: versioned files, one for each scenario, filled in with a reply and what it answers.

A version is a folder: system.md, one .md for each scenario, and what they include (Jinja2, in its sandbox). Names that
they may use: history (list of speaker, text), heard (text, manner), scene (caption, keywords; or none), reference and
reply (text, manner). Texts are JSON strings; a manner is "emotion sad, pitch low, speed slow", or empty.

The prompt does not say which system made the reply, what it was given to hear, or what else it wrote.
"""

from __future__ import annotations

import json
from pathlib import Path

from omnichat.evaluation.predictions import Heard, Line, Prediction, Reply
from omnichat.remote.prompts import PromptFolder
from omnichat.schema import SCENARIOS, Scene, Style

PACKAGED = Path(__file__).with_name("prompts")


class JudgePrompts:
    """The messages that ask for the grade of a reply.

    Args:
        version: name of a packaged version (v1), or a folder of the user's own.

    Raises:
        UserError: no such version, a file that is missing, a template that does not compile.
    """

    def __init__(self, version: str) -> None:
        self._templates = PromptFolder("judge.prompts", version, PACKAGED)
        self.version = self._templates.folder.name
        for scenario in SCENARIOS:  # a template that fails does so now, not after an hour
            for scene in (None, Scene("a sound"), Scene("a sound", keywords=("sound",))):
                self.messages(_trial(scenario, scene))

    def name(self, scenario: str) -> str:
        """Version and scenario, as they stand beside a score."""
        return f"{self.version}/{scenario}"

    def messages(self, prediction: Prediction) -> list[dict[str, str]]:
        """System message, and the dialogue with the reply to be graded."""
        scene = prediction.heard.scene
        values = {
            "history": [{"speaker": line.speaker, "text": quoted(line.text)} for line in prediction.history],
            "heard": {"text": quoted(prediction.heard.text), "manner": manner(prediction.heard.style)},
            "scene": scene
            and {"caption": quoted(scene.caption), "keywords": [quoted(word) for word in scene.keywords]},
            "reference": _reply(prediction.reference),
            "reply": _reply(prediction.hypothesis),
        }
        parts = (("system", "system"), ("user", prediction.scenario))
        return [{"role": role, "content": self._templates.fill(name, values)} for role, name in parts]


def quoted(text: str) -> str:
    """A text as a JSON string without "<", so that no control token of a model can stand in it."""
    return json.dumps(text, ensure_ascii=False).replace("<", "\\u003c")


def manner(style: Style | None) -> str:
    """Labels in words; empty where there are none."""
    labels = [] if style is None else [(name, getattr(style, name)) for name in ("emotion", "pitch", "speed")]
    return ", ".join(f"{name} {label}" for name, label in labels if label is not None)


def _reply(reply: Reply) -> dict[str, str]:
    return {"text": quoted(reply.text), "manner": manner(reply.style)}


def _trial(scenario: str, scene: Scene | None) -> Prediction:
    return Prediction(
        id="x#1",
        dialogue="x",
        turn=1,
        source="x",
        kind="synthetic",
        scenario=scenario,
        split="test",
        history=() if scene is None else (Line("A", "a"), Line("B", "b")),
        heard=Heard("a", Style("low", "slow", "sad"), scene),
        reference=Reply("b"),
        hypothesis=Reply("b", None),
        raw="b",
        input="speech",
    )
