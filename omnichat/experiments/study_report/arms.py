"""Figures of an arm over its seeds, and paired tests of arms against the plan's baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from omnichat.evaluation.bootstrap import Measure, PairedTest, holm
from omnichat.evaluation.predictions import Prediction, read_predictions
from omnichat.evaluation.score import METRICS, MetricInfo, ScoreConfig, measures
from omnichat.evaluation.seeds import SeedSummary, seed_summary, seeds_test
from omnichat.experiments.runs import Row, Run
from omnichat.experiments.study_report.study import Arm, Plan
from omnichat.experiments.tables import SIGNIFICANT

PAPER_METRICS = ("bleu", "rouge_l", "meteor", "bertscore_f1", "emotion_f1")
OUR_METRICS = ("emotion_f1_variants", "style_sensitivity", "reply_sensitivity", "scene_hit")
FIGURE_METRICS = ("emotion_f1", "emotion_f1_variants", "style_sensitivity", "bleu")


@dataclass(frozen=True, slots=True)
class Block:
    """Which replies a figure is of: a scenario of the study's own test set, or an outside set."""

    title: str
    scenario: str = "all"
    dataset: str | None = None


@dataclass(frozen=True, slots=True)
class ArmTest:
    """A paired test of an arm against the baseline, p adjusted over the arms (Holm)."""

    arm: str
    metric: str
    block: Block
    test: PairedTest
    p_holm: float

    @property
    def mark(self) -> str | None:
        """better, worse, or None where the adjusted p is not below 0.05 or neither side of the metric is better."""
        side = info(self.metric).better
        if self.p_holm >= SIGNIFICANT or side is None or self.test.difference == 0:
            return None
        return "better" if (self.test.difference > 0) == (side == "higher") else "worse"


def info(metric: str) -> MetricInfo:
    """A metric's description; of one that the scorer does not know (a newer file's) its name alone."""
    return METRICS.get(metric) or MetricInfo(metric.replace("_", " ").capitalize(), None, 3, "")


def text_of(metric: str, value: float) -> str:
    """A value with the decimals of its metric."""
    return f"{value:.{info(metric).decimals}f}"


def interval_of(metric: str, bounds: tuple[float, float] | None) -> str:
    """`[low, high]`, or nothing where it is unknown."""
    return "" if bounds is None else f"[{text_of(metric, bounds[0])}, {text_of(metric, bounds[1])}]"


def figure_row(run: Run, split: str, metric: str, block: Block) -> Row | None:
    """The row of metrics.json that holds a figure of one run; rows of outside sets carry "set" or "source:NAME"."""
    for row in run.metrics:
        if (row["split"], row["metric"]) != (split, metric):
            continue
        if (row.get("set") or None, row["scenario"]) in _places(block):
            return row
    return None


def _places(block: Block) -> set[tuple[str | None, str]]:
    """(set, scenario) as a row of metrics.json may state a block's place."""
    if block.dataset is None:
        return {(None, block.scenario)}
    named = f"source:{block.dataset}" + ("" if block.scenario == "all" else f"/{block.scenario}")
    return {(block.dataset, block.scenario), (block.dataset, named), (None, named)}


def summary(arm: Arm, split: str, metric: str, block: Block) -> SeedSummary | None:
    """The arm's figure over its seeds; None where no seed has it."""
    rows = [row for run in arm.counted if (row := figure_row(run, split, metric, block))]
    if not rows:
        return None
    return seed_summary(rows, info(metric).bottom, math.inf if info(metric).open_ended else info(metric).top)


def present(plan: Plan, metric: str) -> bool:
    """Whether any run of the plan has the metric."""
    return any(row["metric"] == metric for run in plan.runs for row in run.metrics)


def plan_metrics(plan: Plan) -> list[str]:
    """The columns: the paper's in its order, the judge's score where there is one, then ours."""
    graded = [metric for metric in ("judge",) if present(plan, metric)]
    asked = list(plan.metrics)
    if plan.kind == "table":
        paper = [metric for metric in PAPER_METRICS if not asked or metric in asked]
        rest = asked or [metric for metric in OUR_METRICS if present(plan, metric)]
        return list(dict.fromkeys([*paper, *graded, *rest]))
    return asked or [metric for metric in FIGURE_METRICS if present(plan, metric)] or ["emotion_f1"]


