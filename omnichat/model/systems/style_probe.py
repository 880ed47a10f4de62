"""How a turn was spoken, measured: linear probes on a frozen expert, fitted on the training split's own labels.

The usual way to read emotion off a speech encoder (Yang et al., 2021, SUPERB, arXiv 2105.01051): frames pooled over
time, one linear classifier an attribute.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from omnichat.audio.io import load_audio
from omnichat.encoders.base import AudioEncoder
from omnichat.model.systems.base import SeenTurn
from omnichat.schema import Style
from omnichat.utils.devices import resolve_device
from omnichat.utils.errors import UserError
from omnichat.utils.files import sha256_bytes
from omnichat.utils.progress import progress

KEY = "system.probe"
ATTRIBUTES = ("pitch", "speed", "emotion")
_FOLDS = 5
_CHUNK = 64  # clips loaded at a time


class StyleProbe:
    """Pitch, speed and emotion of a recording, as far as the training split labels them.

    Args:
        expert: a frozen encoder; its frames' mean and spread over time are what the probes see.
        device: auto | cpu | cuda | cuda:N.
        regularisation: strength of the L2 penalty on the probes' weights (1 / C of scikit-learn), > 0.
        max_clips: training recordings at most; which ones is settled by their hashes.
        min_clips: with fewer labelled recordings of an attribute it is not told.
    """

    def __init__(
        self, expert: AudioEncoder, device: str, regularisation: float, max_clips: int, min_clips: int
    ) -> None:
        if not regularisation > 0:
            raise UserError(f"{KEY}.regularisation must be positive, got {regularisation}")
        if not 1 <= min_clips <= max_clips:
            raise UserError(f"{KEY} needs 1 <= min_clips <= max_clips, got {min_clips} and {max_clips}")
        self.device = resolve_device(device, f"{KEY}.device")
        self.expert, self.regularisation = expert, regularisation
        self.max_clips, self.min_clips = max_clips, min_clips
        self._probes: dict[str, Any] = {}
        self._told: dict[str, Style] = {}  # SHA-256 of a recording -> what was measured
        self.accuracy: dict[str, tuple[float, int]] = {}  # attribute -> cross-validated accuracy, clips

    def load(self) -> None:
        """Bring the expert to its device."""
        self.expert.to(self.device)

    def fit(self, turns: Iterable[SeenTurn]) -> None:
        """Fit a probe for every attribute that at least `min_clips` recordings label, with two labels or more.

        Raises:
            UserError: no attribute can be told.
        """
        labelled = {str(turn.sha256): turn for turn in turns if turn.audio is not None and turn.style}
        chosen = [labelled[sha256] for sha256 in sorted(labelled)[: self.max_clips]]
        x_ND = self._pooled(chosen, "fit style probes")
        for attribute in ATTRIBUTES:
            labels = [getattr(turn.style, attribute) for turn in chosen]
            rows = [row for row, label in enumerate(labels) if label is not None]
            y_N = np.array([labels[row] for row in rows])
            kinds, counts = np.unique(y_N, return_counts=True) if rows else (np.array([]), np.array([]))
            if len(rows) < self.min_clips or len(kinds) < 2:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the accuracy says how good it is
                if (folds := min(_FOLDS, int(counts.min()))) >= 2:
                    split = StratifiedKFold(folds, shuffle=True, random_state=0)
                    score = float(cross_val_score(self._classifier(), x_ND[rows], y_N, cv=split).mean())
                    self.accuracy[attribute] = round(score, 4), len(rows)
                self._probes[attribute] = self._classifier().fit(x_ND[rows], y_N)
        if not self._probes:
            raise UserError(
                f"{KEY}: the training split has {len(chosen)} recordings with a style label, too few or all alike for "
                f"min_clips={self.min_clips}; give a corpus with labels, or system.style_tags=gold"
            )
        facts = "".join(f"{turn.sha256} {turn.style}\n" for turn in chosen)
        self._fitted_on = {"clips": len(chosen), "clips_sha256": sha256_bytes(facts.encode())}

    def styles(self, turns: Sequence[SeenTurn]) -> list[Style]:
        """The measured style of each recorded turn; an attribute without a probe is None."""
        assert self._probes, "fit() comes first"
        new = list({str(turn.sha256): turn for turn in turns if str(turn.sha256) not in self._told}.values())
        if new:
            x_ND = self._pooled(new, None)
            found = {name: probe.predict(x_ND) for name, probe in self._probes.items()}
            for row, turn in enumerate(new):
                self._told[str(turn.sha256)] = Style(**{name: str(labels[row]) for name, labels in found.items()})
        return [self._told[str(turn.sha256)] for turn in turns]

    def describe(self) -> dict[str, Any]:
        """What sets the tags, as JSON."""
        return {
            "tags": "measured",
            "expert": self.expert.fingerprint(),
            "expert_description": self.expert.description,
            "attributes": list(self._probes),
            "regularisation": self.regularisation,
            "accuracy": {name: {"value": value, "n": n} for name, (value, n) in self.accuracy.items()},
            **self._fitted_on,
        }

    def summary(self) -> str:
        """One line for the report."""
        figures = [f"{name} {self.accuracy[name][0]:.0%}" if name in self.accuracy else name for name in self._probes]
        return (
            f"linear probes on {self.expert.description}, fitted on {self._fitted_on['clips']} training recordings "
            f"(accuracy on held-out ones: {', '.join(figures)})"
        )

    def _classifier(self) -> Any:
        model = LogisticRegression(C=1 / self.regularisation, class_weight="balanced", max_iter=500)
        return make_pipeline(StandardScaler(), model)

    @torch.inference_mode()
    def _pooled(self, turns: Sequence[SeenTurn], title: str | None) -> np.ndarray:
        """Mean and standard deviation over time of each clip's frames: float32 [N, D]."""
        rows: list[np.ndarray] = []
        bar = progress(len(turns), title, unit="clip") if title is not None else None
        for start in range(0, len(turns), _CHUNK):
            chunk = turns[start : start + _CHUNK]
            waves = [load_audio(turn.audio, self.expert.sample_rate) for turn in chunk if turn.audio is not None]
            for clip in self.expert.encode_clips([self.expert.frontend(wave) for wave in waves]):
                x_TD = clip.x_TD.float()
                spread = x_TD.std(dim=-2, correction=0)
                rows.append(torch.cat([x_TD.mean(dim=-2).flatten(), spread.flatten()]).cpu().numpy())
            if bar is not None:
                bar.update(len(chunk))
        if bar is not None:
            bar.close()
        return np.stack(rows) if rows else np.zeros((0, 1), dtype=np.float32)
