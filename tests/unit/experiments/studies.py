"""Study folders: plans, a ledger and small run folders with dev and test predictions of several seeds."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from omnichat.evaluation.predictions import Prediction, write_predictions
from omnichat.evaluation.score import ScoreConfig, score
from omnichat.schema import EMOTIONS
from tests.unit.experiments.builders import PLAIN, make_run, replies

QUICK = ScoreConfig(bertscore_model=None, bootstrap_samples=200, permutations=20)
KINDS = {"corpora": "statistics", "dailytalk": "table", "sharechatx": "table", "alpha": "curve", "scale": "curve"}
KINDS |= {"fusion": "bars", "windows": "curve", "experts": "attention", "overlap": "table"}
Arm = tuple[str, dict[str, Any], list[tuple[str, int]]]


def daily(rows: Sequence[Prediction], split: str, count: int) -> list[Prediction]:
    """Turn the first scene replies into replies of a real, stand-in corpus of daily dialogues."""
    plain = [p for p in rows if p.scenario == "audio"][:count]
    return [
        replace(
            p,
            id=f"daily-{split}-{n}#{p.turn}",
            dialogue=f"daily-{split}-{n}",
            source="dailytalk_stand_in",
            kind="real",
            scenario="daily",
            split=split,
            heard=replace(p.heard, scene=None),
            audio_file=None,
            stand_in=True,
        )
        for n, p in enumerate(plain)
    ]


def study_run(root: Path, name: str, seed: int, skill: float, count: int = 8, **more: Any) -> Path:
    """A complete run folder with predictions on dev and test, and figures on an outside set."""
    folder = make_run(root, name, seed=seed, skill=skill, steps=30, count=2, **more)
    given = more.get("given", "speech")
    rng = random.Random(f"{name}-{seed}-replies")
    rows = []
    for split, salt in (("dev", 11), ("test", 7)):
        world = replies(skill, given, random.Random(salt), folder if split == "test" else None, count)
        part = [_seeded(replace(p, split=split), skill, rng) for p in world]
        part += daily(part, split, count)
        write_predictions(folder / "predictions" / f"{split}.jsonl", part)
        rows += score(part, PLAIN)
    outside = [row | {"set": "second_real"} for row in rows if row["split"] == "test" and row["scenario"] == "all"]
    for row in outside:
        row["value"] *= 0.9
        row["ci95"] = [bound * 0.9 for bound in row["ci95"]]
    (folder / "metrics.json").write_text(json.dumps(rows + outside))
    return folder


def _seeded(p: Prediction, skill: float, rng: random.Random) -> Prediction:
    """One seed's answer to a turn that all seeds share."""
    style = p.reference.style
    assert style is not None and style.emotion is not None
    right = rng.random() < skill
    emotion = style.emotion if right else rng.choice(EMOTIONS)
    words = p.reference.text if right else "I see, tell me more."
    return replace(p, hypothesis=replace(p.reference, text=words, style=replace(style, emotion=emotion)))


def write_plan(study: Path, script: str, arms: Sequence[Arm], **more: Any) -> Path:
    """One plan; arms are (label, keys, [(run name, seed)])."""
    (study / "plans").mkdir(parents=True, exist_ok=True)
    listed = [
        {
            "label": label,
            "keys": keys,
            "runs": [{"name": name, "seed": seed, "folder": f"runs/{name}"} for name, seed in runs],
        }
        for label, keys, runs in arms
    ]
    seeds = sorted({seed for _, _, runs in arms for _, seed in runs})
    plan = {"script": script, "title": f"The {script} table", "preset": "demo", "seeds": seeds, "arms": listed}
    plan |= {"kind": KINDS.get(script, "table"), "corpora": {}, "x": None, "baseline": None}
    plan |= {"pick_on": "dev", "report_on": "test", "metrics": [], "note": ""}
    path = study / "plans" / f"{script}.json"
    path.write_text(json.dumps(plan | more))
    return path


def write_ledger(study: Path, events: Sequence[Mapping[str, Any]]) -> None:
    """The ledger, an event a line."""
    filled = [{"time": "2026-01-01T00:00:00", "code": "0.1.0+abc", "error": None} | dict(event) for event in events]
    (study / "ledger.jsonl").write_text("".join(json.dumps(event) + "\n" for event in filled))


