"""Tables of the report, as data: one content for the HTML page and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy.stats import t as student_t

from omnichat.evaluation.bootstrap import holm
from omnichat.evaluation.score import METRICS, ScoreConfig, compare
from omnichat.experiments.runs import Row, Run, seed_groups, setting
from omnichat.utils.errors import UserError

DASH = "–"
SIGNIFICANT = 0.05
CHANCE = {
    "emotion_f1": "emotion_f1_chance",
    "emotion_f1_variants": "emotion_f1_variants_chance",
    "scene_hit": "scene_hit_chance",
}
# (metric, scenario) of the main table's figure columns; chance levels stand below the figures that they belong to
MAIN_COLUMNS = (
    ("emotion_f1", "all"),
    ("emotion_f1_variants", "all"),
    ("style_sensitivity", "all"),
    ("reply_sensitivity", "all"),
    ("scene_hit", "audio"),
    ("scene_hit", "music"),
    ("bleu", "all"),
    ("rouge_l", "all"),
    ("meteor", "all"),
    ("bertscore_f1", "all"),
    ("judge", "all"),
    ("reply_wer", "all"),
    ("reply_dnsmos", "all"),
)


def markdown_text(text: str) -> str:
    """Text on one line, with the signs escaped that would end a table cell or begin HTML."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: its text, small lines below, badges, and marks.

    `best`: the best value, apart from every other run's interval. `mark`: "better" or "worse" than the baseline by the
    paired test. `hint` is the tooltip that states the test.
    """

    text: str
    small: str = ""
    chance: str = ""
    badges: tuple[str, ...] = ()
    best: bool = False
    mark: str | None = None
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Column titles (with the tooltip of each) and rows of cells; `numeric` columns are set to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    hints: tuple[str, ...] = ()
    numeric: frozenset[int] = field(default_factory=frozenset)

    def markdown(self) -> str:
        """The table in Markdown."""

        def written(cell: Cell) -> str:
            body = f"**{markdown_text(cell.text)}**" if cell.best else markdown_text(cell.text)
            arrow = {"better": " ▲", "worse": " ▼", None: ""}[cell.mark]
            badges = "".join(f" [{markdown_text(badge)}]" for badge in cell.badges)
            below = "".join(f" {markdown_text(line)}" for line in (cell.small, cell.chance) if line)
            return body + arrow + below + badges

        lines = ["| " + " | ".join(markdown_text(title) for title in self.columns) + " |"]
        lines.append("|" + "|".join("---:" if i in self.numeric else "---" for i in range(len(self.columns))) + "|")
        lines += ["| " + " | ".join(written(cell) for cell in row) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A paired test of one run against the baseline, its p adjusted over the runs (Holm)."""

    run: str
    metric: str
    scenario: str
    difference: float
    ci95: tuple[float, float]
    p: float
    p_holm: float
    n: int

    @property
    def mark(self) -> str | None:
        """better, worse, or None where the adjusted p is not below 0.05 or the metric has no better side."""
        side = METRICS[self.metric].better if self.metric in METRICS else None
        if self.p_holm >= SIGNIFICANT or side is None or self.difference == 0:
            return None
        return "better" if (self.difference > 0) == (side == "higher") else "worse"


def paired_tests(runs: Sequence[Run], baseline: Run, split: str, config: ScoreConfig) -> list[Comparison]:
    """Test every other run against the baseline on one split; p adjusted over the runs for each metric and scenario."""
    found: list[tuple[str, Row]] = []
    for run in runs:
        if run is not baseline and split in run.predictions and split in baseline.predictions:
            tests = compare(run.predictions[split], baseline.predictions[split], config)
            found += [(run.name, test) for test in tests]
    return comparisons(found)


