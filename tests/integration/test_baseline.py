"""`omnichat baseline`: a run folder like any other, resumable, and one line for every mistake."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omnichat.cli import run as run_cli
from omnichat.evaluation.partial import PartialReplies
from omnichat.evaluation.predictions import read_predictions
from omnichat.experiments.runs import load_run
from omnichat.model.systems.chat_lm import ChatLM
from omnichat.training.trainer import Stopped
from omnichat.utils.files import read_json, read_jsonl
from tests.helpers.tiny_audio_llm import qwen2_audio
from tests.helpers.tiny_llm import tiny_llm
from tests.integration.conftest import Corpora, Outcome

Cli = Callable[..., Outcome]
QUICK = ["score.bertscore_model=null", "score.bootstrap_samples=100", "score.permutations=20", "max_new_tokens=6"]


def overrides(corpora: Corpora, runs: Path, **more: Any) -> list[str]:
    sources = [
        f"+mixture.sources.sharechatx.path={corpora.synthetic}",
        f"+mixture.sources.dailytalk.path={corpora.real}",
    ]
    settings = {"runs": runs, "system.llm.path": tiny_llm(), "shots": 1, "batch_size": 3, **more}
    return [*sources, *QUICK, *(f"{key}={value}" for key, value in settings.items() if value is not None)]


@pytest.fixture(scope="module")
def runs(corpora: Corpora, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run that reads, and a baseline beside it."""
    folder = tmp_path_factory.mktemp("baseline") / "runs"
    assert run_cli(["train", *corpora.overrides(folder), "name=words", "chat.input=text"]) == 0
    assert run_cli(["evaluate", f"run={folder / 'words'}", *QUICK]) == 0
    assert run_cli(["baseline", *overrides(corpora, folder, name="llm")]) == 0
    return folder


def test_the_folder_is_a_run_folder_without_a_problem(runs: Path) -> None:
    run = load_run(runs / "llm")
    assert run.problems == () and run.state == "finished" and run.input == "text" and run.alpha is None
    assert run.metric("test", "bleu") and len(run.predictions["test"]) == 8
    assert {source["name"]: source["drawn"] for source in run.sources} == {"sharechatx": 0, "dailytalk": 0}
    assert run.stand_ins == ("dailytalk",)
    assert run.info["parameters"]["trainable"] == 0 < run.info["parameters"]["frozen"]
    assert run.info["baseline"]["llm"]["path"] == str(tiny_llm())
    assert not list((runs / "llm" / "predictions").glob(".*"))


def test_report_and_runs_show_it_beside_a_trained_run(runs: Path, omnichat: Cli) -> None:
    done = omnichat("report", f"runs={runs}")
    assert done.code == 0, done.err
    text = (runs / "report" / "report.md").read_text(encoding="utf-8")
    assert "| llm" in text and "| words [baseline]" in text, "the trained run is what others are tested against"
    keys = [{p.key for p in load_run(runs / name).predictions["test"]} for name in ("llm", "words")]
    assert keys[0] == keys[1], "the same replies, so every paired test is over all of them"
    assert "not tested on the same replies" not in text
    listed = omnichat("runs", f"runs={runs}", "metric=test/bleu").out
    assert "llm" in listed and "words" in listed


def test_a_trained_llm_on_gold_words_answers_as_its_own_evaluation(runs: Path, corpora: Corpora, omnichat: Cli) -> None:
    shown = overrides(corpora, runs.parent / "other", run=runs / "words", **{"system.llm.path": None})
    done = omnichat("baseline", *shown)
    assert done.code == 0, done.err
    baseline = read_predictions(runs.parent / "other" / "text_llm-words" / "predictions" / "test.jsonl")
    own = read_predictions(runs / "words" / "predictions" / "test.jsonl")
    assert {p.key: p.raw for p in baseline} == {p.key: p.raw for p in own}


def test_a_cascade_and_its_oracle_say_what_they_are(runs: Path, corpora: Corpora, omnichat: Cli) -> None:
    shared = overrides(corpora, runs.parent / "asr", limit=1, **{"system.asr.max_tokens": 4})
    assert omnichat("baseline", "system=cascade", *shared).code == 0
    done = omnichat("baseline", "system=cascade_style", "system.style_tags=gold", *shared)
    assert done.code == 0 and "word error rate" in done.out
    folders = sorted(path.name for path in (runs.parent / "asr").iterdir())
    assert [name.split("-")[0] for name in folders] == ["cascade", "cascade_style_gold"]
    plain, oracle = (load_run(runs.parent / "asr" / name) for name in folders)
    assert plain.input == oracle.input == "asr" and "asr_wer" in plain.info["baseline"]
    assert plain.info["warnings"] == [] and "oracle" in oracle.info["warnings"][0]
    assert omnichat("report", f"runs={runs.parent / 'asr'}").code == 0
    assert "(an oracle)" in (runs.parent / "asr" / "report" / "report.md").read_text(encoding="utf-8")


