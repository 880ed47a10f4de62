"""Tiny collections of captioned recordings in the official layouts, and recordings that lie."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from omnichat.audio.io import encode_audio, save_audio

RATE = 16000
COUNT = 12  # recordings of a collection


def clip(number: int, seconds: float = 0.5) -> np.ndarray:
    """Noise that no other number has."""
    return 0.1 * np.random.default_rng(number).uniform(-1, 1, round(seconds * RATE))


def forged_flac() -> bytes:
    """A small FLAC whose header claims hours: the sample count is the low 36 bits of 8 bytes, 21 into the file."""
    content = bytearray(encode_audio(clip(0), RATE))
    content[21] |= 0x0F
    content[22:26] = b"\xff\xff\xff\xff"
    return bytes(content)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([header, *rows])


def audiocaps(folder: Path) -> Path:
    """Four recordings a split under the four names that downloaders give them; val and test have two captions each."""
    names = ("{id}.wav", "Y{id}.wav", "{id}_{start}.flac", "{number}.wav")
    number = 0
    for split in ("train", "val", "test"):
        rows = []
        for place, pattern in enumerate(names):
            youtube = f"-{split}{place}_x"
            rows.append(
                [number, youtube, 30, f"A dog barks {('once', 'twice', 'often', 'rarely')[place]} near a river"]
            )
            path = folder / "audio" / split / pattern.format(id=youtube, start=30, number=number)
            save_audio(path, clip(number), RATE)
            number += 1
            if split != "train":
                rows.append([number, youtube, 30, "Barking and water"])
                if pattern == "{number}.wav":
                    save_audio(folder / "audio" / split / f"{number}.wav", clip(number - 1), RATE)
                number += 1
        write_csv(folder / f"{split}.csv", ["audiocap_id", "youtube_id", "start_time", "caption"], rows)
    return folder


def clotho(folder: Path) -> Path:
    """Four recordings a split, with names as Freesound has them."""
    header = ["file_name", *(f"caption_{number}" for number in range(1, 6))]
    for place, split in enumerate(("development", "validation", "evaluation")):
        rows = []
        for number in range(4):
            name = f"Rain on roof, {split} #{number}.1.wav"
            save_audio(folder / split / name, clip(10 * place + number), RATE)
            rows.append([name, "Rain is falling hard on a tin roof.", *["Water pours down."] * 4])
        write_csv(folder / f"clotho_captions_{split}.csv", header, rows)
    return folder


def musiccaps(folder: Path) -> Path:
    """Twelve recordings, a third of them of the evaluation set."""
    header = ["ytid", "start_s", "end_s", "audioset_positive_labels", "aspect_list", "caption", "author_id",
              "is_balanced_subset", "is_audioset_eval"]  # fmt: skip
    rows = []
    for number in range(COUNT):
        name = f"-m{number}.wav" if number % 2 else f"[-m{number}]-[{number}-{number + 10}].wav"
        save_audio(folder / "clips" / name, clip(number, 1.2), RATE)
        aspects = f"['low quality', 'slow tempo piece', '{('sad', 'jazzy')[number % 2]}']"
        rows.append([f"-m{number}", number, number + 10, "/m/0140xf", aspects, "A piano plays a song.", 4, False,
                     number % 3 == 0])  # fmt: skip
    write_csv(folder / "musiccaps-public.csv", header, rows)
    return folder


def own_csv(folder: Path) -> Path:
    """Twelve recordings in a CSV of two columns, no split."""
    for number in range(COUNT):
        save_audio(folder / "wavs" / f"clip{number}.wav", clip(number), RATE)
    rows = [[f"wavs/clip{number}.wav", f"An engine number{number} idles"] for number in range(COUNT)]
    write_csv(folder / "captions.csv", ["file", "caption"], rows)
    return folder


def dataset(folder: Path, saved: bool, splits: Sequence[str] = ("train",)) -> Path:
    """Twelve recordings as a Hugging Face dataset: saved to disk, or Parquet files, with an audio column."""
    import datasets

    parts = {}
    for place, split in enumerate(splits):
        numbers = range(place, COUNT, len(splits))
        rows = {
            "audio": [{"bytes": encode_audio(clip(number), RATE), "path": f"{number}.flac"} for number in numbers],
            "caption": [f"An engine number{number} idles" for number in numbers],
        }
        # by way of plain columns: what encodes audio in `datasets` itself needs torchcodec
        parts[split] = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))
    if saved:
        whole = datasets.DatasetDict(parts) if len(splits) > 1 else parts[splits[0]]
        whole.save_to_disk(str(folder))
    else:
        (folder / "data").mkdir(parents=True)
        for split, part in parts.items():
            part.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return folder
