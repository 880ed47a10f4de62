"""docs/ADDING_A_PART.md does what it says: its files, written where it says, work and keep the contract."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import omnichat.data.readers as omnichat_readers
import omnichat.encoders
from omnichat.audio.io import save_audio
from omnichat.data.corpus import Corpus
from omnichat.data.readers.base import Reader
from omnichat.encoders.base import AudioEncoder
from omnichat.fusion.mix_former import MixFormer
from omnichat.utils.parts import build_part
from tests.config.test_configs import uncommented
from tests.contract import test_encoders as suite
from tests.helpers.layouts import noise
from tests.integration.conftest import Corpora

ROOT = Path(__file__).resolve().parents[2]


def section(title: str) -> str:
    """The text below a heading of the document, up to the next one of its rank."""
    text = (ROOT / "docs" / "ADDING_A_PART.md").read_text(encoding="utf-8")
    return text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def blocks(title: str, language: str) -> list[str]:
    """The code blocks of a section in one language, in their order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", section(title), flags=re.MULTILINE | re.DOTALL)
    return [block for kind, block in found if kind == language]


def write_expert(package: Path, configs: Path) -> None:
    """Write the two files of the walk-through to the places that their first lines name."""
    code, settings = blocks("Example: an expert", "python")[0], blocks("Example: an expert", "yaml")[0]
    assert code.startswith("# omnichat/encoders/mfcc.py\n") and settings.startswith("# configs/expert/mfcc.yaml\n")
    (package / "mfcc.py").write_text(code)
    (configs / "mfcc.yaml").write_text(settings)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The config of the walk-through's expert, whose module can be imported from omnichat.encoders."""
    write_expert(tmp_path, tmp_path)
    monkeypatch.setattr(omnichat.encoders, "__path__", [*omnichat.encoders.__path__, str(tmp_path)])
    yield yaml.safe_load((tmp_path / "mfcc.yaml").read_text())
    sys.modules.pop("omnichat.encoders.mfcc", None)


def test_the_expert_keeps_the_contract(node: dict[str, Any]) -> None:
    module = importlib.import_module("omnichat.encoders.mfcc")
    try:
        # The two lines that the document asks for, as it writes them.
        exec(blocks("Example: an expert", "python")[1], {**vars(suite), "MfccEncoder": module.MfccEncoder})
        encoder = suite.build("mfcc")
        assert isinstance(encoder, module.MfccEncoder)
        given = {"named": ("mfcc", encoder), "name": "mfcc"}
        called = 0
        for test in (value for key, value in vars(suite).items() if key.startswith("test_")):
            names = set(inspect.signature(test).parameters)
            if not names or "random_weights" in test.__name__:  # of another expert; or it has none
                continue
            for dtype in ("float32", "bfloat16") if "dtype" in names else ("",):
                test(**{name: {**given, "dtype": dtype}[name] for name in names})
                called += 1
        assert called >= 12
    finally:
        suite.LENGTHS.pop("mfcc", None)
        suite.RANDOM.pop("mfcc", None)


def test_the_expert_is_a_part_and_any_fusion_hears_it(node: dict[str, Any]) -> None:
    encoder = build_part(node, "experts.mfcc", AudioEncoder)
    assert set(inspect.signature(type(encoder)).parameters) == set(node) - {"_target_"}, "the file states every setting"
    settings = blocks("Example: an expert", "yaml")[0]
    assert not [line for line in uncommented(settings) if not line.startswith("_target_")]
    other = suite.build("beats")
    experts = {"mfcc": encoder, "beats": other}
    fusion = MixFormer({name: part.spec for name, part in experts.items()}, 48, 0.1)
    waves = [suite.noise(16_000), suite.noise(5_000)]
    seconds = torch.tensor([1.0, 5_000 / 16_000], dtype=torch.float64)
    fused = fusion({name: part.encode_waves(waves) for name, part in experts.items()}, seconds)
    assert fused.mask_BS.sum(1).tolist() == [fusion.slots(float(x)) for x in seconds]
    assert fused.x_BSD.isfinite().all() and fused.attention_BWE is not None


def test_the_command_of_the_walk_through_trains(corpora: Corpora, tmp_path: Path) -> None:
    for name in ("omnichat", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    write_expert(tmp_path / "omnichat" / "encoders", tmp_path / "configs" / "expert")
    (command,) = blocks("Example: an expert", "bash")
    program, *arguments = command.split()
    assert program == "omnichat" and arguments[0] == "train"
    asked = set(arguments[1:])
    overrides = [override for override in corpora.overrides(tmp_path / "runs") if override not in asked]
    run = [sys.executable, "-c", "import sys, omnichat.cli as cli; sys.exit(cli.run(sys.argv[1:]))", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*run, *overrides, "trainer.steps=2"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (record,) = (tmp_path / "runs").rglob("run.json")
    assert "MFCC, 40 bands" in record.read_text()


def test_the_reader_of_the_walk_through_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, omnichat: Callable[..., Any]
) -> None:
    (code,), (settings,) = blocks("Example: a reader", "python"), blocks("Example: a reader", "yaml")
    assert settings.startswith("# configs/source/tinytalk.yaml\n")
    (tmp_path / "tinytalk.py").write_text(code)
    (tmp_path / "configs" / "source").mkdir(parents=True)
    (tmp_path / "configs" / "source" / "tinytalk.yaml").write_text(settings)
    monkeypatch.setattr(omnichat_readers, "__path__", [*omnichat_readers.__path__, str(tmp_path)])
    corpus = tmp_path / "corpus"
    save_audio(corpus / "one" / "a.wav", noise(0.5, 16000, 1), 16000)
    (corpus / "one" / "talk.tsv").write_text("A\tHello.\ta.wav\nB\tHello to you.\tgone.wav\n")
    node = {**yaml.safe_load(settings), "path": str(corpus)}
    try:
        reader = build_part(node, "source", Reader)
        (dialogue,) = reader.dialogues()
        (command,) = blocks("Example: a reader", "bash")
        program, verb, *arguments = command.replace("path=...", f"path={corpus}").split()
        made = omnichat(verb, *arguments, f"hydra.searchpath=[file://{tmp_path / 'configs'}]")
    finally:
        sys.modules.pop("omnichat.data.readers.tinytalk", None)
    assert dialogue.id == "tinytalk-one" and [turn.text for turn in dialogue.turns] == ["Hello.", "Hello to you."]
    assert dialogue.turns[0].seconds == 0.5 and dialogue.turns[1].audio is None
    assert len(reader.issues) == 1
    assert program == "omnichat" and made.code == 0, made.err
    assert [d.id for d in Corpus.load(Path("corpora") / "tinytalk").dialogues] == ["tinytalk-one"]
