"""The line before the model, its clock, and bodies that are never held: with a model's place taken by a door."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI

from omnichat.chat.base import Answer
from omnichat.chat.server.app import CHAT, make_app
from omnichat.chat.server.config import LimitsConfig, ServeConfig
from omnichat.chat.server.engine import Engine, Job, Reply
from omnichat.chat.server.request import Asked
from tests.helpers.serving import events_of, user

TALKER: Any = SimpleNamespace(
    name="door", facts={}, model=SimpleNamespace(model=SimpleNamespace(llm=SimpleNamespace(config=SimpleNamespace())))
)
ANSWER = Answer("[x] one two", None, "one two", 2, 3, 0, 0.1, 0.2, None, True)


class Door:
    """Stands where the model would answer: says "one ", waits to be opened or stopped, says "two"."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, speaks: bool = True) -> None:
        self.open, self.order, self.cut, self.speaks = threading.Event(), [], [], speaks
        self.begun = threading.Semaphore(0)
        monkeypatch.setattr(Engine, "_reply", lambda _, job, asked: self.reply(job, asked))

    def reply(self, job: Job, asked: Asked) -> Reply:
        self.order.append(asked.messages[0].parts[0])
        if self.speaks:
            job.tell("one ")
        self.begun.release()
        while not self.open.wait(0.01):
            if job.stop.is_set():
                self.cut.append(asked.messages[0].parts[0])
                return Reply(Answer("one", None, "one", 1, 3, 0, 0.1, 0.2, None, False), None)
        job.tell("two")
        return Reply(ANSWER, None)


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    made = Door(monkeypatch)
    yield made
    made.open.set()


def app_with(**limits: Any) -> FastAPI:
    return make_app(TALKER, ServeConfig(limits=LimitsConfig(**limits)))


@dataclass
class Call:
    """One request put straight to the application: what is sent, what comes, and a client that may go away."""

    app: FastAPI
    body: bytes | AsyncIterator[bytes] = b""
    headers: dict[str, str] = field(default_factory=dict)
    sent: int = 0
    status: int = 0
    answer: dict[str, str] = field(default_factory=dict)
    text: str = ""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    spoken: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> Call:
        parts = self._parts()
        headers = {"host": "localhost", "content-type": "application/json", **self.headers}

        async def receive() -> dict[str, Any]:
            async for part in parts:
                self.sent += len(part)
                return {"type": "http.request", "body": part, "more_body": True}
            if not self.gone.is_set() and not getattr(self, "ended", False):
                self.ended = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.answer = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                self.text += message.get("body", b"").decode()
                self.spoken.set()

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": CHAT,
            "raw_path": CHAT.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        await self.app(scope, receive, send)  # type: ignore[arg-type]
        return self

    async def _parts(self) -> AsyncIterator[bytes]:
        if isinstance(self.body, bytes):
            yield self.body
        else:
            async for part in self.body:
                yield part

    @property
    def code(self) -> str:
        return json.loads(self.text)["error"]["code"]


def says(words: str, **fields: Any) -> bytes:
    return json.dumps({"messages": [user(words)], **fields}).encode()


async def _until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_first_come_first_served_and_the_line_has_an_end(door: Door) -> None:
    async def scene() -> None:
        app = app_with(queue=2)
        tasks = []
        for number in range(3):
            tasks.append(asyncio.create_task(Call(app, says(str(number))).run()))
            await _until(lambda: len(app.state.engine._jobs) == len(tasks))
        full = await Call(app, says("late")).run()
        assert (full.status, full.code) == (429, "queue_full") and int(full.answer["retry-after"]) >= 1
        door.open.set()
        done = await asyncio.gather(*tasks)
        assert [call.status for call in done] == [200] * 3 and door.order == ["0", "1", "2"]
        assert (await Call(app, says("again")).run()).status == 200
        assert app.state.engine.inside == 0

    asyncio.run(scene())


def test_a_full_line_reads_no_body(door: Door) -> None:
    async def scene() -> None:
        app = app_with(queue=0)
        task = asyncio.create_task(Call(app, says("one")).run())
        await _until(lambda: app.state.engine._jobs)
        full = await Call(app, says("x" * 1000)).run()
        assert full.status == 429 and full.sent == 0
        door.open.set()
        await task

    asyncio.run(scene())


