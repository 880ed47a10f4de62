"""Sample replies while a run trains: the same few dev turns, decoded every n steps.

Decoding is greedy and draws nothing, and the model goes back to the mode it was in: a run with samples computes the
same bits as one without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnichat.audio.io import load_audio, save_audio
from omnichat.data.collate import Features, Item
from omnichat.model.generation import Prompt, end_of_turn_id, generate_replies, prompt_for
from omnichat.model.omnichat import OmniChat
from omnichat.schema import Dialogue
from omnichat.text.chat import ChatFormat
from omnichat.text.style_format import parse_reply
from omnichat.training.data import Source
from omnichat.training.watch import WatchConfig
from omnichat.utils.files import write_jsonl_atomic

SAMPLE_RATE_HZ = 16_000  # of the recordings that are kept


@dataclass(frozen=True, slots=True)
class _Slot:
    """A reply that is sampled again and again."""

    prompt: Prompt
    source: Source
    dialogue: Dialogue

    @property
    def id(self) -> str:
        return f"{self.prompt.item.source}/{self.dialogue.id}#{self.prompt.turn}"


@dataclass(frozen=True, slots=True)
class Sampler:
    """Writes <run>/samples/step-NNNNNN.jsonl, one reply a line, and the heard turns' recordings once.

    Args:
        slots: what `build_sampler` chose.
        chat: decodes tokens.
        features: what the experts heard.
        config: how often, how long.
        run: the run's folder.
        precision: bf16 | fp32.
        batch_tokens: padded positions that a decoding batch holds at most.
    """

    slots: Sequence[_Slot]
    chat: ChatFormat
    features: Features | None
    config: WatchConfig
    run: Path
    precision: str
    batch_tokens: int

    def due(self, step: int) -> bool:
        """Whether samples are taken after this step."""
        return self.config.samples_every > 0 and step % self.config.samples_every == 0

    def take(self, model: OmniChat, step: int, write: bool = True) -> list[dict[str, Any]]:
        """Decode the replies; with `write` also keep them.

        Returns:
            The rows: step, id, source, scenario, heard, reference, reference_style, reply, style (None where it cannot
            be parsed), audio (path inside the run folder, None for a turn without recording).
        """
        raw = generate_replies(
            model,
            [slot.prompt for slot in self.slots],
            self.chat,
            self.features,
            end_of_turn_id(self.slots[0].prompt.item),
            max_new_tokens=self.config.samples_max_new_tokens,
            batch_tokens=self.batch_tokens,
            precision=self.precision,
        )
        if not write:
            return []
        rows = [self._row(slot, step, text) for slot, text in zip(self.slots, raw, strict=True)]
        write_jsonl_atomic(self.run / "samples" / f"step-{step:06d}.jsonl", rows)
        return rows

    def _row(self, slot: _Slot, step: int, raw: str) -> dict[str, Any]:
        heard, reference = slot.dialogue.turns[slot.prompt.turn - 1], slot.dialogue.turns[slot.prompt.turn]
        style, words = parse_reply(raw)
        return {
            "step": step,
            "id": slot.id,
            "source": slot.prompt.item.source,
            "scenario": slot.dialogue.scenario,
            "heard": heard.text,
            "reference": reference.text,
            "reference_style": dataclasses.asdict(reference.style),
            "reply": words if style is not None else raw,
            "style": None if style is None else dataclasses.asdict(style),
            "audio": self._audio(slot),
        }

    def _audio(self, slot: _Slot) -> str | None:
        turn = slot.prompt.turn - 1
        if slot.dialogue.turns[turn].audio is None:
            return None
        return keep_recording(slot.source, slot.dialogue, turn, self.run, "samples")


def keep_recording(source: Source, dialogue: Dialogue, turn: int, run: Path, part: str) -> str:
    """Keep a turn's recording in the run folder, once, as 16 kHz FLAC.

    Args:
        part: folder of the run folder; the file lies in `audio` below it.

    Returns:
        Its path inside the run folder.
    """
    name = f"{source.name}-{dialogue.id}-{turn}".replace("/", "_")
    relative = Path(part) / "audio" / f"{name}.flac"
    if not (run / relative).is_file():
        wave_N = load_audio(source.corpus.path_of(dialogue.turns[turn]), SAMPLE_RATE_HZ)
        save_audio(run / relative, wave_N, SAMPLE_RATE_HZ)
    return str(relative)


def build_sampler(
    sources: Sequence[Source],
    items: Sequence[Item],
    chat: ChatFormat,
    features: Features | None,
    config: WatchConfig,
    run: Path,
    precision: str,
    batch_tokens: int,
) -> Sampler | None:
    """Choose the last replies of `config.samples` dev dialogues, sources and scenarios in turn.

    Returns:
        None where samples are off, or no dialogue has a reply to something.
    """
    if config.samples_every == 0:
        return None
    by_source = {source.name: source for source in sources}
    dialogues = {
        (source.name, dialogue.id): dialogue for source in sources for dialogue in source.corpus.iterate("dev")
    }
    queues: dict[tuple[str, str], list[_Slot]] = {}
    for item in items:
        dialogue = dialogues[item.source, item.dialogue]
        replies = [reply for reply in item.sequence.replies if reply.turn > 0]
        if replies:
            slot = _Slot(prompt_for(item, replies[-1]), by_source[item.source], dialogue)
            queues.setdefault((item.source, dialogue.scenario), []).append(slot)
    chosen: list[_Slot] = []
    while len(chosen) < config.samples and any(queues.values()):
        for queue in queues.values():
            if queue and len(chosen) < config.samples:
                chosen.append(queue.pop(0))
    return Sampler(chosen, chat, features, config, run, precision, batch_tokens) if chosen else None
