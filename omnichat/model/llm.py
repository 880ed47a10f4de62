"""The language model: loaded from a folder, a hub id, a GGUF file or the packaged SmolLM2; LoRA on top.

Frozen weights may be kept in bfloat16; LoRA's are always float32.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from omnichat.utils.errors import UserError, one_of
from omnichat.utils.llm_files import check_llm_path, local_llm
from omnichat.utils.seeding import seed_everything

ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
QUANTIZATIONS = ("nf4", "int8")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021) on the LLM."""

    rank: int = 8
    alpha: int = 16  # the update is scaled by alpha / rank
    dropout: float = 0.0
    targets: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"llm.lora.rank must be at least 1, got {self.rank}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"llm.lora.dropout must lie in [0, 1), got {self.dropout}")


@dataclass(kw_only=True, slots=True)
class LLMConfig:
    """Which language model, and how it is tuned."""

    path: str = "asset:smollm2"  # packaged part, folder, .gguf file or hub id
    revision: str | None = None  # of a hub id
    attention: str = "sdpa"  # sdpa | eager | flash_attention_2, flash_attention_3 (CUDA and their packages)
    dtype: str = "auto"  # of the frozen weights: auto (bfloat16 under precision bf16) | bfloat16 | float32
    quantize: str | None = None  # nf4 | int8: frozen matrices by bitsandbytes (QLoRA); null = as they are
    random_size: dict[str, int] | None = None  # config overrides for a small random model on this path's tokenizer
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise one_of("llm.attention", self.attention, ATTENTIONS)
        if self.dtype not in ("auto", *DTYPES):
            raise one_of("llm.dtype", self.dtype, ("auto", *DTYPES))
        if self.quantize is not None and self.quantize not in QUANTIZATIONS:
            raise one_of("llm.quantize", self.quantize, ("null", *QUANTIZATIONS))
        if self.quantize is not None and self.random_size is not None:
            raise UserError("llm.quantize takes the weights of a model, but llm.random_size asks for random ones")


def load_llm(config: LLMConfig, dtype: torch.dtype, seed: int) -> tuple[nn.Module, Any]:
    """Return (PEFT model with fresh LoRA, tokenizer). Frozen weights in `dtype`, LoRA in float32.

    `config.dtype` overrides `dtype`. Quantised matrices are computed with in that dtype, and the weights that are not
    quantised (embeddings, norms, output) keep it: nothing is blown up to float32, as peft's own preparation would.

    Raises:
        UserError: nothing loadable at `config.path`, or LoRA targets that the model does not have.
    """
    check_path(config)
    dtype = DTYPES.get(config.dtype, dtype)
    source = local_llm(config.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=config.revision)
        if config.random_size is None:
            model = AutoModelForCausalLM.from_pretrained(
                source,
                revision=config.revision,
                dtype=dtype,
                attn_implementation=config.attention,
                **_quantization(config.quantize, dtype),
            )
        else:
            model = _random_llm(source, config, dtype, seed)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"llm.path={config.path!r} cannot be loaded as a causal LLM: {reason}") from None
    model.requires_grad_(False)
    seed_everything(seed, "lora")
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if missing := [target for target in config.lora.targets if target not in names]:
        raise UserError(f"llm.lora.targets: the model has no layer {missing[0]!r}; it has: {', '.join(sorted(names))}")
    lora = PeftLoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=list(config.lora.targets),
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return peft_model, tokenizer


def _quantization(kind: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of from_pretrained for QLoRA (Dettmers et al. 2023); each process loads onto its own device."""
    if kind is None:
        return {}
    device: Any = int(os.environ.get("LOCAL_RANK", "0")) if torch.cuda.is_available() else "cpu"
    if kind == "int8":
        how = BitsAndBytesConfig(load_in_8bit=True)
    else:
        how = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=torch.uint8,
        )
    return {"quantization_config": how, "device_map": {"": device}}


def check_path(config: LLMConfig) -> None:
    """Raise UserError if `config.path` cannot be a model, as far as can be told without loading or asking a hub."""
    check_llm_path("llm.path", config.path)


def _random_llm(source: str, config: LLMConfig, dtype: torch.dtype, seed: int) -> Any:
    """A small random model of the same architecture, for tests and dry runs."""
    assert config.random_size is not None
    base = AutoConfig.from_pretrained(source, revision=config.revision)
    for name, value in config.random_size.items():
        if not hasattr(base, name):
            raise UserError(f"llm.random_size: {type(base).__name__} has no field {name!r}")
        setattr(base, name, value)
    seed_everything(seed, "random llm")
    return AutoModelForCausalLM.from_config(base, dtype=dtype, attn_implementation=config.attention)


def weights_fingerprint(module: nn.Module) -> str:
    """Hex SHA-256 over the names, shapes and a fixed sample of the values of all frozen parameters.

    At most 64 evenly spaced values a tensor are read, so that an 8B model takes moments.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        if parameter.requires_grad:
            continue
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()
