"""Captions in CSV files beside a folder of recordings: AudioCaps, Clotho, MusicCaps, and any CSV by column mapping.

AudioCaps (Kim et al., 2019): audiocap_id,youtube_id,start_time,caption. Clotho (Drossos et al., 2020):
file_name,caption_1..caption_5[,keywords]. MusicCaps (Agostinelli et al., 2023): ytid,start_s,end_s,
audioset_positive_labels,aspect_list,caption,... None of them ships its recordings; downloaders name them differently,
so a recording is looked for under several names.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

from omnichat.data.audit import BadAudio
from omnichat.schema import SPLITS
from omnichat.synthesis.sounds.captioned import CaptionedSource, Captions, Entry, check_splits
from omnichat.synthesis.sounds.recordings import SUFFIXES, Limits, check_place
from omnichat.utils.errors import UserError, one_of

ALL = "all"  # key of `csv` for one file that holds every split
_COLUMN = re.compile(r"\{(\w+)\}")


class CaptionFiles(CaptionedSource):
    """One CSV for each split, or one for all, and a folder of recordings.

    Args:
        name: short name of the collection. licence: of its recordings.
        path: folder that everything below is relative to.
        csv: split -> CSV file; the key "all" is a file that holds every split. A split whose file is null has no
            sounds.
        audio: folder of the recordings; its subfolders are searched too.
        files: names under which a recording may lie, with columns in braces and with or without a suffix, best first.
        caption: columns with a caption each; a recording's captions are tried in order.
        keywords: column of keywords; null = the caption's content words.
        unique: column whose values no two rows share; null = rows may repeat, each with one more caption.
        split: column that says the split; null = the file does, or the hash of the recording's name.
        split_values: value of that column -> split.
    """

    def __init__(
        self,
        name: str,
        licence: str,
        path: str,
        csv: Mapping[str, str | None],
        audio: str,
        files: list[str],
        caption: list[str],
        keywords: str | None,
        unique: str | None,
        split: str | None,
        split_values: Mapping[str, str],
        captions: Captions,
        limits: Limits,
    ) -> None:
        super().__init__(name, licence, captions, limits)
        self.root = Path(path).expanduser()
        if not self.root.is_dir():
            raise UserError(f"{name}: path={path}: no such folder; it holds the captions and recordings of {name}")
        named = {key: file for key, file in csv.items() if file is not None}
        if not named or (ALL in named and len(named) > 1):
            raise UserError(f"{name}: csv must name a file for each split, or one file as {ALL!r}, got {named}")
        for key in csv:
            if key != ALL and key not in SPLITS:
                raise one_of(f"{name}: csv", key, (*SPLITS, ALL))
        if not files or not caption:
            raise UserError(f"{name}: files and caption must each hold at least one name")
        check_splits(split_values, f"{name}: split_values")
        self.csv = {key: self.root / file for key, file in named.items()}
        self.takes_dev = ALL in self.csv  # else the files say what each split has
        for key, file in self.csv.items():
            if not file.is_file():
                raise UserError(f"{name}: csv.{key}: {file}: no such file")
        self.audio = self.root / audio
        if not self.audio.is_dir():
            raise UserError(f"{name}: audio: {self.audio}: no such folder")
        self.patterns = list(files)
        self.caption_columns = list(caption)
        self.keyword_column, self.unique, self.split_column = keywords, unique, split
        self.split_values = dict(split_values)
        self._index: dict[str, str] = {}

    @property
    def origin(self) -> str:
        """See `CaptionedSource.origin`."""
        return ", ".join(str(file) for file in self.csv.values())

    def content(self, recording: str) -> Path | bytes:
        """See `CaptionedSource.content`; `recording` is a path that the folder was found to hold."""
        return self.audio / recording

    def entries(self) -> Iterator[Entry]:
        """See `CaptionedSource.entries`."""
        self._index = _index(self.audio)
        for key, file in self.csv.items():
            yield from self._entries_of(file, None if key == ALL else key)
        self._index = {}

    def _entries_of(self, file: Path, split: str | None) -> Iterator[Entry]:
        seen: dict[str, int] = {}
        for line, row in self._rows(file):
            where = f"{file}:{line}"
            if self.unique is not None:
                value = row[self.unique]
                if value in seen:
                    self._issue(f"{where}: {self.unique} {value!r} is that of line {seen[value]} again", "repeated")
                    continue
                seen[value] = line
            own = split
            if self.split_column is not None:
                own = self.split_values.get(row[self.split_column], row[self.split_column])
                if own not in SPLITS:
                    self._issue(str(one_of(f"{where}: {self.split_column}", own, SPLITS)), "unknown split")
                    continue
            try:
                recording = self._find(row, where)
                check_place(self.audio / recording, self.audio, f"{where}: {recording}", self.limits)
            except BadAudio as error:
                self._issue(str(error), error.reason)
                continue
            captions = tuple(row[column] for column in self.caption_columns)
            captions = tuple(text for text in captions if text.strip()) or captions[:1]
            keywords = None if self.keyword_column is None else row[self.keyword_column]
            yield Entry(where, recording, captions, keywords, own)

    def _rows(self, file: Path) -> Iterator[tuple[int, dict[str, str]]]:
        """(line, row by column) of a CSV file; malformed rows are noted and passed over.

        Raises:
            UserError: the file cannot be read, or its header lacks a column.
        """
        try:
            with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
                yield from self._rows_of(file, handle)
        except OSError as error:
            raise UserError(f"{file}: not readable ({error.strerror})") from None

    def _rows_of(self, file: Path, handle: TextIO) -> Iterator[tuple[int, dict[str, str]]]:
        reader = csv.reader(handle)
        header = self._header(file, reader)
        last = reader.line_num
        while True:
            fault, fields = None, []
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                fault = f"not readable as CSV: {error}"
            line, lines, last = reader.line_num, reader.line_num - last, reader.line_num
            if fault is None and not fields:
                continue  # an empty line
            self.looked += max(1, lines)
            if fault is None and len(fields) != len(header):
                fault = f"has {len(fields)} fields, the header has {len(header)}"
            if fault is None and any("\0" in text or _not_utf8(text) for text in fields):
                fault = "holds bytes that are no UTF-8 text"
            if fault is not None:
                # a lost quotation mark swallows lines: each of them counts
                self._issue(f"{file}:{line}: {fault}", "malformed line", max(1, lines))
                continue
            yield line, dict(zip(header, fields, strict=True))

    def _header(self, file: Path, reader: Iterator[list[str]]) -> list[str]:
        try:
            header = [name.strip() for name in next(reader)]
        except (StopIteration, csv.Error) as error:
            reason = "it is empty" if isinstance(error, StopIteration) else error
            raise UserError(f"{file}:1: no header of column names ({reason})") from None
        needed = {"caption": self.caption_columns, "files": _COLUMN.findall(" ".join(self.patterns))}
        for key, name in (("keywords", self.keyword_column), ("unique", self.unique), ("split", self.split_column)):
            needed[key] = [] if name is None else [name]
        for key, names in needed.items():
            for name in names:
                if name not in header:
                    raise one_of(f"{file}:1: {key}: column", name, [column[:40] for column in header[:20]])
        return header

    def _find(self, row: Mapping[str, str], where: str) -> str:
        """The recording of a row, relative to the folder: one that the folder holds, so no row can point elsewhere."""
        names = [_COLUMN.sub(lambda match: row[match.group(1)].strip(), pattern) for pattern in self.patterns]
        for name in names:
            if name in self._index:
                return self._index[name]
        tried = " or ".join(repr(name[:60]) for name in dict.fromkeys(names))
        raise BadAudio("missing", f"{where}: {self.audio} holds no recording {tried}")


def _index(folder: Path) -> dict[str, str]:
    """Every name that a recording below `folder` answers to: its path and its file's name, with and without suffix.

    Values are paths relative to the folder. Of two that share a name the first in order of paths has it.
    """
    found: list[str] = []
    for root, _, names in os.walk(folder):
        relative = Path(root).relative_to(folder)
        found += [(relative / name).as_posix() for name in names if name.lower().endswith(SUFFIXES)]
    index: dict[str, str] = {}
    for keys in (_whole, _whole_stem, _name, _name_stem):  # the more exact name wins
        for path in sorted(found):
            index.setdefault(keys(path), path)
    return index


def _whole(path: str) -> str:
    return path


def _whole_stem(path: str) -> str:
    return path.rpartition(".")[0]


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _name_stem(path: str) -> str:
    return _name(path).rpartition(".")[0]


def _not_utf8(text: str) -> bool:
    """Whether reading met bytes that are no UTF-8."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)
