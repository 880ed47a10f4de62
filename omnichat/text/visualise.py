"""A training sequence in colour: one role a colour, supervised tokens bold, audio windows counted."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from omnichat.schema import Dialogue
from omnichat.text.chat import IGNORE, ChatSequence, Role

COLOURS = {
    Role.TEMPLATE: "bright_black",
    Role.USER_TEXT: "cyan",
    Role.AUDIO: "magenta",
    Role.STYLE: "yellow",
    Role.WORDS: "green",
    Role.END: "red",
}


def render_sequence(sequence: ChatSequence, tokenizer: Any, window_sec: float | None) -> Text:
    """Return the sequence as coloured text; a run of audio slots is shown as one block with windows and seconds."""
    text = Text()
    clips = iter(sequence.clips)
    position = 0
    while position < len(sequence):
        role = Role(sequence.roles[position])
        if role == Role.AUDIO:
            clip = next(clips)
            label = f"▐audio turn {clip.turn}: {clip.slots} slots, {clip.seconds:.2f} s"
            label += f", windows of {window_sec} s▌" if window_sec else "▌"
            text.append(label, style=COLOURS[role])
            position += clip.slots
            continue
        style = COLOURS[role] + (" bold underline" if sequence.labels[position] != IGNORE else "")
        text.append(tokenizer.decode([sequence.ids[position]]), style=style)
        position += 1
    return text


def print_sequence(
    console: Console, dialogue: Dialogue, sequence: ChatSequence, tokenizer: Any, window_sec: float | None
) -> None:
    """Print legend, sequence and a table of counts by role."""
    console.print(
        f"[bold]{dialogue.id}[/bold]  {dialogue.source} ({dialogue.kind}, {dialogue.scenario})", style="white"
    )
    legend = Text("legend: ")
    for role, colour in COLOURS.items():
        legend.append(f" {role.name.lower()} ", style=f"{colour} reverse")
    legend.append("  bold underline = supervised")
    console.print(legend)
    console.print(render_sequence(sequence, tokenizer, window_sec))
    table = Table("role", "positions", "supervised", title=f"{len(sequence)} positions")
    for role in Role:
        at = [i for i, r in enumerate(sequence.roles) if r == role]
        table.add_row(role.name.lower(), str(len(at)), str(sum(sequence.labels[i] != IGNORE for i in at)))
    console.print(table)
