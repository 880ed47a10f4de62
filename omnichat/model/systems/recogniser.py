"""The ears of a cascade: Whisper's transcripts of the user's turns, each recording once for all systems."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omnichat.audio.io import load_audio
from omnichat.data.transcripts import TranscriptStore
from omnichat.encoders.whisper_asr import RATE_HZ, WINDOW_SEC, WhisperTranscriber
from omnichat.encoders.whisper_files import find_whisper
from omnichat.model.systems.base import SeenTurn
from omnichat.utils.devices import resolve_device
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import sha256_bytes
from omnichat.utils.log import get_logger
from omnichat.utils.progress import progress

log = get_logger(__name__)

KEY = "asr"
_DTYPES = ("float32", "bfloat16")


class Recogniser:
    """Whisper, greedy; a recording of more than 30 s in pieces of 30 s.

    Args:
        path: weights in any layout (an OpenAI .pt file, a folder, asset:NAME, a hub id).
        language: of the speech.
        device: auto | cpu | cuda | cuda:N. dtype: of the encoder, float32 | bfloat16.
        max_tokens: of the transcript of 30 s.
        batch_size: clips heard together.
        window_sec: what the encoder reads of a clip at least, silence after it included; 30 is Whisper's own window.
        cache: folder of the kept transcripts.
    """

    def __init__(
        self,
        path: str,
        language: str,
        device: str,
        dtype: str,
        max_tokens: int,
        batch_size: int,
        window_sec: float,
        cache: str,
    ) -> None:
        if dtype not in _DTYPES:
            raise one_of(f"{KEY}.dtype", dtype, _DTYPES)
        if not 1 <= max_tokens <= 224:
            raise UserError(f"{KEY}.max_tokens must lie in [1, 224], Whisper's longest, got {max_tokens}")
        if batch_size < 1:
            raise UserError(f"{KEY}.batch_size must be at least 1, got {batch_size}")
        if not 1.0 <= window_sec <= WINDOW_SEC:
            raise UserError(f"{KEY}.window_sec must lie in [1, {WINDOW_SEC:g}], got {window_sec}")
        self.window_sec = window_sec
        self.device = resolve_device(device, f"{KEY}.device")
        self.path, self.language, self.dtype = path, language, dtype
        self.max_tokens, self.batch_size, self.cache = max_tokens, batch_size, Path(cache).expanduser()
        self._whisper: WhisperTranscriber | None = None

    def load(self) -> None:
        """Load Whisper and the transcripts that are kept of it. Raises UserError."""
        try:
            whisper = WhisperTranscriber(
                find_whisper(self.path), self.max_tokens, self.dtype, self.language, self.device
            )
        except UserError as error:
            raise UserError(f"{KEY}: {error}") from None
        self._whisper, self._weights = whisper, whisper.fingerprint()
        self._store = TranscriptStore(self.cache, sha256_bytes(json.dumps(self.describe(), sort_keys=True).encode()))

    def describe(self) -> dict[str, Any]:
        """What sets a transcript, as JSON."""
        return {
            "asr": "whisper",
            "weights": self._weights,
            "language": self.language,
            "dtype": self.dtype,
            "max_tokens": self.max_tokens,
            "window_sec": self.window_sec,
            "decoding": 1,  # raise it when greedy decoding or the cutting into pieces changes
        }

    def transcripts(self, turns: Sequence[SeenTurn]) -> dict[str, str]:
        """SHA-256 -> words of all recordings among `turns`; those that are not kept yet are heard now."""
        recorded = {turn.sha256: turn for turn in turns if turn.audio is not None and turn.sha256 is not None}
        missing = [turn for sha256, turn in recorded.items() if sha256 not in self._store.texts]
        missing.sort(key=lambda turn: (-turn.seconds, str(turn.sha256)))
        if missing:
            log.info("transcribing %d of %d recordings; the others are kept", len(missing), len(recorded))
            with progress(len(missing), "transcribe", unit="clip") as bar:
                for start in range(0, len(missing), self.batch_size):
                    batch = missing[start : start + self.batch_size]
                    self._store.add(self._hear(batch))
                    bar.update(len(batch))
        return {str(sha256): self._store.texts[str(sha256)] for sha256 in recorded}

    def _hear(self, turns: Sequence[SeenTurn]) -> dict[str, str]:
        """Transcribe recordings, `batch_size` pieces at a time."""
        assert self._whisper is not None, "load() comes first"
        waves, hashes = [], []
        for turn in turns:
            assert turn.audio is not None and turn.sha256 is not None
            waves.append(load_audio(turn.audio, RATE_HZ).numpy())
            hashes.append(turn.sha256)
        return dict(zip(hashes, self._whisper.transcribe_long(waves, self.batch_size, self.window_sec), strict=True))
