"""How fast are the checks? Batched Whisper against clip by clip, and seconds a clip of every step of a dialogue.

    python scripts/bench_checks.py --dialogues 6 --rounds 3 --out bench_checks.json

Dialogues of the grammar are spoken by the packaged voice. The ways of recognising them take turns in every round, so
that a machine that slows down slows all of them; what counts is the median of the rounds' ratios. One thread, as in a
worker process.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import whisper
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from omnichat.config import config_folder
from omnichat.synthesis.base import Script, ScriptWriter, Utterance, Voice
from omnichat.synthesis.checks.base import Clip
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.synthesis.checks.words import WordErrorCheck
from omnichat.synthesis.plan import Stem, SynthesisConfig, plan_corpus
from omnichat.synthesis.scenes.maker import SceneMaker
from omnichat.utils.files import write_json_atomic
from omnichat.utils.parts import build_part
from omnichat.utils.seeding import derive_seed

Dialogues = Sequence[Sequence[Clip]]


def parts(checks: str) -> tuple[ScriptWriter, Voice, CheckSuite, SynthesisConfig]:
    """The verb's own writer, voice, checks and scene settings, as configs/ has them."""
    with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
        tree: Any = OmegaConf.to_container(compose("synthesize", overrides=[f"checks={checks}"]), resolve=True)
    config = SynthesisConfig(name="bench", out="bench", dialogues={"emotion": {"train": 1}})
    return (
        build_part(tree["writer"], "writer", ScriptWriter),
        build_part(tree["voice"], "voice", Voice),
        build_part(tree["checks"], "checks", CheckSuite),
        config,
    )


def utterances(script: Script, stem: Stem) -> list[Utterance]:
    """Every line of a dialogue, as the factory speaks it."""
    voices = {"A": stem.user_voice, "B": stem.model_voice}
    return [
        Utterance(line.text, voices[line.speaker], line.style, derive_seed(0, "bench", stem.id, line.text))
        for line in script.lines().values()
    ]


def speak(count: int, writer: ScriptWriter, voice: Voice, config: SynthesisConfig) -> tuple[list[list[Clip]], float]:
    """(the clips of `count` dialogues, seconds a clip that speaking took, without the model's load)."""
    config.dialogues = {"emotion": {"train": count}}
    stems = plan_corpus(config, SceneMaker(config.scene, None, None, voice.sample_rate), None, writer)
    dialogues, seconds = [], 0.0
    for number, stem in enumerate(stems):
        lines = utterances(writer.write(stem.request(derive_seed(0, "bench", stem.id))), stem)
        if number == 0:
            voice.speak_batch(lines[:1])
        start = time.perf_counter()
        waves = voice.speak_batch(lines)
        seconds += time.perf_counter() - start
        dialogues.append(
            [
                Clip(wave, voice.sample_rate, line.text, line.speaker, line.style)
                for wave, line in zip(waves, lines, strict=True)
            ]
        )
    return dialogues, seconds / sum(map(len, dialogues))


def recognise(check: WordErrorCheck, dialogues: Dialogues, rounds: int) -> dict[str, Any]:
    """Seconds a clip of four ways to recognise the same clips with the same weights, in turns, and median ratios.

    "transcribe" and "decode" are openai-whisper's own, one clip at a time in its window of 30 s; "window" is our short
    window, one clip at a time; "batched" is the check itself, a dialogue at a time, its second listening included.
    """
    check.examine(dialogues[0])
    assert check._asr is not None
    model = check._asr.model
    options = whisper.DecodingOptions(language="en", without_timestamps=True, fp16=False)

    def decode(clip: Clip) -> str:
        mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(clip.wave_N))
        return str(whisper.decode(model, mel, options).text)

    def transcribe(clip: Clip) -> str:
        found = model.transcribe(clip.wave_N, language="en", fp16=False, without_timestamps=True)
        return str(found["text"])

    clips = [clip for dialogue in dialogues for clip in dialogue]
    ways: dict[str, Callable[[], object]] = {
        "transcribe": lambda: [transcribe(clip) for clip in clips],
        "decode": lambda: [decode(clip) for clip in clips],
        "window": lambda: [check.transcribe([clip.wave_N], check.context_sec) for clip in clips],
        "batched": lambda: [check.examine(dialogue) for dialogue in dialogues],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append((time.perf_counter() - start) / len(clips))
    ratios = {
        name: [slow / fast for slow, fast in zip(seconds[name], seconds["batched"], strict=True)]
        for name in ways
        if name != "batched"
    }
    return {
        "clips": len(clips),
        "seconds_per_clip": {name: median(values) for name, values in seconds.items()},
        "times_the_rate_of": {name: median(values) for name, values in ratios.items()},
        "rounds": seconds,
    }


def chain(suite: CheckSuite, dialogues: Dialogues, rounds: int) -> dict[str, float]:
    """Median seconds a clip of every check, models loaded."""
    out = {}
    clips = sum(map(len, dialogues))
    for name, check in suite.checks.items():
        check.examine(dialogues[0])
        taken = []
        for _ in range(rounds):
            start = time.perf_counter()
            for dialogue in dialogues:
                check.examine(dialogue)
            taken.append((time.perf_counter() - start) / clips)
        out[name] = median(taken)
    return out


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checks", default="default", help="an option of configs/checks; full adds the dearer two")
    parser.add_argument("--out", type=Path, default=Path("bench_checks.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    writer, voice, suite, config = parts(arguments.checks)
    start = time.perf_counter()
    suite.use(suite.calibrate(voice, [*config.user_voices, *config.model_voices]))
    result: dict[str, Any] = {"calibration_sec": time.perf_counter() - start}
    dialogues, voice_sec = speak(arguments.dialogues, writer, voice, config)
    result["seconds_of_speech_per_clip"] = float(np.mean([clip.seconds for d in dialogues for clip in d]))
    result["chain_seconds_per_clip"] = {"voice": voice_sec} | chain(suite, dialogues, arguments.rounds)
    words = suite.checks["words"]
    assert isinstance(words, WordErrorCheck)
    result["words"] = recognise(words, dialogues, arguments.rounds)
    findings = [suite.examine(dialogue) for dialogue in dialogues]
    result["summary"] = suite.summarise(findings)
    result["rejected"] = [reason for each in findings for finding in each.values() for reason in finding.reasons]
    print(json.dumps({key: value for key, value in result.items() if key != "summary"}, indent=1))
    write_json_atomic(arguments.out, result)


if __name__ == "__main__":
    main()
