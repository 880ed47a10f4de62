"""Sample replies: the same turns every time, kept with their recordings, and nothing else is changed by them."""

from __future__ import annotations

from pathlib import Path

import torch

from omnichat.audio.io import audio_info
from omnichat.data.corpus import Corpus
from omnichat.training.samples import Sampler, build_sampler
from omnichat.training.trainer import Trainer
from omnichat.training.watch import WatchConfig
from omnichat.utils.files import read_jsonl
from tests.helpers_core import HashFeatures, Training, make_kit, make_trainer, rows, step_figures


def sampler_of(run: Path, corpora: list[Corpus], every: int, count: int = 4) -> Sampler | None:
    kit = make_kit(corpora)
    config = WatchConfig(samples_every=every, samples=count, samples_max_new_tokens=5)
    return build_sampler(kit.sources, kit.items("dev"), kit.chat, HashFeatures(), config, run, "fp32", 500)


def train(run: Path, corpora: list[Corpus], every: int) -> Trainer:
    trainer = make_trainer(run, corpora, Training(steps=4, dropout=0.1, dev_every=0))
    trainer.sampler = sampler_of(run, corpora, every)
    trainer.fit()
    trainer.tracker.finish()
    return trainer


def test_samples_change_no_bit_of_the_run(tmp_path: Path, synthetic: Corpus, real: Corpus) -> None:
    torch.manual_seed(1)
    without = train(tmp_path / "off", [synthetic, real], every=0)
    after_off = torch.random.get_rng_state()
    torch.manual_seed(1)
    sampled = train(tmp_path / "on", [synthetic, real], every=1)
    assert step_figures(tmp_path / "off") == step_figures(tmp_path / "on")
    assert torch.equal(after_off, torch.random.get_rng_state())
    assert without.sampler is None and sampled.model.training
    ours, theirs = without.model.trainable_state(), sampled.model.trainable_state()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_same_turns_are_sampled_every_time_and_kept(tmp_path: Path, synthetic: Corpus, real: Corpus) -> None:
    train(tmp_path, [synthetic, real], every=2)
    files = sorted((tmp_path / "samples").glob("*.jsonl"))
    assert [file.name for file in files] == ["step-000002.jsonl", "step-000004.jsonl"]
    first, second = (read_jsonl(file) for file in files)
    assert [row["id"] for row in first] == [row["id"] for row in second]
    assert len({row["id"] for row in first}) == 4
    assert [row["source"] for row in first] == ["made", "spoken", "made", "spoken"]  # sources in turn
    for row in first:
        dialogue = next(
            d for c in (synthetic, real) for d in c.dialogues if row["id"].startswith(f"{d.source}/{d.id}#")
        )
        turn = int(row["id"].rpartition("#")[2])
        assert dialogue.split == "dev" and dialogue.turns[turn].text == row["reference"]
        assert dialogue.turns[turn - 1].text == row["heard"]
        assert audio_info(tmp_path / row["audio"])[0] == 16_000
    assert [row["step"] for row in rows(tmp_path, "samples")] == [2, 4]


def test_a_process_that_only_helps_writes_nothing(tmp_path: Path, synthetic: Corpus) -> None:
    sampler = sampler_of(tmp_path, [synthetic], every=1, count=1)
    assert sampler is not None and len(sampler.slots) == 1
    assert sampler.take(make_kit([synthetic]).model, 1, write=False) == []
    assert not (tmp_path / "samples").exists()


def test_there_is_no_sampler_where_there_is_nothing_to_sample(tmp_path: Path, synthetic: Corpus) -> None:
    assert sampler_of(tmp_path, [synthetic], every=0) is None
    kit = make_kit([synthetic])
    assert build_sampler(kit.sources, [], kit.chat, None, WatchConfig(samples_every=1), tmp_path, "fp32", 500) is None
