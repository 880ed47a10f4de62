"""Where something is served on this machine, and to whom: addresses, sockets, secrets; without any web library."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket

from omnichat.utils.errors import UserError

_LEAST_SECRET = 8  # letters; a shorter one is guessed


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(host: str, port: int, secret: str, secret_env: str | None) -> None:
    """Check the settings of a server.

    Args:
        secret: what it may ask for, password or token; `secret_env` is the setting `<secret>_env`.

    Raises:
        UserError: no address, no port, or a secret in the place of the variable's name.
    """
    if not host:
        raise UserError("host must be an address, such as 127.0.0.1 or 0.0.0.0")
    if isinstance(port, bool) or not 0 <= port <= 65535:
        raise UserError(f"port must be 0 to 65535, got {port}")
    if secret_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", secret_env):
        raise UserError(f"{secret}_env must be the name of an environment variable, not the {secret} itself")


def read_secret(secret: str, secret_env: str | None) -> str | None:
    """What the environment variable holds, without blanks around it; None where no secret is asked for.

    Raises:
        UserError: the variable is not set, or its value is short.
    """
    if secret_env is None:
        return None
    value = os.environ.get(secret_env, "").strip()
    if len(value) < _LEAST_SECRET:
        raise UserError(
            f"{secret}_env: the environment variable {secret_env} must hold {_LEAST_SECRET} characters or more"
        )
    return value


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on host and port; 0 is any free one.

    Raises:
        UserError: the port is taken, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
    except socket.gaierror as error:
        raise UserError(f"host={host}: {error.strerror}") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port={port} is taken on {host}; choose another, or port=0 for any") from None
        raise UserError(f"host={host} port={port}: {error.strerror}") from None
    return made


def address_of(listening: socket.socket) -> str:
    """What a browser or client on this machine is pointed at, without a path."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
