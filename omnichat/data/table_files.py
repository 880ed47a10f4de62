"""Which files of a folder are the tables of a data set, and of which split each is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnichat.data.corpus import check_inside
from omnichat.schema import SPLITS
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json

SPLIT_WORDS: dict[str, str] = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "valid": "dev",
    "validation": "dev",
    "val": "dev",
    "test": "test",
    "eval": "test",
}
_KINDS = (".parquet", ".jsonl", ".csv", ".json")  # of files lying in a folder; the first kind that is there is taken
_SAVED_SPLITS, _SAVED = "dataset_dict.json", "state.json"
_ABOUT = {"dataset_infos.json", "dataset_info.json", "state.json", "dataset_dict.json", "card.json", "shards.json"}


def find_tables(root: Path, files: Mapping[str, str | None], words: Mapping[str, str]) -> list[tuple[str | None, Path]]:
    """(split, or None where nothing tells it; file) of the tables of a folder, in the order of splits and names.

    Args:
        root: a folder with tables, or one that `datasets` saved.
        files: split -> pattern below the folder; empty: every table there.
        words: word, in lower case, of a file's name or of a saved split -> split.

    Raises:
        UserError: no tables, or a pattern that finds none.
    """
    found: list[tuple[str | None, Path]] = []
    if patterns := {split: pattern for split, pattern in files.items() if pattern is not None}:
        for split, pattern in patterns.items():
            found += [(split, path) for path in _matching(root, split, pattern)]
    elif (root / _SAVED_SPLITS).is_file():
        for name in _saved_splits(root):
            found += [(words.get(name.lower()), path) for path in _saved_files(root / name)]
    elif (root / _SAVED).is_file():
        found += [(None, path) for path in _saved_files(root)]
    else:
        visible = [path for path in sorted(root.rglob("*")) if _is_visible(path.relative_to(root)) and path.is_file()]
        for kind in _KINDS:
            of_kind = [path for path in visible if path.suffix.lower() == kind and path.name not in _ABOUT]
            found = [(_split_of(path.relative_to(root), words), path) for path in of_kind]
            if found:
                break
    if not found:
        raise UserError(f"{root}: holds no tables ({', '.join(_KINDS)}, or a folder that `datasets` saved)")
    order = {split: number for number, split in enumerate(SPLITS)}
    return sorted(found, key=lambda entry: order.get(entry[0] or "", len(SPLITS)))


def _matching(root: Path, split: str, pattern: str) -> list[Path]:
    _check_name(pattern, f"source.files.{split}")
    found = [path for path in sorted(root.glob(pattern)) if path.is_file()]
    if not found:
        raise UserError(f"source.files.{split}={pattern!r} finds no file below {root}")
    if other := [path for path in found if path.suffix.lower() not in (*_KINDS, ".arrow")]:
        raise UserError(f"{other[0]}: not a table; source.files names {', '.join(_KINDS)} or .arrow files")
    return found


def _is_visible(path: Path) -> bool:
    return not any(part.startswith(".") for part in path.parts)


def _split_of(path: Path, words: Mapping[str, str]) -> str | None:
    """By the words of the file's name, else of its folders, from the last."""
    for part in reversed(path.parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in words:
                return words[word]
    return None


def _saved_splits(root: Path) -> list[str]:
    value = read_json(root / _SAVED_SPLITS)
    names: Any = value.get("splits") if isinstance(value, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{root / _SAVED_SPLITS}: expected an object with the list 'splits'")
    for name in names:
        _check_name(name, root / _SAVED_SPLITS)
    return names


def _saved_files(folder: Path) -> list[Path]:
    value = read_json(folder / _SAVED)
    rows: Any = value.get("_data_files") if isinstance(value, dict) else None
    if not isinstance(rows, list) or not all(isinstance(r, dict) and isinstance(r.get("filename"), str) for r in rows):
        raise UserError(f"{folder / _SAVED}: expected an object with the list '_data_files'")
    files = []
    for row in rows:
        _check_name(row["filename"], folder / _SAVED)
        if not row["filename"].endswith(".arrow") or not (folder / row["filename"]).is_file():
            raise UserError(f"{folder / row['filename']}: no such Arrow file, but {_SAVED} names it")
        files.append(folder / row["filename"])
    return files


def _check_name(name: str, where: Path | str) -> None:
    try:
        check_inside(name, "path")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
