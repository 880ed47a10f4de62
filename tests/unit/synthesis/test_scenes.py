"""Composed scenes: ratios measured back from the parts, nothing clips, nothing leaks, everything repeats."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.audio import effects
from omnichat.audio.io import save_audio
from omnichat.schema import SPLITS, Style
from omnichat.synthesis.base import Line, Sound
from omnichat.synthesis.scenes.compose import Composed
from omnichat.synthesis.scenes.config import BackchannelConfig, OverlapConfig, RoomConfig, SceneConfig
from omnichat.synthesis.scenes.maker import SceneMaker
from omnichat.synthesis.scenes.plan import PlannedBackchannel, PlannedRoom, ScenePlan, turn_keys
from omnichat.synthesis.sounds.folders import EventFolder, MusicFolder
from omnichat.synthesis.sounds.recordings import Limits
from omnichat.utils.errors import UserError

RATE = 16000
EVERYTHING = SceneConfig(
    placements={"before": 1.0, "under": 1.0, "between": 1.0, "loop": 1.0},
    room=RoomConfig(share=0.7),
    overlap=OverlapConfig(share=0.8, turn_share=0.6),
    backchannel=BackchannelConfig(share=0.8, turn_share=0.8),
    telephone_share=0.4,
    gain_db=(-6.0, 6.0),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    for name, seconds in (("dog", 6.0), ("zebra", 1.0)):
        save_audio(root / "animals" / f"{name}.wav", 0.1 * rng.uniform(-1, 1, round(seconds * RATE)), RATE)
    for name in ("calm/a_acoustic_1", "calm/a_acoustic_2", "wild/x_electronic_1"):
        save_audio(root / "music" / f"{name}.wav", 0.1 * rng.uniform(-1, 1, 3 * RATE), RATE)
    for number in range(4):
        response = rng.standard_normal(RATE // 4) * np.exp(-np.arange(RATE // 4) / 800)
        response[:40] = 0.001  # noise before the direct path, as in any recording
        response[40] = 8.0
        save_audio(root / "rooms" / f"hall{number}.wav", 0.1 * response, RATE)
    return root


def maker(folder: Path, **changes: object) -> SceneMaker:
    events = EventFolder(str(folder / "animals"), None, Limits())
    music = MusicFolder(str(folder / "music"), None, Limits())
    return SceneMaker(SceneConfig(**({"loudness_lufs": None} | changes)), events, music, RATE)


def speech(name: str, seconds: float, level_db: float = -24.0) -> np.ndarray:
    """Bursts of noise with pauses, as speech has them; each name another."""
    rng = np.random.default_rng(sum(map(ord, name)))
    count = round(seconds * RATE)
    bursts = np.repeat(rng.random(-(-count // 1600)) > 0.2, 1600)[:count]
    bursts[:400] = bursts[-400:] = True
    return effects.to_level_db((rng.standard_normal(count) * bursts).astype(np.float32), RATE, level_db)


def clips(history_turns: int = 4, variants: int = 2, plan: ScenePlan | None = None) -> dict[str, np.ndarray]:
    found = {f"h{index}": speech(f"h{index}", 1.0 + 0.3 * index) for index in range(history_turns)}
    for index in range(variants):
        found[f"u{index}"] = speech(f"u{index}", 1.5 + 0.2 * index, -27.0 + 4 * index)  # emotions differ in level
        found[f"r{index}"] = speech(f"r{index}", 1.2)
    for said in () if plan is None else plan.backchannels:
        found[said.key] = speech(said.key, 0.3)
    return found


def sound(source: SceneMaker, scenario: str, split: str = "train") -> Sound:
    return next(source.deck(scenario, split, 0))


def ratio_db(composed: Composed, key: str) -> float:
    """Measured as it is promised: active level of the voice against that of the background."""
    layers = composed.layers[key]
    return effects.active_level_db(layers.speech, RATE) - effects.active_level_db(layers.background, RATE)


@pytest.mark.parametrize("snr_db", [-3.0, 6.0])
@pytest.mark.parametrize("placement", ["before", "under", "between"])
@pytest.mark.parametrize("heard_through", [{}, {"telephone": True}, {"room": PlannedRoom(None, 0.4, 3.0)}])
def test_an_event_has_its_ratio_and_its_place(folder: Path, placement: str, snr_db: float, heard_through: dict) -> None:
    source = maker(folder)
    at = "h2" if placement == "between" else "u"
    plan = ScenePlan(sound(source, "audio"), placement, snr_db, at, **heard_through)
    dry = clips()
    composed = source.compose(dry, plan, 2, "train", 5, keep_layers=True)
    touched = {"h2"} if placement == "between" else {"u0", "u1"}
    for key, layers in composed.layers.items():
        assert np.allclose(layers.heard, composed.waves[key], atol=1e-6)
        if key not in touched:
            assert not layers.background.any()
            continue
        assert ratio_db(composed, key) == pytest.approx(snr_db, abs=0.15)
        tail = round(0.4 * RATE) - 1 if "room" in heard_through else 0
        lead = len(layers.speech) - len(dry[key]) - tail
        if placement == "under":
            assert lead == 0
        else:
            assert 1.0 < lead / RATE < 1.8
            assert not layers.speech[:lead].any() and not layers.background[lead:].any()
    assert composed.start_seconds == {} and composed.backchannels == {}


def test_variants_share_what_is_not_theirs(folder: Path) -> None:
    source = maker(folder)
    plan = ScenePlan(sound(source, "music"), "loop", 5.0)
    two = source.compose(clips(variants=2), plan, 2, "train", 3, keep_layers=True)
    assert np.array_equal(two.layers["u0"].background, two.layers["u1"].background[: len(two.waves["u0"])])


@pytest.mark.parametrize("gaps", [(), (0.3, -0.4, 0.2, -0.3, -0.5)])
def test_music_goes_on_over_turns_at_one_level(folder: Path, gaps: tuple[float, ...]) -> None:
    """Laid on the timeline, the clips' backgrounds are stretches of one track."""
    source = maker(folder)
    plan = ScenePlan(sound(source, "music"), "loop", 10.0, gaps_sec=gaps)
    dry = clips(variants=1)
    composed = source.compose(dry, plan, 1, "train", 3, keep_layers=True)
    keys = [*(f"h{index}" for index in range(4)), "u0", "r0"]
    total = sum(len(dry[key]) for key in keys) + 4 * RATE
    line, at = np.full(total, np.nan, dtype=np.float32), 0
    for key in keys:
        bed = composed.layers[key].background
        start = round(composed.start_seconds[key] * RATE) if gaps else at
        known = ~np.isnan(line[start : start + len(bed)])
        assert np.allclose(line[start : start + len(bed)][known], bed[known], atol=1e-6), "turns at once hear the same"
        line[start : start + len(bed)] = bed
        at += len(bed)
    track = source.sources["music"].load(plan.sound.name, RATE)
    offset = next(
        offset
        for offset in range(len(track) - 800)
        if np.corrcoef(effects.loop(track, 64, offset, 800), line[:64])[0, 1] > 0.9999
    )
    whole = effects.loop(track, total, offset, 800)
    known = ~np.isnan(line)
    gain = float(line[known] @ whole[known] / (whole[known] @ whole[known]))
    assert np.allclose(line[known], gain * whole[known], atol=1e-5)
    speech_db = effects.pooled_level_db([dry[key] for key in keys], RATE)
    heard_db = speech_db - effects.active_level_db(gain * track, RATE)
    assert heard_db == pytest.approx(10.0, abs=0.05)


