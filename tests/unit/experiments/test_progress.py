"""Sample replies of a run over its steps, as the report shows them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from omnichat.experiments.progress import reply_progress
from omnichat.experiments.runs import Run
from omnichat.utils.files import write_jsonl_atomic

STYLE = {"pitch": None, "speed": None, "emotion": "happy"}


def test_the_first_and_the_last_step_and_some_between_are_shown(tmp_path: Path) -> None:
    for step in range(10, 101, 10):
        row: dict[str, Any] = {"id": "demo/a#1", "heard": "Hello.", "reference": "Hi.", "reference_style": STYLE}
        row |= {"reply": f"reply {step}", "style": STYLE if step > 50 else None}
        write_jsonl_atomic(tmp_path / "samples" / f"step-{step:06d}.jsonl", [row])
    runs = [SimpleNamespace(name="a", folder=tmp_path), SimpleNamespace(name="none", folder=tmp_path / "none")]
    ((name, table),) = reply_progress(cast("list[Run]", runs))
    assert name == "a" and table.columns == ("Heard", "Reference", "Step 10", "Step 40", "Step 70", "Step 100")
    (cells,) = table.rows
    assert [cell.text for cell in cells[2:]] == ["reply 10", "reply 40", "reply 70", "reply 100"]
    assert [cell.small for cell in cells[1:]] == ["happy", *["no style could be read"] * 2, *["happy"] * 2]
