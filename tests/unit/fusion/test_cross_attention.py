"""What only late cross-attention promises: who asks, who answers, and whose answer counts."""

from __future__ import annotations

import pytest
import torch

from omnichat.encoders.base import EncodedClip, collate_clips
from omnichat.fusion.cross_attention import CrossAttention
from omnichat.schema import EncodedAudio
from omnichat.utils.errors import UserError
from tests.helpers.fusions import OUT, SPECS, silent, streams_of

torch.set_num_threads(1)


def _cross(specs: object = SPECS, **settings: object) -> CrossAttention:
    torch.manual_seed(0)
    return CrossAttention(specs, OUT, **{"width": 32, "heads": 4, **settings}).eval()  # type: ignore[arg-type]


def test_the_first_asks_unless_another_one_is_named() -> None:
    assert _cross().primary == "content" and _cross().others == ["sounds", "music"]
    model = _cross(primary="music")
    assert model.primary == "music" and list(model.blocks[0].cross) == ["content", "sounds"]
    with pytest.raises(UserError, match=r"fusion\.primary='musik' .*did you mean 'music'.*content, sounds, music"):
        _cross(primary="musik")


@pytest.mark.parametrize("primary", list(SPECS))
def test_mass_is_in_the_order_of_the_experts_whoever_asks(primary: str) -> None:
    model = _cross(primary=primary)
    for loud in SPECS:
        with torch.no_grad():
            for block in model.blocks:  # all answers score zero, save those of one expert
                block.answer.weight.zero_()
        sources = [model.primary, *model.others]
        streams, seconds = streams_of([1.0])
        hooks = [
            block.register_forward_pre_hook(_only(sources.index(loud)), with_kwargs=False) for block in model.blocks
        ]
        mass = model(streams, seconds).attention_BWE[0]
        for hook in hooks:
            hook.remove()
        assert mass[:, list(SPECS).index(loud)].min() == 1.0


def _only(source: int):  # type: ignore[no-untyped-def]
    """Of a block's arguments, make the mask of the experts that are there one of `source` alone."""

    def change(_module, arguments):  # type: ignore[no-untyped-def]
        x_NPD, others, there_NE = arguments
        there_NE = torch.zeros_like(there_NE)
        there_NE[:, source] = True
        return x_NPD, others, there_NE

    return change


def test_equal_scores_share_equally_among_the_experts_that_are_there() -> None:
    model = _cross()
    for block in model.blocks:
        torch.nn.init.zeros_(block.answer.weight)
    streams, seconds = streams_of([1.0, 0.7])
    streams["content"] = silent(streams["content"], slice(1, 2))  # the primary
    mass = model(streams, seconds).attention_BWE
    torch.testing.assert_close(mass[0], torch.full((3, 3), 1 / 3))
    torch.testing.assert_close(mass[1], torch.tensor([0.0, 0.5, 0.5]).expand(3, 3))


def test_shares_follow_the_scores_of_the_answers() -> None:
    """Make one expert's answers what is asked for: the mass must move to it."""
    model = _cross()
    streams, seconds = streams_of([1.0])
    before = model(streams, seconds).attention_BWE[0, :, 2]
    with torch.no_grad():
        for block in model.blocks:
            direction = torch.randn(32)
            block.norm.weight.fill_(0.1)
            block.norm.bias.copy_(direction)
            block.cross["music"].out.bias.copy_(50 * direction)
            block.ask.weight.copy_(torch.eye(32))
            block.answer.weight.copy_(torch.eye(32))
    after = model(streams, seconds).attention_BWE[0, :, 2]
    assert (after > 0.9).all() and (before < 0.6).all()


def test_without_the_primary_learned_queries_ask_the_others() -> None:
    model = _cross()
    streams, seconds = streams_of([1.0])
    others = {name: streams[name] for name in ("sounds", "music")}
    before = model(others, seconds).x_BSD
    louder = EncodedAudio(streams["music"].x_BTD + 1, streams["music"].mask_BT, streams["music"].time_sec)
    louder.x_BTD[..., 0] += 3
    assert not torch.allclose(model({**others, "music": louder}, seconds).x_BSD, before, atol=1e-4)
    with torch.no_grad():
        model.query.add_(torch.randn(model.query.shape))
    assert not torch.allclose(model(others, seconds).x_BSD, before, atol=1e-4)


def test_the_others_are_heard_frame_by_frame() -> None:
    """Their frames are not pooled: two of one part that change places change the answer, by their time."""
    model = _cross(parts=1)
    streams, seconds = streams_of([0.34])
    before = model(streams, seconds).x_BSD
    swapped = streams["music"].x_BTD.clone()
    swapped[0, [3, 20]] = swapped[0, [20, 3]]
    streams["music"] = EncodedAudio(swapped, streams["music"].mask_BT, streams["music"].time_sec)
    assert (model(streams, seconds).x_BSD - before).abs().max() > 1e-6


def test_a_window_where_another_expert_has_no_frame_hears_its_nearest() -> None:
    model = _cross(window_sec=0.5)
    sparse = EncodedClip(torch.randn(3, 12), torch.tensor([0.1, 0.2, 1.4]))  # none in window 1, 0.5 to 1.0
    content = streams_of([1.5])[0]["content"]
    seconds = torch.tensor([1.5], dtype=torch.float64)
    before = model({"content": content, "music": collate_clips([sparse])}, seconds).x_BSD[0]
    changes = []
    for frame in range(3):
        x = sparse.x_TD.clone()
        x[frame] += 3 * torch.randn(12)
        fused = model({"content": content, "music": collate_clips([EncodedClip(x, sparse.time_sec)])}, seconds)
        changes.append(((fused.x_BSD[0] - before).abs().amax(1) > 1e-6).tolist())
    assert changes == [[True, False, False], [True, True, False], [False, False, True]]  # 0.2 is nearer to 0.75


def test_one_expert_talks_to_itself() -> None:
    model = _cross({"content": SPECS["content"]})
    streams, seconds = streams_of([1.0])
    fused = model({"content": streams["content"]}, seconds)
    assert fused.x_BSD.isfinite().all() and (fused.attention_BWE == 1).all()
