"""`omnichat speak` with the packaged voice, Whisper and DNSMOS."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from omnichat.evaluation.predictions import write_predictions
from tests.integration.conftest import Outcome
from tests.unit.evaluation.builders import build

Cli = Callable[..., Outcome]


@pytest.mark.slow
def test_replies_are_spoken_understood_and_told_from_nothing(tmp_path: Path, omnichat: Cli) -> None:
    pytest.importorskip("piper")
    pytest.importorskip("parselmouth")
    path = tmp_path / "run" / "predictions" / "test.jsonl"
    texts = ["I am so sorry to hear that your dog is ill.", "", "That is wonderful news, well done!"]
    write_predictions(path, [build(f"d{n}", 3, hypothesis=t, got="neutral") for n, t in enumerate(texts)])
    outcome = omnichat("speak", f"predictions={tmp_path / 'run'}", "speaker=joe")
    assert outcome.code == 0, outcome.err
    rows = [json.loads(line) for line in path.with_name("test.speech.jsonl").read_text().splitlines()]
    assert rows[0]["reply_wer"] <= 0.1 and rows[2]["reply_wer"] <= 0.2
    assert rows[1] == {"source": "toy", "id": "d1#3", "reply_wer": 1.0, "reply_dnsmos": None, "audio_file": None}
    assert all(2.0 < rows[n]["reply_dnsmos"] < 4.5 and (path.parent / rows[n]["audio_file"]).is_file() for n in (0, 2))
    assert "1 replies could not be spoken" in outcome.out and "the reply is empty (1)" in outcome.out
    assert outcome.out.splitlines()[-1] == f"next: omnichat score predictions={path}"
    before = path.with_name("test.speech.jsonl").read_bytes()
    again = omnichat("speak", f"predictions={path}", "speaker=joe")
    assert again.code == 0 and "3 of 3 replies were spoken before" in again.err
    assert path.with_name("test.speech.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["predictions=nowhere"], "predictions=nowhere: no such file or folder"),
        (["speaker=eve"], "speaker='eve' is not valid"),
        (["checks.words=null"], "checks.words must be there"),
        (["+checks.style=null"], "checks='style' is not valid; choose one of: words, mos"),
        (["checks.words.dtype=float8"], "checks.words.dtype='float8' is not valid"),
        (["batch=0"], "batch must be at least 1"),
    ],
)
def test_mistakes_are_one_line(settings: list[str], message: str, tmp_path: Path, omnichat: Cli) -> None:
    pytest.importorskip("piper")
    write_predictions(tmp_path / "test.jsonl", [build()])
    given = [] if settings[0].startswith("predictions") else [f"predictions={tmp_path / 'test.jsonl'}"]
    outcome = omnichat("speak", *given, *settings)
    last = outcome.err.strip().splitlines()[-1]
    assert outcome.code == 2 and message in last and "Traceback" not in outcome.err