def test_an_interrupting_turn_hears_the_end_of_the_other_and_no_turn_hears_the_start_of_a_reply(folder: Path) -> None:
    source = maker(folder)
    plan = ScenePlan(gaps_sec=(-0.4, -0.4, -0.4, -0.4, -0.4))
    dry = clips()
    composed = source.compose(dry, plan, 2, "train", 0, keep_layers=True)
    overlap = round(0.4 * RATE)
    for before, key in (("h1", "h2"), ("h3", "u0"), ("h3", "u1")):
        other = composed.layers[key].other
        assert np.allclose(other[:overlap], dry[before][-overlap:], atol=1e-6)
        assert not other[overlap:].any()
    for key in ("h0", "h1", "h3", "r0", "r1"):  # also not A's start in B's clip: its words are in A's own
        assert not composed.layers[key].other.any()
        assert np.array_equal(composed.waves[key], dry[key])
    times = composed.start_seconds
    for before, key in (("h0", "h1"), ("h1", "h2"), ("h3", "u1"), ("u0", "r0"), ("u1", "r1")):
        assert times[key] == pytest.approx(times[before] + len(dry[before]) / RATE - 0.4, abs=2e-4)
    changed = source.compose(dry | {"r0": speech("another", 1.2)}, plan, 2, "train", 0)
    for key in ("h0", "h1", "h2", "h3", "u0", "u1"):
        assert np.array_equal(changed.waves[key], composed.waves[key]), "no clip before a reply depends on it"


