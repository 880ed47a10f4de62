"""Sharded Parquet with audio bytes inside, as `export_parquet` writes it, as a source."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
from torch import Tensor

from omnichat.audio.io import MAX_SECONDS
from omnichat.data.audit import BadAudio
from omnichat.data.readers.base import Reader
from omnichat.schema import Dialogue, Turn, dialogue_from_json
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json, sha256_bytes


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
        if (self.root / "card.json").is_file():
            card = read_json(self.root / "card.json")
            self.name, self.kind = card["name"], card["kind"]
            self.licence = "; ".join(f"{row['part']}: {row['licence']}" for row in card["licences"])
        self._where: dict[str, tuple[Path, int]] = {}  # recording -> shard and group of rows
        self._group: tuple[tuple[Path, int], dict[str, bytes]] | None = None

    def dialogues(self) -> Iterator[Dialogue]:
        """Yield the dialogues in the order of the shards' names."""
        self.issues = []
        for shard in self.shards:
            file = self._open(shard)
            for number in range(file.num_row_groups):
                rows = file.read_row_group(number, columns=["dialogue"]).to_pylist()
                for row in rows:
                    yield self._dialogue(shard, number, row["dialogue"])

    def read(self, turn: Turn) -> tuple[Tensor, int]:
        """Decode the turn's bytes; a turn whose dialogue has not been drawn yet is looked for in all shards."""
        assert turn.audio is not None
        if turn.audio not in self._where:
            for _ in self.dialogues():
                if turn.audio in self._where:
                    break
            else:
                raise BadAudio("missing", f"{self.root}: no recording {turn.audio!r} in any shard")
        place = self._where[turn.audio]
        if self._group is None or self._group[0] != place:
            rows = self._open(place[0]).read_row_group(place[1], columns=["audio"]).to_pylist()
            self._group = (place, {item["path"]: item["bytes"] for row in rows for item in row["audio"]})
        where = f"{place[0]}: {turn.audio}"
        content = self._group[1].get(turn.audio)
        if content is None:
            raise BadAudio("missing", f"{where}: no such recording in its row")
        if turn.sha256 is not None and sha256_bytes(content) != turn.sha256:
            raise BadAudio("changed", f"{where}: SHA-256 is not the manifest's")
        return _decode(content, where)

    def _open(self, shard: Path) -> pq.ParquetFile:
        try:
            file = pq.ParquetFile(shard)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{shard}: not readable as Parquet ({str(error).splitlines()[0]})") from None
        if missing := {"dialogue", "audio"} - set(file.schema_arrow.names):
            raise UserError(f"{shard}: lacks the column {sorted(missing)[0]!r}; shards are written by export_parquet")
        return file

    def _dialogue(self, shard: Path, group: int, text: str) -> Dialogue:
        try:
            dialogue = dialogue_from_json(json.loads(text))
        except (UserError, json.JSONDecodeError, TypeError) as error:
            raise UserError(f"{shard}: a row of group {group} is not a dialogue: {error}") from None
        for turn in dialogue.turns:
            if turn.audio is not None:
                self._where.setdefault(turn.audio, (shard, group))
        return dialogue


def _decode(content: bytes, where: str) -> tuple[Tensor, int]:
    """Mono float32 [N] and rate of a file's bytes; BadAudio names `where`."""
    try:
        info = soundfile.info(io.BytesIO(content))
        if info.frames > MAX_SECONDS * info.samplerate:
            raise BadAudio("too long", f"{where}: header claims {info.frames / info.samplerate:.0f} s")
        samples_NC, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise BadAudio("unreadable", f"{where}: not readable as audio ({str(error).splitlines()[0]})") from None
    if len(samples_NC) == 0 or len(samples_NC) < info.frames:
        raise BadAudio("truncated", f"{where}: {len(samples_NC)} samples where its header claims {info.frames}")
    return torch.from_numpy(samples_NC.mean(axis=1)), rate
