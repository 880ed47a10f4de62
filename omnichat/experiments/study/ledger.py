"""The study's ledger: append-only, one JSON object a line, an event each.

{"time", "run", "event": "started" | "finished" | "failed" | "evaluated", "settings": [override, ...], "config_hash",
"data": {source: fingerprint}, "code": {"version", "commit"}, "metrics": {"test/emotion_f1": ...}, "hours", "error"};
an event "evaluated" also has "split", "set" and "evaluation" (its overrides).
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import iterate_jsonl

EVENTS = ("started", "finished", "failed", "evaluated")
CHANGES = ("settings", "data", "code")  # what may differ between a run as it was made and as it is asked for
Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a run is made of, to tell whether it is still what is asked for.

    Attributes:
        settings: overrides. config_hash: of all resolved settings that set the result.
        data: source -> fingerprint of its corpus. code: version and commit of omnichat.
    """

    settings: tuple[str, ...]
    config_hash: str | None
    data: Mapping[str, str]
    code: Mapping[str, str | None]

    def as_json(self) -> Event:
        """The fields of an event."""
        return {
            "settings": list(self.settings),
            "config_hash": self.config_hash,
            "data": dict(self.data),
            "code": dict(self.code),
        }


class Ledger:
    """Events of a study folder, in order. Several processes may append; none ever rewrites.

    Args:
        path: the file; it need not exist yet.

    Raises:
        UserError: a damaged line (file:line). A last line that a kill tore is passed over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = []
        self.read()

    def read(self) -> None:
        """Read the file anew: other processes append to it."""
        found = []
        for line, event in iterate_jsonl(self.path) if self.path.is_file() else ():
            if not isinstance(event.get("run"), str) or event.get("event") not in EVENTS:
                raise UserError(f"{self.path}:{line}: an event names its run, and is one of {', '.join(EVENTS)}")
            found.append(event)
        self.events = found

    def append(self, run: str, event: str, facts: Facts, **more: Any) -> Event:
        """Write one event, whole or not at all, and flush it to disk."""
        if event not in EVENTS:
            raise one_of("event", event, EVENTS)
        fields = {"metrics": {}, "hours": None, "error": None} | more
        value = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "run": run, "event": event} | facts.as_json() | fields
        line = (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            _mend(handle)
            handle.write(line)
            handle.flush()
            os.fsync(handle.fileno())
        self.events.append(value)
        return value

    def last(self, run: str, *kinds: str) -> Event | None:
        """The run's latest event, of these kinds if any are named."""
        for event in reversed(self.events):
            if event["run"] == run and (not kinds or event["event"] in kinds):
                return event
        return None

    def evaluated(self, run: str, split: str, name: str, evaluation: list[str]) -> Event | None:
        """The event of an evaluation with these very settings, made since the run has finished."""
        for event in reversed(self.events):
            if event["run"] != run:
                continue
            if event["event"] in ("started", "finished"):
                return None
            key = (event.get("split"), event.get("set", ""), event.get("evaluation"))
            if event["event"] == "evaluated" and key == (split, name, evaluation):
                return event
        return None


def changes(event: Event, facts: Facts) -> dict[str, str]:
    """What is different now from when an event was written: a word of CHANGES -> how, in words."""
    found: dict[str, str] = {}
    if None not in (event.get("config_hash"), facts.config_hash) and event["config_hash"] != facts.config_hash:
        found["settings"] = f"config {event['config_hash'][:8]} -> {facts.config_hash[:8]}"  # type: ignore[index]
    data = event.get("data") or {}
    moved = [name for name in sorted({*data, *facts.data}) if data.get(name) != facts.data.get(name)]
    if moved:
        found["data"] = ", ".join(f"{n} {_short(data.get(n))} -> {_short(facts.data.get(n))}" for n in moved)
    code = event.get("code") or {}
    if any(code.get(key) != facts.code.get(key) for key in ("version", "commit")):
        found["code"] = f"omnichat {_code(code)} -> {_code(facts.code)}"
    return found


def _mend(handle: Any) -> None:
    """See to it that what is written next begins a line: a last line without its end is what a kill leaves.

    If it is an event all the same it is kept, as `iterate_jsonl` keeps it, else it is taken away.
    """
    size = handle.seek(0, os.SEEK_END)
    handle.seek(0)
    torn = handle.read().rpartition(b"\n")[2]
    if not torn:
        return
    try:
        json.loads(torn)
    except ValueError:
        handle.truncate(size - len(torn))
    else:
        handle.write(b"\n")


def _short(fingerprint: str | None) -> str:
    return "absent" if fingerprint is None else str(fingerprint)[:8]


def _code(code: Mapping[str, str | None]) -> str:
    return f"{code.get('version')} ({code.get('commit')})"
