"""Checkpoints: whole or absent, in the order of their steps, pruned but for the best, refused when they do not fit."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from omnichat.training import checkpoint as ckpt
from omnichat.training.checkpoint import (
    FILES,
    MARKER,
    checkpoints,
    load_checkpoint,
    newest_whole,
    restore_interrupted,
    save_checkpoint,
)
from omnichat.utils.errors import UserError
from omnichat.utils.files import sha256_file

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
    for step in (2, 999_999, 1_000_000):
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


def test_a_kill_while_a_step_is_written_again_loses_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer dies between the renames: the step is put back by the next writer, be it a save or a start."""
    save(tmp_path, 1)

    class Killed(BaseException):
        pass

    rename = Path.rename

    def die(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise Killed
        return rename(self, target)

    for recover in (lambda: restore_interrupted(tmp_path), lambda: save(tmp_path, 2)):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", die)
            with pytest.raises(Killed):
                save(tmp_path, 1, best=1)
        assert names(tmp_path) == []
        recover()
        assert names(tmp_path)[0] == "step-000001"
        assert load_checkpoint(tmp_path / "step-000001")[2]["best_step"] is None
        assert not list(tmp_path.glob(".*"))


def test_the_same_content_is_not_written_twice(tmp_path: Path) -> None:
    first = save(tmp_path, 1)
    inode = first.stat().st_ino
    assert save(tmp_path, 1).stat().st_ino == inode
    assert save(tmp_path, 1, best=1).stat().st_ino != inode
    damage(tmp_path / "step-000001", "optimizer.safetensors", "flipped")
    save(tmp_path, 1, best=1)
    load_checkpoint(tmp_path / "step-000001")
    assert not list(tmp_path.glob(".*"))


def test_later_steps_of_an_abandoned_line_are_set_aside(tmp_path: Path) -> None:
    """Continued from step 1, a run must not be resumed from the step 3 that it has yet to take."""
    for step in (1, 3):
        save(tmp_path, step, keep=5)
    save(tmp_path, 2, keep=5)
    assert names(tmp_path) == ["step-000001", "step-000002"] and (tmp_path / "step-000003.aside1").is_dir()


def test_a_checkpoint_holds_trainables_moments_and_state_alone(tmp_path: Path) -> None:
    sizes = {p.name: p.stat().st_size for p in save(tmp_path, 1).iterdir()}
    assert set(sizes) == {*FILES, MARKER}
    assert sizes["trainables.safetensors"] < 4 * 6 + 200 and sizes["optimizer.safetensors"] < 4 * 6 + 200
    assert sizes["state.json"] < 200


DAMAGES = ("missing", "cut", "empty", "longer", "flipped")


def damage(path: Path, name: str, how: str) -> None:
    content = (path / name).read_bytes()
    (path / name).unlink()
    changed = {
        "cut": content[: len(content) // 2],
        "empty": b"",
        "longer": content + b" ",
        "flipped": content[:-1] + bytes([content[-1] ^ 1]),
    }
    if how != "missing":
        (path / name).write_bytes(changed[how])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_named_and_the_one_before_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    assert newest_whole(tmp_path) == tmp_path / "step-000002"
    damage(tmp_path / "step-000002", name, how)
    with pytest.raises(UserError, match=rf"step-000002/{name}: ") as error:
        load_checkpoint(tmp_path / "step-000002")
    assert "\n" not in str(error.value)
    assert newest_whole(tmp_path) == tmp_path / "step-000001"
    assert name in caplog.text
    damage(tmp_path / "step-000001", name, how)
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        newest_whole(tmp_path)
    assert newest_whole(tmp_path / "none") is None


@pytest.mark.parametrize("text", ["7\n", "", "{}", '{"files": {"state.json": 1}}', "[1]"])
def test_a_marker_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (save(tmp_path, 1) / MARKER).write_text(text)
    with pytest.raises(UserError, match="COMPLETE: damaged, or of an older omnichat"):
        load_checkpoint(tmp_path / "step-000001")


def test_a_tensor_that_is_not_finite_is_named(tmp_path: Path) -> None:
    bad = {"fusion.w": torch.tensor([1.0, float("nan")])}
    path = save_checkpoint(tmp_path, 1, bad, MOMENTS, {}, 2)
    with pytest.raises(UserError, match=r"trainables.safetensors: tensor 'fusion.w' holds NaN or infinity"):
        load_checkpoint(path)


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_in_a_checkpoint_never_runs(tmp_path: Path, name: str) -> None:
    """Not even when its author has put the right size and hash into the marker."""
    path, sung = save(tmp_path, 1), tmp_path / "sung"
    (path / name).write_bytes(pickle.dumps({"fusion.w": Canary(sung)}))
    seal(path)
    with pytest.raises(UserError, match=f"{name}: not readable"):
        load_checkpoint(path)
    assert not sung.exists()
    pickle.loads((path / name).read_bytes())
    assert sung.exists(), "the canary can sing"


def seal(path: Path) -> None:
    files = {n: {"bytes": (path / n).stat().st_size, "sha256": sha256_file(path / n)} for n in FILES}
    (path / MARKER).write_text(json.dumps({"step": 1, "files": files}))


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"w": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}},
        [],
    ],
    ids=["huge", "short", "negative", "no dtype", "no object"],
)
def test_a_forged_header_is_refused_before_memory_is_asked_for(tmp_path: Path, header: object) -> None:
    path = save(tmp_path, 1)
    text = json.dumps(header).encode()
    (path / "trainables.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0\0\0\0")
    seal(path)
    with pytest.raises(UserError, match=r"trainables.safetensors: not readable as safetensors"):
        load_checkpoint(path)


def test_a_header_that_claims_to_be_endless_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "optimizer.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    seal(path)
    with pytest.raises(UserError, match=r"optimizer.safetensors: not readable as safetensors"):
        load_checkpoint(path)


def test_a_full_disk_is_one_line_and_leaves_the_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    before = {p: p.read_bytes() for p in (tmp_path / "step-000001").iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"step 2 \(No space left.*needs 1\.\d MB.*MB are free") as error:
            save(tmp_path, 2)
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5, 5))
        with pytest.raises(UserError, match="No space left"):
            save(tmp_path, 2)
    assert {p: p.read_bytes() for p in (tmp_path / "step-000001").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


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
    for change, message in (
        ({"a.bias/exp_avg": torch.zeros(3)}, r"a\.bias/exp_avg is \(3,\), not \(2,\)"),
        ({"a.bias/step": torch.zeros(2)}, r"a\.bias/step is \(2,\), not \(\)"),
        ({"a.bias/code": torch.zeros(2)}, r"'a\.bias/code' is none of step, exp_avg"),
    ):
        with pytest.raises(UserError, match=message):
            ckpt.load_optimizer_tensors(adam(model), model, {**tensors, **change})
    del tensors["b.weight/exp_avg_sq"]
    fresh = adam(model)
    with pytest.raises(UserError, match=r"lacks the optimizer state 'b.weight/exp_avg_sq'"):
        ckpt.load_optimizer_tensors(fresh, model, tensors)
    assert not fresh.state
