"""What is measured while a run trains, besides its losses: gradient norms, speed, MFU, memory, padding, waiting.

Model FLOPs of a step (what its mathematics needs, whatever is computed beside it; Chowdhery et al. 2022, PaLM, B):

    4 P T             frozen linear layers of the decoder, P weights, T tokens: 2 forward, 2 for the gradient of their
                      input; their own gradient, the third 2 of full training, is not needed
    6 R T             LoRA, R weights: 2 forward, 4 backward
    4 H N             output head, H weights, at the N supervised positions
    6 L A sum(S^2)    attention of L layers, A = heads x width of a head, causal: half of 4 A S^2 forward, twice as much
                      backward; S = length of each sequence

Padding, the fusion and what gradient checkpointing computes twice are not in it, so the MFU is a lower bound.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from omnichat.data.collate import Batch
from omnichat.model.omnichat import OmniChat
from omnichat.text.chat import IGNORE, Role
from omnichat.training.processes import Processes
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json, write_json_atomic
from omnichat.utils.log import get_logger

log = get_logger(__name__)
WARM_UP_STEPS = 3  # the first steps of a process fill caches and allocate: they are left out of what is smoothed
SMOOTHED_STEPS = 32  # that a smoothed figure looks back on
PEAK_SEC = 0.3  # that the measurement of the matrix peak takes
LEAST_PRODUCTS = 12  # of it, however slow they are
# Figures of a step row that the clock and the machine set: two runs of one config differ in them.
CLOCKS = (
    "seconds", "wait_share", "tokens_per_sec", "turns_per_sec", "dialogues_per_sec", "mfu",
    "tokens_per_sec_smooth", "mfu_smooth", "peak_memory_gb", "peak_cuda_gb",
)  # fmt: skip


@dataclass(kw_only=True, slots=True)
class WatchConfig:
    """What is watched."""

    gradient_norms: bool = True  # of fusion and LoRA apart
    peak_tflops: float | None = None  # of one process's device, for the MFU; null = measured once by a matrix product
    samples_every: int = 0  # steps between sample replies to dev turns; 0 = none
    samples: int = 4  # replies, always the same ones
    samples_max_new_tokens: int = 48  # of a sample reply

    def __post_init__(self) -> None:
        if self.peak_tflops is not None and not 0 < self.peak_tflops < float("inf"):
            raise UserError(f"trainer.watch.peak_tflops must be positive and finite, got {self.peak_tflops}")
        for name, least in (("samples_every", 0), ("samples", 1), ("samples_max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise UserError(f"trainer.watch.{name} must be at least {least}, got {getattr(self, name)}")


def gradient_norms(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """`grad_norm_<group>` of every named parameter group, before clipping."""
    squares: dict[str, float] = {}
    for group in optimizer.param_groups:
        found = [p.grad for p in group["params"] if p.grad is not None]
        if found:
            total = torch.nn.utils.get_total_norm(found)
            norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
            squares[group["name"]] = squares.get(group["name"], 0.0) + norm**2
    return {f"grad_norm_{name}": value**0.5 for name, value in squares.items()}


class StepFlops:
    """Model FLOPs of a step, by the formula at the top of this module.

    Args:
        model: its layers are counted once, here.
    """

    def __init__(self, model: OmniChat) -> None:
        base = model.llm.get_base_model()
        head = base.get_output_embeddings()
        self.frozen = self.lora = 0
        for name, module in base.named_modules():
            if isinstance(module, nn.Linear) and module is not head:
                # in x out, not numel(): four-bit weights are packed, sharded ones are pieces
                size = module.in_features * module.out_features
                if "lora_" in name:
                    self.lora += size
                else:
                    self.frozen += size
        self.head = head.in_features * head.out_features
        config = base.config.get_text_config()
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.attention = config.num_hidden_layers * config.num_attention_heads * width

    def __call__(self, tokens: float, supervised: float, squares: float) -> float:
        """FLOPs of `tokens` positions, `supervised` of them, in sequences whose squared lengths sum to `squares`."""
        return (
            (4 * self.frozen + 6 * self.lora) * tokens
            + 4 * self.head * supervised
            + 6 * self.attention * squares
        )  # fmt: skip


def matrix_peak_tflops(device: torch.device, dtype: torch.dtype, seconds: float = PEAK_SEC) -> float:
    """The best of some matrix products: TFLOP/s that this process gets of its device, in about `seconds`.

    The size grows while there is time: a processor without units for `dtype` is slower than others by orders of
    magnitude. The random state is not touched. On a GPU its vendor's figure is the usual measure, and is higher.
    """
    largest = 8192 if device.type == "cuda" else 1024
    size, best, products, end = 256, 0.0, 0, time.perf_counter() + seconds
    while products < LEAST_PRODUCTS or time.perf_counter() < end:
        values = torch.linspace(-1, 1, size * size, device=device).reshape(size, size).to(dtype)
        for _ in range(3):  # the first of a size also allocates
            start = time.perf_counter()
            values @ values
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            spent = time.perf_counter() - start
            best = max(best, 2 * size**3 / spent / 1e12)
        products += 3
        if size < largest and time.perf_counter() + 24 * spent < end:
            size *= 2
    return best


def peak_memory() -> dict[str, float]:
    """`peak_memory_gb`: most of the host's memory that this process has held; `peak_cuda_gb`: of its GPU's. In GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    found = {"peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    if torch.cuda.is_available():
        found["peak_cuda_gb"] = torch.cuda.max_memory_allocated() / 2**30
    return found


class Watch:
    """Turns a step's batches and times into figures.

    Args:
        config: which peak.
        model: for the FLOPs.
        processes: sums over processes.
        run: folder that keeps the measured peak (peak.json).
        precision: bf16 | fp32.
    """

    def __init__(self, config: WatchConfig, model: OmniChat, processes: Processes, run: Path, precision: str) -> None:
        self.config = config
        self.processes = processes
        self.flops = StepFlops(model)
        self.run = run
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._peak: float | None = config.peak_tflops
        self._steps = 0
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=SMOOTHED_STEPS)  # seconds, tokens, FLOPs

    def figures(self, micro: Sequence[Batch], seconds: float, waited_sec: float) -> dict[str, float]:
        """Figures of a step over all processes; every process calls this.

        Args:
            micro: this process's batches.
            seconds: of the whole step.
            waited_sec: of them spent waiting for batches.

        Returns:
            tokens, padding, dialogues, supervised_turns, and what CLOCKS names. `wait_share` and memory are the first
            process's; MFU is a share (0 to 1) of the peak of all processes together.
        """
        counts = torch.stack([batch_counts(batch) for batch in micro]).sum(0)
        tokens, positions, supervised, turns, dialogues, squares = self.processes.sum(counts).tolist()
        flops = self.flops(tokens, supervised, squares)
        self._steps += 1
        if self._steps == WARM_UP_STEPS + 1:
            self._recent.clear()
        self._recent.append((seconds, tokens, flops))
        recent_sec, recent_tokens, recent_flops = (sum(column) for column in zip(*self._recent, strict=True))
        peak = self.peak_tflops() * 1e12 * self.processes.count
        return {
            "tokens": tokens,
            "padding": 1 - tokens / positions,
            "dialogues": dialogues,
            "supervised_turns": turns,
            "seconds": seconds,
            "wait_share": waited_sec / seconds,
            "tokens_per_sec": tokens / seconds,
            "turns_per_sec": turns / seconds,
            "dialogues_per_sec": dialogues / seconds,
            "mfu": flops / seconds / peak,
            "tokens_per_sec_smooth": recent_tokens / recent_sec,
            "mfu_smooth": recent_flops / recent_sec / peak,
            **peak_memory(),
        }

    def peak_tflops(self) -> float:
        """The peak that the MFU is a share of: the config's, the one kept in the run folder, or measured now."""
        if self._peak is None:
            device = self.processes.accelerator.device
            key = {"device": device.type, "dtype": str(self.dtype), "threads": torch.get_num_threads()}
            path = self.run / "peak.json"
            kept: dict[str, Any] = read_json(path) if path.is_file() else {}
            if {name: kept.get(name) for name in key} == key:
                self._peak = float(kept["peak_tflops"])
            else:
                self._peak = matrix_peak_tflops(device, self.dtype)
                if self.processes.is_main:
                    write_json_atomic(path, key | {"peak_tflops": self._peak})
        return self._peak


