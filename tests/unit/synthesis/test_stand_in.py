"""The stand-in: DailyTalk's layout to the letter, marked as what it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from omnichat.audio.io import audio_info
from omnichat.synthesis.stand_in import EMOTIONS, STAND_IN_FILE, StandInConfig, write_stand_in
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json, sha256_file

FIELDS = {"index", "turn", "topic", "emotion", "act", "speaker", "text", "dialog_idx", "utterance_idx"}


def test_layout_is_dailytalk_s(tmp_path: Path, tone_voice: Any) -> None:
    root = write_stand_in(StandInConfig(out=str(tmp_path / "dailytalk"), dialogues=12, workers=1), tone_voice)
    assert "stand-in, not DailyTalk" in (root / STAND_IN_FILE).read_text()
    assert "Stand-in" in (root / "DATA.md").read_text()
    metadata = read_json(root / "metadata.json")
    assert list(metadata) == [str(n) for n in range(12)]
    files = {str(p.relative_to(root / "data")) for p in (root / "data").rglob("*.*")}
    emotions = []
    for number, turns in metadata.items():
        assert list(turns) == [str(i) for i in range(len(turns))]
        for index, turn in turns.items():
            assert set(turn) == FIELDS
            assert (turn["index"], turn["turn"]) == (f"{number}-{index}", len(turns))
            assert (turn["dialog_idx"], turn["utterance_idx"]) == (int(number), int(index))
            assert turn["emotion"] in EMOTIONS and turn["act"] in {"question", "inform", "directive", "commissive"}
            assert 1 <= turn["topic"] <= 10 and turn["speaker"] in (0, 1)
            assert not re.search(r"[{}]", turn["text"]) and turn["text"][0].isupper()
            stem = f"{number}/{index}_{turn['speaker']}_d{number}"
            assert {f"{stem}.wav", f"{stem}.txt"} <= files
            assert (root / "data" / f"{stem}.txt").read_text() == turn["text"]
            assert audio_info(root / "data" / f"{stem}.wav")[1] > 0.3
            emotions.append(turn["emotion"])
    assert len(files) == 2 * len(emotions)
    assert emotions.count("no emotion") > len(emotions) / 2


def test_same_seed_same_files_for_any_number_of_workers(tmp_path: Path, tone_voice: Any) -> None:
    def hashes(name: str, **changes: Any) -> dict[str, str]:
        root = write_stand_in(StandInConfig(out=str(tmp_path / name), dialogues=3, **changes), tone_voice)
        return {str(p.relative_to(root)): sha256_file(p) for p in root.rglob("*") if p.is_file()}

    first = hashes("a", workers=1)
    assert first == hashes("b", workers=2)
    assert first != hashes("c", workers=1, seed=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dialogues": 0}, "dialogues must be >= 1"),
        ({"exchanges": {2: 0.4}}, "must sum to 1"),
        ({"voices": ["lea"]}, "two different speakers"),
        ({"voices": ["lea", "bob"]}, "choose one of"),
        ({"emotional_share": 2.0}, r"in \[0, 1\]"),
    ],
)
def test_mistakes_name_their_key(tmp_path: Path, tone_voice: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_stand_in(StandInConfig(out=str(tmp_path / "x"), **changes), tone_voice)
    assert not list(tmp_path.iterdir())
