"""Transcripts that are kept: what a recogniser made of a recording, by the recording's content.

One file a recogniser (its weights and settings are the name), one JSON line a recording. Lines are only ever added, in
one write each, so several processes may share it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from omnichat.utils.files import append_lines
from omnichat.utils.log import get_logger

log = get_logger(__name__)


class TranscriptStore:
    """The kept transcripts of one recogniser. A line that a kill tore is no transcript: it is made again.

    Args:
        folder: of the cache.
        recogniser: hash of everything that sets a transcript.
    """

    def __init__(self, folder: Path, recogniser: str) -> None:
        self.path = folder / f"{recogniser[:32]}.jsonl"
        self.texts: dict[str, str] = {}  # SHA-256 of a recording -> its words
        damaged = 0
        if self.path.is_file():
            for line in self.path.read_bytes().splitlines():
                row = _parsed(line)
                if row is None:
                    damaged += 1
                else:
                    self.texts[row[0]] = row[1]
        if damaged:
            log.warning("%s: %d damaged lines are passed over", self.path, damaged)

    def add(self, transcripts: Mapping[str, str]) -> None:
        """Keep transcripts by the SHA-256 of their recordings."""
        self.texts |= transcripts
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = (json.dumps({"sha256": sha256, "text": text}) for sha256, text in transcripts.items())
        append_lines(self.path, rows)


def _parsed(line: bytes) -> tuple[str, str] | None:
    """(hash, words) of a line, None for a damaged one."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("sha256"), str) or not isinstance(row.get("text"), str):
        return None
    return row["sha256"], row["text"]
