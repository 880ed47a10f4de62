"""What a baseline is told before a request: versioned prompt files, and examples from them or from training dialogues.

A prompt version is a folder: system.md, a Jinja2 template in its sandbox, and examples.jsonl. The template may use
reads (text | asr | speech), tagged (whether the user's turns show how they were spoken), pitches, speeds and emotions.
A line of examples.jsonl is {"heard": {"text", "style"}, "reply": {"text", "style"}}.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omnichat.data.corpus import AnyCorpus
from omnichat.model.systems.base import PLAYED, USER, Example, Instructions, SeenTurn, System, seen_turn
from omnichat.remote.prompts import PromptFolder
from omnichat.schema import EMOTIONS, PITCHES, SPEEDS, Style
from omnichat.text.style_format import format_reply
from omnichat.utils.errors import UserError
from omnichat.utils.files import iterate_jsonl
from omnichat.utils.seeding import numpy_rng

PACKAGED = Path(__file__).with_name("prompts")
_EXAMPLES = "examples.jsonl"
_PROBED = 2000  # training dialogues that examples are drawn from, at most


class Prompts:
    """One version of the prompt.

    Args:
        version: name of a packaged version (v1), or a folder of the user's own.

    Raises:
        UserError: no such version, a file that is missing, a template that does not compile, an example that is none.
    """

    def __init__(self, version: str) -> None:
        self._templates = PromptFolder("prompts", version, PACKAGED)
        self.folder, self.sha256 = self._templates.folder, self._templates.sha256
        if not (self.folder / _EXAMPLES).is_file():
            raise UserError(f"prompts={version!r}: {self.folder} has no file {_EXAMPLES}")
        self.examples = list(_read_examples(self.folder / _EXAMPLES))
        self.system(reads="text", tagged=False)  # a template that fails does so now

    def system(self, reads: str, tagged: bool) -> str:
        """The system message."""
        values = {"reads": reads, "tagged": tagged, "pitches": PITCHES, "speeds": SPEEDS, "emotions": EMOTIONS}
        return self._templates.fill("system", values)

    def instructions(self, system: System, examples: Sequence[Example]) -> Instructions:
        """All that stands before a request of `system`."""
        return Instructions(self.system(system.input, system.tagged), tuple(examples))

    def packaged_examples(self, count: int, tagged: bool) -> list[Example]:
        """The first `count` examples of the file, with the heard style if `tagged`. Raises UserError: it has fewer."""
        if count > len(self.examples):
            raise UserError(f"shots={count}: {self.folder / _EXAMPLES} has {len(self.examples)} examples")
        return [
            example if tagged else Example(SeenTurn(USER, example.heard.text), example.reply)
            for example in self.examples[:count]
        ]


def training_examples(
    corpora: Sequence[AnyCorpus], count: int, sees: Sequence[str], missing_audio: str, seed: int
) -> list[Example]:
    """`count` exchanges of the training split, drawn by `seed`, the emotions of their replies in turn.

    Raises:
        UserError: the training split has fewer exchanges.
    """
    found: list[tuple[str, AnyCorpus, Any, Any, str]] = []
    for corpus in corpora:
        total = corpus.count("train")
        numbers = numpy_rng(seed, "shots", corpus.name).permutation(total)[:_PROBED]
        for number in numbers.tolist():
            dialogue = corpus.get("train", number)
            for place in range(1, len(dialogue.turns)):
                heard, reply = dialogue.turns[place - 1 : place + 1]
                if heard.speaker == USER and reply.speaker == PLAYED and reply.style:
                    where = f"dialogue {dialogue.id!r} turn {place - 1}"
                    found.append((reply.style.emotion or "", corpus, heard, reply, where))
    if len(found) < count:
        raise UserError(f"shots={count}: the training split has {len(found)} replies with a style; shots_from=prompts")
    order = numpy_rng(seed, "shots", "order").permutation(len(found)).tolist()
    queues: dict[str, list[int]] = {}
    for index in order:
        queues.setdefault(found[index][0], []).append(index)
    chosen: list[int] = []
    while len(chosen) < count:
        for emotion in sorted(queues):
            if queues[emotion] and len(chosen) < count:
                chosen.append(queues[emotion].pop())
    return [
        Example(seen_turn(heard, corpus, sees, missing_audio, where), "".join(format_reply(reply.style, reply.text)))
        for _, corpus, heard, reply, where in (found[index] for index in chosen)
    ]


def _read_examples(path: Path) -> Iterator[Example]:
    for number, row in iterate_jsonl(path):
        try:
            heard, reply = row["heard"], row["reply"]
            if not all(isinstance(side["text"], str) and side["text"].strip() for side in (heard, reply)):
                raise UserError("text must be a non-empty string")
            style, answer = Style(**heard["style"]), Style(**reply["style"])
            yield Example(SeenTurn(USER, heard["text"], style), "".join(format_reply(answer, reply["text"])))
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        except (KeyError, TypeError):
            raise UserError(f"{path}:{number}: an example is heard and reply, each with text and style") from None
