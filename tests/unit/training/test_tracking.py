"""One figure under one name in log.jsonl, wandb and TensorBoard; a tracker that fails ends nothing."""

from __future__ import annotations

import importlib.util
import json
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnichat.audio.io import save_audio
from omnichat.training.tracking import Tracker, TrackingConfig, check_tracking
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json, read_jsonl

SILENT = TrackingConfig(wandb="disabled", tensorboard=True)
ROW = {"id": "demo/d1#1", "heard": "Hello.", "reference": "Hi.", "reply": "Hi there.", "audio": "samples/audio/a.flac"}


def scalars(run: Path) -> dict[str, dict[int, float]]:
    """Figure -> step -> value, as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


def wandb_records(file: Path) -> list[Any]:
    """Records of an offline run's .wandb file: a LevelDB log (blocks of 32 KiB, 7 bytes before each piece)."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    content, place, records, pieces = file.read_bytes(), 7, [], b""  # 7: the library's own header
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        pieces += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or last piece
            record = Record()
            record.ParseFromString(pieces)
            records.append(record)
            pieces = b""
    return records


def wandb_figures(file: Path) -> dict[str, dict[int, Any]]:
    """Figure -> step -> value of an offline run."""
    found: dict[str, dict[int, Any]] = {}
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "history":
            values = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            step = values.pop("_step", record.history.step.num)
            for name, value in values.items():
                found.setdefault(name, {})[step] = value
    return found


def test_tensorboard_holds_the_figures_of_the_log_under_the_same_names(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, SILENT, {})
    for step in (1, 2):
        tracker.row("step", step=step, loss=1.5 / step, tokens=7, alpha_ci95=[0.0, 1.0])
    tracker.row("dev", step=2, loss=0.5)
    tracker.finish()
    assert scalars(tmp_path) == {
        "step/loss": {1: 1.5, 2: 0.75},
        "step/tokens": {1: 7.0, 2: 7.0},
        "dev/loss": {2: 0.5},
    }
    assert [row["event"] for row in read_jsonl(tmp_path / "log.jsonl")] == ["step", "step", "dev"]


def test_a_resumed_run_replaces_what_the_killed_one_wrote_after_its_checkpoint(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, SILENT, {})
    for step in (1, 2, 3):
        tracker.row("step", step=step, loss=float(step))
    tracker.finish()
    tracker = Tracker(tmp_path, SILENT, {})
    tracker.row("resume", step=1)
    tracker.row("step", step=2, loss=20.0)
    tracker.finish()
    assert scalars(tmp_path)["step/loss"] == {1: 1.0, 2: 20.0}


def test_samples_reach_tensorboard_with_the_recording_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    save_audio(tmp_path / "samples/audio/a.flac", 0.1 * np.sin(np.arange(1600)), 16_000)
    tracker = Tracker(tmp_path, SILENT, {})
    for step in (5, 10):
        tracker.samples(step, [ROW | {"step": step}])
    tracker.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (audio,) = events.Audio("samples/demo/d1#1")
    assert audio.step == 5 and audio.sample_rate == 16_000 and audio.length_frames == 1600
    texts = events.Tensors("samples/demo/d1#1/text_summary")
    assert [text.step for text in texts] == [5, 10] and b"Hi there." in texts[0].tensor_proto.string_val[0]
    assert [row["file"] for row in read_jsonl(tmp_path / "log.jsonl")] == [
        "samples/step-000005.jsonl",
        "samples/step-000010.jsonl",
    ]


def test_an_offline_wandb_run_holds_the_same_figures_and_keeps_its_id_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    save_audio(tmp_path / "samples/audio/a.flac", 0.1 * np.sin(np.arange(1600)), 16_000)
    for first in (1, 3):
        begun = int(time.time())
        tracker = Tracker(tmp_path, TrackingConfig(wandb="offline"), {"seed": 3})
        tracker.row("step", step=first, loss=0.5 * first)
        tracker.row("dev", step=first, loss=0.25)
        tracker.samples(first, [ROW | {"step": first}])
        tracker.row("step", step=first + 1, loss=1.0)
        tracker.finish()
        while int(time.time()) <= begun + 1:  # wandb names an offline folder by the second in which it starts
            time.sleep(0.05)
    name = read_json(tmp_path / "tracking.json")["wandb_id"]
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    assert [file.name for file in files] == [f"run-{name}.wandb"] * len(files) and files
    found: dict[str, dict[int, Any]] = {}
    for file in files:
        for figure, values in wandb_figures(file).items():
            found.setdefault(figure, {}).update(values)
    assert found["step/loss"] == {1: 0.5, 2: 1.0, 3: 1.5, 4: 1.0}
    assert found["dev/loss"] == {1: 0.25, 3: 0.25}
    assert found["samples/replies/_type"] == {1: "table-file", 3: "table-file"}
    assert found["samples/demo/d1#1/_type"] == {1: "audio-file", 3: "audio-file"}  # once a session


def test_a_sink_that_fails_is_dropped_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker(tmp_path, SILENT, {})

    def broken(step: int, figures: dict[str, float]) -> None:
        raise OSError("no space left on device")

    tracker._sinks["tensorboard"].figures = broken  # type: ignore[method-assign]
    for step in (1, 2):
        tracker.row("step", step=step, loss=1.0)
    tracker.finish()
    assert len(read_jsonl(tmp_path / "log.jsonl")) == 2
    [said] = [record.message for record in caplog.records]
    assert "tensorboard failed" in said and "no space left" in said


def test_online_without_a_login_goes_on_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    modes = []
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    monkeypatch.setattr(wandb, "init", lambda **kwargs: modes.append(kwargs["mode"]))
    tracker = Tracker(tmp_path, TrackingConfig(wandb="online"), {})
    assert modes == ["offline"] and "wandb" in tracker._sinks


def test_an_unreachable_server_leaves_the_run_offline_with_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    calls: list[dict[str, Any]] = []

    def init(**kwargs: Any) -> None:
        calls.append(kwargs)
        if kwargs["mode"] == "online":
            raise wandb.errors.CommError("timed out")

    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", init)
    for _ in range(2):
        Tracker(tmp_path, TrackingConfig(wandb="online"), {})
    assert [call["mode"] for call in calls] == ["online", "offline"] * 2
    assert [call["resume"] for call in calls] == ["allow", None] * 2
    assert len({call["id"] for call in calls}) == 1


def test_a_missing_tensorboard_is_said_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install omnichat\[tensorboard\]"):
        check_tracking(SILENT)
    check_tracking(TrackingConfig())
