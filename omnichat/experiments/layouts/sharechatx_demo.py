"""The replies of OmniChat, FunAudioLLM and Qwen2-Audio to ShareChatX's published demonstration dialogues."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omnichat.data.readers.dailytalk import DailyTalk
from omnichat.data.readers.sharechatx_demo import Reply, ShareChatXDemo
from omnichat.evaluation.predictions import Heard, Line, Prediction
from omnichat.evaluation.predictions import Reply as PredictedReply
from omnichat.experiments.layouts.base import Layout
from omnichat.schema import Dialogue, Style
from omnichat.utils.errors import UserError, one_of


class ShareChatXDemoReplies(Layout):
    """The folder of the demonstration dialogues: three systems ("omni", "fun", "qwen") and their replies.

    The demonstration states no reference, so one system's replies stand in for it, and say nothing about that system
    itself. The replies on DailyTalk have DailyTalk's own as reference. A reply without a style counts as one whose
    style could not be parsed.

    Args:
        reference: system whose replies stand in for the reference.
        dailytalk: folder of DailyTalk's official release; None leaves the replies on DailyTalk out.
    """

    folders = True

    def __init__(self, reference: str = "omni", dailytalk: str | None = None) -> None:
        super().__init__()
        self.reference, self.dailytalk = reference, dailytalk

    def read(self, path: Path) -> dict[str, tuple[Prediction, ...]]:
        """Return each system's replies; see `Layout.read`."""
        reader = ShareChatXDemo(str(path))
        dialogues = {dialogue.id: dialogue for dialogue in reader.dialogues()}
        found: dict[str, list[Prediction]] = {}
        for name, replies in reader.replies().items():
            dialogue = dialogues[name]
            by_system = {reply.who: reply for reply in replies}
            if self.reference not in by_system:
                raise one_of("layout.reference", self.reference, by_system)
            wanted = by_system[self.reference]
            reference = PredictedReply(wanted.text, wanted.style or Style())
            _add(found, dialogue, len(dialogue.turns), reference, replies)
        if not found:
            raise UserError(f"{path}: no dialogue there has replies of systems")
        self.notes.append(
            f"sharechatx_demo states no reference: the replies of {self.reference!r} stand in, so that its own "
            "figures there mean nothing"
        )
        self._add_dailytalk(reader.dailytalk_replies(), found)
        return {system: tuple(rows) for system, rows in found.items()}

    def _add_dailytalk(self, replies: dict[str, tuple[Reply, ...]], found: dict[str, list[Prediction]]) -> None:
        if not replies:
            return
        if self.dailytalk is None:
            self.notes.append(
                f"replies to {len(replies)} DailyTalk dialogues are left out: layout.dailytalk names none"
            )
            return
        dialogues = {d.id: d for d in DailyTalk(self.dailytalk).dialogues() if d.id in replies}
        for name, answers in replies.items():
            if name not in dialogues:
                raise UserError(f"layout.dailytalk={self.dailytalk}: holds no dialogue {name.rpartition('-')[2]}")
            turns = dialogues[name].turns
            last = max((n for n in range(1, len(turns)) if turns[n].speaker == "B"), default=None)
            if last is None or turns[last - 1].speaker != "A":
                raise UserError(f"layout.dailytalk={self.dailytalk}: {name} does not end with a reply to the user")
            _add(found, dialogues[name], last, PredictedReply(turns[last].text, turns[last].style), answers)


def _add(
    found: dict[str, list[Prediction]],
    dialogue: Dialogue,
    turn: int,
    reference: PredictedReply,
    replies: Sequence[Reply],
) -> None:
    """Add each system's reply to the turn before `turn`."""
    heard = dialogue.turns[turn - 1]
    for reply in replies:
        prediction = Prediction(
            id=f"{dialogue.id}#{turn}",
            dialogue=dialogue.id,
            turn=turn,
            source=dialogue.source,
            kind=dialogue.kind,
            scenario=dialogue.scenario,
            split="test",
            stand_in=dialogue.stand_in,
            history=tuple(Line(said.speaker, said.text) for said in dialogue.turns[: turn - 1]),
            heard=Heard(heard.text, heard.style, dialogue.scene),
            variant_of=heard.variant_of,
            reference=reference,
            hypothesis=PredictedReply(reply.text, reply.style),
            raw=reply.text,
            input="speech",
            attributes=dialogue.attributes,
        )
        found.setdefault(reply.who, []).append(prediction)
