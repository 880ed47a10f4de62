"""A small random chat model in a folder, with the packaged tokenizer."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from omnichat.utils.llm_files import local_llm


@functools.cache
def tiny_llm() -> Path:
    """The folder, made once a process; of a model that never learned anything."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-llm-"))
    tokenizer = AutoTokenizer.from_pretrained(local_llm("asset:smollm2"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=8192, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def transformers_writer(**changed: Any) -> Any:
    """The writer of configs/writer/transformers.yaml with the tiny model."""
    from omnichat.synthesis.writers.transformers_lm import TransformersWriter

    settings: dict[str, Any] = {
        "path": str(tiny_llm()),
        "revision": None,
        "licence": "test",
        "device": "cpu",
        "dtype": "float32",
        "prompts": "v1",
        "examples": 0,
        "reply_style": "heard",
        "max_words": 14,
        "constrained": True,
        "temperature": 1.0,
        "top_p": 0.95,
        "max_tokens": 400,
        "batch": 2,
    }
    return TransformersWriter(**{**settings, **changed})
