"""Waiting for what the first process of a run writes into a folder that all of them see."""

from __future__ import annotations

import time

from omnichat.utils.errors import UserError
from omnichat.utils.log import rank

PATIENCE_SEC = 1800.0  # that what is written may stay as it is; writers write every minute
POLL_SEC = 0.5


class Patience:
    """The wait of one process for another's files.

    Args:
        what: is waited for, and `advice`: what would help, both for the message.
    """

    def __init__(self, what: str, advice: str) -> None:
        self.what, self.advice = what, advice
        self._size, self._since = -1, time.monotonic()

    def sleep(self, size: int) -> None:
        """Sleep until it is worth looking again.

        Args:
            size: in bytes, of what is there by now.

        Raises:
            UserError: it has not grown for PATIENCE_SEC: the folder is not shared, or the writer hangs.
        """
        if size != self._size:
            self._size, self._since = size, time.monotonic()
        if time.monotonic() - self._since > PATIENCE_SEC:
            raise UserError(
                f"rank {rank()} has waited {PATIENCE_SEC / 60:.0f} min for rank 0 to write {self.what}: {self.advice}"
            )
        time.sleep(POLL_SEC)
