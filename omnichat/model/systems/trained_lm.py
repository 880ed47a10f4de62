"""The LLM of a trained run as a baseline's language model: what LoRA made of it, answering on transcripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from omnichat.data.collate import Item
from omnichat.model.generation import Prompt, end_of_turn_id, generate_replies, prompt_for
from omnichat.model.omnichat import OmniChat
from omnichat.model.systems.base import PLAYED, Answerer, Conversation
from omnichat.schema import Dialogue, Style, Turn
from omnichat.text.chat import ChatFormat


class TrainedLM(Answerer):
    """Answers in the run's own chat format, as `omnichat evaluate` does; it was trained with it and takes no prompt.

    Args:
        model: of a run that reads (chat.input text or asr), with its trained weights.
        chat: the run's chat format.
        precision: bf16 | fp32.
        facts: which run and checkpoint it is, as JSON.
    """

    def __init__(self, model: OmniChat, chat: ChatFormat, precision: str, facts: dict[str, Any]) -> None:
        assert model.fusion is None, "a run that hears has another way to its input"
        self.model, self.precision, self.facts = model, precision, facts
        # What a cascade hands over are words, whether they were heard or read.
        self.chat = ChatFormat(chat.tokenizer, replace(chat.config, input="text"))

    def load(self) -> None:
        """It was loaded before."""

    def answer(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[str]:
        """See `Answerer.answer`."""
        items = [self._item(conversation, number) for number, conversation in enumerate(conversations)]
        prompts: list[Prompt] = [prompt_for(item, item.sequence.replies[-1]) for item in items]
        longest = max(len(prompt.item.sequence) for prompt in prompts)
        return generate_replies(
            self.model, prompts, self.chat, None, end_of_turn_id(items[0]),
            max_new_tokens=max_new_tokens, batch_tokens=longest * len(prompts), precision=self.precision,
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """See `Answerer.describe`."""
        counted = sum(parameter.numel() for parameter in self.model.parameters())
        return {"llm": "trained", **self.facts, "precision": self.precision, "parameters": counted}

    def _item(self, conversation: Conversation, number: int) -> Item:
        """The sequence of a conversation; a reply stands at its end, whose place is all that is looked at."""
        turns = [Turn(turn.speaker, turn.text, turn.style) for turn in conversation.turns]
        reply = Turn(PLAYED, "Yes.", Style("normal", "normal", "neutral"))
        dialogue = Dialogue(str(number), "", "real", "daily", "test", (*turns, reply))
        return Item(dialogue.id, "", self.chat.sequence(dialogue, PLAYED), ())
