"""Real samples: ShareChatX's demonstration dialogues and DailyTalk. Skipped where the samples are absent."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from omnichat.data.corpus import Corpus
from omnichat.data.prepare import PrepareConfig, prepare
from omnichat.data.readers.dailytalk import DailyTalk
from omnichat.data.readers.sharechatx_demo import ShareChatXDemo
from omnichat.schema import Dialogue, Style

SAMPLES = Path(os.environ.get("OMNICHAT_SAMPLES", Path(__file__).resolve().parents[4] / "shared" / "data"))
SHARECHATX = SAMPLES / "sharechatx_demo"
DAILYTALK = SAMPLES / "dailytalk"
needs_sharechatx = pytest.mark.skipif(not SHARECHATX.is_dir(), reason="the ShareChatX samples are absent")
needs_dailytalk = pytest.mark.skipif(not DAILYTALK.is_dir(), reason="the DailyTalk samples are absent")

EXPECTED = {  # id: (scenario, turns, speaker of the last turn, has a caption)
    "a-1-1": ("emotion", 8, "B", False),
    "a-1-4": ("emotion", 6, "B", False),
    "a-2-1": ("audio", 8, "B", False),
    "a-3-2": ("music", 8, "B", False),
    "c-1": ("emotion", 5, "A", False),
    "c-2": ("emotion", 5, "A", False),
    "d-1": ("audio", 5, "A", True),
    "e-1": ("music", 7, "A", True),
}


@needs_sharechatx
@pytest.mark.parametrize("key", EXPECTED)
def test_sharechatx_dialogue(key: str) -> None:
    reader = ShareChatXDemo(str(SHARECHATX))
    dialogue = next(d for d in reader.dialogues() if d.id == f"sharechatx_demo-{key}")
    scenario, turns, last, captioned = EXPECTED[key]
    assert (dialogue.scenario, len(dialogue.turns), dialogue.turns[-1].speaker) == (scenario, turns, last)
    assert (dialogue.scene is not None) == captioned
    assert dialogue.scene is None or dialogue.scene.placement == ("loop" if scenario == "music" else "under")
    for number, turn in enumerate(dialogue.turns):
        assert turn.speaker == "AB"[number % 2]
        assert all((turn.style.pitch, turn.style.speed, turn.style.emotion))
        wave_N, rate = reader.read(turn)
        assert rate == 16000 and turn.seconds == pytest.approx(len(wave_N) / rate, abs=1e-3)
        assert 1.0 < turn.seconds < 20.0 and float(wave_N.abs().max()) > 0.05


@needs_sharechatx
def test_sharechatx_siblings_are_variants_and_their_replies_differ() -> None:
    reader = ShareChatXDemo(str(SHARECHATX))
    dialogues = {d.id.removeprefix("sharechatx_demo-"): d for d in reader.dialogues()}
    one, two = dialogues["c-1"].turns[-1], dialogues["c-2"].turns[-1]
    assert one.text == two.text and one.style.emotion == "happy" and two.style.emotion == "sad"
    assert one.variant_of == two.variant_of is not None
    others = [turn for key, d in dialogues.items() for turn in d.turns if key not in ("c-1", "c-2")]
    assert all(turn.variant_of is None for turn in others)
    replies = {key.removeprefix("sharechatx_demo-"): value for key, value in reader.replies().items()}
    assert set(replies) == {"c-1", "c-2", "d-1", "e-1"} == {key for key, d in EXPECTED.items() if d[2] == "A"}
    assert all([reply.who for reply in answers] == ["omni", "fun", "qwen"] for answers in replies.values())
    by_who = [{reply.who: reply for reply in replies[key]} for key in ("c-1", "c-2")]
    assert by_who[0]["omni"].style == Style("normal", "normal", "happy")
    assert by_who[1]["omni"].style == Style("low", "slow", "sad")
    assert by_who[0]["fun"].text == by_who[1]["fun"].text  # a system that hears words only answers both alike


@needs_sharechatx
def test_sharechatx_answers_on_dailytalk_belong_to_a_dialogue_that_the_reader_yields() -> None:
    answers = ShareChatXDemo(str(SHARECHATX)).dailytalk_replies()
    assert set(answers) == {"dailytalk-1689"}
    assert answers["dailytalk-1689"][0].style == Style(emotion="neutral")


@needs_sharechatx
def test_sharechatx_prepares_whole(tmp_path: Path) -> None:
    corpus = prepare(ShareChatXDemo(str(SHARECHATX)), PrepareConfig(out=str(tmp_path / "out")))
    assert Corpus.load(tmp_path / "out", "full").summary()["recordings"] == sum(row[1] for row in EXPECTED.values())
    assert corpus.summary()["dialogues"] == len(EXPECTED)


@pytest.fixture(scope="module")
def dailytalk() -> tuple[list[Dialogue], list[str]]:
    reader = DailyTalk(str(DAILYTALK))
    return list(reader.dialogues()), reader.issues


@needs_dailytalk
def test_dailytalk_counts(dailytalk: tuple[list[Dialogue], list[str]]) -> None:
    dialogues, _ = dailytalk
    assert len(dialogues) == 2540
    assert sum(len(d.turns) for d in dialogues) == 23759
    assert Counter(d.split for d in dialogues) == {"train": 2212, "dev": 128, "test": 200}
    emotions = Counter(turn.style.emotion for d in dialogues for turn in d.turns)
    assert emotions == {
        "neutral": 18840,
        "happy": 3961,
        "surprised": 416,
        "sad": 281,
        "angry": 169,
        "disgusted": 73,
        "fearful": 19,
    }
    assert all(d.turns[0].speaker == "A" and {t.speaker for t in d.turns} == {"A", "B"} for d in dialogues)
    assert not any(d.stand_in for d in dialogues)
    twice = [d for d in dialogues if any(a.speaker == b.speaker for a, b in zip(d.turns, d.turns[1:], strict=False))]
    assert len(twice) == 5  # kept as they are


@needs_dailytalk
def test_dailytalk_1689_has_six_turns_and_five_recordings(dailytalk: tuple[list[Dialogue], list[str]]) -> None:
    dialogues, issues = dailytalk
    dialogue = next(d for d in dialogues if d.id == "dailytalk-1689")
    assert [turn.audio is not None for turn in dialogue.turns] == [True] * 5 + [False]
    assert dialogue.turns[3].text == "Not even funny, Billy. This is my new snapshot sticker camera."
    assert dialogue.turns[5].text.startswith("well, there are adhesive strips")
    assert any("5_1_d1689.wav: no such audio file" in issue for issue in issues)
    assert any(issue.startswith("2539 dialogues have no recordings") for issue in issues)
    wave_N, rate = DailyTalk(str(DAILYTALK)).read(dialogue.turns[0])
    assert rate == 16000 and len(wave_N) / rate == pytest.approx(2.2556, abs=1e-3)


@needs_dailytalk
def test_dailytalk_prepares_what_was_recorded_or_all_words(tmp_path: Path) -> None:
    reader = DailyTalk(str(DAILYTALK))
    heard = prepare(reader, PrepareConfig(out=str(tmp_path / "heard")))
    assert [d.id for d in heard.dialogues] == ["dailytalk-1689"]
    assert "| no recordings | need_audio=user | 2539 |" in (tmp_path / "heard" / "README.md").read_text()
    words = prepare(reader, PrepareConfig(out=str(tmp_path / "words"), need_audio="none", splits=["dev", "test"]))
    assert words.summary()["dialogues"] == 328
