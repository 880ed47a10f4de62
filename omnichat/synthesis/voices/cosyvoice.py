"""CosyVoice-Instruct (Du et al., 2024), which takes style as a sentence: the voice of the paper's own corpus.

Two ways to it: `server`, the HTTP server that its repository ships (FastAPI: a form at /inference_instruct, answered by
16-bit mono samples), or `checkout`, its Python code in a folder that the user names, with a model folder beside it.

Its samples are not reproducible: the server takes no seed and draws its own, and with a checkout the seed is set but
kernels on an accelerator keep no fixed order. A corpus made with it is whole and checked, but cannot be made
again bit by bit.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch

from omnichat.audio import effects
from omnichat.audio.io import resample
from omnichat.schema import Style
from omnichat.synthesis.base import Utterance, Voice, Wave
from omnichat.synthesis.voices.cosyvoice_clients import Checkout, Server
from omnichat.synthesis.voices.styled import check_spoken
from omnichat.utils.errors import UserError, one_of

_FIELDS = ("gender", "pitch", "speed", "emotion")


@dataclass(frozen=True, kw_only=True, slots=True)
class CosySpeaker:
    """One speaker: its name in the model (spk_id), and the gender that the instruction names."""

    id: str
    gender: str

    def __post_init__(self) -> None:
        if not self.id.strip() or not self.gender.strip():
            raise UserError("voice.speakers: a CosyVoice speaker needs an id (spk_id of the model) and a gender")


class CosyVoice(Voice):
    """CosyVoice-Instruct by its server or from its checkout.

    Args:
        server: address of the HTTP server, e.g. http://127.0.0.1:50000; null = use the checkout.
        checkout: folder of the CosyVoice repository; its code is imported and run. null = use the server.
        model: the model's folder, for a checkout; its name holds "-Instruct".
        model_rate: rate in Hz of what the model speaks (22,050 for CosyVoice-300M); a checkout says it itself.
        instruct: the instruction, with the fields {gender}, {pitch}, {speed} and {emotion}.
        speakers: name -> CosySpeaker.
        licence: of the voice, for the data card.
        sample_rate: of the clips, in Hz. speech_level_db: active level of every clip, in dB re full scale.
        max_seconds: longest clip; an answer of more bytes is cut off and refused.
        timeout_sec: the longest silence of the server within one answer. attempts: how often a sentence is asked for.
        concurrency: sentences under way at the server at once.
    """

    reproducible = False

    def __init__(
        self,
        server: str | None,
        checkout: str | None,
        model: str | None,
        model_rate: int,
        instruct: str,
        speakers: Mapping[str, CosySpeaker],
        licence: str,
        sample_rate: int,
        speech_level_db: float,
        max_seconds: float,
        timeout_sec: float,
        attempts: int,
        concurrency: int,
    ) -> None:
        if (server is None) == (checkout is None):
            raise UserError("voice: name either server (an address) or checkout (a folder), not both or none")
        if checkout is not None and model is None:
            raise UserError("voice.model is null: a checkout needs the folder of a CosyVoice-Instruct model")
        if not speakers:
            raise UserError("voice.speakers is empty; name at least one speaker")
        for key, value in (("timeout_sec", timeout_sec), ("attempts", attempts), ("concurrency", concurrency)):
            if value < 1:
                raise UserError(f"voice.{key} must be >= 1, got {value}")
        if not 1 <= max_seconds <= 120:
            raise UserError(f"voice.max_seconds must be in [1, 120], got {max_seconds}")
        _check_template(instruct)
        self.server = server
        self.checkout = checkout
        self.model = model
        self.model_rate = model_rate
        self.instruct = instruct
        self.cosy_speakers = dict(speakers)
        self.licence = licence
        self._rate = sample_rate
        self.speech_level_db = speech_level_db
        self.max_seconds = max_seconds
        self.timeout_sec = timeout_sec
        self.attempts = attempts
        self.concurrency = concurrency
        self._client: Server | Checkout | None = None
        if server is None:
            assert checkout is not None and model is not None
            Checkout.check_folders(checkout, model)
        else:
            Server.check_address(server)

    @property
    def speakers(self) -> dict[str, str | None]:
        """Names of its speakers and the gender that the instruction says."""
        return {name: speaker.gender for name, speaker in self.cosy_speakers.items()}

    @property
    def sample_rate(self) -> int:
        """Rate in Hz of every clip."""
        return self._rate

    def instruction(self, speaker: str, style: Style) -> str:
        """The instruction for one turn; what the style leaves open is called normal or neutral."""
        return self.instruct.format(
            gender=self.cosy_speakers[speaker].gender,
            pitch=style.pitch or "normal",
            speed=style.speed or "normal",
            emotion=style.emotion or "neutral",
        )

    def speak(self, text: str, speaker: str, style: Style, seed: int) -> tuple[Wave, int]:
        """See `Voice.speak`; the same arguments may give other samples.

        Raises:
            ClipFailed: an answer that is no speech, or a server's error that stays after all attempts.
            UserError: an unknown speaker, a wrong address or folder, a server that is down.
        """
        if speaker not in self.cosy_speakers:
            raise one_of("voice speaker", speaker, self.cosy_speakers)
        if self._client is None:
            self._client = self._connect()
        plain, rate = self._client.speak(text, self.cosy_speakers[speaker].id, self.instruction(speaker, style), seed)
        plain = check_spoken(plain, rate, text, self.max_seconds)
        wave = resample(torch.from_numpy(plain), rate, self._rate).numpy()
        wave = effects.to_level_db(wave, self._rate, self.speech_level_db)
        return effects.fade(effects.guard_peak(wave), self._rate), self._rate

    def speak_batch(self, lines: Sequence[Utterance]) -> list[Wave]:
        """See `Voice.speak_batch`: `concurrency` sentences are under way at a server at once."""
        if self.server is None or self.concurrency == 1 or len(lines) < 2:
            return super().speak_batch(lines)
        if self._client is None:
            self._client = self._connect()
        with ThreadPoolExecutor(min(self.concurrency, len(lines))) as pool:
            waves = pool.map(lambda line: self.speak(line.text, line.speaker, line.style, line.seed)[0], lines)
            return list(waves)

    def describe(self) -> dict[str, Any]:
        """Settings and licence; says that the samples are not reproducible."""
        return {
            "name": "CosyVoice-Instruct",
            "model": self.model or "as the server has it",
            "way": "server" if self.server is not None else "checkout",
            "licence": self.licence,
            "sample_rate": self._rate,
            "model_rate": self.model_rate,
            "speech_level_db": self.speech_level_db,
            "instruct": self.instruct,
            "speakers": {name: asdict(speaker) for name, speaker in self.cosy_speakers.items()},
            "max_seconds": self.max_seconds,
            "reproducible": False,
        }

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the settings only; a worker process connects, or loads the model, itself."""
        return self.__dict__ | {"_client": None}

    def _connect(self) -> Server | Checkout:
        ids = {name: speaker.id for name, speaker in self.cosy_speakers.items()}
        if self.server is None:
            assert self.checkout is not None and self.model is not None
            return Checkout(self.checkout, self.model, ids)
        limit = int(self.max_seconds * self.model_rate)
        return Server(self.server, self.model_rate, limit, self.timeout_sec, self.attempts)


def _check_template(instruct: str) -> None:
    """Raise UserError for an instruction that names another field, or cannot be filled."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(instruct) if name is not None]
    except ValueError as error:
        raise UserError(f"voice.instruct={instruct!r} cannot be filled: {error}") from None
    for name in names:
        if name not in _FIELDS:
            raise one_of("voice.instruct field", name, _FIELDS)
    if "<endofprompt>" in instruct:
        raise UserError("voice.instruct: <endofprompt> is added by CosyVoice itself; leave it out")
