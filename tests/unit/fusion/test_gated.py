"""What only the gated sum promises: gates that are shares, follow their scores, and weigh part by part."""

from __future__ import annotations

import torch

from omnichat.fusion.gated import Gated
from omnichat.schema import EncodedAudio
from tests.helpers.fusions import OUT, SPECS, silent, streams_of

torch.set_num_threads(1)


def _gated(**settings: int) -> Gated:
    torch.manual_seed(0)
    return Gated(SPECS, OUT, **{"width": 16, "hidden": 48, **settings}).eval()


def test_one_expert_by_its_gate_alone_is_that_expert() -> None:
    """Where one gate takes all, the others' frames never matter."""
    model = _gated()
    with torch.no_grad():
        model.gate.weight.zero_()
        model.gate.bias.copy_(torch.tensor([0.0, 100.0, 0.0]))
    streams, seconds = streams_of([2.0])
    before = model(streams, seconds)
    assert before.attention_BWE[0, :, 1].min() > 0.999
    for name in ("content", "music"):
        streams[name] = EncodedAudio(
            torch.randn_like(streams[name].x_BTD), streams[name].mask_BT, streams[name].time_sec
        )
    torch.testing.assert_close(model(streams, seconds).x_BSD, before.x_BSD, rtol=0, atol=0)


def test_equal_scores_share_equally_among_the_experts_that_are_there() -> None:
    model = _gated()
    torch.nn.init.zeros_(model.gate.weight)
    streams, seconds = streams_of([2.0, 1.0])
    streams["music"] = silent(streams["music"], slice(1, 2))
    mass = model(streams, seconds).attention_BWE
    torch.testing.assert_close(mass[0], torch.full((6, 3), 1 / 3))
    torch.testing.assert_close(mass[1], torch.tensor([0.5, 0.5, 0.0]).expand(6, 3))


def test_a_gate_sees_the_other_experts_and_its_own_part_only() -> None:
    model = _gated(parts=2, window_sec=0.4)
    seen: list[torch.Tensor] = []
    model.gate.register_forward_hook(lambda _module, _inputs, scores_BPE: seen.append(scores_BPE))
    streams, seconds = streams_of([0.4])
    before = model(streams, seconds)
    stream = streams["music"]
    second_part = (stream.time_sec > 0.2)[..., None]
    streams["music"] = EncodedAudio(stream.x_BTD + second_part * 9 * torch.randn(12), stream.mask_BT, stream.time_sec)
    after = model(streams, seconds)
    torch.testing.assert_close(seen[1][:, 0], seen[0][:, 0])
    assert (seen[1][:, 1] - seen[0][:, 1]).abs().min() > 1e-4, "one expert's frames move every expert's gate"
    assert not torch.allclose(after.attention_BWE, before.attention_BWE)


def test_the_sum_is_the_gates_times_the_pooled_frames() -> None:
    """One frame an expert in one window of one part: the whole layer by hand."""
    model = _gated(parts=1)
    x = {name: torch.randn(1, *((3,) if spec.layers > 1 else ()), 1, spec.width) for name, spec in SPECS.items()}
    one = torch.ones(1, 1)
    streams = {name: EncodedAudio(value, one.bool(), 0.1 * one) for name, value in x.items()}
    fused = model(streams, torch.tensor([0.3], dtype=torch.float64))
    projected = torch.stack([model.inputs[name](value)[0, 0] for name, value in x.items()])
    gates = model.gate(projected.flatten()).softmax(0)
    torch.testing.assert_close(fused.attention_BWE[0, 0], gates)
    torch.testing.assert_close(fused.x_BSD[0, 0], model.out(model.feed(gates @ projected)))
