"""What a `shards.json` may hold: it comes with a corpus, and a corpus may come from anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from omnichat.data.corpus import check_inside
from omnichat.data.parquet import INDEX_FORMAT
from omnichat.schema import KINDS, SPLITS
from omnichat.utils.errors import UserError

_Rule = tuple[Callable[[Any], bool], str]  # whether a value is right, and what would be
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_index(index: Any, path: Path) -> None:
    """Check every field of a `shards.json`, which may come from anywhere. Raises UserError naming file and field."""
    if not isinstance(index, dict) or index.get("format") != INDEX_FORMAT:
        raise UserError(f"{path}: not of this version's making; pack the corpus again")
    fields: dict[str, _Rule] = {
        "name": (_is_name, "a short printable text"),
        "kind": (lambda value: value in KINDS, f"one of {', '.join(KINDS)}"),
        "stand_in": (lambda value: isinstance(value, bool), "true or false"),
        "fingerprint": (_is_sha256, "a SHA-256"),
        "group_rows": (_is_count, "a positive whole number"),
        "shards": (_is_table, "a list of objects"),
        "summary": (lambda value: isinstance(value, dict), "an object"),
    }
    _check_fields(index, fields, path, "")
    shard_fields: dict[str, _Rule] = {
        "file": (_is_shard, "data/<name>.parquet"),
        "split": (lambda value: value in SPLITS, f"one of {', '.join(SPLITS)}"),
        "rows": (_is_count, "a positive whole number"),
        "bytes": (_is_count, "a positive whole number"),
        "sha256": (_is_sha256, "a SHA-256"),
    }
    files = set()
    for number, shard in enumerate(index["shards"]):
        _check_fields(shard, shard_fields, path, f"shards[{number}].")
        if shard["file"] in files:
            raise UserError(f"{path}: shards[{number}].file={shard['file']!r} stands there twice")
        files.add(shard["file"])
    for part in ("all", *SPLITS):
        rows = sum(shard["rows"] for shard in index["shards"] if part in ("all", shard["split"]))
        summary_fields: dict[str, _Rule] = {
            "dialogues": (_equals(rows), f"{rows}, the sum of the shards' rows"),
            "turns": (_is_whole, "a whole number"),
            "recordings": (_is_whole, "a whole number"),
            "hours": (lambda value: _is_whole(value) or (isinstance(value, float) and 0 <= value < 1e9), "hours"),
            "kind": (_equals(index["kind"]), f"{index['kind']}, as of the corpus"),
            "stand_in": (_equals(index["stand_in"]), f"{index['stand_in']}, as of the corpus"),
            "labels": (_is_labels, "counts by label"),
        }
        _check_fields(index["summary"].get(part), summary_fields, path, f"summary.{part}.")


def _check_fields(value: Any, fields: dict[str, _Rule], path: Path, prefix: str) -> None:
    if not isinstance(value, dict):
        raise UserError(f"{path}: {prefix.rstrip('.')} must be an object")
    for name, (is_right, right) in fields.items():
        if name not in value:
            raise UserError(f"{path}: {prefix}{name} is missing; pack the corpus again")
        if not is_right(value[name]):
            raise UserError(f"{path}: {prefix}{name} must be {right}, got {str(value[name])[:80]!r}")


def _equals(right: Any) -> Callable[[Any], bool]:
    return lambda value: type(value) is type(right) and value == right


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value > 0


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 255 and value.isprintable()


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _is_table(value: Any) -> bool:
    return isinstance(value, list)


def _is_shard(value: Any) -> bool:
    """Two plain parts below the folder: `ParquetCorpus.path_of` counts on it."""
    if not isinstance(value, str):
        return False
    try:
        check_inside(value)
    except UserError:
        return False
    parts = PurePosixPath(value).parts
    return len(parts) == 2 and value == "/".join(parts) and value.endswith(".parquet")


def _is_labels(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(counts, dict) and all(_is_whole(count) for count in counts.values()) for counts in value.values()
    )
