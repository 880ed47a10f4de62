"""The wheel in a clean virtual environment: every module imports, and a saved model loads there and says the same.

It installs everything that the wheel requires, torch among it: minutes, a package index, about 6 GB of disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnichat.audio.io import save_audio
from tests.helpers.talkers import small_talker

ROOT = Path(__file__).resolve().parents[2]
TALKS: list[Any] = [
    [{"role": "user", "content": [{"type": "audio", "audio": "hello.wav"}]}],
    [{"role": "user", "content": [{"type": "text", "text": "Hello there, what is this?"}]}],
]

CLEAN = """
import importlib, json, pkgutil, sys
from pathlib import Path

import omnichat

assert Path(omnichat.__file__).is_relative_to(sys.prefix), omnichat.__file__
broken = {}
for module in pkgutil.walk_packages(omnichat.__path__, "omnichat."):
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        broken[module.name] = str(error)
from omnichat.config import SCHEMAS, config_folder
from omnichat.model.pretrained import OmniChatForConditionalGeneration, OmniChatProcessor

model, processor = OmniChatForConditionalGeneration.from_pretrained("."), OmniChatProcessor.from_pretrained(".")
said = [processor.decode(model.generate(**processor(talk), max_new_tokens=8)[0]) for talk in json.loads(sys.argv[1])]
configs = all((config_folder() / f"{verb}.yaml").is_file() for verb in SCHEMAS)
print(json.dumps({"broken": broken, "said": said, "configs": configs}))
"""


def call(*command: object, cwd: Path, **environment: str) -> str:
    """Standard output of a command that must succeed, without what this environment puts on Python's path."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=kept | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.campaign
def test_a_saved_model_loads_where_only_the_wheel_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = tmp_path / "saved"
    talker = small_talker()
    talker.model.save_pretrained(saved)
    talker.processor.save_pretrained(saved)
    save_audio(saved / "hello.wav", 0.3 * np.sin(np.arange(16000) / 12), 16000)
    monkeypatch.chdir(saved)
    wanted = [talker.processor.decode(talker.model.generate(**talker.processor(t), max_new_tokens=8)[0]) for t in TALKS]
    assert len(set(wanted)) == 2

    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    call(*pip, "--wheel-dir", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("omnichat-*.whl")
    call(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    call(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, cwd=tmp_path)
    assert "omnichat" in call(tmp_path / "venv" / "bin" / "omnichat", "--help", cwd=tmp_path)
    (tmp_path / "clean.py").write_text(CLEAN)
    told = call(python, tmp_path / "clean.py", json.dumps(TALKS), cwd=saved, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    found = json.loads(told.splitlines()[-1])
    assert not found["broken"], found["broken"]
    assert found["said"] == wanted and found["configs"]
