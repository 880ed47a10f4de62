"""Sound quality and diarization, on the packaged voice and models."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omnichat.schema import Style
from omnichat.synthesis.base import Voice
from omnichat.synthesis.checks.base import Clip
from omnichat.synthesis.checks.diarization import SILENT, DiarizationCheck, diarization_error, sounding, timeline
from omnichat.synthesis.checks.mos import MosCheck
from omnichat.utils.errors import UserError
from omnichat.utils.parts import build_part
from tests.contract.test_voices import node

RATE = 16000
TEXTS = (
    "They called me today about the garden.",
    "I see, and what is next for the garden?",
    "My sister told me about the phone bill.",
    "That is good to know about the phone bill.",
)


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    pytest.importorskip("parselmouth")
    torch.set_num_threads(1)
    voice: Voice = build_part(node("piper"), "voice", Voice)
    return [
        Clip(*voice.speak(text, name, Style(), i), text, name, Style())
        for i, (text, name) in enumerate(zip(TEXTS, ("ada", "joe") * 2, strict=True))
    ]


def mos(**fields: object) -> MosCheck:
    settings = {"path": "asset:dnsmos/sig_bak_ovr.onnx", "min_overall": 2.0, "min_dialogue": 2.5, "windows": 1}
    return MosCheck(**(settings | fields))  # type: ignore[arg-type]


def test_noise_lowers_the_score_of_speech(clips: list[Clip]) -> None:
    check = mos()
    clean = check.examine(clips[:2])
    assert clean.reasons == [] and 2.5 < clean.dialogue["overall"] < 4.5
    noise = np.random.default_rng(0).standard_normal(len(clips[0].wave_N)).astype(np.float32)
    noisy = Clip((clips[0].wave_N + 0.05 * noise).clip(-1, 1), RATE, TEXTS[0], "ada", Style())
    found = check.examine([noisy, clips[1]])
    assert found.clips[0]["background"] < clean.clips[0]["background"] - 1
    assert "a turn sounds worse than min_overall" in found.reasons
    assert found.clips[1] == clean.clips[1]
    assert check.examine([noisy]).reasons[-1] == "the dialogue sounds worse than min_dialogue"


def test_scores_are_those_of_the_speechmos_package() -> None:
    """Values of speechmos 0.0.1.1 on this noise; a test of the whole package would need librosa."""
    noise = (0.1 * np.random.default_rng(0).standard_normal(30000)).astype(np.float32).clip(-1, 1)
    expected = {"speech": 1.17041, "background": 1.09743, "overall": 1.11377}
    assert mos(windows=None).score(noise) == pytest.approx(expected, abs=2e-4)
    assert mos(windows=1).score(noise) == pytest.approx(expected, abs=0.1)


def test_a_file_that_is_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"x")
    wave = np.zeros(RATE, dtype=np.float32)
    for path, said in ((tmp_path / "none.onnx", "no such file"), (tmp_path / "bad.onnx", "not an ONNX model")):
        with pytest.raises(UserError, match=said):
            mos(path=str(path)).score(wave)
    with pytest.raises(UserError, match="not DNSMOS's"):
        mos(path="asset:dnsmos/model_v8.onnx").score(wave)
    with pytest.raises(UserError, match=r"checks\.mos\.windows"):
        mos(windows=0)


def diarize(**fields: object) -> DiarizationCheck:
    settings = {"path": "asset:speaker_encoder/pretrained.pt", "pipeline": None, "max_error": 0.2, "gap_sec": 0.3}
    settings |= {"window_sec": 1.6, "step_sec": 0.4, "collar_sec": 0.25}
    return DiarizationCheck(**(settings | fields))  # type: ignore[arg-type]


def test_two_speakers_are_told_apart_and_one_in_both_parts_is_not(clips: list[Clip]) -> None:
    check = diarize()
    good = check.examine(clips)
    assert good.reasons == [] and good.dialogue["error"] < 0.15
    one = [clips[0], clips[2], clips[2], clips[0]]
    fake = [Clip(clip.wave_N, RATE, clip.text, ("ada", "joe")[i % 2], Style()) for i, clip in enumerate(one)]
    bad = check.examine(fake)
    assert bad.reasons == ["diarization error above max_error"] and bad.dialogue["error"] > 0.3
    assert check.examine(clips[:1]).dialogue == {"error": None}
    summary = check.summarise([good])
    assert summary["error_mean"] == good.dialogue["error"]


def test_the_timeline_is_the_clips_in_order() -> None:
    tone = (0.1 * np.sin(np.arange(RATE) * 0.3)).astype(np.float32)
    quiet = np.zeros(RATE // 2, dtype=np.float32)
    clips = [
        Clip(np.concatenate([quiet, tone]), RATE, "x", "a", Style()),
        Clip(tone[: RATE // 2], RATE, "x", "b", Style()),
    ]
    line = timeline(clips, 0.2)
    assert len(line.wave_N) == (150 + 20 + 50 + 20) * 160 and len(line.speaker_T) == 240
    assert (line.speaker_T[50:150] == 0).all() and (line.speaker_T[170:220] == 1).all()
    assert (line.speaker_T[:48] == SILENT).all() and (line.speaker_T[152:170] == SILENT).all()
    assert sounding(line.wave_N) == [(50, 150), (170, 220)]
    assert sounding(quiet) == []


frames = st.lists(st.integers(-1, 1), min_size=1, max_size=60)


@given(frames, st.permutations([0, 1]))
def test_names_do_not_matter_and_the_truth_has_no_error(truth: list[int], names: list[int]) -> None:
    truth_T = np.array(truth)
    renamed_T = np.array([SILENT if who == SILENT else names[who] for who in truth])
    assert diarization_error(truth_T, renamed_T, 0.0) == 0.0
    nothing = diarization_error(truth_T, np.full(len(truth), SILENT), 0.0)
    assert nothing == (1.0 if (truth_T != SILENT).any() else 0.0)


@given(frames, frames)
def test_the_error_counts_missed_invented_and_confused(truth: list[int], guess: list[int]) -> None:
    length = min(len(truth), len(guess))
    truth_T, guess_T = np.array(truth[:length]), np.array(guess[:length])
    speech = (truth_T != SILENT).sum()
    if speech == 0:
        return
    straight = (truth_T != guess_T).sum()
    swapped_T = np.where(guess_T == SILENT, SILENT, 1 - guess_T)
    expected = min(straight, (truth_T != swapped_T).sum()) / speech
    assert diarization_error(truth_T, guess_T, 0.0) == pytest.approx(expected)


def test_a_pyannote_pipeline_takes_its_place(clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is not here: a stand-in of its interface, to which our client talks as to the real one."""
    with pytest.raises(UserError, match="pip install pyannote"):
        diarize(pipeline="some/pipeline")
    truth = timeline(clips, 0.3)

    class Annotation:
        def itertracks(self, yield_label: bool) -> Iterator[tuple[object, str, str]]:
            assert yield_label
            for start, stop in sounding(truth.wave_N):
                who = truth.speaker_T[(start + stop) // 2]
                yield SimpleNamespace(start=start / 100, end=stop / 100), "_", f"SPEAKER_{who:02d}"

    class Pipeline:
        @staticmethod
        def from_pretrained(name: str) -> object:
            if name == "broken":
                raise OSError("no such repository")

            def run(audio: dict[str, object], num_speakers: int) -> object:
                wave = audio["waveform"]
                assert isinstance(wave, torch.Tensor) and wave.shape == (1, len(truth.wave_N))
                assert (audio["sample_rate"], num_speakers) == (RATE, 2)
                return SimpleNamespace(speaker_diarization=Annotation()) if name == "four" else Annotation()

            return None if name == "gated" else run

    package, module = ModuleType("pyannote"), ModuleType("pyannote.audio")
    module.Pipeline = Pipeline  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyannote", package)
    monkeypatch.setitem(sys.modules, "pyannote.audio", module)
    monkeypatch.setattr("omnichat.synthesis.checks.diarization.find_spec", lambda name: object())
    for name in ("three", "four"):
        assert diarize(pipeline=name).examine(clips).dialogue["error"] < 0.1
    for name in ("broken", "gated"):
        with pytest.raises(UserError, match=f"pipeline={name}"):
            diarize(pipeline=name).examine(clips)
