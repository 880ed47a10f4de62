"""One question to a chat server that may be down, slow or wrong: time limits, retries, a circuit breaker, caps.

Whatever the server does, a call returns an answer that has been looked at, or raises UserError with one line. The key
comes from the environment and goes nowhere but into the request's header.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from omnichat.remote.answers import Answer
from omnichat.utils.errors import UserError
from omnichat.utils.log import get_logger
from omnichat.utils.seeding import python_rng

try:
    import httpx2 as httpx
    import openai
    import tenacity
except ImportError as _error:
    raise UserError(
        f"a chat server is asked by {_error.name}, which is missing: pip install 'omnichat[writers]'"
    ) from None

log = get_logger(__name__)

RESPONSE_FORMATS = ("auto", "json_schema", "json_object", "none")
_FALLBACK = {"json_schema": "json_object", "json_object": "none"}
_PERMANENT = (401, 402, 403, 404, 405)  # a wrong key, address or model: no retry helps
_UNFIT = (400, 422)  # what a server says that does not know a field


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How long, how often, how much.

    Attributes:
        timeout_sec: for one attempt, from the first byte sent to the last received.
        tries: attempts at one question. wait_sec, max_wait_sec: the wait before the second, and the longest; it doubles
            in between, and a random half of it is taken off, so that clients do not come back all at once.
        max_retry_after_sec: longest wait that a server may ask for by Retry-After.
        breaker: failed attempts in a row, over all questions, after which nothing more is sent.
        max_response_bytes: a longer response is not read to its end.
    """

    timeout_sec: float = 120.0
    tries: int = 6
    wait_sec: float = 1.0
    max_wait_sec: float = 60.0
    max_retry_after_sec: float = 300.0
    breaker: int = 20
    max_response_bytes: int = 2_000_000

    def __post_init__(self) -> None:
        for name, low in (("tries", 1), ("breaker", 1), ("max_response_bytes", 1000)):
            if getattr(self, name) < low:
                raise UserError(f"limits.{name} must be >= {low}, got {getattr(self, name)}")
        for name in ("wait_sec", "max_wait_sec", "max_retry_after_sec"):
            if getattr(self, name) < 0:
                raise UserError(f"limits.{name} must be >= 0, got {getattr(self, name)}")
        if self.timeout_sec <= 0:
            raise UserError(f"limits.timeout_sec must be > 0, got {self.timeout_sec}")


class _Failed(Exception):
    """An attempt that failed, and may do better. `after_sec`: the wait that the server asked for."""

    def __init__(self, reason: str, after_sec: float | None = None, busy: bool = False) -> None:
        super().__init__(reason)
        self.after_sec, self.busy = after_sec, busy


class _UnfitFormat(Exception):
    """The server does not take this response_format."""


