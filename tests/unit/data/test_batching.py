"""Token-budget batches: the budget is kept, nothing is lost or repeated, and any place can be gone on from."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.data.batching import BatchPlan, Draw, LoaderConfig, Place
from omnichat.data.mixture import Mixture, MixtureSource
from omnichat.data.packing import pack_rows
from omnichat.utils.errors import UserError

SOURCES = [MixtureSource("made", "synthetic", 23), MixtureSource("spoken", "real", 9)]


# The demo's corpora: 216 and 48 training dialogues, and their lengths at 0, 5, ... 100 %.
DEMO = [MixtureSource("made", "synthetic", 216), MixtureSource("spoken", "real", 48)]
QUANTILES = {
    "made": [83, 85, 86, 86, 87, 88, 88, 88, 89, 90, 91, 91, 94, 117, 120, 121, 122, 123, 126, 127, 130],
    "spoken": [66, 67, 68, 68, 69, 70, 70, 70, 71, 72, 72, 72, 72, 73, 74, 80, 95, 96, 97, 98, 102],
}


def demo_lengths() -> Callable[[str, int], int]:
    rng = np.random.default_rng(0)
    drawn = {s.name: np.interp(rng.random(s.size), np.linspace(0, 1, 21), QUANTILES[s.name]) for s in DEMO}
    return lambda source, index: round(float(drawn[source][index]))


def length(source: str, index: int) -> int:
    return 10 + (index * 37 + len(source)) % 90


def plan(tokens: int = 200, pool: int = 16, seed: int = 0, pack: int = 0) -> BatchPlan:
    config = LoaderConfig(batch_tokens=tokens, pool=pool, pack=pack)
    return BatchPlan(Mixture(SOURCES, 0.3, seed), length, config, seed)


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(99, 600), pool=st.integers(1, 50), seed=st.integers(0, 1000), number=st.integers(0, 5))
def test_a_pool_keeps_the_budget_and_every_draw_once(tokens: int, pool: int, seed: int, number: int) -> None:
    made = plan(tokens, pool, seed)
    batches = made.pool(number)
    for batch in batches:
        assert batch and len(batch) * max(length(d.source, d.index) for d in batch) <= tokens
    draws = sorted((d for batch in batches for d in batch), key=lambda d: d.position)
    assert draws == [Draw(g, *made.mixture[g]) for g in range(number * pool, (number + 1) * pool)]


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(99, 600), share=st.floats(0.1, 1), pool=st.integers(1, 50), number=st.integers(0, 5))
def test_packed_rows_keep_the_budget_as_the_collator_makes_them(
    tokens: int, share: float, pool: int, number: int
) -> None:
    """The budget is of rows times the longest of them, and the collator packs the batch anew."""
    pack = max(1, int(share * tokens))
    made = plan(tokens, pool, pack=pack)
    batches = made.pool(number)
    for batch in batches:
        lengths = [length(d.source, d.index) for d in batch]
        widths = [sum(lengths[i] for i in row) for row in pack_rows(lengths, pack)]
        assert len(widths) * max(widths) <= tokens
    draws = sorted((d for batch in batches for d in batch), key=lambda d: d.position)
    assert draws == [Draw(g, *made.mixture[g]) for g in range(number * pool, (number + 1) * pool)]


@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize(("pack", "most"), [(0, 0.08), (256, 0.08), (768, 0.0)])
def test_little_of_a_batch_is_padding(alpha: float, pack: int, most: float) -> None:
    """Lengths like those of the demo's corpora, under its budget: padding is at most 8 % of the positions."""
    config = LoaderConfig(batch_tokens=768, pool=128, pack=pack)
    made = BatchPlan(Mixture(DEMO, alpha, 0), demo_lengths(), config, 0)
    positions = tokens = 0
    for batch, _ in islice(made.batches(Place()), 200):
        lengths = [made.length(d.source, d.index) for d in batch]
        widths = [sum(lengths[i] for i in row) for row in pack_rows(lengths, pack)]
        positions += len(widths) * max(widths)
        tokens += sum(lengths)
    assert 1 - tokens / positions <= most


def test_going_on_from_every_place_gives_the_rest() -> None:
    stream = list(islice(plan().batches(Place()), 40))
    for cut, (_, place) in enumerate(stream[:30]):
        rest = list(islice(plan().batches(place), 40 - cut - 1))
        assert rest == stream[cut + 1 :]
    assert any(place.batch == 0 for _, place in stream[:30]), "some cut must lie between two pools"


def test_a_plan_that_ends_has_no_pool_after_its_end() -> None:
    mixture = Mixture(SOURCES, 0.3, 0, one_pass_of="synthetic")
    made = BatchPlan(mixture, length, LoaderConfig(batch_tokens=200, pool=16), 0)
    assert mixture.length is not None
    last = (mixture.length - 1) // 16
    assert made.pool(last) and made.pool(last + 1) == made.pool(last + 50) == []
    assert sum(len(draws) for draws, _ in made.batches(Place())) == mixture.length


def test_a_place_counts_its_own_pool() -> None:
    stream = list(islice(plan().batches(Place()), 60))
    for (_, before), (_, after) in pairwise(stream):
        assert after == Place(before.pool, before.batch + 1) or after == Place(before.pool + 1, 0)


def test_batches_are_packed_by_length_but_not_served_by_length() -> None:
    pools = [plan(pool=64).pool(number) for number in range(4)]
    for pool in pools:
        longest = [max(length(d.source, d.index) for d in batch) for batch in pool]
        assert longest != sorted(longest) and longest != sorted(longest, reverse=True)
    padded = sum(max(length(d.source, d.index) for d in batch) * len(batch) for pool in pools for batch in pool)
    real = sum(length(d.source, d.index) for pool in pools for batch in pool for d in batch)
    assert real / padded > 0.85
    orders = [[batch[0].position - 64 * number for batch in pool] for number, pool in enumerate(pools)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("pack", [-1, 2049])
def test_a_bad_pack_is_named(pack: int) -> None:
    with pytest.raises(UserError, match=r"loader\.pack must lie in 0\.\.loader\.batch_tokens=2048"):
        LoaderConfig(pack=pack)


def test_seeds_give_other_batches() -> None:
    assert plan(seed=0).pool(0) != plan(seed=1).pool(0)
    assert plan(seed=0).pool(3) == plan(seed=0).pool(3)


def test_a_dialogue_over_the_budget_is_named() -> None:
    with pytest.raises(UserError, match=r"loader\.batch_tokens=50 is less than the \d+ positions of dialogue \d+ of"):
        next(plan(tokens=50).batches(Place()))


@pytest.mark.parametrize(("field", "value"), [("batch_tokens", 0), ("pool", 0), ("workers", -1)])
def test_a_bad_setting_is_named(field: str, value: int) -> None:
    with pytest.raises(UserError, match=rf"loader\.{field} must be at least"):
        LoaderConfig(**{field: value})
