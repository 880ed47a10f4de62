"""Where a page is served, and to whom."""

from __future__ import annotations

from dataclasses import dataclass, field

from omnichat.chat.address import check_address, is_loopback, read_secret
from omnichat.utils.errors import UserError


@dataclass(kw_only=True, slots=True)
class PageConfig:
    """The settings of every web page.

    Raises:
        UserError: a port that is none, or a page for other machines that nobody is asked a password for.
    """

    host: str = "127.0.0.1"  # address that is listened on
    port: int = 7860  # 0 = any free one
    password_env: str | None = None  # environment variable that holds the password; null = none is asked
    names: list[str] = field(
        default_factory=list
    )  # further names that the page is asked for by, behind a proxy or in a network

    def __post_init__(self) -> None:
        check_address(self.host, self.port, "password", self.password_env)
        if not is_loopback(self.host) and self.password_env is None:
            raise UserError(
                f"host={self.host} lets other machines in: name the environment variable that holds a password, "
                "password_env=OMNICHAT_PASSWORD, or listen on host=127.0.0.1"
            )

    def password(self) -> str | None:
        """What the environment variable holds; None where no password is asked for.

        Raises:
            UserError: the variable is not set, or its value is shorter than eight characters.
        """
        return read_secret("password", self.password_env)

    def accepted_names(self) -> set[str] | None:
        """Names by which the page may be asked for, in lower case; None = any, for the password keeps others out.

        Without this rule a foreign site could read the page through a name of its own that leads to this machine.
        """
        if not is_loopback(self.host):
            return None
        return {"localhost", "127.0.0.1", "::1", self.host.lower(), *(name.lower() for name in self.names)}
