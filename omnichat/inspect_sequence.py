"""`omnichat inspect`: one training sequence, coloured by role and supervision."""

from __future__ import annotations

from rich.console import Console

from omnichat.assembly import assemble, checked_sources
from omnichat.config import InspectRun
from omnichat.schema import SPLITS, Dialogue
from omnichat.text.visualise import print_sequence
from omnichat.utils.errors import UserError, one_of


def run(config: InspectRun) -> None:
    """Print the sequences of one dialogue as training would see them."""
    if config.split not in SPLITS:
        raise one_of("split", config.split, SPLITS)
    sources = checked_sources(config)
    by_name = {source.name: source for source in sources}
    name = next(iter(by_name)) if config.from_source is None else config.from_source
    if name not in by_name:
        raise one_of("from_source", name, by_name)
    dialogue = _find(list(by_name[name].corpus.iterate(config.split)), config)
    parts = assemble(config, sources, with_features=False)
    console = Console(force_terminal=config.color, highlight=False)
    fusion = parts.model.fusion
    for sequence in parts.chat.sequences(dialogue):
        print_sequence(console, dialogue, sequence, parts.chat.tokenizer, fusion.window_sec if fusion else None)


def _find(dialogues: list[Dialogue], config: InspectRun) -> Dialogue:
    for dialogue in dialogues:
        if dialogue.id == config.dialogue:
            return dialogue
    if config.dialogue.isdigit() and int(config.dialogue) < len(dialogues):
        return dialogues[int(config.dialogue)]
    raise UserError(
        f"dialogue={config.dialogue}: the split {config.split!r} has {len(dialogues)} dialogues; give a number from 0 "
        f"or an id such as {dialogues[0].id!r}" if dialogues else f"split={config.split} has no dialogues"
    )  # fmt: skip
