"""Mix-Former whose queries know the dialogue so far: they know what was said before a clip and nothing after it."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from omnichat.data.collate import Batch, Item
from omnichat.data.corpus import Corpus
from omnichat.fusion.mix_former import MixFormer
from omnichat.model.generation import end_of_turn_id, prompt_for
from omnichat.model.omnichat import OmniChat
from omnichat.schema import Dialogue
from omnichat.text.chat import IGNORE, ChatConfig, Role
from omnichat.training.data import make_item
from tests.helpers_core import SPECS, Kit, make_kit, wake_lora

INPUTS = ["speech", "speech_text"]


def conditioned(synthetic: Corpus, chat: ChatConfig | None = None, awake: bool = True) -> Kit:
    """A kit whose fusion is conditioned; `awake`: its condition, zero at the start, has weights."""
    kit = make_kit([synthetic], chat, queries=2)
    torch.manual_seed(3)
    width = kit.model.llm.get_input_embeddings().weight.shape[1]
    fusion = MixFormer(SPECS, width, queries=2, width=16, layers=1, heads=2, dropout=0.0, conditioned=True)
    if awake:
        wake_lora(kit.model)
        nn.init.normal_(condition(fusion).weight, std=1.0)
    return replace(kit, model=OmniChat(kit.model.llm, fusion))


def condition(fusion: MixFormer) -> nn.Linear:
    assert fusion.condition is not None
    return cast(nn.Linear, fusion.condition[1])


@pytest.fixture(scope="module", params=INPUTS)
def kit(request: pytest.FixtureRequest, synthetic: Corpus) -> Kit:
    return conditioned(synthetic, ChatConfig(input=request.param))


@pytest.fixture(scope="module")
def talk(synthetic: Corpus) -> Dialogue:
    """A dialogue with three recordings of the user's."""
    return next(d for d in synthetic.dialogues if len(d.turns) == 6)


def item_of(kit: Kit, dialogue: Dialogue) -> Item:
    [source] = kit.sources
    [sequence] = kit.chat.sequences(dialogue)
    return make_item(source, dialogue, sequence)


def reworded(dialogue: Dialogue, turn: int) -> Dialogue:
    """The same dialogue with other words in one turn; the recordings are the same."""
    turns = [replace(t, text="Music never heard a dog.") if i == turn else t for i, t in enumerate(dialogue.turns)]
    return replace(dialogue, turns=tuple(turns))


def heard(kit: Kit, item: Item) -> list[Tensor]:
    """The slots of each clip of a dialogue, [slots, D], in order."""
    embeds, _ = kit.model.embed(kit.batch([item]))
    audio = embeds[0][torch.tensor(item.sequence.roles) == int(Role.AUDIO)]
    return list(audio.split([clip.slots for clip in item.sequence.clips]))


def losses_by_position(kit: Kit, batch: Batch) -> Tensor:
    """Token losses at their positions, [B, S - 1]; zero where nothing is supervised."""
    wanted = batch.labels_BS[:, 1:] != IGNORE
    out = torch.zeros(wanted.shape)
    with torch.no_grad():
        out[wanted] = kit.model(batch).ce_N
    return out


@pytest.mark.parametrize("turn", [1, 3, 5])
def test_a_clip_feels_the_words_before_it_and_none_after(kit: Kit, talk: Dialogue, turn: int) -> None:
    before, after = heard(kit, item_of(kit, talk)), heard(kit, item_of(kit, reworded(talk, turn)))
    assert len(before) == 3
    for clip, (old, new) in enumerate(zip(before, after, strict=True)):
        if 2 * clip < turn:  # the clip of turn 0, 2 or 4 stands before the words
            assert torch.equal(old, new), f"clip {clip} knows words of turn {turn}"
        else:
            assert not torch.allclose(old, new, atol=1e-4), f"clip {clip} does not know turn {turn}"


def test_the_words_of_the_clip_itself_come_after_it(synthetic: Corpus, talk: Dialogue) -> None:
    """Input speech_text writes a turn's words behind its recording: they must not reach its own slots."""
    both = conditioned(synthetic, ChatConfig(input="speech_text"))
    item = item_of(both, talk)
    roles = item.sequence.roles
    assert roles.index(Role.AUDIO) < roles.index(Role.USER_TEXT)
    before, after = heard(both, item), heard(both, item_of(both, reworded(talk, 2)))
    assert torch.equal(before[1], after[1]) and not torch.allclose(before[2], after[2], atol=1e-4)


def test_no_position_feels_a_later_word(kit: Kit, talk: Dialogue) -> None:
    """Causality of the whole: losses before the changed words are not moved by them."""
    old, new = item_of(kit, talk), item_of(kit, reworded(talk, 5))
    start = old.sequence.replies[-1].start - 1
    first, second = (losses_by_position(kit, kit.batch([item]))[0] for item in (old, new))
    assert first[: start - 1].any()
    torch.testing.assert_close(first[: start - 1], second[: start - 1], rtol=0, atol=1e-6)


