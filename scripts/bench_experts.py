"""How fast the experts are: through the feature cache, and Whisper against openai-whisper's own way, clip by clip.

    python scripts/bench_experts.py                               an hour of 4 s clips through every expert
    python scripts/bench_experts.py --seconds 240 --experts whisper whisper:pad_sec=1
    python scripts/bench_experts.py --truncation --audio FOLDER   what less padding changes in Whisper's features

An expert is a file of configs/expert, with settings after a colon. One whose file asks for a checkpoint runs with
random weights of the published size: speed does not depend on the values. Rounds of the comparison are interleaved,
so that a machine that slows down slows all of them; the medians are printed. Without --audio, --truncation speaks a
few sentences with the packaged Piper voice.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from whisper.audio import log_mel_spectrogram, pad_or_trim

from omnichat.audio.io import load_audio, save_audio
from omnichat.config import config_folder
from omnichat.data.cache_fill import fill_cache
from omnichat.data.feature_cache import FeatureCache
from omnichat.encoders.base import AudioEncoder, resolve_dtype
from omnichat.encoders.whisper import WhisperEncoder
from omnichat.encoders.whisper_files import find_whisper, load_whisper
from omnichat.utils.files import sha256_file, write_json_atomic
from omnichat.utils.parts import build_part

RATE_HZ = 16_000
EXPERTS = ("whisper", "whisper:pad_sec=1", "beats", "mert", "emotion2vec")
# Published sizes, for experts without a checkpoint.
BASE = {"depth": 12, "width": 768, "heads": 12, "ffn": 3072}
SIZES: dict[str, dict[str, Any]] = {
    "beats": {**BASE, "patch_width": 512, "conv_pos": 128},
    "mert": {**BASE, "conv_width": 512},
    "emotion2vec": {**BASE, "conv_width": 512},
    "transformers": {**BASE, "conv_width": 512, "family": "wavlm"},
}
PADS = (0.0, 1.0, 2.0, 5.0, 10.0)
SENTENCES = (
    "The weather is lovely this morning.",
    "I did not expect to see you here, of all places!",
    "Could you tell me how to get to the station from here?",
    "Yes.",
    "She said that the meeting was moved to Thursday, so we have two more days to finish the slides and the report.",
    "Well, I am so sorry to hear that. Is there anything I can do for you?",
)


def speech_like(seconds: float, seed: int) -> Tensor:
    """Noise bursts at the pace of syllables, with pauses: what an encoder's speed and its silent floor can see."""
    generator = torch.Generator().manual_seed(seed)
    count = round(seconds * RATE_HZ)
    syllables = torch.rand(math.ceil(seconds * 5) + 2, generator=generator)
    syllables = torch.where(syllables < 0.25, torch.zeros(()), syllables)
    loudness = torch.nn.functional.interpolate(syllables[None, None], size=count, mode="linear")[0, 0]
    return (0.2 * loudness * torch.randn(count, generator=generator)).clamp(-1, 1)


def make_clips(folder: Path, seconds: float, clip: float) -> list[Path]:
    """Write clips of `clip` seconds, `seconds` in all, as FLAC; every one is different."""
    folder.mkdir()
    paths = [folder / f"{number:05d}.flac" for number in range(max(1, round(seconds / clip)))]
    for number, path in enumerate(paths):
        save_audio(path, speech_like(clip, number), RATE_HZ)
    return paths


def build(text: str) -> AudioEncoder:
    """Build `NAME` or `NAME:key=value,key=value` from configs/expert; a mandatory checkpoint becomes random weights."""
    name, _, changes = text.partition(":")
    node = yaml.safe_load((config_folder() / "expert" / f"{name}.yaml").read_text(encoding="utf-8"))
    for change in filter(None, changes.split(",")):
        key, _, value = change.partition("=")
        node[key] = yaml.safe_load(value)
    if node.get("path") == "???":
        node |= {"path": None, **SIZES[name]}
    expert = build_part(node, f"experts.{name}", AudioEncoder)
    assert isinstance(expert, AudioEncoder)
    return expert


