"""Run folders with plausible contents: enough to draw every part of the report."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from omnichat.evaluation.predictions import Heard, Line, Prediction, Reply, write_predictions
from omnichat.evaluation.score import ScoreConfig, score
from omnichat.schema import EMOTIONS, Scene, Style

PLAIN = ScoreConfig(bertscore_model=None, bootstrap_samples=200, permutations=50)
EXPERTS = ("whisper", "beats", "mert")
ANSWERS = {
    "neutral": "All right, thanks for telling me about it.",
    "happy": "That is wonderful, you must be so proud!",
    "sad": "I am sorry, that sounds hard to bear.",
    "angry": "No wonder you are upset, that was unfair.",
    "surprised": "Really? I never saw that coming!",
    "fearful": "Stay calm, you are safe with me now.",
    "disgusted": "Ugh, that does sound unpleasant.",
}
TURNS = ("I got the letter this morning.", "My sister is moving in next week.", "They changed the plan again.")
SOUNDS = {
    "audio": [("a dog barks twice", ("dog", "bark")), ("a cow in a field", ("cow",)), ("a cat purrs", ("cat", "purr"))],
    "music": [("a calm acoustic guitar", ("calm", "guitar")), ("fast electronic drums", ("fast", "drum"))],
}


def tone(path: Path, seconds: float, pitch_hz: float) -> None:
    """Write a short tone as FLAC."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time_sec = np.arange(int(16000 * seconds)) / 16000
    wave = 0.2 * np.sin(2 * np.pi * pitch_hz * time_sec) * np.hanning(len(time_sec))
    soundfile.write(path, wave.astype(np.float32), 16000, format="FLAC")


def replies(skill: float, given: str, rng: random.Random, folder: Path | None, count: int = 14) -> list[Prediction]:
    """Emotion dialogues in three styles each, and scene dialogues; `skill` is the chance of a right answer."""
    rows = []
    plan = [("emotion", f"e{i}", style) for i in range(count) for style in rng.sample(EMOTIONS, 3)]
    plan += [(scenario, f"{scenario[0]}{i}", "neutral") for scenario in ("audio", "music") for i in range(count)]
    variant: dict[str, int] = {}
    for scenario, stem, voice in plan:
        number = variant[stem] = variant.get(stem, -1) + 1
        name = f"{stem}-v{number}" if scenario == "emotion" else stem
        got = voice if rng.random() < skill else rng.choice(EMOTIONS)
        parsed = rng.random() > 0.04
        sound = SOUNDS[scenario][int(stem[1:]) % len(SOUNDS[scenario])] if scenario in SOUNDS else None
        scene = Scene(sound[0], keywords=sound[1]) if sound is not None else None
        wanted_words, said = ANSWERS[voice], ANSWERS[got]
        if scene is not None:
            wanted_words = f"Oh, is that {scene.caption}?"
            said = wanted_words if rng.random() < skill else said
        kept = folder is not None and stem in ("e0", "a0", "m0")
        if kept and folder is not None:
            tone(folder / "samples" / f"{name}.flac", 1.2, 180 + 40 * number)
        mass = rng.choices(range(1, 9), k=3 * 7)
        windows = tuple(tuple(m / sum(mass[3 * w : 3 * w + 3]) for m in mass[3 * w : 3 * w + 3]) for w in range(7))
        extra: dict[str, Any] = {"attention": windows, "experts": EXPERTS, "window_sec": 0.34} if kept else {}
        rows.append(
            Prediction(
                id=f"{name}#3",
                dialogue=name,
                turn=3,
                source="synthetic_emotion" if scenario == "emotion" else "synthetic_scenes",
                kind="synthetic",
                scenario=scenario,
                split="test",
                history=(Line("A", "Have you got a minute?"), Line("B", "Of course, what is it?")),
                heard=Heard(TURNS[int(stem[1:]) % 3], Style("normal", rng.choice(("slow", "fast")), voice), scene),
                variant_of=stem if scenario == "emotion" else None,
                reference=Reply(wanted_words, Style("normal", "normal", voice)),
                hypothesis=Reply(said, Style("normal", "normal", got) if parsed else None),
                raw=f"[normal, normal, {got}] {said}" if parsed else said,
                input=given,
                audio_file=f"samples/{name}.flac" if kept else None,
                **extra,
            )
        )
    return rows