def outside_sets(plan: Plan) -> list[str]:
    """The plan's outside sets; where it does not say, those neither trained on nor among the runs' own replies."""
    if plan.sets is not None:
        return list(plan.sets)
    own = {str(source["name"]) for run in plan.runs for source in run.sources}
    own |= {p.source for run in plan.runs for part in run.predictions.values() for p in part}
    names: dict[str, None] = {}
    for run in plan.runs:
        for row in run.metrics:
            if row.get("set"):
                names[str(row["set"])] = None
            elif run.predictions and str(row["scenario"]).startswith("source:"):
                name = str(row["scenario"]).removeprefix("source:")
                if name not in own:
                    names[name] = None
    return list(names)


def blocks_of(plan: Plan) -> list[Block]:
    """The row groups of a plan's table: the subsets that its script is about, then the outside sets."""
    subsets = {"dailytalk": ("daily",), "sharechatx": ("emotion", "audio", "music")}.get(plan.script, ())
    stand_in = {
        p.scenario for run in plan.runs for p in run.predictions.get(plan.report_on, ()) if p.stand_in
    }  # of scenarios
    titles = {s: f"ShareChatX-{s.capitalize()}" for s in ("emotion", "audio", "music")} | {"daily": "DailyTalk"}
    found = []
    for scenario in subsets:
        rows = [row for run in plan.runs for row in run.metrics if row["scenario"] == scenario]
        if any(row["split"] == plan.report_on and not row.get("set") for row in rows):
            mark = " (stand-in)" if scenario in stand_in else ""
            found.append(Block(titles[scenario] + mark, scenario))
    found = found or [Block("All scenarios" + (", stand-in data among them" if stand_in else ""))]
    return found + [Block(f"Outside set: {name}", dataset=name) for name in outside_sets(plan)]


@dataclass(slots=True)
class TestBook:
    """Measures of runs, computed once each, and the tests that need them."""

    __test__ = False  # no test class, whatever its name looks like
    config: ScoreConfig
    _measures: dict[tuple[Path, str, str | None], tuple[list[str], dict[str, Measure]]] = field(default_factory=dict)

    def measure(self, run: Run, split: str, metric: str, block: Block) -> Measure | None:
        """One metric of one run on one split and block, from its predictions; None where it has no item."""
        key = (run.folder, split, block.dataset)
        if key not in self._measures:
            predictions = _predictions(run, split, block.dataset)
            found = measures(predictions, None) if predictions else {}
            self._measures[key] = [p.scenario for p in predictions], found
        scenarios, by_metric = self._measures[key]
        if metric not in by_metric:
            return None
        part = by_metric[metric].select(np.array([block.scenario in ("all", s) for s in scenarios]))
        return part if part.n else None

    def tests(self, plan: Plan, block: Block, metrics: Sequence[str]) -> list[ArmTest]:
        """Every arm against the plan's baseline; metrics that need a model are left out."""
        against = plan.against
        if against is None:
            return []
        found: list[ArmTest] = []
        for metric in metrics:
            results: list[tuple[str, PairedTest]] = []
            for arm in plan.arms:
                if arm is not against and (test := self._test(arm, against, plan.report_on, metric, block)):
                    results.append((arm.label, test))
            adjusted = holm([test.p for _, test in results])
            found += [
                ArmTest(label, metric, block, test, p) for (label, test), p in zip(results, adjusted, strict=True)
            ]
        return found

    def _test(self, arm: Arm, against: Arm, split: str, metric: str, block: Block) -> PairedTest | None:
        mine, theirs = (
            [found for run in side.counted if (found := self.measure(run, split, metric, block))]
            for side in (arm, against)
        )
        if not mine or not theirs:
            return None
        return seeds_test(mine, theirs, self.config.bootstrap_samples, self.config.seed)


def _predictions(run: Run, split: str, dataset: str | None) -> Sequence[Prediction]:
    """A run's replies on its own test set, or on one from outside, which has a file of its own."""
    if dataset is None:
        return run.predictions.get(split, ())
    path = run.folder / "predictions" / f"{dataset}.{split}.jsonl"
    return read_predictions(path) if path.is_file() else ()
