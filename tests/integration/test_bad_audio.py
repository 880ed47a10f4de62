"""`omnichat train` on a corpus with bad recordings: refused by default, or trained on without them by config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile


def test_a_run_goes_on_without_its_bad_recordings(omnichat: Callable, corpora: object, tmp_path: Path) -> None:
    made = tmp_path / "made"
    shutil.copytree(corpora.synthetic, made)
    (made / "audio" / "train0-2v0.flac").unlink()  # found by its absence
    bad = made / "audio" / "train1-2v1.flac"  # found when it is read: the header is as the manifest says
    frames, rate = soundfile.info(str(bad)).frames, soundfile.info(str(bad)).samplerate
    soundfile.write(str(bad), np.full(frames, np.nan, dtype=np.float32), rate, subtype="FLOAT", format="WAV")
    given = [
        *(
            each
            for each in corpora.overrides(tmp_path / "runs")
            if "sharechatx" not in each and "cache.dir" not in each
        ),
        f"mixture.sources.sharechatx.path={made}",
        f"cache.dir={tmp_path / 'cache'}",
        "name=skipping",
    ]
    refused = omnichat("train", *given)
    assert refused.code == 2 and "train0-2v0.flac: no such audio file" in refused.err
    done = omnichat("train", *given, "cache.on_bad_audio=skip", "cache.max_bad=0.2")
    assert done.code == 0, done.err
    sources = {s["name"]: s for s in json.loads((tmp_path / "runs" / "skipping" / "data.json").read_text())["sources"]}
    assert sources["sharechatx"]["left_out"] == 2 and sources["dailytalk"]["left_out"] == 0
    assert sources["sharechatx"]["splits"]["train"]["dialogues"] == 4
    lines = [json.loads(text) for text in (tmp_path / "cache" / "quarantine.jsonl").read_text().splitlines()]
    assert [Path(line["path"]).name for line in lines] == ["train0-2v0.flac", "train1-2v1.flac"]
    too_many = omnichat("train", *given, "cache.on_bad_audio=skip", "cache.max_bad=0.001", "name=stopping")
    assert too_many.code == 2 and "more than cache.max_bad=0.001 allows" in too_many.err
