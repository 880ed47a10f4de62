"""A corpus as the factory leaves it, of sine waves: checks.jsonl, rejected.jsonl, and words that want to be markup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omnichat.data.corpus import FINDINGS, MANIFEST, REJECTED
from omnichat.utils.files import read_jsonl, write_jsonl_atomic
from tests.helpers.corpora import synthetic_corpus

HOSTILE = '<img src=x onerror="window.harm=1"> ${window.harm=2} {{value}} <script>window.harm=3</script> \' & done'


def browsed_corpus(folder: Path) -> Path:
    """12 dialogues (6 before their variants); number 11, the last, has `HOSTILE` as its reply."""
    synthetic_corpus(folder)
    rows = read_jsonl(folder / MANIFEST)
    rows[-1]["turns"][-1]["text"] = HOSTILE
    rows[-1]["speakers"] = {"A": {"voice": "ada", "gender": "female"}}
    rows[0]["turns"][0]["asr_text"] = "I went to the nation today"
    write_jsonl_atomic(folder / MANIFEST, rows)
    write_jsonl_atomic(folder / FINDINGS, _findings(rows))
    write_jsonl_atomic(folder / REJECTED, _rejects())
    return folder


def _findings(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    stems: dict[str, dict[str, Any]] = {}
    for row in rows:
        stem = row["id"].rpartition("-v")[0]
        number = list(stems).index(stem) if stem in stems else len(stems)
        found = stems.setdefault(stem, {"words": {"dialogue": {"wer": round(0.01 * number, 4)}, "clips": {}}})
        for place, turn in enumerate(row["turns"]):
            found["words"]["clips"][Path(turn["audio"]).stem] = {"wer": round(0.1 * place, 4), "asr_text": turn["text"]}
    return [
        {"id": stem, "plan": f"plan-{number}", "attempt": int(number == 0), "checks": checks}
        for number, (stem, checks) in enumerate(stems.items())
        if number != 5  # one that nothing was measured of
    ]


def _rejects() -> list[dict[str, Any]]:
    reason = "word error rate of the dialogue above max_dialogue_wer"
    refused = {"stage": "words", "plan": "plan-0", "attempt": 0, "reasons": [reason]}
    rows = [refused | {"measured": {"words": {"wer": 0.0625}}, "topic": "the station"}]
    rows += [
        {"stage": "script", "plan": f"plan-{n}", "attempt": 0, "try": 0, "reasons": ["too short"]} for n in range(7)
    ]
    return [*rows, {"stage": "dropped", "plan": "plan-9", "reasons": ["rejected 5 times"]}]


def first_id(folder: Path) -> str:
    """Id of the first dialogue of the manifest."""
    with open(folder / MANIFEST, encoding="utf-8") as handle:
        return str(json.loads(handle.readline())["id"])
