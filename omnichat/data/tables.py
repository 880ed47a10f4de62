"""Files of rows that come from anywhere: Parquet, Arrow, JSON lines, JSON, CSV. Read row by row, each with its place.

Whatever is wrong with a file is a UserError that names file and line, or file and row; nothing of a file is run, and
little of it is in memory at once.
"""

from __future__ import annotations

import csv
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omnichat.utils.errors import UserError
from omnichat.utils.files import iterate_jsonl, read_json
from omnichat.utils.log import get_logger
from omnichat.utils.packed import MAX_GROUP_BYTES, open_shard

log = get_logger(__name__)

_BATCH = 16  # rows decoded at once: they may hold recordings
_MAX_CELL = 10_000_000  # characters of a cell of a CSV file
Row = tuple[int, str, dict[str, Any]]  # number from 0, place, cells by column


class Table(ABC):
    """One file of rows.

    Attributes:
        path: of the file.
        labels: column -> the names of its numbers, where the file says that a column holds class labels; a column of
            lists or of structs has the names of what lies in it, by the dotted path of the field.
    """

    labels: dict[str, list[str]]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.labels = {}
        self._cursor: tuple[tuple[str, ...], Iterator[Row], Row] | None = None

    @abstractmethod
    def columns(self) -> list[str]:
        """The names of the columns; of a file of JSON objects, the keys of the first."""

    @abstractmethod
    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """Every row in order, with these columns at least where it has them."""

    def row(self, number: int, columns: Sequence[str]) -> Row:
        """One row. Rows that are asked for in order cost one pass over the file."""
        wanted = tuple(columns)
        if self._cursor is None or self._cursor[0] != wanted or self._cursor[2][0] > number:
            self._cursor = self._advance(wanted, self.rows(wanted))
        while self._cursor[2][0] < number:
            self._cursor = self._advance(wanted, self._cursor[1])
        return self._cursor[2]

    def _advance(self, columns: tuple[str, ...], rows: Iterator[Row]) -> tuple[tuple[str, ...], Iterator[Row], Row]:
        row = next(rows, None)
        if row is None:
            raise UserError(f"{self.path}: holds fewer rows than were asked for")
        return columns, rows, row


def open_table(path: Path) -> Table:
    """The table of a file, by its suffix: .parquet, .arrow, .jsonl, .json or .csv."""
    kinds: dict[str, type[Table]] = {
        ".parquet": ParquetTable,
        ".arrow": ArrowTable,
        ".jsonl": JsonLines,
        ".json": JsonFile,
        ".csv": CsvTable,
    }
    return kinds[path.suffix.lower()](path)


class _Columnar(Table):
    """What Parquet and Arrow share: a schema, which may say that numbers are class labels."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.schema = self._schema()
        self.labels = _class_names(self.schema)

    @abstractmethod
    def _schema(self) -> Any:
        """The file's Arrow schema."""

    @abstractmethod
    def _batches(self, columns: list[str]) -> Iterator[Any]:
        """Record batches of a few rows."""

    def columns(self) -> list[str]:
        return list(self.schema.names)

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        import pyarrow as pa

        number = 0
        batches = self._batches([name for name in self.schema.names if name in set(columns)])
        while True:
            try:
                batch = next(batches, None)
                found = [] if batch is None else batch.to_pylist()
            except (pa.ArrowException, OSError, ValueError, OverflowError, NotImplementedError) as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(f"{self.path}: row {number}: not readable ({_first_line(error)})") from None
            if batch is None:
                return
            for cells in found:
                yield number, f"{self.path}: row {number}", cells
                number += 1


class ParquetTable(_Columnar):
    """A Parquet file."""

    def _schema(self) -> Any:
        import pyarrow as pa

        try:
            return open_shard(self.path).schema_arrow
        except (pa.ArrowException, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.path}: its schema is not readable ({_first_line(error)})") from None

    def _batches(self, columns: list[str]) -> Iterator[Any]:
        file = open_shard(self.path)
        for group in range(file.num_row_groups):
            described = file.metadata.row_group(group)
            size = sum(
                described.column(number).total_uncompressed_size
                for number in range(described.num_columns)
                if described.column(number).path_in_schema.split(".")[0] in columns
            )
            if not 0 <= size <= MAX_GROUP_BYTES:
                raise UserError(f"{self.path}: group {group} claims {size / 1e6:.0f} MB, more than a reader takes")
        yield from file.iter_batches(batch_size=_BATCH, columns=columns, use_threads=False)


