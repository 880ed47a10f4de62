"""DailyTalk in its official layout (Lee, Park and Kim 2023, arXiv 2207.01063).

dailytalk/metadata.json            {"<dialogue>": {"<utterance>": {"text", "speaker", "emotion", ...}}}
dailytalk/data/0/0_1_d0.wav        <utterance>_<speaker>_d<dialogue>.wav, beside it a .txt with the words
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omnichat.data.readers.base import Reader, words_of
from omnichat.schema import Dialogue, Speaker, Style, Turn
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json

STAND_IN_FILE = "STAND_IN"  # in the root of a corpus that was made to take DailyTalk's place
SPLITS_FILE = Path(__file__).with_name("dailytalk_splits.json")
EMOTIONS = {
    "no emotion": "neutral",
    "happiness": "happy",
    "sadness": "sad",
    "anger": "angry",
    "fear": "fearful",
    "surprise": "surprised",
    "disgust": "disgusted",
}
TOPICS = {  # DailyDialog's ten topics by number (Li et al. 2017, arXiv 1710.03957)
    1: "ordinary life",
    2: "school life",
    3: "culture and education",
    4: "attitude and emotion",
    5: "relationship",
    6: "tourism",
    7: "health",
    8: "work",
    9: "politics",
    10: "finance",
}
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a part of a file name
_OWN_SPLITS = {"train": "train", "val": "dev", "valid": "dev", "validation": "dev", "dev": "dev", "test": "test"}


class DailyTalk(Reader):
    """Reader of the official release, of its metadata alone, and of a stand-in in the same layout.

    Who speaks first is A, the user. Two turns of one speaker in a row stay two turns: the recordings are two, and
    joining them is the chat format's business. Words come from the .txt files, which keep the casing, where they are
    there, else from the metadata. A turn without its .wav keeps its words; a dialogue with no recording at all comes as
    words only.

    Splits: the usual 128 validation dialogues are dev; test are 200 dialogues of ours, fixed in dailytalk_splits.json;
    the rest is train. A stand-in keeps the split that its metadata states, or is divided 80/10/10 by a hash of the ids.

    Args:
        path: the folder with metadata.json.
    """

    name = "dailytalk"
    licence = "CC-BY-SA-4.0"
    kind = "real"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        if not (self.root / "metadata.json").is_file():
            raise UserError(
                f"{self.root}: holds no metadata.json; path names the folder of DailyTalk's official release"
            )
        self.stand_in = (self.root / STAND_IN_FILE).is_file()
        if self.stand_in:
            self.name = "dailytalk_stand_in"
            self.licence = "generated; see the file STAND_IN"

    def dialogues(self) -> Iterator[Dialogue]:
        """Yield the dialogues in the order of their numbers."""
        self.issues = []
        metadata_path = self.root / "metadata.json"
        metadata = read_json(metadata_path)
        if not isinstance(metadata, dict) or not metadata:
            raise UserError(f"{metadata_path}: expected an object of dialogues by number")
        splits = self._splits(metadata)
        wordy = 0
        for key in sorted(metadata, key=_number):
            utterances = metadata[key]
            if not isinstance(utterances, dict) or not utterances or not _PLAIN.fullmatch(key):
                self.issues.append(f"dialogue {key[:80]!r}: skipped, no turns or no number in metadata.json")
                continue
            if (dialogue := self._dialogue(key, utterances, splits[key])) is not None:
                wordy += all(turn.audio is None for turn in dialogue.turns)
                yield dialogue
        if wordy:
            self.issues.append(f"{wordy} dialogues have no recordings, words only")

    def _dialogue(self, key: str, utterances: Mapping[str, Any], split: str) -> Dialogue | None:
        recorded = (self.root / "data" / key).is_dir()
        roles: dict[str, str] = {}
        turns = []
        topic: str | None = None
        for number in sorted(utterances, key=_number):
            raw = utterances[number]
            where = f"dialogue {key} turn {number if _PLAIN.fullmatch(number) else repr(number[:40])}"
            if (problem := _problem(number, raw)) is not None:
                self.issues.append(f"{where}: skipped, {problem}")
                continue
            speaker = str(raw["speaker"])
            if speaker not in roles:
                if len(roles) == 2:
                    self.issues.append(f"dialogue {key}: skipped, a third speaker {speaker!r} at turn {number}")
                    return None
                roles[speaker] = "AB"[len(roles)]
            turns.append(self._turn(key, number, raw, roles[speaker], where, recorded))
            topic = _topic(raw) or topic
        if len(roles) < 2:
            self.issues.append(f"dialogue {key}: skipped, {len(roles)} of 2 speakers have turns")
            return None
        stated = (
            next(iter(utterances.values())).get("turn") if isinstance(next(iter(utterances.values())), dict) else None
        )
        if isinstance(stated, int) and stated != len(turns):
            self.issues.append(f"dialogue {key}: {len(turns)} turns where its metadata states {stated}")
        return Dialogue(
            id=f"{self.name}-{key}",
            source=self.name,
            kind=self.kind,
            scenario="daily",
            split=split,
            turns=tuple(turns),
            speakers={role: Speaker(voice=f"{self.name}-{speaker}") for speaker, role in roles.items()},
            topic=topic,
            stand_in=self.stand_in,
        )

    def _turn(self, key: str, number: str, raw: Mapping[str, Any], role: str, where: str, recorded: bool) -> Turn:
        emotion = EMOTIONS.get(str(raw.get("emotion")))
        if emotion is None and raw.get("emotion") is not None:
            self.issues.append(f"{where}: emotion {str(raw['emotion'])[:40]!r} is not one of DailyTalk's, left open")
        style = Style(emotion=emotion)
        words = words_of(raw["text"])
        assert words is not None  # `_problem` has looked
        if not recorded:
            return Turn(role, words, style)
        stem = f"data/{key}/{number}_{raw['speaker']}_d{key}"
        text_file = self.root / f"{stem}.txt"
        if text_file.is_file():
            said = " ".join(text_file.read_text(encoding="utf-8", errors="replace").split())
            if _letters(said) != _letters(words):
                self.issues.append(f"{where}: {text_file.name} and metadata.json differ in words, the file's are taken")
            words = said or words
        header = self._header(f"{stem}.wav")
        if header is None:
            return Turn(role, words, style)
        return Turn(role, words, style, audio=f"{stem}.wav", sample_rate=header[0], seconds=header[1])

    def _splits(self, metadata: Mapping[str, Any]) -> dict[str, str]:
        """Split by dialogue key; see the class for the rule."""
        own = {key: _own_split(value) for key, value in metadata.items()}
        if not self.stand_in:
            fixed = read_json(SPLITS_FILE)
            lists = {str(number): split for split in ("dev", "test") for number in fixed[split]}
            return {key: lists.get(key, split if split in ("dev", "test") else "train") for key, split in own.items()}
        if all(split is not None for split in own.values()):
            return {key: split for key, split in own.items() if split is not None}
        ranked = sorted(metadata, key=lambda key: rule_hash("stand-in", key))
        tenth = max(1, len(ranked) // 10)
        parts = {"test": ranked[:tenth], "dev": ranked[tenth : 2 * tenth], "train": ranked[2 * tenth :]}
        return {key: split for split, keys in parts.items() for key in keys}


def rule_hash(what: str, key: str) -> str:
    """SHA-256 of "dailytalk-<what>-<key>": the order in which ids are drawn for a split, equal everywhere."""
    return hashlib.sha256(f"dailytalk-{what}-{key}".encode()).hexdigest()


def choose_test_ids(train_ids: list[str], count: int = 200) -> list[str]:
    """The rule behind dailytalk_splits.json: the `count` train ids of smallest `rule_hash("test", id)`, by number."""
    return sorted(sorted(train_ids, key=lambda key: rule_hash("test", key))[:count], key=_number)


def _number(key: str) -> tuple[int, int, str]:
    return (0, int(key), key) if key.isdecimal() and len(key) < 19 else (1, 0, key)


def _topic(raw: Mapping[str, Any]) -> str | None:
    """The topic's name: DailyDialog's for a number, or the text that stands there."""
    topic = raw.get("topic")
    if isinstance(topic, int) and not isinstance(topic, bool):
        return TOPICS.get(topic)
    return words_of(topic)


def _letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def _problem(number: str, raw: Any) -> str | None:
    """What makes a turn of the metadata unusable; names become parts of paths, so they must be plain."""
    if not isinstance(raw, dict):
        return "not an object"
    if missing := [name for name in ("text", "speaker") if name not in raw]:
        return f"lacks {missing[0]!r}"
    if not _PLAIN.fullmatch(number) or not _PLAIN.fullmatch(str(raw["speaker"])):
        return f"turn or speaker {str(raw['speaker'])[:40]!r} is not a number"
    return None if words_of(raw["text"]) else "no words"


def _own_split(utterances: Any) -> str | None:
    """The split that the metadata states for a dialogue, in our words; None where it states none."""
    if not isinstance(utterances, dict) or not utterances:
        return None
    first = next(iter(utterances.values()))
    return _OWN_SPLITS.get(str(first.get("split"))) if isinstance(first, dict) else None