def batch_counts(batch: Batch) -> torch.Tensor:
    """float64 [6]: tokens, positions with padding, supervised tokens, supervised turns, dialogues, squared lengths."""
    supervised_BS = batch.labels_BS[:, 1:] != IGNORE
    is_end_BS = batch.roles_BS == int(Role.END)
    ends_BS = supervised_BS & is_end_BS[:, 1:] & ~is_end_BS[:, :-1]  # the end of a turn may be several tokens
    return torch.stack(
        [
            batch.mask_BS.sum().double(),
            torch.tensor(float(batch.mask_BS.numel()), dtype=torch.float64, device=batch.mask_BS.device),
            supervised_BS.sum().double(),
            ends_BS.sum().double(),
            torch.tensor(float(len(batch.dialogues)), dtype=torch.float64, device=batch.mask_BS.device),
            _summed_squares(batch),
        ]
    )


def _summed_squares(batch: Batch) -> torch.Tensor:
    """Sum of the squared lengths of the sequences, each of which attends within itself: 1 + 3 + 5 + ... = n^2."""
    place_BS = batch.mask_BS.cumsum(1) - 1 if batch.position_BS is None else batch.position_BS
    return ((2 * place_BS + 1) * batch.mask_BS).sum().double()


def progress_line(row: dict[str, float], figures: dict[str, float], alpha: float) -> str:
    """What stands behind the progress bar."""
    return (
        f"loss {row['loss']:.3f} style {row['loss_style']:.3f} alpha {alpha:.2f} "
        f"{figures['tokens_per_sec_smooth']:.0f} tok/s MFU {figures['mfu_smooth']:.0%} pad {figures['padding']:.0%}"
    )
