"""The checks of a corpus as one part, so that a config can add, replace or drop one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from omnichat.synthesis.base import Voice
from omnichat.synthesis.checks.base import Check, Clip, Finding
from omnichat.utils.errors import UserError, one_of

Known = dict[str, tuple[Finding, Sequence[Clip]]]  # check -> what it found, and of which clips


class CheckSuite:
    """Named checks, run in order; the first that rejects a dialogue spares the later, dearer ones.

    Args:
        checks: name -> check; null drops one.
        max_retakes: how often the turns that a check suspects are spoken again before the whole dialogue is made anew;
            0 = the whole dialogue at once.
        max_retake_share: largest share of a dialogue's turns that is spoken again; where more are at fault, the whole
            dialogue is made anew at once.
    """

    def __init__(self, checks: Mapping[str, Check | None], max_retakes: int = 3, max_retake_share: float = 0.4) -> None:
        if not 0 <= max_retakes <= 20 or not 0 < max_retake_share <= 1:
            raise UserError("checks needs 0 <= max_retakes <= 20 and 0 < max_retake_share <= 1")
        self.max_retakes = max_retakes
        self.max_retake_share = max_retake_share
        self.checks = {name: check for name, check in checks.items() if check is not None}
        for name, check in self.checks.items():
            if name != check.name:
                raise UserError(f"checks.{name} is the check {check.name!r}; give it that name")

    def calibrate(self, voice: Voice, speakers: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Let every check that wants to learn the speakers: check -> JSON for `use`. Names without calibration lack.

        One thread, as in the worker processes: sums in another order are other samples.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            found = {name: check.calibrate(voice, speakers) for name, check in self.checks.items()}
        finally:
            torch.set_num_threads(threads)
        return {name: learnt for name, learnt in found.items() if learnt is not None}

    def use(self, calibrations: Mapping[str, dict[str, Any]]) -> None:
        """Give every check what `calibrate` learnt for it, here or in an earlier run; then the suite may be pickled.

        Raises:
            UserError: for a check that the suite does not hold.
        """
        for name, learnt in calibrations.items():
            if name not in self.checks:
                raise one_of("calibration of check", name, self.checks)
            self.checks[name].use(learnt)

    def examine(
        self,
        clips: Sequence[Clip],
        known: Known | None = None,
        lap: Callable[[str], None] = lambda name: None,
        confirm: bool = True,
    ) -> dict[str, Finding]:
        """Run the checks on one dialogue; the last finding is the one with reasons if there are any.

        Args:
            known: what each check found of this dialogue before, which is brought up to date: only clips that are other
                objects than then are measured. None: nothing.
            lap: told the name of each piece of work when it is done.
            confirm: whether a check looks closer before it rejects (`Check.confirm`).
        """
        findings: dict[str, Finding] = {}
        known = {} if known is None else known
        for name, check in self.checks.items():
            if name not in known:
                findings[name] = check.examine(clips)
            else:
                before, heard = known[name]
                fresh = [i for i, (clip, old) in enumerate(zip(clips, heard, strict=True)) if clip is not old]
                findings[name] = check.examine_again(clips, before, fresh) if fresh else before
            if confirm and findings[name].reasons:
                findings[name] = check.confirm(clips, findings[name])
            known[name] = findings[name], clips
            lap(f"check {name}")
            if findings[name].reasons:
                break
        return findings

    def retakes(self) -> dict[str, float]:
        """When turns are spoken again: what decides clips besides the verdicts."""
        return {"max_retakes": self.max_retakes, "max_retake_share": self.max_retake_share}

    def describe(self) -> dict[str, dict[str, Any]]:
        """Thresholds of every check."""
        return {name: check.thresholds() for name, check in self.checks.items()}

    def settings(self) -> dict[str, dict[str, Any]]:
        """All that decides a verdict, thresholds and models alike: what a resumed run must find unchanged."""
        return {
            name: {key: value for key, value in vars(check).items() if not key.startswith("_")}
            for name, check in self.checks.items()
        }

    def summarise(self, findings: Sequence[Mapping[str, Finding]]) -> dict[str, dict[str, Any]]:
        """Figures of every check over the accepted dialogues."""
        out = {}
        for name, check in self.checks.items():
            mine = [each[name] for each in findings if name in each]
            out[name] = check.summarise(mine) if mine else {}
        return out
