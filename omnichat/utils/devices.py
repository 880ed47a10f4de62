"""Where a model runs."""

from __future__ import annotations

import torch

from omnichat.utils.errors import UserError


def resolve_device(device: str, key: str) -> str:
    """The torch device of a setting: auto (a GPU if there is one) | cpu | cuda | cuda:N. Raises UserError."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise UserError(f"{key}={device!r} must be auto, cpu, cuda or cuda:N") from None
    if kind.type == "cuda" and (not torch.cuda.is_available() or (kind.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"{key}={device!r}: this machine has {torch.cuda.device_count()} CUDA devices; use auto or cpu")
    return device
