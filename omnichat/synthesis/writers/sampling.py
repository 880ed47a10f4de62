"""Sampling from a local language model, each row of a batch for itself and held to a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from omnichat.utils.errors import UserError
from omnichat.utils.seeding import derive_seed

try:
    import llguidance.hf
    import llguidance.numpy
except ImportError as _error:
    raise UserError(f"writer=transformers needs {_error.name}: pip install 'omnichat[writers]'") from None


class JsonGrammar:
    """A tokenizer's automata: which tokens may come next so that the text becomes JSON of a schema (llguidance).

    Args:
        tokenizer: a fast tokenizer of transformers. vocabulary: columns of the model's logits.
    """

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        try:
            self._tokenizer = llguidance.hf.from_tokenizer(tokenizer, n_vocab=max(vocabulary, len(tokenizer)))
        except ValueError as error:
            raise UserError(f"writer.constrained: this model's tokenizer cannot be used: {error}") from None

    def matcher(self, schema: dict[str, Any]) -> Any:
        """A fresh automaton for a schema. Raises UserError if the library does not know something in it."""
        # Without this a model may put spaces and line breaks between the parts until its tokens are used up.
        compact = {
            **schema,
            "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
        }
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(compact))
        matcher = llguidance.LLMatcher(self._tokenizer, grammar)
        if matcher.is_error():
            raise UserError(f"writer.constrained: {' '.join(matcher.get_error().split())[:200]}")
        return matcher


class RowSampler(LogitsProcessor):
    """Turns greedy decoding into sampling: adds Gumbel noise of each row's own generator to its logits.

    The largest of logits plus Gumbel noise is a sample of their softmax (Gumbel 1954; Maddison et al. 2014), so that
    what a row says depends on its own logits and seed, and not on how many rows there are beside it.

    Args:
        seeds: one for each row. temperature: above 0; 0 = greedy. top_p: mass of the likeliest tokens kept, in (0, 1].
        prompt: columns of the prompt, which the automata do not see.
        matchers: one automaton a row, or none at all. end: token that ends a text.
    """

    def __init__(
        self, seeds: Sequence[int], temperature: float, top_p: float, prompt: int, matchers: Sequence[Any], end: int
    ) -> None:
        self._generators = [torch.Generator().manual_seed(derive_seed(seed, "tokens")) for seed in seeds]
        self._temperature, self._top_p = temperature, top_p
        self._prompt, self._matchers, self._end = prompt, list(matchers), end
        self._done = [False] * len(seeds)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores, float [rows, vocabulary] -> float32 of the same shape: their largest is the next token."""
        return torch.stack([self._row(row, input_ids[row], scores[row].float()) for row in range(len(scores))])

    def _row(self, row: int, ids: Tensor, scores: Tensor) -> Tensor:
        if self._done[row]:
            return scores
        if self._matchers:
            scores = self._masked(row, ids, scores)
        if self._temperature == 0:
            return scores
        scores = _nucleus(torch.log_softmax(scores / self._temperature, dim=-1), self._top_p)
        noise = torch.empty(len(scores)).exponential_(generator=self._generators[row])
        return scores - torch.log(noise).to(scores.device)

    def _masked(self, row: int, ids: Tensor, scores: Tensor) -> Tensor:
        matcher = self._matchers[row]
        if len(ids) > self._prompt and not matcher.consume_token(int(ids[-1])):
            raise UserError(f"writer.constrained: {' '.join(matcher.get_error().split())[:200]}")
        if matcher.is_stopped():
            self._done[row] = True
            only = torch.full_like(scores, -torch.inf)
            only[self._end] = 0.0
            return only
        mask = llguidance.numpy.allocate_token_bitmask(1, len(scores))
        llguidance.numpy.fill_next_token_bitmask(matcher, mask, 0)
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(scores)].astype(bool)
        return scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), -torch.inf)


def _nucleus(log_probabilities: Tensor, top_p: float) -> Tensor:
    """-inf for all but the fewest likeliest entries that together have `top_p` (Holtzman et al. 2020)."""
    if top_p >= 1:
        return log_probabilities
    ordered, order = log_probabilities.sort(descending=True, stable=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    dropped = order[before >= top_p]
    return log_probabilities.index_fill(0, dropped, -torch.inf)
