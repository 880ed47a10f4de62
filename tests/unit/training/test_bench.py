"""The bench does the same work in every variant, and its arithmetic is right; nothing here looks at a speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from omnichat.data.batching import BatchPlan, LoaderConfig
from omnichat.data.corpus import Corpus
from omnichat.text.chat import IGNORE
from omnichat.training.bench import REFERENCE, Bench, BenchConfig, Variant, measure
from omnichat.training.bench_all import measure_all
from omnichat.training.bench_growth import batch_runs, write_rows
from omnichat.training.bench_meters import (
    STAGES,
    PeakMemory,
    can_reset_peak,
    clocked,
    kernel_shares,
    layer_peak,
)
from omnichat.training.bench_sets import ArrivalPlan, EachOnce, chained, make_items, padding_shares, spread_out
from omnichat.training.bench_summary import ratio, reference_name, summarise
from omnichat.training.loss import LossConfig
from omnichat.training.settings import TrainerConfig
from omnichat.utils.errors import UserError
from tests.helpers_core import HashFeatures, Kit, make_kit, wake_lora

CPU = torch.device("cpu")


@pytest.fixture
def kit(synthetic: Corpus) -> Kit:
    made = make_kit([synthetic])
    wake_lora(made.model)
    return made


def make_bench(kit: Kit, folder: Path, **trainer: Any) -> Bench:
    [source] = kit.sources
    heard = HashFeatures()
    return Bench(
        source,
        kit.chat,
        {"cached": heard, "online": heard},
        lambda _: make_kit([source.corpus]).model,  # type: ignore[list-item]
        TrainerConfig(precision="fp32", **trainer),
        LoaderConfig(batch_tokens=600, workers=0),
        folder,
        seed=0,
    )


def test_one_reply_a_sample_supervises_every_token_once_and_costs_the_same(kit: Kit) -> None:
    [source] = kit.sources
    dialogues = list(source.corpus.iterate("train"))
    whole, cut = (make_items(source, dialogues, kit.chat, one_pass) for one_pass in (True, False))
    assert all(len(item.sequence.replies) == 1 for item in cut)
    assert len(cut) == sum(len(item.sequence.replies) for item in whole) > len(whole)

    def supervised(items: list[Any]) -> int:
        return sum(label != IGNORE for item in items for label in item.sequence.labels)

    assert supervised(cut) == supervised(whole)
    with torch.no_grad():
        one_pass, one_by_one = (
            sum(float(kit.model(kit.batch([item])).ce_N.sum()) for item in items) for items in (whole, cut)
        )
    assert one_by_one == pytest.approx(one_pass, rel=1e-4)


def test_a_chain_has_exactly_the_turns_that_are_asked_for(synthetic: Corpus) -> None:
    dialogues = list(synthetic.iterate("train"))
    for turns in (2, 8, 16):
        made = chained(dialogues, turns, 3, "B")
        assert [len(dialogue.turns) for dialogue in made] == [turns] * 3
        assert all("".join(t.speaker for t in dialogue.turns) == "AB" * (turns // 2) for dialogue in made)
        assert len({dialogue.id for dialogue in made}) == 3
    with pytest.raises(UserError, match="even number of turns, at least 2; got 3"):
        chained(dialogues, 3, 1, "B")
    silent = [replace(d, turns=tuple(replace(t, audio=None) for t in d.turns)) for d in dialogues]
    with pytest.raises(UserError, match="no training dialogue in which B answers a recorded turn"):
        chained(silent, 4, 1, "B")


def test_dialogues_are_spread_over_the_corpus(synthetic: Corpus) -> None:
    dialogues = list(synthetic.iterate("train"))
    ids = [dialogue.id for dialogue in dialogues]
    few = [dialogue.id for dialogue in spread_out(dialogues, 3)]
    assert len(set(few)) == 3 and few == sorted(few, key=ids.index)
    assert spread_out(dialogues, 99) == dialogues


def test_every_item_is_dealt_once_a_pass() -> None:
    dealt = EachOnce("one", 7, seed=3)
    first, second = ([dealt[g][1] for g in range(start, start + 7)] for start in (0, 7))
    assert sorted(first) == sorted(second) == list(range(7)) and first != second


def test_arrival_keeps_the_order_and_pads_more() -> None:
    lengths = [10, 90, 12, 80, 11, 95, 13, 85]
    config = LoaderConfig(batch_tokens=200, pool=len(lengths))
    dealt: Any = EachOnce("one", len(lengths), seed=0)

    def length(_: str, index: int) -> int:
        return lengths[index]

    def padded(plan: BatchPlan) -> int:
        return sum(len(batch) * max(lengths[draw.index] for draw in batch) for batch in plan.pool(0))

    arrival, bucket = ArrivalPlan(dealt, length, config, 0), BatchPlan(dealt, length, config, 0)
    drawn = [draw.position for batch in arrival.pool(0) for draw in batch]
    assert drawn == sorted(drawn) == list(range(len(lengths)))
    assert all(len(b) * max(lengths[d.index] for d in b) <= 200 for b in arrival.pool(0))
    assert padded(arrival) > padded(bucket)


def test_padding_of_a_corpus_is_least_where_lengths_are_known(kit: Kit) -> None:
    shares = padding_shares(kit.sources[0], kit.chat, LoaderConfig(batch_tokens=600, pool=64), seed=0)
    assert set(shares) == {"bucket", "pack", "arrival"}
    assert 0 <= shares["bucket"] < shares["arrival"] < 1 and 0 <= shares["pack"] < 1


def test_variants_do_the_same_work_in_interleaved_rounds_on_shared_frozen_weights(kit: Kit, tmp_path: Path) -> None:
    bench = make_bench(kit, tmp_path)
    dialogues = bench.dialogues(4, 6)
    variants = {
        REFERENCE: Variant(),
        "split": Variant(one_pass=False),
        "logits": Variant(supervised_logits=False),
        "checkpointing": Variant(checkpointing=True),
        "off": Variant(one_pass=False, supervised_logits=False, experts="online", order="arrival"),
    }
    order: list[str] = []
    runs = {name: (variant, bench.workload(variant, dialogues)) for name, variant in variants.items()}
    passes = measure(bench, runs, 2, on_pass=order.append)
    assert order == list(variants) * 2, "two rounds, each of all variants in turn"
    assert {one["turns"] for found in passes.values() for one in found} == {6}
    assert {one["supervised_tokens"] for found in passes.values() for one in found} == {
        passes[REFERENCE][0]["supervised_tokens"]
    }
    assert passes["split"][0]["tokens"] > passes[REFERENCE][0]["tokens"]
    plain, other = (bench.rig(variants[name]).trainer.model for name in (REFERENCE, "checkpointing"))
    assert plain is not other and bench.rig(variants["logits"]).trainer.model is plain
    for (name, mine), (_, theirs) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
        assert (mine.data_ptr() == theirs.data_ptr()) == (not mine.requires_grad), name
    assert plain.all_logits, "the switch of the variant that was readied last"
    bench.rig(variants[REFERENCE])
    assert not plain.all_logits


def test_clock_and_profiler_share_out_a_whole_step(kit: Kit, tmp_path: Path) -> None:
    bench = make_bench(kit, tmp_path)
    rig = bench.rig(Variant())
    batch = kit.batch(kit.items()[:3])
    with clocked(rig.trainer.model, rig.trainer.optimizer, CPU) as clock:
        clock.begin()
        batch = kit.batch(kit.items()[:3])
        clock.mark("data")
        rig.step(batch)
    assert set(clock.seconds) == set(STAGES) and all(seconds > 0 for seconds in clock.seconds.values())
    spent = dict(clock.seconds)
    rig.step(batch)
    assert clock.seconds == spent, "its hooks are gone"
    shares = kernel_shares(lambda: rig.step(batch), CPU)
    assert sum(shares.values()) == pytest.approx(1) and shares["matrix products"] > 0
    assert layer_peak(rig.trainer.model.llm, 64, CPU, torch.float32) > 0


@pytest.mark.skipif(not can_reset_peak(), reason="this system cannot forget a peak")
def test_peak_memory_sees_what_was_there_and_is_gone() -> None:
    meter = PeakMemory(CPU)
    meter.start()
    held = torch.ones(32 * 2**20)  # 128 MiB
    del held
    assert (peak := meter.stop()) is not None and peak > 100 * 2**20
    meter.start()
    assert (later := meter.stop()) is not None and later < 50 * 2**20, "an earlier peak is forgotten"


def one_pass(turns: int, seconds: float) -> dict[str, Any]:
    return {"turns": turns, "seconds": seconds, "tokens": 90, "positions": 100, "peak_bytes": None}


def test_ratios_are_taken_within_a_round_and_held_against_targets() -> None:
    passes = {
        REFERENCE: [one_pass(8, 1.0), one_pass(8, 10.0), one_pass(8, 2.0)],
        "all_logits": [one_pass(8, 2.0), one_pass(8, 20.0), one_pass(8, 2.0)],
        "one_reply_a_sample": [one_pass(8, 2.0), one_pass(8, 20.0), one_pass(8, 8.0)],
        "short": [one_pass(4, 1.0)] * 3,
        f"{REFERENCE}@0": [one_pass(4, 2.0)] * 3,
    }
    assert ratio(passes[REFERENCE], passes["all_logits"]) == {"median": 2.0, "min": 1.0, "max": 2.0}
    variants = {name: Variant() for name in passes} | {"short": Variant(turns=0)}
    rows = {row["variant"]: row for row in summarise(passes, variants)}
    assert rows["all_logits"]["holds"] and not rows["one_reply_a_sample"]["holds"]
    assert rows["short"]["compared_with"] == f"{REFERENCE}@0" == reference_name(variants["short"])
    assert rows["short"]["reference_over_it"]["median"] == 0.5
    assert rows[REFERENCE]["padding"] == pytest.approx(0.1) and rows[REFERENCE]["peak_bytes"] is None
    assert not any("target" in rows[name] for name in (REFERENCE, "short"))


def test_a_grown_manifest_loads_with_the_same_recordings(synthetic: Corpus, tmp_path: Path) -> None:
    write_rows(tmp_path, synthetic.root, list(synthetic.iterate("train")), 40)
    grown = Corpus.load(tmp_path)
    assert grown.count("train") == 40
    hashes = {turn.sha256 for dialogue in grown.iterate() for turn in dialogue.turns}
    assert hashes == {turn.sha256 for dialogue in synthetic.iterate("train") for turn in dialogue.turns}


def test_what_cannot_be_measured_is_refused(kit: Kit, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"bench\.variants\.\*\.experts.*cached"):
        Variant(experts="telepathy")
    with pytest.raises(UserError, match=r"bench\.rounds must be at least 1"):
        BenchConfig(rounds=0)
    with pytest.raises(UserError, match=r"bench\.growth_turns must be positive"):
        BenchConfig(growth_turns=[0])
    for wrong in ({"turns": 3}, {"growth_turns": [2, 5]}):
        with pytest.raises(UserError, match=r"even number of turns, got [35]"):
            BenchConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="without a teacher"):
        make_bench(kit, tmp_path, loss=LossConfig(distill_weight=1.0))


def test_a_size_that_no_dialogue_fits_is_left_out_of_the_growth(kit: Kit, tmp_path: Path) -> None:
    bench = make_bench(kit, tmp_path)
    runs = batch_runs(bench, BenchConfig(growth_batch_tokens=[8, 2000]), Variant())
    assert list(runs) == ["2000"]


def test_what_was_measured_is_kept_stage_by_stage(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise UserError("later")

    config = BenchConfig(replies=2, turns=2, rounds=1, growth_turns=[2], growth_batch_tokens=[], growth_dialogues=[])
    kept: list[list[str]] = []
    monkeypatch.setattr("omnichat.training.bench_all.profile", broken)
    monkeypatch.setattr("omnichat.training.bench_all.matrix_peak_tflops", lambda *_: 0.1)
    with pytest.raises(UserError, match="later"):
        measure_all(make_bench(kit, tmp_path), config, lambda found: kept.append(sorted(found)))
    assert kept == [["growth", "padding_of_the_corpus"], ["growth", "padding_of_the_corpus", "rounds", "variants"]]
    bad = BenchConfig(replies=2, turns=2, variants={"odd": Variant(turns=3)})
    with pytest.raises(UserError, match="even number of turns"):
        measure_all(make_bench(kit, tmp_path), bad, lambda found: kept.append(sorted(found)))
    assert len(kept) == 2, "nothing is measured before every workload is there"
