"""Takes of one attempt: turns that a check suspects are spoken again, all others keep the clip that they have.

A dialogue of a dozen turns is often refused for one of them. Speaking that one again, and hearing that one alone again,
costs a twelfth. A turn's words keep one seed for all the styles in which the dialogue says them, so in a further take
too its variants differ by style alone: they are spoken again together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from omnichat.synthesis.base import ClipFailed
from omnichat.synthesis.checks.base import Clip, Finding
from omnichat.synthesis.checks.suite import CheckSuite, Known

_STRETCH = (0.75, 1.35)  # all corrections of one turn together: beyond that it is no longer the same way of speaking


@dataclass(slots=True)
class Take:
    """One take after the first: JSON.

    Attributes:
        check, reasons: which check refused the take before, and why.
        turns: key of each turn that is spoken again -> factor on its duration, those of earlier takes included.
        failed: why the voice gave no clips, so that the turns keep the ones they have; None = it gave them.
    """

    check: str
    reasons: list[str]
    turns: dict[str, float]
    failed: str | None = None


@dataclass(slots=True)
class Judged:
    """What the checks say of a dialogue after its last take.

    Attributes:
        clips: by key, each of the take in which it was spoken last. findings: by check, up to the first that rejects.
        again_sec: seconds of speech of all takes after the first.
    """

    clips: dict[str, Clip]
    findings: dict[str, Finding] = field(default_factory=dict)
    takes: list[Take] = field(default_factory=list)
    again_sec: float = 0.0

    def hear(self, take: Take, speak: Callable[[Take, int], dict[str, Clip]]) -> None:
        """Let `speak` give the clips of a further take, whose number it is told. Raises what it raises."""
        again = speak(take, len(self.takes))
        self.clips |= again
        self.again_sec += sum(clip.seconds for clip in again.values())


def judge(
    suite: CheckSuite,
    clips: Mapping[str, Clip],
    speak: Callable[[Take, int], dict[str, Clip]],
    lap: Callable[[str], None],
) -> Judged:
    """Run the checks; while one of them rejects and knows which turns are at fault, speak these again, at most
    `suite.max_retakes` times.

    Args:
        clips: the turns of the first take, by key.
        speak: the clips of a further take and its number (from 1 on); a ClipFailed is kept in the take.
        lap: told the name of each piece of work when it is done.
    """
    judged = Judged(dict(clips))
    known: Known = {}
    while True:
        said = list(judged.clips.values())
        judged.findings = suite.examine(said, known, lap, confirm=False)
        if (take := _next_take(suite, judged)) is None:  # the last word, so let it be a considered one
            judged.findings = suite.examine(said, known, lap)
            take = _next_take(suite, judged)
        if take is None:
            return judged
        judged.takes.append(take)
        try:
            judged.hear(take, speak)
        except ClipFailed as error:
            take.failed = error.reason


def _next_take(suite: CheckSuite, judged: Judged) -> Take | None:
    """What is to be spoken again after the findings; None = nothing, or nothing less than the whole dialogue."""
    if len(judged.takes) == suite.max_retakes:
        return None
    for name, finding in judged.findings.items():
        if finding.reasons and (suspects := suite.checks[name].suspects(finding)):
            turns = _turns(suspects, judged.clips, judged.takes)
            if len(turns) <= suite.max_retake_share * len(judged.clips):
                return Take(name, list(finding.reasons), turns)
    return None


def _turns(suspects: Mapping[int, float], clips: Mapping[str, Clip], takes: Sequence[Take]) -> dict[str, float]:
    """Key -> factor on the duration, of the suspects and of all turns that say the same words with the same voice."""
    said = list(clips.values())
    words = {(said[i].voice, said[i].text) for i in suspects}
    turns = {}
    for i, (key, clip) in enumerate(clips.items()):
        if (clip.voice, clip.text) in words:
            so_far = next((take.turns[key] for take in reversed(takes) if key in take.turns), 1.0)
            turns[key] = min(max(so_far * suspects.get(i, 1.0), _STRETCH[0]), _STRETCH[1])
    return turns
