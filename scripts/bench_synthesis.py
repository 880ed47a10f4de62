"""How fast the factory makes verified speech, beside one clip at a time through the same parts, in one run.

    python scripts/bench_synthesis.py                       200 dialogues of all scenarios, with all checks
    python scripts/bench_synthesis.py --dialogues 60        fewer
    python scripts/bench_synthesis.py corpus=demo           overrides as for omnichat synthesize

The sequential pipeline speaks a line, checks its signal, style and speaker and lets Whisper's own decoder hear it in
its 30 s window, then takes the next one; it keeps no clip for a second use, and torch may use every core. It makes the
first dialogues of the same plan, half of them before the factory and half after it. Writes bench/synthesis.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import whisper
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from omnichat.audio.io import encode_audio  # noqa: E402
from omnichat.config import SynthesizeRun, config_folder, typed  # noqa: E402
from omnichat.encoders.whisper_files import load_whisper  # noqa: E402
from omnichat.synthesis.checks.base import Clip  # noqa: E402
from omnichat.synthesis.pipeline import synthesize  # noqa: E402
from omnichat.synthesis.tally import Made  # noqa: E402
from omnichat.synthesize import build  # noqa: E402
from omnichat.utils.assets import resolve_path  # noqa: E402
from omnichat.utils.log import setup_logging  # noqa: E402

SHARES = {"emotion": 0.6, "audio": 0.2, "music": 0.2}
SPLITS = {"train": 0.8, "dev": 0.05, "test": 0.15}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, default=200, help="made by the factory (default: %(default)s)")
    parser.add_argument("--sequential", type=int, default=8, help="made one clip at a time (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("bench/synthesis"), help="folder (default: %(default)s)")
    given, overrides = parser.parse_known_args()
    setup_logging()
    counts = {
        kind: {split: max(1, round(given.dialogues * share * part)) for split, part in SPLITS.items()}
        for kind, share in SHARES.items()
    }
    asked = [f"dialogues={json.dumps(counts).replace(chr(34), '')}", *overrides]
    config = settings([f"out={given.out}/corpus", *asked])
    plan_config = settings([f"out={given.out}/plan", "until=scripts", *asked])
    plan, parts = synthesize(plan_config, **build(plan_config)), build(config)
    before = one_at_a_time(plan, parts, slice(0, given.sequential // 2))
    begun = time.perf_counter()
    made = synthesize(config, **parts)
    factory_sec = time.perf_counter() - begun
    after = one_at_a_time(plan, parts, slice(given.sequential // 2, given.sequential))
    write(given.out, config, made, factory_sec, [*before, *after])


def settings(overrides: list[str]) -> SynthesizeRun:
    """The config of `omnichat synthesize` with overrides."""
    with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
        return typed(compose("synthesize", overrides=overrides), SynthesizeRun)


def one_at_a_time(plan: Made, parts: dict[str, Any], which: slice) -> list[float]:
    """Seconds of speech made a second, for each of some dialogues, clip after clip."""
    voice, suite = parts["voice"], parts["checks"]
    speakers = {name for stem in plan.stems for name in (stem.user_voice, stem.model_voice)}
    suite.use(suite.calibrate(voice, sorted(speakers)))
    model = load_whisper(resolve_path(suite.checks["words"].path))
    rates = []
    for number, stem in enumerate([stem for stem in plan.stems if stem.id in plan.scripts][which]):
        script = plan.scripts[stem.id]
        lines = [(line.speaker, line.text, line.style) for line in script.history]
        for variant in script.variants:
            lines += [("A", script.current, variant.style), ("B", variant.reply.text, variant.reply.style)]
        begun, speech_sec = time.perf_counter(), 0.0
        for speaker, text, style in lines:
            name = stem.user_voice if speaker == "A" else stem.model_voice
            getattr(voice, "_cache", {}).clear()  # the factory speaks the same words in several styles from one clip
            wave, rate = voice.speak(text, name, style, number)
            clip = Clip(wave, rate, text, name, style)
            for check in suite.checks.values():
                if check.name != "words":
                    check.examine([clip])
            mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(wave))
            whisper.decode(model, mel, whisper.DecodingOptions(language="en", without_timestamps=True, fp16=False))
            encode_audio(wave, rate)
            speech_sec += clip.seconds
        rates.append(speech_sec / (time.perf_counter() - begun))
    return rates


def write(out: Path, config: SynthesizeRun, made: Made, factory_sec: float, sequential: list[float]) -> None:
    """Print and keep the result."""
    assert made.corpus is not None
    hours = made.corpus.summary()["hours"]
    factory = hours * 3600 / factory_sec
    middle = statistics.median(sequential)
    result: dict[str, Any] = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": torch.get_num_threads()},
        "dialogues_planned": len(made.stems),
        "dialogues_kept": len(made.outcomes),
        "attempts": made.tally.attempts,
        "hours_kept": hours,
        "factory_sec": factory_sec,
        "factory_hours_an_hour": factory,
        "one_at_a_time_hours_an_hour": sorted(sequential),
        "ratio": factory / middle,
        "stages_sec": dict(made.tally.seconds),
        "workers": config.workers,
    }
    out.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    low, high = min(sequential), max(sequential)
    print(
        f"factory, {config.workers} workers: {hours:.2f} h of verified speech in {factory_sec / 60:.1f} min: "
        f"{factory:.1f} h/h"
    )
    print(f"one clip at a time: {middle:.2f} h/h ({low:.2f} to {high:.2f}); ratio {factory / middle:.1f}")
    print(f"{len(made.outcomes)} of {len(made.stems)} dialogues kept, {made.tally.attempts} attempts")
    for name, seconds in made.tally.seconds.most_common():
        print(f"  {name:<16} {seconds:8.1f} s over all processes")
    print(f"written: {out.with_suffix('.json')}; card: {made.corpus.root / 'README.md'}")


if __name__ == "__main__":
    main()
