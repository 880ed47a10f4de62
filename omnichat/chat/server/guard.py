"""What stands before every path: by which name it is asked for, and by whom."""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from omnichat.chat.server.errors import ApiError

OPEN_PATHS = ("/health",)  # which programs that watch over a server ask without its token
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]@/\s]+)(:\d{1,5})?")


def answer(error: ApiError) -> JSONResponse:
    """An error as a response."""
    return JSONResponse(error.body(), error.status, error.headers)


class Guard:
    """ASGI middleware: the Host header against DNS rebinding, and the token.

    Starlette's TrustedHostMiddleware compares hosts as well, but tells of it in another shape than OpenAI's.

    Args:
        app: what answers those who may pass.
        names: that the Host header may state, without the port, in lower case; None = any.
        token: that clients send as "Authorization: Bearer TOKEN"; None = nobody is asked.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] | None, token: str | None) -> None:
        self.app, self.names = app, names
        self._token = None if token is None else token.encode("utf-8")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "http" and (refused := self._refusal(scope)) is not None:
            return await answer(refused)(scope, receive, send)
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if self.names is not None:
            host = _HOST.fullmatch(headers.get("host", "").lower())
            if host is None or host.group(1) not in self.names:
                return ApiError(421, "the server is not asked for by this name; see names= of omnichat serve", "host")
        if self._token is not None and scope["path"] not in OPEN_PATHS:
            kind, _, given = headers.get("authorization", "").partition(" ")
            # A header's bytes come as latin-1 letters.
            known = hmac.compare_digest(given.strip().encode("latin-1"), self._token)
            if kind.lower() != "bearer" or not known:
                told = "a token is needed: Authorization: Bearer TOKEN (api_key of OpenAI's client)"
                return ApiError(401, told, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return None
