"""SIGTERM and Ctrl-C as something that a job can answer at a place of its choosing."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

ASKS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def answered(ask: Callable[[signal.Signals], None], signals: tuple[signal.Signals, ...] = ASKS) -> Iterator[None]:
    """Call `ask` for each of `signals` that comes meanwhile; a second Ctrl-C means now.

    Outside the main thread nothing is done: there signals are somebody else's.
    """

    def handler(number: int, _: object) -> None:
        if signal.SIGINT in signals:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        ask(signal.Signals(number))

    try:
        old = {number: signal.signal(number, handler) for number in signals}
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, former in old.items():
            signal.signal(number, former)
