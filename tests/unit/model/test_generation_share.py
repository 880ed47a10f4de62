"""Decoding shared by processes: whole batches are dealt out, so every reply is the one that a single process gives."""

from __future__ import annotations

import pytest

from omnichat.data.corpus import Corpus
from omnichat.model.generation import Prompt, batches_of, end_of_turn_id, generate_replies, generate_share, prompt_for
from tests.helpers_core import Kit, make_kit, wake_lora

HOW = {"max_new_tokens": 6, "batch_tokens": 200, "precision": "fp32"}


@pytest.fixture(scope="module")
def kit(synthetic: Corpus, real: Corpus) -> Kit:
    made = make_kit([synthetic, real])
    wake_lora(made.model)
    return made


@pytest.fixture(scope="module")
def prompts(kit: Kit) -> list[Prompt]:
    return [prompt_for(item, reply) for item in kit.items() for reply in item.sequence.replies]


def share(kit: Kit, prompts: list[Prompt], rank: int, processes: int, **more: object) -> dict[int, str]:
    end = end_of_turn_id(kit.items()[0])
    how = {**HOW, "share": (rank, processes), **more}
    return generate_share(kit.model, prompts, kit.chat, kit.features, end, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("processes", [1, 2, 3, 50])
def test_the_shares_together_are_the_whole(kit: Kit, prompts: list[Prompt], processes: int) -> None:
    end = end_of_turn_id(kit.items()[0])
    whole = generate_replies(kit.model, prompts, kit.chat, kit.features, end, **HOW)  # type: ignore[arg-type]
    parts = [share(kit, prompts, rank, processes) for rank in range(processes)]
    assert sum(map(len, parts)) == len(prompts), "no reply is decoded twice"
    together = {row: text for part in parts for row, text in part.items()}
    assert [together[row] for row in range(len(prompts))] == whole
    if processes == 2:
        assert all(parts), "both have something to do"


def test_what_is_done_is_not_decoded_again(kit: Kit, prompts: list[Prompt]) -> None:
    mine = [row for batch in batches_of(prompts, 200)[::2] for row in batch]
    seen: list[dict[int, str]] = []
    got = share(kit, prompts, 0, 2, done=dict.fromkeys(mine[:-1], "kept"), on_batch=seen.append)
    assert len(seen) == len(batches_of(prompts, 200)[::2]), "told of every batch, also of those that were done"
    last = batches_of(prompts, 200)[::2][-1]
    assert [set(batch) for batch in seen if batch] == [set(last)], "a batch that lacks one reply is decoded whole"
    assert all(got[row] == "kept" for row in mine if row not in last)


def test_batches_hold_every_prompt_once_within_the_budget(prompts: list[Prompt]) -> None:
    batches = batches_of(prompts, 200)
    assert sorted(row for batch in batches for row in batch) == list(range(len(prompts)))
    for batch in batches:
        longest = max(len(prompts[row].item.sequence) for row in batch)
        assert len(batch) == 1 or longest * len(batch) <= 200
