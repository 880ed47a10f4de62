"""Settings of `omnichat web`."""

from __future__ import annotations

from dataclasses import dataclass, field

from omnichat.chat.base import DecodingConfig
from omnichat.chat.web.config import PageConfig
from omnichat.utils.errors import UserError


@dataclass(kw_only=True, slots=True)
class TalkConfig(PageConfig):
    """`omnichat web`: how replies are made, and what a page and its users may take.

    Raises:
        UserError: a value that is out of its range.
    """

    decoding: DecodingConfig = field(default_factory=lambda: DecodingConfig(max_sec=60.0))
    models: int = 2  # that stay loaded; another one takes the place of the one that was idle longest
    queue: int = 16  # requests that wait; one more is refused
    tabs: int = 16  # with a dialogue; one more takes the place of the one that was idle longest
    idle_sec: float = 1800.0  # after which a tab's dialogue is forgotten
    turns: int = 16  # of a dialogue, each with its reply
    max_file_mb: float = 25.0  # of an upload
    max_sec: float = 30.0  # of a recording
    sounds_mb: float = 200.0  # of recordings that can be played, over all tabs; the oldest give way
    uploads_mb: float = 500.0  # of uploaded files on disk; the oldest give way
    shown_examples: int = 8  # dialogues of the corpus of examples that are offered
    seed: int = 0  # of the voice's variation

    def __post_init__(self) -> None:
        PageConfig.__post_init__(self)  # no super(): a dataclass with slots is made twice, and super() knows the first
        for name in ("models", "queue", "tabs", "turns", "shown_examples"):
            value = getattr(self, name)
            if isinstance(value, bool) or not 1 <= value <= 10_000:
                raise UserError(f"{name} must be 1 to 10000, got {value}")
        for name in ("idle_sec", "max_file_mb", "max_sec", "sounds_mb", "uploads_mb"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("sounds_mb", "uploads_mb"):
            if getattr(self, name) < self.max_file_mb:
                raise UserError(f"{name} must be at least max_file_mb ({self.max_file_mb}), got {getattr(self, name)}")

    @property
    def max_file_bytes(self) -> int:
        """Of an upload."""
        return round(self.max_file_mb * 1e6)
