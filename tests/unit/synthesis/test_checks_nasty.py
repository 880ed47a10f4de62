"""Whatever a clip holds, every check gives a finding: reasons to count, JSON measures, no exception."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from omnichat.schema import Style
from omnichat.synthesis.checks.base import Check, Clip
from omnichat.synthesis.checks.calibration import SpeakerNorm
from omnichat.synthesis.checks.styles import StyleCheck
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.utils.errors import UserError
from omnichat.utils.parts import build_part
from tests.config.composing import composed

RATE = 16000
NOISE = np.random.default_rng(0).standard_normal(40 * RATE).astype(np.float32).clip(-4, 4)
NASTY: dict[str, np.ndarray] = {
    "empty": NOISE[:0],
    "one sample": np.full(1, 0.5, dtype=np.float32),
    "two samples": np.array([0.1, -0.1], dtype=np.float32),
    "click": np.eye(1, RATE, 5, dtype=np.float32)[0],
    "short": 0.05 * NOISE[:100],
    "silence": np.zeros(2 * RATE, dtype=np.float32),
    "nearly silence": 1e-30 * NOISE[:RATE],
    "denormal": np.full(RATE, 1e-45, dtype=np.float32),
    "nan": np.full(RATE, np.nan, dtype=np.float32),
    "one nan": np.where(np.arange(RATE) == 7, np.nan, 0.05 * NOISE[:RATE]).astype(np.float32),
    "infinite": np.where(np.arange(RATE) == 7, np.inf, 0.05 * NOISE[:RATE]).astype(np.float32),
    "offset": np.full(RATE, 1.0, dtype=np.float32),
    "huge": 1e30 * NOISE[:RATE],
    "clipped": np.sign(NOISE[:RATE]),
    "forty seconds": 0.05 * NOISE,
    "stereo": 0.05 * np.stack([NOISE[:RATE]] * 2),
    "good noise": 0.05 * NOISE[: 2 * RATE],
}
TEXTS = ("Good morning to you.", "...", "x", "", "Wörter, 12 / 7 und 🙂", "word " * 60)


@pytest.fixture(scope="module")
def suite() -> CheckSuite:
    pytest.importorskip("parselmouth")
    torch.set_num_threads(1)
    tree = composed("synthesize", ["checks=full"]).checks
    suite = build_part(OmegaConf.to_container(tree, resolve=True), "checks", CheckSuite)  # type: ignore[arg-type]
    pitch, rate = {"low": 6.8, "normal": 7.0, "high": 7.3}, {"slow": -0.2, "normal": 0.0, "fast": 0.2}
    norm = SpeakerNorm((70.0, 400.0), pitch, rate, (0.03, 0.04, 0.05, 0.2, 0.1))
    styles = suite.checks["styles"]
    assert isinstance(styles, StyleCheck)
    styles.use({"speakers": {"ada": norm.as_json(), "joe": norm.as_json()}, "promises": {}})
    return suite


def clip(name: str, text: str = TEXTS[0], voice: str = "ada") -> Clip:
    return Clip(NASTY[name], RATE, text, voice, Style("low", "fast", "sad"))


def examined(check: Check, clips: list[Clip]) -> list[str]:
    finding = check.examine(clips)
    json.dumps(asdict(finding), allow_nan=False)
    assert len(finding.clips) == len(clips)
    for reason in finding.reasons:
        assert "\n" not in reason and not any(character.isdigit() for character in reason)
    if clips and not finding.reasons:
        json.dumps(check.summarise([finding]), allow_nan=False)
    return finding.reasons


CHECKS = ("signal", "styles", "speakers", "words", "mos", "diarization")


@pytest.mark.parametrize("name", [name for name in NASTY if name != "forty seconds"])
@pytest.mark.parametrize("check", CHECKS)
def test_a_nasty_clip_becomes_a_reason(suite: CheckSuite, check: str, name: str) -> None:
    reasons = examined(suite.checks[check], [clip(name), clip("good noise", voice="joe")])
    if name in ("empty", "nan", "one nan", "infinite", "huge", "stereo"):
        assert reasons, "it must never pass"


def test_a_forty_second_turn_is_refused_where_it_counts(suite: CheckSuite) -> None:
    for name in ("signal", "words"):
        assert examined(suite.checks[name], [clip("forty seconds")])
    examined(suite.checks["styles"], [clip("forty seconds")])


@pytest.mark.parametrize("name", [name for name in NASTY if name not in ("good noise", "clipped", "forty seconds")])
def test_the_first_check_alone_refuses_what_is_no_recording(suite: CheckSuite, name: str) -> None:
    assert examined(suite.checks["signal"], [clip(name)]), name


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([n for n in NASTY if n != "forty seconds"]),
            st.sampled_from(TEXTS),
            st.sampled_from(["ada", "joe"]),
        ),
        max_size=4,
    ),
    st.sampled_from([name for name in CHECKS if name != "mos"]),
)
def test_any_mixture_is_examined(suite: CheckSuite, parts: list[tuple[str, str, str]], check: str) -> None:
    examined(suite.checks[check], [clip(*part) for part in parts])


@pytest.mark.parametrize("check", ["speakers", "words", "mos", "diarization"])
def test_another_sample_rate_is_the_config_s_mistake(suite: CheckSuite, check: str) -> None:
    wrong = Clip(NASTY["good noise"], 22050, TEXTS[0], "ada", Style())
    with pytest.raises(UserError, match=r"hears 16000 Hz.*set voice\.sample_rate"):
        suite.checks[check].examine([wrong])


def test_the_list_of_checks_is_whole(suite: CheckSuite) -> None:
    assert tuple(suite.checks) == CHECKS
    settings_of: dict[str, Any] = suite.settings()
    assert json.dumps(settings_of) and set(settings_of) == set(CHECKS)
