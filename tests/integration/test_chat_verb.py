"""`omnichat chat` on a small saved model: recordings, sessions by pipe, spoken replies, mistakes."""

from __future__ import annotations

import io
import json
import queue
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from omnichat import chat_verb
from omnichat.audio.io import save_audio
from omnichat.chat.base import DecodingConfig
from omnichat.chat.listening import Microphone
from omnichat.chat.record import ChatRecord
from omnichat.chat.session import Session
from omnichat.chat.speaking import ReplyVoice
from omnichat.model.pretrained.conversation import Said, Sound, sound_of
from omnichat.schema import Style
from omnichat.synthesis.base import Voice
from omnichat.utils.errors import UserError
from tests.helpers.talkers import small_talker, tone
from tests.integration.conftest import Outcome

Cli = Callable[..., Outcome]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "small"
    talker = small_talker()
    talker.model.save_pretrained(folder)
    talker.processor.save_pretrained(folder)
    return folder


@pytest.fixture
def recordings(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "one.wav", tmp_path / "two.flac"]
    for path, sound in zip(paths, (tone(0.8, 300.0), tone(1.2, 150.0, 22_050)), strict=True):
        save_audio(path, sound.wave_N, sound.sample_rate)
    return paths


def test_recordings_are_answered_as_turns_of_one_dialogue(saved: Path, recordings: list[Path], omnichat: Cli) -> None:
    audio = f"audio=[{','.join(map(str, recordings))}]"
    outcome = omnichat("chat", f"run={saved}", audio, "decoding.max_new_tokens=6")
    assert outcome.code == 0, outcome.err
    dialogue = json.loads(Path("chats/small/dialogue.json").read_text())
    assert [turn["role"] for turn in dialogue["turns"]] == ["user", "assistant"] * 2
    assert all(turn["words"] in outcome.out for turn in dialogue["turns"][1::2])
    assert soundfile.info("chats/small/turn-02.wav").samplerate == 22_050
    assert "of them kept" in outcome.out
    assert outcome.out.splitlines()[-1] == f"next: omnichat web run={saved}"
    again = omnichat("chat", f"run={saved}", audio, "decoding.max_new_tokens=6", "keep_cache=false")
    assert (
        again.code == 0
        and json.loads(Path("chats/small-2/dialogue.json").read_text())["turns"][3]["words"]
        == (dialogue["turns"][3]["words"])
    )


