"""Forged inputs of the factory: what is fed to it, under which bounds it runs, and what must be true afterwards.

A case builds a small valid input, damages it, and hands it to `synthesize` with the real parts (a voice of tones in
place of a model). The run ends in one line that says what is wrong, or in a corpus; nothing else. A corpus is not
poisoned: it passes `omnichat data validate`, its recordings and words are clean, nothing outside of its folder was read
into it or written. And what was wrong is told: by the error, a warning, a source's issues, or the corpus's rejects.
"""

from __future__ import annotations

import logging
import random
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from omnichat.audio.io import save_audio
from omnichat.data.validate import validate
from omnichat.synthesis.base import ScriptWriter, Voice
from omnichat.synthesis.checks.signal import SignalCheck
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.synthesis.pipeline import synthesize
from omnichat.synthesis.plan import SynthesisConfig
from omnichat.synthesis.scenes.config import SceneConfig
from omnichat.synthesis.scenes.maker import SceneMaker
from omnichat.synthesis.sounds.base import SoundSource
from omnichat.synthesis.topics.base import TopicSource
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_jsonl, sha256_file
from tests.helpers.scripts import grammar
from tests.helpers.tones import RATE, ToneVoice

LIMIT_SEC = 120  # a case that takes longer hangs
SPACE_BYTES = 3 << 30  # of addresses that a case may ask for
MEMORY_BYTES = 400 << 20  # that it may touch
MESSAGE_CHARS = 1000
TOKEN = "canary-5d1c0f7e"  # stands in the file that no run may read
CANARY_HZ = 3333.0
CONTROL = re.compile(r"<\|[^<>]{0,60}\|>|</?s>|\[/?INST\]|<(?:pad|unk|bos|eos|audio|start_of_turn|end_of_turn)>")
MARKUP = "alert(1)"


@dataclass(slots=True)
class Feed:
    """The parts of one run; None = what a run has by default.

    Attributes:
        changes: of the settings. told: further places where a part says what it could not use, asked after the run.
    """

    writer: ScriptWriter | None = None
    voice: Voice | None = None
    events: SoundSource | None = None
    music: SoundSource | None = None
    topics: TopicSource | None = None
    scene: SceneConfig = field(default_factory=SceneConfig)
    checks: CheckSuite | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    told: Callable[[], list[str]] = list


@dataclass(frozen=True, slots=True)
class Damage:
    """What was done to an input. `invalid`: it surely is none any more, so the run must tell."""

    did: str
    invalid: bool = True


@dataclass(frozen=True, slots=True)
class Setup:
    """A valid input and the run that takes it.

    Attributes:
        name: of the undamaged corpus, which is made once.
        build: writes the input below a folder. feed: the parts made of it, alive inside the context.
    """

    name: str
    build: Callable[[Path], None]
    feed: Callable[[Path], AbstractContextManager[Feed]]


@dataclass(slots=True)
class Ended:
    """How a run ended: the error's line or a corpus, and all else that it told."""

    error: str | None
    corpus: Path | None
    told: list[str]


