"""Dialogue -> one training sequence in the LLM's own chat template.

The rendered dialogue is one string, tokenised once; every id gets its role and label from the characters that it
covers, so that no two tokenisations have to agree. Every reply of the dialogue is supervised in the one pass: style,
words and end of turn, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from omnichat.schema import SPEAKERS, Dialogue, Style, Turn
from omnichat.text.style_format import format_reply
from omnichat.utils.errors import UserError, one_of

INPUTS = ("speech", "text", "asr", "speech_text")
TARGETS = ("A", "B", "both")
MISSING_AUDIO = ("words", "error")
NOTHING_HEARD = "..."  # what an empty transcript is read as
AUDIO_MARKER = "<|omnichat_audio|>"
NO_STYLE = Style()  # of a recording whose corpus labels none
IGNORE = -100


class Role(IntEnum):
    """What a position of the sequence is."""

    TEMPLATE = 0
    USER_TEXT = 1
    AUDIO = 2
    STYLE = 3
    WORDS = 4
    END = 5


@dataclass(kw_only=True, slots=True)
class ChatConfig:
    """How a dialogue becomes a sequence."""

    input: str = "speech"  # what the model gets of the user's turns: speech | text | asr | speech_text
    target: str = "B"  # whom it plays: B | A | both (each dialogue then gives two sequences)
    system_prompt: str = "Answer with the style in brackets, then the words."
    missing_audio: str = "words"  # a user turn without a recording: words (read its text) | error

    def __post_init__(self) -> None:
        for name, choices in (
            ("input", INPUTS),
            ("target", TARGETS),
            ("missing_audio", MISSING_AUDIO),
        ):
            if getattr(self, name) not in choices:
                raise one_of(f"chat.{name}", getattr(self, name), choices)

    @property
    def hears(self) -> bool:
        """Whether any audio enters the sequence."""
        return self.input in ("speech", "speech_text")


@dataclass(frozen=True, slots=True)
class Clip:
    """One recorded turn in a sequence: which turn, how many positions it takes, and how it is spoken."""

    turn: int
    seconds: float
    slots: int
    style: Style = NO_STYLE


@dataclass(frozen=True, slots=True)
class Reply:
    """One supervised reply: turn index and the half-open range of its supervised positions."""

    turn: int
    start: int
    stop: int


@dataclass(slots=True)
class ChatSequence:
    """One dialogue, tokenised. All lists have one entry a position (S of them).

    Attributes:
        ids: token ids; AUDIO positions hold the id of the audio marker, which has no embedding.
        labels: the id where supervised, else -100 (not shifted).
        roles: Role values.
        clips: recorded turns in order; their slots are the AUDIO positions in order.
        replies: supervised replies in order.
        teacher: the same dialogue with the words in place of the audio, the same ids supervised; for distillation.
    """

    ids: list[int]
    labels: list[int]
    roles: list[int]
    clips: list[Clip]
    replies: list[Reply]
    teacher: ChatSequence | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def positions(self) -> int:
        """What the sequence takes of a batch's budget: its own length, or its teacher's if that is more."""
        return len(self) if self.teacher is None else max(len(self), len(self.teacher))

    def prompt_of(self, reply: Reply) -> ChatSequence:
        """The sequence up to the place where `reply` begins: what the model reads before it answers."""
        audio = sum(role == Role.AUDIO for role in self.roles[: reply.start])
        clips, taken = [], 0
        for clip in self.clips:
            if taken < audio:
                clips.append(clip)
                taken += clip.slots
        n = reply.start
        return ChatSequence(self.ids[:n], [IGNORE] * n, self.roles[:n], clips, [])


@dataclass(frozen=True, slots=True)
class _Span:
    """A stretch of the rendered string: its text, its role, and the turn that it belongs to."""

    text: str
    role: Role
    turn: int = -1


def special_texts(tokenizer: Any) -> list[str]:
    """The strings that a tokenizer turns into control ids, longest first."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    # A tokenizer may also have added mere blanks, which are text as any other.
    return sorted((text for text in special if text.strip()), key=len, reverse=True)


