"""What every source of sounds keeps, over every YAML: splits apart, real recordings, repeatable, picklable."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from omnichat.schema import EMOTIONS, SPLITS, Style
from omnichat.synthesis.base import ScriptRequest, names_sound, script_problems
from omnichat.synthesis.sounds.base import SoundSource
from omnichat.synthesis.writers.grammar import GrammarWriter
from omnichat.utils.errors import UserError
from tests.helpers import sound_files

CONFIGS = Path(__file__).parents[2] / "configs"
GROUPS = ("events", "music")
FILES = {f"{group}/{path.stem}": path for group in GROUPS for path in sorted((CONFIGS / group).glob("*.yaml"))}
LAYOUTS: dict[str, Callable[[Path], Path]] = {  # a tiny collection for every file that needs the user's
    "events/audiocaps": sound_files.audiocaps,
    "events/clotho": sound_files.clotho,
    "events/csv": sound_files.own_csv,
    "events/dataset": lambda folder: sound_files.dataset(folder, saved=True),
    "music/musiccaps": sound_files.musiccaps,
    "music/csv": sound_files.own_csv,
    "music/dataset": lambda folder: sound_files.dataset(folder, saved=False),
}
SHARED = ("events/animals",)  # every split hears the same recordings, as its description says
RATE = 16000


@pytest.fixture(scope="module", params=FILES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SoundSource:
    node = OmegaConf.load(FILES[request.param])
    if request.param in LAYOUTS:
        node.path = str(LAYOUTS[request.param](tmp_path_factory.mktemp("sounds") / "collection"))
    built = instantiate(node, _convert_="all")
    built.file = request.param
    return built


def test_every_split_has_sounds_of_its_own(source: SoundSource) -> None:
    names = {split: [sound.name for sound in source.sounds(split)] for split in SPLITS}
    for split, found in names.items():
        assert found and len(set(found)) == len(found)
        assert source.sounds(split) == source.sounds(split)
        assert all(name.startswith(f"{source.name}/") for name in found)
    if source.file not in SHARED:
        assert not set(names["train"]) & set(names["test"]), "no recording of test is heard in train"
    assert source.issues == [] and source.left_out() == {}


def test_a_sound_is_captioned_and_a_reply_can_show_that_it_was_heard(source: SoundSource) -> None:
    for sound in source.sounds("train"):
        assert sound.caption == sound.caption.strip() and sound.caption and not sound.caption.endswith(".")
        assert sound.keywords and sound.words
        spoken = sound.words.get("mood", sound.caption)  # what the grammar puts into a reply
        assert names_sound(f"It sounds like {spoken}.", sound.keywords)


def test_the_grammar_writes_for_it(source: SoundSource) -> None:
    """The default writer's script is valid for every sound, within a few seeds and with room for a caption."""
    writer = GrammarWriter(None, {name: name for name in EMOTIONS})
    scenario = "audio" if source.file.startswith("events") else "music"
    for sound in source.sounds("train"):
        requests = [ScriptRequest(scenario, "train", seed, 2, (Style(emotion="sad"),), sound) for seed in range(6)]
        assert any(script_problems(writer.write(request), request, max_words=30) == [] for request in requests)


def test_recordings_are_what_was_stored(source: SoundSource) -> None:
    first = source.sounds("train")[0]
    wave = source.load(first.name, RATE)
    assert wave.dtype == np.float32 and wave.ndim == 1 and len(wave) > 0.2 * RATE
    assert np.isfinite(wave).all() and np.abs(wave).max() > 0.01
    half = source.load(first.name, RATE // 2)
    assert len(half) == pytest.approx(len(wave) / 2, abs=1)
    part = source.heard(first.name, "train", RATE)
    assert wave.tobytes().find(part.tobytes()) >= 0, "what a split hears is a stretch of the recording"
    if source.file in LAYOUTS:
        wanted = {number: sound_files.clip(number, len(wave) / RATE) for number in range(40)}
        assert any(np.allclose(wave, clip, atol=1e-4) for clip in wanted.values())


def test_the_same_in_every_process(source: SoundSource) -> None:
    copy = pickle.loads(pickle.dumps(source))
    dealt = list(islice(source.deck("test", 5, RATE), 12))
    assert dealt == list(islice(copy.deck("test", 5, RATE), 12))
    assert np.array_equal(source.load(dealt[0].name, RATE), copy.load(dealt[0].name, RATE))
    assert copy.describe() == source.describe()


def test_description_is_fit_for_a_card(source: SoundSource) -> None:
    facts = json.loads(json.dumps(source.describe()))
    assert {"name", "licence", "split_rule", "recordings", "left_out", "sha256"} <= set(facts)
    assert all(facts["recordings"][split] == len(source.sounds(split)) for split in SPLITS)


def test_an_unknown_split_is_the_caller_s_mistake(source: SoundSource) -> None:
    if source.file in LAYOUTS:
        with pytest.raises(UserError, match=r"split='tset' is not valid .did you mean 'test'"):
            source.sounds("tset")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_missing_folder_is_named(name: str, tmp_path: Path) -> None:
    node = OmegaConf.load(FILES[name])
    node.path = str(tmp_path / "nowhere")
    with pytest.raises(Exception, match="nowhere: no such folder") as error:
        instantiate(node, _convert_="all")
    assert isinstance(error.value.__cause__ or error.value, UserError)
