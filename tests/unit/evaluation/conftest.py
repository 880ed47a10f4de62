"""Fixtures of the evaluation tests."""

from collections.abc import Callable

import pytest

from omnichat.evaluation.predictions import Prediction
from tests.unit.evaluation.builders import build


@pytest.fixture
def make() -> Callable[..., Prediction]:
    return build
