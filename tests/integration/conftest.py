"""Corpora, and `omnichat` as a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.helpers.corpora import real_corpus, synthetic_corpus


@dataclass(frozen=True)
class Corpora:
    """Folders of a synthetic and a real corpus, and of the feature cache that all tests of a session share."""

    synthetic: Path
    real: Path
    cache: Path

    def overrides(self, runs: Path) -> list[str]:
        """Six steps of the smallest model on both corpora, with the two experts that take no time."""
        return [
            "experiment=smoke",
            "~experts.whisper",
            f"mixture.sources.sharechatx.path={self.synthetic}",
            f"mixture.sources.dailytalk.path={self.real}",
            f"cache.dir={self.cache}",
            f"runs={runs}",
            "tracking.wandb=disabled",
        ]


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Corpora:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("integration")
    return Corpora(synthetic_corpus(folder / "made"), real_corpus(folder / "spoken"), folder / "features")


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def omnichat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Outcome]]:
    """`omnichat(verb, override, ...)`, run in this process in an empty working folder."""
    from omnichat.cli import run

    work = tmp_path / "cwd"
    work.mkdir()
    monkeypatch.chdir(work)

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    yield call
