"""Replies spoken aloud and measured: word error rate as Whisper hears them, and DNSMOS of how they sound.

A reply is spoken in its predicted style, by one speaker. Replies go in batches that are cut from the file as it is, and
each batch is spoken and heard by one process on one thread: neither kills nor the number of workers show in the result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omnichat.audio.io import load_audio, save_audio
from omnichat.evaluation.partial import PartialReplies
from omnichat.evaluation.predictions import Prediction
from omnichat.evaluation.sidecars import sidecar_path
from omnichat.schema import Style
from omnichat.synthesis.base import MAX_WORD_LETTERS, ClipFailed, Utterance, Voice, Wave
from omnichat.synthesis.checked_voice import CheckedVoice
from omnichat.synthesis.checks.mos import RATE_HZ, MosCheck
from omnichat.synthesis.checks.words import WINDOW_SEC, WordErrorCheck
from omnichat.synthesis.engines.local import LocalEngine
from omnichat.synthesis.versions import versions
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import sha256_bytes, write_jsonl_atomic
from omnichat.utils.log import get_logger
from omnichat.utils.progress import progress
from omnichat.utils.seeding import derive_seed

log = get_logger(__name__)

NOTHING_SAID = "the reply is empty"
LONG_WORD = f"a word of more than {MAX_WORD_LETTERS} letters"
_TRIES = 3  # seeds with which a reply is tried that the voice fails on
_CUT_SEC = (20.0, 29.0)  # where a clip that is longer than Whisper hears at once may be cut
_QUIET_SEC = 0.2  # length of the quietest moment, in which it is


@dataclass(frozen=True, slots=True)
class SpokenReply:
    """Figures of one reply.

    Attributes:
        reply_wer: word errors over words; 1.0 where nothing could be spoken, more than 1 where more is heard than said.
        reply_dnsmos: DNSMOS P.835 overall, 1 to 5; None where there is no recording, or where it is not asked for.
        audio_file: relative to the folder of the predictions file; None where there is no recording.
        problem: why there is none.
    """

    source: str
    id: str
    reply_wer: float
    reply_dnsmos: float | None
    audio_file: str | None
    problem: str | None

    def to_json(self) -> dict[str, Any]:
        """A line of <stem>.speech.jsonl."""
        return {name: value for name, value in asdict(self).items() if name != "problem"}


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply as it is to be spoken: its number in the file, the words, the style, and where the recording goes."""

    number: int
    source: str
    id: str
    text: str
    style: Style
    audio_file: str


@dataclass(frozen=True, slots=True)
class Speaking:
    """What speaks and measures; pickled once for each process.

    Attributes:
        speaker: one of the voice's. words, mos: the measures; their limits play no part, and `mos` may be None.
        seed: of the voice's variation from clip to clip. folder: of the predictions file.
    """

    voice: Voice
    speaker: str
    words: WordErrorCheck
    mos: MosCheck | None
    seed: int
    folder: Path

    def settings(self) -> dict[str, Any]:
        """All that decides the figures besides the replies: JSON."""
        checks = {check.name: check for check in (self.words, self.mos) if check is not None}
        measures = {n: {k: v for k, v in vars(c).items() if not k.startswith("_")} for n, c in checks.items()}
        return {
            "versions": versions(),
            "voice": self.voice.describe(),
            "speaker": self.speaker,
            "seed": self.seed,
            "checks": measures,
        }


def speak_file(
    path: Path, predictions: Sequence[Prediction], speaking: Speaking, workers: int, batch: int
) -> list[SpokenReply]:
    """Speak and measure every reply of a predictions file; write `<stem>.speech.jsonl` and the recordings beside it.

    Batches that were finished before, by the same settings, are taken as they are.

    Args:
        workers: processes. batch: replies that are spoken and heard together.

    Raises:
        UserError: a speaker that the voice lacks, or a voice or measure that cannot work at all.
    """
    if speaking.speaker not in speaking.voice.speakers:
        raise one_of("speaker", speaking.speaker, speaking.voice.speakers)
    if batch < 1:
        raise UserError(f"batch must be >= 1, got {batch}")
    replies = [_reply(number, prediction, path.stem) for number, prediction in enumerate(predictions)]
    sets = {**speaking.settings(), "batch": batch, "replies": [asdict(reply) for reply in replies]}
    key = sha256_bytes(json.dumps(sets, sort_keys=True, default=str).encode())
    partial = PartialReplies(path.parent / "speech" / path.stem / "rows.jsonl", key)
    out = sidecar_path(path, "speech")
    if not partial.done:
        out.unlink(missing_ok=True)  # it would be of recordings that are now replaced, one by one
    found = {number: SpokenReply(**json.loads(row)) for number, row in partial.done.items()}
    batches = [replies[start : start + batch] for start in range(0, len(replies), batch)]
    missing = [each for each in batches if not _finished(each, found, path.parent)]
    done = len(replies) - sum(map(len, missing))
    if done:
        log.info("%s: %d of %d replies were spoken before", path, done, len(replies))
    bar = progress(len(replies), "speak", unit="reply", initial=done)
    with bar, partial, LocalEngine(workers).start(_speak_and_measure, speaking) as run:
        for spoken in run(missing):
            partial.add({number: json.dumps(asdict(each)) for number, each in spoken.items()})
            found |= spoken
            bar.update(len(spoken))
    rows = [found[reply.number] for reply in replies]
    write_jsonl_atomic(out, [row.to_json() for row in rows])
    return rows