def write_card(folder: Path, name: str, kind: str, scenarios: Sequence[str], stand_in: bool = False) -> Path:
    """A corpus of which only the card is needed."""
    folder.mkdir(parents=True)
    rng = random.Random(name)
    labels = {
        "pitch": {"low": rng.randint(9, 40), "normal": 90, "high": rng.randint(9, 40)},
        "speed": {"slow": rng.randint(9, 40), "normal": 90, "fast": rng.randint(9, 40)},
        "emotion": {emotion: rng.randint(9, 40) for emotion in EMOTIONS},
    }
    cells = [
        {"scenario": scenario, "split": split, "dialogues": n, "turns": 6 * n, "recordings": 5 * n, "hours": n / 170}
        for scenario in scenarios
        for split, n in (("train", 1280), ("dev", 60), ("test", 120))
    ]
    total = {key: sum(cell[key] for cell in cells) for key in ("dialogues", "turns", "recordings", "hours")}
    card = {"name": name, "kind": kind, "stand_in": stand_in, "subsets": cells, "counts": total | {"labels": labels}}
    card["labels_by_scenario"] = dict.fromkeys(scenarios, labels)
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def whole_study(study: Path, count: int = 4) -> Path:
    """Every script of the study on a few shared runs; one run failed, one is missing."""
    skills = {0.0: 0.35, 0.2: 0.95, 0.5: 0.55, 1.0: 0.3}
    for seed in range(2):
        for a, skill in skills.items():
            study_run(study / "runs", f"alpha-{a:g}-s{seed}", seed, skill, count, alpha=a)
    study_run(study / "runs", "text-s0", 0, 0.05, count, given="text", alpha=0.0)
    plans(study)
    for name, kind, subsets in (
        ("sharechatx", "synthetic", ("emotion", "audio", "music")),
        ("dailytalk", "real", ("daily",)),
    ):
        write_card(study / "corpora" / name, name, kind, subsets, stand_in=kind == "real")
    young = study / "runs" / "broken-1"
    young.mkdir()
    (young / "config.yaml").write_text(yaml.safe_dump({"name": "broken-1", "seed": 1}))
    made = sorted(path.name for path in (study / "runs").iterdir() if path != young)
    events: list[dict[str, Any]] = [{"run": name, "event": "finished", "hours": 0.1} for name in made]
    write_ledger(study, [*events, {"run": "broken-1", "event": "failed", "error": "CUDA out of memory", "hours": None}])
    return study


def plans(study: Path) -> None:
    """The nine plans of `whole_study`."""

    def arm(label: str, a: float, **keys: Any) -> Arm:
        return label, {"input": "speech"} | keys, [(f"alpha-{a:g}-s{seed}", seed) for seed in range(2)]

    text: Arm = ("text LLM", {"input": "text"}, [("text-s0", 0)])
    plain, real = arm("OmniChat, synthetic only", 0.0, alpha=0.0), arm("OmniChat, + real", 0.2, alpha=0.2)
    paper = {"baseline": "text LLM", "metrics": ["bleu", "rouge_l", "meteor", "emotion_f1"], "sets": []}
    write_plan(study, "dailytalk", [text, plain, real], **paper)
    write_plan(study, "sharechatx", [text, plain, real], **paper)
    points = [arm(f"alpha {a:g}", a, alpha=a) for a in (0.0, 0.2, 0.5, 1.0)]
    write_plan(study, "alpha", points, x="alpha", metrics=["emotion_f1", "bleu"], baseline="alpha 0")
    words: list[Arm] = [(f"T, {n}", {"input": "text", "dialogues": n}, [("text-s0", 0)]) for n in (5000, 80000)]
    speech = [arm("S, 5000", 0.0, dialogues=5000), arm("S, all", 0.2, dialogues=80000)]
    write_plan(study, "scale", [*words, *speech], x="dialogues", metrics=["emotion_f1"])
    broken: Arm = ("Cross-attention", {"fusion": "x"}, [("gone-0", 0), ("broken-1", 1)])
    write_plan(study, "fusion", [arm("Mix-Former", 0.2), arm("Stacking", 0.5), broken], baseline="Mix-Former")
    sizes = [
        arm(label, a, queries=k, window_sec=w)
        for label, a, k, w in (("K = 1", 0.2, 1, 0.34), ("K = 4", 0.5, 4, 0.34), ("window 2 s", 1.0, 1, 2.0))
    ]
    write_plan(study, "windows", sizes, kind="table", metrics=["emotion_f1"])
    write_plan(study, "experts", [real])
    write_plan(study, "overlap", [plain, real], baseline="OmniChat, synthetic only", sets=["second_real"])
    corpora = {name: f"corpora/{name}" for name in ("sharechatx", "dailytalk", "second_real")}
    write_plan(study, "corpora", [], corpora=corpora)
