"""What a language model answered, kept: one file an answer, and a ledger of what has been paid.

An answer's file is named by the hash of all that asks for it (model, messages, sampling, request), never of where the
server is, so that a corpus moves between servers. It is written whole or not at all; a file that is torn, altered or
another's is not believed: the question is asked again. A failure is never kept.

`usage.jsonl` gets one line for every answer that was received, also for those that were of no use, before the answer is
kept: what was paid is counted once, however often a run is killed. `usage.json` sums it up for people.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jsonschema

from omnichat.utils.errors import UserError
from omnichat.utils.files import append_lines, sha256_bytes, write_bytes_atomic, write_json_atomic
from omnichat.utils.log import get_logger

log = get_logger(__name__)

_FORMAT = 1  # raise it when the meaning of a kept file changes


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said, and why it stopped.

    Attributes:
        finish: "stop", "length" (cut off at the token limit), "content_filter", or another word of the server's.
        prompt_tokens, completion_tokens: as the server counted them; 0 where it did not say.
    """

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """What a million tokens cost."""

    prompt: float = 0.0
    completion: float = 0.0
    currency: str = "USD"

    def __post_init__(self) -> None:
        if min(self.prompt, self.completion) < 0:
            raise UserError("prices: a price must be >= 0")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Price of so many tokens."""
        return round((self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6, 6)


def strict_json(text: str, schema: dict[str, Any]) -> bool:
    """Whether a text is JSON of that schema as it stands, without any repair: whether the model kept to it."""
    try:
        return jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    except (ValueError, RecursionError):
        return False


def answer_key(facts: Mapping[str, Any]) -> str:
    """Hex SHA-256 of what asks for an answer (JSON values)."""
    return sha256_bytes(json.dumps([_FORMAT, facts], sort_keys=True, allow_nan=False).encode("ascii"))


class AnswerStore:
    """Answers in a folder, or nowhere (`folder` None); counts what they took in either case.

    `kept` is the sum over the answers that this process used, whether they were paid now or by an earlier run: the same
    however often the run was killed. `paid` is the sum over the ledger.
    """

    def __init__(self, folder: Path | None, prices: Prices) -> None:
        self.folder, self.prices = folder, prices
        self._used: dict[str, tuple[int, int]] = {}
        self._paid: Counter[str] = Counter()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._paid = _read_ledger(folder / "usage.jsonl")

    def get(self, key: str) -> Answer | None:
        """The kept answer, or None; a file that cannot be trusted is reported and passed over."""
        if self.folder is None or not (path := self._path(key)).is_file():
            return None
        try:
            kept = json.loads(path.read_bytes())
            answer = Answer(**kept["answer"])
            problem = _distrust(kept, key, answer)
        except (ValueError, TypeError, KeyError, RecursionError, OSError) as error:
            problem = f"not readable ({type(error).__name__})"
        if problem is not None:
            log.warning("%s: %s; asking again", path, problem)
            return None
        self._used[key] = (answer.prompt_tokens, answer.completion_tokens)
        return answer

    def paid(self, key: str, answer: Answer) -> None:
        """Note in the ledger that an answer was received, whatever becomes of it."""
        self._paid.update(answers=1, prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens)
        if self.folder is not None:
            line = json.dumps({"key": key, "prompt": answer.prompt_tokens, "completion": answer.completion_tokens})
            ledger = self.folder / "usage.jsonl"
            try:
                append_lines(ledger, [line])
            except OSError as error:
                raise UserError(f"{ledger}: the ledger cannot be written: {error.strerror}") from None

    def put(self, key: str, answer: Answer, facts: Mapping[str, Any]) -> None:
        """Keep a good answer, whole, together with what it answers."""
        self._used[key] = (answer.prompt_tokens, answer.completion_tokens)
        if self.folder is not None:
            kept = {"key": key, "facts": facts, "answer": asdict(answer), "check": _check(key, answer)}
            # ASCII, because what a model says may hold halves of surrogate pairs, which UTF-8 cannot write
            try:
                write_bytes_atomic(self._path(key), json.dumps(kept, allow_nan=False).encode("ascii"))
            except OSError as error:
                raise UserError(f"{self._path(key)}: an answer cannot be kept: {error.strerror}") from None

    def usage(self) -> dict[str, Any]:
        """{"kept": ..., "paid": ...}: answers, prompt_tokens, completion_tokens, cost, currency of each."""
        prompt, completion = (sum(tokens[i] for tokens in self._used.values()) for i in (0, 1))
        kept = {"answers": len(self._used), "prompt_tokens": prompt, "completion_tokens": completion}
        paid = {name: self._paid[name] for name in kept}
        return {name: {**sums, **self._cost(sums)} for name, sums in (("kept", kept), ("paid", paid))}

    @property
    def paid_tokens(self) -> int:
        """Tokens of all answers received so far, both ways."""
        return self._paid["prompt_tokens"] + self._paid["completion_tokens"]

    def write_usage(self) -> None:
        """Write usage.json, the ledger's sum for people."""
        if self.folder is not None:
            write_json_atomic(self.folder / "usage.json", self.usage())

    def _cost(self, sums: Mapping[str, int]) -> dict[str, Any]:
        cost = self.prices.cost(sums["prompt_tokens"], sums["completion_tokens"])
        return {"cost": cost, "currency": self.prices.currency}

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.json"


def _check(key: str, answer: Answer) -> str:
    return sha256_bytes(json.dumps([key, asdict(answer)], sort_keys=True).encode("ascii"))


def _distrust(kept: Mapping[str, Any], key: str, answer: Answer) -> str | None:
    if kept["key"] != key or answer_key(kept["facts"]) != key:
        return "answers another question"
    if not (isinstance(answer.text, str) and isinstance(answer.finish, str)):
        return "not an answer"
    if any(type(count) is not int or count < 0 for count in (answer.prompt_tokens, answer.completion_tokens)):
        return "not an answer"
    return None if kept["check"] == _check(key, answer) else "altered"


def _read_ledger(path: Path) -> Counter[str]:
    sums: Counter[str] = Counter()
    bad = 0
    for line in path.read_text(encoding="ascii", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            sums.update(answers=1, prompt_tokens=int(row["prompt"]), completion_tokens=int(row["completion"]))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            bad += bool(line.strip())
    if bad:
        log.warning("%s: %d lines are not readable and not counted", path, bad)
    return sums
