"""`omnichat export`: what others load says what the run said; its card, the merged LLM, the hub, what is refused."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import yaml
from huggingface_hub.repocard import metadata_load

from omnichat.audio.io import save_audio
from omnichat.cli import run as run_cli
from omnichat.data.corpus import Corpus
from omnichat.schema import Dialogue
from omnichat.text.style_format import format_reply
from omnichat.utils.assets import cache_folder
from omnichat.utils.files import read_json, read_jsonl
from tests.config.composing import config
from tests.helpers.hub import Hub, running_hub
from tests.integration.conftest import Corpora, Outcome

ROOT = Path(__file__).resolve().parents[2]
Cli = Callable[..., Outcome]
TOKENS = 12
QUICK = [
    "score.bertscore_model=null",
    "score.bootstrap_samples=100",
    "score.permutations=20",
    f"max_new_tokens={TOKENS}",
]
EXACT = [
    "trainer.precision=fp32",
    "cache.dtype=float32",
    "trainer.optim.lr_lora=0.3",
]  # LoRA must have something to say

# The card's own code, then what the auto classes load, in a process that has seen nothing of the run.
ELSEWHERE = """
import json, sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor

exec(Path(sys.argv[1]).read_text())
given = json.loads(Path(sys.argv[2]).read_text())
model, processor = AutoModel.from_pretrained("."), AutoProcessor.from_pretrained(".")
found = {"class": type(model).__name__, "said": [str(style), words]}
found["replies"] = [
    processor.decode(model.generate(**processor(talk), max_new_tokens=given["tokens"])[0]) for talk in given["talks"]
]
ids = tokenizer("Did you catch your train?", return_tensors="pt")["input_ids"]
with torch.no_grad():
    merged, wanted = llm(input_ids=ids).logits, model.model.llm(input_ids=ids).logits
    with model.model.llm.disable_adapter():
        plain = model.model.llm(input_ids=ids).logits
