"""What stands before every page: who may ask, by which name, for which paths, and how much a request may hold."""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# A page takes nothing from elsewhere and is shown in no other page. Its script is gradio's, which compiles templates.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob:; "
    "worker-src 'self' blob:; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)


class Guard:
    """ASGI middleware.

    Args:
        app: what answers those who may pass.
        paths: pattern of all paths that are answered; others are 404, whatever `app` has there.
        names: that a request may be addressed to (its Host without the port); None = any.
        password: of HTTP Basic (any user name) or Bearer; None = nobody is asked.
        max_bytes: of a request's body; a stated length of more is 413, and one that is not stated is cut off there.
    """

    def __init__(
        self, app: App, *, paths: str, names: Collection[str] | None, password: str | None, max_bytes: int
    ) -> None:
        self.app, self.names, self.max_bytes = app, names, max_bytes
        self._paths = re.compile(paths)
        self._password = None if password is None else password.encode("utf-8")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})  # no page of ours speaks over one
        refused = self._refusal(scope)
        if refused is not None:
            return await _answer(send, *refused)
        await self.app(scope, _Limited(receive, self.max_bytes), _with_headers(send))

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        """Status and reason, where a request may not pass."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self.names is not None and _name(host) not in self.names:
            return 421, "this page is not served under that name"
        origin = headers.get(b"origin")
        if origin is not None and _place(origin) != host.lower():
            return 403, "asked by a page of another place"
        if self._password is not None and not self._is_known(headers.get(b"authorization", "")):
            return 401, "a password is needed"
        if ".." in scope["path"].split("/") or not self._paths.fullmatch(scope["path"]):
            return 404, "nothing here"
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > self.max_bytes:
            return 413, f"more than {self.max_bytes} bytes"
        return None

    def _is_known(self, given: str) -> bool:
        assert self._password is not None
        kind, _, value = given.partition(" ")
        if kind.lower() == "basic":
            try:
                value = base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
            except ValueError:  # no base64, or no UTF-8 in it
                return False
            return secrets.compare_digest(value.encode("utf-8"), self._password)
        # A header's bytes come as latin-1 letters.
        return kind.lower() == "bearer" and secrets.compare_digest(value.encode("latin-1"), self._password)


class _Limited:
    """Counts what comes; a client that states no length is stopped as well."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self.receive, self.left = receive, max_bytes

    async def __call__(self) -> Message:
        message = await self.receive()
        self.left -= len(message.get("body", b""))
        return {"type": "http.disconnect"} if self.left < 0 else message


def _name(host: str) -> str:
    """The name of a Host header, without port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _place(origin: str) -> str | None:
    """Name and port of an Origin header; None where it is no address."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
        await send(message)

    return sending


async def _answer(send: Send, status: int, reason: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *HEADERS]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="omnichat", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason.encode("utf-8")})
