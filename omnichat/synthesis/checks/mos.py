"""Does the clip sound clean? DNSMOS P.835 (Reddy, Gopal and Cutler, 2022): opinion scores as a network gives them.

The ONNX model of the speechmos package runs here in a few lines of our own; it hears 9.01 s at 16 kHz, so a shorter
clip is doubled until it is that long, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnichat.synthesis.checks.base import Check, Clip, Finding, histogram, lowest, need_rate, unusable, with_fresh
from omnichat.utils.assets import resolve_path
from omnichat.utils.errors import UserError

RATE_HZ = 16000
_WINDOW = 144160  # samples, 9.01 s
MOS_EDGES = tuple(round(1.0 + 0.25 * i, 2) for i in range(17))
# From the network's raw scores to opinions, as published: coefficients from the square down.
_CURVES = {
    "speech": (-0.08397278, 1.22083953, 0.0052439),
    "background": (-0.13166888, 1.60915514, -0.39604546),
    "overall": (-0.06766283, 1.11546468, 0.04602535),
}


class MosCheck(Check):
    """Predicted mean opinion score, 1 to 5, of each turn: speech, background and overall.

    Args:
        path: DNSMOS's sig_bak_ovr.onnx.
        min_overall: lowest overall score of a turn. min_dialogue: lowest mean of a dialogue.
        windows: how many windows of a clip are averaged at most, a second apart. A doubled clip sounds alike in all of
            them; null = all, as the speechmos package has it.
    """

    name = "mos"

    def __init__(self, path: str, min_overall: float, min_dialogue: float, windows: int | None) -> None:
        if not 0 <= min_overall <= 5 or not 0 <= min_dialogue <= 5:
            raise UserError("checks.mos needs min_overall and min_dialogue in [0, 5]")
        if windows is not None and windows < 1:
            raise UserError(f"checks.mos.windows must be >= 1 or null, got {windows}")
        self.path = path
        self.min_overall = min_overall
        self.min_dialogue = min_dialogue
        self.windows = windows
        self._session: Any = None

    def examine(self, clips: Sequence[Clip]) -> Finding:
        """See `Check.examine`; clips carry "speech", "background" and "overall", the dialogue its mean "overall"."""
        need_rate(clips, RATE_HZ, self.name)
        if (finding := unusable(clips)) is not None:
            return finding
        if not clips:
            return Finding()
        return self._judge([self.score(clip.wave_N) for clip in clips])

    def examine_again(self, clips: Sequence[Clip], before: Finding, fresh: Sequence[int]) -> Finding:
        """See `Check.examine_again`."""
        if (finding := unusable(clips)) is not None or not all(before.clips):
            return finding or self.examine(clips)
        return self._judge(with_fresh(before, fresh, [self.score(clips[i].wave_N) for i in fresh]))

    def suspects(self, finding: Finding) -> dict[int, float] | None:
        """See `Check.suspects`: the turns below min_overall, else the worst quarter."""
        if not finding.clips or not all(finding.clips):
            return None
        scores = [clip["overall"] for clip in finding.clips]
        below = [i for i, score in enumerate(scores) if score < self.min_overall]
        return dict.fromkeys(below or lowest(scores), 1.0)

    def _judge(self, measured: list[dict[str, Any]]) -> Finding:
        """The finding on the scores of all clips."""
        finding = Finding(clips=measured)
        mean = round(float(np.mean([clip["overall"] for clip in finding.clips])), 3)
        finding.dialogue["overall"] = mean
        if any(clip["overall"] < self.min_overall for clip in finding.clips):
            finding.reasons.append("a turn sounds worse than min_overall")
        if mean < self.min_dialogue:
            finding.reasons.append("the dialogue sounds worse than min_dialogue")
        return finding

    def score(self, wave_N: np.ndarray) -> dict[str, float]:
        """Scores of one clip, mono float32 [N] at 16 kHz."""
        if self._session is None:
            self._session = _load(resolve_path(self.path))
        wave = wave_N.astype(np.float32)
        while len(wave) < _WINDOW:
            wave = np.concatenate([wave, wave])
        count = int(len(wave) // RATE_HZ - _WINDOW / RATE_HZ) + 1  # whole seconds, as the package counts
        count = count if self.windows is None else min(count, self.windows)
        windows = np.stack([wave[i * RATE_HZ : i * RATE_HZ + _WINDOW] for i in range(count)])
        raw_W3 = self._session.run(None, {self._session.get_inputs()[0].name: windows})[0]
        return {
            name: round(float(np.polyval(curve, raw_W3[:, i]).mean()), 4)
            for i, (name, curve) in enumerate(_CURVES.items())
        }

    def thresholds(self) -> dict[str, Any]:
        """Both limits."""
        return {"min_overall": self.min_overall, "min_dialogue": self.min_dialogue}

    def summarise(self, findings: Sequence[Finding]) -> dict[str, Any]:
        """Means, the lowest turn, histogram of turns."""
        clips = [clip for finding in findings for clip in finding.clips]
        overall = [clip["overall"] for clip in clips]
        return {f"{name}_mean": float(np.mean([clip[name] for clip in clips])) for name in _CURVES} | {
            "overall_min": float(np.min(overall)),
            "histogram_turns": histogram(overall, MOS_EDGES),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the settings only."""
        return self.__dict__ | {"_session": None}


def _load(file: Path) -> Any:
    """The model on one thread. Raises UserError if it is not there or another model."""
    if not file.is_file():
        raise UserError(f"checks.mos.path: {file}: no such file")
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"the mos check needs onnxruntime: pip install onnxruntime ({error})") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(file), sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common class of their own
        raise UserError(f"checks.mos.path: {file}: not an ONNX model ({str(error).splitlines()[0]})") from None
    shape = session.get_inputs()[0].shape
    if len(session.get_inputs()) != 1 or shape[-1] != _WINDOW:
        raise UserError(f"checks.mos.path: {file}: not DNSMOS's sig_bak_ovr.onnx (it takes {shape})")
    return session