def test_a_session_is_typed(
    saved: Path, recordings: list[Path], omnichat: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        str(recordings[0]),
        "missing.wav",
        "Tell me more.",
        "/again",
        "/what",
        "/new",
        "~hello there.",
        "",
        "never",
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    outcome = omnichat("chat", f"run={saved}", "decoding.max_new_tokens=5", "out=talk")
    assert outcome.code == 0, outcome.err
    assert "error: missing.wav: no such audio file" in outcome.err and "Traceback" not in outcome.err
    first = json.loads(Path("talk/dialogue.json").read_text())["turns"]
    assert len(first) == 4 and first[2]["words"] == "Tell me more."  # /again took its own reply back
    assert json.loads(Path("talk-2/dialogue.json").read_text())["turns"][0]["words"] == "~hello there."


def test_a_microphone_is_heard_from_when_it_is_said(
    saved: Path, omnichat: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks from before belong to no turn."""

    class Blocks(Microphone):
        def __init__(self, device: int | str | None = None) -> None:
            self._blocks = queue.Queue()
            self._blocks.put(np.full(4_000, 0.5, np.float32))
            self._said = [np.full(2_000, 0.25, np.float32)]

        def clear(self) -> None:
            super().clear()
            for block in (*self._said, None):
                self._blocks.put(block)
            self._said = []

        def close(self) -> None:
            pass

    def turns(blocks: Iterable[np.ndarray], _: object) -> Iterator[Sound]:
        yield from (sound_of(block, 16_000) for block in blocks)

    monkeypatch.setattr(chat_verb, "Microphone", Blocks)
    monkeypatch.setattr(chat_verb, "turns_from", turns)
    outcome = omnichat("chat", f"run={saved}", "mic=true", "decoding.max_new_tokens=3", "out=spoken")
    assert outcome.code == 0, outcome.err
    heard = json.loads(Path("spoken/dialogue.json").read_text())["turns"]
    assert [turn["seconds"] for turn in heard[::2]] == [0.125]


class Mute(Voice):
    """A voice whose server is gone."""

    @property
    def speakers(self) -> dict[str, str | None]:
        return {"ada": "female"}

    @property
    def sample_rate(self) -> int:
        return 16_000

    def speak(self, text: str, speaker: str, style: Style, seed: int) -> tuple[np.ndarray, int]:
        raise UserError("the voice's server does not answer")

    def describe(self) -> dict[str, Any]:
        return {}


def test_a_voice_that_fails_leaves_the_words(tmp_path: Path) -> None:
    session = Session(small_talker(), DecodingConfig(max_new_tokens=3))
    record = ChatRecord(tmp_path / "talk", session, ReplyVoice(Mute()))
    answer = replace(session.answer(Said("user", tone(0.8))), words="Well, yes.")
    assert record.keep(session.turns[-2], answer) is None
    kept = json.loads(record.path.read_text())["turns"]
    assert kept[1]["words"] == "Well, yes." and "audio" not in kept[1]


@pytest.mark.slow
def test_a_reply_is_spoken(saved: Path, recordings: list[Path], omnichat: Cli) -> None:
    pytest.importorskip("piper")
    pytest.importorskip("parselmouth")
    out = omnichat("chat", f"run={saved}", f"audio={recordings[0]}", "voice=piper", "speaker=ada", "out=t")
    assert out.code == 0, out.err
    wave, rate = soundfile.read("t/reply-01.wav")
    assert rate == 16_000 and len(wave) > rate // 2 and float(abs(wave).max()) > 0.05
    assert "spoken: t/reply-01.wav" in out.out


@pytest.mark.slow
def test_a_recogniser_hears_recordings_of_any_length(tmp_path: Path, omnichat: Cli) -> None:
    """Whisper hears 30 s at once; a model that reads words is given those of a longer turn as well."""
    reader = small_talker("text")
    reader.model.save_pretrained(tmp_path / "reader")
    reader.processor.save_pretrained(tmp_path / "reader")
    save_audio(tmp_path / "long.wav", tone(31.0).wave_N, 16_000)
    asked = [f"run={tmp_path / 'reader'}", f"audio={tmp_path / 'long.wav'}", "decoding.max_new_tokens=3", "out=r"]
    unheard = omnichat("chat", *asked)
    assert unheard.code == 2 and "reads words" in unheard.err
    heard = omnichat("chat", *asked, "recogniser=asset:whisper_tiny_en")
    assert heard.code == 0, heard.err
    assert json.loads(Path("r/dialogue.json").read_text())["turns"][0]["words"]


@pytest.mark.slow
def test_turns_end_where_the_speech_does(tmp_path: Path, saved: Path, omnichat: Cli) -> None:
    """Two spoken sentences with a pause between them, in one recording, are two turns."""
    pytest.importorskip("silero_vad")
    pytest.importorskip("piper")
    pytest.importorskip("parselmouth")
    from omnichat.chat.listening import VadConfig, turns_of
    from omnichat.utils.parts import build_part
    from tests.helpers.talkers import node

    voice: Voice = build_part(node("voice", "piper"), "voice", Voice)
    said = [
        torch.from_numpy(voice.speak(text, "joe", Style(), 0)[0]) for text in ("How are you today?", "Tell me more.")
    ]
    pause = 0.001 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    whole = torch.cat([pause, said[0], pause, said[1], pause]).clamp(-1, 1)
    turns = turns_of(sound_of(whole, 16_000), VadConfig())
    assert len(turns) == 2
    for turn, wave in zip(turns, said, strict=True):
        assert abs(turn.seconds - len(wave) / 16_000) < 0.6
    assert turns_of(sound_of(pause, 16_000), VadConfig()) == []
    cut = turns_of(sound_of(whole, 16_000), VadConfig(max_turn_sec=0.5, min_speech_sec=0.1, pad_sec=0.0))
    assert len(cut) > 2 and max(turn.seconds for turn in cut) <= 0.6
    save_audio(tmp_path / "call.wav", whole, 16_000)
    outcome = omnichat("chat", f"run={saved}", f"audio={tmp_path / 'call.wav'}", "split=true", "out=c")
    assert outcome.code == 0 and len(json.loads(Path("c/dialogue.json").read_text())["turns"]) == 4
    save_audio(tmp_path / "noise.wav", pause, 16_000)
    silent = omnichat("chat", f"run={saved}", f"audio={tmp_path / 'noise.wav'}", "split=true")
    assert silent.code == 2 and "no speech is found" in silent.err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["audio=missing.wav"], "audio=missing.wav: no such file"),
        (["run=nowhere/at/all"], "run=nowhere/at/all: no such folder"),
        (["run=."], "neither a run folder"),
        (["audio=a.wav", "mic=true"], "exclude each other"),
        (["decoding.beams=0"], "decoding.beams must be at least 1"),
        (["precision=fp8"], "precision"),
        (["vad.threshold=2"], "vad.threshold"),
        (["checkpoints=last"], "checkpoints"),
    ],
)
def test_a_mistake_is_one_line(saved: Path, omnichat: Cli, settings: list[str], message: str) -> None:
    asked = settings if settings[0].startswith("run=") else [f"run={saved}", *settings]
    outcome = omnichat("chat", *asked, *([] if any("audio" in s for s in asked) else ["words=hi"]))
    assert outcome.code == 2 and message in outcome.err and "Traceback" not in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_a_microphone_that_is_not_there_is_said_in_a_line(saved: Path, omnichat: Cli) -> None:
    outcome = omnichat("chat", f"run={saved}", "mic=no such device")
    assert outcome.code == 2 and ("PortAudio" in outcome.err or "mic=no such device" in outcome.err), outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_the_python_of_the_documentation_runs(saved: Path, recordings: list[Path], tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "CHAT.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        for shown, real in (("exports/demo", saved), ("runs/demo/speech", saved), ("hello.wav", recordings[0])):
            block = block.replace(f'"{shown}"', repr(str(real)))
        exec(block, {})
