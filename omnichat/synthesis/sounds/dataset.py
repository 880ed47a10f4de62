"""Captioned recordings in a Hugging Face dataset folder: one written by `save_to_disk`, or Parquet files.

Read with `datasets`, offline. The recordings stay encoded (`Audio(decode=False)`) until one is needed, and are decoded
with soundfile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omnichat.data.audit import BadAudio
from omnichat.synthesis.sounds.captioned import CaptionedSource, Captions, Entry, check_splits
from omnichat.synthesis.sounds.recordings import Limits, check_place
from omnichat.utils.errors import UserError, one_of

_SAVED = ("dataset_dict.json", "dataset_info.json")  # what save_to_disk leaves


class DatasetFolder(CaptionedSource):
    """A dataset folder with an audio column and caption columns.

    Args:
        name: short name of the collection. licence: of its recordings.
        path: the folder.
        audio: audio column: encoded bytes, or paths inside the folder.
        caption: columns with a caption, or a list of captions, each.
        keywords: column of keywords (text or a list); null = the caption's content words.
        splits: split of the dataset -> ours; where the folder has a single split that is not named here, the hash of
            each row decides.
    """

    def __init__(
        self,
        name: str,
        licence: str,
        path: str,
        audio: str,
        caption: list[str],
        keywords: str | None,
        splits: Mapping[str, str],
        captions: Captions,
        limits: Limits,
    ) -> None:
        super().__init__(name, licence, captions, limits)
        self.root = Path(path).expanduser()
        if not self.root.is_dir():
            raise UserError(f"{name}: path={path}: no such folder; it holds a dataset of Hugging Face's layout")
        if not caption:
            raise UserError(f"{name}: caption must name at least one column")
        check_splits(splits, f"{name}: splits")
        self.audio, self.caption_columns, self.keyword_column = audio, list(caption), keywords
        self.split_names = dict(splits)
        self._dataset: dict[str, Any] | None = None

    @property
    def origin(self) -> str:
        """See `CaptionedSource.origin`."""
        return str(self.root)

    def __getstate__(self) -> dict[str, object]:
        """Pickle without the open files."""
        return self.__dict__ | {"_dataset": None}

    def entries(self) -> Iterator[Entry]:
        """See `CaptionedSource.entries`."""
        dataset = self._open()
        single = len(dataset) == 1
        for theirs, rows in dataset.items():
            if theirs not in self.split_names and not single:
                raise one_of(
                    f"{self.name}: {self.root}: split of the dataset, which splits lacks:", theirs, self.split_names
                )
            names = [*self.caption_columns, *([] if self.keyword_column is None else [self.keyword_column])]
            for column in (*names, self.audio):
                if column not in rows.column_names:
                    raise one_of(f"{self.name}: {self.root}: column", column, rows.column_names)
            words = rows.select_columns(names)
            # the one split that everything lies in says nothing of ours, whatever its name
            split = None if single else self.split_names[theirs]
            for index, row in enumerate(words):
                self.looked += 1
                where = f"{self.root}:{theirs}[{index}]"
                captions = tuple(text for column in self.caption_columns for text in _texts(row[column]))
                keywords = None
                if self.keyword_column is not None:
                    keywords = ";".join(_texts(row[self.keyword_column]))
                yield Entry(where, f"{theirs}/{index:07d}", captions, keywords, split)

    def content(self, recording: str) -> Path | bytes:
        """See `CaptionedSource.content`."""
        theirs, _, index = recording.partition("/")
        where = f"{self.root}:{theirs}[{int(index)}]"
        try:
            cell = self._open()[theirs][int(index)][self.audio]
        except (OSError, ValueError, KeyError, IndexError) as error:  # Arrow's own errors are OSError or ValueError
            raise BadAudio("unreadable", f"{where}: not readable ({str(error).splitlines()[0][:200]})") from None
        if not isinstance(cell, dict):
            raise BadAudio("missing", f"{where}: holds no recording")
        if cell.get("bytes"):
            return bytes(cell["bytes"])
        if not cell.get("path"):
            raise BadAudio("missing", f"{where}: holds no recording")
        path = self.root / str(cell["path"])
        check_place(path, self.root, f"{where}: {cell['path']!r}", self.limits)
        return path

    def _open(self) -> dict[str, Any]:
        """Split of the dataset -> its rows, audio undecoded."""
        if self._dataset is None:
            import datasets  # here: most runs read none, and it takes long to import

            try:
                if any((self.root / name).is_file() for name in _SAVED):
                    loaded = datasets.load_from_disk(str(self.root))
                else:
                    if not any(self.root.rglob("*.parquet")):
                        raise UserError(
                            f"{self.name}: {self.root}: no dataset: neither {_SAVED[0]} nor a .parquet file"
                        )
                    loaded = datasets.load_dataset("parquet", data_dir=str(self.root))
                found = dict(loaded) if isinstance(loaded, dict) else {"all": loaded}
                self._dataset = {name: self._undecoded(rows) for name, rows in found.items()}
            except UserError:
                raise
            except Exception as error:  # of whatever kind: the folder is not what the library can read
                reason = (str(error.__cause__ or error) or type(error).__name__).splitlines()[0][:300]
                raise UserError(f"{self.name}: {self.root}: not readable as a dataset ({reason})") from None
        return self._dataset

    def _undecoded(self, rows: Any) -> Any:
        import datasets

        if self.audio not in rows.column_names:
            raise one_of(f"{self.name}: {self.root}: audio column", self.audio, rows.column_names)
        return rows.cast_column(self.audio, datasets.Audio(decode=False))


def _texts(value: Any) -> list[str]:
    """The texts of a cell that holds text, a list of texts, or nothing."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str) and item.strip()]
