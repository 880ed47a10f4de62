"""What makes a step faster or smaller without changing what it computes, but for the rounding of the kernels chosen.

`checkpointing` and `offload` leave every bit alone; `compile` and `liger` add up in another order.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
import sysconfig
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from omnichat.model.llm import LLMConfig
from omnichat.model.omnichat import OmniChat
from omnichat.utils.errors import UserError, one_of

OFFLOADS = ("none", "activations")
EXACT = ("checkpointing", "offload")  # switches that leave every bit alone, so a resumed run may set them otherwise
_FLASH = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}
_CUDA_EXTRA = "pip install 'omnichat[cuda]'"
_SMALL_BYTES = 4096  # an activation below this costs more to move than it frees


@dataclass(kw_only=True, slots=True)
class SpeedConfig:
    """Switches; what needs CUDA or a package is checked for before anything loads."""

    compile: bool = False  # torch.compile of each layer of the LLM (training and dev loss; not while it writes replies)
    checkpointing: bool = False  # gradient checkpointing: activations of the LLM are computed twice and not kept
    offload: str = "none"  # none | activations (kept in the host's memory between forward and backward)
    liger: bool = False  # Liger's fused kernels (CUDA)

    def __post_init__(self) -> None:
        if self.offload not in OFFLOADS:
            raise one_of("trainer.speed.offload", self.offload, OFFLOADS)


def check_speed(config: SpeedConfig, llm: LLMConfig, precision: str) -> None:
    """Raise UserError for a switch, an attention or a quantisation that this machine or installation cannot serve.

    Args:
        precision: bf16 | fp32, as it was resolved for this machine.
    """
    if llm.attention in _FLASH:
        key = f"llm.attention={llm.attention}"
        package, wheel = _FLASH[llm.attention]
        _need_cuda(key, "llm.attention=sdpa")
        _need_package(key, package, f"pip install {wheel}", "llm.attention=sdpa")
        if precision != "bf16":
            raise UserError(
                f"{key} computes in bf16 only, but the precision is {precision}: set trainer.precision=bf16"
            )
    if llm.quantize is not None:
        _need_package(f"llm.quantize={llm.quantize}", "bitsandbytes", _CUDA_EXTRA, "llm.quantize=null")
    if config.liger:
        _need_cuda("trainer.speed.liger=true", "trainer.speed.liger=false")
        _need_package("trainer.speed.liger=true", "liger_kernel", _CUDA_EXTRA, "trainer.speed.liger=false")
    if config.compile:
        _need_compiler()


def apply_speed(model: OmniChat, config: SpeedConfig) -> None:
    """Turn the switches on, in place, on a model that has not been spread over processes yet.

    Names of parameters stay as they are. Raises UserError where the LLM's architecture does not take a switch.
    """
    base = model.llm.get_base_model()
    if config.liger:
        _apply_liger(base)
    layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
    for name in ("checkpointing", "compile"):
        if getattr(config, name) and not layers:
            raise UserError(
                f"trainer.speed.{name}=true: {type(base).__name__} has no layers that can be treated one by one; "
                f"set trainer.speed.{name}=false"
            )
    if config.checkpointing:
        with warnings.catch_warnings():  # the name is deprecated for one that the oldest release we take lacks
            warnings.simplefilter("ignore", FutureWarning)
            # Not re-entrant: inputs may lack gradients, and each layer's drop-out is drawn again from the same state.
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.compile:
        # Of the whole process: drop-out draws what it would draw uncompiled, and DDP's own splitting of graphs, which
        # checkpointed layers cannot take, is of no use to graphs of one layer.
        torch._inductor.config.fallback_random = True
        torch._dynamo.config.optimize_ddp = False
        for layer in layers:
            layer.compile(dynamic=True)


def forward_context(config: SpeedConfig) -> contextlib.AbstractContextManager[object]:
    """What every training forward pass runs in."""
    if config.offload == "activations":
        return torch.autograd.graph.saved_tensors_hooks(_to_host, _to_device)
    return contextlib.nullcontext()


def _to_host(tensor: Tensor) -> tuple[torch.device, Tensor]:
    """Move what backward will need, as `torch.autograd.graph.save_on_cpu` does, which would move the weights too."""
    if _on_host(tensor) or _stays(tensor):
        return tensor.device, tensor
    host = torch.empty(tensor.size(), dtype=tensor.dtype, layout=tensor.layout, pin_memory=tensor.is_cuda)
    host.copy_(tensor)
    return tensor.device, host


def _to_device(packed: tuple[torch.device, Tensor]) -> Tensor:
    device, tensor = packed
    return tensor.to(device, non_blocking=device.type == "cuda")


def _on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _stays(tensor: Tensor) -> bool:
    """Whether moving frees nothing: a parameter, also seen through a view, or a few bytes."""
    owner = tensor if tensor._base is None else tensor._base
    return isinstance(owner, nn.Parameter) or tensor.nbytes < _SMALL_BYTES


def _apply_liger(base: nn.Module) -> None:
    """Swap norms, rotary embedding and MLP for Liger's; the loss stays ours, for it is made at few positions."""
    from liger_kernel.transformers.monkey_patch import (
        MODEL_TYPE_TO_APPLY_LIGER_FN,
        _apply_liger_kernel_to_instance,
    )

    kind = base.config.model_type  # type: ignore[union-attr]
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise one_of("trainer.speed.liger=true: the LLM's model_type", kind, sorted(MODEL_TYPE_TO_APPLY_LIGER_FN))
    _apply_liger_kernel_to_instance(base, fused_linear_cross_entropy=False, cross_entropy=False)


def _need_cuda(key: str, instead: str) -> None:
    if not torch.cuda.is_available():
        raise UserError(f"{key} needs a CUDA device, and this machine shows none; choose {instead}")


def _need_package(key: str, package: str, install: str, instead: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{key} needs the package {package}, which is not installed: {install}, or choose {instead}")


def _need_compiler() -> None:
    key, instead = "trainer.speed.compile=true", "trainer.speed.compile=false"
    if torch.cuda.is_available():
        _need_package(key, "triton", "pip install triton", instead)
        return
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # what torch itself looks for
    if shutil.which(compiler) is None:
        raise UserError(
            f"{key} needs a C++ compiler on CPU, and {compiler!r} is not there: install it, name another one in the "
            f"environment variable CXX, or choose {instead}"
        )
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise UserError(
            f"{key} needs Python's headers on CPU, and {headers} has no Python.h: install them (Debian: python3-dev), "
            f"or choose {instead}"
        )
