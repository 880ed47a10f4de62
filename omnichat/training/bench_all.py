"""All measurements of `omnichat bench`, in one process: variants, profile, padding, growth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from omnichat.training.bench import REFERENCE, Bench, BenchConfig, Variant
from omnichat.training.bench_growth import (
    Runs,
    batch_runs,
    grow_batch_tokens,
    grow_dialogues,
    grow_turns,
    measured,
    turn_runs,
)
from omnichat.training.bench_profile import profile
from omnichat.training.bench_sets import padding_shares
from omnichat.training.bench_summary import reference_name, summarise
from omnichat.training.watch import matrix_peak_tflops

OWN_REPLIES = 2  # times as many replies for the corpus's own dialogues, which are shorter: several batches


def measure_all(bench: Bench, config: BenchConfig, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Every variant against the reference, where the reference's time goes, and how it grows.

    Args:
        keep: given all that is known after each stage, so that a later one that fails costs itself alone.
    """
    variants = {REFERENCE: Variant(), **config.variants}
    for variant in config.variants.values():
        variants.setdefault(reference_name(variant), Variant(turns=variant.turns))
    reference = variants[REFERENCE]
    runs = variant_runs(bench, config, variants)  # all workloads first: a bad one is met before anything is measured
    by_turns, by_tokens = turn_runs(bench, config, reference), batch_runs(bench, config, reference)
    growth: dict[str, Any] = {}
    found: dict[str, Any] = {"growth": growth}
    # First of all, while the process holds little that could be reused: its memory is what the system sees grow.
    growth["dialogues"] = grow_dialogues(bench, config)
    found["padding_of_the_corpus"] = padding_shares(bench.source, bench.chat, bench.loader, bench.seed)
    keep(found)
    trainer = bench.rig(reference).trainer
    device, dtype = trainer.accelerator.device, torch.bfloat16 if trainer.precision == "bf16" else torch.float32
    peaks: list[float] = []
    passes = measured(
        bench, runs, config.rounds, "variants", lambda: peaks.append(1e12 * matrix_peak_tflops(device, dtype))
    )
    found |= {"variants": summarise(passes, variants), "rounds": passes}
    keep(found)
    found["profile"] = profile(bench, *runs[REFERENCE], passes[REFERENCE], peaks)
    keep(found)
    growth["turns"] = grow_turns(bench, by_turns, config.growth_rounds)
    keep(found)
    growth["batch_tokens"] = grow_batch_tokens(bench, by_tokens, config.growth_rounds)
    keep(found)
    return found


def variant_runs(bench: Bench, config: BenchConfig, variants: Mapping[str, Variant]) -> Runs:
    """The workload of every variant: the set of the bench, or dialogues of the variant's own number of turns."""
    runs: Runs = {}
    for name, variant in variants.items():
        turns = config.turns if variant.turns is None else variant.turns
        replies = config.replies if turns else OWN_REPLIES * config.replies
        runs[name] = (variant, bench.workload(variant, bench.dialogues(turns, replies)))
    return runs
