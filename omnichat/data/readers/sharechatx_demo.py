"""The published demonstration dialogues of ShareChatX (arXiv 2501.01384), as one folder.

dialogues.jsonl            {"id", "scenario", "background_caption", "turns": [{"speaker", "text", "style", "audio",
                           "seconds"}], "replies": [{"who", "text", "style"}]}
<id>/<turn>.wav            16 kHz mono
dailytalk_replies.jsonl    the same systems' answers on DailyTalk dialogues
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omnichat.data.corpus import check_inside, parse_dialogue
from omnichat.data.readers.base import Reader, UniqueIds
from omnichat.schema import SCENARIOS, Dialogue, Scene, Style, Turn, dialogue_to_json
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import iterate_jsonl

INDEX = "dialogues.jsonl"
DAILYTALK_INDEX = "dailytalk_replies.jsonl"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a system ("omni", "fun", "qwen") answered to the last turn; None = it gives no style."""

    who: str
    text: str
    style: Style | None


class ShareChatXDemo(Reader):
    """Reader of the demonstration dialogues; all of them are test material.

    Some dialogues end with the user's turn: the systems' answers to it are in `replies()`, for evaluation; they are no
    reference. Dialogues with the same words throughout, whose last user turn differs in style, are variants: those
    turns share `variant_of`. Where a background's placement is not published, music loops and a sound lies under the
    turns.

    Args:
        path: the folder with dialogues.jsonl.
    """

    name = "sharechatx_demo"
    licence = "published demonstration samples of arXiv 2501.01384; no licence stated"
    kind = "synthetic"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        if not (self.root / INDEX).is_file():
            raise UserError(f"{self.root}: holds no {INDEX}; path names the folder of the demonstration dialogues")

    def dialogues(self) -> Iterator[Dialogue]:
        """Yield the dialogues in the order of the index."""
        self.issues = []
        path = self.root / INDEX
        parsed = []
        ids = UniqueIds()
        for line, row in iterate_jsonl(path):
            try:
                parsed.append(parse_dialogue(dialogue_to_json(self._dialogue(row))))
                ids.take(parsed[-1].id, f"{path}:{line}")
            except UserError as error:
                raise UserError(f"{path}:{line}: {error}") from None
            except (KeyError, TypeError, AttributeError, OverflowError) as error:
                raise UserError(f"{path}:{line}: a field is missing or of the wrong type: {error}") from None
        yield from _name_variants(parsed)

    def replies(self) -> dict[str, tuple[Reply, ...]]:
        """The systems' answers by dialogue id, for the dialogues that have any."""
        return {f"{self.name}-{key}": value for key, value in _replies(self.root / INDEX, "id").items()}

    def dailytalk_replies(self) -> dict[str, tuple[Reply, ...]]:
        """The systems' answers on DailyTalk, by the dialogue id of the DailyTalk reader; empty without the file."""
        path = self.root / DAILYTALK_INDEX
        if not path.is_file():
            return {}
        return {f"dailytalk-{key}": value for key, value in _replies(path, "dailytalk_dialog").items()}

    def _dialogue(self, row: dict[str, Any]) -> Dialogue:
        scenario = row["scenario"]
        if scenario not in SCENARIOS:
            raise one_of("scenario", scenario, SCENARIOS)
        turns = []
        for number, raw in enumerate(row["turns"]):
            turn = Turn(raw["speaker"], raw["text"], _style(raw.get("style")))
            audio = raw.get("audio")
            if audio is not None:
                check_inside(audio)
                if (header := self._header(audio)) is not None:
                    turn = replace(turn, audio=audio, sample_rate=header[0], seconds=header[1])
                    if abs(header[1] - raw.get("seconds", header[1])) > 0.01:
                        stated = raw["seconds"]
                        self.issues.append(
                            f"{row['id']} turn {number}: lasts {header[1]:.3f} s, the index says {stated} s"
                        )
            turns.append(turn)
        caption = row.get("background_caption")
        placement = "loop" if scenario == "music" else "under"
        return Dialogue(
            id=f"{self.name}-{row['id']}",
            source=self.name,
            kind=self.kind,
            scenario=scenario,
            split="test",
            turns=tuple(turns),
            scene=None if caption is None else Scene(caption, placement),
        )


def _name_variants(dialogues: list[Dialogue]) -> list[Dialogue]:
    """Give the last user turns of dialogues with equal words and unequal styles one `variant_of`."""
    groups: dict[tuple[tuple[str, str], ...], list[int]] = defaultdict(list)
    for index, dialogue in enumerate(dialogues):
        groups[tuple((turn.speaker, turn.text) for turn in dialogue.turns)].append(index)
    done = list(dialogues)
    for members in groups.values():
        lasts = {index: _last_user_turn(dialogues[index]) for index in members}
        styles = {dialogues[index].turns[last].style for index, last in lasts.items() if last is not None}
        if len(styles) < 2:
            continue
        group = dialogues[members[0]].id
        for index, last in lasts.items():
            turns = list(dialogues[index].turns)
            assert last is not None
            turns[last] = replace(turns[last], variant_of=group)
            done[index] = replace(dialogues[index], turns=tuple(turns))
    return done


def _last_user_turn(dialogue: Dialogue) -> int | None:
    return max((number for number, turn in enumerate(dialogue.turns) if turn.speaker == "A"), default=None)


def _style(raw: Any) -> Style:
    """A style as the index writes it: an object, a list with the emotion alone, or null."""
    if raw is None:
        return Style()
    if isinstance(raw, dict):
        return Style(**raw)
    if isinstance(raw, list) and len(raw) == 1:
        return Style(emotion=raw[0])
    raise UserError(f"style {raw!r} must be an object, a list with one emotion, or null")


def _replies(path: Path, key: str) -> dict[str, tuple[Reply, ...]]:
    found = {}
    for line, row in iterate_jsonl(path):
        try:
            answers = tuple(
                Reply(raw["who"], raw["text"], None if raw["style"] is None else _style(raw["style"]))
                for raw in row["replies"]
            )
            if answers:
                found[str(row[key])] = answers
        except (UserError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}:{line}: a reply cannot be read: {error}") from None
    return found
