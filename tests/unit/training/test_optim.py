"""The schedule as a function of the step, and the groups of AdamW."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from omnichat.data.corpus import Corpus
from omnichat.training.optim import OptimConfig, build_optimizer, schedule, set_learning_rates
from omnichat.utils.errors import UserError
from tests.helpers_core import make_kit


def test_warm_up_is_linear_and_its_last_step_is_the_peak() -> None:
    config = OptimConfig(warmup_steps=4)
    assert [schedule(step, 100, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert schedule(4, 100, config) < 1.0


def test_cosine_falls_to_the_final_ratio_at_the_last_step() -> None:
    config = OptimConfig(warmup_steps=10, final_ratio=0.1)
    factors = [schedule(step, 110, config) for step in range(10, 110)]
    assert all(before > after for before, after in pairwise(factors))
    assert factors[-1] == pytest.approx(0.1)
    assert factors[49] == pytest.approx(0.55), "half way, the mean of peak and end"
    assert factors[24] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 10), (5, 5), (3, 2)])
def test_short_runs_have_a_rate(steps: int, warmup: int) -> None:
    factors = [schedule(step, steps, OptimConfig(warmup_steps=warmup)) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)


def test_fusion_and_lora_have_rates_of_their_own_and_only_matrices_decay(synthetic: Corpus) -> None:
    model = make_kit([synthetic]).model
    config = OptimConfig(lr_fusion=1e-2, lr_lora=1e-4, weight_decay=0.3, beta1=0.8, beta2=0.9)
    optimizer = build_optimizer(model, config)
    names = {id(p): name for name, p in model.named_parameters()}
    seen = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(name)
            assert group["name"] == ("fusion" if name.startswith("fusion.") else "lora")
            assert group["weight_decay"] == (0.3 if parameter.dim() >= 2 else 0.0)
            assert group["betas"] == (0.8, 0.9)
    assert sorted(seen) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    set_learning_rates(optimizer, 0.5, config)
    assert {(g["name"], g["lr"]) for g in optimizer.param_groups} == {("fusion", 5e-3), ("lora", 5e-5)}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr_fusion", 0.0),
        ("lr_lora", -1.0),
        ("clip_norm", math.inf),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("final_ratio", math.nan),
        ("warmup_steps", -1),
        ("weight_decay", math.nan),
    ],
)
def test_a_bad_setting_is_named(field: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"trainer\.optim\..*{field}|trainer\.optim\.{field}"):
        OptimConfig(**{field: value})
