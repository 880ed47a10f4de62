"""Which models `omnichat web` offers, and what it says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from omnichat.config import WebRun
from omnichat.training.checkpoint import MARKER
from omnichat.utils.errors import UserError
from omnichat.utils.files import write_json_atomic
from omnichat.web import model_choices


def f1(value: Any) -> list[dict[str, Any]]:
    return [
        {"split": "dev", "scenario": "all", "metric": "emotion_f1", "value": 0.9},
        {"split": "test", "scenario": "music", "metric": "emotion_f1", "value": 0.8},
        {"split": "test", "scenario": "all", "metric": "emotion_f1", "value": value},
    ]


def made_run(folder: Path, config: Any, checkpoint: bool = True, metrics: Any = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    if checkpoint:
        (folder / "checkpoints" / "step-000010").mkdir(parents=True)
        (folder / "checkpoints" / "step-000010" / MARKER).touch()
    if metrics is not None:
        write_json_atomic(folder / "metrics.json", metrics)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    config = {"chat": {"input": "speech"}, "mixture": {"alpha": 0.2}}
    made_run(root / "demo" / "speech", config, metrics=f1(0.61))
    made_run(root / "words", {"chat": {"input": "text"}, "mixture": {"alpha": 0}})
    made_run(root / "begun", config, checkpoint=False)
    made_run(root / "words.old1", config)
    made_run(root / "broken", "chat: [", metrics=f1("high"))
    made_run(root / "odd", {"chat": {"input": 3}, "mixture": {"alpha": "much"}})
    return root


def test_runs_with_a_checkpoint_are_offered_with_what_they_say_of_themselves(runs: Path) -> None:
    found = {choice.name: choice for choice in model_choices(WebRun(runs=str(runs)))}
    assert sorted(found) == ["broken", "demo/speech", "odd", "words"]
    assert found["demo/speech"].title == "demo/speech, input speech, alpha 0.2, emotion F1 0.610"
    assert found["words"].title == "words, input text, alpha 0"
    assert found["broken"].title == "broken" and found["odd"].title == "odd"
    with pytest.raises(UserError):  # it is offered, and says what is wrong when it is asked
        found["broken"].load()


def test_the_named_run_comes_first_and_once(runs: Path) -> None:
    named = str(runs / "words")
    found = [choice.name for choice in model_choices(WebRun(run=named, runs=str(runs)))]
    assert found[0] == "words" and sorted(found[1:]) == ["broken", "demo/speech", "odd"]
    assert [choice.name for choice in model_choices(WebRun(run=named, runs=None))] == ["runs/words"]
    assert len(model_choices(WebRun(run="some/hub-model", runs=str(runs / "nothing")))) == 1


def test_a_saved_model_says_what_it_was_saved_with(tmp_path: Path) -> None:
    facts = {"alpha": 0.5, "metrics.json": f1(0.4)}
    write_json_atomic(tmp_path / "config.json", {"chat": {"input": "asr"}, "facts": facts})
    (choice,) = model_choices(WebRun(run=str(tmp_path), runs=None))
    assert (choice.input, choice.alpha, choice.emotion_f1) == ("asr", 0.5, 0.4)
    write_json_atomic(tmp_path / "config.json", {"chat": None, "facts": None})
    (choice,) = model_choices(WebRun(run=str(tmp_path), runs=None))
    assert (choice.input, choice.alpha, choice.emotion_f1) == (None, None, None)


def test_nothing_to_talk_to_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for wrong, message in (
        ({"runs": str(tmp_path / "empty")}, "no run has a checkpoint yet"),
        ({"runs": str(tmp_path / "none")}, "no such folder"),
    ):
        with pytest.raises(UserError, match=message):
            model_choices(WebRun(**wrong))
    with pytest.raises(UserError, match="both null"):
        WebRun(runs=None)


def test_a_wrong_precision_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UserError, match="precision='fp8' is not valid"):
        WebRun(precision="fp8")
