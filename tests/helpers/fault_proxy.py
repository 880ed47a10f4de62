"""Servers on loopback for tests of a chat client: one that answers as told, and a proxy that makes what can go wrong.

The proxy counts what reaches it, so that a test can tell how often and how many at a time a client asks.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes]
FAULTS = (
    "drop",
    "reset",
    "429",
    "500",
    "503",
    "slow",
    "drip",
    "truncated",
    "wrong_json",
    "not_json",
    "list_json",
    "huge",
    "html",
    "empty_choices",
    "null_text",
    "compressed",
)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.answer(self, body)  # type: ignore[attr-defined]

    def send(self, status: int, headers: dict[str, str], body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def hang_up(self, reset: bool = False) -> None:
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.wfile.close = lambda: None  # type: ignore[method-assign]
        self.connection.close() if reset else self.connection.shutdown(socket.SHUT_RDWR)


def completion(text: str | None, finish: str = "stop", prompt: int = 100, completion: int = 50) -> dict[str, Any]:
    """The JSON of a chat completion."""
    return {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }


def asking(url: str, **changed: Any) -> dict[str, Any]:
    """Settings that all parts share which ask a chat server, with short waits; `changed` takes their place."""
    from omnichat.remote.answers import Prices
    from omnichat.remote.chat_client import Limits

    limits = {"timeout_sec": 30.0, "wait_sec": 0.0, "max_wait_sec": 0.0, "tries": 4, "breaker": 6}
    limits |= changed.pop("limits", {})
    settings: dict[str, Any] = {
        "base_url": url,
        "api_key_env": None,
        "prompts": "v1",
        "response_format": "auto",
        "top_p": None,
        "max_tokens_field": "max_tokens",
        "send_seed": True,
        "extra_body": {},
        "concurrency": 3,
        "prices": Prices(prompt=1.0, completion=2.0),
    }
    return {**settings, **changed, "limits": Limits(**limits)}


class ChatServer:
    """Answers chat requests by a function from (body, headers) to the JSON of a completion, or to a whole `Reply`.

    Attributes: url: up to /v1. bodies, headers: of all requests, in the order of arrival.
    """

    def __init__(self, reply: Callable[[dict[str, Any]], dict[str, Any] | Reply]) -> None:
        self.reply = reply
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.answer = self._answer  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def _answer(self, handler: _Handler, body: bytes) -> None:
        with self._lock:
            self.bodies.append(json.loads(body))
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
        made = self.reply(json.loads(body))
        handler.send(*(made if isinstance(made, tuple) else (200, {}, json.dumps(made).encode())))

    def __enter__(self) -> Any:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


class FaultProxy(ChatServer):
    """Passes requests on to a server, but for those that `faults` spoils.

    Args:
        upstream: address up to /v1.
        faults: the fault of each arriving request, in order, None = pass it on; the last one goes on for ever.
        hold_sec: how long a request stays here, so that several are under way together.
        slow_sec: what the faults slow and drip take; longer than the client's patience.
    Attributes:
        peak: most requests under way at a time. made: faults made, by name.
    """

    def __init__(
        self,
        upstream: str,
        faults: Iterator[str | None] | list[str | None],
        hold_sec: float = 0.0,
        slow_sec: float = 2.0,
    ) -> None:
        super().__init__(lambda body: completion(""))
        self.upstream, self.hold_sec, self.slow_sec = upstream, hold_sec, slow_sec
        self._faults, self._last = iter(faults), None
        self.made: Counter[str] = Counter()
        self.peak = self._now = 0

    def _answer(self, handler: _Handler, body: bytes) -> None:
        with self._lock:
            self._now += 1
            self.peak = max(self.peak, self._now)
            self.bodies.append(json.loads(body))
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            fault = self._last = next(self._faults, self._last)
            self.made[fault or "passed"] += 1
        try:
            time.sleep(self.hold_sec)
            self._spoil(handler, fault, body) if fault else handler.send(*self._passed(handler, body))
        finally:
            with self._lock:
                self._now -= 1

    def _passed(self, handler: _Handler, body: bytes) -> Reply:
        address = self.upstream.removesuffix("/v1") + handler.path
        headers = {name: handler.headers[name] for name in ("content-type", "authorization") if name in handler.headers}
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(urllib.request.Request(address, body, headers), timeout=300) as got:
                return got.status, {}, got.read()
        except urllib.error.HTTPError as error:
            return error.code, {}, error.read()

    def _spoil(self, handler: _Handler, fault: str, body: bytes) -> None:
        good = json.dumps(completion('{"topic": "spoilt"}')).encode()
        if fault in ("drop", "reset"):
            handler.hang_up(reset=fault == "reset")
        elif fault in ("429", "500", "503"):
            wait = {"retry-after": "0.05"} if fault == "429" else {}
            handler.send(int(fault), wait, b'{"error": {"message": "not now"}}')
        elif fault == "slow":
            time.sleep(self.slow_sec)
            handler.send(200, {}, good)
        elif fault == "drip":  # each byte comes before any time-out for one, the whole never does
            handler.send(200, {}, b"", length=10_000)
            for _ in range(int(self.slow_sec / 0.05)):
                handler.wfile.write(b" ")
                time.sleep(0.05)
        elif fault == "truncated":
            handler.send(200, {}, good[: len(good) // 2], length=len(good))
            handler.hang_up()
        elif fault == "huge":
            handler.send(200, {}, b"[" + b" " * 3_000_000 + b"]")
        elif fault == "html":
            handler.send(200, {"content-type": "text/html"}, b"<html>Sign in to the network</html>")
        elif fault == "compressed":
            handler.send(200, {"content-encoding": "gzip"}, b"\x1f\x8b" + b"\0" * 50)
        else:
            bodies = {
                "wrong_json": b'{"object": "error", "message": "overloaded"}',
                "not_json": b"{" + good,
                "list_json": b"[1, 2]",
                "empty_choices": json.dumps({**completion(""), "choices": []}).encode(),
                "null_text": json.dumps(completion(None)).encode(),
            }
            handler.send(200, {}, bodies[fault])


@contextmanager
def behind(proxy: FaultProxy, server: ChatServer) -> Iterator[FaultProxy]:
    """Both servers running."""
    with server, proxy:
        yield proxy
