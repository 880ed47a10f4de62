"""What every reader promises, on a tiny corpus in each layout."""

from __future__ import annotations

import importlib
import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from omnichat.data.corpus import Corpus
from omnichat.data.prepare import PrepareConfig, prepare
from omnichat.data.readers.base import Reader
from omnichat.schema import dialogue_from_json, dialogue_to_json
from omnichat.utils.errors import UserError
from tests.helpers.layouts import LAYOUTS, WITHOUT_SOUND, build

torch.set_num_threads(1)
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "source"


@pytest.fixture(params=LAYOUTS)
def named(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Reader]:
    return request.param, build(request.param, tmp_path / "raw")


@pytest.fixture
def reader(named: tuple[str, Reader]) -> Reader:
    return named[1]


def test_two_passes_agree(reader: Reader) -> None:
    first, issues = list(reader.dialogues()), list(reader.issues)
    assert first
    assert list(reader.dialogues()) == first
    assert reader.issues == issues == []


def test_dialogues_are_the_corpus_s(reader: Reader) -> None:
    dialogues = list(reader.dialogues())
    assert len({dialogue.id for dialogue in dialogues}) == len(dialogues)
    assert {(dialogue.source, dialogue.kind) for dialogue in dialogues} == {(reader.name, reader.kind)}
    assert reader.licence
    for dialogue in dialogues:
        roles = [turn.speaker for turn in dialogue.turns]
        assert roles[0] == "A" or roles[-2:] == ["A", "B"], "the user, or else who speaks first, is A"
        assert set(roles) == {"A", "B"}
        assert dialogue_from_json(json.loads(json.dumps(dialogue_to_json(dialogue)))) == dialogue


def test_recordings_are_what_the_turns_say(named: tuple[str, Reader]) -> None:
    name, reader = named
    heard = [turn for dialogue in reader.dialogues() for turn in dialogue.turns if turn.audio is not None]
    assert bool(heard) != (name in WITHOUT_SOUND)
    for turn in heard:
        wave_N, rate = reader.read(turn)
        assert wave_N.dtype == torch.float32 and wave_N.dim() == 1
        assert rate == turn.sample_rate
        assert turn.seconds is not None and abs(len(wave_N) / rate - turn.seconds) < 2e-3
        assert 0.01 < float(wave_N.abs().max()) <= 1.0


def test_reading_in_any_order_gives_the_same(named: tuple[str, Reader]) -> None:
    name, reader = named
    turns = [turn for dialogue in reader.dialogues() for turn in dialogue.turns if turn.audio is not None]
    waves = {turn.audio: reader.read(turn)[0] for turn in turns}
    fresh = type(reader)(str(reader.root), **LAYOUTS[name].settings)
    for turn in reversed(turns):
        assert torch.equal(fresh.read(turn)[0], waves[turn.audio])


def test_prepare_keeps_words_styles_and_sound(reader: Reader, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"out": str(tmp_path / "out"), "sample_rate": None, "need_audio": "none"}
    corpus = prepare(reader, PrepareConfig(**settings))
    assert Corpus.load(tmp_path / "out", verify="full").dialogues == corpus.dialogues
    originals = list(reader.dialogues())
    assert len(corpus.dialogues) == len(originals)
    for mine, original in zip(corpus.dialogues, originals, strict=True):
        blank = {"audio": None, "sample_rate": None, "seconds": None, "sha256": None}
        assert [replace(t, **blank) for t in mine.turns] == [replace(t, **blank) for t in original.turns]
        assert (mine.id, mine.split, mine.stand_in) == (original.id, original.split, original.stand_in)
        for new, old in zip(mine.turns, original.turns, strict=True):
            assert (new.audio is None) == (old.audio is None)
            if new.audio is not None:
                wave = soundfile.read(corpus.path_of(new), dtype="float32")[0]
                np.testing.assert_allclose(wave, reader.read(old)[0].numpy(), atol=1 / 32768)


def test_prepare_twice_gives_the_same_bytes(reader: Reader, tmp_path: Path) -> None:
    names = ("one", "two")
    for name in names:
        prepare(reader, PrepareConfig(out=str(tmp_path / name), need_audio="none"))
    one, two = (
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in names
    )
    assert one == two
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_wrong_folder_is_one_line_that_names_it(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError) as caught:
            layout.part(str(path), **layout.settings)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_config_names_a_reader_and_every_argument_of_it(path: Path) -> None:
    node = yaml.safe_load(path.read_text())
    module, _, name = node.pop("_target_").rpartition(".")
    part = getattr(importlib.import_module(module), name)
    assert issubclass(part, Reader)
    signature = inspect.signature(part).parameters
    assert set(node) == set(signature)
    assert node.pop("path") == "${path}"
    plain = {key: list(value) if isinstance(value := signature[key].default, tuple) else value for key in node}
    assert node == plain


def test_every_reader_has_a_config_and_a_layout_here() -> None:
    files = {path.stem for path in (CONFIGS.parents[1] / "omnichat/data/readers").glob("*.py")} - {"__init__", "base"}
    targets = {yaml.safe_load(path.read_text())["_target_"].split(".")[-2] for path in CONFIGS.glob("*.yaml")}
    tested = {layout.part.__module__.rsplit(".", 1)[1] for layout in LAYOUTS.values()}
    assert files == targets == tested
