"""What a client did wrong, or the server could not do, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KINDS = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error: one line for people, and a status.

    Args:
        status: of HTTP. message: what is wrong and what would be right; never a path of this machine.
        code: short name for programs. param: field of the request that it is about. headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, " ".join(message.split()), code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """As JSON."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def unfit(param: str, message: str, code: str | None = None) -> ApiError:
    """The error for a field of the request that cannot be."""
    return ApiError(400, message, code, param)
