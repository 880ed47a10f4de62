"""Every part whose data is at hand is built on the CPU from its YAML file."""

from __future__ import annotations

import pytest
import torch

from omnichat.assembly import build_fusion
from omnichat.encoders.base import StreamSpec
from omnichat.model.llm import load_llm
from omnichat.utils.parts import build_part
from tests.config.composing import FAMILIES, config, files

TINY = ["llm=tiny"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def ready(expert: dict) -> bool:
    """Whether an expert needs no checkpoint of the user's."""
    return expert["path"] is None or expert["path"].startswith("asset:")


@pytest.mark.parametrize("name", files("expert"))
def test_experts(name: str) -> None:
    overrides = ["experts=none", f"+expert@experts.one={name}", "experts.one.path=null"]
    if name in ("beats", "mert"):  # real weights: the user's; the same file with path=null is a random build
        node = config("train", overrides).experts["one"]
        assert "random" in build_part(node, "experts.one", FAMILIES["expert"]).description
        return
    node = config("train", overrides[:2]).experts["one"]
    assert ready(node), f"{name} should have packaged weights or none"
    expert = build_part(node, "experts.one", FAMILIES["expert"])
    encoded = expert.encode_clips([expert.frontend(torch.zeros(expert.sample_rate))])[0]
    assert encoded.x_TD.shape[-1] == expert.spec.width and torch.isfinite(encoded.x_TD.float()).all()


@pytest.mark.parametrize("name", files("fusion"))
def test_fusions(name: str) -> None:
    run = config("train", [f"fusion={name}", *TINY])
    llm, _ = load_llm(run.llm, torch.float32, seed=0)

    class Expert:
        spec = StreamSpec(8, 1, 25.0)

    fusion = build_fusion(run, {"one": Expert()}, llm)  # type: ignore[dict-item]
    width = llm.get_input_embeddings().weight.shape[1]
    assert any(parameter.shape[0] == width for parameter in fusion.parameters()), "it ends in the LLM's width"


def test_the_tiny_llm_is_tiny_and_only_lora_trains() -> None:
    llm, tokenizer = load_llm(config("train", TINY).llm, torch.float32, seed=0)
    assert sum(p.numel() for p in llm.parameters()) < 10_000_000
    assert all("lora" in name for name, p in llm.named_parameters() if p.requires_grad)
    assert tokenizer.chat_template


@pytest.mark.parametrize("name", files("writer"))
def test_writers(name: str) -> None:
    run = config("synthesize", [f"writer={name}"])
    assert build_part(run.writer, "writer", FAMILIES["writer"])


@pytest.mark.slow
@pytest.mark.parametrize("name", files("voice"))
def test_voices(name: str) -> None:
    run = config("synthesize", [f"voice={name}"])
    voice = build_part(run.voice, "voice", FAMILIES["voice"])
    asked = {*run.user_voices, *run.model_voices}
    assert asked <= set(voice.speakers), "the verb's speakers are the voice's"
    stand_in = config("prepare", ["corpus=stand_in"])
    assert set(stand_in.stand_in.voices) <= set(voice.speakers)
    assert not asked & set(stand_in.stand_in.voices), "the stand-in has speakers of its own"


@pytest.mark.slow
@pytest.mark.parametrize("name", files("checks"))
def test_checks(name: str) -> None:
    run = config("synthesize", [f"checks={name}"])
    assert build_part(run.checks, "checks", FAMILIES["checks"])
