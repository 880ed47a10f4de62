"""Files beside the predictions that hold more numbers a reply: an LLM judge's marks, measures of the spoken reply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from omnichat.evaluation.metrics import METRICS
from omnichat.evaluation.predictions import Prediction
from omnichat.utils.errors import UserError
from omnichat.utils.files import iterate_jsonl

SIDECARS = {  # the file's ending in place of .jsonl -> {field of its objects: metric}
    ".judge.jsonl": {"judge": "judge"},
    ".speech.jsonl": {"reply_wer": "reply_wer", "reply_dnsmos": "reply_dnsmos"},
}


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
    for ending, metrics in SIDECARS.items():
        beside = path.with_name(path.name.removesuffix(".jsonl") + ending)
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
