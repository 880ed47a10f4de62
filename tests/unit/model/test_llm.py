"""Loading the language model: what may be given, what comes out frozen, and what is said when it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from omnichat.model.llm import LLMConfig, LoraConfig, load_llm, weights_fingerprint
from omnichat.utils.errors import UserError
from omnichat.utils.llm_files import local_llm
from tests.helpers_core import TINY


def tiny(seed: int = 0, dtype: torch.dtype = torch.float32, **lora: object) -> torch.nn.Module:
    return load_llm(LLMConfig(random_size=TINY, lora=LoraConfig(**lora)), dtype, seed)[0]


def test_frozen_weights_may_be_small_but_lora_is_float32() -> None:
    model = tiny(dtype=torch.bfloat16)
    types = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name, p in model.named_parameters() if p.requires_grad} == {
        "q_proj",
        "v_proj",
    }


def test_fresh_lora_changes_nothing() -> None:
    model = tiny()
    ids = torch.arange(10)[None]
    with model.disable_adapter():
        plain = model(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids).logits, plain)


def test_the_fingerprint_is_of_the_frozen_weights_alone() -> None:
    first, other = tiny(0), tiny(1)
    print_ = weights_fingerprint(first)
    assert print_ == weights_fingerprint(tiny(0)) == weights_fingerprint(tiny(0, rank=2))
    assert print_ != weights_fingerprint(other)
    with torch.no_grad():
        next(p for p in first.parameters() if p.requires_grad).add_(1)
    assert weights_fingerprint(first) == print_
    with torch.no_grad():
        next(p for p in first.parameters() if not p.requires_grad).add_(1)
    assert weights_fingerprint(first) != print_


def test_the_packaged_model_is_converted_once_and_whole() -> None:
    folder = Path(local_llm("asset:smollm2"))
    assert {"config.json", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert list(folder.glob("*.safetensors")) and local_llm("asset:smollm2") == str(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"path": "./nowhere"}, "no such folder"),
        ({"path": "nowhere.gguf"}, "no such file"),
        ({"random_size": {"hiden_size": 3}}, "has no field 'hiden_size'"),
        ({"random_size": TINY, "lora": LoraConfig(targets=["query"])}, "no layer 'query'; it has: .*q_proj"),
    ],
)
def test_what_cannot_be_loaded_is_named(config: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=rf"llm\..*{message}") as error:
        load_llm(LLMConfig(**config), torch.float32, 0)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the folder has no config\.json"):
        load_llm(LLMConfig(path=str(tmp_path)), torch.float32, 0)


@pytest.mark.parametrize(("field", "value"), [("rank", 0), ("dropout", 1.0), ("dropout", -0.1)])
def test_bad_lora_settings_are_named(field: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"llm\.lora\.{field} must"):
        LoraConfig(**{field: value})