class ArrowTable(_Columnar):
    """A file of `datasets.Dataset.save_to_disk`: an Arrow stream."""

    def _schema(self) -> Any:
        import pyarrow as pa

        try:
            with pa.memory_map(str(self.path)) as source, pa.ipc.open_stream(source) as stream:
                return stream.schema
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{self.path}: not readable as an Arrow stream ({_first_line(error)})") from None

    def _batches(self, columns: list[str]) -> Iterator[Any]:
        import pyarrow as pa

        with pa.memory_map(str(self.path)) as source, pa.ipc.open_stream(source) as stream:
            for batch in stream:
                part = batch.select(columns)
                part.validate(full=True)  # offsets and text come from the file; unchecked they point anywhere
                for start in range(0, part.num_rows, _BATCH):
                    yield part.slice(start, _BATCH)


class JsonLines(Table):
    """One JSON object a line."""

    def columns(self) -> list[str]:
        return list(next(iterate_jsonl(self.path), (0, {}))[1])

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        for number, (line, cells) in enumerate(iterate_jsonl(self.path)):
            yield number, f"{self.path}:{line}", cells


class JsonFile(Table):
    """A JSON list of objects, alone or as the only list of an object."""

    def _entries(self) -> list[dict[str, Any]]:
        value = read_json(self.path)
        if isinstance(value, dict):
            lists = [entry for entry in value.values() if isinstance(entry, list)]
            value = lists[0] if len(lists) == 1 else value
        if not isinstance(value, list):
            raise UserError(f"{self.path}: expected a list of objects, got {type(value).__name__}")
        for number, entry in enumerate(value):
            if not isinstance(entry, dict):
                raise UserError(f"{self.path}: entry {number}: expected an object, got {type(entry).__name__}")
        return value

    def columns(self) -> list[str]:
        return list(next(iter(self._entries()), {}))

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        for number, cells in enumerate(self._entries()):
            yield number, f"{self.path}: entry {number}", cells


class CsvTable(Table):
    """Comma-separated values under a line of names."""

    def columns(self) -> list[str]:
        with open(self.path, encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
            return _header(self.path, csv.reader(handle))

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        for number, (place, cells) in enumerate(iterate_csv(self.path)):
            yield number, place, dict(cells)


def iterate_csv(path: Path, needed: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (FILE:LINE, cells by column) of a CSV file with a line of names.

    Raises:
        UserError: no such file, no names, a needed column that is missing, a row of another length, bytes that are not
            UTF-8, a cell of more than ten million characters; file and line are named.
    """
    csv.field_size_limit(_MAX_CELL)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
        reader = csv.reader(handle, strict=True)
        names = _header(path, reader)
        if missing := [name for name in needed if name not in names]:
            raise UserError(f"{path}:1: lacks the column {missing[0]!r}; it has: {', '.join(names)[:200]!r}")
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise UserError(f"{path}:{reader.line_num}: not readable as CSV: {error}") from None
            if cells is None:
                return
            place = f"{path}:{reader.line_num}"
            if not cells:
                continue
            if len(cells) != len(names):
                raise UserError(f"{place}: has {len(cells)} cells, the line of names has {len(names)}")
            if any(_SURROGATE.search(cell) for cell in cells):
                raise UserError(f"{place}: holds bytes that are not UTF-8")
            yield place, dict(zip(names, cells, strict=True))


_SURROGATE = re.compile("[\ud800-\udfff]")


def _header(path: Path, reader: Any) -> list[str]:
    try:
        names = next(reader, None)
    except csv.Error as error:
        raise UserError(f"{path}:1: not readable as CSV: {error}") from None
    if not names or len(set(names)) < len(names) or any(_SURROGATE.search(name) for name in names):
        raise UserError(f"{path}:1: must hold the names of the columns, each once, as UTF-8")
    return names


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Names of class labels by dotted path, as `datasets` notes them in a schema."""
    import datasets
    import pyarrow as pa

    try:
        features = datasets.Features.from_arrow_schema(schema)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, pa.ArrowException) as error:
        # the note may hold anything; without it the columns are there, and only names of numbers are missing
        log.warning("its note of features is not readable, numbers keep no names: %s", _first_line(error))
        return {}
    found: dict[str, list[str]] = {}

    def visit(feature: Any, path: str) -> None:
        if isinstance(feature, datasets.ClassLabel):
            found[path] = list(feature.names or [])
        elif isinstance(feature, dict):
            for key, inner in feature.items():
                visit(inner, f"{path}.{key}" if path else str(key))
        elif isinstance(feature, list):
            visit(feature[0], path)
        elif hasattr(feature, "feature"):
            visit(feature.feature, path)

    visit(dict(features), "")
    return found


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
