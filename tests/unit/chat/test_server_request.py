"""A server's settings, and bodies of requests: whatever comes is either understood or refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.chat.base import DecodingConfig
from omnichat.chat.server.config import LimitsConfig, ServeConfig
from omnichat.chat.server.errors import ApiError
from omnichat.chat.server.request import Asked, Recording, read_request
from omnichat.utils.errors import UserError
from tests.helpers.serving import audio_part, user

CONFIG = ServeConfig(limits=LimitsConfig(max_turns=6, max_prompt_tokens=100, max_new_tokens=50))
HELLO = [user("hello")]


def read(body: Any, config: ServeConfig = CONFIG, voices: tuple[str, ...] = ()) -> Asked:
    return read_request(body if isinstance(body, bytes) else json.dumps(body).encode(), config, "demo", voices)


def test_what_is_asked_is_read() -> None:
    asked = read(
        {
            "model": "demo",
            "messages": [
                {"role": "developer", "content": "Be kind."},
                user("so", audio_part(b"bytes", "mp3")),
                {"role": "assistant", "content": "Yes?", "refusal": None, "audio": None, "omnichat": {"words": "Yes?"}},
                user("go on"),
            ],
            "temperature": 0.7,
            "top_p": 0.9,
            "max_tokens": 9,
            "max_completion_tokens": 8,
            "seed": -3,
            "stream": True,
            "stream_options": {"include_usage": True},
            "user": "me",
            "n": 1,
            "stop": None,
            "response_format": {"type": "text"},
        }
    )
    assert [message.role for message in asked.messages] == ["system", "user", "assistant", "user"]
    assert asked.messages[1].parts == ("so", Recording(b"bytes", "messages[1].content[1].input_audio"))
    assert asked.decoding == DecodingConfig(temperature=0.7, top_p=0.9, max_new_tokens=8, seed=-3)
    assert asked.stream and asked.include_usage and asked.container is None


def test_what_is_not_said_is_the_server_s_and_a_reply_is_never_longer_than_its_limit() -> None:
    config = replace(CONFIG, decoding=DecodingConfig(max_new_tokens=20, temperature=0.5, seed=4))
    assert read({"messages": HELLO}, config).decoding == config.decoding
    assert read({"messages": HELLO, "max_tokens": 4000}, config).decoding.max_new_tokens == 50
    assert read({"messages": HELLO, "temperature": 1e-40}, config).decoding.temperature == 0


def test_base64_may_be_broken_into_lines() -> None:
    part = audio_part(b"some bytes")
    part["input_audio"]["data"] = "c29tZSBi\r\neXRlcw==\n"
    assert read({"messages": [user(part)]}).messages[0].parts[0].data == b"some bytes"


@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"stop": ["."]}, "stop", "stop is not supported: a reply ends by itself"),
        ({"n": 2}, "n", "n must be 1"),
        ({"n": True}, "n", "n must be 1"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty", "not supported"),
        ({"temprature": 1}, "temprature", "did you mean 'temperature'"),
        ({"model": "gpt-4o-audio-preview"}, "model", "this server has demo"),
        ({"temperature": 3}, "temperature", "from 0 to 2"),
        ({"temperature": "hot"}, "temperature", "must be a number"),
        ({"temperature": True}, "temperature", "must be a number"),
        ({"top_p": 0}, "top_p", "(0, 1]"),
        ({"max_tokens": 0}, "max_tokens", "whole number"),
        ({"max_tokens": 1.5}, "max_tokens", "whole number"),
        ({"seed": 2**64}, "seed", "whole number"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream: true"),
        ({"modalities": ["audio"]}, "modalities", '["text", "audio"]'),
        ({"modalities": ["text", "audio"]}, "modalities", "has no voice"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": "hello"}, "messages", "must be a list"),
        ({"messages": ["hello"]}, "messages[0]", "role and content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "choose one of"),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages[0].content", "as the server sent it"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "must be text, or a list"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "1 to 6 parts"),
        ({"messages": [user({"type": "image_url", "image_url": {}})]}, "messages[0].content[0].type", "input_audio"),
        ({"messages": [user({"type": "audio", "audio": "secret.wav"})]}, "messages[0].content[0].type", "input_audio"),
        ({"messages": [user({"type": "text", "text": 5})]}, "messages[0].content[0].text", "must be text"),
        ({"messages": [user("\ud800")]}, "messages[0].content", "lone surrogate"),
        ({"messages": [user(audio_part(b"x", "exe"))]}, "messages[0].content[0].input_audio.format", "flac"),
        (
            {"messages": [user({"type": "input_audio", "input_audio": {"data": "?", "format": "wav"}})]},
            "messages[0].content[0].input_audio.data",
            "no base64",
        ),
        ({"messages": [{"role": "system", "content": [audio_part(b"x")]}]}, "messages[0].content", "only the user"),
        ({"messages": HELLO * 15}, "messages", "the limit is 6 turns"),
        ({"messages": [user("a" * 1601)]}, "messages", "more text than 100 tokens"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str, told: str) -> None:
    with pytest.raises(ApiError) as raised:
        read({"messages": HELLO, **fields})
    assert raised.value.param == param and told in raised.value.message
    assert raised.value.status == (404 if param == "model" else 400)


def test_a_voice_s_speakers_and_files_are_known() -> None:
    both = {"messages": HELLO, "modalities": ["text", "audio"]}
    assert read(both, voices=("ada", "joe")).speaker == "ada"
    asked = read({**both, "audio": {"voice": "joe", "format": "flac"}}, voices=("ada", "joe"))
    assert (asked.speaker, asked.container) == ("joe", "FLAC")
    for audio, told in (({"voice": "alloy"}, "ada, joe"), ({"format": "pcm16"}, "wav, flac"), (5, "must be an object")):
        with pytest.raises(ApiError, match=told):
            read({**both, "audio": audio}, voices=("ada", "joe"))


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"\xff\xfe", b"[]", b"null", b'{"messages": NaN}', b"[" * 100_000, b'{"a":' * 50_000),
        *(b'{"messages": [], "seed": ' + b"9" * 5000 + b"}", b'{"messages": [{"role": "user"'),
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as raised:
        read(body)
    assert raised.value.status == 400 and len(raised.value.message) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["model", "messages", "role", "content", "type", "text", "input_audio", "data", "format", "n"])
LIKELY = st.sampled_from(["user", "assistant", "system", "text", "input_audio", "wav", "aGk=", "demo", 1, True, None])
NEAR = st.recursive(
    LIKELY | JSON,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(body=st.binary(max_size=60) | NEAR.map(lambda value: json.dumps(value).encode()))
def test_whatever_comes_is_read_or_refused_in_one_line(body: bytes) -> None:
    _read_or_refused(body)


@settings(max_examples=150, deadline=None)
@given(name=NAMES | st.sampled_from(["stop", "seed", "stream", "modalities", "audio", "max_tokens"]), value=NEAR)
def test_any_value_of_any_field_is_read_or_refused_in_one_line(name: str, value: Any) -> None:
    _read_or_refused(json.dumps({"messages": HELLO, name: value}).encode())
    message = {**user("hello", audio_part(b"x")), name: value}
    _read_or_refused(json.dumps({"messages": [message]}).encode())
    message["content"] = [{**audio_part(b"x"), name: value}]
    _read_or_refused(json.dumps({"messages": [message]}).encode())


def _read_or_refused(body: bytes) -> None:
    try:
        assert isinstance(read(body, voices=("ada",)), Asked)
    except ApiError as error:
        assert "\n" not in error.message and 0 < len(error.message) < 1000
        json.dumps(error.body(), allow_nan=False).encode("utf-8")


@pytest.mark.parametrize(
    ("given_settings", "told"),
    [
        ({"host": "0.0.0.0"}, "allow_open=true"),
        ({"host": "example.org"}, "token_env=OMNICHAT_TOKEN"),
        ({"host": ""}, "host must be"),
        ({"port": 70000}, "port must be"),
        ({"token_env": "my secret"}, "not the token itself"),
        ({"cors": ["localhost"]}, "no origin"),
        ({"decoding": DecodingConfig(beams=2)}, "beams"),
    ],
)
def test_settings_that_cannot_be_are_refused(given_settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as raised:
        ServeConfig(**given_settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "value"), [("queue", -1), ("max_body_mb", 0.0), ("max_turns", 0), ("sessions", -1)])
def test_limits_that_cannot_be_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"limits.{name}"):
        LimitsConfig(**{name: value})  # type: ignore[arg-type]


def test_a_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServeConfig(host="0.0.0.0", token_env="A_TOKEN")
    for value in ("", "short"):
        monkeypatch.setenv("A_TOKEN", value)
        with pytest.raises(UserError, match="A_TOKEN must hold 8"):
            config.token()
    monkeypatch.setenv("A_TOKEN", " long enough ")
    assert config.token() == "long enough" and ServeConfig().token() is None


def test_names_are_compared_on_loopback_and_where_they_are_stated() -> None:
    assert ServeConfig(host="::1").accepted_names() == {"localhost", "127.0.0.1", "[::1]"}
    assert "box.lan" in (ServeConfig(names=["Box.lan"]).accepted_names() or ())
    assert ServeConfig(host="0.0.0.0", allow_open=True).accepted_names() is None
    assert ServeConfig(host="0.0.0.0", allow_open=True, names=["box"]).accepted_names() == {"box"}
