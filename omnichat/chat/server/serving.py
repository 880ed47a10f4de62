"""Serves the API until it is asked to stop, and lets a running reply end."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI

from omnichat.chat.announced import AnnouncedServer
from omnichat.chat.server.engine import Engine
from omnichat.utils.log import get_logger
from omnichat.utils.signals import answered

log = get_logger(__name__)
_AFTER_SEC = 20  # after the drain, for a reply that is being heard or spoken: that cannot be cut


class Server(AnnouncedServer):
    """Asked to stop, it takes nothing new, refuses what waits, and gives the running reply some seconds.

    Args:
        app: of `make_app`.
        drain_sec: that a running reply may go on.
        ready: called once requests are answered.
    """

    def __init__(self, app: FastAPI, drain_sec: float, ready: Callable[[], None] = lambda: None) -> None:
        self.engine: Engine = app.state.engine
        self._drain_sec = drain_sec
        settings: dict[str, Any] = {
            "http": "h11",
            "ws": "none",
            "lifespan": "on",
            "log_config": None,
            "log_level": "warning",
            "access_log": False,
            "server_header": False,
            "proxy_headers": False,
        }
        config = uvicorn.Config(app, timeout_graceful_shutdown=int(drain_sec) + _AFTER_SEC, **settings)
        super().__init__(config, ready)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wind down."""
        self.engine.wind_down(self._drain_sec)
        await super().shutdown(sockets)


def serve(app: FastAPI, listening: socket.socket, drain_sec: float, ready: Callable[[], None]) -> None:
    """Answer requests until SIGINT or SIGTERM; a second Ctrl-C ends at once.

    Args:
        app: of `make_app`. listening: of `listen`. ready: called once requests are answered.
    """
    server = Server(app, drain_sec, ready)
    # uvicorn raises a signal once more when it is through, for whoever was there before it.
    try:
        with answered(lambda number: log.info("stopped by %s", number.name)):
            server.run(sockets=[listening])
    finally:
        server.engine.close()
        listening.close()
