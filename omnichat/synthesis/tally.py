"""What a run of the factory counts: attempts, rejects with their reasons, hours of speech, time by stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omnichat.data.corpus import AnyCorpus
from omnichat.synthesis.base import Script
from omnichat.synthesis.plan import Stem
from omnichat.synthesis.stem import Outcome
from omnichat.synthesis.work import WorkFolder
from omnichat.utils.log import get_logger

log = get_logger(__name__)

VOICE = "voice"  # in the place of a check's name: what a voice gave was no clip


@dataclass(slots=True)
class Tally:
    """Counts of a run. The corpus is told only of those that a resumed run counts alike; `seconds` is for the log.

    Attributes:
        rejected: by (check, reason). script_rejects: by reason.
        retakes: by (check, reason), takes of turns at fault; turns_again: the turns in them.
        rows: every rejected script and attempt: what, where, why; in the order in which it came.
        dropped: id -> why a dialogue is not in the corpus. made: outcomes of this process, without those it found.
        seconds: by stage, over all processes.
    """

    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)
    script_rejects: Counter[str] = field(default_factory=Counter)
    retakes: Counter[tuple[str, str]] = field(default_factory=Counter)
    turns_again: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    attempts: int = 0
    failed: int = 0
    made: int = 0
    speech_sec: float = 0.0
    dropped: dict[str, str] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)

    def count(self, outcome: Outcome, seconds: dict[str, float]) -> None:
        """Take in one attempt; `seconds` is empty where an earlier run or another process had finished it."""
        self.attempts += 1
        self.failed += not outcome.accepted
        self.seconds.update(seconds)
        if seconds:
            self.made += 1
            self.speech_sec += outcome.speech_sec
        for number, take in enumerate(outcome.takes, 1):
            self.retakes.update((take["check"], reason) for reason in take["reasons"])
            self.turns_again += len(take["turns"])
            row = {"stage": "take", "plan": outcome.stem, "attempt": outcome.attempt, "take": number}
            self.rows.append(row | take | {"turns": list(take["turns"])})
        for name, finding in outcome.findings.items():
            self.rejected.update((name, reason) for reason in finding["reasons"])
        if not outcome.accepted:
            rejecting = [name for name, finding in outcome.findings.items() if finding["reasons"]]
            row = {"stage": rejecting[0] if rejecting else VOICE, "plan": outcome.stem, "attempt": outcome.attempt}
            found = {name: outcome.findings[name]["dialogue"] for name in rejecting}
            self.rows.append(row | {"reasons": outcome.reasons, "measured": found, "topic": outcome.topic})
            if not rejecting:
                self.rejected.update((VOICE, reason) for reason in outcome.reasons)

    def reject_script(self, stem: Stem, attempt: int, number: int, reasons: Sequence[str]) -> None:
        """Count a script that may not be used."""
        self.script_rejects.update(reasons)
        self.rows.append(
            {"stage": "script", "plan": stem.id, "attempt": attempt, "try": number, "reasons": list(reasons)}
        )

    def in_plan_order(self, stems: Sequence[Stem]) -> list[dict[str, Any]]:
        """The rows by plan, attempt and try: the order in which processes finished does not show."""
        place = {stem.id: number for number, stem in enumerate(stems)}
        return sorted(
            self.rows, key=lambda row: (place[row["plan"]], row["attempt"], row["stage"] != "script", row.get("try", 0))
        )

    def progress(self, elapsed_sec: float, before_sec: float) -> str:
        """What a progress bar says besides its count; `before_sec` of speech were made before its round began."""
        share = f"rejected {self.failed / max(1, self.attempts):.1%}"
        rate = (self.speech_sec - before_sec) / max(elapsed_sec, 1e-9)
        return f"{rate:.1f} h of speech an hour, {share}" if rate > 0 else share


@dataclass(slots=True)
class Made:
    """What a run has come to.

    Attributes:
        stems: the dialogues that it was to make, in the plan's order.
        scripts, outcomes: by stem id, as far as they got; `outcomes` holds those that nothing rejected.
        corpus: None where the run ended before it.
    """

    work: WorkFolder
    stems: list[Stem]
    tally: Tally = field(default_factory=Tally)
    scripts: dict[str, Script] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    corpus: AnyCorpus | None = None


def report(tally: Tally, accepted: int, dialogues: int, in_order: Any) -> None:
    """Log what came out and where the time went."""
    log.info(
        "%d dialogues (%d with their variants), %d attempts, %d dropped",
        accepted,
        dialogues,
        tally.attempts,
        len(tally.dropped),
    )
    for (check, reason), n in tally.rejected.most_common():
        log.info("rejected %d times by %s: %s", n, check, reason)
    for (check, reason), n in tally.retakes.most_common():
        log.info("turns spoken again %d times for %s: %s", n, check, reason)
    for reason, n in tally.script_rejects.most_common():
        log.info("scripts rejected %d times: %s", n, reason)
    if in_order is False:
        log.warning("measured pitch or rate is not in the order of the labels; see the data card")
    if tally.seconds:
        stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in tally.seconds.most_common())
        log.info("time over all processes for %d attempts made here: %s", tally.made, stages)