def comparisons(found: Sequence[tuple[str, Row]]) -> list[Comparison]:
    """The tests of (run, row of `compare`), their p adjusted over the runs for each metric and scenario (Holm)."""
    families: dict[tuple[str, str], list[int]] = {}
    for index, (_, test) in enumerate(found):
        families.setdefault((test["metric"], test["scenario"]), []).append(index)
    adjusted = [1.0] * len(found)
    for members in families.values():
        for index, p in zip(members, holm([found[i][1]["p"] for i in members]), strict=True):
            adjusted[index] = p
    fields = ("metric", "scenario", "difference", "p", "n")
    return [
        Comparison(run, ci95=tuple(test["ci95"]), p_holm=p, **{key: test[key] for key in fields})
        for (run, test), p in zip(found, adjusted, strict=True)
    ]


def figure_text(metric: str, value: float) -> str:
    """A value with the decimals of its metric."""
    return f"{value:.{METRICS[metric].decimals if metric in METRICS else 3}f}"


def interval_text(metric: str, row: Row, fewer: int = 0) -> str:
    """`[low, high]` with `fewer` decimals than the value, or nothing where there is no interval."""
    if not row.get("ci95"):
        return ""
    decimals = max(0, (METRICS[metric].decimals if metric in METRICS else 3) - fewer)
    return "[" + ", ".join(f"{bound:.{decimals}f}" for bound in row["ci95"]) + "]"


def stands_apart(row: Row, others: Sequence[Row], better: str | None) -> bool:
    """True where the row's interval lies wholly on the better side of every other row's interval."""
    if better is None or not others or not all(r.get("ci95") for r in (row, *others)):
        return False
    if better == "higher":
        return all(row["ci95"][0] > other["ci95"][1] for other in others)
    return all(row["ci95"][1] < other["ci95"][0] for other in others)


def runs_table(runs: Sequence[Run], split: str, tests: Sequence[Comparison], baseline: str | None = None) -> Table:
    """The main table: one run a row, figures with intervals, best values and paired differences marked."""
    shown = [pair for pair in MAIN_COLUMNS if any(run.metric(split, *pair) for run in runs)]
    columns = ["Run", "Input", "Alpha", "Steps", *(column_title(*pair) for pair in shown), "Dev loss"]
    hints = ["", "", "Asked share of real dialogues in training; below, the share that was drawn", ""]
    hints += [METRICS[metric].meaning for metric, _ in shown]
    hints.append("Last loss on the dev split, nats per supervised token")
    by_key = {(test.run, test.metric, test.scenario): test for test in tests}
    rows = []
    for run in runs:
        flags = (
            ("baseline", run.name == baseline),
            ("STAND-IN", run.stand_ins),
            ("random experts", run.random_experts),
        )
        cells = [Cell(run.name, badges=tuple(text for text, flag in flags if flag)), Cell(run.input or DASH)]
        cells += [_alpha_cell(run), Cell(DASH if run.last_step is None else str(run.last_step))]
        cells += [figure_cell(runs, run, split, *pair, by_key.get((run.name, *pair))) for pair in shown]
        losses = [row["loss"] for row in run.dev if isinstance(row.get("loss"), int | float)]
        cells.append(Cell(f"{losses[-1]:.3f}" if losses else DASH))
        rows.append(tuple(cells))
    return Table(tuple(columns), tuple(rows), tuple(hints), frozenset(range(2, len(columns))))


def column_title(metric: str, scenario: str) -> str:
    """The metric's title, with the scenario where it is one."""
    return METRICS[metric].title if scenario == "all" else f"{METRICS[metric].title}, {scenario}"


def figure_cell(runs: Sequence[Run], run: Run, split: str, metric: str, scenario: str, test: Comparison | None) -> Cell:
    """A run's figure with its interval and chance level, marked where it is the best of `runs` or differs by `test`."""
    row = run.metric(split, metric, scenario)
    if row is None:
        return Cell(DASH)
    rest = [other.metric(split, metric, scenario) for other in runs if other is not run]
    best = stands_apart(row, [other for other in rest if other], METRICS[metric].better)
    hint = f"n = {row['n']}" + (f"; {row['note']}" if row.get("note") else "")
    if test is not None:
        hint += f"; against the baseline {test.difference:+.3f}, Holm-adjusted p = {test.p_holm:.3f}"
    chance = run.metric(split, CHANCE[metric], scenario) if metric in CHANCE else None
    level = f"chance {chance['value']:.3f}" if chance else ""
    mark = test.mark if test is not None else None
    return Cell(
        figure_text(metric, row["value"]), interval_text(metric, row, 1), chance=level, best=best, mark=mark, hint=hint
    )


