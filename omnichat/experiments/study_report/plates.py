"""The figures of each plan: what is drawn, and what its caption says."""

from __future__ import annotations

from collections.abc import Sequence

from omnichat.experiments import plots
from omnichat.experiments.runs import Row
from omnichat.experiments.study_report.arms import (
    Block,
    TestBook,
    info,
    outside_sets,
    plan_metrics,
    present,
    summary,
)
from omnichat.experiments.study_report.drawings import Level, Line, alpha_plot, bars_plot, curve_plot, experts_plot
from omnichat.experiments.study_report.optimum import LEAST_POINTS, Optimum, fit_optimum
from omnichat.experiments.study_report.series import Panel, Series, panels
from omnichat.experiments.study_report.sheets import SUBSETS, fusion_size
from omnichat.experiments.study_report.study import Arm, Plan
from omnichat.experiments.study_report.svg import Plate, plate
from omnichat.experiments.tables import CHANCE
from omnichat.schema import SPLITS

WHOLE = Block("")
_INTERVALS = "Bars: 95\N{NO-BREAK SPACE}% intervals over seeds and dialogues; dots: seeds."


def figure_metrics(plan: Plan) -> list[str]:
    """At most two metrics to draw: the plan's first that has an answer, and its first of another kind."""
    return [metric for metric in plan_metrics(plan) if present(plan, metric) and info(metric).better][:2]


def line(series: Series, label: str, split: str, metric: str, block: Block = WHOLE) -> Line:
    """A series' means; points without a figure are left out."""
    found = [(x, value) for x, arm in series.points if (value := summary(arm, split, metric, block))]
    return Line(label, tuple(found))


def picked(series: Series, split: str, metric: str) -> tuple[float, Arm] | None:
    """The point with the best mean on a split; the smaller x of equals."""
    sign = 1.0 if info(metric).better != "lower" else -1.0
    found = [(x, arm, value.mean) for x, arm in series.points if (value := summary(arm, split, metric, WHOLE))]
    if not found:
        return None
    best = max(found, key=lambda item: (sign * item[2], -item[0]))
    return best[0], best[1]


def optimum(series: Series, split: str, metric: str, book: TestBook) -> Optimum | None:
    """The fitted optimum of a series on a split, from its predictions."""
    points = []
    for x, arm in series.points:
        found = [m for run in arm.counted if (m := book.measure(run, split, metric, WHOLE)) is not None]
        points.append((x, found))
    return fit_optimum(points, book.config.bootstrap_samples, book.config.seed)


def alpha_plates(plan: Plan, panel: Panel, book: TestBook) -> tuple[list[Plate], list[tuple[str, Optimum]]]:
    """One figure a line of the panel, and the fitted optima by metric."""
    plates, optima = [], []
    for metric in figure_metrics(plan)[:1]:
        for number, series in enumerate(panel.series):
            lines = [line(series, f"{split} split", split, metric) for split in (plan.pick_on, plan.report_on)]
            for name in outside_sets(plan):
                lines.append(line(series, f"outside set {name}", plan.report_on, metric, Block("", dataset=name)))
            lines = [found for found in lines if found.points]
            if not lines:
                continue
            fitted = optimum(series, plan.pick_on, metric, book)
            choice = picked(series, plan.pick_on, metric)
            levels = [Level(a.label, v) for a in panel.level if (v := summary(a, plan.report_on, metric, WHOLE))]
            title = info(metric).title
            draw = alpha_plot(lines, fitted, choice[0] if choice else None, title, panel.title, levels)
            caption = f"{title} against {panel.title}{f' ({series.label})' if series.label else ''}. {_INTERVALS} "
            if fitted is not None:
                optima.append((series.label, fitted))
                caption += (
                    f"Line and band: Gaussian-process fit to the {plan.pick_on} means with its bootstrap "
                    "95\N{NO-BREAK SPACE}% band. "
                    f"Diamond: its optimum, {fitted.best:.2f} [{fitted.ci95[0]:.2f}, {fitted.ci95[1]:.2f}] over "
                    f"{'seeds and ' if fitted.seeds > 1 else ''}dialogues. "
                )
            else:
                caption += f"No fit: it takes {LEAST_POINTS} values of {panel.x} with predictions on {plan.pick_on}. "
            if choice is not None:
                caption += f"Dotted: the value picked on {plan.pick_on}, {choice[0]:g}."
            key = f"{plan.script}-{metric}" + (f"-{number + 1}" if len(panel.series) > 1 else "")
            plates.append(plate(key, draw, caption, f"{title} against {panel.x}, {len(lines)} lines"))
    return plates, optima


