"""`omnichat bench quick=true`: all of it runs and its files say what they must; no test looks at a speed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from omnichat.training.bench_meters import STAGES
from omnichat.utils.files import read_json
from tests.integration.conftest import Corpora, Outcome


def test_quick_measures_every_variant_and_writes_figures_and_picture(
    omnichat: Callable[..., Outcome], corpora: Corpora, tmp_path: Path
) -> None:
    out = tmp_path / "bench"
    outcome = omnichat("bench", *corpora.overrides(tmp_path / "runs"), "quick=true", f"bench.out={out}")
    assert outcome.code == 0, outcome.err
    result = read_json(out / "bench.json")
    rows = {row["variant"]: row for row in result["variants"]}
    assert set(rows) >= {"everything_on", "everything_on@0", "everything_off", "all_logits", "online_experts"}
    for name, row in rows.items():
        assert (row["turns_a_second"]["min"] > 0) and 0 <= row["padding"] < 1, name
        assert ("reference_over_it" in row) == (not name.startswith("everything_on"))
        assert f"{name} " in outcome.out
    assert {name for name, row in rows.items() if "target" in row} == {
        "one_reply_a_sample", "all_logits", "online_experts", "everything_off",
    }  # fmt: skip
    turns = {name: {one["turns"] for one in passes} for name, passes in result["rounds"].items()}
    assert len(set.union(*(found for name, found in turns.items() if not result_is_natural(name)))) == 1
    assert set(result["profile"]["stages"]) == set(STAGES)
    assert sum(result["profile"]["stages"].values()) == pytest.approx(1)
    assert sum(result["profile"]["kernels"].values()) == pytest.approx(1)
    assert 0 < result["profile"]["mfu"]["median"] < 1
    growth = result["growth"]
    assert [point["dialogues"] for point in growth["dialogues"]] == [50, 100]
    assert {point["way"] for point in growth["turns"]} == {"one_pass", "one_reply_a_sample"}
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG")


def result_is_natural(name: str) -> bool:
    """Whether a variant of configs/bench.yaml trains on the corpus's own dialogues."""
    return name in ("arrival_order", "packed", "everything_on@0")


def test_a_wrong_source_and_a_wrong_variant_are_named(
    omnichat: Callable[..., Outcome], corpora: Corpora, tmp_path: Path
) -> None:
    base = [*corpora.overrides(tmp_path / "runs"), "quick=true", f"bench.out={tmp_path / 'bench'}"]
    outcome = omnichat("bench", *base, "bench.from_source=nobody")
    assert outcome.code == 2 and "bench.from_source" in outcome.err and "sharechatx" in outcome.err
    outcome = omnichat("bench", *base, "+bench.variants.mine={order: sideways}")
    assert outcome.code == 2 and "sideways" in outcome.err and "arrival" in outcome.err


def test_what_comes_after_a_bench_chooses_its_own_precision(
    omnichat: Callable[..., Outcome], corpora: Corpora, tmp_path: Path
) -> None:
    base = [*corpora.overrides(tmp_path / "runs"), "quick=true", f"bench.out={tmp_path / 'bench'}"]
    outcome = omnichat("bench", *base, "trainer.precision=bf16", "+bench.variants.wrong={frozen: float8}")
    assert outcome.code == 2, outcome.err
    small = [f"~bench.variants.{name}" for name in ("one_reply_a_sample", "online_experts", "arrival_order", "packed")]
    outcome = omnichat("bench", *base, "trainer.precision=bf16", *small)
    assert outcome.code == 0, outcome.err
    assert not AcceleratorState._shared_state
