"""`omnichat judge`: files in, scores beside them, one line for what went wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from omnichat.evaluation.predictions import write_predictions
from omnichat.schema import SCENARIOS
from tests.helpers.fault_proxy import ChatServer
from tests.helpers.judging import by_content, graded
from tests.integration.conftest import Outcome
from tests.unit.evaluation.builders import build

pytest.importorskip("openai")
Cli = Callable[..., Outcome]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with the predictions of two splits."""
    run = tmp_path / "run"
    for split in ("dev", "test"):
        rows = [build(f"{split}{n}", 3, scenario=s, split=split, source="s") for n, s in enumerate(SCENARIOS)]
        write_predictions(run / "predictions" / f"{split}.jsonl", rows)
    return run


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_folder_is_judged_and_its_cost_is_shown(folder: Path, tmp_path: Path, omnichat: Cli) -> None:
    settings = [f"predictions={folder}", f"answers={tmp_path / 'kept'}", "judge.prices.prompt=1", "judge.samples=2"]
    with ChatServer(
        graded(lambda prompt, seed: "no idea" if "everyday" in prompt else by_content(prompt, seed))
    ) as server:
        outcome = omnichat("judge", *settings, f"judge.base_url={server.url}")
        assert outcome.code == 0, outcome.err
        assert len(server.bodies) == 8, "the two splits hold the same words"
    for split in ("dev", "test"):
        found = rows(folder / "predictions" / f"{split}.judge.jsonl")
        assert [row["id"] for row in found] == [f"{split}{n}#3" for n in range(4)]
        assert [row["judge"] is None for row in found] == [s == "daily" for s in SCENARIOS]
        assert all(row["judge"] == sum(row["samples"]) / 2 for row in found[:3])
        assert set(found[0]) == {"source", "id", "judge", "samples", "unparsed", "prompt", "model"}
        assert f"{split}.judge.jsonl" in outcome.out
    assert "2 of 8 answers could not be read: the answer states no score (2); 1 replies have no score" in outcome.out
    assert "n=3 of 4" in outcome.out and "n=0 of 1" in outcome.out
    assert "asked now: 8 answers, 800 + 400 tokens, 0.0008 USD" in outcome.out
    assert outcome.out.splitlines()[-1].startswith("next: omnichat score predictions='[")
    before = (folder / "predictions" / "test.judge.jsonl").read_bytes()
    again = omnichat("judge", *settings, "judge.base_url=http://127.0.0.1:9/v1")
    assert again.code == 0 and "asked now: 0 answers, 0 + 0 tokens, 0.0000 USD" in again.out
    assert "in the scores: 8 answers, 800 + 400 tokens, 0.0008 USD" in again.out
    assert (folder / "predictions" / "test.judge.jsonl").read_bytes() == before


def test_a_dry_run_asks_and_writes_nothing(folder: Path, tmp_path: Path, omnichat: Cli) -> None:
    before = sorted(tmp_path.rglob("*"))
    settings = [
        f"answers={tmp_path / 'kept'}",
        "judge.api_key_env=NOT_SET",
        "judge.prices.completion=10",
        "dry_run=true",
    ]
    outcome = omnichat("judge", f"predictions={folder}/predictions/test.jsonl", *settings)
    assert outcome.code == 0, outcome.err
    assert "requests: 12\n" in outcome.out and "at most 3,600 of answers" in outcome.out
    assert "cost: at most 0.0360 USD" in outcome.out and "Reply to be graded: " in outcome.out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_judge_whose_answers_are_never_scores_ends_with_one_line(folder: Path, tmp_path: Path, omnichat: Cli) -> None:
    path = folder / "predictions" / "test.jsonl"
    with ChatServer(graded(lambda prompt, seed: "I cannot say.")) as server:
        outcome = omnichat("judge", f"predictions={path}", f"answers={tmp_path / 'k'}", f"judge.base_url={server.url}")
    assert outcome.code == 2 and "gave no score that could be read" in outcome.err.splitlines()[-1]
    assert "12 of 12 answers could not be read" in outcome.out
    assert all(row["judge"] is None and row["unparsed"] == 3 for row in rows(path.with_name("test.judge.jsonl")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["predictions=nowhere"], "predictions=nowhere: no such file or folder"),
        ([], "predictions is missing: give it as predictions=..."),
        (["judge.sampels=3"], "judge: setting='sampels' is not valid (did you mean 'samples'?)"),
        (["judge=human"], "judge='human' is not valid; choose one of: openai"),
        (["judge.base_url=http://127.0.0.1:9/v1", "judge.limits.tries=1"], "failed 1 times on one request"),
    ],
)
def test_mistakes_are_one_line(settings: list[str], message: str, folder: Path, tmp_path: Path, omnichat: Cli) -> None:
    given = [f"predictions={folder}"] if settings and "predictions" not in settings[0] else []
    settings = [f"+{each}" if "sampels" in each else each for each in settings]
    outcome = omnichat("judge", *given, *settings, f"answers={tmp_path / 'kept'}")
    last = outcome.err.strip().splitlines()[-1]
    assert outcome.code == 2 and message in last and "Traceback" not in outcome.err
