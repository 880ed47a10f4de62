"""One reply after another: requests wait in line, and one thread answers them in the order in which they came."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from omnichat.audio.io import encode_audio
from omnichat.chat.base import Answer, Talker
from omnichat.chat.server.config import ServeConfig
from omnichat.chat.server.dialogues import Dialogues, max_positions
from omnichat.chat.server.errors import ApiError, unfit
from omnichat.chat.server.request import Asked
from omnichat.chat.server.turns import check_room, read_turns
from omnichat.chat.speaking import ReplyVoice
from omnichat.synthesis.base import Voice
from omnichat.utils.errors import UserError
from omnichat.utils.log import get_logger

log = get_logger(__name__)
_NEWEST = 0.3  # share of the newest reply in the mean time of one


@dataclass(frozen=True, slots=True)
class Reply:
    """What a request ends in: the answer, and the file of its recording, where it is to be spoken and could be."""

    answer: Answer
    spoken: bytes | None


Event = str | Reply | ApiError  # a piece of the text, or an end


class Job:
    """One request on its way.

    Args:
        asked: what is asked.
        tell: takes pieces and the end, from the thread that answers.
    """

    def __init__(self, asked: Asked, tell: Callable[[Event], None]) -> None:
        self.asked: Asked | None = asked
        self.tell, self.stop, self.begun = tell, threading.Event(), False

    def leave(self) -> None:
        """Nobody waits for it any more: it is skipped, or ends after the token at hand."""
        self.stop.set()
        self.asked = None  # it may stand in line for long, and holds recordings


class Engine:
    """The model, the line before it and the dialogues that it remembers.

    Args:
        talker: the model, which only this engine's thread may use from now on.
        config: decoding and limits.
        voice: speaks replies for those who ask for it; None: nobody may.
        speaker: who speaks where a request does not say; None: the voice's first.
    """

    def __init__(
        self, talker: Talker, config: ServeConfig, voice: Voice | None = None, speaker: str | None = None
    ) -> None:
        self.talker, self.config = talker, config
        self._voice = voice
        self.speakers: list[str] = []
        if voice is not None:
            first = ReplyVoice(voice, speaker).speaker
            self.speakers = [first, *(name for name in voice.speakers if name != first)]
        self._dialogues = Dialogues(talker, config.limits.sessions)
        self._positions = max_positions(talker)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reply")
        self._jobs: set[Job] = set()
        self._places = threading.Lock()
        self._timer: threading.Timer | None = None
        self._mean_sec = 1.0  # of a reply
        self.inside = 0  # requests that hold a place
        self.closing = False

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place in line, taken before a request's body is read: what waits takes memory.

        Raises:
            ApiError: 429 where the line is full, 503 where the server is about to stop.
        """
        with self._places:
            if self.closing:
                raise _stopping()
            if self.inside > self.config.limits.queue:
                wait = max(1, round(self._mean_sec * self.inside))
                raise ApiError(
                    429,
                    f"{self.inside} requests are answered or waiting; try again in {wait} s",
                    "queue_full",
                    headers={"Retry-After": str(wait)},
                )
            self.inside += 1
        try:
            yield
        finally:
            with self._places:
                self.inside -= 1

    def submit(self, asked: Asked, tell: Callable[[Event], None]) -> Job:
        """Put a request in line. Raises ApiError where the server is about to stop."""
        job = Job(asked, tell)
        if self.closing:
            raise _stopping()
        self._jobs.add(job)
        self._thread.submit(self._work, job)
        return job

    def wind_down(self, seconds: float) -> None:
        """Take nothing new, refuse what waits, and cut the running reply after some seconds."""
        self.closing = True
        for job in list(self._jobs):
            if not job.begun:
                job.stop.set()
                job.tell(_stopping())
        self._timer = threading.Timer(seconds, self._stop_all)
        self._timer.daemon = True
        self._timer.start()

    def close(self) -> None:
        """Stop, after the token at hand. Safe to call twice."""
        self.closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._stop_all()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _stop_all(self) -> None:
        for job in list(self._jobs):
            job.stop.set()

    def _work(self, job: Job) -> None:
        asked = job.asked
        try:
            if asked is None or job.stop.is_set():
                return
            job.begun = True
            started = time.monotonic()
            job.tell(self._reply(job, asked))
            self._mean_sec += _NEWEST * (time.monotonic() - started - self._mean_sec)
        except ApiError as error:
            job.tell(error)
        except UserError as error:  # what the model cannot read
            job.tell(unfit("messages", str(error)))
        except Exception:
            log.exception("a request failed")
            job.tell(ApiError(500, "the server failed on this request", "internal_error"))
        finally:
            self._jobs.discard(job)

    def _reply(self, job: Job, asked: Asked) -> Reply:
        turns, system = read_turns(asked.messages, self.config.limits, self.talker.reads_words)
        session, said, before = self._dialogues.take(turns, system, asked.decoding)
        positions = len(self.talker.processor.prompt([*session.turns, said], system).sequence)
        check_room(positions, self.config.limits, self._positions)
        if self._positions is not None:
            most = min(asked.decoding.max_new_tokens, self._positions - positions)
            session.decoding = replace(asked.decoding, max_new_tokens=most)
        for piece in session.stream(said, job.stop):
            job.tell(piece)
        answer = session.answers[-1]
        if answer.heard is None and before is not None:  # the same turn again: the cache held its recording
            answer = replace(answer, heard=before.heard)
            session.answers[-1] = answer
        self._dialogues.put(session)
        log.info(
            "%d tokens in %.1f s, the first after %.2f s; %d positions, %d kept",
            *(answer.tokens, answer.seconds, answer.first_token_sec, answer.prompt_tokens, answer.kept_tokens),
        )
        return Reply(answer, self._speak(job, asked, answer))

    def _speak(self, job: Job, asked: Asked, answer: Answer) -> bytes | None:
        if self._voice is None or asked.container is None or job.stop.is_set():
            return None
        try:
            spoken = ReplyVoice(self._voice, asked.speaker, asked.decoding.seed).speak(answer)
        except UserError as error:  # the words are there and stay so
            log.warning("a reply is not spoken: %s", error)
            return None
        return encode_audio(spoken.wave_N, spoken.sample_rate, asked.container)


def _stopping() -> ApiError:
    return ApiError(503, "the server is stopping", "stopping")
