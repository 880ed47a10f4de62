"""What a page that takes files adds to its guard: room on the disk, and no path but those of its own uploads."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastapi
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from omnichat.chat.talking.sounds import SoundStore
from omnichat.chat.web.guard import App, Message, Receive, Send
from omnichat.chat.web.recordings import part_of

SOUND_PATHS = r"/sounds/[\w-]{16,64}\.wav"
_UPLOAD = "/gradio_api/upload"
_CALLS = re.compile(r"/gradio_api/(queue/join|run/\w+)/?")
_CALL_BYTES = 1_000_000  # words, names and paths
AT_ONCE = 8  # uploads


def upload_paths(folder: Path) -> str:
    """Pattern of the paths that a page with uploads is asked for beside PAGE_PATHS."""
    return rf"{_UPLOAD}|/gradio_api/upload_progress|/gradio_api/run/\w+|/gradio_api/file=" + _uploaded(folder)


def sound_routes(sounds: SoundStore) -> fastapi.FastAPI:
    """An application with `/sounds/<name>.wav`, for whoever knows the name."""
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def sound(name: str, request: fastapi.Request) -> Response:
        """The file, or the part of it that a player asks for."""
        content = sounds.get(name)
        if content is None:
            return PlainTextResponse("no longer kept", status_code=404)
        return part_of(content, request.headers.get("range"), "audio/wav")

    app.add_api_route("/sounds/{name}.wav", sound, methods=["GET"], response_model=None)
    return app


class Uploads:
    """ASGI middleware before a page of gradio that takes files.

    gradio copies or fetches whatever path or address a request names as a component's file. Here a call may name
    uploads of this page alone. Uploads that came earlier are deleted where a new one needs the room.

    Args:
        app: the page. folder: that uploads go to.
        max_file_bytes: of one upload. max_bytes: of all on the disk.
    """

    def __init__(self, app: App, folder: Path, max_file_bytes: int, max_bytes: int) -> None:
        self.app, self.folder = app, folder
        self.max_file_bytes, self.max_bytes = max_file_bytes, max_bytes
        self._file = re.compile(_uploaded(folder))
        self._coming = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        path = scope["path"].rstrip("/") if scope["type"] == "http" else ""
        if path == _UPLOAD:
            if self._coming >= AT_ONCE:
                return await _refuse(scope, receive, send, 503, "too many uploads at once; try again in a moment")
            self._coming += 1
            try:
                await asyncio.to_thread(self.make_room)
                return await self.app(scope, receive, send)
            finally:
                self._coming -= 1
        if scope["type"] == "http" and _CALLS.fullmatch(path):
            body = await _body(receive)
            if body is None:
                return await _refuse(scope, receive, send, 413, f"more than {_CALL_BYTES} bytes")
            if not all(self._file.fullmatch(named) for named in _paths(body)):
                return await _refuse(scope, receive, send, 400, "only a file that was uploaded here can be heard")
            receive = _again(body, receive)
        await self.app(scope, receive, send)

    def make_room(self) -> None:
        """Delete the oldest uploads until the uploads that may be under way fit."""
        files = []
        for file in self.folder.rglob("*"):
            try:
                if file.is_file():
                    files.append((file.stat().st_mtime, file.stat().st_size, file))
            except FileNotFoundError:
                continue  # gradio renames what has come in full
        taken = sum(size for _, size, _ in files)
        for _, size, file in sorted(files, key=lambda entry: entry[0]):
            if taken + self.max_file_bytes <= self.max_bytes:
                break
            file.unlink(missing_ok=True)
            taken -= size


def _uploaded(folder: Path) -> str:
    return re.escape(str(folder)) + r"/[0-9a-f]{40,64}/[^/\x00]*[^/\x00.][^/\x00]*"  # a name that is not only dots


def _paths(body: bytes) -> Iterator[str]:
    """Whatever a call names as a path; something that is no upload's where the call cannot be read."""
    try:
        waiting: list[Any] = [json.loads(body)] if body.strip() else []
    except (ValueError, RecursionError):
        yield ""
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "path" in value:
                yield value["path"] if isinstance(value["path"], str) else ""
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


async def _body(receive: Receive) -> bytes | None:
    """A whole request's body; None where it is too long, or its client has left."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > _CALL_BYTES:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body once more, then whatever comes."""
    given = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving() -> Message:
        return given.pop() if given else await receive()

    return receiving


async def _refuse(scope: Message, receive: Receive, send: Send, status: int, reason: str) -> None:
    """The reason as JSON, as gradio's client reads it."""
    answer = JSONResponse({"detail": reason}, status_code=status)
    await answer(scope, receive, send)
