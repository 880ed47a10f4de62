"""Seeds as pure functions: the randomness of an item depends on (seed, names), never on what ran before it."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive_seed(seed: int, *names: object) -> int:
    """Return a 63-bit seed for the thing called `names` under `seed`.

    Equal on every machine, process and Python version (unlike `hash`).
    """
    text = "\x1f".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") >> 1


def numpy_rng(seed: int, *names: object) -> np.random.Generator:
    """Return NumPy's generator for the thing called `names` under `seed`."""
    return np.random.default_rng(derive_seed(seed, *names))


def python_rng(seed: int, *names: object) -> random.Random:
    """Return the standard library's generator for the thing called `names` under `seed`."""
    return random.Random(derive_seed(seed, *names))


def seed_everything(seed: int, *names: object) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices) for the thing called `names`."""
    value = derive_seed(seed, *names)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)
