"""The figures of a bench as text for a terminal, from bench.json alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

_MB = 1e6
# Row, compared with everything on: what the number says.
HEAD = ("variant", "turns/s", "tokens/s", "padding", "peak MB", "on / it", "range", "target", "holds")


def bench_text(result: Mapping[str, Any]) -> str:
    """Every table, and what bounds a step."""
    machine, used = result["machine"], result["profile"]
    parts = [
        f"{machine['gpu'] or machine['processor']}, {machine['torch_threads']} torch threads, {result['precision']}",
        variants_text(result["variants"]),
        "padding of the corpus in batches: " + _shares(result["padding_of_the_corpus"], ".1%"),
        mfu_text(used),
        growth_text(result["growth"]),
    ]
    return "\n\n".join(part for part in parts if part)


def variants_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a variant; `on / it` is the supervised turns/s of everything on over those of the variant."""
    lines = []
    for row in rows:
        against = row.get("reference_over_it")
        lines.append(
            (
                row["variant"],
                f"{row['turns_a_second']['median']:.2f}",
                f"{row['tokens_a_second']['median']:.0f}",
                f"{row['padding']:.1%}",
                f"{row['peak_bytes']['median'] / _MB:.0f}" if row["peak_bytes"] else "-",
                f"{against['median']:.2f}" if against else "",
                f"{against['min']:.2f}..{against['max']:.2f}" if against else "",
                f">= {row['target']:g}" if "target" in row else "",
                ("yes" if row["holds"] else "NO") if "target" in row else "",
            )
        )
    return _columns(HEAD, lines)


def mfu_text(used: Mapping[str, Any]) -> str:
    """LoRA-MFU, where the time goes, and what bounds it."""
    peak = used["matrix_peak_flops"]["median"] / 1e9
    return (
        f"LoRA-MFU {used['lora_mfu']['median']:.1%} (4 x parameters x tokens/s); of what the mathematics needs "
        f"{used['mfu']['median']:.1%}; matrix peak {peak:.0f} GFLOP/s\n"
        f"a step: {_shares(used['stages'], '.0%')}\noperators: {_shares(used['kernels'], '.0%')}\n"
        f"what bounds it: {used['bound_by']}"
    )


def growth_text(growth: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Three small tables; a growth that was left out has none."""
    tables = []
    for key in ("turns", "batch_tokens"):
        lines = [
            (
                *(str(point[name]) for name in (key, "way") if name in point),
                f"{_speed(point['passes'], 'turns'):.2f}",
                f"{_speed(point['passes'], 'tokens'):.0f}",
                f"{peak / _MB:.0f}" if (peak := point_peak(point["passes"])) is not None else "-",
            )
            for point in growth[key]
        ]
        head = (key.replace("_", " "), *(["way"] if key == "turns" else []), "turns/s", "tokens/s", "peak MB")
        tables.append(_columns(head, lines) if lines else "")
    lines = [
        (
            str(point["dialogues"]),
            f"{point['load_seconds']:.1f}",
            f"{point['start_seconds']:.1f}",
            f"{point['bytes'] / _MB:.0f}",
            f"{point['draws_a_second']:.0f}",
        )
        for point in growth["dialogues"]
    ]
    head = ("dialogues", "read s", "ready s", "MB", "draws/s")
    tables.append(_columns(head, lines) if lines else "")
    return "\n\n".join(table for table in tables if table)


def point_peak(passes: Sequence[Mapping[str, Any]]) -> float | None:
    """Median peak memory of the passes in bytes; None where it was not measured."""
    peaks = [one["peak_bytes"] for one in passes if one["peak_bytes"] is not None]
    return median(peaks) if peaks else None


def _shares(parts: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{name} {share:{form}}" for name, share in parts.items())


def _speed(passes: Sequence[Mapping[str, Any]], what: str) -> float:
    return median(one[what] / one["seconds"] for one in passes)


def _columns(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in [head, *lines]
    )
