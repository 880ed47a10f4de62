"""One suite over every expert: shapes, masks, length formula, batch invariance, frozenness, fingerprints."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from omnichat.encoders.base import AudioEncoder, collate_clips
from omnichat.encoders.beats import BeatsEncoder
from omnichat.encoders.emotion2vec import Emotion2vecEncoder
from omnichat.encoders.mert import MertEncoder
from omnichat.encoders.transformers_audio import TransformersEncoder
from omnichat.encoders.whisper import WhisperEncoder
from omnichat.utils.assets import asset_folder
from omnichat.utils.errors import UserError

torch.set_num_threads(1)

# Valid frames that N samples give, from the published formulas.
LENGTHS: dict[str, Callable[[int], int]] = {
    "whisper": lambda n: -(-n // 320),
    "whisper_padded": lambda n: -(-n // 320),
    "beats": lambda n: 8 * max(1, (1 + (n - 400) // 160) // 16),
    "mert": lambda n: max(0, n - 400) // 320 + 1,
    "emotion2vec": lambda n: max(0, n - 400) // 320 + 1,
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm", "data2vec-audio"), lambda n: max(0, n - 400) // 320 + 1),
    "ast": lambda n: 12 * max(1, (1 + max(0, n - 400) // 160 - 16) // 10 + 1),
    # Columns 32 j + 15.5 of 1024, stretched over 10 s, that lie before the end of the clip's last 10 ms.
    "clap": lambda n: max(1, sum((32 * j + 15.5) * 10 / 1023 < -(-n // 480) * 0.01 for j in range(32))),
}
TRANSFORMERS = ("wav2vec2", "hubert", "wavlm", "data2vec-audio", "ast", "clap")

RANDOM: dict[str, Callable[..., AudioEncoder]] = {
    "beats": BeatsEncoder,
    "mert": MertEncoder,
    "emotion2vec": Emotion2vecEncoder,
    **{family: functools.partial(TransformersEncoder, family=family) for family in TRANSFORMERS},
}
ONE_EACH = ["whisper", *RANDOM]  # one build a class (and family)


def build(name: str, **options: Any) -> AudioEncoder:
    options = {"dtype": "float32", **options}
    if name.startswith("whisper"):
        try:
            asset_folder("whisper_tiny_en")
        except UserError as error:
            pytest.skip(f"packaged Whisper is out of reach: {error}")
        return WhisperEncoder(pad_sec=1.0 if name == "whisper_padded" else None, **options)
    return RANDOM[name](**options)


@pytest.fixture(scope="module", params=list(LENGTHS))
def named(request: pytest.FixtureRequest) -> tuple[str, AudioEncoder]:
    return request.param, build(request.param)


def noise(samples: int, gain: float = 0.1, seed: int = 0) -> Tensor:
    return gain * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def same(one: Tensor, other: Tensor) -> None:
    """Equal within 1e-5 of the features' own size (Whisper has a few channels far larger than the rest)."""
    assert one.shape == other.shape
    assert (one - other).norm() <= 1e-5 * other.norm()


def test_shapes_mask_and_length_formula(named: tuple[str, AudioEncoder]) -> None:
    name, encoder = named
    counts = [encoder.sample_rate, 1, 4001, 2 * encoder.sample_rate + 7, 2799, 2800, 399, 400]
    encoded = encoder.encode_waves([noise(n, seed=n) for n in counts])
    expected = [LENGTHS[name](n) for n in counts]
    assert encoded.mask_BT.sum(1).tolist() == expected
    assert encoded.x_BTD.shape == (len(counts), max(expected), encoder.spec.width)
    assert encoded.mask_BT.dtype == torch.bool and encoded.time_sec.dtype == torch.float32
    for row, length in enumerate(expected):
        assert encoded.mask_BT[row, :length].all(), "valid frames are at the front"
    assert encoded.x_BTD.isfinite().all()


def test_times_lie_in_the_clip_and_match_the_rate(named: tuple[str, AudioEncoder]) -> None:
    _, encoder = named
    encoded = encoder.encode_waves([noise(4 * encoder.sample_rate)])
    times = encoded.time_sec[0]
    assert (times.diff() >= 0).all() and times[0] > 0 and times[-1] < 4.0
    assert len(times) == pytest.approx(4 * encoder.spec.rate_hz, abs=12)


