"""What is kept of a conversation: its turns as JSON, the user's recordings, the spoken replies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omnichat.audio.io import save_audio
from omnichat.chat.base import Answer
from omnichat.chat.session import Session
from omnichat.chat.speaking import ReplyVoice, Spoken
from omnichat.model.pretrained.conversation import Said
from omnichat.synthesis.base import ClipFailed
from omnichat.utils.errors import UserError
from omnichat.utils.files import write_json_atomic
from omnichat.utils.log import get_logger

log = get_logger(__name__)


class ChatRecord:
    """A folder of a conversation: dialogue.json, turn-NN.wav of the user, reply-NN.wav of the model.

    Args:
        folder: where; one that holds a dialogue already is left alone, and name-2, name-3, ... is taken.
        session: the conversation.
        voice: speaks the replies; None: they are only written.
    """

    def __init__(self, folder: Path, session: Session, voice: ReplyVoice | None) -> None:
        self.base, self.session, self.voice = folder, session, voice
        self.begin()

    def begin(self) -> None:
        """A new dialogue, in a folder of its own; made when something is said."""
        names = (self.base if n == 1 else self.base.with_name(f"{self.base.name}-{n}") for n in range(1, 100_000))
        self.folder = next(folder for folder in names if not (folder / "dialogue.json").exists())
        self.rows: list[dict[str, Any]] = []

    @property
    def path(self) -> Path:
        """The dialogue's file."""
        return self.folder / "dialogue.json"

    def take_back(self) -> None:
        """The last turn and its reply are asked anew."""
        self.rows = self.rows[:-2]

    def _spoken(self, answer: Answer) -> Spoken | None:
        if self.voice is None:
            return None
        try:
            return self.voice.speak(answer)
        except (ClipFailed, UserError) as error:  # the words are there and stay so
            log.warning("not spoken: %s", error)
            return None

    def keep(self, said: Said, answer: Answer) -> Path | None:
        """Write a turn and its reply; returns the spoken reply's file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        number = len(self.rows) // 2 + 1
        turn: dict[str, Any] = {"role": "user", "words": said.words or None}
        if said.sound is not None:
            name = f"turn-{number:02d}.wav"
            save_audio(self.folder / name, said.sound.wave_N.clamp(-1.0, 1.0), said.sound.sample_rate)
            turn |= {"audio": name, "seconds": round(said.sound.seconds, 3)}
        style = answer.style
        reply: dict[str, Any] = {
            "role": "assistant",
            "words": answer.words,
            "style": None if style is None else [style.pitch, style.speed, style.emotion],
            "complete": answer.complete,
            "first_token_sec": round(answer.first_token_sec, 3),
            "seconds": round(answer.seconds, 3),
            "tokens": answer.tokens,
        }
        path = None
        if (spoken := self._spoken(answer)) is not None:
            path = self.folder / f"reply-{number:02d}.wav"
            save_audio(path, spoken.wave_N, spoken.sample_rate)
            reply["audio"] = path.name
        self.rows += [turn, reply]
        write_json_atomic(self.path, {"model": self.session.talker.name, "turns": self.rows})
        return path
