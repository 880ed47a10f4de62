"""Files beside a predictions file: what else is known of its replies, one object a reply, by source and id.

`<stem>.judge.jsonl` holds a judge's scores, `<stem>.speech.jsonl` figures of the spoken replies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from omnichat.evaluation.metrics import METRICS
from omnichat.evaluation.predictions import Prediction
from omnichat.utils.errors import UserError
from omnichat.utils.files import iterate_jsonl

KINDS = {  # sidecar -> {field of its objects: metric}
    "judge": {"judge": "judge"},
    "speech": {"reply_wer": "reply_wer", "reply_dnsmos": "reply_dnsmos"},
}
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


def as_config_value(files: Sequence[Path]) -> str:
    """How predictions=... names these files on a command line; the inverse of `prediction_files`."""
    return str(files[0]) if len(files) == 1 else f"'[{','.join(map(str, files))}]'"


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


def sidecars(path: Path, predictions: Sequence[Prediction] | None = None) -> dict[str, dict[str, float]]:
    """Return the numbers that stand beside a predictions file: metric -> key of a reply -> number.

    Beside `test.jsonl` these are `test.judge.jsonl` and `test.speech.jsonl`, where they are; one object a reply:
    {"source", "id", and any of "judge" (1 to 5), "reply_wer" (0 or more), "reply_dnsmos" (1 to 5)}. A null, or a field
    that is not there, says that the reply has no such number. Other fields are the writer's own.

    Args:
        path: the predictions file.
        predictions: what it holds, if replies that are not in it shall be refused.

    Raises:
        UserError: `FILE:LINE: reason` of an object without source and id, a number out of range, a reply that is there
            twice or is not among the predictions.
    """
    known = None if predictions is None else {p.key for p in predictions}
    found: dict[str, dict[str, float]] = {}
    for kind, metrics in KINDS.items():
        beside = sidecar_path(path, kind)
        if not beside.is_file():
            continue
        seen: set[str] = set()
        for line, row in iterate_jsonl(beside):
            source, name = row.get("source"), row.get("id")
            if not isinstance(source, str) or not isinstance(name, str):
                raise UserError(f"{beside}:{line}: an object needs the texts source and id")
            key = f"{source}/{name}"
            if key in seen:
                raise UserError(f"{beside}:{line}: id {name!r} of source {source!r} appears twice")
            if known is not None and key not in known:
                raise UserError(f"{beside}:{line}: id {name!r} of source {source!r} is not in {path}")
            seen.add(key)
            for field, metric in metrics.items():
                if (value := row.get(field)) is not None:
                    found.setdefault(metric, {})[key] = _number(f"{beside}:{line}: {field}", metric, value)
    return found


def _number(where: str, metric: str, value: object) -> float:
    info = METRICS[metric]
    top = math.inf if info.open_ended else info.top
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where} must be a finite number or null, got {value!r}")
    if not info.bottom <= value <= top:
        raise UserError(f"{where} must lie in {info.bottom:g} to {top:g}, got {value!r}")
    return float(value)
