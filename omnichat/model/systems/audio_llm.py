"""Any audio language model of transformers (Qwen2-Audio, Audio Flamingo 3, Granite Speech, ...), through its processor.

The user's turns are given as sound, all of them, in the model's own chat template. Two kinds of template are known:
those that take a message's content as a list of parts ({"type": "audio"}, {"type": "text"}), and those of plain text,
where the processor's audio token stands for a clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jinja2
import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
)

from omnichat.audio.io import load_audio
from omnichat.model.llm import weights_fingerprint
from omnichat.model.systems.base import PLAYED, RATE_HZ, Request, SeenTurn, System
from omnichat.model.systems.loading import check_window, decode, make_greedy, one_line, resolve_dtype
from omnichat.text.chat import escape_special, special_texts
from omnichat.text.style_format import format_reply
from omnichat.utils.devices import resolve_device
from omnichat.utils.errors import UserError
from omnichat.utils.files import sha256_bytes
from omnichat.utils.llm_files import check_llm_path

_AUTO = (AutoModelForMultimodalLM, AutoModelForSeq2SeqLM, AutoModelForCausalLM)
_Part = dict[str, Any]  # {"type": "audio", "audio": wave} or {"type": "text", "text": words}


class AudioLLM(System):
    """Hears the user's turns itself; prompted, not trained.

    Args:
        path: folder or hub id of the model with its processor. revision: of a hub id.
        device: auto (a GPU if there is one) | cpu | cuda | cuda:N.
        dtype: auto (bfloat16 on a GPU, else float32) | float32 | bfloat16 | float16.
        max_clip_sec: what is longer is cut off, as most of these models hear 30 s of a clip; null = nothing is cut.
    """

    name = "audio_llm"
    input: ClassVar[str] = "speech"
    sees: tuple[str, ...] = ("audio",)

    def __init__(self, path: str, revision: str | None, device: str, dtype: str, max_clip_sec: float | None) -> None:
        check_llm_path("system.path", path)
        if max_clip_sec is not None and not max_clip_sec > 0:
            raise UserError(f"system.max_clip_sec must be null or positive, got {max_clip_sec}")
        self.device = resolve_device(device, "system.device")
        self.dtype = resolve_dtype(dtype, self.device, "system.dtype")
        self.path, self.revision, self.max_clip_sec = path, revision, max_clip_sec
        self._model: Any = None
        self._processor: Any = None
        self._cut: set[str] = set()

    def load(self) -> None:
        """See `System.load`."""
        with one_line("system.path", self.path, "an audio language model"):
            config = AutoConfig.from_pretrained(self.path, revision=self.revision)
            processor = AutoProcessor.from_pretrained(self.path, revision=self.revision)
            known = [auto for auto in _AUTO if type(config) in auto._model_mapping]
            if not known or getattr(processor, "tokenizer", None) is None:
                raise ValueError(f"{config.model_type} is not one that this transformers can load with a processor")
            model: Any = known[0].from_pretrained(self.path, revision=self.revision, dtype=self.dtype)
        model = getattr(model, "thinker", model)  # of an omni model: the part that answers in text
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        make_greedy(model, tokenizer)
        self._model, self._processor = model.to(self.device).eval().requires_grad_(False), processor
        self._specials = special_texts(tokenizer)
        ears = getattr(processor, "feature_extractor", None) or getattr(processor, "audio_processor", None)
        self._rate_hz = int(getattr(ears, "sampling_rate", RATE_HZ))
        self._in_parts, self._has_system = self._template_kind()

    @torch.inference_mode()
    def reply(self, requests: Sequence[Request], max_new_tokens: int) -> list[str]:
        """See `System.reply`."""
        inputs = self.inputs([self.chat(request) for request in requests]).to(self.device)
        for name, value in inputs.items():
            if torch.is_floating_point(value):
                inputs[name] = value.to(self.dtype)
        width = inputs["input_ids"].shape[1]
        check_window(self._model, width, max_new_tokens, "system")
        written = self._model.generate(**inputs, max_new_tokens=max_new_tokens)
        return decode(self._processor.tokenizer, written[:, width:])

    def chat(self, request: Request) -> list[tuple[str, list[_Part]]]:
        """(role, parts) of each message: system, examples, turns; turns in a row of one speaker are one message."""
        messages: list[tuple[str, list[_Part]]] = []
        if self.instructions.system:
            messages.append(("system", [_text(self.instructions.system)]))
        for example in self.instructions.examples:
            messages += [("user", [self._part(example.heard, False)]), ("assistant", [_text(example.reply)])]
        previous = None
        for turn in request.turns:
            role = "assistant" if turn.speaker == PLAYED else "user"
            follows = previous == turn.speaker
            part = self._part(turn, follows)
            if follows and part["type"] == "text" == messages[-1][1][-1]["type"]:
                joined = f"{messages[-1][1][-1]['text']} {part['text']}"
                messages[-1] = (role, [*messages[-1][1][:-1], _text(joined)])
            elif follows:
                messages[-1][1].append(part)
            else:
                messages.append((role, [part]))
            previous = turn.speaker
        if self._has_system or not self.instructions.system:
            return messages
        head, (role, parts), *rest = messages
        return [(role, [*head[1], *parts]), *rest] if role == "user" else [("user", head[1]), (role, parts), *rest]

    def inputs(self, chats: Sequence[list[tuple[str, list[_Part]]]]) -> Any:
        """What the model takes of a batch, padded on the left. Raises UserError for a template that refuses it."""
        waves = [part["audio"] for chat in chats for _, parts in chat for part in parts if part["type"] == "audio"]
        common: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        try:
            if self._in_parts:
                conversations = [[{"role": role, "content": parts} for role, parts in chat] for chat in chats]
                return self._processor.apply_chat_template(
                    conversations, add_generation_prompt=True, tokenize=True, return_dict=True,
                    processor_kwargs=common,
                )  # fmt: skip
            texts = [self._plain(chat) for chat in chats]
            return self._processor(text=texts, audio=waves or None, **common)
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"system.path={self.path!r}: its processor refuses the conversation: {reason}") from None

    def describe(self) -> dict[str, Any]:
        """See `System.describe`."""
        assert self._model is not None, "load() comes first"
        if not hasattr(self, "_weights"):
            self._weights = weights_fingerprint(self._model)
        return {
            "system": self.name,
            "model": type(self._model).__name__,
            "path": self.path,
            "revision": self.revision,
            "weights": self._weights,
            "template": sha256_bytes(str(self._template()).encode())[:16],
            "dtype": str(self.dtype).removeprefix("torch."),
            "max_clip_sec": self.max_clip_sec,
            "parameters": sum(parameter.numel() for parameter in self._model.parameters()),
        }

    def warnings(self) -> list[str]:
        """See `System.warnings`."""
        if not self._cut:
            return []
        return [f"{len(self._cut)} recordings were cut off at {self.max_clip_sec:g} s, which is all that it hears"]

    def _part(self, turn: SeenTurn, follows: bool) -> _Part:
        if turn.audio is not None:
            wave_N = load_audio(turn.audio, self._rate_hz).numpy()
            longest = len(wave_N) if self.max_clip_sec is None else round(self.max_clip_sec * self._rate_hz)
            if len(wave_N) > longest:
                self._cut.add(str(turn.sha256))
            return {"type": "audio", "audio": wave_N[:longest]}
        words = escape_special((turn.text or "...").strip(), self._specials)
        if turn.speaker == PLAYED and not follows:
            words = "".join(format_reply(turn.style, words))
        return _text(words)

    def _plain(self, chat: list[tuple[str, list[_Part]]]) -> str:
        """A conversation in a template of plain text."""
        mark = self._processor.audio_token
        return self._rendered(
            [
                {"role": role, "content": " ".join(mark if p["type"] == "audio" else p["text"] for p in parts)}
                for role, parts in chat
            ]
        )

    def _template(self) -> Any:
        own = getattr(self._processor, "chat_template", None)
        return own or getattr(self._processor.tokenizer, "chat_template", None)

    def _rendered(self, messages: list[dict[str, Any]]) -> str:
        owner = self._processor if getattr(self._processor, "chat_template", None) else self._processor.tokenizer
        return str(owner.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _template_kind(self) -> tuple[bool, bool]:
        """(whether content is a list of parts, whether there may be a system message), by trying. Raises UserError."""
        if not self._template():
            raise UserError(f"system.path={self.path!r}: neither processor nor tokenizer has a chat template")
        sound = {"type": "audio", "audio": np.zeros(1600, dtype=np.float32)}
        audio_token = str(getattr(self._processor, "audio_token", ""))
        for in_parts in (True, False):
            for has_system in (True, False):
                user: Any = [sound, _text("words")] if in_parts else f"{audio_token} words"
                system: Any = [_text("rule")] if in_parts else "rule"
                chat = [{"role": "system", "content": system}] * has_system + [{"role": "user", "content": user}]
                try:
                    text = self._rendered(chat)
                except (jinja2.TemplateError, ValueError, TypeError):
                    continue  # the next kind is tried; the last leads to the error below
                heard = audio_token == "" or text.count(audio_token) == 1
                if heard and "'type'" not in text and "words" in text and ("rule" in text or not has_system):
                    return in_parts, has_system
        raise UserError(f"system.path={self.path!r}: its chat template has no place for a recording")


def _text(words: str) -> _Part:
    return {"type": "text", "text": words}
