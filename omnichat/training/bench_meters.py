"""Meters of the bench: peak memory, the matrix-product peak, where a step's time goes."""

from __future__ import annotations

import ctypes
import gc
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnichat.model.omnichat import OmniChat

_PEAK_SEC = 0.1  # that each shape of matrix product is repeated for
STAGES = ("data", "fusion forward", "LLM forward", "head and loss", "LLM backward", "fusion backward", "optimizer")
_RESET_PEAK = "5"  # what /proc/PID/clear_refs takes to forget the peak resident size (Linux 4.0)
KERNELS = {  # class of an operator -> parts of its name; the first class that fits
    "matrix products": ("mm", "linear", "einsum", "matmul"),
    "attention and softmax": ("attention", "softmax", "logsumexp", "nll_loss"),
    "copies and casts": ("copy", "cat", "clone", "contiguous", "_to_copy", "masked", "index", "gather", "scatter"),
    "elementwise and norms": ("",),
}


class PeakMemory:
    """Peak memory of a stretch of work above what was resident when it began.

    On CUDA the allocator's own peak. On Linux the kernel's peak resident size (VmHWM), reset at the start through
    /proc/self/clear_refs after the allocator has given back what it held in reserve. Elsewhere not measured (None).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._base = 0

    def start(self) -> None:
        """Forget earlier peaks."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._base = torch.cuda.memory_allocated(self.device)
        elif can_reset_peak():
            give_back()
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
            self._base = resident_bytes()

    def stop(self) -> int | None:
        """Bytes at the highest moment since `start`, above what was there at `start`."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self._base
        return _status("VmHWM") - self._base if can_reset_peak() else None


def can_reset_peak() -> bool:
    """Whether this system's kernel can forget the peak of this process."""
    return Path("/proc/self/clear_refs").exists()


def resident_bytes() -> int:
    """Memory of this process now; 0 where the system does not say."""
    return _status("VmRSS") if Path("/proc/self/status").exists() else 0


def give_back() -> None:
    """Let the C allocator return free memory to the system, where it knows how (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def finish(device: torch.device) -> None:
    """Wait for the device, so that a clock read now means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def layer_peak(llm: nn.Module, positions: int, device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of products of the shapes of the LLM's feed-forward weights with a batch of `positions`, harmonic mean."""
    shapes = {tuple(p.shape) for name, p in llm.named_parameters() if p.dim() == 2 and "mlp" in name}
    if not shapes:
        return float("nan")
    rates = []
    for out, inner in shapes:
        x, w = torch.randn(positions, inner, device=device).to(dtype), torch.randn(out, inner, device=device).to(dtype)
        rates.append(_rate(lambda x=x, w=w: x @ w.T, 2.0 * positions * out * inner, device))  # type: ignore[misc]
    return len(rates) / sum(1 / rate for rate in rates)


def _rate(product: Callable[[], Tensor], operations: float, device: torch.device) -> float:
    """Operations a second of the fastest of repeated calls."""
    product()
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < _PEAK_SEC:
        finish(device)
        begin = time.perf_counter()
        product()
        finish(device)
        best = min(best, time.perf_counter() - begin)
    return operations / best


class StageClock:
    """Seconds of a step in each of STAGES, from hooks on the model and the optimizer.

    `head and loss` is forward and backward of what comes after the LLM's layers; `fusion forward` holds the splicing of
    windows into the words; `optimizer` holds norms, clipping and AdamW.
    """

    def __init__(self, model: OmniChat, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.device = device
        self._last = 0.0
        decoder: nn.Module = model.llm.get_base_model().get_decoder()
        trainables = [p for p in model.parameters() if p.requires_grad]
        self._handles: list[Any] = [
            decoder.register_forward_pre_hook(self._before_layers, with_kwargs=True),
            decoder.register_forward_hook(self._after_layers),
            # The last of them ends the backward pass: the clock moves at each, and the stage takes up all of it.
            *(p.register_post_accumulate_grad_hook(lambda _: self._backward_moves()) for p in trainables),
            optimizer.register_step_post_hook(lambda *_: self.mark("optimizer")),
        ]
        self._in_layers = False

    def begin(self) -> None:
        """Start of a step."""
        finish(self.device)
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        """All time since the last mark belongs to `stage`."""
        finish(self.device)
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _before_layers(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.mark("fusion forward")
        embeds = kwargs.get("inputs_embeds")
        if embeds is not None and embeds.requires_grad:
            embeds.register_hook(lambda _: self._leave_layers())

    def _after_layers(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.mark("LLM forward")
        output[0].register_hook(lambda _: self._enter_layers())

    def _enter_layers(self) -> None:
        self.mark("head and loss")
        self._in_layers = True

    def _leave_layers(self) -> None:
        self.mark("LLM backward")
        self._in_layers = False

    def _backward_moves(self) -> None:
        self.mark("LLM backward" if self._in_layers else "fusion backward")


def kernel_shares(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Share of the operators' own time in each class of KERNELS while `work` runs (torch.profiler)."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        work()
        finish(device)
    spent: dict[str, float] = dict.fromkeys(KERNELS, 0.0)
    for event in profile.key_averages():
        took = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        if event.key.startswith(("aten::", "_", "void", "Optimizer")) or device.type == "cuda":
            spent[next(kind for kind, parts in KERNELS.items() if any(part in event.key for part in parts))] += took
    total = sum(spent.values()) or 1.0
    return {kind: took / total for kind, took in spent.items()}


@contextmanager
def clocked(model: OmniChat, optimizer: torch.optim.Optimizer, device: torch.device) -> Iterator[StageClock]:
    """A StageClock whose hooks are gone afterwards."""
    clock = StageClock(model, optimizer, device)
    try:
        yield clock
    finally:
        clock.remove()
