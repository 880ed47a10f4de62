"""The kinds of faults: what is done to a run, and the proof that the promise held.

Each is `kind(place, rng, name)`: a place with undisturbed runs, the fault's own randomness, the name of its run.
An AssertionError says what did not hold.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from omnichat.training.checkpoint import FILES, MARKER, SPARE_BYTES, checkpoints, verify
from omnichat.training.identity import FAMILIES
from omnichat.utils.files import read_json, read_jsonl, sha256_file
from tests.faults import inject
from tests.faults.harness import STEPS, Ended, Place, files_of, same_end
from tests.helpers_core import rows

Kind = Callable[[Place, random.Random, str], None]
KILLED, STOPPED, MISTAKE = -signal.SIGKILL, 128 + signal.SIGTERM, 2


class Skipped(Exception):
    """This machine cannot do this to a run; the message says why."""


def expect(ended: Ended, code: int, *words: str) -> None:
    """Raise AssertionError unless a command ended with this code and, where words are given, one line that has all."""
    assert ended.code == code, f"exit code {ended.code} instead of {code}: {ended.output[-2000:]}"
    if words:
        assert "Traceback" not in ended.output, ended.output[-2000:]
        missing = [word for word in words if word not in ended.error]
        assert not missing, f"the error lacks {missing}: {ended.error!r}"


def kill_step(place: Place, rng: random.Random, name: str) -> None:
    """kill -9 in a step: before it, with its gradients there, or after its update."""
    step, where = rng.randrange(STEPS), rng.choice(("begin", "backward", "end"))
    expect(place.command(place.train(name), lambda: inject.at_step(step, where, inject.die)), KILLED)
    expect(place.command(place.train(name)), 0)
    same_end(place.run(name), place.baseline())


def kill_moment(place: Place, rng: random.Random, name: str) -> None:
    """kill -9 at any moment of the process's life, wherever that finds it."""
    expect_any(place.command(place.train(name), kill_after_sec=rng.uniform(0.2, place.seconds)), (KILLED, 0))
    expect(place.command(place.train(name)), 0)
    same_end(place.run(name), place.baseline())


def expect_any(ended: Ended, codes: tuple[int, ...]) -> None:
    """Raise AssertionError unless a command ended with one of these codes."""
    assert ended.code in codes, f"exit code {ended.code} instead of {codes}: {ended.output[-2000:]}"


def kill_write(place: Place, rng: random.Random, name: str) -> None:
    """kill -9 before one of the calls that write checkpoints: flushes, renames, removals of old ones."""
    number = rng.randrange(place.writes)
    expect(place.command(place.train(name), lambda: inject.at_write(number, inject.die)), KILLED)
    for path in checkpoints(place.run(name) / "checkpoints"):
        verify(path)
    expect(place.command(place.train(name)), 0)
    same_end(place.run(name), place.baseline())
    left = [path.name for path in (place.run(name) / "checkpoints").glob(".*")]
    assert not left, f"the next writer has not tidied up: {left}"


