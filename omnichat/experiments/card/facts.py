"""What a run may say of itself outside: its figures and its data, no path of the machine it ran on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnichat.experiments.runs import Row, Run
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json

_SOURCE = ("name", "kind", "stand_in", "fingerprint", "limit", "left_out", "weight", "drawn", "epochs", "share")
_COUNTS = ("dialogues", "turns", "recordings", "hours")  # of a split
_RUN = ("state", "experts", "parameters", "fusion", "precision", "steps", "hardware", "versions", "wall_seconds")
# An absolute path, or one below a home folder, inside other words; not the tail of a URL, a hub id or a fraction.
_PATH = re.compile(r"(?<![\w:/.~-])(?:~/[^\s'\",;:()\[\]{}]+|~?(?:/[^\s/'\",;:()\[\]{}]+){2,}/?)")


@dataclass(frozen=True, slots=True)
class Measured:
    """The rows of a run that were measured on one checkpoint, and what a reader must know of them."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def measured(run: Run, checkpoint: str) -> Measured:
    """The figures of `checkpoint`, by what predictions/about.json says of each set; those of other ones are left out.

    Raises:
        UserError: an about.json that cannot be read.
    """
    path = run.folder / "predictions" / "about.json"
    about = read_json(path) if path.is_file() else {}
    if not isinstance(about, dict) or not all(isinstance(facts, dict) for facts in about.values()):
        raise UserError(f"{path}: expected an object of objects")
    mine = {stem: facts for stem, facts in about.items() if facts.get("checkpoint") == checkpoint}
    rows = tuple(row for row in run.metrics if stem_of(row) in mine)
    notes = []
    left_out = sorted({stem_of(row) for row in run.metrics} - set(mine))
    if left_out:
        notes.append(f"The figures on {', '.join(left_out)} are of another checkpoint and are left out.")
    if not rows:
        notes.append("Nothing was measured on this checkpoint.")
    for stem in sorted({stem_of(row) for row in rows}):
        notes += _doubts(stem, mine[stem])
    return Measured(rows, tuple(notes))


def stem_of(row: Mapping[str, Any]) -> str:
    """The name of the predictions file that a row of metrics.json was made of, without its ending."""
    return f"{row['set']}.{row['split']}" if row.get("set") else str(row["split"])


def _doubts(stem: str, facts: Mapping[str, Any]) -> Iterable[str]:
    leaks = (facts.get("leaks") or {}).get("replies")
    if leaks:
        yield f"{stem}: training has met the words, topic or recording of {leaks} of {facts.get('replies')} replies."
    if (limit := (facts.get("decoding") or {}).get("limit")) is not None:
        yield f"{stem}: only the first {limit} dialogues of each source were asked."


def public_facts(facts: Mapping[str, Any], rows: Iterable[Row]) -> dict[str, Any]:
    """What config.json of an exported model keeps of a run's facts; see `facts_of_run` of omnichat.talk.

    Args:
        facts: "run", "checkpoint", "input", "alpha", "seed", and the content of data.json, run.json, metrics.json.
        rows: the figures that are kept.
    """
    kept = {name: value for name, value in facts.items() if not name.endswith(".json")}
    data = dict(facts.get("data.json") or {})
    sources = data.pop("sources", ())
    data["sources"] = [
        {name: source[name] for name in _SOURCE if name in source}
        | {"splits": {split: _picked(counts, _COUNTS) for split, counts in source.get("splits", {}).items()}}
        for source in sources
    ]
    kept["data.json"] = data
    kept["run.json"] = _picked(facts.get("run.json") or {}, _RUN)
    kept["metrics.json"] = list(rows)
    cleaned = without_paths(kept)
    assert isinstance(cleaned, dict)
    return cleaned


def _picked(value: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: value[name] for name in names if name in value}


def without_paths(value: Any) -> Any:
    """A plain value with every absolute path in its texts cut down to its last name."""
    if isinstance(value, str):
        if re.match(r"~?/[^/]|[A-Za-z]:\\", value):  # the whole text is one, blanks and all
            return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
        return _PATH.sub(lambda found: Path(found.group()).name, value)
    if isinstance(value, Mapping):
        return {name: without_paths(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(inner) for inner in value]
    return value
