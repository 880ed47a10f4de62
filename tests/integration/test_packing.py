"""Dialogues that share a row: each has the losses and gradients that it has alone, and sees nothing of the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from omnichat.data.collate import Batch, Item, collate
from omnichat.data.corpus import Corpus
from omnichat.model.llm import LLMConfig, load_llm
from omnichat.model.omnichat import OmniChat
from omnichat.text.chat import IGNORE, ChatConfig
from omnichat.training.loss import LossConfig, total_weight, weighted_sum
from tests.helpers_core import SPECS, TINY, Kit, Training, make_kit, make_trainer, step_figures, wake_lora

PACK = 400
WHOLE = LossConfig(label_smoothing=0.1, z_weight=1e-2, distill_weight=0.5, distill_temperature=2.0, style_weight=2.0)


@pytest.fixture(scope="module", params=["speech", "speech_text"])
def kit(request: pytest.FixtureRequest, synthetic: Corpus) -> Kit:
    made = make_kit([synthetic], ChatConfig(input=request.param), queries=2)
    made.chat.teacher = True
    wake_lora(made.model)
    return made


def packed(kit: Kit, items: list[Item], pack: int = PACK) -> Batch:
    return collate(items, kit.features, pack=pack)


def by_dialogue(batch: Batch, values_N: Tensor, items: list[Item]) -> dict[str, Tensor]:
    """The supervised values of each item, which stand in row-major order."""
    lengths = {item.dialogue: sum(label != IGNORE for label in item.sequence.labels) for item in items}
    parts = torch.split(values_N, [lengths[name] for name in batch.dialogues])
    return dict(zip(batch.dialogues, parts, strict=True))


def test_a_packed_batch_is_smaller_and_holds_the_same(kit: Kit) -> None:
    items = kit.items()
    apart, together = kit.batch(items), packed(kit, items)
    assert together.mask_BS.shape[0] < len(items)
    assert int(together.mask_BS.sum()) == int(apart.mask_BS.sum())
    assert len(together.slot_N) == len(apart.slot_N) and len(together.seconds_C) == len(apart.seconds_C)
    assert together.teacher is not None and together.teacher.dialogues == together.dialogues
    assert together.position_BS is not None and apart.position_BS is None
    starts = (together.position_BS == 0) & together.mask_BS
    assert int(starts.sum()) == len(items), "positions begin anew with every dialogue"
    assert packed(kit, items, pack=1).mask_BS.shape[0] == len(items), "what exceeds the limit stands alone"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_dialogues_have_the_losses_and_gradients_that_they_have_apart(kit: Kit, attention: str) -> None:
    """The whole objective: cross-entropy, smoothing, z and divergence; variants share recordings in both."""
    kit.model.llm.get_base_model().set_attn_implementation(attention)
    items = kit.items()
    results = []
    for batch in (kit.batch(items), packed(kit, items)):
        kit.model.zero_grad(set_to_none=True)
        losses = kit.model(batch, WHOLE.terms)
        (weighted_sum(losses, WHOLE) / total_weight([batch], WHOLE)).backward()
        values = {"ce": losses.ce_N, **losses.extra}
        found = {name: by_dialogue(batch, value.detach(), items) for name, value in values.items()}
        gradients = {n: p.grad.clone() for n, p in kit.model.named_parameters() if p.grad is not None}
        results.append((found, gradients))
    (apart, gradients), (together, others) = results
    for name, values in apart.items():
        for dialogue, expected in values.items():
            torch.testing.assert_close(together[name][dialogue], expected, rtol=1e-5, atol=1e-5, msg=name)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_a_dialogue_never_sees_its_neighbour(kit: Kit) -> None:
    """Whatever stands before it in its row and in the row beside it, its hidden states stay as they are, to the bit."""
    items = kit.items()
    batch = packed(kit, items)
    assert batch.position_BS is not None and batch.mask_BS.shape[0] > 1
    begins = ((batch.position_BS[0] == 0) & batch.mask_BS[0]).nonzero().flatten().tolist()
    mine = slice(begins[1], begins[2] if len(begins) > 2 else int(batch.mask_BS[0].sum()))
    with torch.no_grad():
        embeds = kit.model.embed(batch)[0]
        others = embeds + torch.randn(embeds.shape, generator=torch.Generator().manual_seed(0))
        others[0, mine] = embeds[0, mine]
        before, after = (kit.model._run(kit.model._decoder[0], x, batch) for x in (embeds, others))
    assert torch.equal(before[0, mine], after[0, mine])
    assert not torch.isclose(before[0, : mine.start], after[0, : mine.start]).all()


def test_neighbours_of_other_lengths_do_not_matter(kit: Kit) -> None:
    items = kit.items()
    mine = min(items, key=lambda item: item.sequence.positions)  # so that it is packed behind another
    results = []
    for neighbours in (items[:3], items[3:6]):
        row = [*(item for item in neighbours if item is not mine), mine]
        batch = packed(kit, row, pack=2000)
        assert batch.mask_BS.shape[0] == 1 and batch.dialogues[-1] == mine.dialogue
        with torch.no_grad():
            results.append(by_dialogue(batch, kit.model(batch).ce_N, row)[mine.dialogue])
    torch.testing.assert_close(*results, rtol=0, atol=1e-5)


def test_gradients_stop_at_the_border(kit: Kit) -> None:
    items = kit.items()[:3]
    batch = packed(kit, items, pack=2000)
    assert batch.position_BS is not None
    embeds = kit.model.embed(batch)[0].detach().requires_grad_()
    hidden = kit.model._run(kit.model._decoder[0], embeds, batch)
    second = int((batch.position_BS[0] == 0).nonzero()[1])
    third = int((batch.position_BS[0] == 0).nonzero()[2])
    hidden[0, second:third].square().sum().backward()
    assert embeds.grad is not None
    felt = embeds.grad[0].abs().sum(-1) > 0
    assert felt[second:third].all() and not felt[:second].any() and not felt[third:].any()


def test_a_fusion_that_reads_the_words_before_a_clip_reads_only_its_own_dialogue(synthetic: Corpus) -> None:
    from omnichat.fusion.mix_former import MixFormer

    kit = make_kit([synthetic])
    torch.manual_seed(0)
    fusion = MixFormer(SPECS, TINY["hidden_size"], width=16, layers=1, heads=2, dropout=0.0, conditioned=True)
    for parameter in fusion.parameters():  # conditions begin at zero, where they would show nothing
        parameter.data += 0.05 * torch.randn(parameter.shape)
    model = OmniChat(kit.model.llm, fusion)
    items = kit.items()
    with torch.no_grad():
        apart, together = kit.batch(items), packed(kit, items)
        one = by_dialogue(apart, model(apart).ce_N, items)
        other = by_dialogue(together, model(together).ce_N, items)
        context = model._context(together, model.embed(together)[0])
    assert context.any()
    for name, expected in one.items():
        torch.testing.assert_close(other[name], expected, rtol=1e-5, atol=1e-5)


def test_an_llm_that_cannot_keep_them_apart_is_found_out(kit: Kit) -> None:
    assert kit.model.keeps_packed_apart()
    llm, _ = load_llm(LLMConfig(random_size=TINY), torch.float32, 0)
    model = OmniChat(llm, None)
    decoder = model._decoder[0]
    plain = decoder.forward

    def blind(*args: object, **kwargs: object) -> object:
        kwargs.pop("position_ids")
        return plain(*args, **kwargs)

    decoder.forward = blind
    assert not model.keeps_packed_apart()


@pytest.mark.parametrize("extra", [{}, {"loss": WHOLE}])
def test_a_packed_run_resumes_to_the_bit(
    extra: dict[str, object], tmp_path_factory: pytest.TempPathFactory, synthetic: Corpus, real: Corpus
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    how = Training(steps=6, pack=250, dev_every=0, checkpoint_every=3, extra=dict(extra))
    whole = make_trainer(folder / "whole", [synthetic, real], how)
    whole.fit()
    again = make_trainer(folder / "again", [synthetic, real], how)
    again.resume(folder / "whole" / "checkpoints" / "step-000003")
    again.fit()
    for trainer in (whole, again):
        trainer.tracker.finish()
    expected = step_figures(folder / "whole")
    assert {step: expected[step] for step in (4, 5, 6)} == step_figures(folder / "again")
    if "loss" in extra:
        logged = dict(expected[6])
        assert logged["loss_z"] > 0 and logged["loss_distill"] > 0