def curve_plates(plan: Plan, found: Sequence[Panel]) -> list[Plate]:
    """One figure a metric, a pair of axes a key."""
    plates = []
    for metric in figure_metrics(plan):
        drawn = []
        for panel in found:
            alone = len(panel.series) == 1
            lines = [line(s, "" if alone else s.label, plan.report_on, metric) for s in panel.series]
            lines = [one for one in lines if one.points]
            if lines:
                drawn.append((panel.title, panel.logarithmic, lines))
        if drawn:
            levels = [
                Level(arm.label, value)
                for arm in found[0].level
                if (value := summary(arm, plan.report_on, metric, WHOLE))
            ]
            title = info(metric).title
            names = " and ".join(name for name, _, _ in drawn)
            log = " (logarithmic)" if any(log for _, log, _ in drawn) else ""
            caption = f"{title} on the {plan.report_on} split against {names}{log}. {_INTERVALS}"
            draw = curve_plot(drawn, title, levels)
            plates.append(plate(f"{plan.script}-{metric}", draw, caption, f"{title} against {names}"))
    return plates


def bar_plates(plan: Plan) -> list[Plate]:
    """One figure a metric: a bar an arm, with the fusion's parameters."""
    plates = []
    for metric in figure_metrics(plan):
        rows = []
        for arm in plan.arms:
            value = summary(arm, plan.report_on, metric, WHOLE)
            if value is not None:
                size = fusion_size(arm)
                rows.append((arm.label, value, "" if size is None else f"{size / 1e6:.2f} M"))
        if not rows:
            continue
        chances = [
            value.mean
            for arm in plan.arms
            if metric in CHANCE and (value := summary(arm, plan.report_on, CHANCE[metric], WHOLE))
        ]
        chance = sum(chances) / len(chances) if chances else None
        gone = [arm.label for arm in plan.arms if arm.label not in [row[0] for row in rows]]
        title = info(metric).title
        caption = f"{title} on the {plan.report_on} split; right, the parameters of the fusion. {_INTERVALS}"
        caption += f" Orange: {plan.baseline}." if plan.baseline in [row[0] for row in rows] else ""
        caption += " Dotted: chance, the mean over the rows." if chance is not None else ""
        caption += f" Not drawn, for they have no figure: {', '.join(gone)}." if gone else ""
        draw = bars_plot(rows, title, chance, plan.baseline)
        plates.append(plate(f"{plan.script}-{metric}", draw, caption, f"{title} of {len(rows)} systems as bars"))
    return plates


def attention_plates(plan: Plan) -> list[Plate]:
    """Attention mass by scenario, and one dialogue of the first arm that kept it as a heat map."""
    found = []
    for arm in plan.arms:
        seeds = [plots.expert_mass(run.predictions.get(plan.report_on, ())) for run in arm.counted]
        mass: dict[str, dict[str, list[float]]] = {}
        for seed in seeds:
            for scenario, shares in seed.items():
                for expert, share in shares.items():
                    mass.setdefault(scenario, {}).setdefault(expert, []).append(share)
        if mass:
            found.append((arm.label, mass))
    if not found:
        return []
    kept = [p for run in plan.runs for p in run.predictions.get(plan.report_on, ()) if p.attention and p.experts]
    caption = (
        f"Mean attention mass of each expert by scenario, {plan.report_on} split, on the {len({p.key for p in kept})} "
        "turns that kept it. Dots: seeds; dotted: equal shares. Mass says where the model looks, not what it uses."
    )
    plates = [plate(f"{plan.script}-mass", experts_plot(found), caption, "Attention mass of experts by scenario")]
    # a turn with a background sound shows most
    one = max(kept, key=lambda p: (p.heard.scene is not None, len(p.attention or ())))
    owner = next(
        arm.label for arm in plan.arms if any(one in r.predictions.get(plan.report_on, ()) for r in arm.counted)
    )
    scene = f" (in the background: {one.heard.scene.caption})." if one.heard.scene is not None else "."
    words = f"Attention of {owner} over the last turn of dialogue {one.dialogue}, “{one.heard.text}”{scene}"
    heat = plate(f"{plan.script}-heat", plots.heat_map(one), words, "Attention mass by expert and window over time")
    return [*plates, heat]


def corpus_plates(cards: dict[str, Row | str]) -> list[Plate]:
    """Balance of the labels of each subset of each corpus."""
    sources = []
    for name, card in cards.items():
        if isinstance(card, str):
            continue
        for scenario, labels in card.get("labels_by_scenario", {}).items():
            if any(labels.values()):
                title = f"{name} {SUBSETS.get(scenario, scenario)}"
                sources.append({"name": title, "splits": {"train": {"labels": labels}}})
    if not sources:
        return []
    caption = f"Balance of the labels of pitch, speed and emotion over all {len(SPLITS)} splits, by corpus and subset."
    return [plate("corpora-labels", plots.corpus_labels(sources), caption, "Shares of style labels as stacked bars")]


def plan_plates(plan: Plan, book: TestBook) -> tuple[list[Plate], list[tuple[str, Optimum]], list[Panel]]:
    """Every figure of a plan but those of the corpora, the optima fitted on the way, and the panels behind curves."""
    if plan.kind == "bars":
        return bar_plates(plan), [], []
    if plan.kind == "attention":
        return attention_plates(plan), [], []
    if plan.kind != "curve" and plan.script != "windows":
        return [], [], []
    found = panels(plan)
    if plan.x == "alpha" and found:
        plates, optima = alpha_plates(plan, found[0], book)
        return plates, optima, found
    return (curve_plates(plan, found) if found else []), [], found
