"""`omnichat speak`: predictions -> spoken replies, and how well they can be understood, beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from omnichat.config import SpeakRun
from omnichat.evaluation.predictions import read_predictions
from omnichat.evaluation.sidecars import as_config_value, prediction_files, sidecar_path
from omnichat.synthesis.base import Voice
from omnichat.synthesis.checks.mos import MosCheck
from omnichat.synthesis.checks.words import WordErrorCheck
from omnichat.synthesis.spoken import Speaking, SpokenReply, speak_file
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import check_writable
from omnichat.utils.parts import build_part

CHECKS = ("words", "mos")


def run(config: SpeakRun) -> None:
    """Speak and measure the replies of every file; a second call goes on from the batches that are finished."""
    files = {path: read_predictions(path) for path in prediction_files(config.predictions)}
    if wrong := sorted(set(config.checks) - set(CHECKS)):
        raise one_of("checks", wrong[0], CHECKS)
    if config.checks.get("words") is None:
        raise UserError("checks.words must be there: without it no reply is heard")
    words = build_part(config.checks["words"], "checks.words", WordErrorCheck)
    mos = config.checks.get("mos")
    mos = None if mos is None else build_part(mos, "checks.mos", MosCheck)
    voice: Voice = build_part(config.voice or {}, "voice", Voice)
    speaker = config.speaker or next(iter(voice.speakers))
    for path in files:
        check_writable(path.parent, "predictions")
    for path, predictions in files.items():
        speaking = Speaking(voice, speaker, words, mos, config.seed, path.parent)
        print(summary(path, speak_file(path, predictions, speaking, config.workers, config.batch), speaker))
    print(f"next: omnichat score predictions={as_config_value(list(files))}")


def summary(path: Path, rows: Sequence[SpokenReply], speaker: str) -> str:
    """Means over the replies, and every reply that could not be spoken."""
    lines = [
        f"{path}: {len(rows)} replies, spoken by {speaker}",
        f"  word error rate  {fmean(row.reply_wer for row in rows):.3f}   mean of n={len(rows)}",
    ]
    if scores := [row.reply_dnsmos for row in rows if row.reply_dnsmos is not None]:
        lines.append(f"  DNSMOS           {fmean(scores):.3f}   mean of n={len(scores)}")
    if problems := Counter(row.problem for row in rows if row.problem is not None):
        told = ", ".join(f"{problem} ({count})" for problem, count in sorted(problems.items()))
        lines.append(f"  {problems.total()} replies could not be spoken and count as a word error rate of 1: {told}")
    lines.append(f"figures: {sidecar_path(path, 'speech')}\nrecordings: {path.parent / 'speech' / path.stem}")
    return "\n".join(lines)
