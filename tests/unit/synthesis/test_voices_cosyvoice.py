"""CosyVoice by a server on loopback that speaks its protocol, and by a stand-in for its checkout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnichat.schema import Style
from omnichat.synthesis.base import ClipFailed, Utterance, Voice
from omnichat.synthesis.voices import cosyvoice_clients
from omnichat.synthesis.voices.cosyvoice import CosyVoice
from omnichat.utils.errors import UserError
from omnichat.utils.parts import build_part
from tests.contract.test_voices import node
from tests.helpers.voices import RATE, cosy_checkout, cosy_server, hum

TEXT = "They called me today about the garden."


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cosyvoice_clients, "_FIRST_WAIT_SEC", 0.01)


def voice(**fields: Any) -> CosyVoice:
    made = build_part(node("cosyvoice") | fields, "voice", Voice)
    assert isinstance(made, CosyVoice)
    return made


def pcm(wave: np.ndarray) -> bytes:
    return (np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes()


def test_the_paper_s_words_go_out_and_speech_comes_back() -> None:
    with cosy_server() as (address, asked):
        wave, rate = voice(server=address).speak(TEXT, "ada", Style("high", "slow", "sad"), 1)
    assert asked == [
        (
            "POST",
            {
                "tts_text": TEXT,
                "spk_id": "英文女",
                "instruct_text": "A female speaker with high pitch, slow speaking rate, and sad emotion.",
            },
        )
    ]
    expected = len(hum(TEXT, 200.0, 0.06 * 1.3)) / RATE
    assert rate == 16000 and len(wave) / rate == pytest.approx(expected, abs=0.01)


def test_a_release_that_takes_get_is_found_out_once() -> None:
    with cosy_server(methods=("GET",)) as (address, asked):
        spoken = voice(server=address)
        for seed in (1, 2):
            spoken.speak(TEXT, "joe", Style(), seed)
    assert [method for method, _ in asked] == ["GET", "GET"]
    assert asked[0][1]["instruct_text"].endswith("normal pitch, normal speaking rate, and neutral emotion.")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "the speech server sent no samples"),
        (b"\x01\x02\x03", "the speech server sent half a sample"),
        (pcm(hum(TEXT, 100.0))[:1000], "the voice gave a clip of no possible length"),
        (bytes(RATE * 2), "the voice gave silence"),
        (pcm(np.tile(hum(TEXT, 100.0), 30)), "the speech server sent more samples than max_seconds"),
        (500, "the speech server answered with an error"),
        (429, "the speech server answered with an error"),
        ("drop", "the speech server did not answer"),
    ],
)
def test_a_wrong_answer_costs_the_clip_and_not_the_corpus(answer: Any, reason: str) -> None:
    with cosy_server([answer] * 2) as (address, _):
        spoken = voice(server=address, attempts=2)
        with pytest.raises(ClipFailed) as error:
            spoken.speak(TEXT, "ada", Style(), 1)
        assert error.value.reason == reason and "\n" not in str(error.value)
        assert len(spoken.speak(TEXT, "ada", Style(), 1)[0]), "the next one is spoken"


@pytest.mark.parametrize("answer", [500, "drop", b"\x01"])
def test_a_passing_fault_is_asked_again(answer: Any) -> None:
    with cosy_server([answer, answer]) as (address, asked):
        assert len(voice(server=address, attempts=3).speak(TEXT, "ada", Style(), 1)[0])
    assert len(asked) == 3


def test_what_will_not_pass_ends_the_run_in_one_line() -> None:
    with cosy_server(methods=()) as (address, _), pytest.raises(UserError, match="takes neither POST nor GET"):
        voice(server=address).speak(TEXT, "ada", Style(), 1)
    with cosy_server() as (address, _), pytest.raises(UserError, match="answers 404"):
        voice(server=address + "/elsewhere").speak(TEXT, "ada", Style(), 1)
    with pytest.raises(UserError, match="nothing answers at") as error:
        voice(server=address, attempts=2).speak(TEXT, "ada", Style(), 1)  # the server is gone
    assert not isinstance(error.value, ClipFailed)
    with cosy_server([500] * 100) as (address, _):
        spoken = voice(server=address, attempts=1)
        for _ in range(9):
            with pytest.raises(ClipFailed):
                spoken.speak(TEXT, "ada", Style(), 1)
        with pytest.raises(UserError, match="10 clips failed in a row"):
            spoken.speak(TEXT, "ada", Style(), 1)


def test_a_batch_is_asked_together_and_comes_back_in_order() -> None:
    texts = ["Good morning.", "They called me today about the garden.", "My sister told me.", "No."]
    with cosy_server() as (address, asked):
        waves = voice(server=address, concurrency=4).speak_batch([Utterance(t, "ada", Style(), 1) for t in texts])
    assert sorted(form["tts_text"] for _, form in asked) == sorted(texts)
    assert [len(wave) for wave in waves] == pytest.approx([len(hum(t, 200.0)) * 16000 / RATE for t in texts], abs=2)


def test_a_checkout_is_imported_from_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, model = cosy_checkout(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.split(".")[0] == "cosyvoice"]:
        monkeypatch.delitem(sys.modules, name)
    spoken = voice(server=None, checkout=str(root), model=str(model))
    before = np.random.get_state()[1].copy()
    wave, rate = spoken.speak(TEXT, "joe", Style("low"), 3)
    assert np.array_equal(wave, spoken.speak(TEXT, "joe", Style("low"), 3)[0]), "the seed reaches every generator"
    assert not np.array_equal(wave, spoken.speak(TEXT, "joe", Style("low"), 4)[0])
    assert np.array_equal(before, np.random.get_state()[1]), "the program's own randomness goes on as before"
    assert rate == 16000 and len(wave) / rate == pytest.approx(len(hum(TEXT, 80.0)) / RATE, abs=0.01)
    speakers = {"x": {"_target_": "omnichat.synthesis.voices.cosyvoice.CosySpeaker", "id": "英文", "gender": "male"}}
    with pytest.raises(UserError, match=r"voice\.speakers\.x\.id='英文' is not valid"):
        voice(server=None, checkout=str(root), model=str(model), speakers=speakers).speak(TEXT, "x", Style(), 1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"server": None}, "either server"),
        ({"checkout": "x"}, "either server"),
        ({"server": "127.0.0.1:50000"}, "must be an address"),
        ({"server": "ftp://here"}, "must be an address"),
        ({"server": None, "checkout": "x"}, "voice.model is null"),
        ({"server": None, "checkout": "x", "model": "y"}, "no CosyVoice repository"),
        ({"instruct": "A {sex} speaker"}, "instruct field"),
        ({"instruct": "A {gender speaker"}, "cannot be filled"),
        ({"instruct": "{gender}<endofprompt>"}, "added by CosyVoice itself"),
        ({"speakers": {}}, "speakers is empty"),
        ({"attempts": 0}, "voice.attempts must be >= 1"),
        ({"max_seconds": 0.0}, "max_seconds must be in"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_asked(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=r"voice") as error:
        voice(**fields)
    assert said in str(error.value) and "\n" not in str(error.value)
