"""The teacher is the same LLM without LoRA, reading words: followed, never moved, and free when it is not asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from omnichat.data.collate import Batch
from omnichat.data.corpus import Corpus
from omnichat.model.omnichat import OmniChat
from omnichat.model.token_losses import EXTRAS, Terms, divergence, smooth_and_z
from omnichat.text.chat import ChatConfig, Role
from tests.helpers_core import Kit, make_kit, wake_lora

FOLLOW = Terms(distill=True)
FOLLOW_ALL = Terms(distill=True, distill_style=True)


def taught(corpus: Corpus, input_: str = "speech", dropout: float = 0.0) -> Kit:
    made = make_kit([corpus], ChatConfig(input=input_), dropout=dropout)
    made.chat.teacher = True
    return made


@pytest.fixture(scope="module")
def kit(synthetic: Corpus) -> Kit:
    return taught(synthetic)


@pytest.fixture(scope="module")
def batch(kit: Kit) -> Batch:
    return kit.batch(kit.items()[:4])


def gradients(model: OmniChat) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_divergence_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0], [1.0, 3.0]]), torch.tensor([[0.0, 2.0], [1.0, 3.0]])
    p = torch.sigmoid(torch.tensor(-2.0)).item()
    expected = p * torch.tensor(p / 0.5).log().item() + (1 - p) * torch.tensor((1 - p) / 0.5).log().item()
    assert divergence(student, teacher, 1.0).tolist() == pytest.approx([expected, 0.0], abs=1e-6)
    halved = divergence(2 * student, 2 * teacher, 2.0) / 4
    torch.testing.assert_close(halved, divergence(student, teacher, 1.0))


def test_smoothing_and_z_are_what_torch_says() -> None:
    logits, target = torch.randn(7, 11, generator=torch.Generator().manual_seed(0)), torch.arange(7)
    found = smooth_and_z(logits, Terms(smooth=True, z=True))
    plain = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    smoothed = torch.nn.functional.cross_entropy(logits, target, reduction="none", label_smoothing=0.3)
    torch.testing.assert_close(0.7 * plain + 0.3 * found["smooth"], smoothed)
    torch.testing.assert_close(found["z"], logits.exp().sum(-1).log() ** 2)
    assert smooth_and_z(logits, Terms()) == {}


def test_a_student_that_reads_the_same_words_without_lora_has_nothing_to_learn(synthetic: Corpus) -> None:
    reader = taught(synthetic, "text")
    batch = reader.batch(reader.items()[:4])
    found = reader.model(batch, FOLLOW_ALL).extra["distill"]
    assert found.shape == (int((batch.labels_BS[:, 1:] != -100).sum()),)
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-6)
    wake_lora(reader.model)
    moved = reader.model(batch, FOLLOW_ALL).extra["distill"]
    assert (moved > 1e-6).all(), "with LoRA the student says something else, the teacher does not"


def test_the_teacher_stays_where_it_is(kit: Kit, batch: Batch) -> None:
    """Its distribution depends neither on LoRA nor on the fusion, and no gradient flows into it."""
    assert batch.teacher is not None and not batch.teacher.streams
    teacher = batch.teacher
    reads = replace(teacher, teacher=teacher)
    with kit.model.llm.disable_adapter(), torch.no_grad():
        before = kit.model(teacher).ce_N
    wake_lora(kit.model)
    kit.model.zero_grad(set_to_none=True)
    kit.model(batch, FOLLOW).extra["distill"].sum().backward()
    found = gradients(kit.model)
    assert set(found) == {name for name, p in kit.model.named_parameters() if p.requires_grad}
    with kit.model.llm.disable_adapter():
        # The teacher alone: were it in the graph, this would leave a gradient somewhere.
        alone = kit.model(reads, FOLLOW).extra["distill"]
        torch.testing.assert_close(kit.model(teacher).ce_N, before, rtol=0, atol=0)
    torch.testing.assert_close(alone, torch.zeros_like(alone), rtol=0, atol=1e-6)
    kit.model.zero_grad(set_to_none=True)
    assert all(p.requires_grad for name, p in kit.model.named_parameters() if "lora_" in name), "put back afterwards"


def test_the_style_is_the_teachers_only_on_demand(kit: Kit, batch: Batch) -> None:
    losses, everywhere = kit.model(batch, FOLLOW), kit.model(batch, FOLLOW_ALL)
    is_style = losses.roles_N == int(Role.STYLE)
    words, all_ = losses.extra["distill"], everywhere.extra["distill"]
    assert not words[is_style].any() and (words[~is_style] > 0).all() and (all_ > 0).all()
    torch.testing.assert_close(words[~is_style], all_[~is_style], rtol=1e-5, atol=1e-6)


def test_nothing_else_changes_when_it_is_on(synthetic: Corpus) -> None:
    """Same drop-out, same cross-entropy, same mode: the teacher draws no random number and drops nothing."""
    kit = taught(synthetic, dropout=0.3)
    wake_lora(kit.model)
    batch = kit.batch(kit.items()[:3])
    kit.model.train()
    results = []
    for terms in (Terms(), FOLLOW):
        torch.manual_seed(3)
        results.append((kit.model(batch, terms).ce_N, torch.rand(2)))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert all(module.training for module in kit.model.modules())
    plain = kit.model(batch)
    assert plain.extra == {}, "and costs nothing when it is off"
    assert set(kit.model(batch, Terms(smooth=True, z=True, distill=True)).extra) == set(EXTRAS)


def test_following_the_teacher_brings_the_student_nearer(kit: Kit, batch: Batch) -> None:
    trained = [p for p in kit.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    figures = []
    for _ in range(8):
        loss = kit.model(batch, FOLLOW).extra["distill"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        figures.append(loss.item())
    assert figures[-1] < 0.7 * figures[0], figures


def test_logits_everywhere_give_the_same_loss_and_gradients(synthetic: Corpus) -> None:
    kit = make_kit([synthetic])
    wake_lora(kit.model)
    batch = kit.batch(kit.items()[:4])
    results = []
    for everywhere in (False, True):
        kit.model.all_logits = everywhere
        kit.model.zero_grad(set_to_none=True)
        loss = kit.model(batch).ce_N.sum()
        loss.backward()
        results.append((loss.detach(), gradients(kit.model)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], rtol=1e-5, atol=1e-5)
