"""Where a step of the bench's reference spends its time, and what bounds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from omnichat.data.collate import collate
from omnichat.training.bench import Bench, Variant, Workload
from omnichat.training.bench_meters import STAGES, clocked, kernel_shares, layer_peak
from omnichat.training.bench_summary import bound_by, utilisation


def profile(
    bench: Bench, variant: Variant, load: Workload, passes: Sequence[Any], peaks: Sequence[float]
) -> dict[str, Any]:
    """Shares of stages and of kinds of operators over one pass, with the LoRA-MFU of the measured passes.

    Args:
        passes: of the same variant, unprofiled.
        peaks: FLOP/s of the fastest matrix product, measured in the same rounds.
    """
    rig = bench.rig(variant)
    trainer = rig.trainer
    device, features = trainer.accelerator.device, bench.features[variant.experts]
    with clocked(trainer.model, trainer.optimizer, device) as clock:
        for items in load.batches:
            clock.begin()
            batch = collate(items, features, pack=bench.pack(variant, load.batch_tokens)).to(device)
            clock.mark("data")
            rig.step(batch)
    total = sum(clock.seconds.values())
    stages = {stage: clock.seconds[stage] / total for stage in STAGES}
    kernels = kernel_shares(lambda: rig.step(batch), device)
    dtype = torch.bfloat16 if trainer.precision == "bf16" else torch.float32
    parameters = sum(p.numel() for name, p in trainer.model.llm.named_parameters() if "lora_" not in name)
    used = utilisation(passes, parameters, peaks)
    shapes = layer_peak(trainer.model.llm, batch.mask_BS.numel(), device, dtype) / used["matrix_peak_flops"]["median"]
    return {
        **used,
        "llm_parameters": parameters,
        "own_shapes_over_peak": shapes,
        "stages": stages,
        "kernels": kernels,
        "bound_by": bound_by(stages, kernels, used["mfu"]["median"], shapes),
    }
