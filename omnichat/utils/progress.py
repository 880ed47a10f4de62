"""Progress bars with throughput and time left, on rank 0 only."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from omnichat.utils.log import rank


def progress(total: int | None, title: str, unit: str = "it", initial: int = 0) -> tqdm[Any]:
    """Return a bar on standard error: title, share, count, rate and time left.

    In a pipe it prints a line every ten seconds at most, so that logs of batch jobs stay readable.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=title,
        unit=unit,
        disable=rank() != 0,
        dynamic_ncols=True,
        mininterval=0.2 if terminal else 10.0,
        smoothing=0.1,
        leave=True,
        file=sys.stderr,
    )
