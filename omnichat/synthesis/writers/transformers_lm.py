"""Scripts from a local causal language model, in batches, held to the script's JSON schema while it writes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from omnichat.remote.answers import Answer, AnswerStore, Prices
from omnichat.synthesis.base import ScriptRequest
from omnichat.synthesis.writers.contract import answer_schema
from omnichat.synthesis.writers.language_model import LanguageModelWriter, Question
from omnichat.synthesis.writers.prompting import Prompts
from omnichat.synthesis.writers.sampling import JsonGrammar, RowSampler
from omnichat.utils.devices import resolve_device
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.llm_files import check_llm_path, local_llm
from omnichat.utils.log import get_logger

log = get_logger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TransformersWriter(LanguageModelWriter):
    """Writes with a model of transformers in this process. The model loads at the first script.

    Sampling is seeded for each request by itself. In a batch of others a request's logits differ by rounding, so that
    now and then another token wins: the batches are therefore cut from the list of requests as it is, and one of which
    an answer is missing is written anew as a whole. On one machine, one list of requests gives one corpus, killed or
    not.

    Args:
        path: folder, hub id, .gguf file or asset:NAME, of a model with a chat template. revision: of a hub id.
        licence: of the texts, as the model's terms have it.
        device: auto (a GPU if there is one) | cpu | cuda | cuda:1 ... dtype: float32 | bfloat16 | float16.
        prompts, examples, reply_style, max_words: see OpenAIWriter.
        constrained: hold the text to the JSON schema token by token.
        temperature: 0 = always the likeliest token. top_p: in (0, 1].
        max_tokens: of an answer; a longer one is cut off and rejected. batch: requests written together.
    """

    def __init__(
        self,
        path: str,
        revision: str | None,
        licence: str,
        device: str,
        dtype: str,
        prompts: str,
        examples: int,
        reply_style: str,
        max_words: int,
        constrained: bool,
        temperature: float,
        top_p: float,
        max_tokens: int,
        batch: int,
    ) -> None:
        check_llm_path("writer.path", path)
        if dtype not in DTYPES:
            raise one_of("writer.dtype", dtype, DTYPES)
        if temperature < 0 or not 0 < top_p <= 1:
            raise UserError(f"writer: temperature must be >= 0 and top_p in (0, 1], got {temperature} and {top_p}")
        for key, number in (("max_tokens", max_tokens), ("batch", batch)):
            if number < 1:
                raise UserError(f"writer.{key} must be >= 1, got {number}")
        self._device = torch.device(resolve_device(device, "writer.device"))
        self._path, self._revision, self._dtype = path, revision, dtype
        self._constrained, self._temperature, self._top_p = constrained, temperature, top_p
        self._max_tokens, self._batch = max_tokens, batch
        sampling = {
            "revision": revision,
            "dtype": dtype,
            "device": self._device.type,
            "constrained": constrained,
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_tokens,
            "batch": batch,
        }
        filled = Prompts(prompts, examples, max_words, reply_style)
        super().__init__("local language model", path, filled, licence, Prices(), sampling)
        self._loaded: tuple[Any, Any, JsonGrammar | None] | None = None

    def answer_all(self, questions: Iterator[Question], answers: AnswerStore) -> Iterator[tuple[Question, Answer]]:
        """See `LanguageModelWriter.answer_all`."""
        while batch := list(itertools.islice(questions, self._batch)):
            kept = [answers.get(question.key) for question in batch]
            if None in kept:
                fresh = self._generate(batch)
                for place, (question, answer) in enumerate(zip(batch, fresh, strict=True)):
                    if kept[place] is None:
                        answers.paid(question.key, answer)
                        answers.put(question.key, answer, question.facts)
                        kept[place] = answer
            for question, found in zip(batch, kept, strict=True):
                assert found is not None
                yield question, found

    def schema(self, request: ScriptRequest) -> dict[str, Any]:
        """See `LanguageModelWriter.schema`: with places and words, which the automata know."""
        return answer_schema(request, self.reply_style, self.prompts.max_words)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    @torch.inference_mode()
    def _generate(self, batch: list[Question]) -> list[Answer]:
        model, tokenizer, grammar = self._model()
        texts = [
            tokenizer.apply_chat_template(question.messages, tokenize=False, add_generation_prompt=True)
            for question in batch
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(self._device)
        width = inputs["input_ids"].shape[1]
        window = getattr(model.config, "max_position_embeddings", None)
        if window is not None and width + self._max_tokens > window:
            raise UserError(
                f"writer: a prompt of {width} tokens and max_tokens={self._max_tokens} do not fit into the model's "
                f"{window}; fewer examples or max_tokens help"
            )
        sampler = RowSampler(
            [question.request.seed for question in batch],
            self._temperature,
            self._top_p,
            width,
            [] if grammar is None else [grammar.matcher(question.schema) for question in batch],
            tokenizer.eos_token_id,
        )
        written = model.generate(
            **inputs,
            do_sample=False,  # the sampler draws
            max_new_tokens=self._max_tokens,
            logits_processor=[sampler],
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        sizes = inputs["attention_mask"].sum(dim=1).tolist()
        return [
            self._answer(tokenizer, row, size) for row, size in zip(written[:, width:].tolist(), sizes, strict=True)
        ]

    def _answer(self, tokenizer: Any, ids: list[int], prompt_tokens: int) -> Answer:
        end = tokenizer.eos_token_id
        whole = end in ids
        ids = ids[: ids.index(end)] if whole else ids
        text = tokenizer.decode(ids, skip_special_tokens=True)
        return Answer(text, "stop" if whole else "length", int(prompt_tokens), len(ids) + whole)

    def _model(self) -> tuple[Any, Any, JsonGrammar | None]:
        if self._loaded is None:
            source = local_llm(self._path)
            try:
                tokenizer = AutoTokenizer.from_pretrained(source, revision=self._revision, padding_side="left")
                model = AutoModelForCausalLM.from_pretrained(source, revision=self._revision, dtype=DTYPES[self._dtype])
            except (OSError, ValueError) as error:
                reason = str(error).strip().splitlines()[0]
                raise UserError(f"writer.path={self._path!r} cannot be loaded as a causal LLM: {reason}") from None
            if tokenizer.chat_template is None or tokenizer.eos_token_id is None:
                raise UserError(f"writer.path={self._path!r}: its tokenizer has no chat template; take a chat model")
            if tokenizer.pad_token_id is None:
                tokenizer.pad_token = tokenizer.eos_token
            model.to(self._device).eval()  # type: ignore[arg-type]
            grammar = JsonGrammar(tokenizer, model.config.vocab_size) if self._constrained else None
            self._loaded = model, tokenizer, grammar
        return self._loaded
