"""Forged recordings: headers that claim what is not there, samples that are none, links that lead elsewhere."""

from __future__ import annotations

import io
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from omnichat.audio.io import encode_audio, save_audio
from omnichat.synthesis.scenes.config import RoomConfig, SceneConfig
from omnichat.synthesis.sounds.captioned import Captions
from omnichat.synthesis.sounds.captions import CaptionFiles
from omnichat.synthesis.sounds.dataset import DatasetFolder
from omnichat.synthesis.sounds.folders import EventFolder, MusicFolder
from omnichat.synthesis.sounds.recordings import Limits
from tests.faults.forged import Bench, Damage, Feed, Setup
from tests.helpers.sound_files import RATE, clip, dataset, own_csv

MUSIC = {"music": {"train": 2, "test": 1}}


def encoded(number: int, container: str, seconds: float = 0.6) -> bytes:
    """A recording in one of the containers that sources read."""
    if container == "MP3":
        buffer = io.BytesIO()
        soundfile.write(buffer, clip(number, seconds), RATE, format="MP3")
        return buffer.getvalue()
    return encode_audio(clip(number, seconds), RATE, container)


def write_animals(folder: Path) -> None:
    """One animal in each container, and two more."""
    (folder / "sounds").mkdir()
    kinds = {"dog.wav": "WAV", "cat.flac": "FLAC", "cow.ogg": "OGG", "owl.mp3": "MP3", "wolf.wav": "WAV"}
    for number, (name, container) in enumerate(kinds.items()):
        (folder / "sounds" / name).write_bytes(encoded(number, container))


def write_music(folder: Path) -> None:
    """Two moods."""
    for number, name in enumerate(("calm/a_acoustic.wav", "calm/b_acoustic.flac", "happy/c.wav", "happy/d.ogg")):
        container = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG"}[Path(name).suffix]
        path = folder / "sounds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number, container, 1.0))


def write_rooms(folder: Path) -> None:
    """Animals, and four impulse responses."""
    write_animals(folder)
    (folder / "sounds").rename(folder / "events")
    for number in range(4):
        decay = clip(number, 0.2) * np.exp(-np.arange(round(0.2 * RATE)) / 800)
        decay[20] = 0.9
        save_audio(folder / "sounds" / f"hall{number}.wav", decay, RATE)


def write_dataset(folder: Path) -> None:
    """Parquet files with an audio column."""
    dataset(folder / "sounds", saved=False)


def captioned(folder: Path, max_bad: float, unique: str | None = "file") -> CaptionFiles:
    """The source of configs/events/csv.yaml on a folder."""
    return CaptionFiles(
        name="events", licence="test", path=str(folder), csv={"all": "captions.csv"}, audio=".", files=["{file}"],
        caption=["caption"], keywords=None, unique=unique, split=None, split_values={}, captions=Captions(),
        limits=Limits(min_sec=0.3, max_sec=120.0, max_bad=max_bad),
    )  # fmt: skip


def parquet_sounds(folder: Path, max_bad: float) -> DatasetFolder:
    """The source of configs/events/dataset.yaml on a folder."""
    return DatasetFolder(
        name="events", licence="test", path=str(folder), audio="audio", caption=["caption"], keywords=None,
        splits={"train": "train"}, captions=Captions(), limits=Limits(min_sec=0.3, max_sec=120.0, max_bad=max_bad),
    )  # fmt: skip


def setup_of(place: str, max_bad: float) -> Setup:
    """The run that hears the recordings of a place: animals, music, captioned, dataset or rooms."""
    builds: dict[str, Callable[[Path], object]] = {
        "animals": write_animals, "music": write_music, "rooms": write_rooms, "dataset": write_dataset,
        "captioned": lambda folder: own_csv(folder / "sounds"),
    }  # fmt: skip

    @contextmanager
    def feed(folder: Path) -> Iterator[Feed]:
        sounds, limits = folder / "sounds", Limits(max_bad=max_bad)
        if place == "animals":
            yield Feed(events=EventFolder(str(sounds), None, limits))
        elif place == "music":
            yield Feed(music=MusicFolder(str(sounds), None, limits), changes={"dialogues": MUSIC})
        elif place == "captioned":
            yield Feed(events=captioned(sounds, max_bad))
        elif place == "dataset":
            # the library knows a file by its path and time: what it keeps of the case before must not be taken for this
            if (cache := Path(os.environ.get("HF_DATASETS_CACHE", ""))).is_relative_to(folder.parent):
                shutil.rmtree(cache, ignore_errors=True)
            yield Feed(events=parquet_sounds(sounds, max_bad))
        else:
            scene = SceneConfig(room=RoomConfig(share=1.0, recordings=str(sounds)))
            yield Feed(events=EventFolder(str(folder / "events"), None, limits), scene=scene)

    def build(folder: Path) -> None:
        builds[place](folder)

    return Setup(place, build, feed)


