"""The contract suite, second half: absent experts, expert dropout, attention, the dialogue before a clip, budgets."""

from __future__ import annotations

import inspect
from unittest import mock

import pytest
import torch
from torch import Tensor

from omnichat.fusion.base import Fusion
from omnichat.fusion.budget import TOLERANCE, count_parameters, fit_budget
from omnichat.schema import EncodedAudio
from omnichat.utils.errors import UserError
from tests.helpers.fusions import MEMBERS, OUT, SPECS, build, context_of, names, silent, streams_of

torch.set_num_threads(1)
every_member = pytest.mark.parametrize("name", list(MEMBERS))
# A member that listens to one expert only cannot do without it: its own tests say what happens then.
several = pytest.mark.parametrize("name", [name for name, member in MEMBERS.items() if len(member.hears) > 1])
each_absence = pytest.mark.parametrize(
    ("name", "expert"), [(name, e) for name, m in MEMBERS.items() for e in SPECS if m.hears != (e,)]
)


def run(fusion: Fusion, streams: dict[str, EncodedAudio], seconds: Tensor) -> Tensor:
    """The output of the fusion, with a dialogue before each clip where it wants one."""
    return fusion(streams, seconds, context_of(fusion, len(seconds))).x_BSD


@each_absence
def test_an_absent_expert_is_a_silent_one(name: str, expert: str) -> None:
    fusion = build(name)
    streams, seconds = streams_of([2.0, 0.9])
    full = run(fusion, streams, seconds)
    mute = run(fusion, {**streams, expert: silent(streams[expert])}, seconds)
    absent = run(fusion, {other: stream for other, stream in streams.items() if other != expert}, seconds)
    assert absent.isfinite().all() and absent.shape == full.shape
    torch.testing.assert_close(absent, mute, rtol=1e-5, atol=1e-6)
    assert (not torch.allclose(absent, full, atol=1e-4)) == (expert in MEMBERS[name].hears)


@pytest.mark.parametrize(("name", "expert"), [(name, e) for name, m in MEMBERS.items() for e in m.hears])
def test_one_expert_alone_is_enough(name: str, expert: str) -> None:
    fusion = build(name)
    streams, seconds = streams_of([2.0, 0.05])
    out = run(fusion, {expert: streams[expert]}, seconds)
    mask = fusion({expert: streams[expert]}, seconds).mask_BS
    assert out.isfinite().all() and out[mask].abs().amax(1).min() > 0


@each_absence
def test_an_expert_silent_for_one_clip_leaves_the_other_clips_alone(name: str, expert: str) -> None:
    fusion = build(name)
    streams, seconds = streams_of([2.0, 0.9, 1.4])
    full = run(fusion, streams, seconds)
    mute = run(fusion, {**streams, expert: silent(streams[expert], slice(1, 2))}, seconds)
    assert mute.isfinite().all()
    torch.testing.assert_close(mute[[0, 2]], full[[0, 2]], rtol=1e-5, atol=1e-6)
    assert (not torch.allclose(mute[1], full[1], atol=1e-4)) == (expert in MEMBERS[name].hears)


@every_member
def test_a_clip_that_no_expert_hears_is_refused(name: str) -> None:
    streams, seconds = streams_of([2.0, 0.9])
    with pytest.raises(ValueError, match="no expert has a valid frame"):
        build(name)({n: silent(stream, slice(1, 2)) for n, stream in streams.items()}, seconds)


def _heard_while(fusion: Fusion, streams: dict[str, EncodedAudio], seconds: Tensor, times: int) -> Tensor:
    """Which experts `fuse` got frames of: bool [times, clips, experts]."""
    seen = []
    with mock.patch.object(type(fusion), "fuse", autospec=True) as fuse:
        for _ in range(times):
            fusion(streams, seconds)
            seen.append(torch.stack([s.mask_BT.any(1) for s in fuse.call_args.args[1].values()], dim=1))
    return torch.stack(seen)


@several
def test_expert_dropout_silences_some_but_never_all_and_only_in_training(name: str) -> None:
    streams, seconds = streams_of([0.5] * 8)
    fusion = build(name, expert_dropout=0.5)
    assert _heard_while(fusion, streams, seconds, 20).all(), "not outside training"
    heard_RBE = _heard_while(fusion.train(), streams, seconds, 100)
    assert heard_RBE.any(-1).all(), "one always stays"
    # An expert is dropped with p = 1/2, save where all would be (1/8) and it is the one that stays (1/3).
    shares_E = heard_RBE.float().mean((0, 1))
    assert (shares_E - (0.5 + 0.125 / 3)).abs().max() < 0.07, shares_E
    alone = {"music": streams["music"]}
    assert _heard_while(fusion, alone, seconds, 10)[..., 2].all(), "the only one present is never dropped"


