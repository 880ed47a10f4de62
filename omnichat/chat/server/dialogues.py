"""The dialogues that were answered last, so that a request that goes on with one costs its own turn only."""

from __future__ import annotations

from collections.abc import Sequence

from omnichat.chat.base import Answer, DecodingConfig, Talker
from omnichat.chat.session import Session
from omnichat.model.pretrained.conversation import Said


class Dialogues:
    """Sessions with kept caches, the longest unused one given up first. Not for two threads at a time.

    A request states its whole dialogue. Which session it gets, and whether any is there, changes how long its reply
    takes, never the reply (in fp32, as `Session` has it).

    Args:
        talker: the model.
        limit: how many are kept; 0 = none, and every request reads its whole dialogue.
    """

    def __init__(self, talker: Talker, limit: int) -> None:
        self.talker, self.limit = talker, limit
        self._kept: list[Session] = []  # the one used last stands last

    def __len__(self) -> int:
        return len(self._kept)

    def take(
        self, turns: Sequence[Said], system: str | None, decoding: DecodingConfig
    ) -> tuple[Session, Said, Answer | None]:
        """A session whose turns are all but the last, that last turn, and how it was answered before, if it was.

        The session is the caller's until it is put back; one that failed is not put back. Recordings whose words the
        model reads are transcribed, but for those of which the session knows the words.
        """
        session: Session | None = None
        before: Answer | None = None
        same = 0
        for kept in self._kept:
            if kept.system == system and (found := _shared(kept.turns, turns)) > same:
                same, session = found, kept
        if session is None:
            if self._kept and len(self._kept) >= self.limit:
                del self._kept[0]  # before the new one grows
            session = Session(self.talker, decoding, system, keep_cache=self.limit > 0)
        else:
            self._kept = [kept for kept in self._kept if kept is not session]
            if same == len(turns) == len(session.turns) - 1:
                before = session.answers[-1]
        session.decoding = decoding
        whole = [*session.turns[:same], *(self._completed(said) for said in turns[same:])]
        session.say(whole[:-1])
        return session, whole[-1], before

    def put(self, session: Session) -> None:
        """Keep a session that has answered."""
        del session.answers[:-1]  # they hold every window's attention
        if self.limit > 0:
            self._kept = [*self._kept, session][-self.limit :]

    def _completed(self, said: Said) -> Said:
        return self.talker.completed(said) if said.role == "user" else said


def _shared(old: Sequence[Said], new: Sequence[Said]) -> int:
    """How many leading turns are the same; 0 where any but the last reply of `old` is not.

    A session whose dialogue began alike and went on otherwise is somebody else's: its cache is better left to them.
    """
    same = 0
    while same < min(len(old), len(new)) and _same(new[same], old[same]):
        same += 1
    return same if same >= len(old) - 1 else 0


def _same(new: Said, old: Said) -> bool:
    if (new.role, new.style) != (old.role, old.style) or (new.sound is None) != (old.sound is None):
        return False
    if new.sound is None or old.sound is None:
        return new.words == old.words
    # Of a recording that comes without words those stand in `old` that were heard in it.
    return new.sound.sha256 == old.sound.sha256 and (new.words == old.words or not new.words.strip())


def cache_mb(talker: Talker, positions: int) -> float | None:
    """Megabytes that keys and values of so many positions take; None where the LLM does not say its sizes."""
    config = talker.model.model.llm.config
    heads = getattr(config, "num_attention_heads", None)
    layers, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if not (heads and layers and width):
        return None
    head_width = getattr(config, "head_dim", None) or width // heads
    pairs = getattr(config, "num_key_value_heads", None) or heads
    size = talker.model.model.llm.get_input_embeddings().weight.element_size()
    return float(2 * layers * pairs * head_width * size * positions / 1e6)


def max_positions(talker: Talker) -> int | None:
    """Positions that the LLM has in all, prompt and reply; None where it does not say."""
    found = getattr(talker.model.model.llm.config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None