def test_overlaps_take_at_most_half_of_a_short_turn(folder: Path) -> None:
    source = maker(folder)
    dry = clips(2, 1) | {"h1": speech("x", 0.5)}
    times = source.compose(dry, ScenePlan(gaps_sec=(-5.0, -5.0, -5.0)), 1, "train", 0).start_seconds
    assert times["h0"] == 0.0
    assert times["h1"] == pytest.approx(1.0 - 0.25, abs=1e-3)
    assert times["u0"] == pytest.approx(times["h1"] + 0.5 - 0.25, abs=1e-3), "never three at once"
    assert times["u0"] >= 1.0


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_a_backchannel_lies_under_a_turn_where_nobody_else_is_heard(folder: Path, at: float) -> None:
    said = (
        PlannedBackchannel("k0", "h2", "B", "Right.", at, -6.0),
        PlannedBackchannel("k1", "u", "B", "Mm-hm.", at, -8.0),
        PlannedBackchannel("k2", "h3", "A", "I see.", at, -6.0),
    )
    source = maker(folder)
    plan = ScenePlan(gaps_sec=(0.1, -0.3, 0.1, 0.1, -0.3), backchannels=said)
    assert source.lines(plan)["k2"] == Line("A", "I see.", Style("normal", "normal", "neutral"))
    dry = clips(plan=plan)
    composed = source.compose(dry, plan, 2, "train", 0, keep_layers=True)
    assert set(composed.backchannels) == {"h2", "u0", "u1", "h3"}
    for one in said:
        for key in [one.under] if one.under != "u" else ["u0", "u1"]:
            (found,) = composed.backchannels[key]
            assert (found.speaker, found.text) == (one.speaker, one.text)
            start, length = round(found.start_seconds * RATE), len(dry[one.key])
            assert found.seconds == pytest.approx(length / RATE, abs=1e-4)
            other = composed.layers[key].other
            heard = other[start : start + length]
            gap_db = effects.active_level_db(composed.layers[key].speech, RATE) - effects.active_level_db(heard, RATE)
            assert gap_db == pytest.approx(-one.level_db, abs=0.15)
            rest = other.copy()
            rest[start : start + length] = 0
            if key == "h2":  # begins early: B's own words end before B's backchannel
                assert start >= 0.3 * RATE - 2 and rest[: round(0.3 * RATE)].any()
                rest[: round(0.3 * RATE)] = 0
            assert not rest.any()
            early = round(0.3 * RATE) if key.startswith("u") else 0  # the reply begins before the turn's end
            assert start + length <= len(dry[key]) - early + 2


def test_a_backchannel_that_does_not_fit_is_not_said(folder: Path) -> None:
    plan = ScenePlan(backchannels=(PlannedBackchannel("k0", "h0", "B", "Right.", 0.5, -6.0),))
    dry = clips(plan=plan) | {"k0": speech("k", 0.95)}
    composed = maker(folder).compose(dry, plan, 2, "train", 0)
    assert composed.backchannels == {} and np.array_equal(composed.waves["h0"], dry["h0"])