@several
def test_expert_dropout_changes_the_output_in_training_only(name: str) -> None:
    streams, seconds = streams_of([1.0] * 6)
    plain = {"dropout": 0.0} if "dropout" in inspect.signature(type(build(name))).parameters else {}
    dropping, keeping = (build(name, expert_dropout=p, **plain).train() for p in (0.9, 0.0))
    expected = run(keeping, streams, seconds)
    assert not torch.allclose(run(dropping, streams, seconds), expected, atol=1e-4)
    torch.testing.assert_close(run(dropping.eval(), streams, seconds), run(keeping.eval(), streams, seconds))


@each_absence
def test_every_parameter_stays_in_the_graph_without_an_expert(name: str, expert: str) -> None:
    """Or a distributed run waits for the gradient of the absent expert for ever."""
    fusion = build(name).train()
    streams, seconds = streams_of([1.0, 0.3])
    for heard in ({n: s for n, s in streams.items() if n != expert}, {**streams, expert: silent(streams[expert])}):
        fusion.zero_grad(set_to_none=True)
        run(fusion, heard, seconds).square().sum().backward()
        for weight, parameter in fusion.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), weight


@several
def test_attention_is_a_share_of_every_window(name: str) -> None:
    fusion = build(name)
    streams, seconds = streams_of([2.0, 0.9])
    streams["sounds"] = silent(streams["sounds"], slice(1, 2))
    fused = fusion(streams, seconds, context_of(fusion, 2))
    if fused.attention_BWE is None:
        assert name.startswith(("stack", "linear", "salmonn")), "add the member here if it has none on purpose"
        return
    windows_B = fused.mask_BS.sum(1) // fusion.queries
    assert fused.attention_BWE.shape == (2, int(windows_B.max()), 3) and not fused.attention_BWE.requires_grad
    assert fused.attention_BWE.dtype == torch.float32
    for row, count in enumerate(windows_B.tolist()):
        mass_WE = fused.attention_BWE[row, :count]
        assert (mass_WE >= 0).all()
        torch.testing.assert_close(mass_WE.sum(1), torch.ones(count), rtol=1e-5, atol=1e-5)
    assert (fused.attention_BWE[0, :, 1] > 0).any() and (fused.attention_BWE[1, :, 1] == 0).all()
    absent = fusion({"music": streams["music"]}, seconds, context_of(fusion, 2))
    assert absent.attention_BWE is not None
    torch.testing.assert_close(absent.attention_BWE[0, :, 2], torch.ones(int(windows_B[0])))


def _settled(name: str) -> Fusion:
    """With no weight left at its zero start, as after some training."""
    fusion = build(name)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return fusion


@every_member
def test_the_dialogue_before_a_clip_matters_only_to_those_who_ask_for_it(name: str) -> None:
    fusion = _settled(name)
    streams, seconds = streams_of([1.0, 2.0])
    one, other = (torch.randn(2, OUT, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    other[0] = one[0]
    change = fusion(streams, seconds, one).x_BSD - fusion(streams, seconds, other).x_BSD
    assert change[0].abs().max() == 0, "another clip's dialogue never matters"
    assert (change[1].abs().max() > 1e-5) == fusion.uses_context


@pytest.mark.parametrize("budget", ["30K", "400K", 3_000_000, "40M"])
@every_member
def test_budget_is_met(name: str, budget: str | int) -> None:
    fusion = build(name)
    settings = {"specs": SPECS, "out_width": OUT, "queries": fusion.queries}
    fitted = fit_budget(type(fusion), settings, budget)
    target = {"30K": 30_000, "400K": 400_000, "40M": 40_000_000}.get(str(budget), budget)
    assert abs(count_parameters(type(fusion), fitted) - target) <= TOLERANCE * target
    knobs = type(fusion).knobs
    assert set(fitted) == {*settings, knobs.coarse, knobs.fine}


@every_member
def test_a_budget_below_the_smallest_size_names_that_size(name: str) -> None:
    with pytest.raises(UserError, match=r"too small for \w+: it takes \d+ at least"):
        fit_budget(type(build(name)), {"specs": SPECS, "out_width": OUT}, 50)


def test_the_traits_of_the_members_are_used() -> None:
    assert set(names(spans=True)) | set(names(spans=False)) == set(MEMBERS)
    assert all(set(member.hears) <= set(SPECS) for member in MEMBERS.values())
