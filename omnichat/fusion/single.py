"""One expert alone through Mix-Former's Q-Former: what the other experts add is measured against this."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from omnichat.encoders.base import StreamSpec
from omnichat.fusion.base import FusedAudio
from omnichat.fusion.mix_former import MixFormer
from omnichat.schema import EncodedAudio
from omnichat.utils.errors import one_of


class Single(MixFormer):
    """Mix-Former that hears one expert; the others may be given and are ignored, and no parameter is theirs.

    A clip without a frame of this expert is an error: there is nobody else to hear it.

    Args:
        specs: what each expert emits; one of them is heard.
        out_width: the LLM's embedding width.
        expert: name of the expert that is heard; None: the first.
        window_sec, queries, width, layers, heads, dropout, hidden, conditioned, out_rms: see `MixFormer`.

    Raises:
        UserError: `expert` is none of the experts.
    """

    def __init__(
        self,
        specs: Mapping[str, StreamSpec],
        out_width: int,
        expert: str | None = None,
        window_sec: float = 0.34,
        queries: int = 1,
        width: int = 256,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
        hidden: int | None = None,
        conditioned: bool = False,
        out_rms: float = 0.1,
    ) -> None:
        heard = next(iter(specs)) if expert is None else expert
        if heard not in specs:
            raise one_of("fusion.expert", heard, tuple(specs))
        super().__init__(
            {heard: specs[heard]},
            out_width,
            window_sec=window_sec,
            queries=queries,
            width=width,
            layers=layers,
            heads=heads,
            dropout=dropout,
            hidden=hidden,
            conditioned=conditioned,
            out_rms=out_rms,
        )
        self.expert_name = heard
        self.ignored = frozenset(specs) - {heard}

    def forward(
        self, streams: Mapping[str, EncodedAudio], seconds_B: Tensor, context_BD: Tensor | None = None
    ) -> FusedAudio:
        """As `Fusion.forward`; streams of the experts that are not heard may be there or not."""
        heard = {name: stream for name, stream in streams.items() if name not in self.ignored}
        if not heard:
            raise ValueError(f"a stream of the expert {self.expert_name!r} is expected, got {sorted(streams)}")
        return super().forward(heard, seconds_B, context_BD)
