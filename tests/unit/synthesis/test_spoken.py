"""Spoken replies: every reply has its figures, whatever happened, and neither kills nor workers show in them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from omnichat.evaluation.predictions import Prediction
from omnichat.schema import Style
from omnichat.synthesis import spoken
from omnichat.synthesis.spoken import LONG_WORD, NOTHING_SAID, Speaking, SpokenReply, cut, speak_file
from omnichat.utils.errors import UserError
from tests.helpers.speaking import RATE, Buzz, Ear
from tests.unit.evaluation.builders import build

TEXTS = ["Oh no.", "How lovely for you!", "Is that so?", "I see it now.", "Hmm.", "Never again."]
EMOTIONS = ["happy", "sad", "angry", "fearful", "neutral", None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "predictions" / "test.jsonl"


def replies(texts: list[str] = TEXTS) -> list[Prediction]:
    return [build(f"d{n}", 3, hypothesis=text, got=EMOTIONS[n % 6]) for n, text in enumerate(texts)]


def speaking(path: Path, voice: Any = None, ear: Any = None, **changed: Any) -> Speaking:
    voice = voice or Buzz(TEXTS, path.parent / "log")
    path.parent.mkdir(exist_ok=True)
    return replace(Speaking(voice, "ann", ear or Ear(TEXTS), None, 0, path.parent), **changed)


def speak(path: Path, what: list[Prediction] | None = None, workers: int = 1, **given: Any) -> list[SpokenReply]:
    return speak_file(path, replies() if what is None else what, speaking(path, **given), workers, 2)


def files(path: Path) -> dict[str, bytes]:
    """All that a run leaves, but for its notes."""
    found = [each for each in path.parent.rglob("*") if each.is_file() and each.name not in ("log", "rows.jsonl")]
    return {str(each.relative_to(path.parent)): each.read_bytes() for each in found}


def test_each_reply_is_spoken_in_its_style_and_has_a_row(path: Path) -> None:
    voice = Buzz(TEXTS, path.parent / "log")
    rows = speak(path, voice=voice, ear=Ear(TEXTS, {"Is that so?": "Is that toe now?"}))
    kept = [json.loads(line) for line in path.with_name("test.speech.jsonl").read_text().splitlines()]
    assert kept == [row.to_json() for row in rows]
    assert [row["id"] for row in kept] == [f"d{n}#3" for n in range(6)]
    assert set(kept[0]) == {"source", "id", "reply_wer", "reply_dnsmos", "audio_file"}
    assert [row["reply_wer"] for row in kept] == [0, 0, pytest.approx(2 / 3), 0, 0, 0]
    spoken_as = [line.split("|")[1:] for line in voice.log.read_text().splitlines()]
    assert spoken_as == [["ann", str(emotion)] for emotion in EMOTIONS], "a style that was not read is spoken plainly"
    for row in kept:
        info = soundfile.info(path.parent / row["audio_file"])
        assert info.samplerate == RATE and row["audio_file"].startswith("speech/test/toy-d")
    assert len({row["audio_file"] for row in kept}) == 6


@pytest.mark.parametrize("text", ["", "  ", "...", "?!", "\N{THUMBS UP SIGN}"])
def test_an_empty_reply_counts_as_all_words_wrong(text: str, path: Path) -> None:
    rows = speak(path, replies([TEXTS[0], text, TEXTS[1]]))
    assert [row.reply_wer for row in rows] == [0.0, 1.0, 0.0]
    assert rows[1] == SpokenReply("toy", "d1#3", 1.0, None, None, NOTHING_SAID)
    assert len(list(path.parent.rglob("*.wav"))) == 2


def test_a_reply_without_any_other_is_empty_too(path: Path) -> None:
    assert [row.reply_wer for row in speak(path, replies([""]))] == [1.0]


def test_a_word_without_end_is_not_spoken(path: Path) -> None:
    rows = speak(path, replies([TEXTS[0], "a" * 61]))
    assert rows[1].problem == LONG_WORD and rows[1].reply_wer == 1.0


@pytest.mark.parametrize(("heard", "rate"), [("Mm.", 0.0), ("", 0.0), ("Go home.", 1.0)])
def test_a_reply_of_nothing_but_fillers_is_right_where_no_word_is_heard(heard: str, rate: float, path: Path) -> None:
    assert speak(path, replies(["Hmm."]), ear=Ear(TEXTS, {"Hmm.": heard}))[0].reply_wer == rate


def test_what_is_misheard_in_the_short_window_is_heard_again(path: Path) -> None:
    ear = Ear(TEXTS, {"Oh no.": "Oh yes."}, early={"Is that so?": "Is that toe?", "Oh yes.": "Oh no."})
    rows = speak(path, ear=ear)
    assert [row.reply_wer for row in rows] == [0] * 6
    early = Ear(TEXTS, {"Oh no.": "Oh yes."}, early={"Oh yes.": "Ho no."})
    assert speak(path, ear=early, seed=1)[0].reply_wer == 0.5, "then the second listening counts"


def test_one_failed_clip_hurts_no_other_and_is_tried_again(path: Path) -> None:
    expected = speak(path)
    again = path.parent.with_name("again") / "test.jsonl"
    rows = speak(again, voice=Buzz(TEXTS, again.parent / "log", {TEXTS[0]: 3, TEXTS[2]: 99}))
    assert rows[0] == expected[0], "its third try went well: the batch's, its own first, its second"
    assert rows[2] == SpokenReply("toy", "d2#3", 1.0, None, None, "the voice gave silence")
    assert [rows[n] for n in (1, 3, 4, 5)] == [expected[n] for n in (1, 3, 4, 5)]


def test_a_run_that_was_killed_ends_in_the_same_bytes(path: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole" / "test.jsonl"
    rows = speak(whole)
    with pytest.raises(KeyboardInterrupt):
        speak(path, voice=Buzz(TEXTS, path.parent / "log", dies_at=TEXTS[3]))
    assert not path.with_name("test.speech.jsonl").exists()
    voice = Buzz(TEXTS, path.parent / "second")
    assert speak(path, voice=voice) == rows
    assert voice.spoken() == TEXTS[2:], "the batch that was cut short, and what follows"
    (path.parent / "second").unlink()
    assert files(path) == files(whole)


def test_a_finished_run_speaks_nothing_and_another_setting_speaks_all(path: Path) -> None:
    voice = Buzz(TEXTS, path.parent / "log")
    first = speak(path, voice=voice)
    before = files(path)
    assert speak(path, voice=voice) == first and len(voice.spoken()) == 6 and files(path) == before
    (path.parent / str(first[3].audio_file)).unlink()
    assert speak(path, voice=voice) == first and voice.spoken()[6:] == TEXTS[2:4] and files(path) == before
    for number, changed in enumerate([{"seed": 1}, {"speaker": "bob"}, {"ear": Ear(TEXTS, early={"x": "y"})}], start=1):
        speak(path, voice=voice, **changed)
        assert len(voice.spoken()) == 8 + 6 * number
    speak(path, replies(TEXTS[:4]), voice=voice)
    assert len(voice.spoken()) == 8 + 18 + 4


def test_figures_of_recordings_that_are_being_replaced_are_taken_away(path: Path) -> None:
    speak(path)
    with pytest.raises(KeyboardInterrupt):
        speak(path, seed=1, voice=Buzz(TEXTS, path.parent / "log", dies_at=TEXTS[3]))
    assert not path.with_name("test.speech.jsonl").exists()


def test_the_number_of_workers_does_not_show(path: Path, tmp_path: Path) -> None:
    one = tmp_path / "one" / "test.jsonl"
    assert speak(one) == speak(path, workers=2)
    assert files(one) == files(path)


def test_names_are_safe_and_differ(path: Path) -> None:
    ids = ["../../etc/x", "..\\x", "a b", "a-b", "a/b", "\N{LATIN SMALL LETTER A WITH DIAERESIS}", "x" * 300, "CON", ""]
    what = [build(name, 3, hypothesis=TEXTS[0], got=None) for name in ids]
    what.append(build("a b", 3, hypothesis=TEXTS[0], source="a"))
    names = [str(row.audio_file) for row in speak(path, what)]
    assert len(set(names)) == len(what)
    for name in names:
        inside = (path.parent / name).resolve()
        assert inside.parent == (path.parent / "speech" / "test").resolve() and inside.is_file()
        assert len(inside.name) < 100 and inside.name.isascii()


def test_an_unknown_speaker_and_an_empty_batch_are_refused(path: Path) -> None:
    with pytest.raises(UserError, match=r"speaker='eve' is not valid.*ann, bob"):
        speak(path, speaker="eve")
    with pytest.raises(UserError, match="batch must be >= 1"):
        speak_file(path, replies(), speaking(path), 1, 0)


@given(st.floats(0.0, 100.0), st.integers(0, 5))
def test_a_long_clip_is_cut_into_what_whisper_hears(seconds: float, seed: int) -> None:
    wave = np.random.default_rng(seed).standard_normal(round(seconds * 100)).astype(np.float32)
    pieces = cut(wave, 100)
    assert np.array_equal(np.concatenate(pieces), wave)
    assert all(len(piece) <= 3000 for piece in pieces) and all(len(piece) >= 2000 for piece in pieces[:-1])


def test_a_long_clip_is_cut_where_it_is_quiet() -> None:
    wave = np.ones(35 * RATE, dtype=np.float32)
    wave[round(24.5 * RATE) : 25 * RATE] = 0
    first, _ = cut(wave, RATE)
    assert 24.5 <= len(first) / RATE <= 25


def test_a_clip_of_more_than_thirty_seconds_is_heard_in_pieces() -> None:
    waves = [np.zeros(45 * RATE, dtype=np.float32), np.zeros(16000, dtype=np.float32)]
    assert spoken._transcribe(Ear(TEXTS), waves, 10.0) == ["many words many words", TEXTS[0]]


def test_a_style_that_could_not_be_read_is_plain() -> None:
    assert spoken._reply(0, build(got=None), "test").style == Style()
