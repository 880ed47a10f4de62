"""The objective: each supervised token once over the whole step, however it is cut into micro-batches."""

from __future__ import annotations

import math

import pytest
import torch

from omnichat.config import TrainRun
from omnichat.data.corpus import Corpus
from omnichat.model.token_losses import TokenLosses
from omnichat.text.chat import ChatConfig, Role
from omnichat.training.loss import SUMS, LossConfig, figures, split_sums, total_weight, weighted_sum
from omnichat.training.settings import TrainerConfig
from omnichat.utils.errors import UserError
from tests.helpers_core import Kit, make_kit, wake_lora


@pytest.fixture(scope="module")
def kit(synthetic: Corpus) -> Kit:
    made = make_kit([synthetic])
    made.chat.teacher = True
    wake_lora(made.model)
    return made


def losses() -> TokenLosses:
    roles = [Role.STYLE, Role.STYLE, Role.WORDS, Role.END]
    role_ids = torch.tensor([int(r) for r in roles], dtype=torch.uint8)
    return TokenLosses(torch.tensor([1.0, 2.0, 4.0, 8.0]), role_ids, torch.tensor([16.0, 32.0, 64.0]), {})


def test_style_has_its_weight_and_the_end_counts_as_words() -> None:
    assert weighted_sum(losses(), LossConfig()).item() == 15
    assert weighted_sum(losses(), LossConfig(style_weight=10, words_weight=0.5)).item() == 36
    assert split_sums(losses()).tolist() == [3, 2, 12, 2, 112, 3, *[0] * 6]


def test_the_extra_terms_join_with_their_factors() -> None:
    """By hand: tokens cost 0.9 ce + 0.1 smooth + 0.5 z + 2 distill, the style's three times that."""
    extra = {"smooth": [10.0, 0, 0, 20], "z": [2.0, 0, 4, 0], "distill": [0, 0, 3.0, 5.0]}
    made = losses()
    made = made._replace(extra={name: torch.tensor(values) for name, values in extra.items()})
    config = LossConfig(label_smoothing=0.1, z_weight=0.5, distill_weight=2.0, style_weight=3.0)
    style, words = 0.9 * 3 + 0.1 * 10 + 0.5 * 2, 0.9 * 12 + 0.1 * 20 + 0.5 * 4 + 2 * 8
    assert weighted_sum(made, config).item() == pytest.approx(3 * style + words)
    row = figures(split_sums(made), weight=8.0, heard=1.0, config=config)
    assert row["loss"] == pytest.approx((3 * style + words) / 8)
    assert (row["loss_style"], row["loss_words"]) == (1.5, 6.0), "plain cross-entropy"
    assert (row["loss_z"], row["loss_distill"]) == (1.5, 4.0), "4 tokens; the 2 that follow the teacher"
    off = figures(split_sums(losses()), weight=4.0, heard=1.0, config=LossConfig())
    assert off["loss"] == 15 / 4 and not {"loss_z", "loss_distill"} & set(off)
    assert len(SUMS) == len(split_sums(made))


def test_only_what_is_on_is_computed() -> None:
    terms = LossConfig().terms
    assert not (terms.smooth or terms.z or terms.distill)
    terms = LossConfig(label_smoothing=0.1, distill_weight=1.0, distill_on="all", distill_temperature=2.0).terms
    assert terms.smooth and not terms.z and terms.distill and terms.distill_style and terms.temperature == 2.0


def test_the_divisor_counts_the_tokens_that_have_a_loss(kit: Kit) -> None:
    batches = [kit.batch(kit.items()[:3]), kit.batch(kit.items()[3:5])]
    style = sum(int((kit.model(b).roles_N == Role.STYLE).sum()) for b in batches)
    words = sum(len(kit.model(b).roles_N) for b in batches) - style
    assert style > 0 and words > style
    assert total_weight(batches, LossConfig()) == style + words
    assert total_weight(batches, LossConfig(style_weight=3, words_weight=0.5)) == 3 * style + 0.5 * words


@pytest.mark.parametrize(
    "config",
    [
        LossConfig(),
        LossConfig(style_weight=4, words_weight=0.25),
        LossConfig(style_weight=2, label_smoothing=0.1, z_weight=0.01, distill_weight=0.5, distill_on="all"),
    ],
)
def test_accumulated_micro_batches_are_one_large_batch(kit: Kit, config: LossConfig) -> None:
    """Loss and gradients; micro-batches of unequal numbers of tokens, which a mean of means would get wrong."""
    items = sorted(kit.items()[:6], key=lambda item: len(item.sequence))
    results = []
    for cuts in ([items], [items[:1], items[1:4], items[4:]], [[item] for item in items]):
        batches = [kit.batch(cut) for cut in cuts]
        weight = total_weight(batches, config)
        kit.model.zero_grad(set_to_none=True)
        loss = 0.0
        for batch in batches:
            part = weighted_sum(kit.model(batch, config.terms), config) / weight
            part.backward()
            loss += part.item()
        grads = {n: p.grad.clone() for n, p in kit.model.named_parameters() if p.grad is not None}
        results.append((loss, grads))
    for loss, grads in results[1:]:
        assert loss == pytest.approx(results[0][0], abs=1e-5)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, results[0][1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("field", ["style_weight", "words_weight", "z_weight", "distill_weight"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_bad_weight_is_named(field: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"trainer\.loss\.{field} must be finite"):
        LossConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("label_smoothing", 1.0, r"must lie in \[0, 1\), got 1.0"),
        ("label_smoothing", math.nan, "must lie in"),
        ("distill_temperature", 0.0, "must be finite and above 0"),
        ("distill_on", "style", "words, all"),
    ],
)
def test_a_bad_term_is_named(field: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=rf"trainer\.loss\.{field}.*{message}"):
        LossConfig(**{field: value})


def test_a_teacher_that_reads_what_the_student_reads_is_refused() -> None:
    trainer = TrainerConfig(loss=LossConfig(distill_weight=1.0))
    TrainRun(chat=ChatConfig(input="asr"), trainer=trainer)
    with pytest.raises(UserError, match=r"trainer\.loss\.distill_weight: with chat\.input=text"):
        TrainRun(chat=ChatConfig(input="text"), trainer=trainer)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(UserError, match="both 0"):
        LossConfig(style_weight=0, words_weight=0)
