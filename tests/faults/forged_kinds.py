"""Every kind of forged input."""

from __future__ import annotations

from tests.faults import forged_audio, forged_made, forged_text
from tests.faults.forged import Kind

KINDS: tuple[Kind, ...] = (
    forged_audio.audio_header,
    forged_audio.audio_samples,
    forged_audio.audio_names,
    forged_audio.dataset_cells,
    forged_text.caption_table,
    forged_text.caption_cells,
    forged_text.script_fields,
    forged_text.script_words,
    forged_text.script_repeats,
    forged_text.script_bytes,
    forged_text.topics,
    forged_made.answers_sent,
    forged_made.answers_shape,
    forged_made.answers_words,
    forged_made.answers_kept,
    forged_made.voices,
    forged_made.work_files,
    forged_made.work_entries,
)
