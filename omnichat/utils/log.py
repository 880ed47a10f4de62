"""Logging: one format, only rank 0 speaks below WARNING."""

from __future__ import annotations

import logging
import os
import sys

from tqdm import tqdm


class _TqdmHandler(logging.Handler):
    """Writes lines above an open progress bar and not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def rank() -> int:
    """This process's rank as its launcher states it; 0 outside a launcher."""
    return int(os.environ.get("RANK", "0"))


def setup_logging(level: int = logging.INFO) -> None:
    """Send omnichat's log lines to standard error; safe to call twice."""
    logger = logging.getLogger("omnichat")
    logger.setLevel(level if rank() == 0 else logging.WARNING)
    logger.propagate = False
    if not logger.handlers:
        handler = _TqdmHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        logger.addHandler(handler)


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module (pass `__name__`)."""
    return logging.getLogger(name)
