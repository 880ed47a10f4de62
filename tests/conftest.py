"""Fixtures that several test folders share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from omnichat.data.corpus import Corpus


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A synthetic corpus of tones: 7 dialogues to train on, 3 of the dev split."""
    from tests.helpers_core import make_corpus  # here: tests that need no torch must not wait for it

    return make_corpus(tmp_path_factory.mktemp("corpora") / "made", count=7, dev=3, seed=1)


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A real corpus (so it says) of tones: 5 dialogues to train on, 2 of the dev split."""
    from tests.helpers_core import make_corpus

    return make_corpus(tmp_path_factory.mktemp("corpora") / "spoken", kind="real", count=5, dev=2, seed=2)