found["merged"] = float((merged - wanted).norm() / wanted.norm())
found["moved"] = float((plain - wanted).norm() / wanted.norm())
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def run(corpora: Corpora, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that hears, trained and evaluated in float32; the figures are those of its last checkpoint."""
    folder = tmp_path_factory.mktemp("export") / "runs"
    assert run_cli(["train", *corpora.overrides(folder), "name=speech", "mixture.alpha=0.2", *EXACT]) == 0
    assert run_cli(["evaluate", f"run={folder / 'speech'}", *QUICK]) == 0
    return folder / "speech"


def talk_of(dialogue: Dialogue, folder: Path) -> list[dict[str, Any]]:
    """A dialogue up to its last reply, as messages of a chat template."""
    talk: list[dict[str, Any]] = []
    for turn in dialogue.turns[:-1]:
        if turn.speaker == "B":
            talk.append({"role": "assistant", "content": "".join(format_reply(turn.style, turn.text))})
        else:
            talk.append({"role": "user", "content": [{"type": "audio", "audio": str(folder / str(turn.audio))}]})
    return talk


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def elsewhere(folder: Path, work: Path, code: str, *arguments: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    (work / "code.py").write_text(code)
    command = [sys.executable, str(work / "code.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    value = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(value, dict)
    return value


def test_a_fresh_process_loads_it_and_says_what_evaluate_said(
    run: Path, corpora: Corpora, tmp_path: Path, omnichat: Cli
) -> None:
    out = tmp_path / "speech"
    told = omnichat("export", f"run={run}", f"out={out}", "merge=true")
    assert told.code == 0, told.err
    assert f"next: omnichat chat run={out}" in told.out and "LoRA merged, float32" in told.out
    assert "pass it on as its licence allows" in told.out and "is a path of this machine" not in told.out
    card = (out / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", card, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "card.py").write_text(code)
    save_audio(out / "hello.wav", 0.3 * np.sin(np.arange(16000) / 12), 16000)
    dialogues = {
        dialogue.id: (dialogue, folder)
        for folder in (corpora.synthetic, corpora.real)
        for dialogue in Corpus.load(folder).dialogues
    }
    rows = read_jsonl(run / "predictions" / "test.jsonl")
    talks = [talk_of(*dialogues[row["dialogue"]]) for row in rows]
    assert max(map(len, talks)) == 3 and len({row["raw"] for row in rows}) > 1
    (tmp_path / "given.json").write_text(json.dumps({"talks": talks, "tokens": TOKENS}))
    found = elsewhere(out, tmp_path, ELSEWHERE, tmp_path / "card.py", tmp_path / "given.json")
    assert found["class"] == "OmniChatForConditionalGeneration"
    assert found["replies"] == [row["raw"] for row in rows]
    assert found["merged"] < 1e-4 < found["moved"]


def test_the_folder_holds_what_was_trained_and_nothing_of_the_machine(
    run: Path, corpora: Corpora, tmp_path: Path, omnichat: Cli
) -> None:
    out = tmp_path / "plain"
    assert omnichat("export", f"run={run}", f"out={out}").code == 0
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "processor_config.json", "tokenizer.json"} <= names
    assert "llm" not in names
    for name, content in files_of(out).items():
        for place in (str(run.parent), str(corpora.synthetic.parent), str(cache_folder())):
            assert place.encode() not in content, f"{name} names {place}"
    saved = read_json(out / "config.json")
    assert saved["facts"]["checkpoint"] == "step-000006" and set(saved["fingerprints"]["experts"]) == {
        "beats",
        "mert",
    }
    assert saved["facts"]["metrics.json"] == read_json(run / "metrics.json")
    assert [source["name"] for source in saved["facts"]["data.json"]["sources"]] == ["sharechatx", "dailytalk"]
    card = (out / "README.md").read_text(encoding="utf-8")
    for words in ("Stand-in data", "Random weights: beats and mert", "small random one", "STAND-IN", "## Licences"):
        assert words in card, words


def test_a_folder_is_replaced_only_when_asked_and_only_an_export(run: Path, tmp_path: Path, omnichat: Cli) -> None:
    out = tmp_path / "again"
    assert omnichat("export", f"run={run}", f"out={out}").code == 0
    (out / "llm").mkdir()
    before = files_of(out)
    refused = omnichat("export", f"run={run}", f"out={out}", "checkpoint=step-000003")
    assert refused.code == 2 and "overwrite=true replaces it" in refused.err and files_of(out) == before
    told = omnichat("export", f"run={run}", f"out={out}", "checkpoint=step-000003", "overwrite=true")
    assert told.code == 0 and not (out / "llm").exists()
    assert "of another checkpoint and are left out" in told.out and "checkpoint=step-000003" in told.out
    assert "Nothing was measured" in (out / "README.md").read_text(encoding="utf-8")
    assert read_json(out / "config.json")["facts"]["metrics.json"] == []
    assert [path.name for path in tmp_path.glob(".*")] == [], "nothing half-made is left"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    kept = omnichat("export", f"run={run}", f"out={tmp_path / 'mine'}", "overwrite=true")
    assert kept.code == 2 and "holds other things" in kept.err and (tmp_path / "mine" / "thesis.txt").is_file()


def test_a_failure_leaves_nothing(run: Path, tmp_path: Path, omnichat: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device", "README.md")

    monkeypatch.setattr("omnichat.export.model_card", full)
    told = omnichat("export", f"run={run}", f"out={tmp_path / 'new'}")
    assert told.code == 2 and "No space left" in told.err and not list(tmp_path.glob("*new*"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    with running_hub() as server:
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        yield server


def test_a_push_brings_the_folder_and_takes_an_older_llm_away(
    run: Path, tmp_path: Path, omnichat: Cli, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, push = tmp_path / "pushed", ["push=me/x", "revision=v1"]
    told = omnichat("export", f"run={run}", f"out={out}", *push, "dry_run=true")
    assert told.code == 0 and "would upload model.safetensors" in told.out and "nothing was uploaded" in told.out
    assert hub.files == {} and hub.tokens == set()
    hub.files = {"llm/config.json": b"old", "notes.md": b"mine"}
    told = omnichat("export", f"run={run}", f"out={out}", *push, "overwrite=true", "licence=mit")
    assert told.code == 0, told.err
    assert f"{hub.url}/me/x/tree/v1 (private)" in told.out
    assert hub.files == files_of(out) | {"notes.md": b"mine"} and hub.private is True
    assert hub.branches == ["v1"] and all("/commit/v1" in path for path in hub.committed) and hub.committed
    assert hub.tokens == {"Bearer hf_of_a_test"}
    header = metadata_load(out / "README.md")
    assert header is not None and header["license"] == "mit" and header["model-index"][0]["name"] == "x"
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    told = omnichat("export", f"run={run}", f"out={tmp_path / 'other'}", "push=me/x")
    assert told.code == 2 and "no login of the hub" in told.err and not (tmp_path / "other").exists()


def changed(run: Path, target: Path, **llm: Any) -> Path:
    """A copy of a run's config and checkpoints whose LLM is another."""
    target.mkdir()
    other = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    other["llm"] |= llm
    (target / "config.yaml").write_text(yaml.safe_dump(other))
    (target / "checkpoints").symlink_to(run / "checkpoints")
    return target


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint=step-000009"], "checkpoint='step-000009' is not valid"),
        (["push=x"], "push='x' is no id of the hub"),
        (["dry_run=true"], "dry_run belongs to push"),
        (["merge_dtype=bfloat16"], "merge_dtype=bfloat16 belongs to merge=true"),
        (["merge=true", "merge_dtype=int8"], "merge_dtype='int8' is not valid"),
        (["+expert_paths.wavlm=a/b"], "expert_paths='wavlm' is not valid; choose one of: beats, mert"),
        (["+expert_paths.beats=a/b"], "expert_paths.beats: this expert was built without weights"),
        (["expert_paths.beats=a/b"], "expert_paths.beats is new: add it with a plus sign"),
        (["push=me/x", "private=false", "llm_path=/models/mine"], "llm.path='/models/mine' is a path of this machine"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_loaded(
    run: Path, tmp_path: Path, omnichat: Cli, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr("omnichat.export.model_of_run", None)
    told = omnichat("export", f"run={run}", f"out={tmp_path / 'out'}", *arguments)
    assert told.code == 2 and message in told.err and len(told.err.splitlines()) == 1, told.err
    assert not (tmp_path / "out").exists()


def test_a_quantised_llm_is_not_merged(run: Path, tmp_path: Path, omnichat: Cli) -> None:
    other = changed(run, tmp_path / "quantised", quantize="nf4", random_size=None)
    told = omnichat("export", f"run={other}", f"out={tmp_path / 'out'}", "merge=true")
    assert told.code == 2 and "llm.quantize=nf4" in told.err and "leave merge out" in told.err
    assert omnichat("export", f"run={tmp_path}", f"out={tmp_path / 'out'}").code == 2


def test_other_places_of_the_frozen_parts_are_written(run: Path, tmp_path: Path, omnichat: Cli) -> None:
    told = omnichat("export", f"run={run}", f"out={tmp_path / 'there'}", "llm_path=somebody/SmolLM2")
    assert told.code == 0 and read_json(tmp_path / "there" / "config.json")["llm"]["path"] == "somebody/SmolLM2"
    told = omnichat("export", f"run={run}", f"out={tmp_path / 'here'}", "llm_path=/models/mine")
    assert told.code == 0 and "llm.path=/models/mine is a path of this machine" in told.out
    assert "llm_path=ORGANISATION/NAME" in told.out
    assert "/models" not in (tmp_path / "here" / "README.md").read_text(encoding="utf-8")


def test_the_document_does_what_it_says(run: Path, omnichat: Cli) -> None:
    text = (ROOT / "docs" / "SHARING.md").read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    commands = [line for kind, block in found if kind == "bash" for line in block.splitlines()]
    assert len(commands) == 4
    Path("runs").symlink_to(run.parent)
    for command in commands:
        program, *arguments = shlex.split(command)
        told = omnichat(*arguments)
        assert program == "omnichat" and told.code == 0, (command, told.err[-500:])
    save_audio(Path("hello.wav"), 0.3 * np.sin(np.arange(16000) / 12), 16000)
    given: dict[str, Any] = {}
    exec(next(block for kind, block in found if kind == "python"), given)
    assert isinstance(given["words"], str)
    (remote,) = [block for kind, block in found if not kind]
    config("export", shlex.split(remote)[2:])