async def _endless() -> AsyncIterator[bytes]:
    while True:
        yield b" " * 65_536


def test_an_endless_body_is_left_at_its_limit(door: Door) -> None:
    async def scene() -> None:
        app = app_with(max_body_mb=1.0)
        call = await Call(app, _endless()).run()
        assert (call.status, call.code) == (413, "body_too_large") and call.sent <= 1_000_000 + 65_536
        stated = await Call(app, _endless(), {"content-length": "1000001"}).run()
        assert stated.status == 413 and stated.sent == 0
        for wrong in ("-1", "1e3", "9" * 30):
            assert (await Call(app, b"", {"content-length": wrong}).run()).status == 413
        assert app.state.engine.inside == 0 and not door.order

    asyncio.run(scene())


async def _slow() -> AsyncIterator[bytes]:
    yield b"{"
    await asyncio.sleep(3600)


def test_a_body_that_does_not_come_loses_its_place(door: Door) -> None:
    async def scene() -> None:
        app = app_with(timeout_sec=0.2)
        call = await Call(app, _slow()).run()
        assert (call.status, call.code) == (408, "timeout") and app.state.engine.inside == 0

    asyncio.run(scene())


def test_time_that_is_over_before_a_word_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door(monkeypatch, speaks=False)

    async def scene() -> None:
        app = app_with(timeout_sec=0.5)
        running, waiting = Call(app, says("a", stream=True)), Call(app, says("b"))
        await asyncio.gather(running.run(), waiting.run())
        assert [(call.status, call.code) for call in (running, waiting)] == [(504, "timeout")] * 2
        await _until(lambda: not app.state.engine._jobs)
        assert door.order == ["a"], "who waited too long is skipped"

    asyncio.run(scene())


@pytest.mark.parametrize("stream", [False, True])
def test_time_that_is_over_within_a_reply_cuts_it(door: Door, stream: bool) -> None:
    async def scene() -> None:
        call = await Call(app_with(timeout_sec=0.5), says("a", stream=stream)).run()
        assert call.status == 200 and door.cut == ["a"]
        last = events_of(call.text)[-2] if stream else json.loads(call.text)
        assert last["choices"][0]["finish_reason"] == "length"

    asyncio.run(scene())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_the_model(door: Door, stream: bool) -> None:
    async def scene() -> None:
        app = app_with(queue=3)
        first, waits, last = (
            Call(app, says("a", stream=stream)),
            Call(app, says("b", stream=stream)),
            Call(app, says("c")),
        )
        tasks = []
        for number, call in enumerate((first, waits, last)):
            tasks.append(asyncio.create_task(call.run()))
            await _until(lambda number=number: len(app.state.engine._jobs) == number + 1)
        if stream:
            await first.spoken.wait()
        waits.gone.set()
        await tasks[1]
        first.gone.set()
        await tasks[0]
        await asyncio.to_thread(door.begun.acquire)  # of a
        await asyncio.to_thread(door.begun.acquire)  # of c: b is never begun
        door.open.set()
        await tasks[2]
        assert door.cut == ["a"] and door.order == ["a", "c"] and last.status == 200
        assert app.state.engine.inside == 0 and (first.status == 200) == stream and waits.status == 0

    asyncio.run(scene())


def test_a_server_that_stops_lets_a_reply_end_or_cuts_it(door: Door) -> None:
    async def scene(drain_sec: float, cut: bool) -> None:
        app = app_with()
        engine: Engine = app.state.engine
        running, waiting = Call(app, says("a")), Call(app, says("b"))
        tasks = [asyncio.create_task(running.run())]
        await _until(lambda: len(engine._jobs) == 1)
        await asyncio.to_thread(door.begun.acquire)
        tasks.append(asyncio.create_task(waiting.run()))
        await _until(lambda: len(engine._jobs) == 2)
        engine.wind_down(drain_sec)
        late = await Call(app, says("c")).run()
        if not cut:
            door.open.set()
        await asyncio.gather(*tasks)
        assert (waiting.status, late.status) == (503, 503)
        finish = json.loads(running.text)["choices"][0]["finish_reason"]
        assert finish == ("length" if cut else "stop")
        await asyncio.to_thread(engine.close)
        engine.close()

    asyncio.run(scene(0.1, cut=True))
    asyncio.run(scene(600.0, cut=False))
