"""The study's tables: results, the data behind each row, the corpora, the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from omnichat.data.parquet_corpus import open_corpus
from omnichat.data.stats import stats
from omnichat.evaluation.score import METRICS
from omnichat.evaluation.seeds import SeedSummary
from omnichat.experiments.runs import Row, Run
from omnichat.experiments.study_report.arms import (
    ArmTest,
    Block,
    figure_row,
    info,
    interval_of,
    summary,
    text_of,
)
from omnichat.experiments.study_report.sheet import DASH, Cell, Column, Group, Sheet
from omnichat.experiments.study_report.study import DONE, FAILED, Arm, Plan, Study
from omnichat.experiments.tables import CHANCE, duration, number_text
from omnichat.schema import SCENARIOS, SPLITS
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json

SUBSETS = {"emotion": "-Emotion", "audio": "-Audio", "music": "-Music", "daily": "Daily"}


def result_sheet(plan: Plan, blocks: Sequence[Block], metrics: Sequence[str], tests: Sequence[ArmTest]) -> Sheet:
    """One row an arm in the plan's order, grouped by subset: mean over seeds, interval, chance, marks."""
    costs = plan.kind == "bars"
    columns = [Column("System"), Column("Seeds", "Seeds whose figures count, of those planned", True)]
    if costs:
        columns += [Column("Parameters", "Trainable weights of the fusion alone", True)]
        columns += [Column("Slots\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}s", "LLM positions a second of audio", True)]
    columns += [Column(info(metric).title, info(metric).meaning, True) for metric in metrics]
    by_key = {(test.arm, test.metric, test.block): test for test in tests}
    shared = _shared_badges(plan)
    groups = []
    for block in blocks:
        found = {
            (arm.label, metric): summary(arm, plan.report_on, metric, block) for arm in plan.arms for metric in metrics
        }
        rows = []
        for arm in plan.arms:
            row = [_label(arm, plan, shared), _seeds(arm)]
            row += _fusion_cells(arm) if costs else []
            for metric in metrics:
                rivals = [found[other.label, metric] for other in plan.arms if other is not arm]
                test = by_key.get((arm.label, metric, block))
                row.append(_figure(plan, arm, metric, block, found[arm.label, metric], rivals, test))
            rows.append(tuple(row))
        sizes = [value.n for value in found.values() if value is not None]
        size = f"n = {max(sizes)} replies a seed" if sizes else "no figures yet"
        groups.append(Group(f"{block.title}: {size}" if block.title else size.capitalize(), tuple(rows)))
    return Sheet(f"{plan.script}-results", _caption(plan), tuple(columns), tuple(groups), _notes(plan, tests, shared))


def _caption(plan: Plan) -> str:
    return f"{plan.title}, on the {plan.report_on} split. Means over seeds with 95\N{NO-BREAK SPACE}% intervals."


def _notes(plan: Plan, tests: Sequence[ArmTest], shared: Sequence[str]) -> tuple[str, ...]:
    notes = [f"Every row: {', '.join(shared)}."] if shared else []
    notes += ["Bold: the best mean; †: its interval lies apart from every other row's. Bold alone is no claim."]
    if tests:
        notes.append(
            f"▲ ▼: better or worse than {plan.baseline} by the paired test over seeds and dialogues "
            "(p < 0.05 after Holm, over the rows)."
        )
    return tuple(notes + ([plan.note] if plan.note else []))


def _doubtful(arm: Arm) -> list[str]:
    """Badges of what an arm was made of."""
    flags = (
        ("stand-in data", any(run.stand_ins for run in arm.counted)),
        ("random experts", any(run.random_experts for run in arm.counted)),
    )
    return [text for text, flag in flags if flag]


def _shared_badges(plan: Plan) -> list[str]:
    """Badges of every arm with figures, where there are several: said once below the table."""
    counted = [_doubtful(arm) for arm in plan.arms if arm.counted]
    return [badge for badge in counted[0] if all(badge in other for other in counted)] if len(counted) > 1 else []