def through_the_cache(names: Sequence[str], clips: Sequence[Path], folder: Path, threads: int) -> list[dict[str, Any]]:
    """Fill a fresh cache with every expert; one row an expert."""
    hashed = [(sha256_file(path), path) for path in clips]
    rows = []
    for number, name in enumerate(names):
        expert = build(name)
        expert.encode_waves([load_audio(clips[0], expert.sample_rate)])  # the first pass pays for set-up
        cache = FeatureCache.of(folder / str(number), name.partition(":")[0], expert)
        done = fill_cache(expert, hashed, cache, show_progress=False, threads=threads)
        rows.append(
            {
                "expert": name,
                "what": expert.description,
                "dtype": str(expert.compute_dtype).removeprefix("torch."),
                "clips_a_second": done["clips"] / done["seconds"],
                "times_real_time": done["audio_seconds"] / done["seconds"],
                "MB": done["bytes"] / 1e6,
                "MB_an_hour": done["bytes"] / 1e6 * 3600 / done["audio_seconds"],
            }
        )
        print(
            "{expert:20} {dtype:9} {clips_a_second:8.2f} clips/s {times_real_time:8.1f} x real time "
            "{MB:9.1f} MB {MB_an_hour:9.1f} MB/h  {what}".format(**rows[-1]),
            flush=True,
        )
    return rows


@torch.inference_mode()
def openai_way(model: Any, clips: Sequence[Path]) -> None:
    """openai-whisper's own steps for every clip: load, pad to 30 s, log-mel, encoder; in float32, its CPU default."""
    for path in clips:
        wave = load_audio(path, RATE_HZ)
        model.encoder(log_mel_spectrogram(pad_or_trim(wave), model.dims.n_mels)[None])


def clip_by_clip(expert: AudioEncoder, clips: Sequence[Path]) -> None:
    """Ours, one clip a call."""
    for path in clips:
        expert.encode_waves([load_audio(path, RATE_HZ)])


def batched(expert: AudioEncoder, clips: Sequence[Path]) -> None:
    """Ours, all clips in one call, which cuts them into passes."""
    expert.encode_clips([expert.frontend(load_audio(path, RATE_HZ)) for path in clips])


def ways(path: str) -> dict[str, Callable[[Sequence[Path]], None]]:
    """Every way to encode, by name. A clip alone is encoded in a pass of the batch's shape, for equality to the bit;
    `unfilled` is what that would cost in a pass of its own."""
    model = load_whisper(find_whisper(path))
    found: dict[str, Callable[[Sequence[Path]], None]] = {"openai clip by clip": lambda clips: openai_way(model, clips)}
    fast = str(resolve_dtype("auto")).removeprefix("torch.")
    for dtype in dict.fromkeys(("float32", fast)):
        for pad_sec in (None, 1.0):
            expert = WhisperEncoder(path, pad_sec=pad_sec, dtype=dtype)
            alone = WhisperEncoder(path, pad_sec=pad_sec, dtype=dtype, batch_sec=0.0)
            kind = f"ours {dtype} {'exact' if pad_sec is None else f'pad_sec={pad_sec:g}'}"
            found[f"{kind} clip by clip"] = lambda clips, expert=expert: clip_by_clip(expert, clips)  # type: ignore[misc]
            found[f"{kind} clip by clip, unfilled"] = lambda clips, alone=alone: clip_by_clip(alone, clips)  # type: ignore[misc]
            found[f"{kind} batched"] = lambda clips, expert=expert: batched(expert, clips)  # type: ignore[misc]
    return found


def compare(path: str, clips: Sequence[Path], rounds: int) -> list[dict[str, Any]]:
    """Clips a second of every way, medians of `rounds` interleaved rounds, with ratios within each round."""
    candidates = ways(path)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    busy: dict[str, list[float]] = {name: [] for name in candidates}
    for way in candidates.values():
        way(clips[:2])
    for _ in range(rounds):
        for name, way in candidates.items():
            start, start_busy = time.perf_counter(), time.process_time()
            way(clips)
            seconds[name].append(time.perf_counter() - start)
            busy[name].append(time.process_time() - start_busy)

    def ratio(name: str, other: str) -> float:
        return statistics.median(b / a for a, b in zip(seconds[name], seconds[other], strict=True))

    rows = []
    for name in candidates:
        own = name.partition(" batched")[0] + " clip by clip" if name.endswith("batched") else None
        rows.append(
            {
                "way": name,
                "clips_a_second": len(clips) / statistics.median(seconds[name]),
                "cpu_ms_a_clip": 1000 * statistics.median(busy[name]) / len(clips),  # what other programs disturb less
                "over_openai": ratio(name, "openai clip by clip"),
                "over_own_clip_by_clip": own and ratio(name, own),
                "over_own_unfilled": own and ratio(name, f"{own}, unfilled"),
            }
        )
    print(f"\n{'way':48} {'clips/s':>8} {'CPU ms':>7} {'/ openai':>9} {'/ own single':>13} {'/ unfilled':>11}")
    for row in rows:
        own = [f"{row[key]:.2f}" if row[key] else "" for key in ("over_own_clip_by_clip", "over_own_unfilled")]
        head = f"{row['way']:48} {row['clips_a_second']:8.2f} {row['cpu_ms_a_clip']:7.0f} {row['over_openai']:9.2f}"
        print(f"{head} {own[0]:>13} {own[1]:>11}")
    return rows