def escape_special(text: str, specials: Sequence[str]) -> str:
    """Break up every special token's string inside a transcript: content never yields a control id."""
    for special in specials:
        mark = special.strip()  # a blank before it would let it be found again for ever
        while special in text:
            text = text.replace(special, special.replace(mark, f"{mark[0]} {mark[1:]}" if len(mark) > 1 else " "))
    return text


class ChatFormat:
    """Formats dialogues for one tokenizer.

    Args:
        tokenizer: a fast tokenizer (offsets are needed) with a chat template; the audio marker is added to it.
        config: what goes in.
        slots: function seconds -> positions of a clip (`Fusion.slots`); None for a model that does not listen.
        teacher: make the teacher's sequence too, which reads the words.

    Raises:
        UserError: a tokenizer without chat template or offsets.
    """

    def __init__(self, tokenizer: Any, config: ChatConfig, slots: Any = None, teacher: bool = False) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise UserError("llm.path: its tokenizer is not a fast one; character offsets are needed")
        if not tokenizer.chat_template:
            raise UserError("llm.path: its tokenizer has no chat template; name an instruct model")
        tokenizer.add_special_tokens({"additional_special_tokens": [AUDIO_MARKER]})
        self.tokenizer = tokenizer
        self.config = config
        self.slots = slots
        self.teacher = teacher
        self.audio_id = tokenizer.convert_tokens_to_ids(AUDIO_MARKER)
        self.special_ids = frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.added_tokens_decoder)
        self.special_texts = special_texts(tokenizer)

    def sequences(self, dialogue: Dialogue) -> list[ChatSequence]:
        """All training sequences of a dialogue: one, or two with `target: both`; none if nobody replies."""
        players = SPEAKERS if self.config.target == "both" else (self.config.target,)
        made = [self.sequence(dialogue, player) for player in players]
        return [sequence for sequence in made if sequence.replies]

    def sequence(self, dialogue: Dialogue, player: str) -> ChatSequence:
        """The sequence in which the model plays speaker `player`.

        A reply before the other speaker has said anything is part of the history and is not supervised.

        Raises:
            UserError: words, a recording or a recogniser's transcript that the config asks for is missing.
        """
        made = self._tokenise(self._spans(dialogue, player, self.config.input), dialogue)
        if self.teacher:
            made.teacher = self._tokenise(self._spans(dialogue, player, "text"), dialogue)
            if _supervised(made) != _supervised(made.teacher):
                raise UserError(
                    f"trainer.loss.distill_weight: this LLM's tokenizer cuts the replies of dialogue {dialogue.id!r} "
                    "one way after audio and another after words, so no teacher can be followed; set it to 0"
                )
        return made

    def escape(self, text: str) -> str:
        """Break up every special token's string inside a transcript: content never yields a control id."""
        return escape_special(text, self.special_texts)

    def _spans(self, dialogue: Dialogue, player: str, reads: str) -> list[_Span]:
        """The rendered dialogue; `reads` is one of INPUTS."""
        groups: list[list[int]] = []  # turns of one speaker in a row are one message
        for index, turn in enumerate(dialogue.turns):
            if groups and dialogue.turns[groups[-1][0]].speaker == turn.speaker:
                groups[-1].append(index)
            else:
                groups.append([index])
        system = self.escape(self.config.system_prompt)
        messages = [{"role": "system", "content": _placeholder("system")}] if system else []
        for number, group in enumerate(groups):
            role = "assistant" if dialogue.turns[group[0]].speaker == player else "user"
            messages.append({"role": role, "content": _placeholder(number)})
        rendered = self.tokenizer.apply_chat_template(messages, tokenize=False)
        spans: list[_Span] = []
        if system:
            before, rendered = _split_at(rendered, "system")
            spans += [_Span(before, Role.TEMPLATE), _Span(system, Role.TEMPLATE)]
        heard_other = False
        for number, group in enumerate(groups):
            before, rendered = _split_at(rendered, number)
            spans.append(_Span(before, Role.TEMPLATE))
            if dialogue.turns[group[0]].speaker == player:
                spans += self._own_spans(dialogue, group, supervised=heard_other)
            else:
                spans += self._user_spans(dialogue, group, reads)
                heard_other = True
        return [*spans, _Span(rendered, Role.TEMPLATE)]

    def _own_spans(self, dialogue: Dialogue, group: list[int], supervised: bool) -> list[_Span]:
        first = dialogue.turns[group[0]]
        words = self.escape(" ".join(dialogue.turns[i].text.strip() for i in group))
        style, rest = format_reply(first.style, words)
        if supervised:
            return [_Span(style, Role.STYLE, group[0]), _Span(rest, Role.WORDS, group[0])]
        return [_Span(style + rest, Role.TEMPLATE)]

    def _user_spans(self, dialogue: Dialogue, group: list[int], reads: str) -> list[_Span]:
        spans: list[_Span] = []
        for index in group:
            turn = dialogue.turns[index]
            glue = " " if spans else ""
            if reads in ("speech", "speech_text") and self._has_audio(dialogue, index, turn):
                spans.append(_Span(glue + AUDIO_MARKER, Role.AUDIO, index))
                if reads == "speech":
                    continue
                glue = " "
            text = turn.text
            if reads == "asr":
                if turn.asr_text is None:
                    raise UserError(
                        f"chat.input=asr: dialogue {dialogue.id!r} turn {index} has no asr_text; "
                        "omnichat prepare ... asr=whisper writes down what is heard"
                    )
                text = turn.asr_text or NOTHING_HEARD
            spans.append(_Span(glue + self.escape(text.strip()), Role.USER_TEXT, index))
        return spans

    def _has_audio(self, dialogue: Dialogue, index: int, turn: Turn) -> bool:
        if turn.audio is None and self.config.missing_audio == "error":
            raise UserError(f"chat.missing_audio=error: dialogue {dialogue.id!r} turn {index} has no recording")
        return turn.audio is not None

    def _tokenise(self, spans: list[_Span], dialogue: Dialogue) -> ChatSequence:
        text = "".join(span.text for span in spans)
        char_span = [number for number, span in enumerate(spans) for _ in span.text]
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        out = ChatSequence([], [], [], [], [])
        open_turn = -1  # the reply whose end of turn has not come yet
        for token, (begin, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            # A token belongs to the span of its last character: a leading space may lie in the span before.
            span = spans[char_span[max(end - 1, begin)]]
            role, copies = span.role, 1
            if token == self.audio_id:
                role = Role.AUDIO
                copies = self._add_clip(out, dialogue, span.turn)
            elif role == Role.TEMPLATE and open_turn >= 0 and token in self.special_ids:
                role = Role.END
            elif role == Role.AUDIO:
                role = Role.TEMPLATE  # the blank between two recordings of one message
            supervised = role in (Role.STYLE, Role.WORDS, Role.END)
            if role in (Role.STYLE, Role.WORDS) and span.turn != open_turn:
                open_turn = span.turn
                out.replies.append(Reply(open_turn, len(out.ids), len(out.ids)))
            out.ids += [token] * copies
            out.labels += [token if supervised else IGNORE] * copies
            out.roles += [int(role)] * copies
            if supervised:
                out.replies[-1] = Reply(out.replies[-1].turn, out.replies[-1].start, len(out.ids))
            if role == Role.END:
                open_turn = -1
        if any(out.roles[reply.stop - 1] != Role.END for reply in out.replies):
            raise UserError(
                "llm.path: the chat template closes no message with a special token, so a model would never learn "
                "where its end of turn is; name another instruct model"
            )
        return out

    def _add_clip(self, out: ChatSequence, dialogue: Dialogue, turn: int) -> int:
        assert self.slots is not None, "a model that listens needs a fusion to say how many slots a clip takes"
        seconds = dialogue.turns[turn].seconds
        assert seconds is not None
        out.clips.append(Clip(turn, seconds, self.slots(seconds), dialogue.turns[turn].style))
        return out.clips[-1].slots


def _supervised(sequence: ChatSequence) -> list[int]:
    return [label for label in sequence.labels if label != IGNORE]


def _placeholder(name: object) -> str:
    """What stands for a message's content while the template is rendered; the contents themselves never are."""
    return f"\ue000{name}\ue001"


def _split_at(rendered: str, name: object) -> tuple[str, str]:
    before, found, after = rendered.partition(_placeholder(name))
    if not found:
        raise UserError("llm.path: the chat template drops or reorders messages; it cannot be used")
    return before, after