PLACES = ("animals", "music", "captioned", "dataset", "rooms")


def rewrite(folder: Path, rng: random.Random, change: Callable[[bytes, str], bytes], share: float = 1.0) -> str:
    """Change the bytes of one recording of a place (each, where `share` says so), also inside a Parquet file."""
    tables = sorted((folder / "sounds").rglob("*.parquet"))
    if tables:
        rows = pq.read_table(tables[0]).to_pylist()
        chosen = rng.sample(range(len(rows)), max(1, round(share * len(rows))))
        for number in chosen:
            cell = rows[number]["audio"]
            rows[number]["audio"] = {**cell, "bytes": change(cell["bytes"], cell["path"])}
        pq.write_table(pa.Table.from_pylist(rows), tables[0])
        return f"row {chosen[0]}"
    files = sorted(p for p in (folder / "sounds").rglob("*") if p.is_file() and p.suffix != ".csv")
    chosen_files = rng.sample(files, max(1, round(share * len(files))))
    for path in chosen_files:
        path.write_bytes(change(path.read_bytes(), path.name))
    return chosen_files[0].name


def forged_header(rng: random.Random) -> tuple[str, Callable[[bytes, str], bytes]]:
    """A claim, and what puts it into the header of a WAV or FLAC; other containers become such a WAV."""
    seconds_claim = rng.choice(
        ("2^31 frames", "hours", "rate 0", "rate 10^9", "rate 44101", "rate 1", "channels 1000", "channels 0", "bits 0")
    )

    def change(content: bytes, name: str) -> bytes:
        if content[:4] == b"fLaC":
            facts = int.from_bytes(content[18:26], "big")  # rate 20 bits, channels 3, depth 5, frames 36
            frames, rate = (1 << 36) - 1, ((1 << 20) - 1) << 44
            claims = {
                "2^31 frames": facts & ~frames | 1 << 31,
                "hours": facts & ~frames | RATE * 36000,
                "rate 0": facts & ~rate,
                "rate 44101": facts & ~rate | 44101 << 44,
                "rate 1": facts & ~rate | 1 << 44,
                "bits 0": facts & ~(31 << 36),
            }
            claim = claims.get(seconds_claim, facts | rate | frames)
            return content[:18] + claim.to_bytes(8, "big") + content[26:]
        wav = bytearray(content if content[:4] == b"RIFF" else encoded(7, "WAV"))
        field, form, value = {
            "2^31 frames": (40, "<I", 0xFFFFFFFE),
            "hours": (40, "<I", 2 * RATE * 36000),
            "rate 0": (24, "<I", 0),
            "rate 10^9": (24, "<I", 10**9),
            "rate 44101": (24, "<I", 44101),
            "rate 1": (24, "<I", 1),
            "channels 1000": (22, "<H", 1000),
            "channels 0": (22, "<H", 0),
            "bits 0": (34, "<H", 0),
        }[seconds_claim]
        struct.pack_into(form, wav, field, value)
        return bytes(wav)

    return seconds_claim, change


def audio_header(bench: Bench, rng: random.Random) -> str:
    """A header that claims hours, 2^31 frames, 0 or 10^9 Hz, 1000 channels, or a rate that fits no other."""
    place, max_bad = rng.choice(PLACES), rng.choice((0.1, 0.9))
    claim, change = forged_header(rng)

    def damage(folder: Path) -> Damage:
        where = rewrite(folder, rng, change)
        # an unusual rate is a claim that may be true, and libsndfile mends some others
        return Damage(f"{place} {where}: {claim}", invalid=claim in ("hours", "rate 10^9", "channels 1000"))

    return bench.attempt(setup_of(place, max_bad), damage)


