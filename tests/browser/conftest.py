"""One Chromium for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.browser import chromium


@pytest.fixture(scope="module")  # playwright holds an event loop in this thread, which other tests run their own in
def browser() -> Iterator[Any]:
    """Headless Chromium; without one the test is skipped, with the reason."""
    with chromium() as opened:
        yield opened
