"""Checkpoints that must be refused: damaged ones, and one that would run code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Canary:
    """An object whose pickle makes a folder when it is loaded: the folder tells that code was run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.folder),))


def damaged(file: Path) -> Iterator[Path]:
    """Copies of a file that are cut off, at several places, empty, overwritten, and of another kind altogether."""
    content = file.read_bytes()
    wrong = {
        "half": content[: len(content) // 2],
        "tail": content[:-1000],
        "stub": content[:20],
        "empty": b"",
        "overwritten": bytes(200) + content[200:],
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    }
    for name, data in wrong.items():
        path = file.with_name(f"{name}{file.suffix}")
        path.write_bytes(data)
        yield path