@dataclass(slots=True)
class Bench:
    """A folder in which cases follow each other, always in the same place, so that corpora can be compared."""

    root: Path
    whole: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Of the case at hand."""
        return self.root / "case"

    def fresh(self, setup: Setup) -> None:
        """An undamaged input, beside files that nobody may touch."""
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "outside").mkdir(parents=True)
        (self.folder / "outside" / "canary.txt").write_text(f"{TOKEN}\n")
        t = np.arange(RATE) / RATE
        save_audio(self.folder / "outside" / "canary.wav", 0.3 * np.sin(2 * np.pi * CANARY_HZ * t), RATE)
        setup.build(self.folder)

    def undamaged(self, setup: Setup) -> dict[str, str]:
        """Files of the corpus that the undamaged input makes."""
        if setup.name not in self.whole:
            self.fresh(setup)
            ended = self.run(setup)
            assert ended.corpus is not None, f"the undamaged input made no corpus: {ended.error}"
            self.whole[setup.name] = files_of(ended.corpus)
        return self.whole[setup.name]

    def attempt(self, setup: Setup, damage: Callable[[Path], Damage]) -> str:
        """One case: build, damage, run, judge. Returns what was done and how it ended, in a line."""
        whole = self.undamaged(setup)
        self.fresh(setup)
        done = damage(self.folder)
        return self.judge(setup, done, whole)

    def judge(self, setup: Setup, done: Damage, whole: dict[str, str]) -> str:
        """Run on what is there now; raise AssertionError unless every promise was kept."""
        before = files_of(self.folder, but=("corpus", ".corpus.work"))
        try:
            ended = self.run(setup)
        except Exception as error:
            error.add_note(f"after: {done.did}")
            raise
        try:
            return f"{done.did} -> {self._verdict(ended, done, whole, before)}"
        except AssertionError as error:
            error.add_note(f"after: {done.did}")
            error.add_note(f"told: {ended.error} {ended.told[:5]}")
            raise

    def _verdict(self, ended: Ended, done: Damage, whole: dict[str, str], before: dict[str, str]) -> str:
        after = files_of(self.folder, but=("corpus", ".corpus.work"))
        assert after == before, (
            f"files outside of the corpus changed: {sorted(set(after.items()) ^ set(before.items()))}"
        )
        if ended.error is not None:
            check_message(ended.error)
            assert not (self.folder / "corpus").exists(), "an error, and a corpus all the same"
            return f"error: {ended.error.replace(str(self.root), '')}"
        assert ended.corpus is not None
        check_corpus(ended.corpus)
        if files_of(ended.corpus) == whole:
            return "the same corpus" + (f"; told: {ended.told[0][:120]}" if ended.told else "")
        assert ended.told or not done.invalid, "the corpus is another one, and nothing was told"
        if not ended.told:
            return "a valid input, another corpus"
        return f"told: {ended.told[0].replace(str(self.root), '')[:160]}"

    def run(self, setup: Setup, **changes: Any) -> Ended:
        """Make the corpus of the input that is there, under the bounds."""
        out = self.folder / "corpus"
        with warnings_of() as told, bounds(), self._fed(setup) as fed:
            try:
                made = None if isinstance(fed, str) else self._synthesize(fed, out, changes)
                error = fed if isinstance(fed, str) else None
            except UserError as mistake:
                made, error = None, str(mistake)
            found = list(told) if isinstance(fed, str) else [*told, *self._issues(fed)]
        corpus = out if made is not None and made.corpus is not None else None
        if corpus is not None:
            found += [f"{row['stage']}: {', '.join(row['reasons'])}" for row in read_jsonl(corpus / "rejected.jsonl")]
        return Ended(error, corpus, found)

    @contextmanager
    def _fed(self, setup: Setup) -> Iterator[Feed | str]:
        """The parts, or the error's line where they refuse the input."""
        context = setup.feed(self.folder)
        try:
            fed = context.__enter__()
        except UserError as mistake:
            yield str(mistake)
            return
        try:
            yield fed
        finally:
            context.__exit__(None, None, None)

    @staticmethod
    def _issues(fed: Feed) -> list[str]:
        return [line for source in (fed.events, fed.music) if source is not None for line in source.issues] + fed.told()

    @staticmethod
    def _synthesize(fed: Feed, out: Path, changes: dict[str, Any]) -> Any:
        settings = config_of(fed, out, **changes)
        scenes = scenes_of(fed, settings)
        writer, voice = fed.writer or grammar(), fed.voice or ToneVoice()
        return synthesize(settings, writer, voice, fed.checks or default_checks(), scenes, fed.topics)


def config_of(fed: Feed, out: Path, **changes: Any) -> SynthesisConfig:
    """The settings of a case's run: a few short dialogues."""
    settings: dict[str, Any] = {
        "dialogues": {"audio": {"train": 2, "test": 1}},
        "history_turns": {2: 1.0},
        "variants_per_dialogue": 2,
        "max_attempts": 3,
        "max_words": 20,
        "script_tries": 5,
        "workers": 1,
        "check_disk": False,
    }
    return SynthesisConfig(name="forged", out=str(out), scene=fed.scene, **(settings | fed.changes | changes))


def scenes_of(fed: Feed, settings: SynthesisConfig) -> SceneMaker:
    """The scenes of a run."""
    return SceneMaker(settings.scene, fed.events, fed.music, RATE)


def default_checks() -> CheckSuite:
    """The packaged check that hears no words, for tones have none, and learns no speakers, for that takes a second."""
    limits = {"min_seconds": 0.1, "max_seconds": 20.0, "min_level_db": -40.0, "max_level_db": 0.0}
    return CheckSuite({"signal": SignalCheck(**limits, max_clipped=0.0, min_active=0.1)})