def _label(arm: Arm, plan: Plan, shared: Sequence[str]) -> Cell:
    own = [badge for badge in _doubtful(arm) if badge not in shared]
    return Cell(arm.label, badges=(*(("baseline",) if arm.label == plan.baseline else ()), *own))


def _seeds(arm: Arm) -> Cell:
    states = Counter(run.state for run in arm.runs if run.state != DONE)
    why = "; ".join(
        f"{run.name}: {run.state}{f' ({run.why})' if run.why else ''}" for run in arm.runs if run.state != DONE
    )
    badges = tuple(f"{count} {state}" for state, count in states.items())
    done = len(arm.counted)
    return Cell(f"{done}" if done == len(arm.runs) else f"{done} of {len(arm.runs)}", badges=badges, hint=why)


def _figure(
    plan: Plan,
    arm: Arm,
    metric: str,
    block: Block,
    value: SeedSummary | None,
    rivals: Sequence[SeedSummary | None],
    test: ArmTest | None,
) -> Cell:
    if value is None:
        if not arm.counted:
            return Cell(arm.state, gap=True, hint="No run of this row has figures.")
        tested = any(figure_row(run, plan.report_on, other, block) for run in arm.counted for other in METRICS)
        if not tested:
            return Cell("not tested", gap=True, hint="The runs have figures, but none on these replies.")
        return Cell(DASH, gap=True, hint="The runs were scored, and this metric was not computed or has no item here.")
    others = [rival for rival in rivals if rival is not None]
    side = info(metric).better
    sign = {"higher": 1.0, "lower": -1.0}.get(side or "", 0.0)
    ahead = [sign * (value.mean - rival.mean) for rival in others]
    top = bool(sign and others) and min(ahead) >= 0 and max(ahead) > 0  # where all are equal, none is the best
    hint = f"n = {value.n}; seeds: " + ", ".join(text_of(metric, seed) for seed in value.values)
    if test is not None:
        bounds = interval_of(metric, test.test.ci95)
        hint += f"; against {plan.baseline}: {test.test.difference:+.3f} {bounds}, p = {test.p_holm:.3f} (Holm)"
    small = [interval_of(metric, value.ci95)]
    if metric in CHANCE and (chance := summary(arm, plan.report_on, CHANCE[metric], block)):
        small.append(f"chance {text_of(metric, chance.mean)}")
    short = len(value.values) < len(arm.runs)
    return Cell(
        text_of(metric, value.mean),
        tuple(line for line in small if line),
        (f"{len(value.values)} of {len(arm.runs)} seeds",) if short else (),
        top=top,
        apart=top and apart(value, others, sign),
        mark=test.mark if test is not None else None,
        hint=hint,
    )


def apart(value: SeedSummary, others: Sequence[SeedSummary], sign: float) -> bool:
    """Whether a figure's interval lies wholly on the better side (`sign` 1: higher) of every other's."""
    if value.ci95 is None or any(other.ci95 is None for other in others):
        return False
    if sign > 0:
        return all(value.ci95[0] > other.ci95[1] for other in others if other.ci95)
    return all(value.ci95[1] < other.ci95[0] for other in others if other.ci95)


def fusion_size(arm: Arm) -> int | None:
    """Weights of the arm's fusion, where a run states them."""
    for run in arm.counted:
        size = (run.info.get("fusion") or {}).get("parameters")
        if isinstance(size, int):
            return size
    return None


def _fusion_cells(arm: Arm) -> list[Cell]:
    slots = [s for run in arm.counted if (s := (run.info.get("fusion") or {}).get("slots_per_sec")) is not None]
    return [Cell(number_text(fusion_size(arm), ",d")), Cell(number_text(slots[0] if slots else None, ".2f"))]