def test_all_replies_in_one_pass_cost_what_each_costs_alone(kit: Kit) -> None:
    [source] = kit.sources
    replies = 0
    for dialogue in source.corpus.dialogues:
        whole = losses_by_position(kit, kit.batch([item_of(kit, dialogue)]))[0]
        for reply in kit.chat.sequences(dialogue)[0].replies:
            so_far = replace(dialogue, turns=dialogue.turns[: reply.turn + 1])
            [part] = kit.chat.sequences(so_far)
            last = part.replies[-1]
            part.labels = [IGNORE] * last.start + part.labels[last.start :]
            alone = losses_by_position(kit, kit.batch([make_item(source, so_far, part)]))[0]
            span = slice(reply.start - 1, reply.stop - 1)
            assert alone[span].all() and (last.start, last.stop) == (reply.start, reply.stop)
            torch.testing.assert_close(whole[span], alone[span], rtol=0, atol=1e-4)
            replies += 1
    assert replies > len(source.corpus.dialogues)


def test_a_batch_gives_the_losses_of_single_dialogues(kit: Kit) -> None:
    items = kit.items()
    together = losses_by_position(kit, kit.batch(items))
    for row, item in enumerate(items):
        alone = losses_by_position(kit, kit.batch([item]))
        torch.testing.assert_close(together[row, : alone.shape[1]], alone[0], rtol=0, atol=1e-5)


def test_padding_on_the_left_changes_nothing(kit: Kit) -> None:
    prompts = [prompt_for(item, reply).item for item in kit.items()[:5] for reply in item.sequence.replies]
    batch = kit.batch(prompts, pad_left=True)
    assert not batch.mask_BS.all()
    embeds, _ = kit.model.embed(batch)
    for row, prompt in enumerate(prompts):
        alone, _ = kit.model.embed(kit.batch([prompt]))
        torch.testing.assert_close(embeds[row, -alone.shape[1] :], alone[0], rtol=0, atol=1e-5)
    kit.model.eval()
    end = end_of_turn_id(kit.items()[0])
    together = kit.model.generate(batch, end, 6)
    assert together == [kit.model.generate(kit.batch([p], pad_left=True), end, 6)[0] for p in prompts]


def test_a_recording_after_other_words_is_another_clip(kit: Kit, talk: Dialogue) -> None:
    """Two dialogues with the same recordings differ in their first reply: what follows it is heard in two ways."""
    items = [item_of(kit, talk), item_of(kit, reworded(talk, 1))]
    batch = kit.batch(items)
    assert len(batch.seconds_C) == 5, "the first clip is shared, the two after the changed words are not"
    embeds, _ = kit.model.embed(batch)
    rows = [embeds[row][batch.audio_BS[row]] for row in range(2)]
    for row, item in zip(rows, items, strict=True):
        torch.testing.assert_close(row, torch.cat(heard(kit, item)), rtol=1e-5, atol=1e-6)
    first = items[0].sequence.clips[0].slots
    assert torch.equal(rows[0][:first], rows[1][:first])
    assert not torch.allclose(rows[0][first:], rows[1][first:], atol=1e-4)


def test_it_starts_as_the_unconditioned_model(synthetic: Corpus) -> None:
    kit = conditioned(synthetic, awake=False)
    fusion = cast(MixFormer, kit.model.fusion)
    plain = MixFormer(SPECS, fusion.out_width, queries=2, width=16, layers=1, heads=2, dropout=0.0)
    plain.load_state_dict({name: x for name, x in fusion.state_dict().items() if not name.startswith("condition.")})
    batch = kit.batch(kit.items()[:3])
    expected = plain(batch.streams, batch.seconds_C).x_BSD
    assert torch.equal(kit.model.embed(batch)[1].x_BSD, expected)  # type: ignore[union-attr]


def test_it_learns_what_only_the_dialogue_tells(synthetic: Corpus) -> None:
    """From its zero start: every parameter of the condition moves, the loss falls, and the words then matter."""
    kit = conditioned(synthetic, awake=False)
    fusion = cast(MixFormer, kit.model.fusion)
    batch = kit.batch(kit.items()[:4])
    optimizer = torch.optim.AdamW([p for p in kit.model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        loss = kit.model(batch).ce_N.mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1
    assert condition(fusion).weight.abs().max() > 1e-3
    with torch.no_grad():
        without = fusion(batch.streams, batch.seconds_C).x_BSD
        assert not torch.allclose(kit.model.embed(batch)[1].x_BSD, without, atol=1e-4)  # type: ignore[union-attr]


def test_a_batch_of_words_keeps_the_condition_in_the_graph(synthetic: Corpus) -> None:
    kit = conditioned(synthetic)
    reader = make_kit([synthetic], ChatConfig(input="text"))
    kit.model(reader.batch(reader.items()[:2])).ce_N.mean().backward()
    for name, parameter in kit.model.named_parameters():
        if name.startswith("fusion."):
            assert parameter.grad is not None and not parameter.grad.any(), name
