"""Every part whose data is at hand is built on the CPU from its YAML file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from omnichat.assembly import build_fusion, check_parts
from omnichat.encoders.base import StreamSpec
from omnichat.model.llm import load_llm
from omnichat.utils.errors import UserError
from omnichat.utils.files import write_jsonl_atomic
from omnichat.utils.parts import build_part, part_class
from tests.config.composing import CONFIGS, FAMILIES, config, files
from tests.helpers import official_beats, official_emotion2vec, official_mert
from tests.helpers.scripts import script_file_row
from tests.helpers.voices import vits_folder

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
    if "path: ???" in (CONFIGS / "expert" / f"{name}.yaml").read_text(encoding="utf-8"):
        # Real weights are the user's; the same file with path=null is a random build (of a family, where it has many).
        if name == "transformers":
            overrides.append("experts.one.family=hubert")
        node = config("train", overrides).experts["one"]
        assert "random" in build_part(node, "experts.one", FAMILIES["expert"]).description
        return
    node = config("train", overrides[:2]).experts["one"]
    assert ready(node), f"{name} should have packaged weights or none"
    expert = build_part(node, "experts.one", FAMILIES["expert"])
    encoded = expert.encode_clips([expert.frontend(torch.zeros(expert.sample_rate))])[0]
    assert encoded.x_TD.shape[-1] == expert.spec.width and torch.isfinite(encoded.x_TD.float()).all()


def test_a_preset_of_stand_ins_takes_official_files(tmp_path: Path) -> None:
    """`experts.NAME.path=FILE` on the small YAML: the checkpoint's own sizes count, not those of the random build."""
    torch.save(official_beats.checkpoint(), tmp_path / "BEATs.pt")
    torch.save(official_emotion2vec.base_file(), tmp_path / "emotion2vec_base.pt")
    official_mert.publish(tmp_path, {})
    paths = {"beats": tmp_path / "BEATs.pt", "emotion2vec": tmp_path / "emotion2vec_base.pt", "mert": tmp_path}
    tree = config("train", ["experts=all", *(f"experts.{name}.path={path}" for name, path in paths.items())])
    assert list(tree.experts) == ["whisper", "emotion2vec", "beats", "mert"]
    experts = {name: build_part(tree.experts[name], f"experts.{name}", FAMILIES["expert"]) for name in paths}
    assert {name: expert.spec.width for name, expert in experts.items()} == {"beats": 32, "emotion2vec": 48, "mert": 32}
    assert not any("random" in expert.description for expert in experts.values())


class _Expert:
    """As much of an expert as a fusion wants to know."""

    def __init__(self, spec: StreamSpec) -> None:
        self.spec = spec


DEMO_EXPERTS = {
    "whisper": _Expert(StreamSpec(384, 5, 50.0)),
    "beats": _Expert(StreamSpec(128, 1, 50.0)),
    "mert": _Expert(StreamSpec(96, 1, 75.0)),
}


@pytest.fixture(scope="module")
def tiny_llm() -> torch.nn.Module:
    return load_llm(config("train", TINY).llm, torch.float32, seed=0)[0]


@pytest.mark.parametrize("name", files("fusion"))
def test_fusions(name: str, tiny_llm: torch.nn.Module) -> None:
    run = config("train", [f"fusion={name}", *TINY])
    fusion = build_fusion(run, {"one": _Expert(StreamSpec(8, 1, 25.0))}, tiny_llm)  # type: ignore[dict-item]
    width = tiny_llm.get_input_embeddings().weight.shape[1]
    assert any(parameter.shape[0] == width for parameter in fusion.parameters()), "it ends in the LLM's width"


