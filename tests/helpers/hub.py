"""A stand-in for the Hugging Face hub on loopback: takes a repository's files as the real client sends them."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """What the stand-in was asked for.

    Attributes:
        files: path -> content, after the last commit.
        private: of the repository; None = it is not there yet.
        branches: that were made, beside main. committed: paths that commits were sent to.
        refuse: status with which every request is answered; None = as asked.
        tokens: that were sent.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.private: bool | None = None
        self.refuse: int | None = None
        self.tokens: set[str | None] = set()
        self.branches: list[str] = []
        self.committed: list[str] = []
        self.url = ""

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "deletedFile":
                self.files.pop(value["path"])
            elif line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])


class _Server(ThreadingHTTPServer):
    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


class _Handler(BaseHTTPRequestHandler):
    """Answers for the hub of its server."""

    server: _Server

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def answer(self, code: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def do_GET(self) -> None:
        self.server.hub.tokens.add(self.headers.get("Authorization"))
        if self.server.hub.refuse is not None:
            return self.answer(self.server.hub.refuse, {"error": "refused"})
        if "/tree/" in self.path:
            found = [{"type": "file", "path": p, "size": len(c), "oid": "0"} for p, c in self.server.hub.files.items()]
            return self.answer(200, found)
        siblings = [{"rfilename": path} for path in self.server.hub.files]
        self.answer(
            200, {"id": "me/x", "private": self.server.hub.private, "sha": "0" * 40, "siblings": siblings, "tags": []}
        )

    def do_POST(self) -> None:
        body = self.body()
        if self.path != "/api/validate-yaml":  # a card's header is checked without a token
            self.server.hub.tokens.add(self.headers.get("Authorization"))
        if self.server.hub.refuse is not None:
            return self.answer(self.server.hub.refuse, {"error": "refused"})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            address = (
                f"{self.server.hub.url}/datasets/me/x"
                if asked.get("type") == "dataset"
                else f"{self.server.hub.url}/me/x"
            )
            if self.server.hub.private is not None:
                return self.answer(409, {"error": "it is there", "url": address})
            self.server.hub.private = asked.get("private") is True or asked.get("visibility") == "private"
            return self.answer(200, {"url": address, "name": "me/x"})
        if "/branch/" in self.path:
            self.server.hub.branches.append(self.path.rpartition("/")[2])
            return self.answer(200, {})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            names = [entry["path"] for entry in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self.answer(200, {"files": modes})
        self.committed(body)

    def committed(self, body: bytes) -> None:
        self.server.hub.commit([json.loads(line) for line in body.splitlines()])
        self.server.hub.committed.append(self.path)
        kind = "datasets/" if self.path.startswith("/api/datasets/") else ""
        address = f"{self.server.hub.url}/{kind}me/x/commit/{'1' * 40}"
        self.answer(200, {"commitUrl": address, "commitOid": "1" * 40, "success": True})


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    server = _Server(hub)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
