"""A conversation, as people and programs state it -> the prompt that the model reads."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnichat.audio.io import audio_info, load_audio, resample
from omnichat.schema import SPEAKERS, Dialogue, Style, Turn
from omnichat.text.chat import IGNORE, NO_STYLE, ChatFormat, ChatSequence, Role
from omnichat.text.style_format import parse_reply
from omnichat.utils.errors import UserError, one_of

ROLES = ("system", "user", "assistant")
_UNSAID = "..."  # the schema wants words of every turn; of one that is only heard nobody reads them
_ANY_REPLY = ("x", Style("normal", "normal", "neutral"))  # stands where the reply will begin


@dataclass(frozen=True, slots=True)
class Sound:
    """One recording in memory.

    Attributes:
        wave_N: mono float32 [N] in [-1, 1], N >= 1.
        sample_rate: Hz.
        sha256: of the samples; two recordings of one hash are one.
    """

    wave_N: Tensor
    sample_rate: int
    sha256: str

    @property
    def seconds(self) -> float:
        """Length."""
        return len(self.wave_N) / self.sample_rate

    def at(self, sample_rate: int) -> Tensor:
        """The samples at another rate, float32 [N]."""
        return resample(self.wave_N, self.sample_rate, sample_rate)


def sound_of(wave: Tensor | np.ndarray, sample_rate: int) -> Sound:
    """A recording from samples: mono [N], or [N, channels], which are averaged; int16 is scaled to [-1, 1].

    Raises:
        UserError: no samples, another shape, not finite, or a rate that is not positive.
    """
    samples = wave.detach().cpu().numpy() if isinstance(wave, Tensor) else np.asarray(wave)
    if not isinstance(sample_rate, int) or sample_rate < 1:
        raise UserError(f"a recording's sampling_rate must be a positive whole number, got {sample_rate!r}")
    if samples.dtype == np.int16:
        samples = samples.astype(np.float32) / 2**15
    elif not np.issubdtype(samples.dtype, np.floating):
        raise UserError(f"a recording's samples must be float or int16, got {samples.dtype}")
    samples = samples.astype(np.float32)
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    if samples.ndim != 1 or len(samples) == 0:
        raise UserError(f"a recording must be samples [N] or [N, channels] with N >= 1, got {tuple(samples.shape)}")
    if not np.isfinite(samples).all():
        raise UserError("a recording holds samples that are not finite")
    digest = hashlib.sha256(f"{sample_rate} ".encode() + samples.tobytes()).hexdigest()
    return Sound(torch.from_numpy(np.ascontiguousarray(samples)), sample_rate, digest)


def read_sound(path: Path) -> Sound:
    """A recording from a file, at its own rate. Raises UserError."""
    rate, _ = audio_info(path)
    return sound_of(load_audio(path, rate), rate)


@dataclass(frozen=True, slots=True)
class Said:
    """One turn of a conversation.

    Attributes:
        role: user | assistant.
        sound: what was recorded of a user's turn. words: what was said, "" where only the recording is known.
        style: of an assistant's turn.
    """

    role: str
    sound: Sound | None = None
    words: str = ""
    style: Style = NO_STYLE

    def __post_init__(self) -> None:
        if self.role not in ("user", "assistant"):
            raise one_of("role", self.role, ("user", "assistant"))
        if self.sound is None and not self.words.strip():
            raise UserError(f"a turn of the {self.role} holds neither words nor a recording")


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """What the model reads before it answers: a sequence, and the recordings of its clips, in order."""

    sequence: ChatSequence
    sounds: tuple[Sound, ...]

    def starts(self) -> list[int]:
        """First position of every clip."""
        audio = iter([place for place, role in enumerate(self.sequence.roles) if role == Role.AUDIO])
        found = []
        for clip in self.sequence.clips:
            places = [next(audio) for _ in range(clip.slots)]
            found.append(places[0])
        return found

    def continued(self, ids: Sequence[int]) -> ChatPrompt:
        """The prompt with a reply's ids behind it."""
        sequence = self.sequence
        longer = ChatSequence(
            [*sequence.ids, *ids],
            [*sequence.labels, *[IGNORE] * len(ids)],
            [*sequence.roles, *[int(Role.WORDS)] * len(ids)],
            sequence.clips,
            [],
        )
        return ChatPrompt(longer, self.sounds)

    def shared_with(self, other: ChatPrompt | None, limit: int) -> int:
        """How many leading positions, at most `limit`, are the same in both, recordings included.

        A clip counts as a whole: after half of one nothing may be continued.
        """
        if other is None:
            return 0
        ids, theirs = self.sequence.ids, other.sequence.ids
        most = min(len(ids), len(theirs), limit)
        same = next((place for place in range(most) if ids[place] != theirs[place]), most)
        pairs = zip(self._clips(), other._clips(), strict=False)  # the longer conversation holds more of them
        for (start, stop, sound), (their_start, their_stop, their_sound) in pairs:
            if (start, stop, sound.sha256) != (their_start, their_stop, their_sound.sha256) or stop > same:
                same = min(same, start, their_start)
                break
        clip = next((start for start, stop, _ in self._clips() if start < same < stop), same)
        return clip

    def _clips(self) -> list[tuple[int, int, Sound]]:
        clips = zip(self.starts(), self.sequence.clips, self.sounds, strict=True)
        return [(start, start + clip.slots, sound) for start, clip, sound in clips]


