"""What every script writer keeps: valid scripts, the same for the same request, splits apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from omnichat.schema import EMOTIONS, SPLITS, Style
from omnichat.synthesis.base import ScriptRequest, ScriptWriter, Sound, script_problems
from omnichat.synthesis.writers.grammar import GrammarWriter

WRITERS: dict[str, Callable[[], ScriptWriter]] = {
    "grammar": lambda: GrammarWriter(None, {name: name for name in EMOTIONS}),
}
SOUNDS = {
    "emotion": None,
    "audio": Sound("animals/owl.mp3", "an owl hooting", ("owl", "hooting"), {"animal": "owl", "action": "hooting"}),
    "music": Sound("music/calm/x.opus", "calm acoustic music", ("calm",), {"mood": "calm", "kind": "acoustic"}),
}
STYLES = (Style("low", "slow", "happy"), Style("high", "normal", "sad"), Style("normal", "fast", "disgusted"))


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest) -> ScriptWriter:
    return WRITERS[request.param]()


@pytest.mark.parametrize("scenario", SOUNDS)
@pytest.mark.parametrize("turns", [0, 2, 8])
def test_scripts_are_valid_and_repeatable(writer: ScriptWriter, scenario: str, turns: int) -> None:
    said: dict[str, set[str]] = {}
    for split in SPLITS:
        for seed in range(15):
            request = ScriptRequest(scenario, split, seed, turns, STYLES, SOUNDS[scenario])
            script = writer.write(request)
            assert script_problems(script, request, max_words=14) == []
            assert writer.write(request) == script
            said.setdefault(split, set()).update(script.sentences())
    assert not said["train"] & said["dev"] and not said["train"] & said["test"] and not said["dev"] & said["test"]


def test_seeds_vary_the_words(writer: ScriptWriter) -> None:
    scripts = {writer.write(ScriptRequest("emotion", "train", seed, 4, STYLES)).current for seed in range(30)}
    assert len(scripts) > 20


def test_description_is_fit_for_a_card(writer: ScriptWriter) -> None:
    assert {"name", "licence"} <= set(writer.describe())
