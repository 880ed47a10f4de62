"""Replies decoded so far: an append-only file from which a decoding that was stopped or killed goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

from omnichat.utils.errors import UserError
from omnichat.utils.files import iterate_jsonl


class PartialReplies:
    """`.<name>.partial.jsonl` beside the predictions: a line with the key, then a line a decoded batch.

    A file with another key, a torn one or none starts anew; a torn last line is cut off. Where several processes share
    a decoding, each writes a file of its own and reads the others'.

    Args:
        path: of the file; its folder is made.
        key: names all that sets the replies: checkpoint, prompts, settings. Replies under another key are no use.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.done: dict[int, str] = {}  # number of the prompt -> reply
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            content = path.read_bytes()
            path.write_bytes(content[: content.rfind(b"\n") + 1])
        found = _read(path, key)
        self.done |= found or {}
        if found is None:
            path.write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")

    def __enter__(self) -> PartialReplies:
        self._handle: IO[str] = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.close()

    def add(self, replies: Mapping[int, str]) -> None:
        """Append the replies of one batch, by the numbers of their prompts."""
        rows = [[number, text] for number, text in replies.items()]
        self._handle.write(json.dumps({"replies": rows}, ensure_ascii=True) + "\n")
        self._handle.flush()

    def include(self, others: Iterable[Path]) -> None:
        """Take in what other processes have kept so far under the same key; their files stay as they are."""
        for path in others:
            self.done |= _read(path, self.key) or {}

    def remove(self) -> None:
        """The predictions are written: nothing is left to go on from."""
        self.path.unlink(missing_ok=True)


def _read(path: Path, key: str) -> dict[int, str] | None:
    """The replies of a file; None where there is none, or it is damaged or of another key: all is decoded again.

    A last line that is torn, or half written at this moment, is passed over.
    """
    if not path.is_file():
        return None
    done: dict[int, str] = {}
    try:
        rows = iterate_jsonl(path)
        if next(rows, (0, {}))[1].get("key") != key:
            return None
        for _, row in rows:
            done |= {int(number): str(text) for number, text in row["replies"]}
    except (UserError, KeyError, TypeError, ValueError):
        return None
    return done
