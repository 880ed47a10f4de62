"""The body of a chat completion -> what is asked, every field checked; recordings stay as they came."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from omnichat.chat.base import DecodingConfig
from omnichat.chat.server.config import ServeConfig
from omnichat.chat.server.errors import ApiError, unfit
from omnichat.utils.errors import one_of

FORMATS = ("wav", "mp3", "flac", "ogg", "opus", "aiff")  # of a recording; its bytes say which it is
SPOKEN = {"wav": "WAV", "flac": "FLAC"}  # format of a spoken reply -> container
_ROLES = ("system", "developer", "user", "assistant")
_PARTS = ("text", "input_audio")
_LEAST_TEMPERATURE = 1e-3  # below it only the likeliest token is left, and a logit over it may overflow
_LETTERS = 16  # that a token is taken to have at most: a text of more is refused before it is cut into tokens
_FIELDS = (
    *("model", "messages", "temperature", "top_p", "max_tokens", "max_completion_tokens", "seed"),
    *("stream", "stream_options", "modalities", "audio"),
)
# Fields that change nothing here.
_IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("prompt_cache_options", "parallel_tool_calls", "reasoning_effort", "verbosity"),
)
# Fields that would change the reply, with the values that ask for nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "stop": (None, []),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "prediction": (None,),
    "web_search_options": (None,),
    "moderation": (None,),
}


@dataclass(frozen=True, slots=True)
class Recording:
    """A file as a client sent it, and where in the request it stood."""

    data: bytes
    where: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message: text and recordings, in order."""

    role: str
    parts: tuple[str | Recording, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request.

    Attributes:
        messages: as they came; role "developer" is "system".
        speaker: who speaks the reply. container: of the spoken reply; None: it is not spoken.
    """

    messages: tuple[Message, ...]
    decoding: DecodingConfig
    stream: bool
    include_usage: bool
    speaker: str | None
    container: str | None


def read_request(body: bytes, config: ServeConfig, model: str, voices: Sequence[str]) -> Asked:
    """Check a body.

    Args:
        model: the name that the server goes by.
        voices: speakers of the server's voice, the one it takes by itself first; empty where it has no voice.

    Raises:
        ApiError: anything that cannot be answered; it names the field.
    """
    asked = _json(body)
    for name in asked:
        if name in _UNSUPPORTED:
            continue
        if name != "n" and name not in _FIELDS and name not in _IGNORED:
            raise unfit(_short(name), str(one_of("field", _short(name), _FIELDS)), "unknown_parameter")
    _refuse_unsupported(asked)
    given = asked.get("model")
    if given is not None and given != model:
        raise ApiError(404, f"no model {_short(given)}; this server has {model}", "model_not_found", "model")
    stream = _flag(asked, "stream", "stream")
    options = asked.get("stream_options") or {}
    if not isinstance(options, dict) or (options and not stream):
        raise unfit("stream_options", "stream_options must be an object, and needs stream: true")
    speaker, container = _spoken(asked, voices)
    return Asked(
        _messages(asked.get("messages"), config),
        _decoding(asked, config),
        stream,
        _flag(options, "include_usage", "stream_options.include_usage"),
        speaker,
        container,
    )


def _json(body: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    try:
        asked = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise ApiError(400, f"the body is no JSON in UTF-8: {reason}", "invalid_json") from None
    if not isinstance(asked, dict):
        raise ApiError(400, f"the body must be a JSON object, got {type(asked).__name__}", "invalid_json")
    return asked


def _refuse_unsupported(asked: dict[str, Any]) -> None:
    if asked.get("n") is not None and (isinstance(asked["n"], bool) or asked["n"] != 1):
        raise unfit("n", "n must be 1: a request gets one reply", "unsupported_value")
    for name, neutral in _UNSUPPORTED.items():
        if name in asked and asked[name] not in neutral:
            hint = ": a reply ends by itself or at max_tokens" if name == "stop" else ""
            raise unfit(name, f"{name} is not supported{hint}; leave it out", "unsupported_parameter")


def _decoding(asked: dict[str, Any], config: ServeConfig) -> DecodingConfig:
    default = config.decoding
    temperature = _number(asked, "temperature", default.temperature, 0.0, 2.0)
    most = default.max_new_tokens
    for name in ("max_tokens", "max_completion_tokens"):  # the newer name counts
        if asked.get(name) is not None:
            most = _whole(asked, name, 1, 2**31)
    top_p = _number(asked, "top_p", default.top_p, 0.0, 1.0)
    if top_p == 0:
        raise unfit("top_p", "top_p must lie in (0, 1]; temperature 0 takes the likeliest token")
    return replace(
        default,
        temperature=0.0 if temperature < _LEAST_TEMPERATURE else temperature,
        top_p=top_p,
        max_new_tokens=min(most, config.limits.max_new_tokens),
        seed=default.seed if asked.get("seed") is None else _whole(asked, "seed", -(2**63), 2**63 - 1),
    )


def _spoken(asked: dict[str, Any], voices: Sequence[str]) -> tuple[str | None, str | None]:
    wanted = asked.get("modalities")
    if wanted is None:
        wanted = ["text"]
    if not isinstance(wanted, list) or "text" not in wanted or any(each not in ("text", "audio") for each in wanted):
        raise unfit("modalities", 'modalities must be ["text"] or ["text", "audio"]')
    if "audio" not in wanted:
        return None, None
    if not voices:
        raise unfit("modalities", "this server has no voice: it was started without one", "unsupported_value")
    audio = asked.get("audio") or {}
    if not isinstance(audio, dict):
        raise unfit("audio", 'audio must be an object, {"voice": ..., "format": "wav"}')
    speaker, form = audio.get("voice") or voices[0], audio.get("format") or "wav"
    if not isinstance(speaker, str) or speaker not in voices:
        raise unfit("audio.voice", str(one_of("audio.voice", _plain(speaker), voices)))
    if not isinstance(form, str) or form not in SPOKEN:
        raise unfit("audio.format", str(one_of("audio.format", _plain(form), SPOKEN)))
    return speaker, SPOKEN[form]


def _messages(given: Any, config: ServeConfig) -> tuple[Message, ...]:
    if not isinstance(given, list) or not given:
        raise unfit("messages", "messages must be a list with at least one message")
    limits = config.limits
    # Every turn may come in several messages, and system prompts before it: a bound on the work, not on the dialogue.
    if len(given) > 2 * limits.max_turns + 2:
        raise unfit("messages", f"{len(given)} messages; the limit is {limits.max_turns} turns", "too_many_turns")
    made: list[Message] = []
    letters = 0
    for number, message in enumerate(given):
        made.append(_message(f"messages[{number}]", message, limits.max_turns))
        letters += sum(len(part) for part in made[-1].parts if isinstance(part, str))
        if letters > _LETTERS * limits.max_prompt_tokens:
            raise unfit("messages", f"more text than {limits.max_prompt_tokens} tokens hold", "context_length_exceeded")
    return tuple(made)


def _message(where: str, message: Any, max_parts: int) -> Message:
    if not isinstance(message, dict):
        raise unfit(where, f"{where} must be an object with role and content")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        raise unfit(f"{where}.role", str(one_of(f"{where}.role", _plain(role), _ROLES)))
    if content is None and role == "assistant":
        raise unfit(f"{where}.content", f"{where}.content is missing: give the reply's text, as the server sent it")
    if isinstance(content, str):
        parts: tuple[str | Recording, ...] = (_text(f"{where}.content", content),)
    elif isinstance(content, list) and 0 < len(content) <= max_parts:
        parts = tuple(_part(f"{where}.content[{place}]", part) for place, part in enumerate(content))
    else:
        raise unfit(f"{where}.content", f"{where}.content must be text, or a list of 1 to {max_parts} parts")
    if role != "user" and any(isinstance(part, Recording) for part in parts):
        raise unfit(f"{where}.content", f"{where}: only the user's messages may hold recordings")
    return Message("system" if role == "developer" else role, parts)


def _part(where: str, part: Any) -> str | Recording:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return _text(f"{where}.text", part.get("text"))
    if kind != "input_audio":
        raise unfit(f"{where}.type", str(one_of(f"{where}.type", _plain(kind), _PARTS)))
    audio = part.get("input_audio")
    if not isinstance(audio, dict):
        raise unfit(f"{where}.input_audio", f'{where}.input_audio must be {{"data": base64, "format": "wav"}}')
    form, data = audio.get("format"), audio.get("data")
    if not isinstance(form, str) or form not in FORMATS:
        raise unfit(f"{where}.input_audio.format", str(one_of(f"{where}.input_audio.format", _plain(form), FORMATS)))
    if not isinstance(data, str) or not data:
        raise unfit(f"{where}.input_audio.data", f"{where}.input_audio.data must be a file's bytes in base64")
    try:
        if "\n" in data:  # encoders of mail break lines
            data = data.replace("\n", "").replace("\r", "")
        return Recording(base64.b64decode(data, validate=True), f"{where}.input_audio")
    except (binascii.Error, ValueError):
        raise unfit(f"{where}.input_audio.data", f"{where}.input_audio.data is no base64") from None


def _text(where: str, text: Any) -> str:
    if not isinstance(text, str):
        raise unfit(where, f"{where} must be text, got {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can write it; no tokenizer can read it
        raise unfit(where, f"{where} holds half of a letter (a lone surrogate)") from None
    return text


def _flag(asked: dict[str, Any], name: str, told: str) -> bool:
    value = asked.get(name)
    if value is not None and not isinstance(value, bool):
        raise unfit(told, f"{told} must be true or false")
    return bool(value)


def _number(asked: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = asked.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise unfit(name, f"{name} must be a number from {low:g} to {high:g}")
    return float(value)


def _whole(asked: dict[str, Any], name: str, low: int, high: int) -> int:
    value = asked[name]
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise unfit(name, f"{name} must be a whole number from {low} to {high}")
    return value


def _plain(value: Any) -> Any:
    """A value for a message: the beginning of a text, and of all else the type, for it may be of any size."""
    if isinstance(value, str):
        return value[:100]
    return value if value is None else f"<{type(value).__name__}>"


def _short(value: Any) -> str:
    told = str(_plain(value))
    told = told if len(told) <= 60 else f"{told[:57]}..."  # a name is echoed, not a page
    return told if told.isprintable() else ascii(told)
