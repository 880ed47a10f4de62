"""The merged LLM: what plain transformers loads says what LoRA said, and what cannot be merged is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from omnichat.model.llm import LLMConfig, LoraConfig, load_llm
from omnichat.model.pretrained.merging import write_merged
from omnichat.utils.errors import UserError
from tests.helpers_core import TINY

IDS = torch.tensor([[5, 900, 17, 44, 3000, 8]])


def tuned(*targets: str, dtype: torch.dtype = torch.float32, scale: float = 0.3) -> tuple[Any, Any]:
    """A small random LLM whose LoRA says something, and its tokenizer."""
    config = LLMConfig(random_size=TINY, lora=LoraConfig(rank=4, targets=list(targets)))
    llm, tokenizer = load_llm(config, dtype, 0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in llm.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0.0, scale, generator=generator)
    return llm.eval(), tokenizer


@torch.no_grad()
def logits(llm: Any) -> torch.Tensor:
    found: torch.Tensor = llm(input_ids=IDS, use_cache=False).logits
    return found.float()


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("down_proj", "lm_head")])
def test_the_merged_llm_is_lora_beside_the_llm(targets: tuple[str, ...], tmp_path: Path) -> None:
    """Also where LoRA changes an output layer that shares its weights with the input embeddings."""
    llm, tokenizer = tuned(*targets)
    before = logits(llm)
    measured = write_merged(llm, tokenizer, tmp_path / "llm")
    assert torch.equal(logits(llm), before), "the LLM itself stays as it is"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "llm").eval()
    assert loaded.dtype == torch.float32 and not any("lora" in name for name, _ in loaded.named_parameters())
    torch.testing.assert_close(logits(loaded), before, atol=1e-4, rtol=1e-4)
    with torch.no_grad(), llm.disable_adapter():
        assert not torch.allclose(logits(loaded), logits(llm), atol=1e-2), "LoRA must matter, or nothing is shown"
    assert measured.saved < 1e-4 < measured.moved and measured.agree == 1.0 and not measured.rounded_away
    assert AutoTokenizer.from_pretrained(tmp_path / "llm")("Hello")["input_ids"] == tokenizer("Hello")["input_ids"]
    assert (tmp_path / "llm" / "model.safetensors").is_file()


def test_weights_keep_the_frozen_dtype_unless_another_is_asked_for(tmp_path: Path) -> None:
    llm, tokenizer = tuned("q_proj", "v_proj", dtype=torch.bfloat16)
    rounded = write_merged(llm, tokenizer, tmp_path / "rounded")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "rounded").dtype == torch.bfloat16
    assert rounded.dtype == "bfloat16" and rounded.exact < 1e-4 < rounded.saved
    whole = write_merged(llm, tokenizer, tmp_path / "whole", torch.float32)
    assert whole.dtype == "float32" and whole.saved < 1e-4


def test_lora_that_rounding_takes_away_is_told(tmp_path: Path) -> None:
    llm, tokenizer = tuned("v_proj", dtype=torch.bfloat16, scale=3e-3)
    assert write_merged(llm, tokenizer, tmp_path / "llm").rounded_away


def test_weights_that_are_not_finite_are_refused_in_a_line(tmp_path: Path) -> None:
    llm, tokenizer = tuned("q_proj")
    next(p for name, p in llm.named_parameters() if "lora_B" in name).data.fill_(float("nan"))
    with pytest.raises(UserError, match="merge=true") as caught:
        write_merged(llm, tokenizer, tmp_path / "llm")
    assert "\n" not in str(caught.value)
