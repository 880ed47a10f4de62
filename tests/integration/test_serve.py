"""A real server on loopback and OpenAI's own client; then the verb in a process of its own, and signals."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from omnichat.chat.base import DecodingConfig, Talker
from omnichat.chat.session import Session
from omnichat.model.pretrained.conversation import Said
from tests.helpers.serving import file_bytes, user
from tests.helpers.talkers import small_talker, tone

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

from omnichat.chat.address import address_of, listen  # noqa: E402
from omnichat.chat.server.app import CHAT, make_app  # noqa: E402
from omnichat.chat.server.config import LimitsConfig, ServeConfig  # noqa: E402
from omnichat.chat.server.serving import Server  # noqa: E402
from omnichat.utils.errors import UserError  # noqa: E402

pytestmark = pytest.mark.slow
TOKEN = "a token of a test"
SOUND, OTHER = tone(0.8, 300.0), tone(1.1, 150.0)
CONFIG = ServeConfig(
    port=0, decoding=DecodingConfig(max_new_tokens=10), limits=LimitsConfig(queue=4, max_body_mb=2.0, timeout_sec=600.0)
)


@pytest.fixture(scope="module")
def talker() -> Talker:
    return small_talker()


@pytest.fixture(scope="module")
def server(talker: Talker) -> Iterator[Server]:
    listening, ready = listen(CONFIG.host, CONFIG.port), threading.Event()
    made = Server(make_app(talker, CONFIG, TOKEN), 1.0, ready.set)
    made.address = address_of(listening)  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.run, args=([listening],))
    thread.start()
    assert ready.wait(600)
    yield made
    made.should_exit = True
    thread.join(600)
    assert not thread.is_alive() and made.engine.closing


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key=TOKEN, max_retries=0, timeout=600.0) as made:
        yield made


def create(client: Any, *messages: Any, **fields: Any) -> Any:
    return client.chat.completions.create(model="small", messages=list(messages), **fields)


def test_openai_s_client_talks_for_two_turns(client: Any, talker: Talker) -> None:
    session = Session(talker, CONFIG.decoding)
    one, two = session.answer(Said("user", SOUND)), session.answer(Said("user", None, "and then?"))
    first = create(client, user(SOUND))
    message = first.choices[0].message
    assert message.content == one.text and message.omnichat["words"] == one.words
    assert [model.id for model in client.models.list()] == ["small"]
    chunks = list(
        create(client, user(SOUND), message, user("and then?"), stream=True, stream_options={"include_usage": True})
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == two.text
    usage = chunks[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (two.prompt_tokens, two.tokens)
    assert usage.prompt_tokens_details.cached_tokens == two.kept_tokens > 0
    assert chunks[-2].choices[0].finish_reason == first.choices[0].finish_reason


def test_the_python_of_the_page_runs(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "SERVE.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for old, new in (
        ("http://127.0.0.1:8000", server.address),
        ('api_key="none"', f'api_key="{TOKEN}"'),
        ('model="speech"', 'model="small"'),
    ):
        assert old in shown
        shown = shown.replace(old, new)
    (tmp_path / "hello.wav").write_bytes(file_bytes(SOUND))
    monkeypatch.chdir(tmp_path)
    exec(compile(shown, "docs/SERVE.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_openai_s_client_is_told_what_is_wrong(client: Any, server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="stop is not supported"):
        create(client, user("hello"), stop=["."])
    with pytest.raises(openai.NotFoundError, match="this server has small"):
        client.chat.completions.create(model="gpt-4o", messages=[user("hello")])
    with pytest.raises(openai.BadRequestError, match="not readable as audio"):
        create(client, user({"type": "input_audio", "input_audio": {"data": "aGVsbG8=", "format": "wav"}}), stream=True)
    with (
        openai.OpenAI(base_url=f"{server.address}/v1", api_key="wrong", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError, match="a token is needed"),
    ):
        create(other, user("hello"))


def test_twenty_clients_are_answered_or_told_to_come_again(server: Server, talker: Talker) -> None:
    expected = {words: Session(talker, CONFIG.decoding).answer(Said("user", None, words)).text for words in "abcd"}

    def one(number: int) -> str | None:
        words = "abcd"[number % 4]
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = httpx.post(
            f"{server.address}{CHAT}", json={"messages": [user(words)]}, headers=headers, timeout=600, trust_env=False
        )
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1 and answer.json()["error"]["code"] == "queue_full"
            return None
        assert answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"] == expected[words]
        return words

    with ThreadPoolExecutor(20) as pool:
        answered = [words for words in pool.map(one, range(20)) if words is not None]
    assert len(answered) >= 5, "one is answered and four wait"


def test_a_client_that_goes_away_ends_its_reply(client: Any, server: Server) -> None:
    stream = create(client, user(OTHER), stream=True, max_tokens=500)
    assert len(list(islice(stream, 3))) == 3
    stream.close()
    create(client, user("hello"), max_tokens=1)  # waits its turn
    cut = next(
        kept
        for kept in server.engine._dialogues._kept
        if kept.turns[0].sound is not None and kept.decoding.max_new_tokens > 100
    )
    answer = cut.answers[-1]
    assert not answer.complete and answer.tokens < 500
    again = create(client, user(OTHER), max_tokens=8)
    fresh = Session(server.engine.talker, DecodingConfig(max_new_tokens=8)).answer(Said("user", OTHER))
    assert again.choices[0].message.content == fresh.text


def test_a_body_without_a_length_is_stopped_at_the_limit(server: Server) -> None:
    """Sent in chunks, over a socket, by a client that would never end."""
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=600) as link:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n"
        link.sendall(f"{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        chunk, sent = b"10000\r\n" + b" " * 65_536 + b"\r\n", 0
        answer = b""
        while not answer and sent < 200:
            link.setblocking(True)
            link.sendall(chunk)
            sent += 1
            link.setblocking(False)
            try:
                answer = link.recv(65_536)
            except BlockingIOError:
                time.sleep(0.01)
    assert answer.startswith(b"HTTP/1.1 413") and b"larger than 2 MB" in answer


def test_a_taken_port_and_a_foreign_address_are_told() -> None:
    with listen(CONFIG.host, CONFIG.port) as taken, pytest.raises(UserError, match="port=0 for any"):
        listen(CONFIG.host, taken.getsockname()[1])
    with pytest.raises(UserError, match=r"host=192\.0\.2\.1"):
        listen("192.0.2.1", 8000)


def test_the_verb_serves_and_lets_a_reply_end(talker: Talker, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    talker.model.save_pretrained(folder)
    talker.processor.save_pretrained(folder)
    command = [sys.executable, "-m", "omnichat.cli", "serve", f"run={folder}", "port=0", "device=cpu"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "A_TOKEN": TOKEN}
    with subprocess.Popen(
        [*command, "token_env=A_TOKEN", "limits.drain_sec=300"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            first = ""
            while "curl" not in first and (line := process.stdout.readline()):  # what is told once it listens
                first += line
            found = re.search(r"http://127\.0\.0\.1:\d+/v1", first)
            assert found is not None, first + process.stderr.read()
            with openai.OpenAI(base_url=found.group(0), api_key=TOKEN, max_retries=0, timeout=600.0) as client:
                stream = iter(create(client, user(SOUND), stream=True, max_tokens=60))
                chunks = [next(stream), next(stream)]
                process.send_signal(signal.SIGTERM)
                chunks += list(stream)
            assert chunks[-1].choices[0].finish_reason is not None
            out, errors = process.communicate(timeout=600)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors and TOKEN not in first + out + errors
    assert "curl" in first and out.splitlines()[-1].startswith("next: omnichat chat run=")
