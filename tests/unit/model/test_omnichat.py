"""The model: what trains, what does not, what a checkpoint holds, and the short cut over the vocabulary."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from omnichat.data.collate import Batch
from omnichat.data.corpus import Corpus
from omnichat.model.omnichat import OmniChat
from omnichat.text.chat import IGNORE, ChatConfig
from omnichat.utils.errors import UserError
from tests.helpers_core import Kit, make_kit, wake_lora


@pytest.fixture(scope="module")
def kit(synthetic: Corpus) -> Kit:
    made = make_kit([synthetic])
    wake_lora(made.model)
    return made


def gradients(model: OmniChat) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def backward(model: OmniChat, batch: Batch) -> Tensor:
    model.zero_grad(set_to_none=True)
    loss = model(batch).ce_N.mean()
    loss.backward()
    return loss.detach()


def test_gradients_reach_every_trainable_and_nothing_frozen(kit: Kit) -> None:
    backward(kit.model, kit.batch(kit.items()[:4]))
    for name, parameter in kit.model.named_parameters():
        trains = name.startswith("fusion.") or "lora_" in name
        assert parameter.requires_grad == trains, name
        assert (parameter.grad is not None) == trains, name
    found = gradients(kit.model)
    still = [name for name, grad in found.items() if grad is not None and not grad.any()]
    # The softmax does not see a constant that is added to all keys.
    assert all(name.endswith("key.bias") for name in still), still


def test_words_alone_leave_the_fusion_at_zero_gradients_and_the_loss_as_it_is(kit: Kit, synthetic: Corpus) -> None:
    """A batch without recordings needs the same graph on every rank, and must not feel it."""
    reader = make_kit([synthetic], ChatConfig(input="text"))
    wake_lora(reader.model)
    words = reader.batch(reader.items()[:3])
    assert not words.streams
    plain, mixed = backward(reader.model, words), backward(kit.model, words)
    torch.testing.assert_close(mixed, plain, rtol=0, atol=1e-6)
    theirs = gradients(reader.model)
    for name, grad in gradients(kit.model).items():
        assert grad is not None, f"{name} would hang the other ranks"
        if name.startswith("fusion."):
            assert not grad.any() and grad.isfinite().all(), name
        else:
            torch.testing.assert_close(grad, theirs[name], rtol=1e-5, atol=1e-7)


def test_a_model_of_words_refuses_recordings(kit: Kit, synthetic: Corpus) -> None:
    reader = make_kit([synthetic], ChatConfig(input="text"))
    with pytest.raises(ValueError, match="reads words only"):
        reader.model(kit.batch(kit.items()[:1]))


def test_what_was_said_before_is_all_that_a_reply_depends_on(kit: Kit) -> None:
    """Causality by gradient: the loss of a position does not feel any later embedding."""
    batch = kit.batch(kit.items()[:1])
    embeds = kit.model.embed(batch)[0].detach().requires_grad_()
    target = batch.labels_BS[0, 1:]
    places = torch.nonzero(target != IGNORE).flatten()
    middle = int(places[len(places) // 2])
    logits = kit.model.llm(inputs_embeds=embeds, attention_mask=batch.mask_BS).logits
    F.cross_entropy(logits[0, middle], target[middle]).backward()
    assert embeds.grad is not None
    assert embeds.grad[0, : middle + 1].any() and not embeds.grad[0, middle + 1 :].any()


def test_every_slot_holds_its_own_window(kit: Kit) -> None:
    """Each AUDIO position of each row is the fused window of that row's clip, in order; other rows are the words'."""
    items = kit.items()[:4]
    batch = kit.batch(items)
    embeds, fused = kit.model.embed(batch)
    assert fused is not None
    table = kit.model.llm.get_input_embeddings()
    for row, item in enumerate(items):
        alone = kit.batch([item])
        assert kit.model.fusion is not None
        own = kit.model.fusion(alone.streams, alone.seconds_C)
        expected = torch.cat([own.x_BSD[c, : clip.slots] for c, clip in enumerate(item.sequence.clips)])
        torch.testing.assert_close(embeds[row][batch.audio_BS[row]], expected, rtol=1e-5, atol=1e-6)
        rest = ~batch.audio_BS[row]
        assert torch.equal(embeds[row][rest], table(batch.ids_BS[row][rest]))


def test_the_short_cut_over_the_vocabulary_is_exact(kit: Kit) -> None:
    """Logits at supervised positions alone give the loss and the gradients of all logits."""
    batch = kit.batch(kit.items()[:4])
    assert kit.model.head_is_exact
    loss = backward(kit.model, batch)
    short = {name: None if grad is None else grad.clone() for name, grad in gradients(kit.model).items()}
    kit.model.zero_grad(set_to_none=True)
    logits = kit.model.llm(inputs_embeds=kit.model.embed(batch)[0], attention_mask=batch.mask_BS).logits
    full = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels_BS[:, 1:].flatten(), ignore_index=IGNORE)
    full.backward()
    torch.testing.assert_close(loss, full.detach(), rtol=0, atol=1e-5)
    for name, grad in gradients(kit.model).items():
        torch.testing.assert_close(short[name], grad, rtol=1e-4, atol=1e-5)


def test_a_head_that_changes_its_logits_is_noticed(kit: Kit, synthetic: Corpus) -> None:
    """Some models scale or cap their logits after the head: then the short cut is off and the loss is theirs."""
    llm = make_kit([synthetic]).model.llm
    inner = llm.get_base_model()
    plain = inner.forward

    def capped(*args: object, **kwargs: object) -> object:
        out = plain(*args, **kwargs)
        out.logits = 0.01 * torch.tanh(out.logits / 0.01)
        return out

    inner.forward = capped
    odd = OmniChat(llm, kit.model.fusion)
    assert not odd.head_is_exact
    batch = kit.batch(kit.items()[:2])
    logits = odd.llm(inputs_embeds=odd.embed(batch)[0], attention_mask=batch.mask_BS).logits
    wanted = batch.labels_BS[:, 1:] != IGNORE
    expected = F.cross_entropy(logits[:, :-1][wanted], batch.labels_BS[:, 1:][wanted], reduction="none")
    torch.testing.assert_close(odd(batch).ce_N, expected)


def test_roles_come_with_their_losses(kit: Kit) -> None:
    batch = kit.batch(kit.items()[:3])
    losses = kit.model(batch)
    wanted = batch.labels_BS[:, 1:] != IGNORE
    assert losses.ce_N.dtype == torch.float32 and losses.ce_N.shape == losses.roles_N.shape
    assert torch.equal(losses.roles_N, batch.roles_BS[:, 1:][wanted])


def test_a_checkpoint_holds_the_trainables_and_puts_them_back(kit: Kit, synthetic: Corpus) -> None:
    state = {name: value.clone() for name, value in kit.model.trainable_state().items()}
    trains = {name for name, p in kit.model.named_parameters() if p.requires_grad}
    assert trains <= set(state) and all(n.startswith("fusion.") or "lora_" in n for n in state)
    other = make_kit([synthetic], seed=9).model
    frozen = {name: p.detach().clone() for name, p in other.named_parameters() if not p.requires_grad}
    other.load_trainable_state(state)
    assert all(torch.equal(value, state[name]) for name, value in other.trainable_state().items())
    assert all(torch.equal(p, frozen[name]) for name, p in other.named_parameters() if not p.requires_grad)


def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(kit: Kit) -> None:
    state = {name: value.clone() for name, value in kit.model.trainable_state().items()}
    name = sorted(state)[-1]
    first = sorted(state)[0]
    bad = {**state, first: state[first] + 1}
    for wrong, message in (
        ({k: v for k, v in bad.items() if k != name}, f"checkpoint lacks '{name}'"),
        ({**bad, "zz.extra": torch.zeros(1)}, "checkpoint holds 'zz.extra'"),
        ({**bad, name: torch.zeros(1, 2, 3)}, rf"checkpoint: {name} is \(1, 2, 3\)"),
    ):
        with pytest.raises(UserError, match=message):
            kit.model.load_trainable_state(wrong)
        assert torch.equal(kit.model.trainable_state()[first], state[first])


def test_the_same_seed_builds_the_same_model(synthetic: Corpus) -> None:
    first, again, other = (make_kit([synthetic], seed=seed).model.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [
        n
        for n in first
        if "norm" not in n and "bias" not in n and "lora_B" not in n and "logits" not in n and "standard" not in n
    ]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_the_model_is_checked_without_flash_attention(synthetic: Corpus) -> None:
    """Its kernels need a GPU, and the checks are made before the model is there."""
    model = make_kit([synthetic]).model
    config = model.llm.config
    config._attn_implementation = "flash_attention_2"
    used: list[str] = []
    hook = model._decoder[0].register_forward_pre_hook(lambda *_: used.append(config._attn_implementation))
    try:
        assert model._check_head() and model.keeps_packed_apart()
    finally:
        hook.remove()
    assert used == ["sdpa"] * 3
    assert config._attn_implementation == "flash_attention_2" == model._decoder[0].config._attn_implementation