def _float_wav(wave: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave.astype(np.float32), RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def audio_samples(bench: Bench, rng: random.Random) -> str:
    """Recordings cut, flipped, emptied, silent, not finite, far beyond full scale, or no recordings at all."""
    place, max_bad, share = rng.choice(PLACES), rng.choice((0.1, 0.9)), rng.choice((0.1, 0.1, 1.0))
    kind = rng.choice(("cut", "flip", "empty", "text", "noise", "nan", "inf", "huge", "silent", "one sample"))

    def change(content: bytes, name: str) -> bytes:
        if kind == "cut":
            return content[: rng.randrange(1, round(0.8 * len(content)))]
        if kind == "flip":
            flipped = bytearray(content)
            for _ in range(rng.choice((1, 8, 64))):
                flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
            return bytes(flipped)
        wave = clip(9, 0.6)
        if kind in ("nan", "inf", "huge"):
            wave[1000:1100] = {"nan": np.nan, "inf": -np.inf, "huge": 1e30}[kind]
            return _float_wav(wave)
        made = {"empty": b"", "text": b"This is a text and no recording.\n" * 50, "noise": rng.randbytes(5000)}
        if kind in made:
            return made[kind]
        return encode_audio(0 * wave if kind == "silent" else wave[:1], RATE, "WAV")

    def damage(folder: Path) -> Damage:
        where = rewrite(folder, rng, change, share)
        return Damage(f"{place} {where}, {share:.0%}: {kind}", invalid=kind not in ("flip", "cut"))

    return bench.attempt(setup_of(place, max_bad), damage)


def audio_names(bench: Bench, rng: random.Random) -> str:
    """Links that lead out of the folder, in circles, nowhere; folders and pipes for files; names that are no words."""
    place, max_bad = rng.choice(("animals", "music", "captioned", "dataset", "rooms")), rng.choice((0.1, 0.9))
    kind = rng.choice(
        ("link", "link text", "dangling", "circle", "folder", "pipe", "not UTF-8", "control", "token", "no word")
    )
    names = {"not UTF-8": os.fsdecode(b"\xff\xfe"), "control": "do\ng", "token": "<|im_start|>", "no word": "_"}

    def damage(folder: Path) -> Damage:
        files = sorted(p for p in (folder / "sounds").rglob("*") if p.is_file() and p.suffix != ".csv")
        path = rng.choice(files)
        if kind in names:
            renamed = path.with_name(f"{names[kind]}{path.suffix}")
            if place == "music":  # there the folder is what words come from
                renamed = path.parent.parent / names[kind] / path.name
                renamed.parent.mkdir()
            path.rename(renamed)
            return Damage(f"{place} {path.name}: named {names[kind]!r}", invalid=place in ("animals", "music"))
        path.unlink()
        outside = folder / "outside"
        if kind in ("folder", "pipe"):
            path.mkdir() if kind == "folder" else os.mkfifo(path)
        else:
            target = {"link": outside / "canary.wav", "link text": outside / "canary.txt", "circle": path}
            path.symlink_to(target.get(kind, folder / "nothing"))
        return Damage(f"{place} {path.name}: {kind}", invalid=kind != "circle" or place != "rooms")

    return bench.attempt(setup_of(place, max_bad), damage)


def dataset_cells(bench: Bench, rng: random.Random) -> str:
    """A dataset folder whose columns are of other types, whose paths lead elsewhere, whose files are torn."""
    kind = rng.choice(
        ("path", "absolute", "no bytes", "text", "numbers", "lists", "no column", "torn", "empty", "null")
    )

    def damage(folder: Path) -> Damage:
        path = next((folder / "sounds").rglob("*.parquet"))
        rows = pq.read_table(path).to_pylist()
        outside = {"path": "../../outside/canary.wav", "absolute": str(folder / "outside" / "canary.wav")}
        for row in rows[::2]:
            if kind in outside:
                row["audio"] = {"bytes": None, "path": outside[kind]}
            elif kind in ("no bytes", "null"):
                row["audio"] = {"bytes": b"" if kind == "no bytes" else None, "path": None}
        if kind in ("text", "numbers", "lists"):
            other = {"text": "dog.wav", "numbers": 7, "lists": [[0.5] * 3]}[kind]
            rows = [row | {rng.choice(("audio", "audio", "caption")): other} for row in rows[:1]] * len(rows)
        if kind == "no column":
            rows = [{"audio": row["audio"]} for row in rows]
        pq.write_table(pa.Table.from_pylist(rows if kind != "empty" else rows[:0], None), path)
        if kind == "torn":
            path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
        return Damage(f"dataset: {kind}")

    return bench.attempt(replace(setup_of("dataset", 0.9), name="dataset"), damage)
