"""The whole way in miniature: train, evaluate, report, inspect, and what each leaves in the run folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from omnichat.cli import run as run_cli
from omnichat.data.corpus import Corpus
from omnichat.utils.files import read_json, read_jsonl
from tests.integration.conftest import Corpora, Outcome

Cli = Callable[..., Outcome]
QUICK = ["score.bertscore_model=null", "score.bootstrap_samples=100", "score.permutations=20", "max_new_tokens=6"]


@pytest.fixture(scope="module")
def runs(corpora: Corpora, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, trained and evaluated: one that reads, one that hears both kinds of corpora."""
    folder = tmp_path_factory.mktemp("verbs") / "runs"
    for name, overrides in {"words": ["chat.input=text"], "speech": ["mixture.alpha=0.2"]}.items():
        assert run_cli(["train", *corpora.overrides(folder), f"name={name}", *overrides]) == 0
        assert run_cli(["evaluate", f"run={folder / name}", *QUICK]) == 0
    return folder


@pytest.fixture
def run(runs: Path) -> Path:
    return runs / "speech"


def test_the_run_folder_holds_what_it_should(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names == {
        *("config.yaml", "log.jsonl", "data.json", "run.json", "metrics.json"),
        *("checkpoints", "predictions", "peak.json"),
    }
    steps = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert steps == ["step-000003", "step-000006"]


def test_checkpoints_are_safetensors_and_json_alone(run: Path) -> None:
    last = run / "checkpoints" / "step-000006"
    files = {path.name for path in last.iterdir()}
    assert files == {"trainables.safetensors", "optimizer.safetensors", "state.json", "COMPLETE"}
    tensors = load_file(last / "trainables.safetensors")
    assert any("lora" in name for name in tensors) and any("fusion" in name for name in tensors)
    assert read_json(last / "state.json")["state"]["step"] == 6


def test_config_yaml_is_the_whole_config(run: Path, corpora: Corpora) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert config["name"] == "speech" and config["seed"] == 0 and config["chat"]["input"] == "speech"
    assert config["mixture"]["alpha"] == 0.2
    assert config["mixture"]["sources"]["sharechatx"]["path"] == str(corpora.synthetic)
    assert set(config["experts"]) == {"beats", "mert"} and config["fusion"]["_target_"].startswith("omnichat.")
    assert config["trainer"]["steps"] == 6 and config["llm"]["path"]


def test_log_has_a_row_for_every_step(run: Path) -> None:
    rows = read_jsonl(run / "log.jsonl")
    steps = [row for row in rows if row["event"] == "step"]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    wanted = {"loss", "loss_style", "loss_words", "lr_fusion", "lr_lora", "grad_norm", "supervised_tokens", "tokens"}
    wanted |= {"tokens_per_sec", "alpha_realised", "alpha_ci95", "padding", "seconds"}
    assert all(wanted <= set(row) for row in steps)
    assert all(0 < row["supervised_tokens"] < row["tokens"] for row in steps)
    assert [row["step"] for row in rows if row["event"] == "dev"] == [3, 6]
    assert rows[-1]["event"] == "end"


def test_data_json_agrees_with_the_log_and_the_corpora(run: Path, corpora: Corpora) -> None:
    data = read_json(run / "data.json")
    last = [row for row in read_jsonl(run / "log.jsonl") if row["event"] == "step"][-1]
    assert data["alpha"] == 0.2 and data["unit"] == "dialogue"
    assert data["alpha_realised"] == last["alpha_realised"] and data["alpha_ci95"] == last["alpha_ci95"]
    assert data["alpha_ci95"][0] <= data["alpha_realised"] <= data["alpha_ci95"][1]
    by_name = {source["name"]: source for source in data["sources"]}
    drawn = {name: source["drawn"] for name, source in by_name.items()}
    assert data["alpha_realised"] == pytest.approx(drawn["dailytalk"] / sum(drawn.values()))
    assert (by_name["sharechatx"]["stand_in"], by_name["dailytalk"]["stand_in"]) == (False, True)
    for name, folder in (("sharechatx", corpora.synthetic), ("dailytalk", corpora.real)):
        corpus = Corpus.load(folder)
        assert by_name[name]["fingerprint"] == corpus.fingerprint()
        for split, counts in by_name[name]["splits"].items():
            summary = corpus.summary(split)
            assert (counts["dialogues"], counts["turns"]) == (summary["dialogues"], summary["turns"])
            assert counts["hours"] == pytest.approx(summary["hours"], abs=1e-4)


def test_run_json_says_what_ran(run: Path) -> None:
    value = read_json(run / "run.json")
    assert value["name"] == "speech" and value["state"] == "finished"
    assert {expert["name"]: expert["random"] for expert in value["experts"]} == {"beats": True, "mert": True}
    assert 0 < value["parameters"]["trainable"] < value["parameters"]["frozen"] + value["parameters"]["trainable"]
    assert value["versions"]["torch"] and value["wall_seconds"] > 0 and "omnichat train" in value["command"]


def test_a_run_of_words_has_no_experts(runs: Path) -> None:
    assert read_json(runs / "words" / "run.json")["experts"] == []
    tensors = load_file(runs / "words" / "checkpoints" / "step-000006" / "trainables.safetensors")
    assert tensors and all("lora" in name for name in tensors)


def test_predictions_are_one_row_a_held_out_reply(run: Path, corpora: Corpora) -> None:
    rows = read_jsonl(run / "predictions" / "test.jsonl")
    dialogues = {d.id: d for folder in (corpora.synthetic, corpora.real) for d in Corpus.load(folder).dialogues}
    assert {row["dialogue"] for row in rows} == {d.id for d in dialogues.values() if d.split == "test"}
    for row in rows:
        dialogue = dialogues[row["dialogue"]]
        assert row["id"] == f"{dialogue.id}#{row['turn']}" and row["turn"] == len(dialogue.turns) - 1
        assert row["heard"]["text"] == dialogue.turns[-2].text and row["reference"]["text"] == dialogue.turns[-1].text
        assert row["variant_of"] == dialogue.turns[-2].variant_of and row["stand_in"] == dialogue.stand_in
        assert (row["heard"]["scene"] is None) == (dialogue.scene is None)
        assert [line["text"] for line in row["history"]] == [turn.text for turn in dialogue.turns[:-2]]
        assert row["split"] == "test" and row["input"] == "speech" and isinstance(row["raw"], str)
    for row in (row for row in rows if "audio_file" in row):
        assert (run / row["audio_file"]).is_file()
    sampled = [row for row in rows if "attention" in row]
    assert sampled and all(set(row["experts"]) == {"beats", "mert"} for row in sampled)
    assert all(sum(window) == pytest.approx(1, abs=1e-2) for row in sampled for window in row["attention"])


def test_metrics_have_intervals_and_an_aggregate(run: Path) -> None:
    rows = read_json(run / "metrics.json")
    assert {row["scenario"] for row in rows} >= {"all", "emotion", "music", "daily"}
    for row in rows:
        assert {"split", "scenario", "metric", "value", "n", "ci95"} <= set(row) and row["n"] > 0
        assert row["ci95"][0] <= row["ci95"][1]
    replies = {row["n"] for row in rows if row["scenario"] == "all" and row["metric"] == "bleu"}
    assert replies == {len(read_jsonl(run / "predictions" / "test.jsonl"))}


def test_evaluating_another_split_keeps_the_first(run: Path, omnichat: Cli) -> None:
    before = [row for row in read_json(run / "metrics.json") if row["split"] == "test"]
    outcome = omnichat("evaluate", f"run={run}", "split=dev", "checkpoint=best", "limit=1", *QUICK)
    assert outcome.code == 0, outcome.err
    rows = read_json(run / "metrics.json")
    assert [row for row in rows if row["split"] == "test"] == before
    assert {row["split"] for row in rows} == {"test", "dev"}
    assert len(read_jsonl(run / "predictions" / "dev.jsonl")) == 2, "limit counts dialogues of each source"


def test_training_again_finds_it_done_and_a_longer_run_is_refused(run: Path, corpora: Corpora, omnichat: Cli) -> None:
    same = [*corpora.overrides(run.parent), "name=speech", "mixture.alpha=0.2"]
    before = (run / "checkpoints" / "step-000006" / "trainables.safetensors").read_bytes()
    assert omnichat("train", *same).code == 0
    assert (run / "checkpoints" / "step-000006" / "trainables.safetensors").read_bytes() == before
    changed = omnichat("train", *same, "trainer.optim.lr_lora=0.5")
    assert changed.code == 2 and "lr_lora" in changed.err.splitlines()[-1] and "0.5" in changed.err
    assert not AcceleratorState._shared_state, "a run after a refused one chooses its own precision"
    moved = omnichat("train", *same, "resume=never", "trainer.steps=1", "name=again")
    assert moved.code == 0 and (run.parent / "again").is_dir()
    assert omnichat("train", *same, "resume=never", "trainer.steps=1", "name=again").code == 0
    assert (run.parent / "again.old1").is_dir(), "an older run is moved aside, never lost"


FETCHED = re.compile(
    r"""(?:src|href|data|poster|action)\s*=\s*["']\s*(?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import"""
)


def test_the_report_is_one_page_that_fetches_nothing(runs: Path, tmp_path: Path, omnichat: Cli) -> None:
    out = tmp_path / "report"
    outcome = omnichat("report", f"runs=[{runs / 'words'},{runs / 'speech'}]", f"out={out}")
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip() == f"report: {out / 'index.html'}"
    assert {path.name for path in out.iterdir()} == {"index.html", "report.md", "results.json"}
    page = (out / "index.html").read_text(encoding="utf-8")
    assert not FETCHED.search(page), "the page must open without a network"
    assert "STAND-IN" in page.upper() and "words" in page and "speech" in page
    assert "beats and mert in speech never saw training" in page, "the reader is told which experts know nothing"
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert {row["run"] for row in results} == {"words", "speech"}
    assert "words" in (out / "report.md").read_text(encoding="utf-8")


def test_the_rule_for_fetched_things_catches_them() -> None:
    for bad in ('<img src="https://a.b/c.png">', "<script src='//a.b/c.js'>", "url(http://a.b/f.woff)"):
        assert FETCHED.search(bad)
    assert not FETCHED.search('<img src="data:image/png;base64,AA//AA=="> see https://a.b')


def test_inspect_shows_roles_and_obeys_color(corpora: Corpora, tmp_path: Path, omnichat: Cli) -> None:
    base = ["inspect", *corpora.overrides(tmp_path / "runs")]
    plain = omnichat(*base, "color=false")
    assert plain.code == 0, plain.err
    assert "\x1b" not in plain.out
    for word in ("template", "audio", "style", "words", "end", "supervised", "train0-v0", "[low, slow, sad]"):
        assert word in plain.out
    assert "\x1b[" in omnichat(*base, "color=true").out
    text = omnichat(*base, "color=false", "chat.input=text", "dialogue=train1-v1", "split=train").out
    assert "It was really something." in text and "train1-v1" in text
    spoken = omnichat(*base, "color=false", "from_source=dailytalk", "split=test", "dialogue=1").out
    assert "r-test1" in spoken


def test_cache_fills_what_train_reads(corpora: Corpora, tmp_path: Path, omnichat: Cli) -> None:
    base = [*corpora.overrides(tmp_path / "runs"), f"cache.dir={tmp_path / 'features'}"]
    assert omnichat("cache", *base).code == 0
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.safetensors")}
    assert {path.parent.name.split("-")[0] for path in shards} == {"beats", "mert"}
    assert omnichat("train", *base, "trainer.steps=1", "name=one").code == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.safetensors")} == shards