def check_message(line: str) -> None:
    """Raise AssertionError unless an error is one readable line."""
    assert line.strip() and len(line) <= MESSAGE_CHARS, f"a message of {len(line)} characters: {line[:300]!r}"
    unreadable = [sign for sign in line if not sign.isprintable()]
    assert not unreadable, f"a message that is no readable line: {line[:300]!r}"


def check_corpus(root: Path) -> None:
    """Raise AssertionError where a corpus is not what a corpus must be, or holds what does not belong there."""
    wrong = {check.name: check.offenders[:3] for check in validate(root, "full") if check.state == "failed"}
    assert not wrong, f"validate: {wrong}"
    for row in read_jsonl(root / "manifest.jsonl"):
        for text in strings(row):
            assert CONTROL.search(text) is None, f"a control token in the corpus: {text[:200]!r}"
            assert text.isprintable(), f"a control character in the corpus: {text[:200]!r}"
        for turn in row["turns"]:
            check_recording(root / turn["audio"], turn["seconds"], turn["sample_rate"])
            assert not set(turn["text"]) & set("<>{}[]|"), f"signs that no one says: {turn['text']!r}"
        if "audio" in row.get("scene", {}):
            check_recording(root / row["scene"]["audio"])
    for path in root.rglob("*"):
        assert not path.is_symlink(), f"{path} is a link"
        if path.is_file():
            content = path.read_bytes()
            assert TOKEN.encode() not in content, f"{path} holds what stands outside of the input"
            if path.suffix in (".html", ".md", ".svg"):
                assert f"<script>{MARKUP}".encode() not in content and b"<img src=x" not in content, f"{path}: markup"


def check_recording(path: Path, seconds: float | None = None, rate: int = RATE) -> None:
    """Raise AssertionError unless a recording is whole, finite, audible, in range, and none of the canary's."""
    wave, found = soundfile.read(path, dtype="float64")
    assert wave.ndim == 1 and found == rate and len(wave) > 0, path
    assert np.isfinite(wave).all() and np.abs(wave).max() <= 1.0, path
    assert np.abs(wave).max() > 1e-4, f"{path} is silent"
    assert seconds is None or abs(len(wave) / rate - seconds) < 1e-6, path
    if seconds is None:
        spectrum = np.abs(np.fft.rfft(wave)) ** 2
        at = round(CANARY_HZ * len(wave) / rate)
        share = spectrum[max(0, at - 3) : at + 4].sum() / spectrum.sum()
        assert share < 0.5, f"{path} is the recording that stands outside of the input"


def strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def files_of(folder: Path, but: tuple[str, ...] = ()) -> dict[str, str]:
    """Every file below a folder with the hash of its content; a link with its target. `but`: entries to pass over."""
    found = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if relative.parts[0] in but:
            continue
        if path.is_symlink():
            found[str(relative)] = f"-> {path.readlink()}"
        elif path.is_file():
            found[str(relative)] = sha256_file(path)
    return found


@contextmanager
def warnings_of() -> Iterator[list[str]]:
    """What the package warns of meanwhile."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger("omnichat"), Keep(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


class Hangs(BaseException):
    """A case took too long."""


@contextmanager
def bounds() -> Iterator[None]:
    """Time and memory of a case. Raises Hangs, or MemoryError where more addresses are asked for than allowed."""

    def stop(*_: Any) -> None:
        raise Hangs(f"more than {LIMIT_SEC} s")

    earlier = signal.signal(signal.SIGALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if now := _status("VmSize"):
        resource.setrlimit(resource.RLIMIT_AS, (now + SPACE_BYTES, hard))
    _forget_peak()
    start = _status("VmRSS")
    signal.alarm(LIMIT_SEC)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    grown = _status("VmHWM") - start
    assert grown <= MEMORY_BYTES, f"{grown >> 20} MB were asked for"


def _status(name: str) -> int:
    """A figure of this process in bytes, 0 where the system does not say."""
    path = Path("/proc/self/status")
    found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE) if path.is_file() else None
    return int(found[1]) << 10 if found else 0


def _forget_peak() -> None:
    """Let VmHWM begin anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        logging.getLogger(__name__).debug("the peak of memory is that of the whole process: %s", error)


Kind = Callable[[Bench, random.Random], str]