def test_padded_batch_equals_single(named: tuple[str, AudioEncoder]) -> None:
    _, encoder = named
    rate = encoder.sample_rate
    waves = [noise(n, gain, seed=n) for n, gain in ((rate, 0.3), (rate // 3, 0.001), (3 * rate + 11, 0.9), (500, 0.1))]
    batch = encoder.encode_waves(waves)
    for row, wave in enumerate(waves):
        alone = encoder.encode_waves([wave])
        length = alone.mask_BT.shape[1]
        same(batch.x_BTD[row, :length], alone.x_BTD[0])
        torch.testing.assert_close(batch.time_sec[row, :length], alone.time_sec[0])


def test_a_frame_hears_its_own_time(named: tuple[str, AudioEncoder]) -> None:
    """Change a tenth of a second: the frames that change most are those whose time lies there."""
    _, encoder = named
    rate = encoder.sample_rate
    wave = noise(4 * rate, 0.05)
    other = wave.clone()
    start, stop = int(1.8 * rate), int(2.1 * rate)
    other[start:stop] += noise(stop - start, 0.3, seed=1)
    one, two = encoder.encode_waves([wave]), encoder.encode_waves([other])
    change = (one.x_BTD - two.x_BTD).norm(dim=-1)[0]
    # In the middle of the ten most changed frames lies the event, to within a BEATs patch.
    loudest = one.time_sec[0][change.topk(10).indices].median()
    assert 1.7 < loudest < 2.2


def test_train_does_not_wake_it_and_nothing_trains(named: tuple[str, AudioEncoder]) -> None:
    _, encoder = named
    parent = torch.nn.Sequential(encoder)
    parent.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    wave = noise(encoder.sample_rate)
    first, second = encoder.encode_waves([wave]).x_BTD, encoder.encode_waves([wave]).x_BTD
    assert torch.equal(first, second) and not first.requires_grad


def test_pass_size_does_not_change_the_result(named: tuple[str, AudioEncoder]) -> None:
    _, encoder = named
    inputs = [encoder.frontend(noise(n, seed=n)) for n in (9000, 30000, 12000)]
    whole = encoder.encode(inputs)
    small = copy.copy(encoder)
    small.batch_sec = 0.0
    assert len(small._passes(inputs)) == 3
    same(small.encode(inputs).x_BTD, whole.x_BTD)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ONE_EACH)
def test_neighbours_do_not_change_one_bit(name: str, dtype: str) -> None:
    """Passes have fixed shapes, so the cache equals encoding on the spot whoever shared a pass with the clip."""
    encoder = build(name, dtype=dtype, layers="mix")
    counts = (16000, 9000, 12000, 30000, 700, 15999)
    inputs = [encoder.frontend(noise(n, 0.01 + n / 40000, seed=n)) for n in counts]
    together, reverse = encoder.encode_clips(inputs), encoder.encode_clips(inputs[::-1])[::-1]
    for number, x in enumerate(inputs):
        alone = encoder.encode_clips([x])[0]
        assert torch.equal(alone.x_TD, together[number].x_TD)
        assert torch.equal(alone.x_TD, reverse[number].x_TD)


def test_receptive_front_end_is_declared(named: tuple[str, AudioEncoder]) -> None:
    _, encoder = named
    assert 1 / encoder.spec.rate_hz <= encoder.receptive_sec < 0.4
    assert encoder.input_rate_hz > 0 and encoder.padded_length(encoder.frontend(noise(100))) > 0


def test_wrong_input_is_refused(named: tuple[str, AudioEncoder]) -> None:
    _, encoder = named
    for wrong in (torch.zeros(0), torch.zeros(2, 400), torch.zeros(400, dtype=torch.int16)):
        with pytest.raises(ValueError, match="clip"):
            encoder.frontend(wrong)


@pytest.mark.parametrize("name", ONE_EACH)
def test_mix_holds_every_layer_and_last_is_its_last(name: str) -> None:
    mix, last, first = (build(name, layers=layers) for layers in ("mix", "last", 0))
    wave = noise(20000)
    all_layers = mix.encode_waves([wave]).x_BTD
    assert all_layers.shape[1] == mix.spec.layers > 1 and last.spec.layers == 1
    torch.testing.assert_close(all_layers[:, -1], last.encode_waves([wave]).x_BTD)
    torch.testing.assert_close(all_layers[:, 0], first.encode_waves([wave]).x_BTD)
    assert len({mix.fingerprint(), last.fingerprint(), first.fingerprint()}) == 3
    for wrong in ("all", 99, True):
        with pytest.raises(UserError, match="layers"):
            build(name, layers=wrong)


@pytest.mark.parametrize("name", ONE_EACH)
def test_fingerprint_is_stable_and_sees_weights_and_dtype(name: str) -> None:
    encoder = build(name)
    assert encoder.fingerprint() == build(name).fingerprint()
    assert encoder.fingerprint() != build(name, dtype="bfloat16").fingerprint()
    changed = build(name)
    vars(changed).pop("_weights_sha256", None)  # hashed once and kept
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1
    assert changed.fingerprint() != encoder.fingerprint()


@pytest.mark.parametrize("name", RANDOM)
def test_random_weights_say_so_and_follow_their_seed(name: str) -> None:
    state = torch.get_rng_state()
    zero, one = build(name, seed=0), build(name, seed=1)
    assert torch.equal(torch.get_rng_state(), state), "building a part leaves the global generator alone"
    assert "random weights" in zero.description
    assert zero.fingerprint() != one.fingerprint()


@pytest.mark.parametrize("name", ONE_EACH)
def test_bfloat16_is_close(name: str) -> None:
    waves = [noise(16000), noise(30000, seed=1)]
    exact, short = build(name).encode_waves(waves), build(name, dtype="bfloat16").encode_waves(waves)
    assert short.x_BTD.dtype == torch.bfloat16
    error = (exact.x_BTD - short.x_BTD.float()).norm() / exact.x_BTD.norm()
    assert 0 < error < 0.04
    with pytest.raises(UserError, match="dtype"):
        build(name, dtype="float8")


def test_long_clips_are_chunked_and_never_cut() -> None:
    encoder = build("whisper_padded")
    wave = noise(480_000 + 16_000)
    encoded = encoder.encode_waves([wave])
    assert encoded.mask_BT.sum() == 1550
    torch.testing.assert_close(encoded.time_sec[0, -1], torch.tensor(30.99))
    tail = encoder.encode_waves([wave[480_000:]])
    same(encoded.x_BTD[0, 1500:], tail.x_BTD[0])


def test_collate_pads_with_zeros_and_casts() -> None:
    encoder = build("beats", layers="mix")
    clips = encoder.encode_clips([encoder.frontend(noise(n)) for n in (20000, 8000)])
    batch = collate_clips(clips, torch.bfloat16)
    assert batch.x_BTD.dtype == torch.bfloat16 and batch.x_BTD.dim() == 4
    short = len(clips[1].time_sec)
    assert torch.equal(batch.x_BTD[1, :, :short], clips[1].x_TD.bfloat16())
    assert not batch.x_BTD[1, :, short:].any() and not batch.mask_BT[1, short:].any()
