"""One parameter budget for every fusion: what is understood, what is met, and what is refused in one line."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from omnichat.encoders.base import StreamSpec
from omnichat.fusion import budget as module
from omnichat.fusion.base import FusedAudio, Fusion, Knobs
from omnichat.fusion.budget import TOLERANCE, count_parameters, fit_budget, parse_budget
from omnichat.fusion.cross_attention import CrossAttention
from omnichat.fusion.gated import Gated
from omnichat.fusion.mix_former import MixFormer
from omnichat.fusion.moe import MixtureOfExperts
from omnichat.fusion.perceiver import Perceiver
from omnichat.fusion.stack import Stack
from omnichat.schema import EncodedAudio
from omnichat.utils.errors import UserError

torch.set_num_threads(1)
CLASSES = (MixFormer, Stack, Gated, MixtureOfExperts, CrossAttention, Perceiver)
DEMO = {"whisper": StreamSpec(384, 5, 50.0), "beats": StreamSpec(128, 1, 50.0), "mert": StreamSpec(96, 1, 75.0)}
LARGE = {name: StreamSpec(1280, 33, 50.0) for name in "abcd"}


UNDERSTOOD = {"8M": 8_000_000, "0.5m": 500_000, "750K": 750_000, " 2 M": 2_000_000, 12345: 12345, 2e6: 2_000_000}


@pytest.mark.parametrize("text", UNDERSTOOD)
def test_what_a_budget_may_look_like(text: str | int | float) -> None:
    assert parse_budget(text) == UNDERSTOOD[text]


@pytest.mark.parametrize("text", ["8X", "", 0, "0M", "0.4", -3, "-3M", "2e0M", True, None, "nan", "inf", ["2M"]])
def test_other_budgets_are_refused(text: object) -> None:
    with pytest.raises(UserError, match=r"^fusion\.budget=.* must be a number of parameters such as 8M"):
        parse_budget(text)  # type: ignore[arg-type]


specs_of = st.lists(st.tuples(st.integers(80, 1280), st.sampled_from([1, 5, 13, 25, 33])), min_size=1, max_size=4).map(
    lambda sizes: {f"expert_{n}": StreamSpec(width, layers, 50.0) for n, (width, layers) in enumerate(sizes)}
)


@settings(max_examples=20, deadline=None)
@given(
    cls=st.sampled_from(CLASSES),
    specs=specs_of,
    out_width=st.integers(64, 4096),
    queries=st.sampled_from([1, 1, 2, 4]),
    budget=st.integers(500_000, 50_000_000),
)
def test_any_budget_is_met_for_any_experts(
    cls: type[Fusion], specs: dict[str, StreamSpec], out_width: int, queries: int, budget: int
) -> None:
    given_settings = {"specs": specs, "out_width": out_width, "queries": queries}
    fitted = fit_budget(cls, given_settings, budget)
    assert {name: fitted[name] for name in given_settings} == given_settings
    got = count_parameters(cls, fitted)
    assert abs(got - budget) <= TOLERANCE * budget
    if cls in (Perceiver, MixFormer, CrossAttention):
        assert fitted["width"] % 4 == 0, "a multiple of the heads"


@pytest.mark.parametrize("cls", CLASSES)
def test_the_count_is_that_of_the_real_thing(cls: type[Fusion]) -> None:
    fitted = fit_budget(cls, {"specs": DEMO, "out_width": 576}, "1M")
    real = sum(p.numel() for p in cls(**fitted).parameters())
    assert real == count_parameters(cls, fitted) and abs(real - 1e6) <= 2e4
    fine = cls.knobs.fine
    beside = [count_parameters(cls, {**fitted, fine: fitted[fine] + step}) for step in (-1, 1)]
    assert abs(real - 1e6) <= min(abs(count - 1e6) for count in beside), "the nearest size of that width"


@pytest.mark.parametrize("cls", CLASSES)
def test_a_budget_of_the_defaults_own_size_gives_about_the_defaults(cls: type[Fusion]) -> None:
    """The knobs keep the proportions that the class was designed with."""
    fitted = fit_budget(cls, {"specs": DEMO, "out_width": 576}, "1.89M")
    default = cls(DEMO, 576)
    width = next(iter(default.inputs.values())).project.out_features
    assert abs(fitted["width"] - width) <= 0.05 * width


@pytest.mark.parametrize("cls", CLASSES)
def test_the_defaults_of_all_members_are_about_as_large(cls: type[Fusion]) -> None:
    reference = count_parameters(MixFormer, {"specs": DEMO, "out_width": 576})
    assert abs(count_parameters(cls, {"specs": DEMO, "out_width": 576}) - reference) < 0.04 * reference


@pytest.mark.parametrize("cls", CLASSES)
def test_too_small_a_budget_names_the_smallest(cls: type[Fusion]) -> None:
    given_settings = {"specs": LARGE, "out_width": 4096}
    with pytest.raises(
        UserError, match=r"^fusion\.budget='2K' is too small for \w+: it takes (\d+) at least$"
    ) as error:
        fit_budget(cls, given_settings, "2K")
    smallest = int(str(error.value).split("takes ")[1].split()[0])
    fitted = fit_budget(cls, given_settings, smallest)
    assert abs(count_parameters(cls, fitted) - smallest) <= TOLERANCE * smallest


def test_other_settings_are_kept_and_theirs_are_checked() -> None:
    fitted = fit_budget(MixFormer, {"specs": DEMO, "out_width": 64, "heads": 7, "width": 3, "layers": 1}, "1M")
    assert fitted["heads"] == 7 and fitted["layers"] == 1 and fitted["width"] % 7 == 0
    with pytest.raises(UserError, match="heads"):
        fit_budget(MixFormer, {"specs": DEMO, "out_width": 64, "heads": 0}, "1M")


class _Coarse(Fusion):
    """A fusion whose fine size goes in steps of a thousand parameters, its coarse one in steps of 70."""

    knobs = Knobs(coarse="width", fine="hidden", ratio=1.0)

    def __init__(self, specs: Mapping[str, StreamSpec], out_width: int, width: int = 1, hidden: int = 1) -> None:
        super().__init__(specs, out_width, 0.34, 1)
        self.weight = nn.Parameter(torch.zeros(1 + 70 * width + 1000 * hidden))

    def fuse(self, streams: Mapping[str, EncodedAudio], seconds_B: Tensor, context_BD: Tensor | None) -> FusedAudio:
        raise NotImplementedError


def test_where_the_fine_size_is_too_coarse_the_other_one_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    given_settings = {"specs": DEMO, "out_width": 8}
    fitted = fit_budget(_Coarse, given_settings, 10_000)
    assert abs(count_parameters(_Coarse, fitted) - 10_000) <= 200
    monkeypatch.setattr(module, "_AROUND", 0)
    with pytest.raises(UserError, match=r"_Coarse comes no nearer than \d+ parameters"):
        fit_budget(_Coarse, given_settings, 10_000)