def _alpha_cell(run: Run) -> Cell:
    """Alpha asked (its knots, where it moves) and, below, realised; the hint has the interval and what is counted."""
    asked = DASH if run.alpha is None else f"{run.alpha:g}"
    if knots := run.data.get("schedule"):
        asked = " → ".join(f"{alpha:g}" for _, alpha in knots)
    realised, ci95 = run.data.get("alpha_realised"), run.data.get("alpha_ci95")
    if realised is None:
        return Cell(asked)
    unit = str(run.data.get("unit", "dialogue"))
    counted = "" if unit == "dialogue" else f" of the {unit}s"
    hint = f"real share of the {unit}s" + (f", 95 % interval [{ci95[0]:.3f}, {ci95[1]:.3f}]" if ci95 else "")
    if unit != "dialogue" and run.data.get("alpha_dialogues") is not None:
        hint += f"; {run.data['alpha_dialogues']:.3f} of the dialogues"
    return Cell(asked, f"drew {realised:.3f}{counted}", hint=hint)


def data_table(runs: Sequence[Run]) -> Table:
    """What each run was trained on: one row for each source of each run."""
    columns = ("Run", "Source", "Kind", "Weight", "Drawn", "Share", "Epochs", "Train", "Dev", "Test", "Manifest")
    rows = []
    for run in runs:
        for source in run.sources:
            badges = ("STAND-IN",) if source.get("stand_in") else ()
            cells = [Cell(run.name), Cell(str(source["name"]), badges=badges), Cell(str(source.get("kind", DASH)))]
            weight = "its size" if "weight" in source and source["weight"] is None else None
            left_out = f"{source['left_out']:,d} left out" if source.get("left_out") else ""
            cells.append(Cell(weight or number_text(source.get("weight"), "g")))
            cells.append(Cell(number_text(source.get("drawn"), ",d"), left_out))
            cells.append(Cell(number_text(source.get("share"), ".3f"), str(run.data.get("unit", ""))))
            cells.append(Cell(number_text(source.get("epochs"), ".2f")))
            for split in ("train", "dev", "test"):
                part = source.get("splits", {}).get(split)
                if not part or not part.get("dialogues"):
                    cells.append(Cell(DASH))
                    continue
                size = f"{part['dialogues']:,} dialogues"
                cells.append(Cell(size, f"{part.get('turns', 0):,} turns, {part.get('hours', 0):.2f} h"))
            cells.append(Cell(str(source.get("fingerprint", DASH))[:10], hint=str(source.get("fingerprint", ""))))
            rows.append(tuple(cells))
    return Table(columns, tuple(rows), numeric=frozenset(range(3, 7)))


def setup_table(runs: Sequence[Run]) -> Table:
    """How each run was made: seed, parts, parameters, wall time, hardware, versions."""
    rows = []
    for run in runs:
        experts = [str(e["name"]) + (" (random)" if e.get("random") else "") for e in run.info.get("experts", ())]
        parameters = run.info.get("parameters", {})
        fusion = str(setting(run.config, "fusion._target_") or DASH).rsplit(".", 1)[-1]
        window, queries = setting(run.config, "fusion.window_sec"), setting(run.config, "fusion.queries")
        details = [
            f"{window:g} s window" if isinstance(window, int | float) else "",
            f"K = {queries}" if queries else "",
        ]
        sized = (run.info.get("fusion") or {}).get("parameters")
        details += [f"{sized:,d} parameters"] if isinstance(sized, int) else []
        wall = run.info.get("wall_seconds")
        versions = ", ".join(f"{name} {version}" for name, version in dict(run.info.get("versions", {})).items())
        rows.append(
            (
                Cell(run.name, run.state),
                Cell(DASH if run.seed is None else str(run.seed)),
                Cell(", ".join(experts) or DASH),
                Cell(fusion, ", ".join(part for part in details if part)),
                Cell(_leaf(setting(run.config, "llm.path"))),
                Cell(number_text(parameters.get("trainable"), ",d"), f"of {number_text(_total(parameters), ',d')}"),
                Cell(DASH if wall is None else duration(float(wall))),
                Cell(_flat(run.info.get("hardware"))),
                Cell(versions or DASH),
            )
        )
    columns = ("Run", "Seed", "Experts", "Fusion", "LLM", "Trainable", "Wall time", "Hardware", "Versions")
    return Table(columns, tuple(rows), numeric=frozenset({1, 5, 6}))


