"""Parts that are installed on demand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from omnichat.utils.errors import UserError


@contextlib.contextmanager
def of_extra(what: str, extra: str, *packages: str) -> Iterator[None]:
    """Around imports: where one of `packages` is not installed, say which extra brings it. Raises UserError."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in packages:
            raise
        raise UserError(f"{what} needs {name}, which is not installed: pip install 'omnichat[{extra}]'") from None
