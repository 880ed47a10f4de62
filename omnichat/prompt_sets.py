"""What an evaluation asks a model: the held-out replies of a run's own corpora, and of test sets from outside.

A set depends on its corpora, the split and the chat format alone: not on alpha, its schedule, weights or seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from omnichat.config import EvaluateRun, TrainRun
from omnichat.data.outside_set import open_outside_set
from omnichat.evaluation.held_out import describe_leaks, find_leaks
from omnichat.model.generation import Prompt, end_of_turn_id, prompt_for
from omnichat.schema import Dialogue
from omnichat.text.chat import ChatFormat
from omnichat.training.data import Source, split_items
from omnichat.utils.errors import UserError
from omnichat.utils.files import sha256_bytes
from omnichat.utils.log import get_logger
from omnichat.utils.progress import progress

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Replies that are evaluated together.

    Attributes:
        name: of a set from outside; None: the run's own.
        split: of its dialogues.
        sources: the corpora; a set from outside is one, called by the set's name.
        prompts: in the order of the sources and their manifests.
        dialogues: (source, id) -> dialogue of every prompt.
        end_id: token that ends a reply.
        leaks: how many replies training has met something of; with `leaks=leave_out` they are not in `prompts`.
    """

    name: str | None
    split: str
    sources: tuple[Source, ...]
    prompts: tuple[Prompt, ...]
    dialogues: dict[tuple[str, str], Dialogue]
    end_id: int
    leaks: int = 0

    @property
    def stem(self) -> str:
        """Of the files' names: `test`, or `vox.test` of the set vox."""
        return self.split if self.name is None else f"{self.name}.{self.split}"

    def dialogue_of(self, prompt: Prompt) -> Dialogue:
        """The dialogue that a prompt begins."""
        return self.dialogues[prompt.item.source, prompt.item.dialogue]

    def tested(self) -> list[tuple[Dialogue, int]]:
        """(dialogue, index of the reply's turn) of every prompt."""
        return [(self.dialogue_of(prompt), prompt.turn) for prompt in self.prompts]

    def fingerprint(self) -> str:
        """Hash of which replies are asked for, of which corpora: two runs with the same one met the same test."""
        asked = [f"{prompt.item.source}/{prompt.item.dialogue}#{prompt.turn}" for prompt in self.prompts]
        return sha256_bytes("\n".join([*(s.corpus.fingerprint() for s in self.sources), *asked]).encode())


def outside_sources(config: EvaluateRun, trained: TrainRun) -> list[Source]:
    """Open the test sets from outside.

    Raises:
        UserError: no such corpus, no dialogue of the split, or a name that one of the run's sources has.
    """
    for name in config.sets:
        if name in trained.mixture.sources:
            raise UserError(
                f"sets.{name}: the run trained on a source of that name, whose held-out dialogues are its own test "
                "set; give the set another name"
            )
    return [
        Source(name, open_outside_set(name, given, config.split, config.limit), None)
        for name, given in config.sets.items()
    ]


def prompt_sets(config: EvaluateRun, sources: Sequence[Source], chat: ChatFormat) -> list[PromptSet]:
    """The sets to decode: the run's own first, then those from outside.

    Args:
        config: which, and how many.
        sources: the run's and, by the names in `config.sets`, those from outside.
        chat: the run's chat format.

    Raises:
        UserError: a set without any reply.
    """
    own = tuple(source for source in sources if source.name not in config.sets)
    found = [_prompt_set(config, None, own, chat)] if config.own else []
    for source in sources:
        if source.name in config.sets:
            found.append(_prompt_set(config, source.name, (source,), chat))
    return found


def _prompt_set(config: EvaluateRun, name: str | None, sources: tuple[Source, ...], chat: ChatFormat) -> PromptSet:
    prompts: list[Prompt] = []
    dialogues: dict[tuple[str, str], Dialogue] = {}
    end_id = None
    for source in sources:
        items = split_items([source], chat, config.split)[source.name]
        by_id = {dialogue.id: dialogue for dialogue in source.corpus.iterate(config.split)}
        for item in items[: config.limit]:
            end_id = end_of_turn_id(item) if end_id is None else end_id
            replies = item.sequence.replies[-1:] if config.replies == "last" else item.sequence.replies
            prompts += [prompt_for(item, reply) for reply in replies]
            dialogues[source.name, item.dialogue] = by_id[item.dialogue]
    if end_id is None:
        whose = "the run's corpora have" if name is None else f"sets.{name} has"
        raise UserError(f"split={config.split}: {whose} no {config.split} dialogue with a reply")
    return PromptSet(name, config.split, sources, tuple(prompts), dialogues, end_id)


def leaking(config: EvaluateRun, asked: Sequence[PromptSet], trained_on: Sequence[Source]) -> list[list[int]]:
    """The numbers of the replies of each set of which training has met words, topic or recording; told as warnings.

    What counts as training is the train split of every source of the mixture, whatever alpha drew from it: so what is
    left out does not depend on alpha.

    Raises:
        UserError: there are some, and `leaks=refuse`; or a set has no others, and `leaks=leave_out`.
    """
    tested = [each.tested() for each in asked]
    leaks = find_leaks([pair for part in tested for pair in part], _training(trained_on))
    found, first = [], 0
    for each, part in zip(asked, tested, strict=True):
        mine = [replace(leak, row=leak.row - first) for leak in leaks if first <= leak.row < first + len(part)]
        first += len(part)
        rows = sorted({leak.row for leak in mine})
        found.append(rows)
        if not rows:
            continue
        said = f"{each.stem}: {describe_leaks(mine, part)}"
        if config.leaks == "refuse":
            raise UserError(f"leaks=refuse: {said}; leaks=leave_out evaluates the others")
        if config.leaks == "leave_out" and len(rows) == len(part):
            raise UserError(f"leaks=leave_out leaves nothing: {said}")
        log.warning("%s%s", said, "; left out" if config.leaks == "leave_out" else "")
    return found


def without(config: EvaluateRun, asked: PromptSet, rows: Sequence[int]) -> PromptSet:
    """The set with its leaks counted and, where `leaks=leave_out`, without them."""
    gone = set(rows) if config.leaks == "leave_out" else set()
    kept = tuple(prompt for number, prompt in enumerate(asked.prompts) if number not in gone)
    return replace(asked, leaks=len(rows), prompts=kept)


def _training(sources: Sequence[Source]) -> Iterator[tuple[str, Dialogue]]:
    with progress(sum(source.corpus.count("train") for source in sources), "leaks", unit="dialogue") as bar:
        for source in sources:
            for dialogue in source.corpus.iterate("train"):
                yield source.name, dialogue
                bar.update(1)
