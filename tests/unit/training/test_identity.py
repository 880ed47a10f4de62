"""What a checkpoint refuses, family by family, and the word that lets it pass."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from omnichat.training.identity import FAMILIES, changes, check_despite, family, refuse_changes, refuse_other_parts
from omnichat.utils.errors import UserError

SAVED: dict[str, Any] = {
    "config": {
        "trainer": {"steps": 100},
        "experts": {"one": {"layers": 2}},
        "llm": {"path": "a"},
        "mixture": {"alpha": 0.2, "sources": {"made": {"weight": 1.0}}},
    },
    "data": {"made": "aa"},
    "experts": {"one": "e1"},
    "llm": "l1",
    "precision": "fp32",
}
CHANGES = {
    "config.trainer.steps": (200, "config"),
    "config.mixture.alpha": (0.4, "config"),
    "precision": ("bf16", "config"),
    "data.made": ("bb", "data"),
    "data.spoken": ("cc", "data"),
    "config.mixture.sources.made.weight": (2.0, "data"),
    "experts.one": ("e2", "experts"),
    "config.experts.one.layers": (3, "experts"),
    "llm": ("l2", "llm"),
    "config.llm.path": ("b", "llm"),
}


def changed(key: str, value: Any) -> dict[str, Any]:
    current = copy.deepcopy(SAVED)
    *path, last = key.split(".")
    node = current
    for name in path:
        node = node[name]
    node[last] = value
    return current


def test_what_is_equal_after_json_is_no_change() -> None:
    assert refuse_changes(json.loads(json.dumps(SAVED)), SAVED, Path("c")) == []


@pytest.mark.parametrize("key", CHANGES)
def test_a_change_is_refused_by_name_and_passes_by_its_word_alone(key: str) -> None:
    value, word = CHANGES[key]
    current = changed(key, value)
    [change] = changes(SAVED, current)
    assert (change.key, change.now, change.family) == (key, value, word)
    others = [other for other in FAMILIES if other != word]
    with pytest.raises(UserError) as error:
        refuse_changes(SAVED, current, Path("runs/a/checkpoints/step-000001"), others)
    message = str(error.value)
    assert f"step-000001: made with {key}={change.saved!r}, this run has {value!r}" in message
    assert f"resume_despite=[{','.join(w for w in FAMILIES)}]" in message, "the words given and the one that lacks"
    with pytest.raises(UserError, match=rf"resume_despite=\[{word}\]$"):
        refuse_changes(SAVED, current, Path("c"))
    assert refuse_changes(SAVED, current, Path("c"), [word]) == [change]


def test_all_words_that_are_needed_are_named_at_once() -> None:
    current = changed("data.made", "bb") | {"llm": "l2"}
    with pytest.raises(UserError, match=r"\(and 1 more\).*resume_despite=\[data,llm\]"):
        refuse_changes(SAVED, current, Path("c"))
    with pytest.raises(UserError, match=r"made with llm='l1'.*resume_despite=\[data,llm\]"):
        refuse_changes(SAVED, current, Path("c"), ["data"])


def test_other_frozen_parts_are_refused_without_words_of_a_run_that_is_resumed() -> None:
    identity = {"llm": "l1", "experts": {"beats": "b1", "mert": "m1"}, "config": {}}
    refuse_other_parts(identity, {"llm": "l1", "experts": {"beats": "b1", "mert": "m1"}}, Path("c"))
    refuse_other_parts(identity, {"experts": {"beats": "b1", "mert": "m1"}}, Path("c"))
    with pytest.raises(UserError, match=r"^c: trained with experts.mert='m1', found 'm2': put back") as error:
        refuse_other_parts(identity, {"llm": "l1", "experts": {"beats": "b1", "mert": "m2"}}, Path("c"))
    assert "resume" not in str(error.value), "verbs that read a checkpoint have no such setting"
    for other in ({"llm": "l2"}, {"experts": {"beats": "b1"}}):
        with pytest.raises(UserError, match="trained with"):
            refuse_other_parts(identity, other, Path("c"))


def test_removed_keys_are_changes() -> None:
    current = copy.deepcopy(SAVED)
    current["config"]["experts"] = {}
    assert {c.family for c in changes(SAVED, current)} == {"experts"}
    assert family("config.mixture.unit") == "config" and family("config.loader.batch_tokens") == "config"


def test_words_that_are_none_are_refused() -> None:
    check_despite(FAMILIES)
    with pytest.raises(UserError, match=r"resume_despite='dta' is not valid .did you mean 'data'"):
        check_despite(["dta"])
