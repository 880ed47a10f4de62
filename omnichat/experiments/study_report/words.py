"""What the figures of a plan show, in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence

from omnichat.evaluation.seeds import SeedSummary
from omnichat.experiments.findings import listed
from omnichat.experiments.study_report.arms import ArmTest, Block, info, interval_of, plan_metrics, summary, text_of
from omnichat.experiments.study_report.optimum import Optimum
from omnichat.experiments.study_report.plates import WHOLE, figure_metrics, picked
from omnichat.experiments.study_report.series import Panel
from omnichat.experiments.study_report.sheets import apart
from omnichat.experiments.study_report.study import Plan


def findings(
    plan: Plan,
    blocks: Sequence[Block],
    tests: Sequence[ArmTest],
    optima: Sequence[tuple[str, Optimum]],
    found: Sequence[Panel],
) -> list[str]:
    """Sentences about one plan; each states its figure, and says so where there is no claim to be made."""
    said = []
    if plan.kind == "curve" and plan.x == "alpha":
        said += _alpha(plan, optima, found)
    if plan.kind == "curve":
        said += [line for panel in found for line in _crossing(plan, panel)]
    if plan.kind not in ("statistics", "attention"):
        metric = "emotion_f1" if "emotion_f1" in plan_metrics(plan) else (figure_metrics(plan) or [""])[0]
        said += [line for block in blocks if (line := _leader(plan, block, metric))]
    for block in blocks:
        said += _tested(plan, block, [test for test in tests if test.block == block])
    return said


def _quoted(metric: str, value: SeedSummary) -> str:
    bounds = interval_of(metric, value.ci95)
    return text_of(metric, value.mean) + (f" {bounds}" if bounds else "")


def _where(block: Block) -> str:
    return "" if (block.scenario, block.dataset) == ("all", None) else f"{block.title}: "


def _leader(plan: Plan, block: Block, metric: str) -> str:
    """Who is best by one metric, and whether that is a claim."""
    side = info(metric).better
    found = [(arm.label, value) for arm in plan.arms if (value := summary(arm, plan.report_on, metric, block))]
    if side is None or len(found) < 2:
        return ""
    sign = 1.0 if side == "higher" else -1.0
    label, best = max(found, key=lambda item: sign * item[1].mean)
    rest = [value for name, value in found if name != label]
    if any(value.mean == best.mean for value in rest):
        return f"{_where(block)}No row leads in {info(metric).title}: several have {text_of(metric, best.mean)}."
    line = f"{_where(block)}{label} has the best {info(metric).title}, {_quoted(metric, best)}"
    if apart(best, rest, sign):
        return f"{line}; its interval touches no other row's."
    clear = [name for name, value in found if name != label and apart(best, [value], sign)]
    if clear:
        near = [name for name, _ in found if name not in (label, *clear)]
        return f"{line}. Its interval lies apart from those of {listed(clear)}; it overlaps those of {listed(near)}."
    return f"{line}. Its interval overlaps another row's, so this alone is no claim."


def _tested(plan: Plan, block: Block, tests: Sequence[ArmTest]) -> list[str]:
    """One sentence a block: who is better or worse than the baseline, and in what."""
    if not tests:
        return []
    parts = []
    for arm in plan.arms:
        mine = [test for test in tests if test.arm == arm.label]
        for mark in ("better", "worse"):
            changes = [
                f"{info(t.metric).title} ({t.test.difference:+.{info(t.metric).decimals}f})"
                for t in mine
                if t.mark == mark
            ]
            if changes:
                parts.append(f"{arm.label} is {mark} in {listed(changes)}")
    if not parts:
        return [f"{_where(block)}No row differs significantly from {plan.baseline} (paired tests, Holm)."]
    return [f"{_where(block)}Against {plan.baseline} (paired, p < 0.05 after Holm): {'; '.join(parts)}."]


def _alpha(plan: Plan, optima: Sequence[tuple[str, Optimum]], found: Sequence[Panel]) -> list[str]:
    said = []
    metric = (figure_metrics(plan) or ["emotion_f1"])[0]
    for series in found[0].series if found else ():
        choice = picked(series, plan.pick_on, metric)
        prefix = f"{series.label}: " if series.label else ""
        if choice is None:
            said.append(f"{prefix}alpha cannot be picked: no figures on the {plan.pick_on} split.")
            continue
        x, arm = choice
        value = summary(arm, plan.report_on, metric, WHOLE)
        line = f"{prefix}the {plan.pick_on} split picks {plan.x} = {x:g}"
        line += f", which has {info(metric).title} {_quoted(metric, value)} on {plan.report_on}." if value else "."
        own = picked(series, plan.report_on, metric)
        if own is not None and own[0] != x:
            line += f" (The best mean on {plan.report_on} itself is at {own[0]:g}; it was not used to choose.)"
        said.append(line[0].upper() + line[1:])
        fitted = next((fit for label, fit in optima if label == series.label), None)
        if fitted is not None:
            share = fitted.picked.get(x, 0.0)
            said.append(
                f"{prefix}The fitted optimum is {fitted.best:.2f}, 95 % interval [{fitted.ci95[0]:.2f}, "
                f"{fitted.ci95[1]:.2f}]; {x:g} is the best value in {share:.0%} of the resamples."
            )
    return said


def _crossing(plan: Plan, panel: Panel) -> list[str]:
    """From which x on speech stays apart from words, where both inputs are in a panel."""
    by_input = {str(line.points[0][1].keys.get("input")): line for line in panel.series}
    if "speech" not in by_input or len(by_input) < len(panel.series):
        return []
    metric = (figure_metrics(plan) or ["emotion_f1"])[0]
    said = []
    for other, name in (("text", "gold text"), ("asr", "ASR text")):
        if other not in by_input:
            continue
        rivals = dict(by_input[other].points)
        clear = []
        for x, arm in by_input["speech"].points:
            mine = summary(arm, plan.report_on, metric, WHOLE)
            theirs = summary(rivals[x], plan.report_on, metric, WHOLE) if x in rivals else None
            if mine is not None and theirs is not None:
                clear.append((x, apart(mine, [theirs], 1.0)))
        late = [x for place, (x, _) in enumerate(clear) if all(flag for _, flag in clear[place:])]
        if late:
            said.append(f"Speech beats {name} from {late[0]:,g} {panel.title} on: the intervals do not touch.")
        elif clear:
            said.append(f"Speech does not stand clear of {name} at the largest {panel.title}: the intervals overlap.")
    return said
