"""Conversations -> the tensors that `OmniChatForConditionalGeneration` takes, and its ids -> style and words."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature
from transformers.utils import PushToHubMixin

from omnichat.model.pretrained.configuration import OmniChatConfig
from omnichat.model.pretrained.conversation import ChatPrompt, Said, Sound, end_of_turn, make_prompt, said_of
from omnichat.model.pretrained.parts import shape_of_fusion
from omnichat.schema import Style
from omnichat.text.chat import ChatFormat, Role
from omnichat.text.style_format import parse_reply
from omnichat.utils.errors import UserError
from omnichat.utils.files import write_json_atomic

PROCESSOR_FILE = "processor_config.json"


class OmniChatProcessor(PushToHubMixin):
    """Chat template, audio slots and tokenizer of an OmniChat, in the manner of transformers' processors.

    Args:
        config: the model's configuration.
        tokenizer: the LLM's.
    """

    def __init__(self, config: OmniChatConfig, tokenizer: Any) -> None:
        config.check()
        self.config, self.tokenizer = config, tokenizer
        fusion = shape_of_fusion(config)
        self.chat = ChatFormat(tokenizer, config.chat_config(), fusion.slots if fusion is not None else None)
        self.end_id = end_of_turn(self.chat)

    @property
    def rates(self) -> list[int]:
        """Sampling rates, in Hz, that the experts take."""
        return sorted({int(spec["sample_rate"]) for spec in (self.config.specs or {}).values()})

    def __call__(
        self,
        conversations: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Tensors of one conversation or a batch of them, padded on the left; every one ends with a user's turn.

        A conversation is a list of {"role": ..., "content": ...}, see `said_of`.

        Returns:
            input_ids, attention_mask int64 [B, S]; audio_mask bool [B, S], True where a slot of audio stands; and, if
            there are recordings: clip_seconds float64 [C], in row-major order of the clips, and for every rate of
            `rates` waves_RATE float32 [C, N], padded with zeros, and samples_RATE int64 [C].

        Raises:
            UserError: a conversation that cannot be answered; it names the message.
        """
        if return_tensors != "pt":
            raise UserError(f"return_tensors={return_tensors!r}: only pt is known")
        single = not conversations or isinstance(conversations[0], Mapping)
        batch: Any = [conversations] if single else conversations
        return self.batch([self.prompt(*said_of(conversation)) for conversation in batch])

    def prompt(self, turns: Sequence[Said], system: str | None = None) -> ChatPrompt:
        """The prompt of the reply to `turns`. Raises UserError."""
        return make_prompt(self.chat, turns, system)

    def batch(self, prompts: Sequence[ChatPrompt]) -> BatchFeature:
        """Tensors of several prompts; see `__call__`."""
        width = max(len(prompt.sequence) for prompt in prompts)
        ids, mask, audio = [], [], []
        for prompt in prompts:
            sequence, pad = prompt.sequence, width - len(prompt.sequence)
            heard = [role == Role.AUDIO for role in sequence.roles]
            ids.append([0] * pad + [0 if is_audio else i for i, is_audio in zip(sequence.ids, heard, strict=True)])
            mask.append([0] * pad + [1] * len(sequence))
            audio.append([False] * pad + heard)
        tensors: dict[str, Tensor] = {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            "audio_mask": torch.tensor(audio),
        }
        sounds = [sound for prompt in prompts for sound in prompt.sounds]
        return BatchFeature(tensors | self._waves(sounds))

    def _waves(self, sounds: Sequence[Sound]) -> dict[str, Tensor]:
        if not sounds:
            return {}
        found = {"clip_seconds": torch.tensor([sound.seconds for sound in sounds], dtype=torch.float64)}
        for rate in self.rates:
            waves = [sound.at(rate) for sound in sounds]
            found[f"waves_{rate}"] = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
            found[f"samples_{rate}"] = torch.tensor([len(wave) for wave in waves])
        return found

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """A reply's text, its style in brackets first."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def batch_decode(self, rows: Sequence[Sequence[int]] | Tensor) -> list[str]:
        """`decode` of every row that `generate` gave."""
        return [self.decode(row) for row in rows]

    @staticmethod
    def parse(text: str) -> tuple[Style | None, str]:
        """(style, words) of a reply's text; the style is None where the text begins with none."""
        return parse_reply(text)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **ignored: Any) -> list[str]:
        """Write the tokenizer's files and `processor_config.json` into a folder, beside the model's."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        written = list(self.tokenizer.save_pretrained(folder))
        path = folder / PROCESSOR_FILE
        write_json_atomic(path, {"processor_class": type(self).__name__, "config": self.config.to_dict()})
        return [*written, str(path)]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any
    ) -> OmniChatProcessor:
        """Load from a folder or a hub id; options as of AutoTokenizer (revision, token, cache_dir, ...).

        Raises:
            OSError: nothing there, as transformers has it. UserError: files that are not whole.
        """
        known = {name: options[name] for name in HUB_OPTIONS if name in options}
        config = options.get("config") or OmniChatConfig.from_pretrained(pretrained_model_name_or_path, **known)
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **known)
        return cls(config, tokenizer)


HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
