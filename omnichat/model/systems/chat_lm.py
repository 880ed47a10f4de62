"""Any causal language model of transformers with a chat template, prompted and not trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from omnichat.model.llm import weights_fingerprint
from omnichat.model.systems.base import PLAYED, Answerer, Conversation, messages_of
from omnichat.model.systems.loading import check_window, decode, make_greedy, one_line, resolve_dtype
from omnichat.text.chat import escape_special, special_texts
from omnichat.utils.devices import resolve_device
from omnichat.utils.errors import UserError
from omnichat.utils.files import sha256_bytes
from omnichat.utils.llm_files import check_llm_path, local_llm

KEY = "system.llm"


class ChatLM(Answerer):
    """Answers in its own chat template: system message, examples as earlier exchanges, then the conversation.

    Where a template knows no system message, it is put before the first message of the user's.

    Args:
        path: folder, hub id, .gguf file or asset:NAME. revision: of a hub id.
        device: auto (a GPU if there is one) | cpu | cuda | cuda:N.
        dtype: auto (bfloat16 on a GPU, else float32) | float32 | bfloat16 | float16.
    """

    def __init__(self, path: str, revision: str | None, device: str, dtype: str) -> None:
        check_llm_path(f"{KEY}.path", path)
        self.device = resolve_device(device, f"{KEY}.device")
        self.dtype = resolve_dtype(dtype, self.device, f"{KEY}.dtype")
        self.path, self.revision = path, revision
        self._model: Any = None
        self._tokenizer: Any = None

    def load(self) -> None:
        """See `Answerer.load`."""
        source = local_llm(self.path)
        with one_line(f"{KEY}.path", self.path, "a causal LLM"):
            tokenizer = AutoTokenizer.from_pretrained(source, revision=self.revision, padding_side="left")
            model: Any = AutoModelForCausalLM.from_pretrained(source, revision=self.revision, dtype=self.dtype)
        if not tokenizer.chat_template or tokenizer.eos_token_id is None:
            raise UserError(f"{KEY}.path={self.path!r}: its tokenizer has no chat template; name an instruct model")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        make_greedy(model, tokenizer)
        self._model, self._tokenizer = model.to(self.device).eval().requires_grad_(False), tokenizer
        self._specials = special_texts(tokenizer)

    @torch.inference_mode()
    def answer(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[str]:
        """See `Answerer.answer`."""
        texts = [self.rendered(conversation) for conversation in conversations]
        inputs = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(self.device)
        width = inputs["input_ids"].shape[1]
        check_window(self._model, width, max_new_tokens, KEY)
        kept = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        written = self._model.generate(**kept, max_new_tokens=max_new_tokens)
        return decode(self._tokenizer, written[:, width:])

    def rendered(self, conversation: Conversation) -> str:
        """The prompt as the model reads it. Raises UserError for a template that takes no such conversation."""
        messages = []
        for heard, reply in conversation.examples:
            messages += [*messages_of([heard]), (PLAYED, reply)]
        messages += messages_of(conversation.turns)
        chat = [
            {"role": "assistant" if speaker == PLAYED else "user", "content": escape_special(text, self._specials)}
            for speaker, text in messages
        ]
        if not conversation.system:
            return self._templated(chat)
        try:
            return self._templated([{"role": "system", "content": conversation.system}, *chat])
        except UserError:
            merged = f"{conversation.system}\n\n{chat[0]['content']}"
            first = chat[0]["role"] == "user"
            rest = [{"role": "user", "content": merged}, *chat[1:]] if first else chat
            return self._templated(rest if first else [{"role": "user", "content": conversation.system}, *chat])

    def describe(self) -> dict[str, Any]:
        """See `Answerer.describe`."""
        assert self._model is not None, "load() comes first"
        if not hasattr(self, "_weights"):
            self._weights = weights_fingerprint(self._model)
        return {
            "llm": type(self._model).__name__,
            "path": self.path,
            "revision": self.revision,
            "weights": self._weights,
            "tokenizer": sha256_bytes(self._tokenizer.chat_template.encode())[:16],
            "dtype": str(self.dtype).removeprefix("torch."),
            "parameters": sum(parameter.numel() for parameter in self._model.parameters()),
        }

    def _templated(self, chat: list[dict[str, str]]) -> str:
        try:
            return str(self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        except (jinja2.TemplateError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{KEY}.path={self.path!r}: its chat template refuses the conversation: {reason}") from None
