"""Checkpoints: whole or absent, in the order of their steps, pruned but for the best, refused when they do not fit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from omnichat.training import checkpoint as ckpt
from omnichat.training.checkpoint import checkpoints, load_checkpoint, refuse_changes, save_checkpoint
from omnichat.utils.errors import UserError

TENSORS = {"fusion.w": torch.arange(6.0).reshape(2, 3)}
MOMENTS = {"fusion.w/exp_avg": torch.ones(2, 3)}


def save(folder: Path, step: int, keep: int = 2, best: int | None = None) -> Path:
    return save_checkpoint(folder, step, TENSORS, MOMENTS, {"best_step": best, "step": step}, keep)


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    trainables, moments, state = load_checkpoint(save(tmp_path, 7))
    assert torch.equal(trainables["fusion.w"], TENSORS["fusion.w"])
    assert torch.equal(moments["fusion.w/exp_avg"], MOMENTS["fusion.w/exp_avg"])
    assert state == {"best_step": None, "step": 7}


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000, 2):
        save(tmp_path, step, keep=10)
    assert names(tmp_path) == ["step-000002", "step-999999", "step-1000000"]


def test_old_ones_are_pruned_and_the_best_is_kept(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, step, keep=2, best=2 if step >= 2 else None)
    assert names(tmp_path) == ["step-000002", "step-000005", "step-000006"]
    save(tmp_path, 7, keep=1, best=5)
    assert names(tmp_path) == ["step-000005", "step-000007"]


def test_one_without_its_marker_does_not_count(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / ckpt.MARKER).unlink()
    assert names(tmp_path) == ["step-000001"]
    with pytest.raises(UserError, match="not a complete checkpoint"):
        load_checkpoint(tmp_path / "step-000002")
    save(tmp_path, 2)
    assert names(tmp_path) == ["step-000001", "step-000002"]


def test_other_folders_are_no_checkpoints(tmp_path: Path) -> None:
    for name in ("step-best", ".step-000001.ab.tmp", "step-000001.bak"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ckpt.MARKER).touch()
    assert checkpoints(tmp_path) == [] and checkpoints(tmp_path / "nowhere") == []


@pytest.mark.parametrize("call", range(6))
def test_a_kill_at_any_write_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """The writer dies at its n-th flush to disk: the old checkpoint is there, and the new one is whole or not there."""
    save(tmp_path, 1)
    flushes = 0
    real = os.fsync

    class Killed(BaseException):
        pass

    def fsync(descriptor: int) -> None:
        nonlocal flushes
        flushes += 1
        if flushes > call:
            raise Killed
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(ckpt.shutil, "rmtree", lambda *args, **kwargs: None)  # the dead do not tidy up
        try:
            save(tmp_path, 2)
        except Killed:
            pass
        else:
            pytest.fail("fewer flushes than expected: the checkpoint is not durable")
    for path in checkpoints(tmp_path):
        assert load_checkpoint(path)[2]["step"] == int(path.name[5:])
    assert names(tmp_path)[0] == "step-000001"
    save(tmp_path, 3)
    assert not list(tmp_path.glob(".*")), "the next save clears away what the dead writer left"
    assert names(tmp_path)[-1] == "step-000003"


@pytest.mark.parametrize("name", ["trainables.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    path = save(tmp_path, 1)
    content = (path / name).read_bytes()
    (path / name).unlink()
    if damage != "missing":
        (path / name).write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(UserError, match="step-000001") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_nothing_in_a_checkpoint_is_code(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json", ""}
    json.loads((path / "state.json").read_text())


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 1)
        self.b.bias.requires_grad_(False)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        self.b(self.a(torch.ones(1, 3))).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def adam(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)


def test_moments_are_put_back_by_name() -> None:
    one, two = Two(), Two()
    first, second = adam(one), adam(two)
    for _ in range(3):
        one.step(first)
    tensors = {k: v.clone() for k, v in ckpt.optimizer_tensors(first, one).items()}
    assert set(tensors) == {
        f"{n}/{k}" for n in ("a.weight", "a.bias", "b.weight") for k in ("step", "exp_avg", "exp_avg_sq")
    }
    two.load_state_dict(one.state_dict())
    ckpt.load_optimizer_tensors(second, two, tensors)
    one.step(first)
    two.step(second)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_moments_that_do_not_fit_are_refused() -> None:
    model = Two()
    optimizer = adam(model)
    model.step(optimizer)
    tensors = ckpt.optimizer_tensors(optimizer, model)
    with pytest.raises(UserError, match=r"'b\.bias', which this model does not train"):
        ckpt.load_optimizer_tensors(adam(model), model, {**tensors, "b.bias/step": torch.zeros(())})
    fewer = {name: value for name, value in tensors.items() if not name.startswith("a.bias")}
    with pytest.raises(UserError, match="optimizer state of 2 tensors, this model trains 3"):
        ckpt.load_optimizer_tensors(adam(model), model, fewer)


def test_a_changed_setting_is_named_with_both_values() -> None:
    saved = {"config": {"lr": 0.1, "experts": {"one": {"layers": 2}}}, "data": {"made": "aa"}}
    refuse_changes(saved, json.loads(json.dumps(saved)), Path("c"))
    for change, message in (
        (
            {"config": {"lr": 0.2, "experts": {"one": {"layers": 2}}}, "data": {"made": "aa"}},
            r"config\.lr=0\.1.*has 0\.2",
        ),
        ({**saved, "data": {"made": "bb"}}, r"data\.made='aa'.*'bb'"),
        ({**saved, "data": {"made": "aa", "spoken": "cc"}}, r"data\.spoken=None.*'cc'"),
        ({"config": {"lr": 0.1, "experts": {}}, "data": {"made": "aa"}}, r"config\.experts"),
    ):
        with pytest.raises(UserError, match=message):
            refuse_changes(saved, change, Path("c"))
