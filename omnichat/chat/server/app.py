"""The HTTP API: /v1/chat/completions, /v1/models, /health."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from omnichat.chat.base import Talker
from omnichat.chat.server.config import ServeConfig
from omnichat.chat.server.engine import Engine, Event, Reply
from omnichat.chat.server.errors import ApiError
from omnichat.chat.server.guard import Guard, answer
from omnichat.chat.server.reply import Envelope, failed
from omnichat.chat.server.request import Asked, read_request
from omnichat.synthesis.base import Voice
from omnichat.utils.log import get_logger

log = get_logger(__name__)
CHAT = "/v1/chat/completions"
_WRITE_SEC = 30.0  # a client that takes nothing for so long is given up
_FACTS = ("input", "alpha", "seed", "checkpoint")  # that a stranger may know of a run


def make_app(
    talker: Talker,
    config: ServeConfig,
    token: str | None = None,
    voice: Voice | None = None,
    speaker: str | None = None,
) -> FastAPI:
    """The application; its `state.engine` has the thread that answers, and ends with it.

    Args:
        talker: the model.
        config: limits, decoding, names and origins; host and port play no part but for the names.
        token: that clients must send; None = nobody is asked.
        voice: speaks replies for those who ask for it. speaker: who, where a request does not say.

    Raises:
        UserError: a speaker that the voice lacks.
    """
    engine = Engine(talker, config, voice, speaker)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(engine.close)

    # No pages that describe the API: they would load scripts from elsewhere.
    app = FastAPI(title="omnichat", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.engine = engine
    started = int(time.time())

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "stopping" if engine.closing else "ok", "model": talker.name, "requests": engine.inside}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        facts = {name: talker.facts[name] for name in _FACTS if name in talker.facts}
        model = {"id": talker.name, "object": "model", "created": started, "owned_by": "omnichat"}
        return {"object": "list", "data": [{**model, "omnichat": {**facts, "speakers": engine.speakers}}]}

    app.add_route(CHAT, ChatCompletions(engine), methods=["POST"])  # type: ignore[arg-type]
    app.add_exception_handler(ApiError, _told)
    app.add_exception_handler(HTTPException, _told)
    app.add_exception_handler(Exception, _told)
    app.add_middleware(Guard, names=config.accepted_names(), token=token)
    if config.cors:  # before the guard: a browser's first question carries no token
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    return app


class ChatCompletions:
    """ASGI application of POST /v1/chat/completions.

    Args:
        engine: what answers.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.config = engine, engine.config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; where its client goes away, its reply ends."""
        deadline = asyncio.get_running_loop().time() + self.config.limits.timeout_sec
        try:
            with self.engine.place():
                asked = await self._read(Request(scope, receive), deadline)
                envelope = Envelope(
                    f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), self.engine.talker.name, asked.include_usage
                )
                events = self._events(asked, receive, deadline)
                async with contextlib.aclosing(events):
                    if asked.stream:
                        await _stream(events, envelope, send)
                    else:
                        await _whole(events, envelope, scope, receive, send)
        except ClientDisconnect:
            log.debug("a client went away")

    async def _read(self, request: Request, deadline: float) -> Asked:
        headers = request.headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # any other a foreign page could send without asking
            raise ApiError(415, "send the request as Content-Type: application/json", "content_type")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "a compressed body is not read", "content_encoding")
        try:
            async with asyncio.timeout_at(deadline):
                body = await _body(request, self.config.limits.max_body)
        except TimeoutError:
            raise ApiError(408, "the body did not arrive in time", "timeout") from None
        return await run_in_threadpool(read_request, body, self.config, self.engine.talker.name, self.engine.speakers)

    async def _events(self, asked: Asked, receive: Receive, deadline: float) -> AsyncGenerator[str | Reply, None]:
        """Pieces of the text as they come, then the reply.

        Raises:
            ApiError: it cannot be answered, or nothing of it was there in time. ClientDisconnect: nobody listens.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event | None] = asyncio.Queue()  # None: the time is over

        def tell(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # a loop that is closed: nobody is there any more
                loop.call_soon_threadsafe(queue.put_nowait, event)

        job = self.engine.submit(asked, tell)
        gone = asyncio.create_task(_gone(receive))
        late = loop.call_at(deadline, queue.put_nowait, None)
        begun = False
        try:
            while True:
                event = await _first(queue, gone)
                if isinstance(event, ApiError):
                    raise event
                if event is None:
                    if not begun:
                        raise ApiError(504, f"no reply within {self.config.limits.timeout_sec:g} s", "timeout")
                    job.stop.set()
                    continue
                begun = True
                yield event
                if isinstance(event, Reply):
                    return
        finally:
            job.leave()
            late.cancel()
            gone.cancel()


async def _first(queue: asyncio.Queue[Event | None], gone: asyncio.Task[None]) -> Event | None:
    """The next event. Raises ClientDisconnect where the client goes away before it comes."""
    if not queue.empty():
        return queue.get_nowait()
    getting = asyncio.ensure_future(queue.get())
    try:
        await asyncio.wait({getting, gone}, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        getting.cancel()
        raise
    if getting.done():
        return getting.result()
    getting.cancel()
    raise ClientDisconnect


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def _body(request: Request, most: int) -> bytes:
    """A body of at most so many bytes; of a larger one no more than that is ever held."""
    too_large = ApiError(413, f"the body is larger than {most / 1e6:g} MB", "body_too_large")
    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or len(stated) > 18 or int(stated) > most:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


async def _whole(
    events: AsyncIterator[str | Reply], envelope: Envelope, scope: Scope, receive: Receive, send: Send
) -> None:
    async for event in events:
        if isinstance(event, Reply):
            response = JSONResponse(envelope.whole(event))
            try:
                async with asyncio.timeout(_WRITE_SEC):
                    await response(scope, receive, send)
            except (TimeoutError, OSError):
                raise ClientDisconnect from None


async def _stream(events: AsyncIterator[str | Reply], envelope: Envelope, send: Send) -> None:
    """Send events as they come. An error before the first of them is an answer of its own."""
    begun = False

    async def write(data: bytes, more: bool = True) -> None:
        try:
            async with asyncio.timeout(_WRITE_SEC):
                await send({"type": "http.response.body", "body": data, "more_body": more})
        except (TimeoutError, OSError):
            raise ClientDisconnect from None

    try:
        async for event in events:
            if not begun:
                await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
                begun = True
                await write(envelope.begin())
            if isinstance(event, str):
                await write(envelope.piece(event))
            else:
                await write(b"".join(envelope.end(event)))
    except ApiError as error:
        if not begun:
            raise
        await write(failed(error))
    if begun:
        await write(b"", more=False)


_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # a proxy shall not wait for the end
]


async def _told(_: Request, error: Exception) -> JSONResponse:
    """Any error in OpenAI's shape; of one of our own the client learns no more than that."""
    if isinstance(error, ApiError):
        return answer(error)
    if isinstance(error, HTTPException):
        told = {404: f"nothing here; POST {CHAT}, GET /v1/models, GET /health", 405: "this path takes another method"}
        headers = dict(error.headers or {})
        return answer(ApiError(error.status_code, told.get(error.status_code, str(error.detail)), headers=headers))
    return answer(ApiError(500, "the server failed on this request", "internal_error"))
