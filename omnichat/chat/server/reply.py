"""Replies in the shapes of OpenAI's chat completions, whole and as server-sent events."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass
from typing import Any

from omnichat.chat.base import Answer
from omnichat.chat.server.engine import Reply
from omnichat.chat.server.errors import ApiError

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all pieces of one answer share.

    Attributes:
        id: of the answer. created: seconds since 1970. model: its name. usage: also send the figures, in a stream.
    """

    id: str
    created: int
    model: str
    usage: bool = False

    def whole(self, reply: Reply) -> dict[str, Any]:
        """A reply in one piece."""
        message: dict[str, Any] = {"role": "assistant", "content": reply.answer.text, "refusal": None}
        if reply.spoken is not None:
            message["audio"] = self._audio(reply)
        message["omnichat"] = _heard_and_said(reply.answer)
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(reply.answer)}
        return {**self._head("chat.completion"), "choices": [choice], "usage": _usage(reply.answer)}

    def begin(self) -> bytes:
        """The first event of a stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> bytes:
        """A piece of the text."""
        return self._chunk({"content": text})

    def end(self, reply: Reply) -> list[bytes]:
        """The last events: the recording if there is one, how it ended, the figures."""
        events = []
        if reply.spoken is not None:
            events.append(self._chunk({"audio": self._audio(reply)}))
        events.append(self._chunk({"omnichat": _heard_and_said(reply.answer)}, _finish(reply.answer)))
        if self.usage:
            events.append(_event({**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(reply.answer)}))
        return [*events, DONE]

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if self.usage else {}
        return _event({**self._head("chat.completion.chunk"), "choices": [choice], **usage})

    def _audio(self, reply: Reply) -> dict[str, Any]:
        assert reply.spoken is not None
        return {
            "id": f"audio-{self.id}",
            "data": base64.b64encode(reply.spoken).decode("ascii"),
            "expires_at": self.created,  # it is not kept here
            "transcript": reply.answer.words,
        }


def failed(error: ApiError) -> bytes:
    """An error within a stream, after which nothing comes."""
    return _event(error.body())


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n\n"


def _finish(answer: Answer) -> str:
    return "stop" if answer.complete else "length"


def _heard_and_said(answer: Answer) -> dict[str, Any]:
    return {
        "style": None if answer.style is None else asdict(answer.style),
        "words": answer.words,
        "heard": None if answer.heard is None else asdict(answer.heard),
        "first_token_sec": round(answer.first_token_sec, 4),
        "seconds": round(answer.seconds, 4),
    }


def _usage(answer: Answer) -> dict[str, Any]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.tokens,
        "total_tokens": answer.prompt_tokens + answer.tokens,
        "prompt_tokens_details": {"cached_tokens": answer.kept_tokens},
    }
