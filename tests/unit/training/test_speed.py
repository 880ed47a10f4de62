"""The speed switches: each changes nothing but time and memory, and is refused in one line where it cannot work."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from omnichat.data.corpus import Corpus
from omnichat.model.llm import LLMConfig, LoraConfig, load_llm
from omnichat.training import speed
from omnichat.training.loss import LossConfig, objective
from omnichat.training.speed import SpeedConfig, apply_speed, check_speed, forward_context
from omnichat.utils.errors import UserError
from omnichat.utils.seeding import seed_everything
from tests.helpers_core import TINY, Kit, Training, make_kit, make_trainer, rows, step_figures, wake_lora

CUDA_ONLY = [
    (SpeedConfig(liger=True), LLMConfig(), "trainer.speed.liger=true", "liger_kernel"),
    (SpeedConfig(), LLMConfig(attention="flash_attention_2"), "llm.attention=flash_attention_2", "flash_attn"),
    (
        SpeedConfig(),
        LLMConfig(attention="flash_attention_3"),
        "llm.attention=flash_attention_3",
        "flash_attn_interface",
    ),
]


def gradients(kit: Kit, config: SpeedConfig, precision: str = "fp32") -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses and gradients of one batch, with drop-out in LoRA and fusion."""
    model = kit.model.train()
    wake_lora(model)
    apply_speed(model, config)
    batch = kit.batch(kit.items())
    seed_everything(3, "step")
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), forward_context(config):
        losses = model(batch)
    objective(losses, LossConfig(), len(losses.ce_N), 1.0).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert any("lora" in name for name in found) and any("fusion" in name for name in found)
    return losses.ce_N.detach(), found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "config",
    [
        SpeedConfig(checkpointing=True),
        SpeedConfig(offload="activations"),
        SpeedConfig(checkpointing=True, offload="activations"),
    ],
    ids=["checkpointing", "offload", "both"],
)
def test_what_saves_memory_leaves_every_bit_alone(synthetic: Corpus, config: SpeedConfig, precision: str) -> None:
    plain_N, plain = gradients(make_kit([synthetic], dropout=0.2), SpeedConfig(), precision)
    saved_N, saved = gradients(make_kit([synthetic], dropout=0.2), config, precision)
    assert torch.equal(plain_N, saved_N)
    assert plain.keys() == saved.keys() and all(torch.equal(plain[name], saved[name]) for name in plain)


def test_checkpointing_computes_every_layer_twice(synthetic: Corpus) -> None:
    kit = make_kit([synthetic])
    calls: list[int] = []
    for layer in kit.model.llm.get_base_model().get_decoder().layers:
        layer.self_attn.q_proj.register_forward_hook(lambda *_: calls.append(1))
    gradients(kit, SpeedConfig(checkpointing=True))
    assert len(calls) == 2 * TINY["num_hidden_layers"]


