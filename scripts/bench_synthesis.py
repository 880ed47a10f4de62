"""How fast the factory makes verified speech, beside one clip at a time through the same parts, in one run.

    python scripts/bench_synthesis.py                       200 dialogues of all scenarios, with all checks
    python scripts/bench_synthesis.py --dialogues 60        fewer
    python scripts/bench_synthesis.py corpus=demo           overrides as for omnichat synthesize
    python scripts/bench_synthesis.py voice.vocoder=bfloat16   where the processor has bfloat16 units

The sequential pipeline is what one writes first: models loaded once, each by its own package in its ordinary way, then
a line is spoken (Piper and torch may use every core), measured, and heard by Whisper's own `transcribe`, and then the
next one; it keeps no clip for a second use. Its checks, their limits and their order are the factory's, and a dialogue
that fails is written and spoken again as a whole (the factory repeats turns at fault first); the time of what failed
counts. Its voice computes in float32, whatever `voice.vocoder` says of the factory's. It makes the first dialogues of
the same plan, half of them before the factory and half after it. Its clock begins when models are loaded and speakers
learnt; the factory's holds all of that, the scenes and the data card too.
Writes bench/synthesis.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import whisper
from hydra import compose, initialize_config_dir
from piper import PiperVoice

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from omnichat.audio.io import encode_audio  # noqa: E402
from omnichat.config import SynthesizeRun, config_folder, typed  # noqa: E402
from omnichat.encoders.whisper_files import load_whisper  # noqa: E402
from omnichat.synthesis.base import Script  # noqa: E402
from omnichat.synthesis.checks.base import Clip  # noqa: E402
from omnichat.synthesis.pipeline import synthesize  # noqa: E402
from omnichat.synthesis.plan import Stem  # noqa: E402
from omnichat.synthesis.tally import Made  # noqa: E402
from omnichat.synthesis.voices.piper import PiperPraatVoice  # noqa: E402
from omnichat.synthesize import build  # noqa: E402
from omnichat.utils.assets import resolve_path  # noqa: E402
from omnichat.utils.log import setup_logging  # noqa: E402
from omnichat.utils.seeding import derive_seed  # noqa: E402

SHARES = {"emotion": 0.6, "audio": 0.2, "music": 0.2}
SPLITS = {"train": 0.8, "dev": 0.05, "test": 0.15}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, default=200, help="made by the factory (default: %(default)s)")
    parser.add_argument("--sequential", type=int, default=40, help="made one clip at a time (default: %(default)s)")
    parser.add_argument(
        "--hear",
        choices=("transcribe", "decode"),
        default="transcribe",
        help="Whisper's own call (default: %(default)s)",
    )
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
    alone = OneAtATime(plan_config, plan, parts, given.hear)
    stems = [stem for stem in plan.stems if stem.id in plan.scripts][: given.sequential]
    made_alone = [alone.make(stem) for stem in stems[0::2]]
    begun = time.perf_counter()
    made = synthesize(config, **build(config))
    factory_sec = time.perf_counter() - begun
    made_alone += [alone.make(stem) for stem in stems[1::2]]
    write(given, config, made, factory_sec, made_alone)


def settings(overrides: list[str]) -> SynthesizeRun:
    """The config of `omnichat synthesize` with overrides."""
    with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
        return typed(compose("synthesize", overrides=overrides), SynthesizeRun)


@dataclass(slots=True)
class Alone:
    """What the sequential pipeline made of one dialogue, all attempts together, in seconds."""

    took_sec: float = 0.0
    speech_sec: float = 0.0
    kept_sec: float = 0.0
    attempts: int = 0


class OneAtATime:
    """The sequential pipeline."""

    def __init__(self, config: SynthesizeRun, plan: Made, parts: dict[str, Any], hear: str) -> None:
        self.config, self.plan = config, plan
        self.writer, self.voice, self.suite = parts["writer"], parts["voice"], parts["checks"]
        speakers = sorted({name for stem in plan.stems for name in (stem.user_voice, stem.model_voice)})
        self.suite.use(self.suite.calibrate(self.voice, speakers))
        if isinstance(self.voice, PiperPraatVoice):  # as its package loads it: with every core
            for path, (_, raw) in list(self.voice._models.items()):
                self.voice._models[path] = (PiperVoice.load(str(resolve_path(path))), raw)
        self.model = load_whisper(resolve_path(self.suite.checks["words"].path))
        self.hear = {"transcribe": self._transcribe, "decode": self._decode}[hear]
        self._judge(plan.stems[0], plan.scripts[plan.stems[0].id], 0)  # what is loaded at the first use

    def make(self, stem: Stem) -> Alone:
        """Write and speak a dialogue until the checks let it pass."""
        done, begun = Alone(), time.perf_counter()
        for attempt in range(self.config.max_attempts):
            script = self.plan.scripts[stem.id]
            if attempt:
                request = stem.request(derive_seed(self.config.seed, "alone", stem.id, attempt))
                script = self.writer.write(request)
            good, seconds = self._judge(stem, script, attempt)
            done.attempts += 1
            done.speech_sec += seconds
            if good:
                done.kept_sec = seconds
                break
        done.took_sec = time.perf_counter() - begun
        return done

    def _judge(self, stem: Stem, script: Script, attempt: int) -> tuple[bool, float]:
        """(whether the dialogue passes, its seconds of speech)."""
        clips = []
        for number, line in enumerate(script.lines().values()):
            name = stem.user_voice if line.speaker == "A" else stem.model_voice
            # The factory speaks the same words in several styles from one clip.
            getattr(self.voice, "_cache", {}).clear()
            wave, rate = self.voice.speak(line.text, name, line.style, derive_seed(0, stem.id, attempt, number))
            clips.append(Clip(wave, rate, line.text, name, line.style))
        seconds = sum(clip.seconds for clip in clips)
        for check in self.suite.checks.values():
            if check.name == "words":
                found = check._judge(clips, [self.hear(clip.wave_N) for clip in clips])
            else:
                found = check.examine(clips)
            if found.reasons:
                return False, seconds
        for clip in clips:
            encode_audio(clip.wave_N, clip.sample_rate)
        return True, seconds

    def _transcribe(self, wave_N: np.ndarray) -> str:
        return str(self.model.transcribe(wave_N, language="en", fp16=False)["text"]).strip()

    def _decode(self, wave_N: np.ndarray) -> str:
        mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(wave_N))
        options = whisper.DecodingOptions(language="en", without_timestamps=True, fp16=False)
        return str(whisper.decode(self.model, mel, options).text).strip()


def write(given: argparse.Namespace, config: SynthesizeRun, made: Made, factory_sec: float, alone: list[Alone]) -> None:
    """Print and keep the result."""
    assert made.corpus is not None
    hours = made.corpus.summary()["hours"]
    alone_sec = sum(one.took_sec for one in alone)
    factory = {"verified": hours * 3600 / factory_sec, "made": made.tally.speech_sec / factory_sec}
    sequential = {
        "verified": sum(one.kept_sec for one in alone) / alone_sec,
        "made": sum(one.speech_sec for one in alone) / alone_sec,
    }
    result: dict[str, Any] = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "dialogues_planned": len(made.stems),
        "dialogues_kept": len(made.outcomes),
        "attempts": made.tally.attempts,
        "hours_kept": hours,
        "factory_sec": factory_sec,
        "factory_hours_an_hour": factory,
        "one_at_a_time_hours_an_hour": sequential,
        "one_at_a_time": {"hear": given.hear, "dialogues": [asdict(one) for one in alone]},
        "ratio_verified": factory["verified"] / sequential["verified"] if sequential["verified"] else None,
        "ratio_made": factory["made"] / sequential["made"],
        "ratio_verified_to_made": factory["verified"] / sequential["made"],
        "stages_sec": dict(made.tally.seconds),
        "workers": config.workers,
    }
    given.out.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"factory, {config.workers} workers: {hours:.2f} h of verified speech in {factory_sec / 60:.1f} min: "
        f"{factory['verified']:.2f} h/h ({factory['made']:.2f} with what was rejected); "
        f"{len(made.outcomes)} of {len(made.stems)} dialogues kept, {made.tally.attempts} attempts"
    )
    print(
        f"one clip at a time ({given.hear}): {sequential['verified']:.2f} h/h of verified speech "
        f"({sequential['made']:.2f} with what was rejected); {sum(one.kept_sec > 0 for one in alone)} of {len(alone)} "
        f"dialogues kept, {sum(one.attempts for one in alone)} attempts"
    )
    print(f"ratio per verified hour: {result['ratio_verified'] or float('nan'):.2f}")
    print(
        f"raw: {result['ratio_made']:.2f} of all speech made, {result['ratio_verified_to_made']:.2f} of the factory's "
        "verified speech to all that the other made"
    )
    for name, seconds in made.tally.seconds.most_common():
        print(f"  {name:<16} {seconds:8.1f} s over all processes")
    print(f"written: {given.out.with_suffix('.json')}; card: {made.corpus.root / 'README.md'}")


if __name__ == "__main__":
    main()
