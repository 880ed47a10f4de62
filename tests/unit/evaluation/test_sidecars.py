"""Numbers that stand beside the predictions: read by reply, refused where they do not belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from omnichat.evaluation.score import ScoreConfig, score
from omnichat.evaluation.sidecars import sidecars
from omnichat.utils.errors import UserError
from tests.unit.evaluation.builders import build

ROWS = [build(f"d{n}") for n in range(4)]
PLAIN = ScoreConfig(bertscore_model=None, bootstrap_samples=100, permutations=20)


def beside(folder: Path, ending: str, rows: list[Any]) -> Path:
    (folder / f"test{ending}").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "test.jsonl"


def test_numbers_are_read_and_scored_over_the_replies_that_have_them(tmp_path: Path) -> None:
    marks = [{"source": "toy", "id": f"d{n}#1", "judge": mark, "why": "x"} for n, mark in enumerate((1, 4.5, None))]
    path = beside(tmp_path, ".judge.jsonl", marks)
    spoken = [{"source": "toy", "id": "d3#1", "reply_wer": 2.5, "reply_dnsmos": 3.1}]
    beside(tmp_path, ".speech.jsonl", spoken)
    found = sidecars(path, ROWS)
    assert found == {
        "judge": {"toy/d0#1": 1.0, "toy/d1#1": 4.5},
        "reply_wer": {"toy/d3#1": 2.5},
        "reply_dnsmos": {"toy/d3#1": 3.1},
    }
    rows = {row["metric"]: row for row in score(ROWS, PLAIN, found) if row["scenario"] == "all"}
    assert rows["judge"]["value"] == pytest.approx(2.75) and rows["judge"]["n"] == 2
    assert rows["reply_wer"]["value"] == 2.5 and rows["reply_dnsmos"]["ci95"] == [1.0, 5.0]
    json.dumps(list(rows.values()), allow_nan=False)
    assert sidecars(tmp_path / "other.jsonl") == {}


GOOD = {"source": "toy", "id": "d0#1", "judge": 3}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (GOOD | {"id": "d1#1", "judge": 0.5}, "judge must lie in 1 to 5, got 0.5"),
        (GOOD | {"id": "d1#1", "judge": "4"}, "judge must be a finite number or null, got '4'"),
        (GOOD | {"id": "d1#1", "judge": True}, "judge must be a finite number"),
        (GOOD | {"id": "d9#1"}, "id 'd9#1' of source 'toy' is not in"),
        ({"id": "d0#1", "judge": 3}, "needs the texts source and id"),
        (GOOD, "appears twice"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = beside(tmp_path, ".judge.jsonl", [GOOD, row])
    with pytest.raises(UserError) as error:
        sidecars(path, ROWS)
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'test.judge.jsonl'}:2: ") and message in text and "\n" not in text
