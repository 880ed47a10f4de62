"""In which precision a baseline's model runs, and how it decodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from omnichat.utils.errors import UserError, one_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(dtype: str, device: str, key: str) -> torch.dtype:
    """auto (bfloat16 on a GPU, else float32) | float32 | bfloat16 | float16. Raises UserError."""
    if dtype == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    if dtype not in DTYPES:
        raise one_of(key, dtype, ("auto", *DTYPES))
    return DTYPES[dtype]


@contextmanager
def one_line(key: str, path: str, kind: str) -> Iterator[None]:
    """Turn what transformers raises while it loads into one line that names the setting."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{key}={path!r} cannot be loaded as {kind}: {reason}") from None


def make_greedy(model: Any, tokenizer: Any) -> None:
    """Replace a model's own generation settings (sampling, penalties) by plain greedy search with its end tokens."""
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = {own} if isinstance(own, int) else set(own or ())
    ends |= {tokenizer.eos_token_id} - {None}
    pad = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
        bos_token_id=tokenizer.bos_token_id,
    )


def check_window(model: Any, width: int, max_new_tokens: int, key: str) -> None:
    """Raise UserError for a prompt that leaves no room for the reply."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    window = getattr(config, "max_position_embeddings", None)
    if window is not None and width + max_new_tokens > window:
        raise UserError(
            f"{key}: a prompt of {width} tokens and max_new_tokens={max_new_tokens} do not fit into the model's "
            f"{window}; fewer shots help"
        )


def decode(tokenizer: Any, rows: Any) -> list[str]:
    """The texts of generated ids [B, N], without what follows the end."""
    return [str(tokenizer.decode(row, skip_special_tokens=True)).strip() for row in rows.tolist()]
