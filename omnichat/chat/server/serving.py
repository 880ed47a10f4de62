"""Serves the API until it is asked to stop, and lets a running reply end."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI

from omnichat.chat.server.config import ServeConfig
from omnichat.chat.server.engine import Engine
from omnichat.utils.errors import UserError
from omnichat.utils.log import get_logger
from omnichat.utils.signals import answered

log = get_logger(__name__)
_AFTER_SEC = 20  # after the drain, for a reply that is being heard or spoken: that cannot be cut


def listen(config: ServeConfig) -> socket.socket:
    """A socket that listens on host and port.

    Raises:
        UserError: the port is taken, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
    except socket.gaierror as error:
        raise UserError(f"host={config.host}: {error.strerror}") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            taken = f"port={config.port} is taken on {config.host}; choose another, or port=0 for any"
            raise UserError(taken) from None
        raise UserError(f"host={config.host} port={config.port}: {error.strerror}") from None
    return made


def address_of(listening: socket.socket) -> str:
    """What a client on this machine is pointed at."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Asked to stop, it takes nothing new, refuses what waits, and gives the running reply some seconds.

    Args:
        app: of `make_app`.
        drain_sec: that a running reply may go on.
        ready: called once requests are answered.
    """

    def __init__(self, app: FastAPI, drain_sec: float, ready: Callable[[], None] = lambda: None) -> None:
        self.engine: Engine = app.state.engine
        self._drain_sec, self._ready = drain_sec, ready
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
        super().__init__(uvicorn.Config(app, timeout_graceful_shutdown=int(drain_sec) + _AFTER_SEC, **settings))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if self.started:
            self._ready()

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
