"""What the factory wrote beside a corpus: the measures of its checks, and all that they refused.

`checks.jsonl` of a large corpus is larger than its manifest. It is read through once for the figures that dialogues are
found by; after that only the place of each line is kept, and a line is read again when its dialogue is looked at.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from omnichat.data.corpus import FINDINGS, REJECTED
from omnichat.schema import Dialogue
from omnichat.utils.errors import UserError
from omnichat.utils.files import iterate_jsonl

Row = dict[str, Any]


def stem_id(dialogue: Dialogue) -> str:
    """The id under which a dialogue and its variants stand in `checks.jsonl`: that before `-v<number>`."""
    stem, mark, number = dialogue.id.rpartition("-v")
    return stem if mark and number.isdecimal() else dialogue.id


def clip_key(audio: str | None) -> str | None:
    """The name of a recording in `checks.jsonl` (h0, u1, r1, ...); None for a turn without one."""
    return None if audio is None else PurePosixPath(audio).stem


def figures_of(measures: Any) -> dict[str, float]:
    """The finite numbers among a check's measures; true counts as 1, false as 0."""
    if not isinstance(measures, Mapping):
        return {}
    return {
        str(name): float(value)
        for name, value in measures.items()
        if isinstance(value, bool | int | float) and abs(value) < 1e300 and math.isfinite(value)
    }


def dialogue_figures(row: Row) -> dict[str, float]:
    """What the checks measured on a dialogue as a whole: "<check>.<measure>" -> number."""
    return {
        f"{check}.{name}": value
        for check, found in _checks(row)
        for name, value in figures_of(found["dialogue"]).items()
    }


def clip_figures(row: Row, clip: str) -> dict[str, float]:
    """What the checks measured on one recording: "<check>.<measure>" -> number."""
    return {
        f"{check}.{name}": value
        for check, found in _checks(row)
        for name, value in figures_of(found["clips"].get(clip)).items()
    }


def _checks(row: Row) -> Iterator[tuple[str, Row]]:
    """(check, its measures), with the two fields that `_checked` has seen."""
    yield from row["checks"].items()


@dataclass(frozen=True, slots=True)
class Findings:
    """The lines of a `checks.jsonl` by dialogue.

    Attributes:
        file: None where the corpus has none.
        places: stem id -> byte at which its line begins.
    """

    file: Path | None
    places: dict[str, int]

    @classmethod
    def read(cls, folder: Path, take: Callable[[str, Row], None]) -> Findings:
        """Read the file through and hand (stem id, row) of each line to `take`.

        Raises:
            UserError: `checks.jsonl:LINE: reason` for a line that is not the factory's.
        """
        file = folder / FINDINGS
        if not file.is_file():
            return cls(None, {})
        places: dict[str, int] = {}
        place = 0
        with open(file, "rb") as handle:
            for number, line in enumerate(handle, start=1):
                row = _checked(line, f"{file}:{number}")
                places[row["id"]] = place
                take(row["id"], row)
                place += len(line)
        return cls(file, places)

    def row(self, stem: str) -> Row | None:
        """The line of a dialogue, or None where there is none.

        Raises:
            UserError: the file is no longer the one that was read.
        """
        if self.file is None or stem not in self.places:
            return None
        try:
            with open(self.file, "rb") as handle:
                handle.seek(self.places[stem])
                row = _checked(handle.readline(), str(self.file))
        except OSError as error:
            raise UserError(f"{self.file}: not readable: {error.strerror}") from None
        if row["id"] != stem:
            raise UserError(f"{self.file}: has changed since it was read; start `omnichat browse` again")
        return row


def _checked(line: bytes, where: str) -> Row:
    """A line of `checks.jsonl`, which may come from anywhere, in the form that is counted on."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a JSON object: {str(error)[:100]}") from None
    if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not isinstance(row.get("checks"), dict):
        raise UserError(f"{where}: not a line of the factory's: it lacks `id` or `checks`")
    for name, found in row["checks"].items():
        if not isinstance(found, dict) or not all(isinstance(found.get(key), dict) for key in ("dialogue", "clips")):
            raise UserError(f"{where}: checks.{name[:60]} lacks `dialogue` or `clips`")
    return row


@dataclass(frozen=True, slots=True)
class Reject:
    """A script or an attempt that was refused, or (stage "dropped") a dialogue that was given up.

    Attributes:
        stage: the check that refused it; "script" or "voice" where none did.
        plan: id in the factory's plan. attempt: from 0; None where it does not apply.
        reasons: as the check gave them. measured: as text, "<check>.<measure> <number>".
    """

    stage: str
    plan: str
    attempt: int | None
    reasons: tuple[str, ...]
    measured: tuple[str, ...]
    topic: str | None


def read_rejects(folder: Path) -> tuple[Reject, ...]:
    """The rows of `rejected.jsonl`, in its order; none where there is no such file.

    Raises:
        UserError: `rejected.jsonl:LINE: reason`.
    """
    file = folder / REJECTED
    return tuple(_reject(row, f"{file}:{line}") for line, row in iterate_jsonl(file)) if file.is_file() else ()


def _reject(row: Row, where: str) -> Reject:
    reasons, attempt, topic = row.get("reasons"), row.get("attempt"), row.get("topic")
    if not isinstance(row.get("stage"), str) or not isinstance(row.get("plan"), str):
        raise UserError(f"{where}: not a line of the factory's: it lacks `stage` or `plan`")
    if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
        raise UserError(f"{where}: `reasons` must be a list of sentences")
    measured = row.get("measured")
    told = [
        f"{check}.{name} {value:.4g}"
        for check, measures in (measured.items() if isinstance(measured, dict) else ())
        for name, value in figures_of(measures).items()
    ]
    return Reject(
        stage=row["stage"],
        plan=row["plan"],
        attempt=attempt if isinstance(attempt, int) else None,
        reasons=tuple(reasons),
        measured=tuple(told),
        topic=topic if isinstance(topic, str) else None,
    )


def count_by(rejects: tuple[Reject, ...], what: str) -> list[tuple[str, int]]:
    """(stage or reason, rows that have it), the most frequent first; `what` is "stage" or "reason"."""
    counted: Counter[str] = Counter()
    for reject in rejects:
        counted.update((reject.stage,) if what == "stage" else reject.reasons)
    return counted.most_common()


def find_rejects(rejects: tuple[Reject, ...], stage: str | None, reason: str | None, words: str) -> list[Reject]:
    """The rows of a stage, with a reason, and with `words` in their plan or topic; None and "" ask for nothing."""
    wanted = words[:200].lower().split()
    return [
        reject
        for reject in rejects
        if (stage is None or reject.stage == stage)
        and (reason is None or reason in reject.reasons)
        and all(word in f"{reject.plan} {reject.topic or ''}".lower() for word in wanted)
    ]