def test_offload_moves_activations_and_no_weights(synthetic: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be moved on an accelerator, seen on CPU by calling a parameter's storage what it is."""
    kit = make_kit([synthetic])
    weights = {p.untyped_storage().data_ptr() for p in kit.model.parameters()}
    moved: list[torch.Tensor] = []
    real = speed._stays
    monkeypatch.setattr(speed, "_on_host", lambda tensor: False)
    monkeypatch.setattr(speed, "_stays", lambda tensor: real(tensor) or (moved.append(tensor.detach()), True)[1])
    gradients(kit, SpeedConfig(offload="activations"))
    assert sum(tensor.nbytes for tensor in moved) > 100_000
    assert not [tensor for tensor in moved if tensor.untyped_storage().data_ptr() in weights]


@pytest.mark.slow
def test_compiled_layers_compute_the_same_and_keep_their_names(synthetic: Corpus) -> None:
    config = SpeedConfig(compile=True)
    if importlib.util.find_spec("torch._inductor") is None:
        pytest.skip("no inductor")
    check_speed(config, LLMConfig(), "fp32")
    plain_kit, kit = make_kit([synthetic], dropout=0.2), make_kit([synthetic], dropout=0.2)
    plain_N, plain = gradients(plain_kit, SpeedConfig())
    compiled_N, compiled = gradients(kit, config)
    torch.testing.assert_close(compiled_N, plain_N, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-3)
    assert list(kit.model.state_dict()) == list(plain_kit.model.state_dict())
    kit.model.load_trainable_state(plain_kit.model.trainable_state())
    batch = kit.batch(kit.items()[:2])
    with torch.no_grad():
        torch.testing.assert_close(kit.model.eval()(batch).ce_N, plain_kit.model.eval()(batch).ce_N)
    assert kit.model.generate(batch, 2, 3) == plain_kit.model.generate(batch, 2, 3)


@pytest.mark.campaign
def test_compiled_layers_may_be_checkpointed_and_offloaded(synthetic: Corpus) -> None:
    plain_N, plain = gradients(make_kit([synthetic], dropout=0.2), SpeedConfig())
    every = SpeedConfig(compile=True, checkpointing=True, offload="activations")
    compiled_N, compiled = gradients(make_kit([synthetic], dropout=0.2), every)
    torch.testing.assert_close(compiled_N, plain_N, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-3)


def test_a_run_trains_and_looks_at_the_dev_split_with_the_switches(tmp_path: Path, synthetic: Corpus) -> None:
    make_trainer(tmp_path / "plain", [synthetic], Training(alpha=0.0)).fit()
    every = {"speed": SpeedConfig(checkpointing=True, offload="activations")}
    make_trainer(tmp_path / "saved", [synthetic], Training(alpha=0.0, extra=every)).fit()
    assert step_figures(tmp_path / "saved") == step_figures(tmp_path / "plain")
    assert [row["loss"] for row in rows(tmp_path / "saved", "dev")] == [
        row["loss"] for row in rows(tmp_path / "plain", "dev")
    ]


def test_frozen_weights_stay_bf16_under_autocast(synthetic: Corpus) -> None:
    kit = make_kit([synthetic])
    llm, _ = load_llm(LLMConfig(random_size=TINY, lora=LoraConfig(rank=4, dropout=0.1)), torch.bfloat16, 0)
    kit.model = type(kit.model)(llm, kit.model.fusion)
    _, found = gradients(kit, SpeedConfig(checkpointing=True), "bf16")
    for name, parameter in kit.model.named_parameters():
        wanted = torch.float32 if parameter.requires_grad else torch.bfloat16
        assert parameter.dtype == wanted, name
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_frozen_weights_type_may_be_set(dtype: str) -> None:
    other = torch.float32 if dtype == "bfloat16" else torch.bfloat16
    model, _ = load_llm(LLMConfig(random_size=TINY, dtype=dtype), other, 0)
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {getattr(torch, dtype)}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize(("config", "llm", "key", "package"), CUDA_ONLY, ids=lambda value: str(value)[:30])
def test_what_needs_cuda_says_so_and_then_names_its_package(
    monkeypatch: pytest.MonkeyPatch, config: SpeedConfig, llm: LLMConfig, key: str, package: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert f"{key} needs a CUDA device" in refusal(config, llm)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    installed(monkeypatch, without=package)
    assert f"{key} needs the package {package}" in refusal(config, llm)
    installed(monkeypatch)
    check_speed(config, llm, "bf16")


def test_flash_attention_needs_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    installed(monkeypatch)
    assert "set trainer.precision=bf16" in refusal(SpeedConfig(), LLMConfig(attention="flash_attention_2"), "fp32")


def test_quantising_needs_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, without="bitsandbytes")
    text = refusal(SpeedConfig(), LLMConfig(quantize="nf4"))
    assert "llm.quantize=nf4 needs the package bitsandbytes" in text and "omnichat[cuda]" in text


def test_compiling_on_cpu_needs_a_compiler_and_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "'no-such-compiler' is not there" in refusal(SpeedConfig(compile=True), LLMConfig())
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(speed.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(speed.sysconfig, "get_path", lambda name: str(tmp_path))
    assert "has no Python.h" in refusal(SpeedConfig(compile=True), LLMConfig())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    installed(monkeypatch, without="triton")
    assert "needs the package triton" in refusal(SpeedConfig(compile=True), LLMConfig())


def test_plain_switches_need_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_speed(SpeedConfig(checkpointing=True, offload="activations"), LLMConfig(attention="eager"), "fp32")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpeedConfig(offload="weights"), r"trainer\.speed\.offload='weights'.*none, activations"),
        (lambda: LLMConfig(attention="flash"), r"llm\.attention='flash'.*sdpa, eager"),
        (lambda: LLMConfig(quantize="int4"), r"llm\.quantize='int4'.*null, nf4, int8"),
        (lambda: LLMConfig(dtype="fp16"), r"llm\.dtype='fp16'.*auto, float32, bfloat16"),
        (lambda: LLMConfig(quantize="nf4", random_size=TINY), r"llm\.random_size asks for random ones"),
    ],
)
def test_a_wrong_choice_is_named(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_model_trains_lora_in_float32(tmp_path: Path, synthetic: Corpus, kind: str) -> None:
    """On CPU, where bitsandbytes has slower kernels of its own."""
    pytest.importorskip("bitsandbytes")
    folder = save_tiny(tmp_path)
    config = LLMConfig(path=str(folder), quantize=kind, lora=LoraConfig(rank=4))
    llm, _ = load_llm(config, torch.bfloat16, 0)
    types = {p.dtype for p in llm.parameters() if not p.requires_grad}
    assert types == {torch.uint8 if kind == "nf4" else torch.int8, torch.bfloat16}
    assert {p.dtype for p in llm.parameters() if p.requires_grad} == {torch.float32}
    kit = make_kit([synthetic])
    whole_N = make_kit([synthetic]).model.eval()(kit.batch(kit.items())).ce_N
    kit.model = type(kit.model)(llm, kit.model.fusion)
    ce_N, found = gradients(kit, SpeedConfig(checkpointing=True), "bf16")
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())
    assert float((ce_N - whole_N.detach()).abs().mean()) < 0.5


def test_liger_replaces_norms_and_mlp_and_leaves_the_loss(synthetic: Corpus) -> None:
    pytest.importorskip("liger_kernel")
    kit = make_kit([synthetic])
    base = kit.model.llm.get_base_model()
    forward = base.forward
    names = list(kit.model.state_dict())
    speed._apply_liger(base)
    assert list(kit.model.state_dict()) == names
    assert "liger" in base.get_decoder().norm.forward.__module__
    assert base.forward == forward


def save_tiny(folder: Path) -> Path:
    """The random model of `make_kit` as a folder."""
    llm, tokenizer = load_llm(LLMConfig(random_size=TINY), torch.float32, 0)
    target = folder / "tiny"
    llm.unload().save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def installed(monkeypatch: pytest.MonkeyPatch, without: str = "") -> None:
    """Make every package look installed but one."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == without else object())


def refusal(config: SpeedConfig, llm: LLMConfig, precision: str = "bf16") -> str:
    """The message of a config that is refused."""
    with pytest.raises(UserError) as error:
        check_speed(config, llm, precision)
    assert "\n" not in str(error.value)
    return str(error.value)
