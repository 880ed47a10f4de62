"""From the passes of a bench to medians, ratios, targets and what bounds a step. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from omnichat.training.bench import REFERENCE, Variant

Passes = Sequence[Mapping[str, Any]]
FLOPS_A_TOKEN = 4  # times parameters: 2 forward, 2 for the gradient of the activations; frozen weights need none


@dataclass(frozen=True, slots=True)
class Target:
    """What a ratio of supervised turns/s, reference over variant, should be at least."""

    variant: str
    what: str
    at_least: float


TARGETS = (
    Target("one_reply_a_sample", "all replies in one pass", 3.0),
    Target("all_logits", "logits at supervised positions only", 1.25),
    Target("online_experts", "cached experts", 3.0),
    Target("everything_off", "everything on", 8.0),
)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median with the lowest and highest value."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def rate(passes: Passes, what: str) -> dict[str, float]:
    """`what` (turns, tokens) a second over the rounds."""
    return spread([one[what] / one["seconds"] for one in passes])


def ratio(reference: Passes, other: Passes) -> dict[str, float]:
    """How many times the supervised turns/s of `other` the reference does; each ratio within one round."""
    pairs = zip(reference, other, strict=True)
    return spread([(a["turns"] / a["seconds"]) / (b["turns"] / b["seconds"]) for a, b in pairs])


def reference_name(variant: Variant) -> str:
    """The run that a variant is compared with: everything on, over the same dialogues."""
    return REFERENCE if variant.turns is None else f"{REFERENCE}@{variant.turns}"


def summarise(passes: Mapping[str, Passes], variants: Mapping[str, Variant]) -> list[dict[str, Any]]:
    """A row a run: speeds, padding, peak memory, its share in the reference's speed, and the target if it has one."""
    targets = {target.variant: target for target in TARGETS}
    rows = []
    for name, found in passes.items():
        peaks = [one["peak_bytes"] for one in found if one["peak_bytes"] is not None]
        row: dict[str, Any] = {
            "variant": name,
            "turns_a_second": rate(found, "turns"),
            "tokens_a_second": rate(found, "tokens"),
            "padding": 1 - found[0]["tokens"] / found[0]["positions"],
            "peak_bytes": spread(peaks) if peaks else None,
        }
        if name in variants and (other := reference_name(variants[name])) != name:
            row |= {"compared_with": other, "reference_over_it": ratio(passes[other], found)}
            if target := targets.get(name):
                row |= {"target": target.at_least, "target_of": target.what}
                row["holds"] = row["reference_over_it"]["median"] >= target.at_least
        rows.append(row)
    return rows


def utilisation(reference: Passes, llm_parameters: int, peaks: Sequence[float]) -> dict[str, Any]:
    """LoRA-MFU of the reference: the share of the matrix peak (FLOP/s) that useful operations take up.

    `lora_mfu` counts every parameter of the LLM for every token, as the formula 4 x parameters x tokens/s goes; `mfu`
    counts what the mathematics of the step needs: no input embedding, the vocabulary at supervised positions only.
    """
    peak = median(peaks)
    formula = [FLOPS_A_TOKEN * llm_parameters * one["tokens"] / one["seconds"] / peak for one in reference]
    needed = [one["flops"] / one["seconds"] / peak for one in reference]
    return {"matrix_peak_flops": spread(peaks), "lora_mfu": spread(formula), "mfu": spread(needed)}


def bound_by(stages: Mapping[str, float], kernels: Mapping[str, float], mfu: float, layer_share: float) -> str:
    """One sentence: which stage and which kind of operator takes the time.

    Args:
        stages: stage -> share of the step.
        kernels: kind of operator -> share of operator time.
        mfu: share of the matrix peak that is used.
        layer_share: rate of products of the LLM's own shapes over the matrix peak.
    """
    llm = sum(share for name, share in stages.items() if name.startswith("LLM"))
    kinds = sorted(kernels.items(), key=lambda pair: -pair[1])
    most = ", ".join(f"{name} {share:.0%}" for name, share in kinds[:3])
    return (
        f"The LLM's layers take {llm:.0%} of a step (operators: {most}). Matrix products at peak speed would need "
        f"{mfu:.0%} of its time; products of the LLM's own shapes reach {layer_share:.0%} of the peak."
    )
