"""The report's words: what the runs show, and every reason to doubt it."""

from __future__ import annotations

from collections.abc import Sequence

from omnichat.evaluation.score import METRICS
from omnichat.experiments.runs import Row, Run, seed_groups
from omnichat.experiments.tables import Comparison, figure_text, interval_text, stands_apart

FEW_REPLIES = 100


def findings(runs: Sequence[Run], split: str, tests: Sequence[Comparison], baseline: str | None) -> list[str]:
    """Plain sentences about what was measured, one or two a run."""
    said = []
    for run in runs:
        f1, chance = run.metric(split, "emotion_f1"), run.metric(split, "emotion_f1_chance")
        if f1 is None:
            said.append(f"{run.name} has no figures on the {split} split.")
            continue
        line = f"{run.name} ({run.input or 'unknown'} input) gives its reply the right emotion with weighted F1 "
        line += _quoted("emotion_f1", f1) + f" on {f1['n']} replies"
        line += f", against {figure_text('emotion_f1', chance['value'])} by chance. " if chance else ". "
        said.append(line + _listens(run, split) + _hears_scenes(run, split))
    if baseline is None:
        return said
    for run in runs:
        mine = [test for test in tests if test.run == run.name and test.scenario == "all"]
        for mark in ("better", "worse"):
            changes = [
                f"{METRICS[test.metric].title} ({test.difference:+.{METRICS[test.metric].decimals}f})"
                for test in mine
                if test.mark == mark
            ]
            if changes:
                said.append(f"{run.name} is {mark} than {baseline} in {listed(changes)} (paired, p < 0.05 after Holm).")
        if mine and not any(test.mark for test in mine):
            said.append(f"{run.name} does not differ significantly from {baseline} in any metric.")
    return said


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _listens(run: Run, split: str) -> str:
    same, chance = run.metric(split, "emotion_f1_variants"), run.metric(split, "emotion_f1_variants_chance")
    pairs = run.metric(split, "style_sensitivity")
    if same is None or pairs is None or not same.get("ci95"):
        return "Whether it listens cannot be told: the split has too few turns with the same words in several styles."
    level = chance["value"] if chance else 0.0
    rate = f"it follows the voice in {pairs['value']:.0%} of {pairs['n']} pairs"
    where = f"Where only the voice differs, its F1 is {_quoted('emotion_f1_variants', same)} and {rate}"
    if same["ci95"][0] > level and pairs["value"] > 0:
        if run.info.get("baseline", {}).get("style_tags"):
            return f"{where}. Its input has no voice, but tags that say how a turn was spoken."
        if run.input in ("text", "asr"):
            return f"{where}. Its input has no voice, so something other than the voice gives the style away."
        return f"{where}: it hears how a turn is spoken."
    return f"{where}: no evidence that it hears how a turn is spoken (chance {level:.3f})."


def _hears_scenes(run: Run, split: str) -> str:
    hit, chance = run.metric(split, "scene_hit"), run.metric(split, "scene_hit_chance")
    if hit is None:
        return ""
    line = f" It names the background sound in {hit['value']:.0%} of {hit['n']} turns that have one"
    if chance is None or not hit.get("ci95"):
        return line + "."
    clear = hit["ci95"][0] > chance["value"]
    return f"{line}, against {chance['value']:.0%} by chance{'' if clear else ': no evidence that it hears the sound'}."