def _reply(number: int, prediction: Prediction, stem: str) -> Reply:
    """A reply as it is spoken: in the style that was predicted, plainly where none could be read."""
    return Reply(
        number,
        prediction.source,
        prediction.id,
        " ".join(prediction.hypothesis.text.split()),
        prediction.hypothesis.style or Style(),
        f"speech/{stem}/{_file_name(prediction)}.wav",
    )


def _file_name(prediction: Prediction) -> str:
    """A name for people, safe on every file system, and another one for every reply."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", prediction.key).strip("-")[:60]
    return f"{plain}-{sha256_bytes(json.dumps([prediction.source, prediction.id]).encode())[:12]}"


def _finished(replies: Sequence[Reply], found: dict[int, SpokenReply], folder: Path) -> bool:
    rows = [found.get(reply.number) for reply in replies]
    return all(row is not None and (row.audio_file is None or (folder / row.audio_file).is_file()) for row in rows)


def _speak_and_measure(replies: Sequence[Reply], speaking: Speaking) -> dict[int, SpokenReply]:
    """One batch: speak, keep, then measure what was kept."""
    problems = {reply.number: problem for reply in replies if (problem := _unspeakable(reply.text)) is not None}
    clips: dict[int, Wave] = {}
    for reply, wave in _speak([reply for reply in replies if reply.number not in problems], speaking):
        if isinstance(wave, str):
            problems[reply.number] = wave
            continue
        save_audio(speaking.folder / reply.audio_file, wave, speaking.voice.sample_rate)
        clips[reply.number] = load_audio(speaking.folder / reply.audio_file, RATE_HZ).numpy()
    said = [reply for reply in replies if reply.number in clips]
    rates = _word_error_rates(speaking.words, [reply.text for reply in said], [clips[reply.number] for reply in said])
    spoken = {}
    for reply, rate in zip(said, rates, strict=True):
        mos = None if speaking.mos is None else float(speaking.mos.score(clips[reply.number])["overall"])
        spoken[reply.number] = SpokenReply(reply.source, reply.id, rate, mos, reply.audio_file, None)
    for reply in replies:
        if reply.number in problems:
            spoken[reply.number] = SpokenReply(reply.source, reply.id, 1.0, None, None, problems[reply.number])
    return spoken


def _unspeakable(text: str) -> str | None:
    if not any(letter.isalnum() for letter in text):
        return NOTHING_SAID
    return LONG_WORD if any(len(word) > MAX_WORD_LETTERS for word in text.split()) else None


def _speak(replies: Sequence[Reply], speaking: Speaking) -> list[tuple[Reply, Wave | str]]:
    """Each reply with its clip, or with the reason why the voice gave none."""
    voice = CheckedVoice(speaking.voice)

    def line(reply: Reply, attempt: int) -> Utterance:
        seed = derive_seed(speaking.seed, "speak", reply.source, reply.id, attempt)
        return Utterance(reply.text, speaking.speaker, reply.style, seed)

    if not replies:
        return []
    try:
        return list(zip(replies, voice.speak_batch([line(reply, 0) for reply in replies]), strict=True))
    except ClipFailed as error:
        log.debug("a batch failed (%s): its replies are spoken one by one", error)
    made: list[tuple[Reply, Wave | str]] = []
    for reply in replies:
        wave: Wave | str = ""
        for attempt in range(_TRIES):
            try:
                wave = voice.speak_batch([line(reply, attempt)])[0]
                break
            except ClipFailed as error:
                wave = error.reason
        made.append((reply, wave))
    return made


def _word_error_rates(words: WordErrorCheck, texts: Sequence[str], waves: Sequence[Wave]) -> list[float]:
    """Word error rate of each clip, 16 kHz: heard in a short window first, and in Whisper's own where that errs."""
    heard = _transcribe(words, waves, words.context_sec)
    rates = [_rate(words, text, said) for text, said in zip(texts, heard, strict=True)]
    again = [place for place, rate in enumerate(rates) if rate > 0]
    for place, said in zip(again, _transcribe(words, [waves[place] for place in again], WINDOW_SEC), strict=True):
        rates[place] = _rate(words, texts[place], said)
    return rates


def _rate(words: WordErrorCheck, text: str, heard: str) -> float:
    """Word error rate; of a reply of nothing but fillers ("hmm"), which are not compared, whether anything is heard."""
    if not words.words(text):
        return float(bool(words.words(heard)))
    errors, count = words.word_errors(text, heard)
    return errors / count


def _transcribe(words: WordErrorCheck, waves: Sequence[Wave], window_sec: float) -> list[str]:
    """Transcripts of clips of any length: one that is longer than Whisper hears at once is cut where it is quiet."""
    pieces = [(place, piece) for place, wave in enumerate(waves) for piece in cut(wave, RATE_HZ)]
    heard = words.transcribe([piece for _, piece in pieces], window_sec)
    texts: list[list[str]] = [[] for _ in waves]
    for (place, _), text in zip(pieces, heard, strict=True):
        texts[place].append(text)
    return [" ".join(parts) for parts in texts]


def cut(wave_N: Wave, rate_hz: int) -> list[Wave]:
    """Pieces of a mono clip, none longer than Whisper's 30 s, cut in the quietest moment of the third ten seconds."""
    pieces = []
    while len(wave_N) > WINDOW_SEC * rate_hz:
        low, high = (round(second * rate_hz) for second in _CUT_SEC)
        frame = round(_QUIET_SEC * rate_hz)
        energy_F = np.square(wave_N[low:high].astype(np.float64))[: (high - low) // frame * frame]
        quietest = int(energy_F.reshape(-1, frame).sum(axis=1).argmin())
        at = low + quietest * frame + frame // 2
        pieces.append(wave_N[:at])
        wave_N = wave_N[at:]
    return [*pieces, wave_N]
