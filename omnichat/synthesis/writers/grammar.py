"""Scripts from an embedded grammar with slots: no language model, no network, the same words for the same seed.

Train, dev and test share no sentence because every sentence holds a topic or a place and each of these belongs to one
split; the word lists are checked for that when they are read.

The reply follows what was heard: its style is `reply_style` of the heard style, its words come from the heard emotion's
own list. That holds for the history's replies too, for every reply of a dialogue is supervised in training. The styles
of the history are drawn anew for each turn, so the history does not tell how the current turn sounds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from omnichat.schema import EMOTIONS, PITCHES, SPEEDS, SPLITS, Style
from omnichat.synthesis.base import Line, Script, ScriptRequest, ScriptWriter, Sound, Variant
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import sha256_bytes
from omnichat.utils.seeding import python_rng

PACKAGED_WORDS = Path(__file__).with_name("grammar.yaml")
_FILLERS = {"emotion": "topics", "audio": "places", "music": "places"}
_SLOTS = {"topics": "{topic}", "places": "{place}"}


class GrammarWriter(ScriptWriter):
    """Fills the templates of a word list.

    Args:
        words: a YAML file like grammar.yaml beside this module; None = that one.
        reply_emotion: heard emotion -> emotion of the reply, for each of the seven. Pitch and speed of a reply always
            follow the heard ones (speakers who get along converge), relative to the replying speaker's own voice.
    """

    def __init__(self, words: str | None, reply_emotion: Mapping[str, str]) -> None:
        self.path = PACKAGED_WORDS if words is None else Path(words).expanduser()
        self.words = _read_words(self.path)
        for name in (*reply_emotion, *reply_emotion.values()):
            if name not in EMOTIONS:
                raise one_of("writer.reply_emotion", name, EMOTIONS)
        if missing := [name for name in EMOTIONS if name not in reply_emotion]:
            raise UserError(f"writer.reply_emotion lacks {missing[0]!r}")
        self.reply_emotion = dict(reply_emotion)

    def write(self, request: ScriptRequest) -> Script:
        """See `ScriptWriter.write`."""
        if request.scenario not in _FILLERS:
            raise one_of("scenario of the grammar writer", request.scenario, _FILLERS)
        if request.scenario != "emotion" and request.sound is None:
            raise UserError(f"a script of scenario {request.scenario!r} needs a sound")
        rng = python_rng(request.seed, "script", request.scenario, request.split)
        kind = _FILLERS[request.scenario]
        topic = rng.choice(self.words[kind][request.split])
        if request.topic is not None and request.topic in self.words[kind][request.split]:
            topic = request.topic  # one that is not in this split's list could make a sentence of two splits
        slot = {"topic": topic, "place": topic}
        part = self.words[request.scenario]
        current = rng.choice(part["current"]).format(**slot)
        variants = []
        used: set[str] = set()
        for style in request.styles:
            text = self._last_reply(request, style, slot, rng, used)
            variants.append(Variant(style, Line("B", text, self.reply_style(style))))
        history = tuple(self._history(part, request.history_turns, slot, rng))
        return Script(topic, request.scenario, history, current, tuple(variants), request.sound)

    def reply_style(self, heard: Style) -> Style:
        """The style of the reply to a turn that was spoken in style `heard`."""
        return Style(heard.pitch, heard.speed, None if heard.emotion is None else self.reply_emotion[heard.emotion])

    def describe(self) -> dict[str, Any]:
        """Name, hash of the word list, and the rule of replies."""
        return {
            "name": "grammar with slots",
            "words_sha256": sha256_bytes(self.path.read_bytes()),
            "reply_emotion": self.reply_emotion,
            "reply_pitch_and_speed": "as heard",
            "licence": "Apache-2.0 (part of omnichat)" if self.path == PACKAGED_WORDS else "the user's own word list",
        }

    def _history(
        self, part: Mapping[str, Any], turns: int, slot: Mapping[str, str], rng: random.Random
    ) -> Iterator[Line]:
        if turns // 2 > len(part["history"]):
            raise UserError(f"the word list has {len(part['history'])} history sentences, {turns // 2} are needed")
        replies = part.get("history_replies", part["replies"])
        said: set[str] = set()
        for template in rng.sample(part["history"], turns // 2):
            heard = Style(rng.choice(PITCHES), rng.choice(SPEEDS), rng.choice(EMOTIONS))
            yield Line("A", template.format(**slot), heard)
            style = self.reply_style(heard)
            yield Line("B", _fresh(replies[style.emotion or "neutral"], slot, rng, said), style)

    def _last_reply(
        self, request: ScriptRequest, heard: Style, slot: Mapping[str, str], rng: random.Random, used: set[str]
    ) -> str:
        emotion = self.reply_style(heard).emotion or "neutral"
        part = self.words[request.scenario]
        if request.sound is None:
            return _fresh(part["replies"][emotion], slot, rng, used)
        sound = _sound_words(request.sound)
        return _fresh(
            part["replies"], {**slot, "opener": rng.choice(self.words["openers"][emotion]), "sound": sound}, rng, used
        )


def _fresh(templates: list[str], slot: Mapping[str, str], rng: random.Random, used: set[str]) -> str:
    """Fill one of the templates, one not used before in this dialogue where there is any left."""
    texts = [template.format(**slot) for template in templates]
    choice = rng.choice([text for text in texts if text not in used] or texts)
    used.add(choice)
    return choice


def _sound_words(sound: Sound) -> str:
    """What fills {sound}: "a dog barking", or the mood of music."""
    return sound.words.get("mood", sound.caption)


def _read_words(path: Path) -> dict[str, Any]:
    """Read and check a word list. Raises UserError naming the file and what it lacks."""
    if not path.is_file():
        raise UserError(f"writer.words: {path}: no such file")
    try:
        words = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    try:
        for kind in _SLOTS:
            _check_fillers(path, kind, words[kind])
        for scenario, kind in _FILLERS.items():
            for where, template in _templates(words[scenario], scenario):
                if _SLOTS[kind] not in template:
                    raise UserError(f"{path}: {where}: {template!r} lacks {_SLOTS[kind]}, which keeps the splits apart")
        for emotion in EMOTIONS:
            if not all((words["openers"][emotion], words["emotion"]["replies"][emotion])):
                raise UserError(f"{path}: no replies for emotion {emotion!r}")
    except KeyError as error:
        raise UserError(f"{path}: lacks the key {error}") from None
    return words


def _check_fillers(path: Path, kind: str, lists: Mapping[str, list[str]]) -> None:
    owner: dict[str, str] = {}
    for split in SPLITS:
        if not lists[split]:
            raise UserError(f"{path}: {kind}.{split} is empty")
        for word in lists[split]:
            if owner.setdefault(word, split) != split:
                raise UserError(f"{path}: {word!r} is in {kind}.{owner[word]} and in {kind}.{split}")


def _templates(node: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every template below `node`, with the path to it."""
    if isinstance(node, str):
        yield where, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _templates(value, f"{where}.{key}")
    else:
        for index, value in enumerate(node):
            yield from _templates(value, f"{where}[{index}]")
