"""Atomic files: a reader never sees half a file, and a kill never destroys the old one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omnichat.utils.errors import UserError
from omnichat.utils.packed import PackedFile, Recording


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary neighbour, flushed to disk before the rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: Path, content: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes_atomic(path, content.encode("utf-8"))


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN and infinity are refused, for they are not JSON."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl_atomic(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
    write_text_atomic(path, "".join(line + "\n" for line in lines))


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add ASCII lines by one write, so that several processes may share the file; ends the torn line of a killed one.

    A link is not followed: what it leads to is no file of ours. Raises OSError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        content = ("\n" * torn + "".join(f"{line}\n" for line in lines)).encode("ascii")
        if os.write(descriptor, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or malformed one raises UserError naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: not readable: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also: an integer of thousands of digits, lists in lists in lists
        raise UserError(f"{path}: not readable as JSON: {error}") from None


def iterate_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a JSONL file.

    A last line without its newline that does not parse is what a killed writer leaves: it is passed over.
    Any other line that is not a JSON object raises UserError with file and line.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with open(path, encoding="utf-8", errors="surrogateescape") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                if not line.endswith("\n"):
                    return
                raise UserError(f"{path}:{number}: not a JSON object: {error.msg} (column {error.colno})") from None
            except (ValueError, RecursionError) as error:  # an integer of thousands of digits, lists in lists in lists
                raise UserError(f"{path}:{number}: not a JSON object: {error}") from None
            if not isinstance(value, dict):
                raise UserError(f"{path}:{number}: expected a JSON object, got {type(value).__name__}")
            yield number, value


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read every object of a JSONL file; see `iterate_jsonl` for the errors."""
    return [row for _, row in iterate_jsonl(path)]


def sha256_bytes(content: bytes) -> str:
    """Hex SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Recording) -> str:
    """Hex SHA-256 of a file, read in blocks, or of one inside a shard."""
    if isinstance(path, PackedFile):
        return sha256_bytes(path.read_bytes())
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fsync_folder(path: Path) -> None:
    """Flush a folder's entries (renames, new names) to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(folder: Path, key: str) -> None:
    """Raise UserError, naming the config key, unless files can be made in `folder`, which need not exist yet."""
    folder = folder.expanduser().absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(dir=nearest, prefix=".probe-"):  # asking for rights alone misleads: try it
            return
    except OSError as error:
        raise UserError(f"{key}={folder}: cannot write there ({nearest}: {error.strerror})") from None


def replace_folder(temporary: Path, target: Path) -> None:
    """Move the finished folder `temporary` to `target`, replacing an older `target` if there is one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
    if target.exists():
        os.rename(target, old)
    os.rename(temporary, target)
    fsync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)
