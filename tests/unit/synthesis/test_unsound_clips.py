"""A voice that now and then gives no clip: the attempt is rejected with a reason, and another one is made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omnichat.data.corpus import Corpus
from omnichat.data.validate import validate
from omnichat.synthesis.checked_voice import CheckedVoice
from omnichat.synthesis.checks.styles import StyleCheck
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.synthesis.pipeline import synthesize
from omnichat.synthesis.plan import SynthesisConfig
from omnichat.synthesis.scenes.config import BackchannelConfig, SceneConfig
from omnichat.synthesis.scenes.maker import SceneMaker
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json, read_jsonl
from tests.faults.forged_made import Unsound
from tests.helpers.scripts import grammar
from tests.helpers.tones import RATE

REASONS = {
    "nan": "the voice gave samples that are not finite",
    "inf": "the voice gave samples that are not finite",
    "loud": "the voice gave samples beyond full scale",
    "empty": "the voice gave an empty clip",
    "stereo": "the voice gave a clip that is no waveform",
    "row": "the voice gave a clip that is no waveform",
    "int16": "the voice gave a clip that is no waveform",
    "none": "the voice gave a clip that is no waveform",
    "objects": "the voice gave a clip that is no waveform",
    "one less": "the voice gave another number of clips than lines",
}


def make(folder: Path, kind: str, share: float) -> Path:
    """A corpus without any check: what a voice gives is looked at all the same, a backchannel's clip too."""
    scene = SceneConfig(backchannel=BackchannelConfig(share=1.0, turn_share=1.0, words=["Mm."]))
    config = SynthesisConfig(
        name="tones", out=str(folder / "corpus"), workers=1, dialogues={"emotion": {"train": 4}},
        history_turns={2: 1.0}, variants_per_dialogue=2, max_attempts=6, scene=scene,
    )  # fmt: skip
    synthesize(config, grammar(), Unsound(kind, share), CheckSuite({}), SceneMaker(scene, None, None, RATE))
    return folder / "corpus"


@pytest.mark.parametrize("kind", sorted(set(REASONS) - {"one less"}))
def test_an_unsound_clip_is_rejected_counted_and_spoken_anew(kind: str, tmp_path: Path) -> None:
    root = make(tmp_path, kind, 0.1)
    rows = [row for row in read_jsonl(root / "rejected.jsonl") if row["stage"] == "voice"]
    assert rows and {reason for row in rows for reason in row["reasons"]} == {REASONS[kind]}
    checks = read_json(root / "card.json")["checks"]
    assert checks[f"attempts rejected: {REASONS[kind]}"] == checks["attempts rejected"] == len(rows)
    assert len(Corpus.load(root, verify="full").dialogues) == 8, "another attempt has taken each one's place"
    assert not [check for check in validate(root, "full") if check.state == "failed"]


@pytest.mark.parametrize("kind", REASONS)
def test_a_voice_that_gives_nothing_else_is_an_error_that_says_so(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no dialogue of 'tones' passed its checks: voice: {REASONS[kind]} .24."):
        make(tmp_path, kind, 1.0)


def test_the_same_samples_in_another_form_are_the_same_corpus(tmp_path: Path) -> None:
    whole = Corpus.load(make(tmp_path / "a", "double", 0.0)).fingerprint()
    for kind in ("double", "list"):
        assert Corpus.load(make(tmp_path / kind, kind, 0.5)).fingerprint() == whole


@pytest.mark.parametrize("kind", ["nan", "stereo", "none", "one less"])
def test_a_check_that_learns_the_speakers_hears_no_unsound_clip(kind: str) -> None:
    heard = CheckedVoice(Unsound(kind, 0.05))
    found = StyleCheck(1.05, 1.05).calibrate(heard, ["ada", "joe"])
    assert set(found["speakers"]) == {"ada", "joe"}
    json.dumps(found, allow_nan=False)