def log_rows(rng: random.Random, steps: int, alpha: float, final: float) -> list[dict[str, Any]]:
    """Step and dev rows of a loss that falls to `final`, with a resume that repeats five steps."""
    rows: list[dict[str, Any]] = []
    real = 0
    for step in [*range(1, steps // 2 + 5), *range(steps // 2, steps + 1)]:
        if step == steps // 2 and len(rows) > step:
            rows.append({"event": "resume", "step": step})
        loss = final + 2.2 * math.exp(-step / (steps / 5)) + rng.gauss(0, 0.08)
        real += sum(rng.random() < alpha for _ in range(16))
        share = min(1.0, real / (16 * step))
        half = 1.96 * math.sqrt(max(1e-4, share * (1 - share)) / (16 * step))
        parts = {"loss": loss, "loss_style": loss * 0.6, "loss_words": loss * 1.1, "alpha_realised": share}
        interval = [max(0.0, share - half), min(1.0, share + half)]
        rows.append({"event": "step", "step": step, "alpha_ci95": interval, "seconds": 0.5 + 0.02 * step} | parts)
        if step % 20 == 0:
            dev = {"loss": loss + 0.15, "loss_style": loss * 0.6 + 0.1, "loss_words": loss * 1.1 + 0.2}
            rows.append({"event": "dev", "step": step} | dev)
    return [*rows, {"event": "end", "step": steps}]


def source(name: str, kind: str, rng: random.Random, stand_in: bool = False) -> dict[str, Any]:
    """One source of data.json."""
    labels = {
        "pitch": {"low": rng.randint(20, 60), "normal": 200, "high": rng.randint(20, 60)},
        "speed": {"slow": 50, "normal": 180, "fast": rng.randint(20, 60)},
        "emotion": {emotion: rng.randint(20, 60) for emotion in EMOTIONS},
    }
    split = {"dialogues": 280, "turns": 1680, "hours": 1.62, "labels": labels}
    small = split | {"dialogues": 40, "turns": 240, "hours": 0.23}
    sizes = {"train": split, "dev": small, "test": small}
    facts = {"fingerprint": "ab12cd34ef56" + "0" * 52, "weight": 0.5, "drawn": 1290, "epochs": 4.61, "splits": sizes}
    return {"name": name, "path": f"corpora/{name}", "kind": kind, "stand_in": stand_in} | facts


def make_run(
    root: Path,
    name: str,
    *,
    skill: float = 0.6,
    given: str = "speech",
    alpha: float = 0.2,
    seed: int = 0,
    steps: int = 120,
    config: ScoreConfig = PLAIN,
    random_experts: bool = True,
    state: str = "finished",
    count: int = 14,
    fusion: str = "mix_former.MixFormer",
) -> Path:
    """Write one complete run folder and return it."""
    folder = root / name
    folder.mkdir(parents=True)
    rng = random.Random(f"{name}{seed}")
    node = {"_target_": f"omnichat.fusion.{fusion}", "window_sec": 0.34, "queries": 1}
    resolved = {"name": name, "seed": seed, "chat": {"input": given}, "mixture": {"alpha": alpha}, "fusion": node}
    resolved |= {"llm": {"path": "asset:smollm2"}, "trainer": {"steps": steps}}
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved))
    log = log_rows(rng, steps, alpha, 1.9 - skill)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    data = {
        "alpha": alpha,
        "unit": "dialogue",
        "alpha_realised": log[-2].get("alpha_realised", alpha),
        "alpha_ci95": log[-2].get("alpha_ci95", [max(0, alpha - 0.02), alpha + 0.02]),
        "sources": [source("synthetic_emotion", "synthetic", random.Random(1))],
    }
    data["sources"].append(source("dailytalk_stand_in", "real", random.Random(2), stand_in=True))
    (folder / "data.json").write_text(json.dumps(data))
    names = {"whisper": False, "beats": random_experts, "mert": random_experts}
    info = {
        "name": name,
        "state": state,
        "experts": [{"name": key, "description": key, "random": value} for key, value in names.items()],
        "parameters": {"trainable": 5_412_864, "frozen": 147_903_552},
        "fusion": None if given == "text" else {"class": fusion.rpartition(".")[2], "parameters": 1_998_614},
        "hardware": "2 x86 cores, CPU",
        "versions": {"omnichat": "0.1.0", "torch": "2.14.1", "transformers": "5.23.0"},
        "wall_seconds": 391.0,
        "command": "omnichat train",
    }
    if info["fusion"] is not None:
        info["fusion"] |= {"slots_per_sec": 16.43 if "salmonn" in fusion else 3.02}
    (folder / "run.json").write_text(json.dumps(info))
    rows = replies(skill, given, random.Random(7), folder, count)  # one seed: every run meets the same dialogues
    write_predictions(folder / "predictions" / "test.jsonl", rows)
    (folder / "metrics.json").write_text(json.dumps(score(rows, config)))
    return folder
