"""All measurements of `omnichat bench`, in one process: variants, profile, padding, growth."""

from __future__ import annotations

from typing import Any

import torch

from omnichat.training.bench import REFERENCE, Bench, BenchConfig, Variant
from omnichat.training.bench_growth import grow_batch_tokens, grow_dialogues, grow_turns, measured
from omnichat.training.bench_profile import profile
from omnichat.training.bench_sets import padding_shares
from omnichat.training.bench_summary import reference_name, summarise
from omnichat.training.watch import matrix_peak_tflops

OWN_REPLIES = 2  # times as many replies for the corpus's own dialogues, which are shorter: several batches


def measure_all(bench: Bench, config: BenchConfig) -> dict[str, Any]:
    """Every variant against the reference, where the reference's time goes, and how it grows."""
    # First of all, while the process holds little that could be reused: its memory is what the system sees grow.
    dialogues = grow_dialogues(bench, config)
    padding = padding_shares(bench.source, bench.chat, bench.loader, bench.seed)
    variants = {REFERENCE: Variant(), **config.variants}
    for variant in config.variants.values():
        variants.setdefault(reference_name(variant), Variant(turns=variant.turns))
    runs = {}
    for name, variant in variants.items():
        turns = config.turns if variant.turns is None else variant.turns
        replies = config.replies if turns else OWN_REPLIES * config.replies
        runs[name] = (variant, bench.workload(variant, bench.dialogues(turns, replies)))
    trainer = bench.rig(Variant()).trainer
    device, dtype = trainer.accelerator.device, torch.bfloat16 if trainer.precision == "bf16" else torch.float32
    peaks: list[float] = []
    passes = measured(
        bench, runs, config.rounds, "variants", lambda: peaks.append(1e12 * matrix_peak_tflops(device, dtype))
    )
    reference, load = runs[REFERENCE]
    return {
        "variants": summarise(passes, variants),
        "profile": profile(bench, reference, load, passes[REFERENCE], peaks),
        "padding_of_the_corpus": padding,
        "growth": {
            "turns": grow_turns(bench, config, reference),
            "batch_tokens": grow_batch_tokens(bench, config, reference),
            "dialogues": dialogues,
        },
        "rounds": passes,
    }
