"""Files beside a predictions file: what else is known of its replies, one object a reply, by source and id.

`<stem>.judge.jsonl` holds a judge's scores, `<stem>.speech.jsonl` figures of the spoken replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omnichat.utils.errors import UserError

KINDS = ("judge", "speech")
_ENDINGS = tuple(f".{kind}.jsonl" for kind in KINDS)


def sidecar_path(predictions: Path, kind: str) -> Path:
    """Where the sidecar of a predictions file lies."""
    assert kind in KINDS, kind
    return predictions.with_name(f"{predictions.stem}.{kind}.jsonl")


def prediction_files(named: object) -> list[Path]:
    """Predictions files that a config value names: a file, a run folder, a folder of such files, or a list of these.

    A run folder stands for what is in its `predictions/`, a folder for the .jsonl files in it; sidecars and hidden
    files are none. A file is named once, in the order of the list; those of a folder come sorted by name.

    Raises:
        UserError: nothing is named, or a path leads to no predictions.
    """
    listed = [named] if isinstance(named, str | Path) else named
    if not isinstance(listed, Sequence) or not listed or not all(isinstance(each, str | Path) for each in listed):
        raise UserError(f"predictions={named!r} must be a predictions file, a run folder, or a list of these")
    return list(dict.fromkeys(path for each in listed for path in _files(Path(each).expanduser())))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if path.name.endswith(_ENDINGS):
            raise UserError(f"predictions={path} lies beside predictions and holds none; name {_owner(path)}")
        return [path]
    if not path.is_dir():
        raise UserError(f"predictions={path}: no such file or folder")
    folder = path / "predictions" if (path / "predictions").is_dir() else path
    found = sorted(folder.glob("*.jsonl"))
    found = [each for each in found if not each.name.startswith(".") and not each.name.endswith(_ENDINGS)]
    if not found:
        raise UserError(f"predictions={path}: no predictions there; `omnichat evaluate run=...` makes them")
    return found


def _owner(sidecar: Path) -> str:
    ending = next(ending for ending in _ENDINGS if sidecar.name.endswith(ending))
    return f"{sidecar.name.removesuffix(ending)}.jsonl"