def test_one_gain_brings_a_dialogue_to_its_loudness(folder: Path) -> None:
    dry = {key: effects.gain_db(wave, -15.0) for key, wave in clips().items()}
    composed = maker(folder, loudness_lufs=-33.0).compose(dry, ScenePlan(gain_db=-2.0), 2, "train", 0)
    whole = np.concatenate([composed.waves[key] for key in dry])
    assert effects.loudness_lufs(whole, RATE) == pytest.approx(-35.0, abs=0.05)
    gains = [float(composed.waves[key] @ dry[key] / (dry[key] @ dry[key])) for key in dry]
    assert np.ptp(gains) < 1e-5 * gains[0], "emotions keep their levels"


def test_without_anything_a_clip_stays_as_it_was_spoken(folder: Path) -> None:
    dry = clips()
    composed = maker(folder).compose(dry, ScenePlan(), 2, "train", 0)
    assert all(np.array_equal(composed.waves[key], dry[key]) for key in dry)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scenario=st.sampled_from(["emotion", "audio", "music"]),
    split=st.sampled_from(SPLITS),
    history_turns=st.sampled_from([0, 2, 4]),
    variants=st.integers(1, 3),
    loud_db=st.floats(-60, 40),
    seconds=st.floats(0.05, 1.0),
    lufs=st.sampled_from([None, -26.0, -8.0]),
)
def test_nothing_clips_and_everything_repeats(
    folder: Path, seed: int, scenario: str, split: str, history_turns: int, variants: int, loud_db: float,
    seconds: float, lufs: float | None,
) -> None:  # fmt: skip
    settings_ = {name: getattr(EVERYTHING, name) for name in EVERYTHING.__slots__} | {"loudness_lufs": lufs}
    source = maker(folder, **settings_)
    deck = source.deck(scenario, split, seed)
    plan = source.plan(scenario, split, history_turns, None if deck is None else next(deck), seed)
    assert plan == maker(folder, **settings_).plan(scenario, split, history_turns, plan.sound, seed)
    assert ScenePlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    dry = {
        key: effects.gain_db(wave[: round(seconds * RATE)], loud_db)
        for key, wave in clips(history_turns, variants, plan).items()
    }
    composed = source.compose(dry, plan, variants, split, seed, keep_layers=True)
    again = pickle.loads(pickle.dumps(source)).compose(dry, plan, variants, split, seed)
    keys = {key for key in dry if not key.startswith("k")}
    assert set(composed.waves) == set(again.waves) == keys
    for key in keys:
        wave = composed.waves[key]
        assert wave.dtype == np.float32 and len(wave) >= len(dry[key]) and np.isfinite(wave).all()
        assert np.abs(wave).max() <= 0.98
        assert np.array_equal(wave, again.waves[key])
        assert np.allclose(wave, composed.layers[key].heard, atol=1e-6)
    assert composed.start_seconds == again.start_seconds and set(composed.start_seconds) in (set(), keys)
    if plan.sound is not None and plan.placement != "loop":
        key = "u0" if plan.at == "u" else plan.at
        assert ratio_db(composed, key) == pytest.approx(plan.snr_db, abs=0.5)
    if plan.gaps_sec:
        order = [key.replace("u", "u0").replace("r", "r0") for key in turn_keys(history_turns)]
        times = [composed.start_seconds[key] for key in order]
        assert times == sorted(times)


def test_plans_follow_their_shares_and_aspects_do_not_disturb_each_other(folder: Path) -> None:
    source = maker(folder, placements={"before": 1.0, "between": 2.0, "under": 1.0}, telephone_share=0.25)
    dog = sound(source, "audio")
    plans = [source.plan("audio", "train", 6, dog, seed) for seed in range(400)]
    between = [plan for plan in plans if plan.placement == "between"]
    assert 160 < len(between) < 240 and {plan.at for plan in between} == {"h2", "h4"}
    assert 70 < sum(plan.telephone for plan in plans) < 130
    assert all(0.0 <= plan.snr_db <= 8.0 for plan in plans)
    assert source.plan("audio", "train", 2, dog, between and 3).at in ("u", "h0")
    assert all(source.plan("audio", "train", 0, dog, seed).placement != "between" for seed in range(30))
    more = maker(folder, placements={"before": 1.0, "between": 2.0, "under": 1.0}, telephone_share=0.25,
                 room=RoomConfig(share=1.0), backchannel=BackchannelConfig(share=1.0))  # fmt: skip
    for seed, plan in enumerate(plans):
        other = more.plan("audio", "train", 6, dog, seed)
        assert (other.placement, other.at, other.snr_db, other.telephone) == (
            plan.placement, plan.at, plan.snr_db, plan.telephone)  # fmt: skip
        assert other.room is not None and 0.2 <= other.room.rt60_sec <= 0.6


