"""DailyTalkContiguous (kyutai): one stereo file a dialogue, one speaker a channel, words aligned in time.

*.jsonl                 {"path": "data_stereo/0.wav", "duration": 60.1}
data_stereo/0.wav       stereo
data_stereo/0.json      {"alignments": [["word", [start, end], "SPEAKER_MAIN"], ...]}   seconds
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnichat.data.audit import BadAudio, read_samples
from omnichat.data.corpus import check_inside
from omnichat.data.readers.base import Reader, UniqueIds, words_of
from omnichat.data.readers.dailytalk import SPLITS_FILE
from omnichat.schema import Dialogue, Speaker, Turn
from omnichat.utils.errors import UserError
from omnichat.utils.files import iterate_jsonl, read_json

MAIN = "SPEAKER_MAIN"  # the speaker of the left channel
_LAST_SEC = 1e6  # a later word is a wrong number
_CUT = re.compile(r"(.+)#channel=([01])&t=(\d+\.\d+),(\d+\.\d+)")


@dataclass(frozen=True, slots=True)
class _Word:
    text: str
    start_sec: float
    end_sec: float
    channel: int


class DailyTalkContiguous(Reader):
    """Reader that cuts the stereo files into turns.

    A word belongs to the channel that its label names, SPEAKER_MAIN being the left one. Published files label every
    word SPEAKER_MAIN: there the channel with more energy over the word decides. Consecutive words of one channel
    are one turn, unless a pause of more than `pause_sec` parts them. Who speaks first is A, the user.

    `Turn.audio` is "<file>#channel=<c>&t=<start>,<end>" (seconds), which `read` resolves; `start_seconds` is set.
    Splits follow the dialogue numbers in the file names, as in the official layout.

    Args:
        path: the folder with the .jsonl index.
        pause_sec: a longer pause of the same speaker starts a new turn.
        margin_sec: kept before the first and after the last word of a turn, as alignments cut close.
    """

    name = "dailytalk_contiguous"
    licence = "CC-BY-SA-4.0"
    kind = "real"

    def __init__(self, path: str, pause_sec: float = 2.0, margin_sec: float = 0.1) -> None:
        super().__init__(path)
        indices = sorted(self.root.glob("*.jsonl"))
        if len(indices) != 1:
            raise UserError(f"{self.root}: expected one .jsonl index of the stereo files, found {len(indices)}")
        if pause_sec <= 0 or margin_sec < 0:
            raise UserError(f"pause_sec must be > 0 and margin_sec >= 0, got {pause_sec} and {margin_sec}")
        self.index = indices[0]
        self.pause_sec = pause_sec
        self.margin_sec = margin_sec

    def dialogues(self) -> Iterator[Dialogue]:
        """Yield the dialogues in the order of the index."""
        self.issues = []
        ids = UniqueIds()
        fixed = read_json(SPLITS_FILE)
        splits = {str(number): split for split in ("dev", "test") for number in fixed[split]}
        for line, row in iterate_jsonl(self.index):
            audio = row.get("path")
            if not isinstance(audio, str):
                raise UserError(f"{self.index}:{line}: lacks the field 'path'")
            try:
                check_inside(audio)
            except UserError as error:
                raise UserError(f"{self.index}:{line}: {error}") from None
            stem = PurePosixPath(audio).stem
            ids.take(stem, f"{self.index}:{line}")
            turns = self._turns(audio)
            if len({turn.speaker for turn in turns}) < 2:
                self.issues.append(f"{audio}: skipped, fewer than two speakers have words")
                continue
            yield Dialogue(
                id=f"{self.name}-{stem}",
                source=self.name,
                kind=self.kind,
                scenario="daily",
                split=splits.get(stem, "train"),
                turns=tuple(turns),
                speakers={"A": Speaker(f"{self.name}-first"), "B": Speaker(f"{self.name}-second")},
            )

    def read(self, turn: Turn) -> tuple[Tensor, int]:
        """Cut the turn's channel and time out of its stereo file."""
        match = _CUT.fullmatch(turn.audio or "")
        if match is None:
            raise UserError(f"{self.root}: {turn.audio!r} names no turn of this corpus")
        file, channel, start_sec, end_sec = match.groups()
        check_inside(file)
        samples_NC, rate = self._stereo(self.root / file, float(start_sec), float(end_sec))
        return torch.from_numpy(np.ascontiguousarray(samples_NC[:, int(channel)])), rate

    def _stereo(self, path: Path, start_sec: float, end_sec: float | None) -> tuple[np.ndarray, int]:
        """Samples float32 [N, 2] between two times, and the rate."""
        samples, rate = read_samples(str(path), str(path), start_sec=start_sec, end_sec=end_sec)
        if samples.shape[1] != 2:
            raise BadAudio("not stereo", f"{path}: has {samples.shape[1]} channels, one a speaker are expected")
        return samples, rate

    def _turns(self, audio: str) -> list[Turn]:
        path = self.root / audio
        if (header := self._header(audio)) is None:
            return []
        try:
            labelled = _alignments(path.with_name(f"{path.stem}.json"))
            samples_NC, rate = self._stereo(path, 0.0, None)
        except UserError as error:
            self.issues.append(str(error))
            return []
        words = sorted(_attribute(labelled, samples_NC, rate), key=lambda word: word.start_sec)
        turns: list[Turn] = []
        for group in _group(words, self.pause_sec):
            role = "A" if group[0].channel == words[0].channel else "B"
            start = max(0.0, group[0].start_sec - self.margin_sec)
            end = min(header[1], max(word.end_sec for word in group) + self.margin_sec)
            if round(end - start, 3) <= 0:
                self.issues.append(f"{audio}: a turn at {start:.2f} s skipped, its words lie outside the recording")
                continue
            turns.append(
                Turn(
                    role,
                    " ".join(word.text for word in group),
                    audio=f"{audio}#channel={group[0].channel}&t={start:.3f},{end:.3f}",
                    sample_rate=rate,
                    seconds=round(end - start, 3),
                    start_seconds=round(start, 3),
                )
            )
        return turns