def spoken(folder: Path | None, most: int) -> list[Tensor]:
    """Real clips from a folder, or sentences of the packaged Piper voice; float32 [N] at 16 kHz."""
    if folder is not None:
        paths = sorted(path for path in folder.rglob("*") if path.suffix in (".wav", ".flac"))
        if not paths:
            raise SystemExit(f"--audio {folder}: holds no .wav or .flac")
        return [load_audio(path, RATE_HZ) for path in paths[:: math.ceil(len(paths) / most)]]
    import wave

    from piper import PiperVoice

    from omnichat.utils.assets import asset_folder

    voice = PiperVoice.load(str(next(asset_folder("piper_joe").rglob("*.onnx"))))
    clips = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, sentence in enumerate(SENTENCES):
            path = Path(scratch) / f"{number}.wav"
            with wave.open(str(path), "wb") as handle:
                voice.synthesize_wav(sentence, handle)
            clips.append(load_audio(path, RATE_HZ))
    return clips


def truncation(path: str, waves: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Relative L2 of Whisper's last layer against the exact 30 s: over all frames, and over each clip's last ten."""

    def features(**options: Any) -> list[Tensor]:
        expert = WhisperEncoder(path, **{"dtype": "float32", **options})
        return [clip.x_TD.float() for clip in expert.encode_clips([expert.frontend(wave) for wave in waves])]

    exact = features()
    variants: dict[str, dict[str, Any]] = {f"pad_sec={pad:g}": {"pad_sec": pad} for pad in PADS}
    variants["exact in bfloat16"] = {"dtype": "bfloat16"}
    seconds = [len(wave) / RATE_HZ for wave in waves]
    print(f"{len(waves)} clips of {min(seconds):.1f} to {max(seconds):.1f} s, mean {statistics.mean(seconds):.1f} s")
    print(f"{'':20} {'median':>8} {'lowest':>8} {'highest':>8} {'last ten frames, median':>24}")
    rows = []
    for name, options in variants.items():
        pairs = list(zip(features(**options), exact, strict=True))
        off = [float((a - b).norm() / b.norm()) for a, b in pairs]
        late = [float((a - b)[-10:].norm() / b[-10:].norm()) for a, b in pairs]
        row = {"median": statistics.median(off), "lowest": min(off), "highest": max(off)}
        rows.append({"variant": name, **row, "last_ten": statistics.median(late)})
        print("{variant:20} {median:8.3f} {lowest:8.3f} {highest:8.3f} {last_ten:24.3f}".format(**rows[-1]), flush=True)
    return rows


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3600.0, help="audio through the cache")
    parser.add_argument("--clip", type=float, default=4.0, help="seconds of a clip")
    parser.add_argument(
        "--experts", nargs="*", default=EXPERTS, help="NAME or NAME:key=value,...; none: skip that part"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of the cache's filler")
    parser.add_argument("--whisper", default="asset:whisper_tiny_en", help="weights of the comparison and --truncation")
    parser.add_argument("--compare-clips", type=int, default=16, help="clips a round of the comparison; 0: skip it")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of the comparison")
    parser.add_argument("--truncation", action="store_true", help="measure what less padding changes, and nothing else")
    parser.add_argument("--audio", type=Path, help="folder of real clips for --truncation")
    parser.add_argument("--most", type=int, default=60, help="clips that --truncation takes from --audio at most")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    return parser.parse_args()


def main() -> None:
    """Run what was asked for, print tables, write JSON."""
    args = arguments()
    figures: dict[str, Any] = {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}
    if args.truncation:
        figures["truncation"] = truncation(args.whisper, spoken(args.audio, args.most))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            clips = make_clips(Path(scratch) / "clips", args.seconds, args.clip)
            print(f"{len(clips)} clips of {args.clip:g} s, {torch.get_num_threads()} torch threads", flush=True)
            figures["settings"] = {"clips": len(clips), "clip_sec": args.clip, "filler_threads": args.threads}
            figures["cache"] = through_the_cache(args.experts, clips, Path(scratch), args.threads)
            if args.compare_clips:
                figures["whisper"] = compare(args.whisper, clips[: args.compare_clips], args.rounds)
    if args.out is not None:
        write_json_atomic(args.out, figures)
        print(f"\nwritten: {args.out} ({len(json.dumps(figures))} characters)")


if __name__ == "__main__":
    main()