def test_recorded_rooms_are_of_one_split_and_keep_times(folder: Path) -> None:
    source = maker(folder, room=RoomConfig(share=1.0, recordings=str(folder / "rooms")))
    heard = {split: {source.plan("emotion", split, 0, None, s).room.recording for s in range(30)} for split in SPLITS}
    assert all(heard.values())
    assert not heard["train"] & heard["test"] and not heard["dev"] & heard["test"]
    plan = source.plan("emotion", "train", 0, None, 0)
    dry = {"u0": np.zeros(RATE, np.float32), "r0": speech("r", 1.0)}
    dry["u0"][4000] = 0.5
    wave = source.compose(dry, plan, 1, "train", 0).waves["u0"]
    assert np.abs(wave).argmax() == 4000 and np.abs(wave[:3990]).max() < 1e-9, "the direct path does not move"


def test_a_broken_room_is_replaced_in_the_plan(tmp_path: Path) -> None:
    save_audio(tmp_path / "good.wav", np.array([0.5, 0.1] + [0.01] * 400), RATE)
    (tmp_path / "bad.wav").write_bytes(b"RIFF nothing")
    source = SceneMaker(SceneConfig(room=RoomConfig(share=1.0, recordings=str(tmp_path))), None, None, RATE)
    assert {source.plan("emotion", "train", 2, None, seed).room.recording for seed in range(20)} == {"good.wav"}
    (tmp_path / "good.wav").unlink()
    broken = SceneMaker(SceneConfig(room=RoomConfig(share=1.0, recordings=str(tmp_path))), None, None, RATE)
    with pytest.raises(UserError, match=r"no room of the split train can be used"):
        broken.plan("emotion", "train", 2, None, 0)


def test_a_silent_clip_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match="the clip u0 is silent"):
        maker(folder).compose(clips() | {"u0": np.zeros(RATE, np.float32)}, ScenePlan(), 2, "train", 0)


def test_files_of_scenes_have_safe_names() -> None:
    names = {
        name: SceneMaker.scene_file(Sound(name, "x", ("x",), {}))
        for name in ("animals/dog.mp3", "clotho/a b?.wav", "clotho/a_b_.wav", "x/../../y.wav", "music/calm/t.1.opus")
    }
    assert names["animals/dog.mp3"] == "audio/scenes/animals/dog.flac"
    assert names["music/calm/t.1.opus"] == "audio/scenes/music/calm/t.1.flac"
    assert len(set(names.values())) == len(names)
    assert ".." not in "".join(names.values()) and "?" not in "".join(names.values())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SceneConfig(placements={"befor": 1.0}), "scene.placements='befor' .*did you mean 'before'"),
        (lambda: SceneConfig(placements={"before": 0.0}), "scene.placements must hold a number above 0"),
        (lambda: SceneConfig(event_snr_db=(5.0, 1.0)), r"scene.event_snr_db must be \[lowest, highest\]"),
        (lambda: SceneConfig(loudness_lufs=3.0), "scene.loudness_lufs must be null or in"),
        (lambda: RoomConfig(rt60_sec=(0.0, 1.0)), "scene.room.rt60_sec .* above 0, got"),
        (lambda: OverlapConfig(share=1.5), r"scene.overlap.share must be in \[0, 1\], got 1.5"),
        (lambda: BackchannelConfig(share=0.5, words=[]), "scene.backchannel.words"),
    ],
)
def test_mistakes_name_their_key(build, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()
