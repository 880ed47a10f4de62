"""What every judge does: several samples a reply, each answer kept under all that asks for it, their mean the score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from omnichat.evaluation.judge.prompting import JudgePrompts
from omnichat.evaluation.judge.verdict import answer_schema, read_score
from omnichat.evaluation.predictions import Prediction
from omnichat.remote.answers import Answer, AnswerStore, Prices, answer_key
from omnichat.utils.errors import UserError
from omnichat.utils.log import get_logger
from omnichat.utils.progress import progress
from omnichat.utils.seeding import derive_seed

log = get_logger(__name__)

_CHARS_PER_TOKEN = 4.0  # of English in the tokenizers of today's models, about
_TOKENS_PER_MESSAGE = 4  # role and separators


class JudgeQuestion:
    """One sample of one reply's grade.

    Its key is made of the model, the prompt as it was filled in, the sampling and the number of the sample: not of the
    system, file or dialogue that the reply is from. Equal replies to equal turns are therefore graded once.
    """

    __slots__ = ("facts", "key", "messages", "schema", "seed")

    def __init__(self, messages: list[dict[str, str]], seed: int, sample: int, facts: Mapping[str, Any]) -> None:
        self.messages, self.schema = messages, answer_schema()
        self.seed = derive_seed(seed, "judge", sample)
        self.facts = {**facts, "messages": messages, "schema": self.schema, "seed": seed, "sample": sample}
        self.key = answer_key(self.facts)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The grades of one reply.

    Attributes:
        samples: those that could be read, in the order of their numbers. reasons: why the others could not.
        prompt: version and scenario.
    """

    source: str
    id: str
    samples: tuple[int, ...]
    reasons: tuple[str, ...]
    prompt: str
    model: str

    @property
    def score(self) -> float | None:
        """Mean of the samples; None where none could be read."""
        return fmean(self.samples) if self.samples else None

    def to_json(self) -> dict[str, Any]:
        """A line of <stem>.judge.jsonl."""
        return {
            "source": self.source,
            "id": self.id,
            "judge": self.score,
            "samples": list(self.samples),
            "unparsed": len(self.reasons),
            "prompt": self.prompt,
            "model": self.model,
        }


@dataclass(frozen=True, slots=True)
class Outlook:
    """What judging would take: distinct questions, those without a kept answer, and tokens and cost of the latter.

    `prompt_tokens` is an estimate (four characters a token), `completion_tokens` and `cost` the most there can be.
    """

    questions: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    currency: str


class Judge(ABC):
    """Grades replies from 1 to 5.

    Args:
        model: its name; part of what an answer is kept under, and of every line of scores.
        prompts: packaged version or folder; see JudgePrompts.
        samples: grades a reply. seed: of the samples; another seed asks anew.
        max_tokens: longest answer. prices: per million tokens.
        sampling: all other settings that decide an answer.
    """

    def __init__(
        self,
        model: str,
        prompts: str,
        samples: int,
        seed: int,
        max_tokens: int,
        prices: Prices,
        sampling: Mapping[str, Any],
    ) -> None:
        if samples < 1:
            raise UserError(f"judge.samples must be >= 1, got {samples}")
        if seed < 0:
            raise UserError(f"judge.seed must be >= 0, got {seed}")
        if samples > 1 and sampling.get("temperature") == 0:
            log.warning("judge.temperature=0: the %d samples of a reply will hardly differ", samples)
        self.model, self.samples, self.seed = model, samples, seed
        self.max_tokens, self.prices, self.sampling = max_tokens, prices, dict(sampling)
        self.prompts = JudgePrompts(prompts)

    @abstractmethod
    def answer_all(
        self, questions: Iterator[JudgeQuestion], answers: AnswerStore
    ) -> Iterator[tuple[JudgeQuestion, Answer]]:
        """Yield the questions in their order, each with its answer: the kept one, or one that is kept now."""

    def judge(self, predictions: Sequence[Prediction], answers: AnswerStore) -> list[Judgement]:
        """Return the grades of each reply, in the order of the replies.

        Raises:
            UserError: the judge cannot be asked; what was answered by then is kept.
        """
        found: dict[str, int | str] = {}
        try:
            with progress(len(predictions) * self.samples, "judge", unit="answer") as bar:
                for question, answer in self.answer_all(self._distinct(predictions), answers):
                    found[question.key] = read_score(answer.text, answer.finish)
                    bar.set_postfix(tokens=answers.paid_tokens, refresh=False)
                    bar.update()
                bar.update(bar.total - bar.n)  # equal questions, which were asked once
        finally:
            answers.write_usage()
        return [self._judgement(each, [found[asked.key] for asked in self.questions(each)]) for each in predictions]

    def questions(self, prediction: Prediction) -> list[JudgeQuestion]:
        """One question for each sample."""
        messages = self.prompts.messages(prediction)
        facts = {"model": self.model, "sampling": self.sampling}
        return [JudgeQuestion(messages, self.seed, sample, facts) for sample in range(self.samples)]

    def outlook(self, predictions: Sequence[Prediction], answers: AnswerStore) -> Outlook:
        """What `judge` would take; asks nothing."""
        asked = missing = chars = messages = 0
        for question in self._distinct(predictions):
            asked += 1
            if answers.get(question.key) is None:
                missing += 1
                messages += len(question.messages)
                chars += sum(len(message["content"]) for message in question.messages)
        prompt = round(chars / _CHARS_PER_TOKEN) + _TOKENS_PER_MESSAGE * messages
        completion = missing * self.max_tokens
        cost = self.prices.cost(prompt, completion)
        return Outlook(asked, missing, prompt, completion, cost, self.prices.currency)

    def _distinct(self, predictions: Sequence[Prediction]) -> Iterator[JudgeQuestion]:
        seen: set[str] = set()
        for prediction in predictions:
            for question in self.questions(prediction):
                if question.key not in seen:
                    seen.add(question.key)
                    yield question

    def _judgement(self, prediction: Prediction, found: Sequence[int | str]) -> Judgement:
        return Judgement(
            prediction.source,
            prediction.id,
            tuple(each for each in found if isinstance(each, int)),
            tuple(each for each in found if isinstance(each, str)),
            self.prompts.name(prediction.scenario),
            self.model,
        )


def unread(judgements: Sequence[Judgement]) -> Counter[str]:
    """Reasons why answers could not be read, counted."""
    return Counter(reason for each in judgements for reason in each.reasons)