def test_an_audio_model_answers_through_the_verb(runs: Path, corpora: Corpora, omnichat: Cli, tmp_path: Path) -> None:
    model = {"system.path": qwen2_audio(tmp_path / "qwen"), "system.llm.path": None, "limit": 1, "split": "dev"}
    shown = overrides(corpora, tmp_path / "runs", **model)
    done = omnichat("baseline", "system=audio_llm", *shown)
    assert done.code == 0, done.err
    run = load_run(tmp_path / "runs" / "audio_llm-qwen-shots1")
    assert run.input == "speech" and {p.input for p in run.predictions["dev"]} == {"speech"}


def test_stopped_it_goes_on_and_ends_with_the_same_bytes(
    runs: Path, corpora: Corpora, omnichat: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, answer, asked = PartialReplies.add, ChatLM.answer, []

    def stop_after_one(self: PartialReplies, replies: dict[int, str]) -> None:
        add(self, replies)
        raise Stopped("stopped", None, signal.SIGTERM)

    def counted(self: ChatLM, conversations: Any, max_new_tokens: int) -> list[str]:
        asked.append(len(conversations))
        return answer(self, conversations, max_new_tokens)

    monkeypatch.setattr(ChatLM, "answer", counted)
    shown = overrides(corpora, tmp_path / "runs", name="llm")
    with monkeypatch.context() as patched:
        patched.setattr(PartialReplies, "add", stop_after_one)
        assert omnichat("baseline", *shown).code == 128 + signal.SIGTERM
    folder = tmp_path / "runs" / "llm"
    assert read_json(folder / "run.json")["state"] == "stopped" and read_json(folder / "REQUEUE")["verb"] == "baseline"
    assert omnichat("baseline", *shown).code == 0
    assert asked == [3, 3, 2], "no batch was answered twice"
    assert not (folder / "REQUEUE").exists()
    written = (folder / "predictions" / "test.jsonl").read_bytes()
    assert written == (runs / "llm" / "predictions" / "test.jsonl").read_bytes()
    events = [row["event"] for row in read_jsonl(folder / "log.jsonl")]
    assert events == ["baseline", "end", "baseline", "end"]
    assert omnichat("baseline", *shown, "split=dev").code == 0, "another split joins the folder"
    assert {row["split"] for row in read_json(folder / "metrics.json")} == {"test", "dev"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["system=nothing"], "system='nothing' is not valid; choose one of: audio_llm, cascade"),
        (["system.llm.path=./nowhere"], "system.llm.path='./nowhere': no such folder"),
        (["system.llm.paht=x"], "system.llm"),
        (["shots=9"], "shots=9: "),
        (["shots_from=test"], "choose one of: prompts, train"),
        (["split=train"], "choose one of: dev, test"),
        (["prompts=v9"], "packaged versions: v1"),
        (["system=cascade", "system.asr.path=./none.pt"], "none.pt"),
        (["system=cascade_style", "system.style_tags=guessed"], "choose one of: measured, gold"),
        (["system=audio_llm", "system.path={llm}"], "cannot be loaded as an audio language model"),
        (["system=cascade_style", "run={runs}/words"], "answers in system=text_llm or cascade"),
        (["run={runs}/nothing"], "no config.yaml there"),
        (["name=words"], "holds a trained run"),
        (["name=llm", "shots=0"], "holds a baseline with another shots"),
        (["mixture.sources={{}}"], "mixture.sources is empty"),
    ],
)
def test_mistakes_are_one_line(runs: Path, corpora: Corpora, omnichat: Cli, arguments: list[str], said: str) -> None:
    drop = {"system=audio_llm": "system.llm.path", "mixture.sources={{}}": "+mixture"}.get(arguments[0], "nothing")
    shown = [one for one in overrides(corpora, runs) if not one.startswith(drop)]
    done = omnichat("baseline", *shown, *(one.format(runs=runs, llm=tiny_llm()) for one in arguments))
    assert done.code == 2 and said in done.err, done.err
    assert done.err.count("omnichat baseline: error") == 1 and "Traceback" not in done.err
