"""Figures of a corpus: how much, how long, which words, which labels, by scenario and split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from omnichat.data.card import distinct_turns, lengths, summarise
from omnichat.data.card_plots import figures
from omnichat.data.corpus import AnyCorpus
from omnichat.data.parquet_corpus import plain_paths
from omnichat.schema import SCENARIOS, SPLITS, Dialogue
from omnichat.utils.files import read_json


def stats(corpus: AnyCorpus) -> dict[str, Any]:
    """Figures of a corpus folder or of a Parquet export.

    Returns:
        JSON: "name", "kind", "stand_in"; "all" and "subsets", each as `_subset`; "vocabulary": {"all": words, split:
        {"words", "unseen_in_training": share}}; "lengths" and "checks" as on the card.
    """
    dialogues = [plain_paths(dialogue) if corpus.streamed else dialogue for dialogue in corpus.iterate()]
    cells = [
        {"scenario": scenario, "split": split} | _subset(members)
        for scenario in SCENARIOS
        for split in SPLITS
        if (members := [d for d in dialogues if (d.scenario, d.split) == (scenario, split)])
    ]
    card = read_json(corpus.root / "card.json") if (corpus.root / "card.json").is_file() else {}
    return {
        "name": corpus.name,
        "kind": corpus.kind,
        "stand_in": corpus.stand_in,
        "all": _subset(dialogues),
        "subsets": cells,
        "vocabulary": _vocabulary(dialogues),
        "lengths": lengths(dialogues),
        "checks": card.get("checks", {}) if isinstance(card, dict) else {},
    }


def _subset(dialogues: Sequence[Dialogue]) -> dict[str, Any]:
    """Counts, hours, means and labels; recordings, their seconds and their labels count once."""
    turns = list(distinct_turns(dialogues))
    seconds = [turn.seconds for turn in turns if turn.audio is not None and turn.seconds is not None]
    rates = Counter(str(turn.sample_rate) for turn in turns if turn.audio is not None)
    return summarise(dialogues) | {
        "seconds_per_turn": round(sum(seconds) / len(seconds), 3) if seconds else None,
        "words_per_turn": round(sum(len(turn.text.split()) for turn in turns) / len(turns), 2),
        "turns_per_dialogue": round(sum(len(dialogue.turns) for dialogue in dialogues) / len(dialogues), 2),
        "scenes": sum(dialogue.scene is not None for dialogue in dialogues),
        "sample_rates_hz": dict(sorted(rates.items())),
    }


def _vocabulary(dialogues: Sequence[Dialogue]) -> dict[str, Any]:
    """Distinct words, case and punctuation apart, and how many of a split's words training has never said."""
    said = {split: Counter(w for d in dialogues if d.split == split for w in _words(d)) for split in SPLITS}
    found: dict[str, Any] = {"all": len(set().union(*said.values()))}
    for split, words in said.items():
        if words:
            unseen = sum(count for word, count in words.items() if word not in said["train"])
            share = round(unseen / words.total(), 4) if split != "train" and said["train"] else None
            found[split] = {"words": len(words), "unseen_in_training": share}
    return found


def _words(dialogue: Dialogue) -> list[str]:
    text = " ".join(turn.text.lower() for turn in dialogue.turns)
    return "".join(sign if sign.isalnum() or sign == "'" else " " for sign in text).split()


def checks_figures(checks: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """(check, figure, value) of everything on the card that was measured or rejected."""
    rows: list[tuple[str, str, Any]] = []
    for check, value in checks.items():
        if not isinstance(value, dict):
            rows.append(("", check, value))
            continue
        rows += [(check, name.replace(".", " "), found) for name, found in figures(value.get("measured") or {})]
        rows += [(check, f"rejected: {reason}", n) for reason, n in (value.get("rejected") or {}).items()]
    return rows