def torn_write(place: Place, rng: random.Random, name: str) -> None:
    """kill -9 in the middle of a tensor file."""
    number = rng.randrange(2 * (STEPS // 2))
    expect(place.command(place.train(name), lambda: inject.torn_write(number)), KILLED)
    expect(place.command(place.train(name)), 0)
    same_end(place.run(name), place.baseline())


def many_kills(place: Place, rng: random.Random, name: str) -> None:
    """Three kills and stops, one after another, within one run (and one pass over the data)."""
    for step in sorted(rng.sample(range(1, STEPS), 3)):
        fault, code = rng.choice(((inject.die, KILLED), (inject.ask, STOPPED)))

        def prepare(step: int = step, fault: inject.Action = fault) -> None:
            inject.at_step(step, "backward", fault)

        expect(place.command(place.train(name), prepare), code)
    expect(place.command(place.train(name)), 0)
    same_end(place.run(name), place.baseline())


def sigterm_step(place: Place, rng: random.Random, name: str) -> None:
    """SIGTERM in a step: saved after it, exit code 143, REQUEUE until the next start."""
    step = rng.randrange(STEPS - 1)
    _stopped(place, name, step + 1, lambda: inject.at_step(step, "backward", inject.ask))


def sigterm_dev(place: Place, rng: random.Random, name: str) -> None:
    """SIGTERM during a dev loss: it is given up, the step is saved, the dev loss is taken by the next start."""
    number = rng.randrange(2)
    _stopped(place, name, 4, lambda: inject.at_dev_batch(number, inject.ask))
    assert [row["step"] for row in rows(place.run(name), "dev")] == [4, 8]


def _stopped(place: Place, name: str, saved: int, prepare: Callable[[], None]) -> None:
    run = place.run(name)
    expect(place.command(place.train(name), prepare), STOPPED)
    assert checkpoints(run / "checkpoints")[-1].name == f"step-{saved:06d}"
    asked = read_json(run / "REQUEUE")
    assert asked["step"] == saved and asked["signal"] == "SIGTERM" and asked["command"].startswith("omnichat train")
    assert read_json(run / "run.json")["state"] == "stopped"
    expect(place.command(place.train(name)), 0)
    assert not (run / "REQUEUE").exists()
    same_end(run, place.baseline())


def stop_evaluate(place: Place, rng: random.Random, name: str) -> None:
    """SIGTERM or kill -9 while replies are decoded: older predictions stay, the next call ends with the same."""
    whole = place.evaluated()
    run = place.copy(whole, name)
    old = files_of(run / "predictions") | {"metrics": sha256_file(run / "metrics.json")}
    fault, code = rng.choice(((inject.die, KILLED), (inject.ask, STOPPED)))
    number, torn = rng.randrange(2), rng.random() < 0.5 and fault is inject.die
    expect(place.command(place.evaluate(run), lambda: inject.at_decoded_batch(number, fault, torn)), code)
    partial = run / "predictions" / ".dev.partial.jsonl"
    kept = len(partial.read_bytes().splitlines()) - 1
    now = files_of(run / "predictions") | {"metrics": sha256_file(run / "metrics.json")}
    assert {k: v for k, v in now.items() if k != partial.name} == old, "older predictions were touched"
    assert (run / "REQUEUE").is_file() == (code == STOPPED)
    ended = place.command(place.evaluate(run))
    expect(ended, 0)
    assert ("were decoded before" in ended.output) == (kept - torn > 0)
    now = files_of(run / "predictions") | {"metrics": sha256_file(run / "metrics.json")}
    assert now == old, "the continued evaluation differs from the undisturbed one"
    assert not (run / "REQUEUE").exists()


def nan_skip(place: Place, rng: random.Random, name: str) -> None:
    """NaN in one recording: its steps are skipped and named, also over a kill, and nothing else is hurt."""
    train = [*place.train(name), "trainer.max_skips=20", "cache.dtype=float32"]
    poison = place.poison()
    whole = place.baseline("poisoned", lambda: inject.poison(poison), "trainer.max_skips=20", "cache.dtype=float32")
    skipped = {row["step"] for row in rows(whole, "skip")}
    assert skipped and len(skipped) < STEPS, skipped
    guilty = {
        f"{dialogue.id}"
        for corpus in place.corpora.values()
        for dialogue in corpus.dialogues
        if any(turn.sha256 == poison for turn in dialogue.turns)
    }
    assert all(guilty & set(row["dialogues"]) for row in rows(whole, "skip"))
    assert all(math.isfinite(row["loss"]) for row in rows(whole, "step"))
    step = rng.randrange(STEPS)

    def prepare() -> None:
        inject.poison(poison)
        inject.at_step(step, "end", inject.die)

    expect(place.command(train, prepare), KILLED)
    expect(place.command(train, lambda: inject.poison(poison)), 0)
    assert {row["step"] for row in rows(place.run(name), "skip")} == skipped
    same_end(place.run(name), whole)


def nan_stop(place: Place, rng: random.Random, name: str) -> None:
    """NaN in every recording: after the budget of skips the run stops and names the dialogues."""
    budget = rng.randrange(3)
    ended = place.command([*place.train(name), f"trainer.max_skips={budget}"], lambda: inject.poison("*"))
    expect(ended, MISTAKE, f"not finite in {budget + 1} steps in a row", "made-")
    assert not rows(place.run(name), "step") and len(rows(place.run(name), "skip")) == budget + 1


def disk_refuses(place: Place, rng: random.Random, name: str) -> None:
    """A disk full (or read-only) at some write of a checkpoint: one line, older ones intact, and later it goes on."""
    number, fault = rng.randrange(place.first_checkpoint, place.writes), rng.choice((inject.fill, inject.refuse))
    ended = place.command(place.train(name), lambda: inject.at_write(number, fault))
    expect_any(ended, (MISTAKE, 0))  # 0: what failed was the removal of an old one, which the next save repeats
    if ended.code == MISTAKE:
        expect(ended, MISTAKE, f"{place.run(name)}/checkpoints", "it needs", "MB are free")
    kept = checkpoints(place.run(name) / "checkpoints")
    assert kept, "the older checkpoint is gone"
    for path in kept:
        verify(path)
    expect(place.command(place.train(name)), 0)
    same_end(place.run(name), place.baseline())


def disk_full(place: Place, rng: random.Random, name: str) -> None:
    """A real file system that has room for one checkpoint and a half."""
    run = place.run(name)
    run.mkdir(parents=True)
    size = sum(path.stat().st_size for path in checkpoints(place.baseline() / "checkpoints")[-1].iterdir())
    quota = rng.random() < 0.5  # then nobody says how much is free, and writing itself fails
    room = (int(1.5 * size) + (0 if quota else SPARE_BYTES)) // 1024 + 40
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={room}k", "tmpfs", str(run)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        run.rmdir()
        raise Skipped(f"no right to mount a small file system: {mounted.stderr.strip()}")
    try:
        ended = place.command(place.train(name), inject.hide_disk_usage if quota else None)
        expect(ended, MISTAKE, f"{run}/checkpoints", "No space left", "it needs", "MB are free")
        [kept] = checkpoints(run / "checkpoints")
        verify(kept)
        subprocess.run(["mount", "-o", "remount,size=64m", str(run)], check=True)
        expect(place.command(place.train(name)), 0)
        same_end(run, place.baseline())
    finally:
        subprocess.run(["umount", str(run)], check=True)


def damage(place: Place, rng: random.Random, name: str) -> None:
    """A damaged file in the newest checkpoint: named and passed over by resume=auto, refused by resume=<path>."""
    expect(place.command(place.train(name), lambda: inject.at_step(5, "begin", inject.ask)), STOPPED)
    newest = checkpoints(place.run(name) / "checkpoints")[-1]
    file = newest / rng.choice(FILES)
    content = file.read_bytes()
    at = rng.randrange(len(content))
    file.write_bytes(
        rng.choice((content[:at], content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :], content + b"\0"))
    )
    if rng.random() < 0.3:
        file.unlink()
    expect(place.command([*place.train(name), f"resume={newest}"]), MISTAKE, str(file))
    ended = place.command(place.train(name))
    expect(ended, 0)
    assert str(file) in ended.output and "trying the one before it" in ended.output
    same_end(place.run(name), place.baseline())


def canary(place: Place, rng: random.Random, name: str) -> None:
    """A pickle in a checkpoint, with a marker to match: refused, and never run."""
    run = place.copy(place.baseline(), name)
    path, sung = checkpoints(run / "checkpoints")[-1], run / "sung"
    (path / rng.choice(FILES)).write_bytes(pickle.dumps(_Canary(sung)))
    entries = {n: {"bytes": (path / n).stat().st_size, "sha256": sha256_file(path / n)} for n in FILES}
    (path / MARKER).write_text(json.dumps({"step": STEPS, "files": entries}))
    expect(place.command(place.train(name)), MISTAKE, str(path), "not readable")
    assert not sung.exists()


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def torn_log(place: Place, rng: random.Random, name: str) -> None:
    """The last line of log.jsonl torn by a kill: the next start ends it, and every row is readable."""
    step = rng.choice((3, 5, 7))  # its row is the last one, written after the last checkpoint
    expect(place.command(place.train(name), lambda: inject.at_step(step, "end", inject.die)), KILLED)
    log = place.run(name) / "log.jsonl"
    content = log.read_bytes()
    log.write_bytes(content[: len(content) - rng.randrange(1, len(content.splitlines()[-1]))])
    expect(place.command(place.train(name)), 0)
    assert [row["step"] for row in rows(place.run(name), "end")] == [STEPS]
    same_end(place.run(name), place.baseline())


def bad_manifest(place: Place, rng: random.Random, name: str) -> None:
    """A malformed line in a manifest: refused by file and line before anything is loaded."""
    corpus = place.folder / f"{name}-corpus"
    shutil.copytree(place.corpora["made"].root, corpus)
    manifest = next(path for path in sorted(corpus.glob("*.jsonl")) if read_jsonl(path))
    lines = manifest.read_text().splitlines()
    number = rng.randrange(len(lines))
    lines[number] = rng.choice((lines[number][: len(lines[number]) // 2], "[1]", '{"id": 7}', "NaN", "\0"))
    manifest.write_text("\n".join(lines) + "\n")
    ended = place.command([*place.train(name), f"mixture.sources.made.path={corpus}"])
    expect(ended, MISTAKE, f"{manifest.name}:{number + 1}")
    assert not place.run(name).exists()


def changed(place: Place, rng: random.Random, name: str) -> None:
    """A run continued under other data, config or experts: refused with the word to add, and goes on with it."""
    run = place.copy(place.baseline(), name)
    before = (run / "config.yaml").read_bytes()
    word, key, override = rng.choice(
        (
            ("config", "config.trainer.steps", f"trainer.steps={STEPS + 2}"),
            ("config", "config.trainer.optim.lr_lora", "trainer.optim.lr_lora=0.001"),
            ("data", "config.mixture.sources.made.weight", "+mixture.sources.made.weight=2"),
            ("data", "data.made", f"mixture.sources.made.path={place.other().root}"),
            ("experts", "config.experts.mert.dtype", "experts.mert.dtype=bfloat16"),
        )
    )
    words = [*place.train(name), override]
    others = ",".join(family for family in FAMILIES if family != word)
    for despite in ("", others):
        ended = place.command([*words, f"resume_despite=[{despite}]"])
        expect(ended, MISTAKE, key, "this run has", "resume_despite=[")
    assert (run / "config.yaml").read_bytes() == before, "a refused start has changed config.yaml"
    expect(place.command([*words, f"resume_despite=[{word}]"]), 0)
    [event] = rows(run, "resume_despite")
    assert key in [change["key"] for change in event["changes"]]
    assert read_json(run / "run.json")["resumed_despite"] == event["changes"]


def corrupt_audio(place: Place, rng: random.Random, name: str) -> None:
    """A recording cut in half, emptied or gone: named before the first step, not heard as silence.

    One that the model hears, a turn of A's: of the others the header alone is read.
    """
    corpus = place.folder / f"{name}-corpus"
    shutil.copytree(place.corpora["made"].root, corpus)
    dialogues = [dialogue for dialogue in place.corpora["made"].dialogues if dialogue.split == "train"]
    turns = [t for d in dialogues for t in d.turns if t.audio is not None and t.speaker == "A"]
    audio = rng.choice(turns).audio
    assert audio is not None
    content = (corpus / audio).read_bytes()
    (corpus / audio).unlink()
    if (how := rng.choice(("half", "empty", "gone", "noise"))) != "gone":
        noise = rng.randbytes(len(content))
        (corpus / audio).write_bytes({"half": content[: len(content) // 2], "empty": b"", "noise": noise}[how])
    words = [*place.train(name), f"mixture.sources.made.path={corpus}", f"cache.dir={place.folder}/{name}-cache"]
    expect(place.command(words), MISTAKE, Path(audio).name)
    shutil.copy(place.corpora["made"].root / audio, corpus / audio)
    expect(place.command(words), 0)
    same_end(place.run(name), place.baseline())


def silent(place: Place, rng: random.Random, name: str) -> None:
    """A corpus half of which has no recordings: killed and continued, batches of words alone among the others."""
    if "silent" not in place.whole:
        place.silent()
    words = [*place.train(name), f"mixture.sources.made.path={place.folder}/silent"]
    whole = place.baseline("silent", None, f"mixture.sources.made.path={place.folder}/silent")
    step = rng.randrange(STEPS)
    expect(place.command(words, lambda: inject.at_step(step, "backward", inject.die)), KILLED)
    expect(place.command(words), 0)
    same_end(place.run(name), whole)


# How many of a hundred faults are of each kind; the first of each comes before the second of any.
KINDS: dict[Kind, int] = {
    kill_step: 14, kill_write: 24, torn_write: 5, sigterm_step: 8, sigterm_dev: 3, stop_evaluate: 7, disk_refuses: 6,
    damage: 6, torn_log: 3, nan_skip: 3, nan_stop: 2, kill_moment: 7, many_kills: 3, changed: 4, bad_manifest: 3,
    corrupt_audio: 4, disk_full: 2, canary: 2, silent: 2,
}  # fmt: skip
