"""The messages of a request -> the turns that a session takes; recordings are decoded here, from memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omnichat.audio.io import decode_audio
from omnichat.chat.server.config import LimitsConfig
from omnichat.chat.server.errors import unfit
from omnichat.chat.server.request import Message, Recording
from omnichat.model.pretrained.conversation import Said, Sound, said_of, sound_of
from omnichat.utils.errors import UserError

_UNSAID = "..."  # as a session notes a reply without words


def read_turns(messages: Sequence[Message], limits: LimitsConfig, reads_words: bool) -> tuple[list[Said], str | None]:
    """Turns and system prompt.

    Args:
        reads_words: the model reads the words of a turn beside its recording, so text beside a recording is what is
            said in it. One that only hears is given such text as a turn of its own, for else nobody would read it.

    Raises:
        ApiError: a recording that is none or too long, too many turns, or turns that make no dialogue.
    """
    left = limits.max_dialogue_sec
    plain: list[dict[str, Any]] = []
    for message in messages:
        content: list[dict[str, Any]] = []
        for part in message.parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
                continue
            sound = _sound(part, limits.max_audio_sec)
            left -= sound.seconds
            if left < 0:
                limit = f"the recordings of a request may last {limits.max_dialogue_sec:g} s together"
                raise unfit(part.where, f"{part.where}: {limit}", "audio_too_long")
            content.append({"type": "audio", "audio": sound})
        plain += _split(message.role, content, reads_words)
    try:
        turns, system = said_of(plain)
    except UserError as error:
        raise unfit("messages", str(error)) from None
    if len(turns) > limits.max_turns:
        raise unfit("messages", f"{len(turns)} turns; the limit is {limits.max_turns}", "too_many_turns")
    if not turns or turns[-1].role != "user":
        raise unfit("messages", "the last message must be the user's: there is nothing to answer")
    return turns, system


def _sound(recording: Recording, max_seconds: float) -> Sound:
    try:
        return sound_of(*decode_audio(recording.data, recording.where, max_seconds))
    except UserError as error:
        raise unfit(recording.where, str(error), "invalid_audio") from None


def _split(role: str, content: list[dict[str, Any]], reads_words: bool) -> list[dict[str, Any]]:
    """The messages that one message stands for."""
    if role == "assistant" and not any(part["text"].strip() for part in content):
        content = [{"type": "text", "text": _UNSAID}]
    hears = any(part["type"] == "audio" for part in content)
    if not hears or reads_words:
        return [{"role": role, "content": content}]
    kept = [part for part in content if part["type"] == "audio" or part["text"].strip()]
    return [{"role": role, "content": [part]} for part in kept]


def check_room(positions: int, limits: LimitsConfig, most: int | None) -> None:
    """Raise ApiError for a prompt of too many positions.

    Args:
        most: that the LLM has in all, of which the reply needs one; None where it does not say.
    """
    limit = limits.max_prompt_tokens if most is None else min(limits.max_prompt_tokens, most - 1)
    if positions > limit:
        raise unfit(
            "messages",
            f"the dialogue takes {positions} positions, the limit is {limit}; send fewer turns",
            "context_length_exceeded",
        )