class ChatClient:
    """Asks one chat server; use it inside one event loop, and `close` it there. Its settings are ChatEndpoint's.

    Args:
        key: of the part in the config, for messages: "writer", "judge".
        base_url: of an OpenAI-compatible API, up to and with /v1, as `check_url` returns it.
        api_key_env: name of the environment variable that holds the key; None = the server wants none.
        response_format: one of RESPONSE_FORMATS; auto: json_schema until the server refuses or ignores it, then
            json_object, then none, for the rest of the run.
        concurrency: questions under way at a time.
    """

    def __init__(
        self, key: str, base_url: str, api_key_env: str | None, response_format: str, concurrency: int, limits: Limits
    ) -> None:
        self.base_url, self.limits = base_url, limits
        self._key = read_key(key, api_key_env)
        self._auto = response_format == "auto"
        self.mode = "json_schema" if self._auto else response_format
        self._settled = not self._auto
        self._failures = 0
        self._open: str | None = None
        self._first, self._slots = asyncio.Lock(), asyncio.Semaphore(concurrency)
        pool = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self._http = httpx.AsyncClient(
            timeout=limits.timeout_sec,
            limits=pool,
            headers={"accept-encoding": "identity"},
            event_hooks={"response": [self._cap]},
            follow_redirects=False,
        )
        self._client = openai.AsyncOpenAI(
            base_url=self.base_url, api_key=self._key or "none", max_retries=0, http_client=self._http
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    async def ask(
        self, body: Mapping[str, Any], schema: Mapping[str, Any], seed: int, received: Callable[[Answer], None]
    ) -> tuple[Answer, str]:
        """Return (answer, the response_format it was asked with).

        Args:
            body: of the request, without response_format. schema: JSON schema of the answer.
            seed: of the random part of the waits.
            received: called with every answer that came, before anything else is done with it: it has been paid.

        Raises:
            UserError: the breaker is open, the tries are used up, or no try can help.
        """
        async with self._slots:
            if self._settled:
                return await self._persistent(body, schema, seed, received)
            async with self._first:  # one question finds out which format the server takes; the others wait for it
                answer = await self._persistent(body, schema, seed, received)
                self._settled = True
                return answer

    def ignored(self, mode: str) -> None:
        """Tell that an answer did not keep to `mode`: under auto, the next format is used from now on."""
        if self._auto and mode == self.mode == "json_schema":
            log.warning("%s: answers do not keep to the JSON schema; going on with json_object", self.base_url)
            self.mode = _FALLBACK[mode]

    async def _persistent(
        self, body: Mapping[str, Any], schema: Mapping[str, Any], seed: int, received: Callable[[Answer], None]
    ) -> tuple[Answer, str]:
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.limits.tries),
            wait=lambda state: self._wait_sec(state, seed),
            retry=tenacity.retry_if_exception_type(_Failed),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return await retrying(self._attempt_any_format, body, schema, received)
        except _Failed as failed:
            raise self._stop(f"failed {self.limits.tries} times on one request, the last time with: {failed}") from None

    async def _attempt_any_format(
        self, body: Mapping[str, Any], schema: Mapping[str, Any], received: Callable[[Answer], None]
    ) -> tuple[Answer, str]:
        while True:
            mode = self.mode
            try:
                return await self._attempt({**body, **_format(mode, schema)}, received), mode
            except _UnfitFormat as error:
                if not self._auto or mode == "none":
                    raise self._stop(str(error)) from None
                if self.mode == mode:  # else another question has found out meanwhile
                    self.mode = _FALLBACK[mode]
                    log.warning("%s: does not take %s; going on with %s", self.base_url, mode, self.mode)

    async def _attempt(self, body: Mapping[str, Any], received: Callable[[Answer], None]) -> Answer:
        if self._open is not None:
            raise UserError(self._open)
        try:
            async with asyncio.timeout(self.limits.timeout_sec):
                answer = await self._once(body, received)
        except TimeoutError:
            failed = _Failed(f"no whole answer within {self.limits.timeout_sec:g} s")
        except _Failed as error:
            failed = error
        else:
            self._failures = 0
            return answer
        self._failures += not failed.busy  # a server that asks for patience is alive
        if self._failures >= self.limits.breaker:
            raise self._stop(f"failed {self._failures} times in a row, the last time with: {failed}")
        raise failed

    async def _once(self, body: Mapping[str, Any], received: Callable[[Answer], None]) -> Answer:
        try:
            raw = await self._client.chat.completions.with_raw_response.create(**body)
        except openai.APIStatusError as error:
            raise self._status_error(error) from None
        except (openai.APIConnectionError, httpx.HTTPError) as error:
            raise _Failed(
                self._safe(f"{type(error.__cause__ or error).__name__}: {error.__cause__ or error}")
            ) from None
        try:
            answer = _answer_of(json.loads(raw.http_response.content))
        except (ValueError, RecursionError) as error:
            raise _Failed(f"a response that is no chat completion ({self._safe(str(error))})") from None
        received(answer)
        return answer

    def _status_error(self, error: openai.APIStatusError) -> Exception:
        status, said = error.status_code, self._safe(error.response.text)
        if status in _PERMANENT or "insufficient_quota" in said:
            return self._stop(f"HTTP {status}: {said}")
        if status in _UNFIT:
            return _UnfitFormat(f"HTTP {status}: {said}")
        if 300 <= status < 500 and status not in (408, 409, 425, 429):
            return self._stop(f"HTTP {status}: {said}")
        return _Failed(f"HTTP {status}: {said}", _retry_after(error.response.headers), busy=status == 429)

    def _stop(self, reason: str) -> UserError:
        if self._open is None:  # what came first is what is told, also for the requests that it takes along
            self._open = f"{self.base_url} {reason}; answers so far are kept, and the same command continues from them"
        return UserError(self._open)

    def _safe(self, text: str) -> str:
        """A server's words in a message: one line, short, without the key that it may repeat."""
        if self._key:
            text = text.replace(self._key, "(key)")
        line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return line if len(line) <= 200 else line[:197] + "..."

    def _wait_sec(self, state: tenacity.RetryCallState, seed: int) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        wait = min(self.limits.max_wait_sec, self.limits.wait_sec * 2.0 ** (state.attempt_number - 1))
        wait *= python_rng(seed, "wait", state.attempt_number).uniform(0.5, 1.0)
        asked = error.after_sec if isinstance(error, _Failed) and error.after_sec is not None else 0.0
        return max(wait, min(asked, self.limits.max_retry_after_sec))

    async def _sleep(self, seconds: float) -> None:
        if self._open is None:
            await asyncio.sleep(seconds)

    async def _cap(self, response: httpx.Response) -> None:
        """Hook of every response: bounds what is read of it, before anything is."""
        if response.headers.get("content-encoding", "identity") != "identity":
            raise httpx.DecodingError("a compressed response, which was not asked for", request=response.request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Capped(response.stream, self.limits.max_response_bytes)


class _Capped(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, limit: int) -> None:
        self._stream, self._left, self._limit = stream, limit, limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            self._left -= len(part)
            if self._left < 0:
                raise httpx.ReadError(f"a response of more than {self._limit} bytes")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


def check_url(key: str, base_url: str) -> str:
    """Return an http(s) address without a password in it; raise UserError, which names `key`.base_url, otherwise."""
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError) as error:
        raise UserError(f"{key}.base_url={base_url!r} is no address: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise UserError(f"{key}.base_url={base_url!r} must be like http://127.0.0.1:8000/v1")
    if url.userinfo:
        raise UserError(f"{key}.base_url must hold no password; {key}.api_key_env names the variable with the key")
    return base_url.rstrip("/")


def read_key(key: str, api_key_env: str | None) -> str | None:
    """Return the secret in the variable, None where none is wanted; raise UserError, which names `key`.api_key_env."""
    if api_key_env is None:
        return None
    if not (secret := os.environ.get(api_key_env, "").strip()):
        raise UserError(f"{key}.api_key_env: the environment variable {api_key_env} is not set")
    return secret


def _format(mode: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    if mode == "json_schema":
        named = {"name": "answer", "strict": True, "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    return {"response_format": {"type": "json_object"}} if mode == "json_object" else {}


def _answer_of(value: Any) -> Answer:
    """The answer in the JSON of a chat completion. Raises ValueError where it is none."""
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("no choices")
    message, finish = choices[0].get("message"), choices[0].get("finish_reason")
    if not isinstance(message, dict):
        raise ValueError("no message")
    text = message.get("content")
    if text is None and (finish in ("length", "content_filter") or isinstance(message.get("refusal"), str)):
        text, finish = "", finish if finish == "length" else "content_filter"
    if not isinstance(text, str):
        raise ValueError("no text")
    used = value.get("usage") if isinstance(value.get("usage"), dict) else {}
    counts = [used.get(name) for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if type(count) is int and 0 <= count < 2**40 else 0 for count in counts)
    return Answer(text, finish if isinstance(finish, str) else "stop", prompt, completion)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, from a number or a date; None where it asks for nothing readable."""
    text = headers.get("retry-after", "").strip()
    try:
        seconds = (
            float(text) if text[:1].isdigit() else email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        )
    except (ValueError, TypeError):
        return None
    return max(0.0, seconds)
