"""The fusion ablation: one row a run, with what a fusion costs beside what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from omnichat.evaluation.score import METRICS, ScoreConfig
from omnichat.experiments.runs import Run, seed_groups, setting
from omnichat.experiments.tables import (
    DASH,
    Cell,
    Comparison,
    Table,
    column_title,
    figure_cell,
    number_text,
    paired_tests,
)

# What the style of the reply tells of how well a turn was heard.
FIGURES = ("emotion_f1", "emotion_f1_variants", "pitch_accuracy", "speed_accuracy")
TESTED = "emotion_f1"


def compares_fusions(runs: Sequence[Run]) -> bool:
    """Whether the runs that hear differ in their fusion."""
    return len({str(setting(run.config, "fusion")) for run in runs if run.info.get("fusion")}) > 1


def fusion_tests(runs: Sequence[Run], baseline: Run, split: str, config: ScoreConfig) -> list[Comparison]:
    """Paired tests of every run against the run of the baseline's recipe that has its own seed.

    p is adjusted (Holm) over the runs of a seed. A run whose seed the baseline lacks is not tested; none is against a
    baseline that has no fusion.
    """
    if not baseline.info.get("fusion"):
        return []
    recipe = next(group for group in seed_groups(runs) if baseline in group)
    found: list[Comparison] = []
    for base in recipe:
        same = [run for run in runs if run.seed == base.seed and (run is base or run not in recipe)]
        found += paired_tests(same, base, split, config)
    return found


def fusion_table(runs: Sequence[Run], split: str, tests: Sequence[Comparison] = (), baseline: str = "") -> Table:
    """Size, cost and figures of each run that hears: from run.json, data.json, log.jsonl and metrics.json alone.

    Args:
        runs: in the order of the rows; runs without a fusion are left out.
        split: whose figures are shown.
        tests: paired tests (see `fusion_tests`); without any the last column is left out.
        baseline: name of the run that they are against, for the column's title.
    """
    runs = [run for run in runs if run.info.get("fusion")]
    shown = [metric for metric in FIGURES if any(run.metric(split, metric) for run in runs)]
    by_key = {(test.run, test.metric): test for test in tests if test.scenario == "all"}
    columns = ["Run", "Fusion", "Parameters", "Slots / s", "Steps", "Dialogues", "s / step", "Dev loss"]
    hints = ["", "", "Of the fusion alone", "LLM positions a second of training audio", "", "Drawn in training"]
    hints += ["Median over the steps", "Last loss on the dev split, nats per supervised token"]
    columns += [column_title(metric, "all") for metric in shown]
    hints += [METRICS[metric].meaning for metric in shown]
    if tests:
        columns.append(f"{METRICS[TESTED].title} against {baseline}")
        hints.append("Paired bootstrap of the same replies, same seed; p adjusted over the runs (Holm)")
    rows = []
    for run in runs:
        fusion = run.info["fusion"]
        took = [row["seconds"] for row in run.steps if isinstance(row.get("seconds"), int | float)]
        losses = [row["loss"] for row in run.dev if isinstance(row.get("loss"), int | float)]
        drawn = [source["drawn"] for source in run.sources if isinstance(source.get("drawn"), int)]
        badges = tuple(text for text, flag in (("unfinished", run.state != "finished"),) if flag)
        cells = [Cell(run.name, badges=badges), Cell(str(fusion.get("class", DASH)))]
        cells += [
            Cell(number_text(fusion.get("parameters"), ",d")),
            Cell(number_text(fusion.get("slots_per_sec"), ".2f")),
        ]
        cells += [Cell(number_text(run.last_step, "d")), Cell(number_text(sum(drawn) if drawn else None, ",d"))]
        cells += [Cell(number_text(median(took) if took else None, ".2f"))]
        cells += [Cell(number_text(losses[-1] if losses else None, ".3f"))]
        cells += [figure_cell(runs, run, split, metric, "all", by_key.get((run.name, metric))) for metric in shown]
        if tests:
            cells.append(_test_cell(by_key.get((run.name, TESTED))))
        rows.append(tuple(cells))
    return Table(tuple(columns), tuple(rows), tuple(hints), frozenset(range(2, len(columns))))


def _test_cell(test: Comparison | None) -> Cell:
    if test is None:
        return Cell(DASH)
    decimals = METRICS[TESTED].decimals
    low, high = (f"{bound:+.{decimals}f}" for bound in test.ci95)
    small = f"[{low}, {high}], p = {test.p_holm:.3f}"
    return Cell(f"{test.difference:+.{decimals}f}", small, mark=test.mark, hint=f"n = {test.n}")
