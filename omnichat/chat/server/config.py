"""Where the model is served, to whom, and how much a request may take."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from omnichat.chat.address import check_address, is_loopback, read_secret
from omnichat.chat.base import DecodingConfig
from omnichat.utils.errors import UserError


@dataclass(kw_only=True, slots=True)
class LimitsConfig:
    """What a request, and all of them together, may take; more is refused."""

    max_body_mb: float = 32.0  # of a request, recordings in base64 included; more is 413
    max_audio_sec: float = 60.0  # of a recording
    max_dialogue_sec: float = 600.0  # of all recordings of a request
    max_turns: int = 64  # of a dialogue, both speakers' counted
    max_prompt_tokens: int = 4096  # positions that the model reads before it answers
    max_new_tokens: int = 512  # of a reply; a client may ask for more and gets this many
    queue: int = 16  # requests that may wait; more are 429
    timeout_sec: float = 120.0  # of a request, waiting included: 504 if nothing was said by then, else it is cut
    sessions: int = 4  # dialogues whose key-value cache is kept; 0 = none
    drain_sec: float = 10.0  # that a running reply may go on when the server is asked to stop

    def __post_init__(self) -> None:
        for name in ("max_body_mb", "max_audio_sec", "max_dialogue_sec", "timeout_sec"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"limits.{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("max_turns", "max_prompt_tokens", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"limits.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("queue", "sessions", "drain_sec"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"limits.{name} must be at least 0 and finite, got {getattr(self, name)}")

    @property
    def max_body(self) -> int:
        """Bytes of a request."""
        return int(self.max_body_mb * 1e6)


@dataclass(kw_only=True, slots=True)
class ServeConfig:
    """The settings of the server.

    Raises:
        UserError: a value that cannot be, or a server for other machines that asks nobody for a token.
    """

    host: str = "127.0.0.1"  # address that is listened on
    port: int = 8000  # 0 = any free one
    token_env: str | None = None  # environment variable that holds the token clients must send; null = none is asked
    allow_open: bool = False  # let other machines in without a token
    names: list[str] = field(default_factory=list)  # further names that the server may be asked for by
    cors: list[str] = field(default_factory=list)  # origins whose pages may ask; none by default
    decoding: DecodingConfig = field(default_factory=DecodingConfig)  # where a request does not say
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    def __post_init__(self) -> None:
        check_address(self.host, self.port, "token", self.token_env)
        if not is_loopback(self.host) and self.token_env is None and not self.allow_open:
            raise UserError(
                f"host={self.host} lets other machines in: name the environment variable that holds a token, "
                "token_env=OMNICHAT_TOKEN, or say allow_open=true, or listen on host=127.0.0.1"
            )
        for origin in self.cors:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
                raise UserError(f"cors: {origin!r} is no origin; write scheme and host, such as http://localhost:3000")
        if self.decoding.beams != 1:
            raise UserError("decoding.beams must be 1: beam search cannot be streamed")

    def token(self) -> str | None:
        """The token that clients must send; None where none is asked for.

        Raises:
            UserError: the variable is not set, or its value is short.
        """
        return read_secret("token", self.token_env)

    def accepted_names(self) -> set[str] | None:
        """Names, in lower case, that a request's Host header may state; None = any.

        On loopback a foreign page could otherwise reach the server through a name of its own that leads to this machine
        (DNS rebinding). Elsewhere the names are the network's, and are compared where `names` states them.
        """
        named = {name.lower() for name in self.names}
        if is_loopback(self.host):
            return {"localhost", "127.0.0.1", "[::1]", _in_brackets(self.host.lower()), *named}
        return named or None


def _in_brackets(host: str) -> str:
    return f"[{host}]" if ":" in host else host
