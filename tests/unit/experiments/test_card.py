"""The model card: what it shows is what was measured, it names every licence, and no path of the machine."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub.repocard import metadata_load
from hypothesis import given
from hypothesis import strategies as st

from omnichat.experiments.card.facts import measured, public_facts, without_paths
from omnichat.experiments.card.licences import (
    Licence,
    base_model,
    data_licences,
    hub_licence,
    is_local,
    local_paths,
    part_licences,
    restriction,
)
from omnichat.experiments.card.page import Card, model_card
from omnichat.experiments.runs import load_run
from omnichat.model.llm import LLMConfig
from omnichat.model.pretrained import OmniChatConfig
from omnichat.text.chat import ChatConfig
from tests.unit.experiments.builders import make_run

WHISPER = {"_target_": "omnichat.encoders.whisper.WhisperEncoder", "path": "asset:whisper_tiny_en"}
MERT = {"_target_": "omnichat.encoders.mert.MertEncoder", "path": "/data/somebody/weights/MERT-v1-95M"}
BEATS = {"_target_": "omnichat.encoders.beats.BeatsEncoder", "path": None}
EMOTION = {"_target_": "omnichat.encoders.emotion2vec.Emotion2vecEncoder", "path": "emotion2vec/emotion2vec_base"}
WAVLM = {"_target_": "omnichat.encoders.transformers_audio.TransformersEncoder", "path": "microsoft/wavlm-base-plus"}


def config(llm_path: str = "asset:smollm2", chat_input: str = "speech", **experts: Any) -> OmniChatConfig:
    prints = {"llm": "ab" * 32, "experts": {name: "cd" * 32 for name in experts}}
    return OmniChatConfig(
        llm=asdict(LLMConfig(path=llm_path)),
        experts=experts,
        chat=asdict(ChatConfig(input=chat_input)),
        fingerprints=prints,
    )


def evaluated(root: Path, name: str = "speech", checkpoint: str = "step-000120", **more: Any) -> Path:
    """A run folder whose figures are of one checkpoint."""
    folder = make_run(root, name, count=4, steps=20, **more)
    about = {"test": {"checkpoint": checkpoint, "replies": 9, "leaks": {"replies": 2}, "decoding": {"limit": 5}}}
    (folder / "predictions" / "about.json").write_text(json.dumps(about))
    return folder


def written(folder: Path, tmp_path: Path, saved: OmniChatConfig, checkpoint: str = "step-000120", **more: Any) -> Path:
    run = load_run(folder)
    own = more.get("own")
    licences = part_licences(saved, "1.2", own, False) + data_licences(run.sources)
    card = Card("mine", saved, checkpoint, measured(run, checkpoint), licences, "1.2", **more)
    path = tmp_path / "README.md"
    path.write_text(model_card(run, card), encoding="utf-8")
    return path


def test_the_card_shows_what_was_measured_and_its_header_is_the_hubs(tmp_path: Path) -> None:
    folder = evaluated(tmp_path)
    path = written(folder, tmp_path, config(whisper=WHISPER, beats=BEATS), languages=["en"], datasets=["me/data"])
    header, text = metadata_load(path), path.read_text(encoding="utf-8")
    assert header is not None
    assert header["license"] == "other" and header["language"] == ["en"] and header["datasets"] == ["me/data"]
    assert header["pipeline_tag"] == "audio-text-to-text" and header["library_name"] == "omnichat"
    assert header["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    rows = {row["metric"]: row for row in json.loads((folder / "metrics.json").read_text()) if row["scenario"] == "all"}
    (index,) = header["model-index"]
    (result,) = index["results"]
    shown = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert index["name"] == "mine" and shown["bleu"] == pytest.approx(rows["bleu"]["value"], abs=1e-4)
    assert not [name for name in shown if "chance" in name]
    bleu = next(line for line in text.splitlines() if line.startswith("| test | all replies | BLEU |"))
    low, high = rows["bleu"]["ci95"]
    assert f"{rows['bleu']['value']:.2f}" in bleu and f"[{low:.2f}, {high:.2f}]" in bleu
    assert f"| {rows['bleu']['n']} |" in bleu
    assert "| dailytalk_stand_in [STAND-IN] | real | 280" in text and "asked 0.2; drawn" in text
    for doubt in ("Stand-in data", "Random weights: beats and mert", "met the words", "only the first 5 dialogues"):
        assert doubt in text, doubt
    assert "ab" * 8 in text and "cd" * 8 in text and "| Expert beats | Beats, random weights |" in text


def test_figures_of_another_checkpoint_are_not_shown(tmp_path: Path) -> None:
    folder = evaluated(tmp_path, checkpoint="step-000060")
    path = written(folder, tmp_path, config(beats=BEATS))
    header, text = metadata_load(path), path.read_text(encoding="utf-8")
    assert header is not None and "model-index" not in header
    assert "BLEU" not in text and "Nothing was measured on this checkpoint" in text
    assert "The figures on test are of another checkpoint and are left out." in text
    assert measured(load_run(folder), "step-000060").rows == load_run(folder).metrics


def test_a_run_that_was_never_evaluated_has_a_card(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "young", count=2, steps=20)
    for name in ("metrics.json", "predictions/test.jsonl", "data.json", "run.json"):
        (folder / name).unlink()
    text = written(folder, tmp_path, config("me/llm", "text")).read_text(encoding="utf-8")
    assert "Nothing was measured" in text and "base_model: me/llm" in text and "text-generation" in text
    assert '"type": "audio"' not in text, "the example is one that this model can answer"


def test_no_path_of_the_machine_is_in_the_card_but_what_was_loaded_is_told(tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "secret_place")
    data = json.loads((folder / "data.json").read_text())
    data["sources"][0]["path"] = "/secret_place/corpora/made"
    (folder / "data.json").write_text(json.dumps(data))
    info = json.loads((folder / "run.json").read_text())
    info["command"] = "omnichat train llm.path=/secret_place/llama"
    info["experts"][0]["description"] = "Whisper from /secret_place/whisper.pt, 4 x 384"
    (folder / "run.json").write_text(json.dumps(info))
    saved = config("/secret_place/models/llama", mert=MERT)
    text = written(folder, tmp_path, saved).read_text(encoding="utf-8")
    facts = public_facts({"run": "speech", "data.json": data, "run.json": info, "metrics.json": []}, [])
    for shown in (text, json.dumps(facts)):
        assert "secret_place" not in shown and "somebody" not in shown
    assert "llama (a file of its owner's)" in text and "MERT-v1-95M (a file of its owner's)" in text
    assert "experts.mert.path, llm.path" in text, "who loads it elsewhere is told what to name"
    assert facts["run.json"]["experts"][0]["description"] == "Whisper from whisper.pt, 4 x 384"
    assert "command" not in facts["run.json"] and "path" not in facts["data.json"]["sources"][0]
    assert facts["data.json"]["sources"][0]["splits"]["train"] == {"dialogues": 280, "turns": 1680, "hours": 1.62}


def test_hostile_names_stay_in_their_cells(tmp_path: Path) -> None:
    folder = evaluated(tmp_path)
    data = json.loads((folder / "data.json").read_text())
    data["sources"][0]["name"] = "a | b\n## <script>alert(1)</script>"
    (folder / "data.json").write_text(json.dumps(data))
    text = written(folder, tmp_path, config(beats=BEATS)).read_text(encoding="utf-8")
    body = text.split("\n---\n", 1)[1]
    assert "<script>" not in body and "\n## <" not in body and "a \\| b" in body
    yaml.safe_load(text.split("---\n")[1])


NAME = st.text("abcXYZ09_-", min_size=1, max_size=8)


@given(st.lists(NAME, min_size=2, max_size=5), st.sampled_from(["", "read ", "path=", "'", "(", "a: "]))
def test_a_path_inside_any_text_is_cut_down_to_its_name(parts: list[str], before: str) -> None:
    path = "/" + "/".join(parts)
    said = without_paths({"note": [f"{before}{path} and more", path, f"~{path}"]})["note"]
    assert path not in said[0] and said[0].endswith(f"{parts[-1]} and more")
    assert said[1:] == [parts[-1], parts[-1]]


@pytest.mark.parametrize(
    "text", ["me/llm", "https://a.b/c/d", "2/3/4 of it", "x86_64 CPU, 2 cores, 8 GiB", "and/or/not"]
)
def test_what_is_no_path_stays(text: str) -> None:
    assert without_paths(text) == text


def test_every_part_has_its_licence(tmp_path: Path) -> None:
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "README.md").write_text("---\nlicense: other\nlicense_name: llama3.1\n---\n# Llama\n")
    saved = config(str(tmp_path / "llm"), whisper=WHISPER, mert=MERT, beats=BEATS, emotion=EMOTION, wavlm=WAVLM)
    rows = {row.name.partition(":")[0]: row for row in part_licences(saved, "1.2", "mit", True)}
    found = {name: row.licence for name, row in rows.items()}
    assert found["omnichat 1.2"] == "Apache-2.0" and found["fusion and LoRA weights"] == "mit"
    assert (
        found["llm (a file of its owner's)"] == "llama3.1"
        and "also in llm/" in rows["llm (a file of its owner's)"].place
    )
    assert found["whisper"] == "MIT" and found["mert"] == "CC-BY-NC-4.0" and "FunASR" in found["emotion"]
    assert found["beats"] == "made by omnichat (Apache-2.0)"
    assert found["wavlm"] == "see https://huggingface.co/microsoft/wavlm-base-plus"
    assert restriction(list(rows.values())) == (
        "Non-commercial use only: it needs mert: Mert, MERT-v1-95M (a file of its owner's) (CC-BY-NC-4.0)."
    )
    assert hub_licence(list(rows.values()), None) == "cc-by-nc-4.0" and hub_licence(list(rows.values()), "mit") == "mit"


def test_licences_of_corpora_come_from_their_cards(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    licence = {"part": "DailyTalk", "licence": "CC-BY-SA-4.0"}
    (tmp_path / "a" / "card.json").write_text(json.dumps({"licences": [licence]}))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "card.json").write_text("{torn")
    sources = [{"name": name, "path": str(tmp_path / name)} for name in "abc"]
    a, b, c = data_licences(sources)
    assert a.licence == "DailyTalk: CC-BY-SA-4.0" and b.unknown and c.unknown
    assert "read them" in restriction([a, b]) and "b" in restriction([a, b])
    assert restriction([a]).startswith("No licence of its parts is limited")
    bound = Licence("data", "talks", "CC-BY-NC-SA-4.0", "")
    assert "trained on talks" in restriction([a, bound]) and hub_licence([bound], None) == "other"


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("asset:smollm2", False),
        ("meta-llama/Llama-3.1-8B-Instruct", False),
        ("gpt2", False),
        ("/models/llama", True),
        ("~/llama", True),
        ("./llama", True),
        ("models/deep/llama", True),
    ],
)
def test_what_only_this_machine_has(path: str, local: bool) -> None:
    assert is_local(path) is local
    assert (base_model(config(path)) is None) is local
    assert list(local_paths(config(path, beats=BEATS))) == (["llm.path"] if local else [])


def test_the_code_names_where_it_goes(tmp_path: Path) -> None:
    folder = evaluated(tmp_path)
    text = written(folder, tmp_path, config(beats=BEATS), repo="me/x", revision="v1").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert 'where = "me/x"' in code and code.count('revision="v1"') == 2
    compile(code, "card", "exec")
