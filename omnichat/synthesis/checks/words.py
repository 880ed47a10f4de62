"""Are the words there? Whisper's word error rate against the script (the paper's check, 5 % there)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence, Set
from typing import Any

import jiwer
import numpy as np
from whisper.normalizers import EnglishTextNormalizer

from omnichat.encoders.whisper_asr import RATE_HZ, WINDOW_SEC, WhisperTranscriber
from omnichat.synthesis.checks.base import Check, Clip, Finding, histogram, need_rate, unusable
from omnichat.utils.assets import resolve_path
from omnichat.utils.errors import UserError

WER_EDGES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
_DTYPES = ("float32", "bfloat16")


class WordErrorCheck(Check):
    """Word error rate of a dialogue and of each turn, after Whisper's English normaliser on both sides.

    One slip in a sentence of six words is 17 %, so a turn's limit is loose and the dialogue's pooled rate is the strict
    one. Clips are first heard in windows of their own length (see `WhisperTranscriber`), many times cheaper than 30 s.
    Before a dialogue is refused for good, its turns with errors are heard again in the full window, and that counts:
    the worst first, until what was heard in full is by itself too much or nothing is left to hear.

    Args:
        path: Whisper weights (CTranslate2 folder, OpenAI .pt, or safetensors folder).
        max_dialogue_wer: limit of errors over all turns divided by all words.
        max_turn_wer: limit of one turn.
        context_sec: shortest window of the first listening, in seconds; longer clips get their length and a second.
        dtype: "float32" or "bfloat16" (of the encoder).
        max_tokens: longest transcript of a clip.
    """

    name = "words"

    def __init__(
        self,
        path: str,
        max_dialogue_wer: float,
        max_turn_wer: float,
        context_sec: float,
        dtype: str,
        max_tokens: int,
    ) -> None:
        if dtype not in _DTYPES:
            raise UserError(f"checks.words.dtype={dtype!r} is not valid; choose one of: {', '.join(_DTYPES)}")
        if not 1.0 <= context_sec <= WINDOW_SEC:
            raise UserError(f"checks.words.context_sec must be in [1, {WINDOW_SEC:g}], got {context_sec}")
        self.path = path
        self.max_dialogue_wer = max_dialogue_wer
        self.max_turn_wer = max_turn_wer
        self.context_sec = context_sec
        self.dtype = dtype
        self.max_tokens = max_tokens
        self._asr: WhisperTranscriber | None = None
        self._normalise = EnglishTextNormalizer()

    def examine(self, clips: Sequence[Clip]) -> Finding:
        """See `Check.examine`; clips carry "asr_text", "wer", "errors", "words", "full_window"."""
        need_rate(clips, RATE_HZ, self.name)
        if (finding := unusable(clips)) is not None:
            return finding
        if not clips:
            return Finding()
        if any(clip.seconds > WINDOW_SEC for clip in clips):
            return Finding(["a turn is longer than Whisper hears at once"], [{} for _ in clips])
        if any(not self._normalise(clip.text) for clip in clips):
            return Finding(["a sentence holds no word"], [{} for _ in clips])
        heard = self.transcribe([clip.wave_N for clip in clips], self.context_sec)
        return self._judge(clips, heard)

    def examine_again(self, clips: Sequence[Clip], before: Finding, fresh: Sequence[int]) -> Finding:
        """See `Check.examine_again`: only the fresh clips are heard."""
        new = [clips[i] for i in fresh]
        beyond = unusable(new) is not None or any(clip.seconds > WINDOW_SEC for clip in new)
        if beyond or not all(before.clips):
            return self.examine(clips)
        heard = [clip["asr_text"] for clip in before.clips]
        for i, text in zip(fresh, self.transcribe([clip.wave_N for clip in new], self.context_sec), strict=True):
            heard[i] = text
        in_full = {i for i, clip in enumerate(before.clips) if clip["full_window"]} - set(fresh)
        return self._judge(clips, heard, in_full)

    def confirm(self, clips: Sequence[Clip], finding: Finding) -> Finding:
        """See `Check.confirm`: turns with errors are heard in the full window, at least as many as make it sure to
        reject; the verdict is as if all of them were."""
        if not all(finding.clips):
            return finding
        heard = [clip["asr_text"] for clip in finding.clips]
        in_full = {i for i, clip in enumerate(finding.clips) if clip["full_window"]}
        words = sum(clip["words"] for clip in finding.clips)
        errors = {i: clip["errors"] for i, clip in enumerate(finding.clips)}
        waiting = sorted((i for i, n in errors.items() if n and i not in in_full), key=lambda i: -errors[i])
        while waiting and not (sure := sum(errors[i] for i in in_full)) / words > self.max_dialogue_wer:
            sums = enumerate(itertools.accumulate((errors[i] for i in waiting), initial=sure))
            enough = next((n for n, total in sums if total / words > self.max_dialogue_wer), len(waiting))
            again, waiting = waiting[:enough], waiting[enough:]
            for i, text in zip(again, self.transcribe([clips[i].wave_N for i in again], WINDOW_SEC), strict=True):
                heard[i] = text
            in_full = in_full | set(again)
            finding = self._judge(clips, heard, in_full)
            errors |= {i: finding.clips[i]["errors"] for i in again}
        return finding

    def suspects(self, finding: Finding) -> dict[int, float] | None:
        """See `Check.suspects`: every turn with an error where they are too many together, else those above the limit
        of a turn."""
        if not finding.clips or not all(finding.clips):
            return None
        limit = 0.0 if finding.dialogue["wer"] > self.max_dialogue_wer else self.max_turn_wer
        return {i: 1.0 for i, clip in enumerate(finding.clips) if clip["wer"] > limit} or None

    def _judge(self, clips: Sequence[Clip], heard: Sequence[str], in_full: Set[int] = frozenset()) -> Finding:
        """Compare transcripts with the script."""
        finding = Finding()
        for i, (clip, text) in enumerate(zip(clips, heard, strict=True)):
            errors, words = self.word_errors(clip.text, text)
            found = {"asr_text": text, "wer": errors / words, "errors": errors, "words": words}
            finding.clips.append(found | {"full_window": i in in_full})
        pooled = sum(c["errors"] for c in finding.clips) / sum(c["words"] for c in finding.clips)
        finding.dialogue = {"wer": pooled}
        if pooled > self.max_dialogue_wer:
            finding.reasons.append("word error rate of the dialogue above max_dialogue_wer")
        if any(c["wer"] > self.max_turn_wer for c in finding.clips):
            finding.reasons.append("word error rate of a turn above max_turn_wer")
        return finding

    def transcribe(self, waves: Sequence[np.ndarray], window_sec: float) -> list[str]:
        """Greedy transcripts of mono float32 [N] clips at 16 kHz, none longer than 30 s."""
        if not waves:
            return []
        if self._asr is None:
            self._asr = WhisperTranscriber(resolve_path(self.path), self.max_tokens, self.dtype)
        return self._asr.transcribe(waves, window_sec)

    def thresholds(self) -> dict[str, Any]:
        """Both limits."""
        return {"max_dialogue_wer": self.max_dialogue_wer, "max_turn_wer": self.max_turn_wer}

    def summarise(self, findings: Sequence[Finding]) -> dict[str, Any]:
        """Pooled rate, mean over turns, share of turns without an error, histograms."""
        clips = [clip for finding in findings for clip in finding.clips]
        turns = [clip["wer"] for clip in clips]
        return {
            "wer": sum(c["errors"] for c in clips) / sum(c["words"] for c in clips),
            "wer_mean_of_turns": float(np.mean(turns)),
            "turns_without_error": float(np.mean([wer == 0 for wer in turns])),
            "histogram_dialogues": histogram([f.dialogue["wer"] for f in findings], WER_EDGES),
            "histogram_turns": histogram(turns, WER_EDGES),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the settings only."""
        return self.__dict__ | {"_asr": None}

    def words(self, text: str) -> list[str]:
        """The words of a text as they are compared; fillers such as "hmm" are none."""
        return str(self._normalise(text)).split()

    def word_errors(self, reference: str, hypothesis: str) -> tuple[int, int]:
        """Return (word errors, words of the reference) after normalising both; UserError for one without a word."""
        wanted = self._normalise(reference)
        if not wanted:
            raise UserError(f"script sentence {reference!r} holds no word")
        result = jiwer.process_words(wanted, self._normalise(hypothesis))
        return result.substitutions + result.deletions + result.insertions, len(wanted.split())
