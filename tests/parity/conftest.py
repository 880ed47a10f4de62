"""What the parity tests share: the comparison, its record, and the way to a reference that may not be installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

LIMIT = 1e-4  # largest absolute difference in float32; features have a size of about 1
FOUND = pytest.StashKey[dict[str, float]]()

Compare = Callable[[str, Tensor, Tensor], None]


@pytest.fixture
def compare(request: pytest.FixtureRequest) -> Compare:
    """Hold two tensors against each other; the largest difference under each name is printed at the end."""
    found = request.config.stash.setdefault(FOUND, {})

    def check(name: str, ours: Tensor, theirs: Tensor) -> None:
        assert ours.shape == theirs.shape
        assert 0.05 < theirs.std() < 20, "a reference that says nothing"
        difference = (ours - theirs).abs().max().item()
        found[name] = max(found.get(name, 0.0), difference)
        assert difference <= LIMIT, f"{name}: {difference:.2e}"

    return check


@pytest.fixture
def reference() -> Callable[[str, str], Any]:
    """Import a class of a reference implementation, or skip the test."""

    def find(module: str, name: str) -> Any:
        try:
            return getattr(importlib.import_module(module), name)
        except ImportError as error:
            pytest.skip(f"no reference implementation: {error}; `make parity` installs it")

    return find


@pytest.fixture
def noise() -> Callable[[int], Tensor]:
    """A waveform of so many samples: noise that swells and fades, another for every length."""

    def make(samples: int) -> Tensor:
        generator = torch.Generator().manual_seed(samples)
        swell = torch.sin(torch.arange(samples) / 3000) + 1.1
        return 0.1 * swell * torch.randn(samples, generator=generator)

    return make


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the largest differences."""
    for name, difference in sorted(config.stash.get(FOUND, {}).items()):
        terminalreporter.write_line(f"largest difference, {name}: {difference:.1e} (limit {LIMIT:.0e})")
