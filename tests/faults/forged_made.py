"""Forged work of others: what a chat server answers, what a voice says, what lies in the work folder."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from omnichat.synthesis.base import ScriptRequest, Utterance, Voice
from omnichat.synthesis.checks.base import Check, Clip, Finding
from omnichat.synthesis.checks.styles import StyleCheck
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.synthesis.plan import plan_corpus
from omnichat.synthesis.scenes.config import BackchannelConfig, OverlapConfig, SceneConfig
from omnichat.synthesis.sounds.folders import EventFolder
from omnichat.synthesis.sounds.recordings import Limits
from omnichat.utils.seeding import derive_seed
from tests.faults.forged import Bench, Damage, Ended, Feed, Setup, config_of, default_checks, scenes_of
from tests.faults.forged_audio import write_animals
from tests.faults.forged_text import WORDS
from tests.helpers import mutations
from tests.helpers.fault_proxy import ChatServer, Reply, completion
from tests.helpers.scripts import answer_of, grammar, openai_writer
from tests.helpers.tones import RATE, ToneVoice

DIALOGUES = {"emotion": {"train": 2, "test": 1}, "audio": {"train": 1}}
CHANGES: dict[str, Any] = {"dialogues": DIALOGUES}
Spoil = Callable[[ScriptRequest, dict[str, Any], int], "dict[str, Any] | Reply | None"]


def _events(folder: Path) -> EventFolder:
    return EventFolder(str(folder / "sounds"), None, Limits())


def _no_spoil(request: ScriptRequest, good: dict[str, Any], times: int) -> None:
    """Every answer is good."""


class Answers:
    """What the server says to each request: the grammar's script, or what `spoil` makes of it.

    `spoil` is asked for about half of the dialogues' first requests, with how often the same one came before.
    """

    def __init__(self, spoil: Spoil) -> None:
        self.spoil = spoil
        self.asked: dict[int, tuple[ScriptRequest, bool]] = {}
        self.times: Counter[int] = Counter()

    def learn(self, feed: Feed) -> None:
        """Find out all that the factory may ask."""
        config = config_of(feed, Path("unused"))
        for place, stem in enumerate(plan_corpus(config, scenes_of(feed, config))):
            for attempt in range(config.max_attempts):
                for number in range(config.script_tries):
                    request = stem.request(derive_seed(config.seed, "write", stem.id, attempt, number))
                    self.asked[request.seed % 2**31] = request, number == 0 and place % 2 == 0

    def __call__(self, body: dict[str, Any]) -> dict[str, Any] | Reply:
        request, spoilt = self.asked[body["seed"]]
        good = answer_of(grammar().write(request))
        times = self.times[body["seed"]]
        self.times[body["seed"]] += 1
        made = self.spoil(request, json.loads(json.dumps(good)), times) if spoilt else None
        return completion(json.dumps(good)) if made is None else made


def _answers(spoil: Spoil, name: str = "answers") -> Setup:
    @contextmanager
    def feed(folder: Path) -> Iterator[Feed]:
        answers = Answers(spoil)
        with ChatServer(answers) as server:
            limits = {"tries": 3, "breaker": 5, "timeout_sec": 5.0}
            writer = openai_writer(server.url, response_format="none", max_words=20, concurrency=1, limits=limits)
            fed = Feed(writer=writer, events=_events(folder), changes=CHANGES)
            answers.learn(fed)
            yield fed

    return Setup(name, write_animals, feed)


def answers_sent(bench: Bench, rng: random.Random) -> str:
    """Bodies that are huge, cut, of another type, no completion at all; once, or again and again."""
    forever = rng.random() < 0.4
    good = completion("{}")
    bodies: dict[str, Reply] = {
        "huge": (200, {}, b'{"choices": [' + b" " * 3_000_000 + b"]}"),
        "html": (200, {"content-type": "text/html"}, b"<html>Sign in</html>"),
        "another type": (200, {"content-type": "application/x-www-form-urlencoded"}, b"a=b&c=%00"),
        "no choices": (200, {}, json.dumps({**good, "choices": []}).encode()),
        "choices of text": (200, {}, json.dumps({**good, "choices": "x"}).encode()),
        "deep": (200, {}, b"[" * 100_000),
        "deep choices": (200, {}, b'{"choices": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
        "nan": (200, {}, b'{"choices": [{"message": {"content": NaN}}], "usage": {"prompt_tokens": Infinity}}'),
        "digits": (200, {}, b'{"choices": ' + b"9" * 10_000 + b"}"),
        "not UTF-8": (200, {}, b'{"choices": [{"message": {"content": "\xff\xfe"}}]}'),
        "list": (200, {}, b"[1, 2]"),
        "empty": (200, {}, b""),
        "null": (200, {}, json.dumps(completion(None)).encode()),
        "redirect": (302, {"location": "http://127.0.0.1:9/"}, b""),
        "unfit": (400, {}, b'{"error": {"message": "\x1b[31m no such field\\n\\nTraceback"}}'),
        "gzip": (200, {"content-encoding": "gzip"}, b"\x1f\x8b" + b"\0" * 50),
        "wait": (429, {"retry-after": "nan"}, b"{}"),
        "wait long": (503, {"retry-after": "-1e400"}, b"{}"),
    }
    kind = rng.choice(list(bodies))

    def spoil(request: ScriptRequest, answer: dict[str, Any], times: int) -> Reply | None:
        return bodies[kind] if forever or times < 2 else None

    bench.undamaged(_answers(_no_spoil))
    return bench.attempt(_answers(spoil), lambda folder: Damage(f"body {kind}, {'always' if forever else 'twice'}"))


def answers_shape(bench: Bench, rng: random.Random) -> str:
    """Answers that are JSON of another shape, JSON inside of other text, JSON with fields twice, or none."""
    kind = rng.choice(
        ("change", "change", "change", "fence", "think", "cut", "twice", "nest", "big", "usage", "finish")
    )

    def spoil(request: ScriptRequest, answer: dict[str, Any], times: int) -> dict[str, Any] | None:
        text = json.dumps(answer)
        if kind == "change":
            changed = mutations.change(answer, rng)[0]
            return completion(json.dumps(changed).replace(f'"{mutations.BIG}"', "1" * 5000))
        if kind in ("usage", "finish"):
            return completion(text) | {"usage": [-5, "x"]} if kind == "usage" else completion(text, finish="length")
        made = {
            "fence": f"Sure!\n```json\n{text}\n```\nIs there more?",
            "think": f"<think>{text}</think>",
            "cut": text[: len(text) // 2],
            "twice": text[:-1] + ', "topic": "another"}',
            "nest": '{"a":' * 20_000,
            "big": '{"topic": "' + "x" * 500_000 + '"}',
        }
        return completion(made[kind])

    bench.undamaged(_answers(_no_spoil))
    return bench.attempt(
        _answers(spoil), lambda folder: Damage(f"answer {kind}", invalid=kind not in ("change", "usage"))
    )


def answers_words(bench: Bench, rng: random.Random) -> str:
    """Answers of the right shape whose words are control tokens, orders, paths, or name the sound too early."""
    text, bad = rng.choice(
        [*WORDS.items(), ("Was that a {keyword} out there?", False), ("I feel so sad today.", False)]
    )
    field = rng.choice(("history", "current", "reply", "topic"))

    def spoil(request: ScriptRequest, answer: dict[str, Any], times: int) -> dict[str, Any] | None:
        said = text.replace("{keyword}", request.sound.keywords[0] if request.sound else "dog")
        if field == "history":
            answer["history"][0]["text"] = said
        elif field == "reply":
            answer["replies"][0]["text"] = said
        else:
            answer[field] = said
        return completion(json.dumps(answer))

    bench.undamaged(_answers(_no_spoil))
    invalid = bad and field != "topic"
    return bench.attempt(_answers(spoil), lambda folder: Damage(f"{field} {text[:30]!r}", invalid))


def tamper(path: Path, rng: random.Random, others: Sequence[Path]) -> str:
    """Change a kept file: a bit, its length, a value of its JSON, its content for another's."""
    content = path.read_bytes()
    kind = rng.choice(("bit", "bit", "cut", "empty", "other", "json", "json", "digit"))
    if kind == "json" and path.suffix in (".json", ".jsonl"):
        value, done = mutations.change(json.loads(content.splitlines()[0] if path.suffix == ".jsonl" else content), rng)
        path.write_text(json.dumps(value).replace(f'"{mutations.BIG}"', "1" * 5000))
        return f"{path.name}: {done}"
    if kind == "digit" and (digits := [n for n, sign in enumerate(content) if chr(sign) in "123"]):
        at = rng.choice(digits)
        path.write_bytes(content[:at] + b"7" + content[at + 1 :])
    elif kind == "other":
        path.write_bytes(rng.choice(others).read_bytes())
    elif kind == "bit" and content:
        at = rng.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :])
    else:
        path.write_bytes(b"" if kind == "empty" else content[: rng.randrange(max(1, len(content)))])
    return f"{path.name}: {kind}"


