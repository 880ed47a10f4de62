"""The script stage: a valid script for every dialogue, whose words no other dialogue and no other split has."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path

from omnichat.synthesis.base import Rejected, Script, ScriptRequest, ScriptWriter, script_problems
from omnichat.synthesis.plan import Stem, SynthesisConfig
from omnichat.synthesis.tally import Tally
from omnichat.synthesis.writers.duplicates import SeenScripts
from omnichat.utils.log import get_logger
from omnichat.utils.seeding import derive_seed

log = get_logger(__name__)


class ScriptStage:
    """Asks the writer until each dialogue has a script that may stand beside all others.

    Requests of one pass are asked for together, and answers are judged in the order of the plan, so what is kept does
    not depend on which answer came first. The same requests are asked again by every later run, which is why writers
    whose answers are dear keep them.
    """

    def __init__(self, config: SynthesisConfig, writer: ScriptWriter, store: Path, tally: Tally) -> None:
        self.config = config
        self.writer = writer
        self.store = store
        self.tally = tally
        self.seen = SeenScripts(config.duplicates.threshold, config.duplicates.ngram)

    def write(self, stems: Sequence[Stem], attempt: int) -> dict[str, Script]:
        """Scripts by stem id; a stem that has none after `script_tries` tries is left out and its reasons are counted.

        Raises:
            UserError: the writer cannot go on.
        """
        scripts: dict[str, Script] = {}
        waiting = list(stems)
        for number in count():
            if not waiting or number == self.config.script_tries:
                break
            requests = [
                stem.request(derive_seed(self.config.seed, "write", stem.id, attempt, number)) for stem in waiting
            ]
            again = []
            for stem, request, answer in zip(
                waiting, requests, self.writer.write_batch(requests, self.store), strict=True
            ):
                problems = self._problems(answer, request)
                if problems:
                    self.tally.reject_script(stem, attempt, number, problems)
                    again.append(stem)
                else:
                    assert isinstance(answer, Script)
                    self.seen.add(answer, stem.split)
                    scripts[stem.id] = answer
            waiting = again
        if waiting:
            log.warning(
                "%d dialogues have no usable script after %d tries (the first: %s); more: script_tries",
                len(waiting),
                self.config.script_tries,
                waiting[0].id,
            )
        return scripts

    def _problems(self, answer: Script | Rejected, request: ScriptRequest) -> list[str]:
        if isinstance(answer, Rejected):
            return list(answer.reasons)
        problems = script_problems(answer, request, self.config.max_words)
        if not problems and (reason := self.seen.reason(answer, request.split)):
            problems = [reason]
        return problems
