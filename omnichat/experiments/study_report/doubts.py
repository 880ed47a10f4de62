"""Every reason why a reader should hold the study's figures loosely, each in one plain sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from omnichat.experiments.findings import FEW_REPLIES, meteor_warnings, stand_in_warning
from omnichat.experiments.runs import Run
from omnichat.experiments.study_report.arms import figure_row, plan_metrics
from omnichat.experiments.study_report.plates import WHOLE
from omnichat.experiments.study_report.sheets import fusion_size
from omnichat.experiments.study_report.study import DONE, FAILED, Plan, Study

FEW_SEEDS = 3
_BUDGET = 1.25  # the largest over the smallest fusion, from which it is not one budget


def study_doubts(study: Study) -> list[str]:
    """Doubts about the whole study."""
    runs = _distinct([run for plan in study.plans for run in plan.runs])
    found = stand_in_warning(runs)
    for experts in dict.fromkeys(run.random_experts for run in runs if run.random_experts):
        count = sum(run.random_experts == experts for run in runs)
        found.append(
            f"Random experts: {', '.join(experts)} in {count} of {len(runs)} runs never saw training; what the report "
            "says of them is not about the published experts."
        )
    arm_runs = {run.folder: run for plan in study.plans for arm in plan.arms for run in arm.runs}.values()
    failed = [run.name for run in arm_runs if run.state == FAILED]
    if failed:
        found.append(f"{len(failed)} {'run' if len(failed) == 1 else 'runs'} failed: {_some(failed)}.")
    gone = [run.name for run in arm_runs if run.state not in (DONE, FAILED)]
    if gone:
        found.append(f"The study is not complete: {len(gone)} of {len(arm_runs)} runs have no figures yet.")
    found += [f"A run folder cannot be read: {line}" for line in study.unreadable]
    late = [f"{run.name} ({run.why})" for run in arm_runs if run.state == DONE and run.why]
    if late:
        found.append(f"Figures stand, but a later evaluation failed: {_some(late)}.")
    found += _mixed(study, runs)
    return found + meteor_warnings(runs)


def _distinct(runs: Sequence[Run]) -> list[Run]:
    return list({run.folder: run for run in runs}.values())


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _mixed(study: Study, runs: Sequence[Run]) -> list[str]:
    """Code, data and hardware that are not the same in every run."""
    found = []
    codes = {str(v) for run in runs if (v := dict(run.info.get("versions", {})).get("omnichat"))}
    names = {run.name for run in runs} | {run.folder.name for run in runs}
    last = {str(row.get("run")): row for row in study.ledger if row.get("code") and row.get("event") == "finished"}
    codes_ledger = {_code(row["code"]) for name, row in last.items() if name in names}
    for kinds in (codes_ledger, codes):
        if len(kinds) > 1:
            found.append(f"Mixed code: the runs were made by {len(kinds)} versions ({_some(sorted(kinds))}).")
            break
    prints: dict[str, set[str]] = {}
    for run in runs:
        for source in run.sources:
            if source.get("fingerprint"):
                prints.setdefault(str(source["name"]), set()).add(str(source["fingerprint"]))
    found += [
        f"Mixed data: source {name} is not the same corpus in every run ({len(values)} fingerprints)."
        for name, values in prints.items()
        if len(values) > 1
    ]
    machines = {str(run.info["hardware"]) for run in runs if run.info.get("hardware")}
    if len(machines) > 1:
        found.append(f"Wall times are not comparable: the runs used {len(machines)} kinds of hardware.")
    return found


def _code(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(str(part)[:10] for part in value.values() if part)
    return str(value)


def plan_doubts(plan: Plan) -> list[str]:
    """Doubts about one plan's table and figures."""
    if plan.kind == "statistics":
        return []
    found = _seeds(plan)
    metric = "emotion_f1" if "emotion_f1" in plan_metrics(plan) else (plan_metrics(plan) or ["bleu"])[0]
    sizes = [row["n"] for run in plan.runs if (row := figure_row(run, plan.report_on, metric, WHOLE))]
    if sizes and min(sizes) < FEW_REPLIES:
        found.append(f"Few samples: as few as {min(sizes)} replies stand behind a figure; read the intervals.")
    keys = [frozenset(p.key for p in parts) for run in plan.runs if (parts := run.predictions.get(plan.report_on))]
    if len(set(keys)) > 1:
        shared = len(frozenset.intersection(*keys))
        found.append(f"The runs were not tested on the same replies: {shared} are shared by all.")
    steps = {run.last_step for run in plan.runs if run.last_step is not None}
    if len(steps) > 1:
        found.append(f"The runs took {min(steps):,} to {max(steps):,} steps; differences may come from that alone.")
    if plan.kind == "bars":
        budget = [size for arm in plan.arms if (size := fusion_size(arm))]
        if budget and max(budget) > _BUDGET * min(budget):
            found.append(f"Not one budget: the fusions have {min(budget):,} to {max(budget):,} parameters.")
    if plan.x == "alpha" and plan.kind == "curve":
        picks = [run for run in plan.runs if figure_row(run, plan.pick_on, metric, WHOLE)]
        if plan.runs and not picks:
            found.append(
                f"No run has figures on the {plan.pick_on} split: alpha cannot be picked without the test split."
            )
    for arm in plan.arms:
        rows = [row for run in arm.counted if (row := figure_row(run, plan.report_on, "style_parse_failure", WHOLE))]
        share = sum(row["value"] for row in rows) / len(rows) if rows else 0.0
        if share > 0.1:
            found.append(
                f"{arm.label}: the style of {share:.0%} of its replies could not be parsed; they count as wrong."
            )
    off = {arm.label: sum(_off(run) for run in arm.counted) for arm in plan.arms}
    named = [label for label, count in off.items() if count]
    if named:
        total = sum(off.values())
        found.append(
            f"In {total} {'run' if total == 1 else 'runs'} the alpha that was asked lies outside the 95 % interval of "
            f"the share that was drawn ({_some(named)})."
        )
    return found


def _off(run: Run) -> bool:
    asked, bounds = run.alpha, run.data.get("alpha_ci95")
    return asked is not None and bounds is not None and not bounds[0] <= asked <= bounds[1]


def _seeds(plan: Plan) -> list[str]:
    found = []
    for arm in plan.arms:
        gone = [run for run in arm.runs if run.state != DONE]
        if not arm.counted:
            states = Counter(run.state for run in arm.runs) or Counter({arm.state: 1})
            found.append(f"{arm.label}: no figures ({', '.join(f'{n} {state}' for state, n in states.items())}).")
        elif gone:
            listed = ", ".join(f"seed {run.seed} {run.state}" for run in gone)
            found.append(f"{arm.label}: {listed}; its mean is over the other seeds.")
    counts = [len(arm.counted) for arm in plan.arms if arm.counted]
    if counts and max(counts) == 1:
        found.append("One seed a row: the intervals cover the choice of test dialogues, not of seeds.")
    elif counts and min(counts) < FEW_SEEDS:
        few = [arm.label for arm in plan.arms if 0 < len(arm.counted) < FEW_SEEDS]
        found.append(f"Fewer than {FEW_SEEDS} seeds: {_some(few)}.")
    return found