def data_sheet(plan: Plan) -> Sheet:
    """What stands behind every row: sources, sizes, alpha asked and drawn, steps, seeds, time, hardware, versions."""
    titles = ("System", "Input", "Training data", "Alpha", "Steps", "Seeds", "Wall time", "Hardware", "Versions")
    numeric = {"Alpha", "Steps", "Wall time"}
    rows = []
    for arm in plan.arms:
        runs = arm.counted or [run.run for run in arm.runs if run.run is not None]
        if not runs:
            gaps = [Cell(arm.state, gap=True), *[Cell(DASH, gap=True)] * (len(titles) - 2)]
            rows.append((Cell(arm.label), *gaps))
            continue
        walls = [float(run.info["wall_seconds"]) for run in runs if run.info.get("wall_seconds") is not None]
        cells = [Cell(arm.label), _joined(run.input for run in runs), _sources(runs), _alpha(runs)]
        cells += [_joined(run.last_step for run in runs), Cell(", ".join(str(run.seed) for run in runs))]
        cells += [Cell(duration(sum(walls)) if walls else DASH, ("in all",) if len(walls) > 1 else ())]
        cells += [_joined(_flat(run.info.get("hardware")) for run in runs), _joined(map(_versions, runs))]
        rows.append(tuple(cells))
    columns = tuple(Column(title, numeric=title in numeric) for title in titles)
    caption = f"The data and set-up behind every row of “{plan.title}”."
    return Sheet(f"{plan.script}-data", caption, columns, (Group("", tuple(rows)),))


def _joined(values: Any) -> Cell:
    """The distinct values of an arm's runs, which differ only where something is amiss."""
    found = list(dict.fromkeys(str(value) for value in values if value is not None))
    return Cell("; ".join(found) or DASH)


def _sources(runs: Sequence[Run]) -> Cell:
    lines: dict[str, None] = {}
    for run in runs:
        for source in run.sources:
            part = source.get("splits", {}).get("train") or {}
            size = f"{part.get('dialogues', 0):,} dialogues, {part.get('hours', 0):.2f} h"
            drawn = f", {source['drawn']:,} drawn" if isinstance(source.get("drawn"), int) else ""
            print_ = f" · {str(source['fingerprint'])[:8]}" if source.get("fingerprint") else ""
            mark = " (stand-in)" if source.get("stand_in") else ""
            lines.setdefault(f"{source['name']}{mark}: {size}{'' if len(runs) > 1 else drawn}{print_}")
    if not lines:
        return Cell("none stated" if any(run.data or run.steps for run in runs) else "not trained")
    return Cell(f"{len({s['name'] for run in runs for s in run.sources})} sources", tuple(lines))


def _alpha(runs: Sequence[Run]) -> Cell:
    asked = _joined(f"{run.alpha:g}" for run in runs if run.alpha is not None)
    drawn = [run.data["alpha_realised"] for run in runs if isinstance(run.data.get("alpha_realised"), int | float)]
    return Cell(asked.text, (f"drawn {sum(drawn) / len(drawn):.3f}",) if drawn else ())


def _versions(run: Run) -> str:
    return ", ".join(f"{name} {version}" for name, version in dict(run.info.get("versions", {})).items()) or DASH


def _flat(value: Any) -> str | None:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return None if value is None else str(value)


def corpus_figures(study: Study) -> dict[str, Row | str]:
    """Card of each corpus of the study by name (counts by subset, labels), or one line on why there is none."""
    found: dict[str, Row | str] = {}
    for plan in study.plans:
        for name, path in plan.corpora.items():
            if name not in found or isinstance(found[name], str):
                found[name] = _card(path)
    return found


def _card(path: Any) -> Row | str:
    try:
        if (path / "card.json").is_file():
            card = read_json(path / "card.json")
            if isinstance(card, dict) and card.get("subsets"):
                return card
        found = stats(open_corpus(path, verify="exists"))
    except UserError as error:
        return str(error)
    return found | {"counts": found["all"], "labels_by_scenario": _by_scenario(found["subsets"])}