def all_figures_table(runs: Sequence[Run]) -> Table:
    """Every row of every metrics.json."""
    rows = []
    for run in runs:
        for row in run.metrics:
            info = METRICS.get(row["metric"])
            value = Cell(figure_text(row["metric"], row["value"]), interval_text(row["metric"], row))
            head = (Cell(run.name), Cell(row["split"]), Cell(row["scenario"]))
            title = Cell(info.title if info else row["metric"])
            rows.append((*head, title, value, Cell(str(row["n"])), Cell(str(row.get("note", "")))))
    columns = ("Run", "Split", "Scenario", "Metric", "Value", "n", "Note")
    return Table(columns, tuple(rows), numeric=frozenset({4, 5}))


def tests_table(tests: Sequence[Comparison]) -> Table:
    """Every paired test."""
    rows = []
    for test in tests:
        info = METRICS.get(test.metric)
        low, high = (f"{bound:+.{info.decimals if info else 3}f}" for bound in test.ci95)
        difference = Cell(f"{test.difference:+.{info.decimals if info else 3}f}", f"[{low}, {high}]", mark=test.mark)
        head = (Cell(test.run), Cell(test.scenario), Cell(info.title if info else test.metric), difference)
        rows.append((*head, Cell(f"{test.p:.3f}"), Cell(f"{test.p_holm:.3f}"), Cell(str(test.n))))
    columns = ("Run", "Scenario", "Metric", "Difference", "p", "p (Holm)", "n")
    return Table(columns, tuple(rows), numeric=frozenset({3, 4, 5, 6}))


def seeds_table(runs: Sequence[Run], split: str) -> Table | None:
    """Mean over the seeds of a recipe with Student's 95 % interval; None where no recipe has two seeds."""
    groups = [group for group in seed_groups(runs) if len({run.seed for run in group}) > 1]
    if not groups:
        return None
    shown = [pair for pair in MAIN_COLUMNS if any(run.metric(split, *pair) for group in groups for run in group)]
    rows = []
    for group in groups:
        cells = [Cell(", ".join(run.name for run in group)), Cell(", ".join(str(run.seed) for run in group))]
        for metric, scenario in shown:
            found = [row["value"] for run in group if (row := run.metric(split, metric, scenario))]
            cells.append(_mean_cell(metric, found))
        rows.append(tuple(cells))
    columns = ("Runs", "Seeds", *(column_title(*pair) for pair in shown))
    return Table(columns, tuple(rows), numeric=frozenset(range(2, len(columns))))


def _mean_cell(metric: str, values: Sequence[float]) -> Cell:
    if len(values) < 2:
        return Cell(DASH)
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = float(student_t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
    low, high = figure_text(metric, mean - half), figure_text(metric, mean + half)
    return Cell(figure_text(metric, mean), f"[{low}, {high}]", hint=f"{len(values)} seeds")


def duration(seconds: float) -> str:
    """1 h 05 min, 6 min 30 s, 12 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def number_text(value: Any, spec: str) -> str:
    """A number of a run folder by a format's specification, a dash where there is none."""
    if value is None:
        return DASH
    if not isinstance(value, int | float):
        raise UserError(f"run data: expected a number, got {value!r}")
    return format(round(value) if spec.endswith("d") else value, spec)


def _total(parameters: Row) -> int | None:
    counts = [parameters.get(key) for key in ("trainable", "frozen")]
    return None if any(count is None for count in counts) else sum(count for count in counts if count is not None)


def _leaf(path: Any) -> str:
    return DASH if path is None else str(path).rstrip("/").rsplit("/", 1)[-1]


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return DASH if value is None else str(value)
