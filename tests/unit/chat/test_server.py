"""The HTTP API in this process: the replies of a session, whole and streamed, whatever the server remembers."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient

from omnichat.chat.base import DecodingConfig, Talker
from omnichat.chat.server.app import CHAT, make_app
from omnichat.chat.server.config import LimitsConfig, ServeConfig
from omnichat.chat.session import Session
from omnichat.model.pretrained.conversation import Said
from tests.helpers.serving import audio_part, events_of, file_bytes, user
from tests.helpers.talkers import small_talker, tone
from tests.helpers.tones import ToneVoice

GREEDY = DecodingConfig(max_new_tokens=10)
SOUND, OTHER = tone(0.8, 300.0), tone(1.1, 150.0)


@pytest.fixture(scope="module")
def talker() -> Talker:
    return small_talker()


def client(talker: Talker, limits: dict[str, Any] | None = None, **settings: Any) -> TestClient:
    app_settings = {name: settings.pop(name) for name in ("token", "voice", "speaker") if name in settings}
    config = ServeConfig(decoding=GREEDY, limits=LimitsConfig(**(limits or {})), **settings)
    return TestClient(make_app(talker, config, **app_settings), base_url="http://127.0.0.1")


def ask(http: TestClient, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    answer = http.post(CHAT, json={"messages": list(messages), **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def content(answer: dict[str, Any]) -> str:
    return answer["choices"][0]["message"]["content"]


def refused(http: TestClient, status: int, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    answer = http.post(CHAT, json={"messages": list(messages), **fields})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]
    return error


def test_a_reply_is_that_of_a_session(talker: Talker) -> None:
    session = Session(talker, GREEDY)
    expected = session.answer(Said("user", SOUND))
    with client(talker) as http:
        answer = ask(http, user(SOUND), model="small")
        assert http.get("/v1/models").json()["data"][0]["id"] == "small" == answer["model"]
        assert http.get("/health").json() == {"status": "ok", "model": "small", "requests": 0}
    assert answer["object"] == "chat.completion" and content(answer) == expected.text
    assert answer["choices"][0]["finish_reason"] == ("stop" if expected.complete else "length")
    told = answer["choices"][0]["message"]["omnichat"]
    assert told["words"] == expected.words and expected.heard is not None
    assert told["heard"]["experts"] == list(expected.heard.experts) and len(told["heard"]["attention"]) == 3
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (expected.prompt_tokens, expected.tokens)
    assert usage["total_tokens"] == expected.prompt_tokens + expected.tokens


def test_a_stream_is_the_whole_in_pieces(talker: Talker) -> None:
    with client(talker, {"sessions": 0}) as http:
        whole = ask(http, user("tell me more"))
        body = {"messages": [user("tell me more")], "stream": True}
        plain = events_of(http.post(CHAT, json=body).text)
        answer = http.post(CHAT, json={**body, "stream_options": {"include_usage": True}})
        events = events_of(answer.text)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    for chunks in (plain, events):
        assert chunks.pop() == "[DONE]" and chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events.pop()["usage"] == whole["usage"] and "usage" not in plain[0]
    for chunks in (plain, events):
        assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == content(whole)
        assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 1)
        last = chunks[-1]["choices"][0]
        assert last["finish_reason"] == whole["choices"][0]["finish_reason"]
        assert last["delta"]["omnichat"]["words"] == whole["choices"][0]["message"]["omnichat"]["words"]
    assert len(plain) > 3, "it comes in pieces"


def test_what_the_server_remembers_saves_time_and_changes_nothing(talker: Talker) -> None:
    """Three dialogues side by side, with too few sessions, enough, and none; turns asked anew; a system prompt."""
    begins = {"a": user(SOUND), "b": user("hello"), "c": user(SOUND)}
    system = {"c": [{"role": "system", "content": "Shout."}]}
    goes_on = [user(OTHER), user("and then?")]
    replies: dict[int, list[tuple[str, Any]]] = {}
    cached: dict[int, list[int]] = {}
    for sessions in (0, 1, 3):
        replies[sessions], cached[sessions] = [], []
        with client(talker, {"sessions": sessions}) as http:
            talks = {name: [*system.get(name, []), first] for name, first in begins.items()}
            for number in range(3):
                for messages in talks.values():
                    for _ in range(2):  # every turn is asked twice
                        answer = ask(http, *messages)
                        told = answer["choices"][0]["message"]["omnichat"]
                        replies[sessions].append((content(answer), told["heard"]))
                        cached[sessions].append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
                    messages.append({"role": "assistant", "content": content(answer)})
                    messages += goes_on[number : number + 1]
            assert len(http.app.state.engine._dialogues) == sessions
    assert replies[0] == replies[1] == replies[3]
    assert not any(cached[0]) and all(cached[3][6:]), "a dialogue that goes on is not read again"
    assert sum(cached[1]) < sum(cached[3]) and all(cached[1][1::2])


def test_sampling_is_set_by_its_seed(talker: Talker) -> None:
    with client(talker) as http:
        said = [content(ask(http, user("hello"), temperature=1.5, seed=seed, max_tokens=6)) for seed in (1, 1, 2)]
        assert said[0] == said[1] != said[2]
        assert ask(http, user("hello"), max_tokens=2)["usage"]["completion_tokens"] <= 2
        assert ask(http, user("hello"), max_completion_tokens=3)["choices"][0]["finish_reason"] in ("stop", "length")


def test_text_beside_a_recording_is_read(talker: Talker) -> None:
    session = Session(talker, GREEDY)
    session.say([Said("user", None, "Listen:")])
    expected = session.answer(Said("user", SOUND)).text
    with client(talker) as http:
        assert content(ask(http, user("Listen:", SOUND))) == expected
        assert content(ask(http, user("Listen:"), user(SOUND))) == expected


def test_a_model_that_reads_takes_the_words_or_a_recogniser_s() -> None:
    reader = small_talker("text")
    with client(reader) as http:
        expected = content(ask(http, user("good morning")))
        assert content(ask(http, user("good morning", SOUND))) == expected
        assert "reads words" in refused(http, 400, user(SOUND))["message"]
    heard: list[float] = []
    reader.transcribe = lambda sound: heard.append(sound.seconds) or "good morning"  # type: ignore[func-returns-value]
    with client(reader) as http:
        assert content(ask(http, user(SOUND))) == expected and len(heard) == 1
        ask(http, user(SOUND), {"role": "assistant", "content": expected}, user("and?"))
        assert len(heard) == 1, "what was heard is known"
    with client(reader, {"sessions": 0}) as http:
        ask(http, user(SOUND), {"role": "assistant", "content": expected}, user("and?"))
        assert len(heard) == 2


def test_an_empty_reply_may_be_sent_back(talker: Talker) -> None:
    with client(talker) as http:
        ask(http, user("hello"), {"role": "assistant", "content": ""}, user("well?"))


@pytest.mark.parametrize("form", ["wav", "flac"])
def test_a_reply_is_spoken(talker: Talker, form: str) -> None:
    asked = {"modalities": ["text", "audio"], "audio": {"voice": "joe", "format": form}, "max_tokens": 30}
    with client(talker, voice=ToneVoice(), speaker="ada") as http:
        assert http.get("/v1/models").json()["data"][0]["omnichat"]["speakers"][0] == "ada"
        message = ask(http, user(SOUND), **asked)["choices"][0]["message"]
        events = events_of(http.post(CHAT, json={"messages": [user(SOUND)], "stream": True, **asked}).text)
        assert "audio" not in ask(http, user(SOUND))["choices"][0]["message"]
        other = ask(http, user(SOUND), **{**asked, "audio": {"voice": "lea"}})["choices"][0]["message"]
    data = base64.b64decode(message["audio"]["data"])
    wave, rate = soundfile.read(io.BytesIO(data))
    assert rate == ToneVoice().sample_rate and np.abs(wave).max() > 0.01
    assert soundfile.info(io.BytesIO(data)).format == form.upper()
    assert message["audio"]["transcript"] == message["omnichat"]["words"]
    (streamed,) = [e["choices"][0]["delta"]["audio"] for e in events[:-1] if "audio" in e["choices"][0]["delta"]]
    assert streamed["data"] == message["audio"]["data"] != other["audio"]["data"]


def test_a_voice_that_cannot_speak_leaves_the_words(talker: Talker) -> None:
    class Broken(ToneVoice):
        def speak(self, *args: Any) -> Any:
            from omnichat.utils.errors import UserError

            raise UserError("no server")

    with client(talker, voice=Broken()) as http:
        message = ask(http, user("hello"), modalities=["text", "audio"])["choices"][0]["message"]
    assert "audio" not in message and message["content"]


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (audio_part(b"not audio"), "messages[0].content[0].input_audio: not readable as audio"),
        (audio_part(file_bytes(np.array([0.0, np.nan], np.float32))), "not finite"),
        (audio_part(file_bytes(np.zeros(0, np.float32))), "holds no samples"),
        (audio_part(file_bytes(np.zeros(32_001, np.float32))), "claims 2 s of audio, the limit is 2 s"),
        (audio_part(file_bytes(np.zeros(99, np.float32), container="AU")), "audio as AU"),
    ],
)
def test_bad_recordings_are_refused(talker: Talker, part: dict[str, Any], told: str) -> None:
    with client(talker, {"max_audio_sec": 2.0}) as http:
        error = refused(http, 400, user(part))
    assert told in error["message"] and error["code"] == "invalid_audio"
    assert error["param"] == "messages[0].content[0].input_audio"


def test_limits_of_a_dialogue(talker: Talker) -> None:
    turns = [user("a"), {"role": "assistant", "content": "b"}, user("c")]
    with client(talker, {"max_turns": 2, "max_prompt_tokens": 60, "max_dialogue_sec": 1.0}) as http:
        assert refused(http, 400, *turns)["code"] == "too_many_turns"
        assert refused(http, 400, user("so " * 70))["code"] == "context_length_exceeded"
        assert refused(http, 400, user(SOUND, SOUND))["code"] == "audio_too_long"
        assert "nothing to answer" in refused(http, 400, turns[0], turns[1])["message"]
        assert "nothing to answer" in refused(http, 400, {"role": "system", "content": "Shout."})["message"]
        ask(http, user(SOUND))
        assert refused(http, 400, user(" "))["param"] == "messages"


def test_a_fault_of_ours_is_told_without_its_inside(talker: Talker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("in some/secret/path")

    with client(talker) as http:
        with monkeypatch.context() as patch:
            patch.setattr(Session, "_hear", fails)
            error = refused(http, 500, user("hello"))
            body = {"messages": [user("hello")], "stream": True}
            assert http.post(CHAT, json=body).status_code == 500
        assert error["message"] == "the server failed on this request" and error["type"] == "server_error"
        assert content(ask(http, user("hello")))


@pytest.fixture(scope="module")
def locked(talker: Talker) -> Any:
    with client(talker, token="a long token", names=["box.lan"]) as http:
        yield http


def test_the_token_is_asked_for(locked: TestClient) -> None:
    body = {"messages": [user("hello")]}
    for headers in ({}, {"Authorization": "Bearer a long toke"}, {"Authorization": "Basic a long token"}):
        answer = locked.post(CHAT, json=body, headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert locked.get("/v1/models", headers=headers).status_code == 401
    known = {"Authorization": "Bearer a long token"}
    assert locked.get("/v1/models", headers=known).status_code == 200
    assert locked.post(CHAT, json=body, headers=known).status_code == 200
    assert locked.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:8000", 200), ("LOCALHOST", 200), ("[::1]:8000", 200), ("box.lan", 200)]
    + [(host, 421) for host in ("evil.example", "", "127.0.0.1.evil.example", "a@127.0.0.1", "127.0.0.1:x", "[::1")],
)
def test_other_names_are_refused(locked: TestClient, host: str, status: int) -> None:
    answer = locked.get("/health", headers={"Host": host})
    assert answer.status_code == status
    assert status == 200 or answer.json()["error"]["code"] == "host"


def test_other_paths_methods_and_kinds_are_refused(talker: Talker) -> None:
    body = b'{"messages": [{"role": "user", "content": "hello"}]}'
    with client(talker) as http:
        asked: list[tuple[int, Callable[[], Any]]] = [
            (404, lambda: http.get("/v1/secrets")),
            (404, lambda: http.get("/docs")),
            (404, lambda: http.get("/openapi.json")),
            (405, lambda: http.get(CHAT)),
            (405, lambda: http.delete("/v1/models")),
            (415, lambda: http.post(CHAT, content=body, headers={"Content-Type": "text/plain"})),
            (415, lambda: http.post(CHAT, content=body)),
            (415, lambda: http.post(CHAT, json={}, headers={"Content-Encoding": "gzip"})),
            (405, lambda: http.options(CHAT, headers={"Origin": "http://evil.example"})),
        ]
        for status, request in asked:
            answer = request()
            assert answer.status_code == status and answer.json()["error"]["message"]
            assert "access-control-allow-origin" not in answer.headers


def test_pages_of_named_origins_may_ask(talker: Talker) -> None:
    first = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    with client(talker, cors=["http://localhost:3000"], token="a long token") as http:
        answer = http.options(CHAT, headers=first)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert http.options(CHAT, headers={**first, "Origin": "http://evil.example"}).status_code == 400
