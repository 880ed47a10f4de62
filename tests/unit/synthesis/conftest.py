"""Parts for synthesis tests that need no model: a voice of tones that says nothing, and lenient checks."""

from __future__ import annotations

import pytest

from tests.helpers.tones import ToneVoice


@pytest.fixture
def tone_voice() -> ToneVoice:
    return ToneVoice()