def make_prompt(chat: ChatFormat, turns: Sequence[Said], system: str | None = None) -> ChatPrompt:
    """The prompt of the reply to `turns`, the last of which is the user's.

    Args:
        system: system prompt in place of the trained one; None keeps it.

    Raises:
        UserError: nothing to answer, or a turn lacks what the model reads (words or a recording).
    """
    if not turns or turns[-1].role != "user":
        raise UserError("the last turn must be the user's: there is nothing to answer")
    if system is not None and system != chat.config.system_prompt:
        chat = _with_system(chat, system)
    player, other = _sides(chat)
    made = tuple(_turn(number, said, player, other, chat) for number, said in enumerate(turns))
    reply = Turn(player, _ANY_REPLY[0], _ANY_REPLY[1])
    dialogue = Dialogue("chat", "chat", "real", "daily", "test", (*made, reply))
    sequence = chat.sequence(dialogue, player)
    sequence = sequence.prompt_of(sequence.replies[-1])
    sounds = [turns[clip.turn].sound for clip in sequence.clips]
    return ChatPrompt(sequence, tuple(sound for sound in sounds if sound is not None))


def end_of_turn(chat: ChatFormat) -> int:
    """The id that ends a reply in this chat template."""
    player, other = _sides(chat)
    words = Turn(other, _UNSAID, asr_text=_UNSAID)
    dialogue = Dialogue("chat", "chat", "real", "daily", "test", (words, Turn(player, _ANY_REPLY[0], _ANY_REPLY[1])))
    sequence = chat.sequence(dialogue, player)
    return next(token for token, role in zip(sequence.ids, sequence.roles, strict=True) if role == Role.END)


def _sides(chat: ChatFormat) -> tuple[str, str]:
    """The speaker whom the model plays, and the other one."""
    player = "B" if chat.config.target == "both" else chat.config.target
    return player, next(speaker for speaker in SPEAKERS if speaker != player)


def said_of(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Said], str | None]:
    """Turns and system prompt of a conversation in the form that transformers' chat templates take.

    `content` is text, or a list of {"type": "text", "text": ...} and {"type": "audio", "audio": ...}, where the audio
    is a path, a `Sound`, or samples with "sampling_rate" beside them. An assistant's text may begin with its style.

    Raises:
        UserError: anything else; it names the message.
    """
    turns: list[Said] = []
    system: str | None = None
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise one_of(f"{where}.role", message.get("role") if isinstance(message, Mapping) else message, ROLES)
        sounds, words = _content(where, message.get("content"))
        if message["role"] == "user":
            # Several recordings of one message are several turns of the user, which the chat format joins again.
            turns += [Said("user", sound) for sound in sounds[:-1]]
            turns.append(_named(where, "user", sounds[-1] if sounds else None, words))
            continue
        if sounds:
            raise UserError(f"{where}: only the user's turns may hold a recording")
        if message["role"] == "system":
            system = words
        else:
            style, rest = parse_reply(words)
            turns.append(_named(where, "assistant", None, rest or words, style or NO_STYLE))
    return turns, system


def _content(where: str, content: Any) -> tuple[list[Sound], str]:
    if isinstance(content, str):
        return [], content
    if not isinstance(content, Sequence):
        raise UserError(f"{where}.content must be text or a list of parts, got {type(content).__name__}")
    sounds: list[Sound] = []
    words: list[str] = []
    for place, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            words.append(part["text"])
        elif kind == "audio":
            sounds.append(_sound(f"{where}.content[{place}]", part))
        else:
            raise one_of(f"{where}.content[{place}].type", kind, ("text", "audio"))
    return sounds, " ".join(words)


def _sound(where: str, part: Mapping[str, Any]) -> Sound:
    audio = part.get("audio", part.get("path"))
    if isinstance(audio, Sound):
        return audio
    if isinstance(audio, str | Path):
        return read_sound(Path(audio).expanduser())
    if isinstance(audio, Tensor | np.ndarray):
        if "sampling_rate" not in part:
            raise UserError(f"{where}: samples need their sampling_rate beside them")
        return sound_of(audio, part["sampling_rate"])
    raise UserError(f"{where}.audio must be a path or samples, got {type(audio).__name__}")


def _named(where: str, role: str, sound: Sound | None, words: str, style: Style = NO_STYLE) -> Said:
    try:
        return Said(role, sound, words, style)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _turn(number: int, said: Said, player: str, other: str, chat: ChatFormat) -> Turn:
    if said.role == "assistant":
        return Turn(player, said.words, said.style)
    reads = chat.config.input
    if said.sound is None or not chat.config.hears:
        if not said.words.strip():
            raise UserError(
                f"this model reads words (chat.input={reads}): give the words of turn {number + 1} beside its recording"
            )
        return Turn(other, said.words, asr_text=said.words)
    if reads == "speech_text" and not said.words.strip():
        raise UserError(
            f"this model reads words beside the speech (chat.input={reads}): give those of turn {number + 1}"
        )
    return Turn(
        other,
        said.words if said.words.strip() else _UNSAID,
        audio=f"turn-{number}",
        sample_rate=said.sound.sample_rate,
        seconds=said.sound.seconds,
        sha256=said.sound.sha256,
    )


@functools.lru_cache(maxsize=16)
def _with_system(chat: ChatFormat, system: str) -> ChatFormat:
    return ChatFormat(chat.tokenizer, replace(chat.config, system_prompt=system), chat.slots)
