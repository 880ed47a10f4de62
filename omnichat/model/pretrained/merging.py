"""LoRA merged into the language model: a folder of its own, which any program that uses transformers loads."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from omnichat.model.llm import DTYPES
from omnichat.utils.errors import UserError

PROBE_TOKENS = 64
# Relative L2 difference of logits that is let pass, by the dtype of the saved weights: of 8 significant bits each
# rounded weight keeps its first three digits or so, and layers add to one another.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}


@dataclass(frozen=True, slots=True)
class Merged:
    """What was measured of a merged LLM on PROBE_TOKENS token ids, in float32, against LoRA applied beside it.

    Attributes:
        dtype: of the saved weights.
        moved: relative L2 distance of LoRA's logits from those of the LLM without it; what the merge must keep.
        exact: of the merged logits from LoRA's, before the weights are rounded to `dtype`.
        saved: of the logits of the written folder from LoRA's.
        largest: of one logit of the written folder, the largest absolute difference.
        agree: share of the positions where the likeliest token is the same.
    """

    dtype: str
    moved: float
    exact: float
    saved: float
    largest: float
    agree: float

    @property
    def rounded_away(self) -> bool:
        """Whether rounding the weights changed the logits by more than a tenth of what LoRA does."""
        return self.saved > 0.1 * self.moved


@torch.no_grad()
def write_merged(llm: Any, tokenizer: Any, folder: Path, dtype: torch.dtype | None = None) -> Merged:
    """Merge LoRA into a copy of the LLM in float32, write it with its tokenizer, and compare what was written.

    Needs memory for the LLM and for a copy of it in float32. `llm` stays as it is.

    Args:
        llm: PEFT causal LM, not quantised.
        folder: new; gets config.json, safetensors and the tokenizer's files.
        dtype: of the saved weights, float32 or bfloat16; None: as the frozen weights have it.

    Raises:
        UserError: weights that are not finite, or a model whose merged logits are not those of LoRA.
    """
    frozen = next(parameter.dtype for parameter in llm.parameters() if not parameter.requires_grad)
    dtype = dtype or frozen
    work = copy.deepcopy(llm).float().eval()
    if "flash" in (work.config._attn_implementation or ""):  # its kernels take 16-bit values on a GPU alone
        work.config._attn_implementation = "sdpa"
    ids = _probe(work)
    wanted = _logits(work, ids)
    with work.disable_adapter():
        moved = _distance(_logits(work, ids), wanted)
    _untie(work)
    try:
        merged = work.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise UserError(f"merge=true: {str(error).splitlines()[0]}") from None
    exact = _distance(_logits(merged, ids), wanted)
    merged.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del work, merged
    found = _logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), ids)
    name = next(name for name, known in DTYPES.items() if known == dtype)
    measured = Merged(
        dtype=name,
        moved=moved,
        exact=exact,
        saved=_distance(found, wanted),
        largest=float((found - wanted).abs().max()),
        agree=float((found.argmax(-1) == wanted.argmax(-1)).float().mean()),
    )
    for what, value, limit in (
        ("in float32", measured.exact, TOLERANCE[torch.float32]),
        (f"saved as {name}", measured.saved, TOLERANCE[dtype]),
    ):
        if not value <= limit:  # also where it is not a number
            raise UserError(
                f"merge=true: merged logits {what} differ from LoRA's own by {value:.2g} (relative L2), more than "
                f"{limit:g}: this LLM cannot be merged faithfully; leave merge out, or try merge_dtype=float32"
            )
    return measured


def _probe(llm: Any) -> Tensor:
    """Token ids [1, PROBE_TOKENS] from all over the vocabulary."""
    size = int(llm.get_input_embeddings().weight.shape[0])
    return (torch.arange(PROBE_TOKENS, device=llm.device) * 7919 + 11).remainder(size).unsqueeze(0)


def _logits(llm: Any, ids: Tensor) -> Tensor:
    logits: Tensor = llm(input_ids=ids.to(llm.device), use_cache=False).logits
    return logits.float().cpu()


def _distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def _untie(llm: Any) -> None:
    """Give an output layer that LoRA changes weights of its own, where it shares those of the input embeddings."""
    base = llm.get_base_model()
    head = base.get_output_embeddings()
    if not hasattr(head, "base_layer"):  # LoRA leaves it alone
        return
    layer = head.base_layer
    if layer.weight is base.get_input_embeddings().weight:
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    base.config.tie_word_embeddings = False