def warnings(runs: Sequence[Run], split: str) -> list[str]:
    """Every reason why a reader should hold the figures loosely; empty only where there is none."""
    found = stand_in_warning(runs)
    for experts in dict.fromkeys(run.random_experts for run in runs if run.random_experts):
        named = [run.name for run in runs if run.random_experts == experts]
        found.append(
            f"Random weights: {listed(experts)} in {listed(named)} never saw training; "
            "what the report says of them is not about the published experts."
        )
    for run in runs:
        if run.state != "finished":
            found.append(f"{run.name}: its state is {run.state!r}, so its figures may be of an unfinished model.")
        found += [f"{run.name}: {problem}." for problem in (*run.problems, *run.info.get("warnings", ()))]
        skips = sum(event.get("event") == "skip" for event in run.events)
        if skips:
            found.append(f"{run.name}: {skips} {'step was' if skips == 1 else 'steps were'} skipped in training.")
        asked, ci95 = run.alpha, run.data.get("alpha_ci95")
        if asked is not None and ci95 and not ci95[0] <= asked <= ci95[1]:
            found.append(f"{run.name}: alpha was asked as {asked:g}, but [{ci95[0]:.3f}, {ci95[1]:.3f}] was drawn.")
        row = run.metric(split, "style_parse_failure")
        if row is not None and row["value"] > 0.1:
            found.append(f"{run.name}: the style of {row['value']:.0%} of its replies could not be parsed.")
    found += _comparability(runs, split)
    found += _certainty(runs, split)
    return list(dict.fromkeys(found))


def stand_in_warning(runs: Sequence[Run]) -> list[str]:
    """One sentence where a corpus takes the place of a real one, else none."""
    stand_ins = sorted({name for run in runs for name in run.stand_ins})
    if not stand_ins:
        return []
    return [
        f"Stand-in data: {', '.join(stand_ins)} takes the place of a real corpus. Figures on it, and any alpha, "
        "show that the pipeline works and nothing about the real corpus."
    ]


def meteor_warnings(runs: Sequence[Run]) -> list[str]:
    """What keeps the runs' METEOR from being compared, with published figures or with each other's."""
    rows = [row for run in runs for row in run.metrics if row["metric"] == "meteor" and row.get("note")]
    notes = {row["note"].split("; ")[0] for row in rows}  # what follows is about that row's interval
    found = []
    if any("no WordNet" in note for note in notes):
        found.append(
            "METEOR counts exact and stem matches only (no WordNet files): do not compare with published ones."
        )
    if len(notes) > 1:
        found.append("METEOR was not computed in the same way in every run; see the notes in results.json.")
    return found


def _comparability(runs: Sequence[Run], split: str) -> list[str]:
    found = []
    if len({run.last_step for run in runs if run.last_step is not None}) > 1:
        found.append("The runs took different numbers of steps; differences may come from that alone.")
    ids = [frozenset(p.key for p in run.predictions[split]) for run in runs if split in run.predictions]
    if len(set(ids)) > 1:
        shared = len(frozenset.intersection(*ids))
        found.append(f"The runs were not tested on the same replies: {shared} are shared by all; see n of each figure.")
    prints: dict[str, set[str]] = {}
    for run in runs:
        for source in run.sources:
            prints.setdefault(str(source["name"]), set()).add(str(source.get("fingerprint")))
    found += [
        f"Source {name} is not the same corpus in every run ({len(values)} different manifests)."
        for name, values in prints.items()
        if len(values) > 1
    ]
    return found


def _certainty(runs: Sequence[Run], split: str) -> list[str]:
    found = []
    rows: list[Row] = [row for run in runs if (row := run.metric(split, "emotion_f1"))]
    if rows and min(row["n"] for row in rows) < FEW_REPLIES:
        least = min(row["n"] for row in rows)
        found.append(f"Few samples: as few as {least} test replies stand behind a row; read the intervals.")
    if len(rows) > 1:
        best = max(rows, key=lambda row: row["value"])
        if not stands_apart(best, [row for row in rows if row is not best], "higher"):
            found.append("Overlapping intervals: no run's emotion F1 stands clear of all others.")
    if all(len({run.seed for run in group}) == 1 for group in seed_groups(runs)):
        found.append("One seed a recipe: the intervals cover the choice of test replies, not of seeds.")
    found += meteor_warnings(runs)
    if split != "test":
        found.append(f"No run has figures on the test split; the tables show the {split} split.")
    return found


def _quoted(metric: str, row: Row) -> str:
    text = interval_text(metric, row)
    return figure_text(metric, row["value"]) + (f" {text}" if text else "")