def _group(words: list[_Word], pause_sec: float) -> list[list[_Word]]:
    """Consecutive words of one channel, parted where the pause is longer."""
    groups: list[list[_Word]] = []
    for word in words:
        last = groups[-1][-1] if groups else None
        if last is None or last.channel != word.channel or word.start_sec - last.end_sec > pause_sec:
            groups.append([])
        groups[-1].append(word)
    return groups


def _alignments(path: Path) -> list[tuple[str, float, float, str]]:
    """(word, start, end, label) of one alignment file; UserError names the file and the entry."""
    value = read_json(path)
    if not isinstance(value, dict) or not isinstance(value.get("alignments"), list):
        raise UserError(f"{path}: expected an object with the list 'alignments'")
    return [_entry(path, number, entry) for number, entry in enumerate(value["alignments"]) if _has_word(entry)]


def _has_word(entry: Any) -> bool:
    return not (isinstance(entry, list) and entry and isinstance(entry[0], str) and not entry[0].strip())


def _entry(path: Path, number: int, entry: Any) -> tuple[str, float, float, str]:
    try:
        word, (start, end), label = entry
        start, end = float(start), float(end)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{path}: alignments[{number}] is not [word, [start, end], label]") from None
    said = words_of(word)
    if said is None or not 0 <= start <= end < _LAST_SEC:
        raise UserError(f"{path}: alignments[{number}] is not a word with 0 <= start <= end")
    return said, start, end, str(label)[:80]


def _attribute(labelled: list[tuple[str, float, float, str]], samples_NC: np.ndarray, rate: int) -> list[_Word]:
    """Give every word its channel: by label where labels differ, else by energy."""
    if len({label for *_, label in labelled}) > 1:
        return [_Word(word, start, end, 0 if label == MAIN else 1) for word, start, end, label in labelled]
    words = []
    for word, start, end, _ in labelled:
        first, last = int(start * rate), max(int(end * rate), int(start * rate) + 1)
        energy_C = np.square(samples_NC[first:last].astype(np.float64)).sum(axis=0)
        words.append(_Word(word, start, end, int(energy_C[1] > energy_C[0])))
    return words
