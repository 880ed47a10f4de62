"""The checks of a corpus as one part, so that a config can add, replace or drop one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omnichat.synthesis.checks.base import Check, Clip, Finding
from omnichat.utils.errors import UserError


class CheckSuite:
    """Named checks, run in order; the first that rejects a dialogue spares the later, dearer ones.

    Args:
        checks: name -> check; null drops one.
    """

    def __init__(self, checks: Mapping[str, Check | None]) -> None:
        self.checks = {name: check for name, check in checks.items() if check is not None}
        for name, check in self.checks.items():
            if name != check.name:
                raise UserError(f"checks.{name} is the check {check.name!r}; give it that name")

    def examine(self, clips: Sequence[Clip]) -> dict[str, Finding]:
        """Run the checks on one dialogue; the last finding is the one with reasons if there are any."""
        findings: dict[str, Finding] = {}
        for name, check in self.checks.items():
            findings[name] = check.examine(clips)
            if findings[name].reasons:
                break
        return findings

    def describe(self) -> dict[str, dict[str, float]]:
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
