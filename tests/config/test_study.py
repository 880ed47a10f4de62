"""The study's presets: every run of every script composes, on corpora that the preset's own commands make."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from omnichat.config import EvaluateRun
from omnichat.experiments.study.arms import all_specs, words_of
from omnichat.experiments.study.presets import PRESETS
from omnichat.experiments.study.rows import FUSIONS, ROWS, rows_of
from omnichat.study import Composer
from omnichat.training.identity import sets_result
from tests.config.composing import ROOT, config, files


@pytest.mark.parametrize("name", PRESETS)
def test_every_run_composes_on_corpora_that_the_preset_makes(name: str) -> None:
    preset = replace(PRESETS[name], seeds={"": (0,)})
    made = {Path(config(verb, rest).out) for verb, *rest in (c.command for c in preset.corpora.values())}
    assert made == {corpus.path for corpus in preset.corpora.values()}
    compose = Composer()
    hashes = {}
    for spec in all_specs(rows_of(tuple(ROWS), preset), preset.base, {}):
        composed = compose(spec)
        assert set(composed.sources.values()) <= made and composed.steps == int(preset.base["trainer.steps"])
        assert composed.config_hash not in hashes, f"{spec.name} is {hashes[composed.config_hash]} under another name"
        hashes[composed.config_hash] = spec.name
    config("train", [*words_of(preset.base), *words_of(preset.plumbing)])
    assert not [key for key in preset.plumbing if sets_result(key)], "plumbing sets no result"
    assert isinstance(config("evaluate", ["run=some/run", *preset.evaluation]), EvaluateRun)


def test_a_seed_is_part_of_what_is_composed() -> None:
    preset = PRESETS["smoke"]
    specs = all_specs(rows_of(("experts",), replace(preset, seeds={"": (0, 1)})), preset.base, {})
    assert len({Composer()(spec).config_hash for spec in specs}) == len(specs) == 4


def test_the_paper_preset_names_the_real_parts() -> None:
    preset = PRESETS["paper"]
    run = config("train", words_of(preset.base))
    assert run.experts["whisper"]["path"] == "openai/whisper-large-v3"
    assert {"whisper", "emotion2vec", "beats"} == set(run.experts) and "8B" in run.llm.path
    assert not any(str(node["path"]).startswith("asset:") or node["path"] is None for node in run.experts.values())
    made = config("synthesize", preset.corpora["sharechatx"].command[1:])
    lines = sum(made.dialogues[scenario]["train"] for scenario in made.dialogues) * made.variants_per_dialogue
    assert 80_000 <= lines <= 80_003


def test_every_fusion_can_be_a_row() -> None:
    named = {settings["fusion"] for settings, _ in FUSIONS.values()}
    assert set(files("fusion")) <= named, "a new fusion gets its row"
    preset = replace(PRESETS["demo"], fusions=tuple(FUSIONS), seeds={"": (0,)})
    there = [arm for arm in ROWS["fusion"](preset).arms if "emotion2vec" not in arm.label]
    assert len(there) == len(FUSIONS) - 1
    for arm in there:
        assert config("train", [*words_of(preset.base | arm.settings)]).fusion["budget"] == "2M"


@pytest.mark.parametrize("script", [*ROWS, ""])
def test_every_row_has_its_script(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "scripts" / (f"study_{script}.py" if script else "study.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    assert module.__doc__ and callable(module.main)
    called = f'main(["{script}"], __doc__)' if script else "main([], __doc__)"
    assert called in path.read_text(encoding="utf-8")
