"""Files inside Parquet shards: a reference that can be sent to another process, and the reading behind it.

A shard's row has a column `audio`, a list of {"path", "bytes"}. One group of rows is in memory at a time, in every
thread; nothing is written to disk.
"""

from __future__ import annotations

import functools
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnichat.utils.errors import UserError

MAX_GROUP_BYTES = 1024**3  # of one column of one group of rows; more is no corpus of ours


@dataclass(frozen=True, slots=True)
class PackedFile:
    """One file inside a shard: its row of a group of rows, and its path in the corpus that was packed."""

    shard: Path
    group: int
    row: int
    path: str

    @property
    def name(self) -> str:
        """The file's name without folders."""
        return self.path.rpartition("/")[2]

    def exists(self) -> bool:
        """Whether the shard is there; the row is looked up by `read_bytes`."""
        return self.shard.exists()

    def read_bytes(self) -> bytes:
        """The file's content. Raises UserError where the shard or the row does not hold it."""
        rows = read_column(self.shard, self.group, "audio")
        items = rows[self.row] if self.row < len(rows) else None
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict) and item.get("path") == self.path and isinstance(item.get("bytes"), bytes):
                return bytes(item["bytes"])
        raise UserError(f"{self}: no such recording in its row")

    def __str__(self) -> str:
        return f"{self.shard}[group {self.group}, row {self.row}]/{self.path}"


Recording = Path | PackedFile


def read_column(shard: Path, group: int, column: str) -> list[Any]:
    """One column of one group of rows as Python values; the last few are kept. Raises UserError if it is not there."""
    values: list[Any] = _KEPT.column(shard, group, column, os.getpid())
    return values


def open_shard(shard: Path) -> Any:
    """The `pyarrow.parquet.ParquetFile` of a shard, not kept. Raises UserError where it is no Parquet."""
    import pyarrow as pa  # here: most runs read no Parquet
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(shard, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{shard}: not readable as Parquet ({str(error).splitlines()[0]})") from None


class _Kept(threading.local):
    """What a thread keeps open: a reader is no other thread's, and no other process's after a fork."""

    def __init__(self) -> None:
        self.open = functools.lru_cache(maxsize=8)(lambda shard, process: open_shard(shard))
        self.column = functools.lru_cache(maxsize=4)(self._column)

    def _column(self, shard: Path, group: int, column: str, process: int) -> list[Any]:
        import pyarrow as pa

        file = self.open(shard, process)
        if group >= file.num_row_groups or column not in file.schema_arrow.names:
            raise UserError(f"{shard}: has no column {column!r} in a group of rows {group}")
        place = file.schema_arrow.names.index(column)
        described = file.metadata.row_group(group)
        size = sum(
            described.column(number).total_uncompressed_size
            for number in range(described.num_columns)
            if described.column(number).path_in_schema.split(".")[0] == file.schema_arrow.names[place]
        )
        if size > MAX_GROUP_BYTES:
            raise UserError(f"{shard}: group {group} claims {size / 1e6:.0f} MB of {column}, more than a reader takes")
        try:
            table = file.read_row_group(group, columns=[column], use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{shard}: group {group} is not readable ({str(error).splitlines()[0]})") from None
        values: list[Any] = table.column(column).to_pylist()
        return values


_KEPT = _Kept()