def answers_kept(bench: Bench, rng: random.Random) -> str:
    """Kept answers that were tampered with: they are asked for again, and the corpus is the same."""
    setup = _answers(_no_spoil)

    def damage(folder: Path) -> Damage:
        assert bench.run(setup, until="scripts").error is None
        files = sorted((folder / ".corpus.work" / "answers").rglob("*.json*"))
        chosen = [path for path in files if path.name != "usage.json"]
        return Damage(", ".join(tamper(path, rng, chosen) for path in rng.sample(chosen, 3)), invalid=False)

    return _must_be_the_same(bench.attempt(setup, damage))


def _must_be_the_same(said: str) -> str:
    assert said.rpartition(" -> ")[2].startswith("the same corpus"), said
    return said


class Unsound(ToneVoice):
    """Tones, but for some clips, which are what no voice should give."""

    def __init__(self, kind: str, share: float) -> None:
        self.kind, self.share, self.spoilt = kind, share, 0

    def speak_batch(self, lines: Sequence[Utterance]) -> list[np.ndarray]:
        """Some of the clips are spoilt, chosen by their seeds."""
        waves = super().speak_batch(lines)
        for number, line in enumerate(lines):
            if derive_seed(line.seed, "unsound") / 2**63 < self.share:
                self.spoilt += 1
                waves[number] = self._spoilt(waves[number])
        return waves[:-1] if self.kind == "one less" and self.share > 0 else waves

    def _spoilt(self, wave: np.ndarray) -> Any:
        if self.kind in ("nan", "inf"):
            wave = wave.copy()
            wave[len(wave) // 2] = np.nan if self.kind == "nan" else np.inf
            return wave
        if self.kind == "minutes":
            return np.resize(wave, 600 * RATE)
        made = {
            "empty": wave[:0], "one sample": wave[:1], "silent": 0 * wave, "loud": wave * 100, "none": None,
            "clipped": np.sign(wave) * np.ones_like(wave), "stereo": np.stack([wave, wave], axis=1),
            "int16": (wave * 32767).astype(np.int16), "double": wave.astype(np.float64), "complex": wave * 1j,
            "list": wave.tolist(), "text": "RIFF", "number": 0.5, "objects": np.array([None, "x"], dtype=object),
            "faint": wave * 1e-6, "one less": wave, "bools": wave > 0, "row": wave[None, :],
        }  # fmt: skip
        return made[self.kind]


UNSOUND = ("nan", "inf", "empty", "one sample", "silent", "loud", "clipped", "minutes", "stereo", "int16", "double",
           "none", "complex", "list", "text", "number", "objects", "faint", "one less", "bools", "row")  # fmt: skip


def voices(bench: Bench, rng: random.Random) -> str:
    """A voice some of whose clips are not finite, empty, silent, clipped, endless, of another type."""
    kind, share = rng.choice(UNSOUND), rng.choice((0.05, 0.05, 0.15, 1.0))
    scene = SceneConfig(
        overlap=OverlapConfig(share=0.5), backchannel=BackchannelConfig(share=1.0, turn_share=1.0, words=["Mm."])
    )

    def setup(voice: Voice) -> Setup:
        @contextmanager
        def feed(folder: Path) -> Iterator[Feed]:
            checks = CheckSuite(default_checks().checks | {"styles": StyleCheck(1.05, 1.05)})
            yield Feed(voice=voice, events=_events(folder), scene=scene, checks=checks, changes=CHANGES)

        return Setup("voices", write_animals, feed)

    bench.undamaged(setup(Unsound(kind, 0.0)))
    voice = Unsound(kind, share)
    harmless = kind in ("double", "list")  # the same samples in another form
    said = bench.attempt(setup(voice), lambda folder: Damage(f"voice {kind} {share:.0%}", invalid=False))
    how = said.rpartition(" -> ")[2]
    if voice.spoilt and not harmless:
        assert how.startswith(("told", "error", "the same corpus")), f"{voice.spoilt} spoilt clips: {said}"
    return f"{voice.spoilt} clips of {said}"


class LevelCheck(Check):
    """Measures a speaker before the first dialogue, as checks that compare styles do; rejects nothing."""

    name = "level"

    def __init__(self) -> None:
        self._levels: dict[str, float] = {}

    def calibrate(self, voice: Voice, speakers: Sequence[str]) -> dict[str, Any]:
        """See `Check.calibrate`."""
        rng = random.Random(0)
        return {name: round(rng.random() + len(name), 4) for name in speakers}

    def use(self, calibration: dict[str, Any]) -> None:
        """See `Check.use`."""
        self._levels = {name: float(value) for name, value in calibration.items()}

    def examine(self, clips: Sequence[Clip]) -> Finding:
        """See `Check.examine`."""
        return Finding([], [{"level": self._levels[clip.voice]} for clip in clips])

    def thresholds(self) -> dict[str, float]:
        """None."""
        return {}

    def summarise(self, findings: Sequence[Finding]) -> dict[str, Any]:
        """See `Check.summarise`."""
        return {"mean": float(np.mean([clip["level"] for finding in findings for clip in finding.clips]))}


def _worked() -> Setup:
    @contextmanager
    def feed(folder: Path) -> Iterator[Feed]:
        checks = CheckSuite(default_checks().checks | {"level": LevelCheck()})
        yield Feed(events=_events(folder), checks=checks, changes=CHANGES)

    return Setup("work", write_animals, feed)


def _stopped(bench: Bench, rng: random.Random) -> str:
    until = rng.choice(("speech", "checks", "scenes", "scenes"))
    ended: Ended = bench.run(_worked(), until=until)
    assert ended.error is None, ended.error
    return until


def work_files(bench: Bench, rng: random.Random) -> str:
    """Torn, flipped, foreign and forged files in the work folder: made again, and the corpus is the same."""

    def damage(folder: Path) -> Damage:
        until = _stopped(bench, rng)
        files = sorted(path for path in (folder / ".corpus.work").rglob("*") if path.is_file())
        documents = [path for path in files if path.suffix == ".json"]
        chosen = {*rng.sample(files, 2), *rng.sample(documents, min(4, len(documents)))}
        done = [tamper(path, rng, [p for p in files if p.suffix == path.suffix]) for path in sorted(chosen)]
        return Damage(f"until={until}: {', '.join(done)}", invalid=False)

    return _must_be_the_same(bench.attempt(_worked(), damage))


def work_entries(bench: Bench, rng: random.Random) -> str:
    """Entries of the work folder that are links, folders, foreign or gone: nothing outside is touched."""
    kind = rng.choice(
        ("file link", "entry link", "corpus link", "outside link", "folder", "gone", "swapped", "file", "traversal")
    )

    def damage(folder: Path) -> Damage:
        until = _stopped(bench, rng)
        work, outside = folder / ".corpus.work", folder / "outside"
        entries = sorted(path for path in [*work.glob("stems/*"), *work.glob("speech/*")] if path.is_dir())
        files = sorted(path for path in work.rglob("*") if path.is_file() and path.parent != work)
        path, entry = rng.choice(files), rng.choice(entries)
        if kind in ("file link", "folder", "gone"):
            path.unlink()
            if kind == "file link":
                path.symlink_to(rng.choice((outside / "canary.txt", outside / "canary.wav")))
            elif kind == "folder":
                path.mkdir()
        elif kind in ("entry link", "outside link", "file"):
            shutil.rmtree(entry)
            if kind == "file":
                entry.write_bytes(b"x")
            else:
                entry.symlink_to(outside if kind == "outside link" else rng.choice([e for e in entries if e != entry]))
        elif kind == "corpus link":
            shutil.rmtree(work / "corpus", ignore_errors=True)
            (work / "corpus").symlink_to(outside)
        elif kind == "swapped":
            other = rng.choice([each for each in entries if each != entry])
            for one, two in ((entry, work / "x"), (other, entry), (work / "x", other)):
                os.rename(one, two)
        else:
            for document in work.glob("stems/*/outcome.json"):
                document.write_text(document.read_text().replace('"h0.flac"', '"../../../outside/canary.wav"'))
        return Damage(f"until={until}: {kind} {path.name}", invalid=False)

    return _must_be_the_same(bench.attempt(_worked(), damage))
