"""No corpus, however damaged, makes a reader fail otherwise than with one line that names the place.

OMNICHAT_FUZZ=2000 runs as many examples of each layout as one likes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnichat.audio.io import save_audio
from omnichat.data.corpus import Corpus
from omnichat.data.prepare import PrepareConfig, prepare
from omnichat.data.readers.base import Reader
from omnichat.schema import Dialogue, dialogue_from_json, dialogue_to_json
from omnichat.utils.errors import UserError
from tests.helpers.layouts import LAYOUTS, build, noise
from tests.helpers.mutations import mutate

torch.set_num_threads(1)
EXAMPLES = int(os.environ.get("OMNICHAT_FUZZ", "20"))
MOST_BYTES = 150_000_000  # the tiny corpora hold two megabytes at most
relaxed = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every layout, undamaged, beside a recording that belongs to none."""
    folder = tmp_path_factory.mktemp("whole")
    for name in LAYOUTS:
        (folder / name).mkdir()
        build(name, folder / name / "raw")
    return folder


@pytest.fixture(autouse=True)
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def is_one_line(error: UserError | str, root: Path, names_it: bool = True) -> None:
    assert "\n" not in str(error) and len(str(error)) < 2000, str(error)[:3000]
    if names_it:
        assert str(root) in str(error) or "source." in str(error), error


def is_sound(dialogue: Dialogue, reader: Reader) -> None:
    """In the schema, writable, and inside its folder."""
    text = json.dumps(dialogue_to_json(dialogue), ensure_ascii=False, allow_nan=False)
    assert dialogue_from_json(json.loads(text.encode("utf-8"))) == dialogue
    for turn in dialogue.turns:
        if turn.audio is None:
            continue
        file = (reader.root / turn.audio.partition("#")[0]).resolve()
        assert file.is_relative_to(reader.root.resolve())
        try:
            wave_N, rate = reader.read(turn)
            assert wave_N.dim() == 1 and rate > 0
        except UserError as error:
            is_one_line(error, reader.root)


def exercise(name: str, root: Path, prepared: bool) -> None:
    layout = LAYOUTS[name]
    try:
        reader = layout.part(str(root), **layout.settings)
        for dialogue in reader.dialogues():
            is_sound(dialogue, reader)
        assert all("\n" not in issue for issue in reader.issues), reader.issues
        if prepared:
            config = PrepareConfig(out=str(root.parent / "out"), need_audio="none", max_bad_share=1.0)
            Corpus.load(prepare(reader, config).root, "full")
    except UserError as error:
        is_one_line(error, root)


@pytest.mark.parametrize("name", LAYOUTS)
def test_damaged_corpora_are_read_or_refused_in_one_line(name: str, whole: Path) -> None:
    @relaxed
    @given(seed=st.integers(0, 2**32), times=st.integers(1, 3), prepared=st.integers(0, 5))
    def check(seed: int, times: int, prepared: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "in" / "raw"
            shutil.copytree(whole / name / "raw", root)
            save_audio(root.parent / "secret.wav", noise(0.5, 16000, 1), 16000)
            rng = random.Random(seed)
            done = [mutate(root, rng) for _ in range(times) if any(path.is_file() for path in root.rglob("*"))]
            tracemalloc.reset_peak()
            try:
                exercise(name, root, prepared == 0)
            except BaseException as error:
                error.add_note(f"seed {seed}: {done}")
                raise
            assert tracemalloc.get_traced_memory()[1] < MOST_BYTES, done
            assert pa.default_memory_pool().max_memory() < MOST_BYTES, done

    check()


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_check_can_fail(name: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Reader) -> Iterator[Dialogue]:
        raise KeyError("text")

    monkeypatch.setattr(LAYOUTS[name].part, "dialogues", broken)
    with pytest.raises(KeyError):
        exercise(name, whole / name / "raw", prepared=False)