def _by_scenario(subsets: Sequence[Row]) -> dict[str, dict[str, dict[str, int]]]:
    out: dict[str, dict[str, Counter[str]]] = {}
    for cell in subsets:
        for attribute, counts in cell["labels"].items():
            out.setdefault(cell["scenario"], {}).setdefault(attribute, Counter()).update(counts)
    return {scenario: {key: dict(value) for key, value in labels.items()} for scenario, labels in out.items()}


def corpora_sheet(cards: dict[str, Row | str]) -> Sheet:
    """Dialogues, turns and hours of each subset of each corpus, and how its dialogues are split."""
    titles = ("Dialogues", "Turns", "Hours", *(f"{split.capitalize()} dialogues" for split in SPLITS))
    columns = [Column("Subset"), *(Column(title, "", True) for title in titles)]
    groups = []
    for name, card in cards.items():
        if isinstance(card, str):
            gaps = [Cell(DASH, gap=True)] * len(titles)
            groups.append(Group(name, ((Cell("missing", gap=True, hint=card), *gaps),)))
            continue
        present = [scenario for scenario in SCENARIOS if any(c["scenario"] == scenario for c in card["subsets"])]
        body = [_corpus_row(SUBSETS[s], [c for c in card["subsets"] if c["scenario"] == s]) for s in present]
        if len(present) > 1:
            body.append(_corpus_row("all", card["subsets"]))
        marks = [str(card.get("kind", ""))] + (["STAND-IN for a real corpus"] if card.get("stand_in") else [])
        groups.append(Group(f"{name} ({', '.join(m for m in marks if m)})", tuple(body)))
    caption = (
        "The corpora: dialogues, turns and hours of recordings. Recordings that variants share count once a split."
    )
    return Sheet("corpora", caption, tuple(columns), tuple(groups))


def _corpus_row(title: str, cells: Sequence[Row]) -> tuple[Cell, ...]:
    total = {key: sum(cell[key] for cell in cells) for key in ("dialogues", "turns", "hours")}
    splits = [sum(cell["dialogues"] for cell in cells if cell["split"] == split) for split in SPLITS]
    sizes = (f"{total['dialogues']:,}", f"{total['turns']:,}", f"{total['hours']:.2f}")
    return (Cell(title), *(Cell(size) for size in sizes), *(Cell(f"{n:,}") for n in splits))


def ledger_sheet(study: Study) -> Sheet:
    """What each script's runs took and how they ended."""
    columns = [Column("Script"), *(Column(t, "", True) for t in ("Rows", "Runs", "Done", "Failed", "Missing", "Hours"))]
    rows = []
    for plan in study.plans:
        runs = {run.folder: run for arm in plan.arms for run in arm.runs}
        states = Counter(run.state for run in runs.values())
        seconds = [float(r.run.info.get("wall_seconds") or 0) for r in runs.values() if r.run is not None]
        rest = len(runs) - states[DONE] - states[FAILED]
        numbers = (len(plan.arms), len(runs), states[DONE], states[FAILED], rest)
        rows.append((Cell(plan.title), *(Cell(str(n)) for n in numbers), Cell(f"{sum(seconds) / 3600:.2f}")))
    ended = Counter(str(row.get("event")) for row in study.ledger)
    hours = sum(float(row["hours"]) for row in study.ledger if isinstance(row.get("hours"), int | float))
    note = f"Ledger: {len(study.ledger)} events (" + ", ".join(f"{n} {event}" for event, n in ended.items()) + ")"
    notes = (f"{note}, {hours:.2f} h. A run that several scripts share counts in each.",) if study.ledger else ()
    caption = "The study's runs, by script."
    return Sheet("ledger", caption, tuple(columns), (Group("", tuple(rows)),), notes)


def failures_sheet(study: Study) -> Sheet:
    """Every run that failed, with its error."""
    found = {run.name: run for plan in study.plans for arm in plan.arms for run in arm.runs if run.state == FAILED}
    rows = tuple((Cell(name), Cell(run.why or "no reason recorded")) for name, run in found.items())
    return Sheet("failures", "Runs that failed.", (Column("Run"), Column("Error")), (Group("", rows),))
