"""What must not matter does not: the batch around a dialogue, padding, and whether replies are taken one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from omnichat.data.collate import Batch, Item
from omnichat.data.corpus import Corpus
from omnichat.model.generation import end_of_turn_id, generate_share, prompt_for
from omnichat.schema import EncodedAudio
from omnichat.text.chat import IGNORE, ChatConfig
from omnichat.training.data import make_item
from tests.helpers_core import Kit, make_kit, wake_lora

INPUTS = ["speech", "text", "speech_text"]


@pytest.fixture(scope="module", params=INPUTS)
def kit(request: pytest.FixtureRequest, synthetic: Corpus) -> Kit:
    made = make_kit([synthetic], ChatConfig(input=request.param), queries=2)
    wake_lora(made.model)
    return made


def losses_by_position(kit: Kit, batch: Batch) -> Tensor:
    """Token losses at their positions, [B, S - 1]; zero where nothing is supervised."""
    wanted = batch.labels_BS[:, 1:] != IGNORE
    out = torch.zeros(wanted.shape)
    with torch.no_grad():
        out[wanted] = kit.model(batch).ce_N
    return out


def test_a_batch_gives_the_losses_of_single_dialogues(kit: Kit) -> None:
    items = kit.items()
    assert len({len(item.sequence) for item in items}) > 2, "equal lengths would show nothing"
    together = losses_by_position(kit, kit.batch(items))
    for row, item in enumerate(items):
        alone = losses_by_position(kit, kit.batch([item]))
        width = alone.shape[1]
        torch.testing.assert_close(together[row, :width], alone[0], rtol=0, atol=1e-5)
        assert not together[row, width:].any()


def test_what_stands_in_the_padding_is_never_seen(kit: Kit) -> None:
    batch = kit.batch(kit.items()[:4])
    plain = losses_by_position(kit, batch)
    ids = batch.ids_BS.masked_fill(~batch.mask_BS, 77)
    streams = {}
    for name, stream in batch.streams.items():
        x, mask = stream.x_BTD.clone(), stream.mask_BT
        (x.transpose(1, 2) if x.dim() == 4 else x)[~mask] = 1e4
        streams[name] = EncodedAudio(x, mask, stream.time_sec.masked_fill(~mask, 99.0))
    torch.testing.assert_close(
        losses_by_position(kit, replace(batch, ids_BS=ids, streams=streams)), plain, rtol=0, atol=0
    )


def test_all_replies_in_one_pass_cost_what_each_costs_alone(kit: Kit) -> None:
    """Turn split: a dialogue cut off after a reply, and that reply supervised alone, gives the reply the same loss."""
    [source] = kit.sources
    replies = 0
    for dialogue in source.corpus.dialogues:
        [sequence] = kit.chat.sequences(dialogue)
        whole = losses_by_position(kit, kit.batch([make_item(source, dialogue, sequence)]))[0]
        for reply in sequence.replies:
            so_far = replace(dialogue, turns=dialogue.turns[: reply.turn + 1])
            [part] = kit.chat.sequences(so_far)
            last = part.replies[-1]
            part.labels = [IGNORE] * last.start + part.labels[last.start :]
            alone = losses_by_position(kit, kit.batch([make_item(source, so_far, part)]))[0]
            assert (last.start, last.stop) == (reply.start, reply.stop)
            span = slice(reply.start - 1, reply.stop - 1)
            assert alone[span].all() and not alone[: reply.start - 1].any()
            torch.testing.assert_close(whole[span], alone[span], rtol=0, atol=1e-4)
            replies += 1
    assert replies > len(source.corpus.dialogues), "some dialogue must have several replies"


def test_accumulated_losses_sum_to_the_whole(kit: Kit) -> None:
    items = kit.items()[:6]
    whole = kit.model(kit.batch(items)).ce_N
    parts = [kit.model(kit.batch([item])).ce_N for item in items]
    assert len(whole) == sum(map(len, parts))
    torch.testing.assert_close(whole.sum(), torch.cat(parts).sum(), rtol=1e-6, atol=1e-4)


def test_replies_decoded_in_a_batch_are_those_decoded_alone(kit: Kit) -> None:
    """Greedy ids are equal, with prompts of many lengths padded on the left and recordings shared between them."""
    prompts = [prompt_for(item, reply) for item in kit.items() for reply in item.sequence.replies]
    end = end_of_turn_id(kit.items()[0])
    kit.model.eval()
    batch = kit.batch([p.item for p in prompts], pad_left=True)
    assert not batch.mask_BS.all()
    together = kit.model.generate(batch, end, 8)
    alone = [kit.model.generate(kit.batch([p.item], pad_left=True), end, 8)[0] for p in prompts]
    assert together == alone
    assert len({tuple(ids) for ids in alone}) > 1, "a model that says one thing would show nothing"


def test_decoding_takes_the_likeliest_token_given_the_whole_prompt(kit: Kit) -> None:
    """Decoding with a key-value cache gives what full forward passes over prompt and reply so far give."""
    item = max(kit.items(), key=lambda i: len(i.sequence))
    prompt = prompt_for(item, item.sequence.replies[-1]).item
    ids: list[int] = []
    kit.model.eval()
    with torch.no_grad():
        for _ in range(6):
            batch = kit.batch([longer(prompt, ids)])
            embeds = kit.model.embed(batch)[0]
            ids.append(int(kit.model.llm(inputs_embeds=embeds, attention_mask=batch.mask_BS).logits[0, -1].argmax()))
    assert kit.model.generate(kit.batch([prompt], pad_left=True), 2, 6)[0] == (ids[: ids.index(2)] if 2 in ids else ids)


def longer(item: Item, ids: list[int]) -> Item:
    s = item.sequence
    grown = replace(s, ids=s.ids + ids, labels=s.labels + [IGNORE] * len(ids), roles=s.roles + [0] * len(ids))
    return replace(item, sequence=grown)


def test_decoding_stops_at_the_end_of_turn(kit: Kit) -> None:
    prompt = prompt_for(kit.items()[0], kit.items()[0].sequence.replies[0])
    batch = kit.batch([prompt.item], pad_left=True)
    free = kit.model.generate(batch, 2, 8)[0]
    end = free[3]
    stopped = kit.model.generate(batch, end, 8)[0]
    assert stopped == free[: free.index(end)], "up to, and without, the end of turn"


def test_replies_come_in_the_order_of_the_prompts_whatever_the_budget(kit: Kit) -> None:
    prompts = [prompt_for(item, reply) for item in kit.items()[:5] for reply in item.sequence.replies]
    end = end_of_turn_id(kit.items()[0])

    def decode(budget: int) -> list[str]:
        done: list[int] = []
        kit.model.train()
        texts = generate_share(
            kit.model, prompts, kit.chat, kit.features, end,
            max_new_tokens=5, batch_tokens=budget, precision="fp32", on_batch=lambda found: done.append(len(found)),
        )  # fmt: skip
        assert kit.model.training and sum(done) == len(prompts)
        return [texts[row] for row in range(len(prompts))]

    assert decode(1) == decode(10**6)


def test_variants_share_their_recordings_and_not_their_last(synthetic: Corpus) -> None:
    made = make_kit([synthetic])
    groups: dict[str, list[Item]] = {}
    for dialogue, item in zip(synthetic.dialogues, made.items() + made.items("dev"), strict=True):
        groups.setdefault(dialogue.turns[-2].variant_of or "", []).append(item)
    pair = next(items for items in groups.values() if len(items) == 2 and len(items[0].keys) > 1)
    batch = made.batch(pair)
    assert len(batch.seconds_C) == len(pair[0].keys) + 1
    alone = [losses_by_position(made, made.batch([item])) for item in pair]
    both = losses_by_position(made, batch)
    for row, single in enumerate(alone):
        torch.testing.assert_close(both[row, : single.shape[1]], single[0], rtol=0, atol=1e-5)


def test_a_models_own_decoding_habits_are_not_taken_over(kit: Kit) -> None:
    """Some instruct models ship a repetition penalty; greedy is greedy."""
    batch = kit.batch([prompt_for(item, item.sequence.replies[0]).item for item in kit.items()[:3]], pad_left=True)
    plain = kit.model.generate(batch, 2, 12)
    habits = kit.model.llm.get_base_model().generation_config
    before = habits.repetition_penalty
    habits.repetition_penalty = 50.0
    kit.model.llm.generation_config = habits
    try:
        assert kit.model.generate(batch, 2, 12) == plain
    finally:
        habits.repetition_penalty = before
