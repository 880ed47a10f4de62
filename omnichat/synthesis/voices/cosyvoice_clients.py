"""The two ways to CosyVoice: a client of its HTTP server, and its own Python code from a checkout."""

from __future__ import annotations

import importlib
import random
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import torch

from omnichat.synthesis.base import ClipFailed, Wave
from omnichat.synthesis.voices.styled import check_spoken
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.log import get_logger

log = get_logger(__name__)

ROUTE = "/inference_instruct"
_FIRST_WAIT_SEC, _LONGEST_WAIT_SEC = 0.5, 8.0
_FAILURES_IN_A_ROW = 10  # clips that a server failed, one after the other, before it counts as broken
_ERROR_BYTES = 500  # of a server's error text, for the message


class Server:
    """Client of CosyVoice's FastAPI server: form fields tts_text, spk_id, instruct_text; int16 mono samples back.

    Releases differ in whether the route takes POST or GET (with the form in its body): what works is found and kept.

    Args:
        address: of the server. rate: of its samples, in Hz. max_samples: longest answer that is read.
        timeout_sec: to connect, and between two pieces of an answer. attempts: for one sentence.
    """

    def __init__(self, address: str, rate: int, max_samples: int, timeout_sec: float, attempts: int) -> None:
        self.address = address.rstrip("/")
        self.rate = rate
        self.max_bytes = 2 * max_samples
        self.attempts = attempts
        self._http = httpx.Client(timeout=timeout_sec, follow_redirects=False, trust_env=False)
        self._method = "POST"
        self._lock = threading.Lock()
        self._failed = 0

    @staticmethod
    def check_address(address: str) -> None:
        """Raise UserError for what is no http address."""
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UserError(f"voice.server={address!r} must be an address such as http://127.0.0.1:50000")

    def speak(self, text: str, speaker_id: str, instruct: str, seed: int) -> tuple[Wave, int]:
        """(float32 [N], rate in Hz). The server takes no seed; here it only spreads the waits between attempts.

        Raises:
            ClipFailed: an answer that is no samples, or an error that stays. UserError: down, or asked wrongly.
        """
        form = {"tts_text": text, "spk_id": speaker_id, "instruct_text": instruct}
        waits = random.Random(seed)
        trouble: ClipFailed | None = None
        for attempt in range(self.attempts):
            if attempt:
                longest = min(_LONGEST_WAIT_SEC, _FIRST_WAIT_SEC * 2 ** (attempt - 1))
                time.sleep(longest * waits.uniform(0.5, 1.0))
            try:
                content = self._ask(form)
                wave = np.frombuffer(content, dtype="<i2").astype(np.float32) / 32768.0
                check_spoken(wave, self.rate, text)
            except httpx.TransportError as error:
                trouble = ClipFailed("the speech server did not answer", f"{self.address} ({_name(error)})")
                continue
            except ClipFailed as error:
                trouble = error
                continue
            self._failed = 0
            return wave, self.rate
        assert trouble is not None
        with self._lock:
            self._failed += 1
            broken = self._failed >= _FAILURES_IN_A_ROW
        if trouble.reason == "the speech server did not answer" and not self._alive():
            raise UserError(f"voice.server: nothing answers at {self.address}; is the server running?") from None
        if broken:
            raise UserError(f"voice.server: {_FAILURES_IN_A_ROW} clips failed in a row, the last one: {trouble}")
        raise trouble

    def _ask(self, form: Mapping[str, str]) -> bytes:
        """The samples' bytes of one answer, never more than the limit."""
        method = self._method
        with self._http.stream(method, self.address + ROUTE, data=dict(form)) as answer:
            if answer.status_code == 405:
                self._method = "GET"
            elif answer.status_code != 200:
                self._refuse(answer)
            elif answer.headers.get("content-type", "").partition(";")[0] in ("application/json", "text/html"):
                raise ClipFailed("the speech server sent text in place of samples", self.address)
            else:
                return self._samples(answer)
        if method == "GET":
            raise UserError(f"voice.server: {self.address}{ROUTE} takes neither POST nor GET")
        return self._ask(form)

    def _samples(self, answer: httpx.Response) -> bytes:
        content = bytearray()
        for piece in answer.iter_bytes():
            content += piece
            if len(content) > self.max_bytes:
                raise ClipFailed("the speech server sent more samples than max_seconds", self.address)
        if not content:
            raise ClipFailed("the speech server sent no samples", self.address)
        if len(content) % 2:
            raise ClipFailed("the speech server sent half a sample", f"{len(content)} bytes")
        return bytes(content)

    def _refuse(self, answer: httpx.Response) -> None:
        """Raise what an error status means: 5xx and 429 may pass, everything else is a wrong address or form."""
        text = ""
        for piece in answer.iter_text():
            text += piece
            if len(text) >= _ERROR_BYTES:
                break
        said = " ".join(text.split())[:_ERROR_BYTES]
        if answer.status_code >= 500 or answer.status_code in (408, 429):
            raise ClipFailed("the speech server answered with an error", f"{answer.status_code} {said}")
        raise UserError(f"voice.server: {self.address}{ROUTE} answers {answer.status_code}: {said or 'no text'}")

    def _alive(self) -> bool:
        """Whether anything at the address speaks HTTP; any status will do."""
        try:
            self._http.get(self.address + "/openapi.json")
        except httpx.TransportError as error:
            log.warning("%s: %s", self.address, _name(error))
            return False
        return True


