"""One expert alone: it hears that one, ignores the others, and holds nothing of them."""

from __future__ import annotations

import pytest
import torch

from omnichat.encoders.base import EncodedClip, StreamSpec, collate_clips
from omnichat.fusion.budget import count_parameters, fit_budget
from omnichat.fusion.mix_former import MixFormer
from omnichat.fusion.single import Single
from omnichat.schema import EncodedAudio
from omnichat.utils.errors import UserError

torch.set_num_threads(1)
SPECS = {"content": StreamSpec(24, 3, 50.0), "sounds": StreamSpec(16, 1, 50.0)}
SECONDS = torch.tensor([1.0, 0.5], dtype=torch.float64)


def _streams() -> dict[str, EncodedAudio]:
    generator = torch.Generator().manual_seed(0)

    def clip(spec: StreamSpec, frames: int) -> EncodedClip:
        shape = (spec.layers, frames, spec.width) if spec.layers > 1 else (frames, spec.width)
        return EncodedClip(torch.randn(*shape, generator=generator), (torch.arange(frames) + 0.5) / spec.rate_hz)

    return {name: collate_clips([clip(spec, 50), clip(spec, 25)]) for name, spec in SPECS.items()}


def _single(expert: str | None = None) -> Single:
    torch.manual_seed(0)
    return Single(SPECS, 12, expert=expert, width=16, heads=2).eval()


@pytest.mark.parametrize("expert", ["content", "sounds"])
def test_only_its_expert_is_heard(expert: str) -> None:
    model, streams = _single(expert), _streams()
    [other] = set(SPECS) - {expert}
    whole = model(streams, SECONDS)
    alone = model({expert: streams[expert]}, SECONDS)
    assert torch.equal(whole.x_BSD, alone.x_BSD)
    streams[other].x_BTD.add_(100.0)
    assert torch.equal(model(streams, SECONDS).x_BSD, whole.x_BSD)
    streams[expert].x_BTD.mul_(-1.0)
    assert not torch.allclose(model(streams, SECONDS).x_BSD, whole.x_BSD)


def test_it_is_mix_former_with_one_expert() -> None:
    single, streams = _single("sounds"), _streams()
    plain = MixFormer({"sounds": SPECS["sounds"]}, 12, width=16, heads=2).eval()
    plain.load_state_dict(single.state_dict())
    expected = plain({"sounds": streams["sounds"]}, SECONDS)
    found = single(streams, SECONDS)
    assert torch.equal(found.x_BSD, expected.x_BSD)
    assert found.attention_BWE is not None and found.attention_BWE.shape == (2, 3, 1)
    torch.testing.assert_close(found.attention_BWE[0], torch.ones(3, 1))  # one row in the picture, with all of the mass


def test_the_first_expert_is_the_default() -> None:
    assert _single().expert_name == "content"
    assert _single().state_dict().keys() == _single("content").state_dict().keys()


def test_the_checkpoint_holds_nothing_of_the_others() -> None:
    names = "\n".join(_single("sounds").state_dict())
    assert "sounds" in names and "content" not in names
    assert tuple(_single("sounds").specs) == ("sounds",)


def test_an_unknown_expert_is_an_error_that_names_them() -> None:
    with pytest.raises(UserError, match=r"fusion\.expert='sound'.*'sounds'.*content, sounds"):
        _single("sound")


def test_a_stream_of_no_expert_at_all_is_refused() -> None:
    model, streams = _single("sounds"), _streams()
    with pytest.raises(ValueError, match="smells"):
        model({**streams, "smells": streams["sounds"]}, SECONDS)
    with pytest.raises(ValueError, match="sounds"):
        model({**streams, "sounds": streams["content"]}, SECONDS)


def test_a_clip_that_its_expert_did_not_hear_is_an_error() -> None:
    model, streams = _single("sounds"), _streams()
    with pytest.raises(ValueError, match="sounds"):
        model({"content": streams["content"]}, SECONDS)
    streams["sounds"].mask_BT[1] = False
    with pytest.raises(ValueError, match="no expert has a valid frame"):
        model(streams, SECONDS)


def test_statistics_of_its_own_expert_are_measured() -> None:
    model, streams = _single("sounds"), _streams()
    streams["sounds"].x_BTD.add_(3.0)
    model.calibrate([streams])
    assert 2.5 < float(model.standard["sounds"].mean_LD.mean()) < 3.5


@pytest.mark.parametrize("expert", ["content", "sounds"])
def test_the_budget_is_met_by_what_is_heard(expert: str) -> None:
    fitted = fit_budget(Single, {"specs": SPECS, "out_width": 12, "expert": expert}, "200K")
    assert abs(count_parameters(Single, fitted) - 200_000) <= 4_000
