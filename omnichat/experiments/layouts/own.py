"""Our own predictions files."""

from __future__ import annotations

from pathlib import Path

from omnichat.evaluation.predictions import Prediction, read_predictions
from omnichat.experiments.layouts.base import Layout


class OmniChatPredictions(Layout):
    """Files that `omnichat evaluate` wrote, and run folders."""

    def read(self, path: Path) -> dict[str, tuple[Prediction, ...]]:
        """Return the file's replies; see `Layout.read`."""
        return {"": read_predictions(path)}
