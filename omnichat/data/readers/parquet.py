"""Sharded Parquet with audio bytes inside, as `export_parquet` writes it, as a source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from omnichat.data.audit import BadAudio, decode_recording
from omnichat.data.corpus import parse_dialogue
from omnichat.data.readers.base import Reader, UniqueIds, card_facts, words_of
from omnichat.schema import KINDS, Dialogue, Turn
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import sha256_bytes
from omnichat.utils.packed import PackedFile, open_shard, read_column


class ParquetShards(Reader):
    """Reader of Parquet shards; one group of rows at a time is in memory.

    `Turn.audio` is the recording's path in the corpus that was exported; `read` takes the bytes from the shard and
    checks their hash. A scene's own recording stays in the shard: the dialogues come without `Scene.audio`'s file.

    Args:
        path: the folder of the export, or of the shards.
    """

    name = "parquet"
    licence = "not stated"
    kind = "real"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        below = self.root / "data" if (self.root / "data").is_dir() else self.root
        self.shards = sorted(below.glob("*.parquet"))
        if not self.shards:
            raise UserError(f"{self.root}: holds no .parquet shards")
        card, self.licence = card_facts(self.root / "card.json")
        if card:
            self.name, self.kind = words_of(card.get("name")) or self.name, str(card.get("kind"))
            if self.kind not in KINDS:
                raise one_of(f"{self.root / 'card.json'}: kind", self.kind, KINDS)
        self._where: dict[str, tuple[Path, int, int]] = {}  # recording -> shard, group of rows, row

    def dialogues(self) -> Iterator[Dialogue]:
        """Yield the dialogues in the order of the shards' names."""
        self.issues = []
        ids = UniqueIds()
        for shard in self.shards:
            file = open_shard(shard)
            if missing := {"dialogue", "audio"} - set(file.schema_arrow.names):
                raise UserError(
                    f"{shard}: lacks the column {sorted(missing)[0]!r}; shards are written by export_parquet"
                )
            for group in range(file.num_row_groups):
                for row, text in enumerate(read_column(shard, group, "dialogue")):
                    place = f"{shard}: group {group} row {row}"
                    dialogue = self._dialogue(text, place)
                    ids.take(dialogue.id, place)
                    for turn in dialogue.turns:
                        if turn.audio is not None:
                            self._where.setdefault(turn.audio, (shard, group, row))
                    yield dialogue

    def read(self, turn: Turn) -> tuple[Tensor, int]:
        """Decode the turn's bytes; a turn whose dialogue has not been drawn yet is looked for in all shards."""
        assert turn.audio is not None
        if turn.audio not in self._where:
            for _ in self.dialogues():
                if turn.audio in self._where:
                    break
            else:
                raise BadAudio("missing", f"{self.root}: no recording {turn.audio!r} in any shard")
        shard, group, row = self._where[turn.audio]
        where = f"{shard}: {turn.audio}"
        try:
            content = PackedFile(shard, group, row, turn.audio).read_bytes()
        except UserError as error:
            raise BadAudio("missing", str(error)) from None
        if turn.sha256 is not None and sha256_bytes(content) != turn.sha256:
            raise BadAudio("changed", f"{where}: SHA-256 is not the manifest's")
        return decode_recording(content, where)

    def _dialogue(self, text: object, place: str) -> Dialogue:
        try:
            return parse_dialogue(json.loads(text))  # type: ignore[arg-type]
        except (ValueError, RecursionError, TypeError) as error:
            raise UserError(f"{place}: not a dialogue: {error}") from None