class Checkout:
    """CosyVoice's own Python class, from the repository folder that the user names.

    Args:
        folder: the checkout. model: the model's folder. ids: name -> spk_id, checked against the model's.
    """

    def __init__(self, folder: str, model: str, ids: Mapping[str, str]) -> None:
        root, weights = self.check_folders(folder, model)
        for path in (root / "third_party" / "Matcha-TTS", root):
            if str(path) not in sys.path:
                sys.path.insert(0, str(path))
        try:
            module = importlib.import_module("cosyvoice.cli.cosyvoice")
            self._model = module.CosyVoice(str(weights))
        except (ImportError, AttributeError) as error:
            raise UserError(f"voice.checkout: {root}: cannot be imported ({error})") from None
        except (OSError, ValueError, RuntimeError, AssertionError, KeyError) as error:
            raise UserError(f"voice.model: {weights}: CosyVoice cannot load it ({_name(error)})") from None
        # the method's name was misspelt in early releases
        listing = getattr(self._model, "list_available_spks", None) or self._model.list_avaliable_spks
        known = list(listing())
        for name, speaker_id in ids.items():
            if speaker_id not in known:
                raise one_of(f"voice.speakers.{name}.id", speaker_id, known)
        self.rate = int(getattr(self._model, "sample_rate", 22050))

    @staticmethod
    def check_folders(folder: str, model: str) -> tuple[Path, Path]:
        """Return both as paths. Raises UserError if one is not what it should be."""
        root, weights = Path(folder).expanduser(), Path(model).expanduser()
        if not (root / "cosyvoice" / "cli" / "cosyvoice.py").is_file():
            raise UserError(f"voice.checkout: {root}: no CosyVoice repository (it lacks cosyvoice/cli/cosyvoice.py)")
        if not weights.is_dir():
            raise UserError(f"voice.model: {weights}: no such folder")
        if "-Instruct" not in str(weights):
            raise UserError(f"voice.model: {weights}: CosyVoice tells an Instruct model by '-Instruct' in its path")
        return root, weights

    def speak(self, text: str, speaker_id: str, instruct: str, seed: int) -> tuple[Wave, int]:
        """(float32 [N], rate in Hz), spoken with the global generators seeded. Raises ClipFailed if it cannot."""
        with _seeded(seed), torch.inference_mode():
            try:
                pieces = [out["tts_speech"] for out in self._model.inference_instruct(text, speaker_id, instruct)]
            except (RuntimeError, ValueError, IndexError) as error:
                raise ClipFailed("the model could not speak a sentence", f"{text!r} ({_name(error)})") from None
        if not pieces:
            raise ClipFailed("the voice finds nothing to speak", repr(text))
        wave_1N = torch.cat([piece.detach().float().cpu() for piece in pieces], dim=-1)
        return wave_1N.reshape(-1).numpy(), self.rate


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, which CosyVoice draws from, and put them back afterwards."""
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


def _name(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__