@pytest.mark.parametrize(
    ("name", "budget"), [*((name, "2M") for name in files("fusion")), ("gated", "6500K"), ("perceiver", "1500000")]
)
def test_a_fusion_is_sized_by_its_budget(name: str, budget: str, tiny_llm: torch.nn.Module) -> None:
    """As on the command line: `omnichat train fusion=gated fusion.budget=2M`."""
    run = config("train", [f"fusion={name}", f"fusion.budget={budget}", *TINY])
    check_parts(run)
    fusion = build_fusion(run, DEMO_EXPERTS, tiny_llm)  # type: ignore[arg-type]
    got, asked = sum(p.numel() for p in fusion.parameters()), {"2M": 2e6, "6500K": 6.5e6, "1500000": 1.5e6}[budget]
    assert abs(got - asked) <= 0.02 * asked
    assert type(fusion) is part_class(run.fusion, "fusion", FAMILIES["fusion"])


def test_a_budget_leaves_the_other_settings_as_they_are(tiny_llm: torch.nn.Module) -> None:
    run = config(
        "train", ["fusion=cross_attention", "fusion.budget=2M", "fusion.primary=mert", "fusion.layers=1", *TINY]
    )
    fusion = build_fusion(run, DEMO_EXPERTS, tiny_llm)  # type: ignore[arg-type]
    assert fusion.primary == "mert" and len(fusion.blocks) == 1


@pytest.mark.parametrize("budget", ["8X", "0", "-2M", "2_5M", "true", "[2M]"])
def test_a_budget_that_is_none_is_refused_before_anything_is_built(budget: str) -> None:
    run = config("train", ["fusion=gated", f"fusion.budget={budget}", *TINY])
    with pytest.raises(UserError, match=r"^fusion\.budget=.* must be a number of parameters such as 8M") as error:
        check_parts(run)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", files("fusion"))
def test_too_small_a_budget_says_what_is_possible(name: str, tiny_llm: torch.nn.Module) -> None:
    run = config("train", [f"fusion={name}", "fusion.budget=900", *TINY])
    with pytest.raises(UserError, match=r"^fusion\.budget=900 is too small for \w+: it takes \d+ at least$"):
        build_fusion(run, DEMO_EXPERTS, tiny_llm)  # type: ignore[arg-type]


def test_the_tiny_llm_is_tiny_and_only_lora_trains() -> None:
    llm, tokenizer = load_llm(config("train", TINY).llm, torch.float32, seed=0)
    assert sum(p.numel() for p in llm.parameters()) < 10_000_000
    assert all("lora" in name for name, p in llm.named_parameters() if p.requires_grad)
    assert tokenizer.chat_template


@pytest.mark.parametrize("name", files("writer"))
def test_writers(name: str, tmp_path: Path) -> None:
    overrides = [f"writer={name}"]
    if name == "file":  # its scripts are the user's
        write_jsonl_atomic(tmp_path / "scripts.jsonl", [script_file_row()])
        overrides.append(f"writer.path={tmp_path / 'scripts.jsonl'}")
    run = config("synthesize", overrides)
    assert build_part(run.writer, "writer", FAMILIES["writer"])


@pytest.mark.parametrize(("group", "name"), [(g, n) for g in ("topics", "events", "music") for n in files(g)])
def test_topics_and_sounds(group: str, name: str, tmp_path: Path) -> None:
    """As on the command line, with the user's own path where the file asks for one; contract suites build the rest."""
    if "path: ???" not in (CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8"):
        run = config("synthesize", [f"{group}={name}"])
        assert build_part(getattr(run, group), group, FAMILIES[group])
        return
    with pytest.raises(UserError, match=rf"{group}\.path is missing: give it as {group}\.path=") as error:
        config("synthesize", [f"{group}={name}"])
    assert "\n" not in str(error.value)
    run = config("synthesize", [f"{group}={name}", f"{group}.path={tmp_path / 'mine.txt'}"])
    with pytest.raises(UserError, match=r"mine\.txt: no such f"):
        build_part(getattr(run, group), group, FAMILIES[group])


@pytest.mark.slow
@pytest.mark.parametrize("name", files("voice"))
def test_voices(name: str, tmp_path: Path) -> None:
    needs = {"transformers": [f"voice.path={vits_folder(tmp_path)}"]}
    run = config("synthesize", [f"voice={name}", *needs.get(name, [])])
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
