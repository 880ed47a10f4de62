"""What the page of `omnichat web` is made of: models on a shelf, tabs, sounds, pictures, markup."""

from __future__ import annotations

import itertools
import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.audio.io import MAX_RATE_HZ
from omnichat.chat.base import Answer, HeardWindows
from omnichat.chat.talking.desk import Pending
from omnichat.chat.talking.examples import Examples, heard_turn
from omnichat.chat.talking.heard import BAND_HEIGHT, HEIGHT, WIDTH, heard_view, marks
from omnichat.chat.talking.markup import css, example_html, model_html, now_html, past_html
from omnichat.chat.talking.settings import TalkConfig
from omnichat.chat.talking.shelf import Choice, ModelShelf
from omnichat.chat.talking.sounds import MAX_RATE, SoundStore, read_upload, wav_of
from omnichat.chat.talking.tabs import MAX_KEY, Column, Exchange, TabStore
from omnichat.chat.talking.view import figures, pending_view, style_chips
from omnichat.model.pretrained.conversation import Said, sound_of
from omnichat.schema import Dialogue, Style, Turn
from omnichat.utils.errors import UserError
from tests.helpers.corpora import synthetic_corpus

HOSTILE = '<img src=x onerror="window.harm=1"> {{value}} <script>window.harm=2</script> \' &'
HEARD = HeardWindows(0.5, ("whisper", "beats"), ((0.75, 0.25), (0.25, 0.75), (0.5, 0.5)))


def answer(text: str = "Well, yes.", style: Style | None = None, **more: Any) -> Answer:
    given: dict[str, Any] = {
        "text": text,
        "style": style,
        "words": text,
        "tokens": 11,
        "prompt_tokens": 1200,
        "kept_tokens": 0,
        "first_token_sec": 0.25,
        "seconds": 1.25,
        "heard": None,
        "complete": True,
    }
    return Answer(**(given | more))


def noise(seconds: float, rate: int = 16_000) -> Any:
    return sound_of(np.random.default_rng(0).uniform(-0.5, 0.5, int(seconds * rate)).astype(np.float32), rate)


# models


def shelf_of(*names: str, most: int = 2) -> tuple[ModelShelf, list[str], list[Any]]:
    """(shelf, names as they were loaded, models that gave way); a model is the list of its name."""
    loaded: list[str] = []
    dropped: list[Any] = []

    def loader(name: str) -> Any:
        def load() -> Any:
            loaded.append(name)
            return SimpleNamespace(name=name)

        return load

    return ModelShelf([Choice(name, loader(name)) for name in names], most, dropped.append), loaded, dropped


def test_the_models_used_last_are_kept() -> None:
    shelf, loaded, dropped = shelf_of("a", "b", "c")
    for name in ("a", "b", "a", "c", "a", "b"):
        with shelf.use(name) as talker:
            assert talker.name == name
    assert loaded == ["a", "b", "c", "b"] and [model.name for model in dropped] == ["b", "c"]
    assert shelf.holds("a") and shelf.holds("b") and not shelf.holds("c")
    with pytest.raises(UserError, match=r"model='d' is not valid.*choose one of: a, b, c"), shelf.use("d"):
        pass


def test_a_model_in_use_does_not_give_way() -> None:
    shelf, loaded, dropped = shelf_of("a", "b", most=1)
    with shelf.use("a"), pytest.raises(UserError, match="answering someone"), shelf.use("b"):
        pass
    with shelf.use("b"):
        assert loaded == ["a", "b"] and len(dropped) == 1


def test_a_model_is_loaded_once_and_used_by_one_thread_at_a_time() -> None:
    shelf, loaded, _ = shelf_of("a")
    inside, most = 0, 0
    barrier = threading.Barrier(8)

    def work() -> None:
        nonlocal inside, most
        barrier.wait()
        for _ in range(50):
            with shelf.use("a"):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loaded == ["a"] and most == 1 and inside == 0


def test_a_model_that_cannot_be_loaded_can_be_tried_again() -> None:
    tries: list[Any] = [UserError("no such folder"), SimpleNamespace(name="a")]

    def load() -> Any:
        made = tries.pop(0)
        if isinstance(made, Exception):
            raise made
        return made

    shelf = ModelShelf([Choice("a", load)], 1)
    with pytest.raises(UserError, match="no such folder"), shelf.use("a"):
        pass
    with shelf.use("a") as talker:
        assert talker.name == "a"


def test_a_choice_says_what_is_known_of_it() -> None:
    assert (
        Choice("demo/a", lambda: None, "speech", 0.2, 0.61234).title
        == "demo/a, input speech, alpha 0.2, emotion F1 0.612"
    )  # type: ignore[arg-type, return-value]
    assert Choice("a", lambda: None, alpha=0.0).title == "a, alpha 0"  # type: ignore[arg-type, return-value]


# tabs


def store(most: int = 3, idle_sec: float = 10.0) -> tuple[TabStore, list[float]]:
    now = [0.0]
    return TabStore(most, idle_sec, lambda: now[0]), now


def test_tabs_are_bounded_and_the_idle_one_gives_way() -> None:
    tabs, now = store()
    for key in ("a", "b", "c", "a", "d"):
        now[0] += 1
        with tabs.hold(key) as tab:
            tab.round += 1
    assert len(tabs) == 3 and "b" not in tabs
    with tabs.hold("a") as tab:
        assert tab.round == 2 and not tab.columns[0].notice
    with tabs.hold("b") as tab:
        assert "forgotten" in past_html(tab.columns[0]), "whoever lost a dialogue is told"
        tab.begin()
        assert not tab.columns[0].notice


def test_idle_tabs_are_forgotten_and_busy_ones_are_not() -> None:
    tabs, now = store()
    with tabs.hold("busy") as busy:
        with tabs.hold("idle"):
            pass
        now[0] = 100.0
        assert "idle" not in tabs and "busy" in tabs
        with tabs.hold("x"), tabs.hold("y"), pytest.raises(UserError, match="3 tabs are talking"), tabs.hold("z"):
            pass
        with tabs.hold("busy") as again:
            assert again is busy


def test_a_closed_tab_is_forgotten_and_its_reply_ends() -> None:
    tabs, _ = store()
    with tabs.hold("a") as tab:
        tabs.drop("a")
        assert tab.stop.is_set() and "a" not in tabs
    tabs.drop("a")
    tabs.drop(None)
    for key in (None, "", "x" * (MAX_KEY + 1)):
        with pytest.raises(UserError, match="load it again"), tabs.hold(key):
            pass


# sounds


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=12))
def test_sounds_are_bounded_and_the_oldest_give_way(sizes: list[int]) -> None:
    kept = SoundStore(100)
    names = [kept.put(bytes(size)) for size in sizes]
    assert len(set(names)) == len(names)
    found = [kept.get(name) for name in names]
    there = [content for content in found if content is not None]
    assert sum(map(len, there)) <= 100
    assert found == [None] * (len(found) - len(there)) + there, "only older ones are gone"
    assert not names or found[-1] is not None
    assert kept.get("another") is None


def test_an_upload_is_read_and_what_is_none_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    (folder / "x").mkdir(parents=True)
    good, noisy, long, short = (folder / "x" / f"{name}.wav" for name in ("good", "noisy", "long", "short"))
    soundfile.write(good, np.zeros((9_600, 2)), 96_000)
    soundfile.write(long, np.zeros(32_000), 8_000)
    soundfile.write(short, np.zeros(100), 8_000)
    noisy.write_text("this is no audio\n" * 50)
    sound = read_upload(str(good), folder, 3.0)
    assert sound.sample_rate == MAX_RATE and abs(sound.seconds - 0.1) < 1e-3
    for path, message in (
        (noisy, "noisy.wav: not readable as audio; give a file in WAV"),
        (long, r"long.wav: 4.0 s long; at most 3 s"),
        (short, r"short.wav: 0.01 s long"),
        (folder / "x" / "gone.wav", "gone.wav: not an upload"),
        (tmp_path / "elsewhere.wav", "elsewhere.wav: not an upload"),
        (folder / ".." / "elsewhere.wav", "elsewhere.wav: not an upload"),
        (folder / "x", "x: not an upload"),
    ):
        if path.name == "elsewhere.wav":
            soundfile.write(tmp_path / "elsewhere.wav", np.zeros(8_000), 8_000)
        with pytest.raises(UserError, match=message) as caught:
            read_upload(str(path), folder, 3.0)
        assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)
    for path, rate, container, message in (
        (folder / "x" / "fast.wav", MAX_RATE_HZ + 1, "WAV", "fast.wav: header claims 384001 samples a second"),
        (folder / "x" / "other.wav", 8_000, "CAF", "other.wav: audio as CAF; choose one of"),
    ):
        soundfile.write(path, np.zeros(rate), rate, format=container)
        with pytest.raises(UserError, match=message):
            read_upload(str(path), folder, 3.0)
    link = folder / "x" / "link.wav"
    link.symlink_to(tmp_path / "elsewhere.wav")
    with pytest.raises(UserError, match=r"link\.wav: not an upload"):
        read_upload(str(link), folder, 3.0)


def test_a_loud_recording_is_clipped_not_refused() -> None:
    import io

    samples, rate = soundfile.read(io.BytesIO(wav_of(np.array([0.5, 2.0, -3.0], dtype=np.float32), 8_000)))
    assert rate == 8_000 and np.allclose(samples, [0.5, 1.0, -1.0], atol=1e-4)


# pictures


def numbers(path: str) -> np.ndarray:
    """[points, 2] of a path of straight lines."""
    return np.array([[float(n) for n in point.split()] for point in re.split("[ML]", path.rstrip("Z")) if point])


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.floats(0.1, 40.0),
    window_sec=st.floats(0.1, 2.0),
    experts=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_bands_stack_up_to_the_whole_and_windows_tile_the_recording(
    seconds: float, window_sec: float, experts: int, seed: int
) -> None:
    rows = np.random.default_rng(seed).dirichlet(np.ones(experts), size=int(np.ceil(seconds / window_sec)))
    heard = HeardWindows(window_sec, tuple(f"e{n}" for n in range(experts)), tuple(map(tuple, rows.tolist())))
    view = heard_view(heard, noise(seconds, 1000))
    ends = [window.x + window.width for window in view.windows]
    assert view.windows[0].x == 0 and ends[-1] == pytest.approx(WIDTH, abs=0.1)
    assert [window.x for window in view.windows[1:]] == pytest.approx(ends[:-1], abs=0.1)
    assert sum(band.share for band in view.bands) == pytest.approx(1.0)
    assert sum(band.leads for band in view.bands) == len(view.windows)
    points = [numbers(band.path) for band in view.bands]
    half = len(points[0]) // 2
    assert np.allclose(points[0][half:, 1], HEIGHT) and np.allclose(points[-1][:half, 1], HEIGHT - BAND_HEIGHT)
    for below, above in itertools.pairwise(points):
        assert np.allclose(below[:half], above[half:][::-1]), "a band stands on the one below it"
    assert 0 < len(view.marks) <= 7 and all(0 <= percent <= 100 for percent, _ in view.marks)
    wave = numbers(view.wave)
    assert wave[:, 0].min() >= 0 and wave[:, 0].max() <= WIDTH and wave[:, 1].min() >= 0


def test_the_picture_says_in_words_what_it_shows() -> None:
    view = heard_view(HEARD, noise(1.5))
    assert view.summary == "attention in 3 windows of 0.50 s: whisper 50 %, most in 2; beats 50 %, most in 1"
    assert view.windows[1].title == "0.50 to 1.00 s: whisper 25 %, beats 75 %"
    assert view.marks[:3] == ((0.0, "0 s"), (33.33, "0.5 s"), (66.67, "1 s"))
    silent = heard_view(HeardWindows(0.5, ("whisper",), ()), noise(1.2))
    assert silent.bands == () and len(silent.windows) == 3 and "tells no attention" in silent.summary
    assert marks(0.1)[0] == (0.0, "0 s") and len(marks(29.0)) <= 7


# markup


def exchange(said: Said, answered: Answer, **more: Any) -> Exchange:
    return Exchange(1, "runs/a<b>", said, answered, **more)


def test_texts_stay_texts() -> None:
    column = Column([Said("user", None, HOSTILE), Said("assistant", None, HOSTILE, Style("low", None, None))])
    heard = HeardWindows(0.5, (HOSTILE, "b"), HEARD.attention)
    said = Said("user", noise(1.5), HOSTILE)
    column.exchanges = [exchange(said, answer(HOSTILE, heard=heard), sound="s" * 32, reply="r" * 32, note=HOSTILE)]
    pending = Pending(HOSTILE, said, None, HOSTILE, "answering", HOSTILE)
    pages = [past_html(column), now_html(pending, column), model_html(Choice(HOSTILE, lambda: None))]  # type: ignore[arg-type, return-value]
    pages.append(example_html(SimpleNamespace(words=HOSTILE, style=Style())))  # type: ignore[arg-type]
    for page in pages:
        assert "<img" not in page and "<script" not in page and "&lt;img" in page
        assert 'onerror="' not in page
    assert pages[0].count("<audio") == 2 and f'src="sounds/{"r" * 32}.wav"' in pages[0]


def test_a_column_shows_style_figures_and_picture() -> None:
    column = Column()
    style = Style("low", "slow", "sad")
    reply = answer(style=style, heard=HEARD, kept_tokens=800)
    column.exchanges = [exchange(Said("user", noise(1.5)), reply), exchange(Said("user", noise(1.5)), reply)]
    page = past_html(column)
    assert re.findall(r'"ot-chip">([^<]*)<', page)[:3] == ["sad", "pitch low", "speed slow"]
    assert page.count("<svg") == 2 and page.count("how it was heard") == 1, "older pictures are folded away"
    assert 'aria-label="attention in 3 windows' in page
    assert "10.0" in page and "1,200 tokens, 800 of them kept" in page
    cut = past_html(one(answer(complete=False)))
    assert "cut off" in cut and "states no style" in cut and "<svg" not in cut


def one(reply: Answer) -> Column:
    column = Column()
    column.exchanges = [exchange(Said("user", None, "hello"), reply)]
    return column


def test_figures_are_what_was_measured() -> None:
    found = dict(figures(answer()))
    assert found["tokens/s"] == "10.0" and found["first token"] == "250 ms" and found["whole reply"] == "1.2 s"
    assert found["prompt"] == "1,200 tokens"
    assert "tokens/s" not in dict(figures(answer(tokens=1)))


@pytest.mark.parametrize(
    ("text", "chips", "words"),
    [
        ("", (), ""),
        ("[low, sl", (), ""),
        ("[low, slow, sad]", ("sad", "pitch low", "speed slow"), ""),
        ("[low, slow, sad] Oh", ("sad", "pitch low", "speed slow"), "Oh"),
        ("No style", (), "No style"),
        ("[unknown] x", (), "[unknown] x"),
    ],
)
def test_a_reply_under_way_shows_its_style_once_it_is_whole(text: str, chips: tuple[str, ...], words: str) -> None:
    view = pending_view(Pending("a", Said("user", None, "hi"), None, text, "answering"), Column())
    assert view.chips == chips and view.words.strip() == words
    assert style_chips(None) == ()


def test_the_style_sheet_has_a_colour_for_every_band() -> None:
    assert all(f".ot-e{number} " in css() for number in range(6))


# examples


def test_examples_are_the_test_dialogues_by_number(tmp_path: Path) -> None:
    examples = Examples(str(synthetic_corpus(tmp_path / "made")), 3)
    assert examples.titles() == [
        "1: emotion, sad, It was really something.",
        "2: emotion, happy, It was really something.",
        "3: music, sad, It was really something.",
    ]
    example = examples.get(1)
    assert [said.role for said in example.history] == ["user", "assistant"]
    assert example.history[0].sound is not None and example.history[1].sound is None
    assert example.said.sound is not None and example.words == "How wonderful for you."
    for wrong in (-1, 3, "1", True, 0.0, None, "../manifest.jsonl"):
        with pytest.raises(UserError, match="numbered 1 to 3"):
            examples.get(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("speakers", "heard"), [("AB", 0), ("ABAB", 2), ("ABA", 0), ("AAB", 1), ("BA", None), ("BAB", 1), ("A", None)]
)
def test_the_turn_that_is_asked_is_the_last_answered_one(speakers: str, heard: int | None) -> None:
    turns = tuple(Turn(speaker, "words") for speaker in speakers)
    assert heard_turn(Dialogue("x", "s", "real", "daily", "test", turns)) == heard


@pytest.mark.parametrize(
    "wrong",
    [{"models": 0}, {"queue": True}, {"max_sec": 0.0}, {"idle_sec": float("inf")}, {"sounds_mb": 1.0}, {"port": -1}],
)
def test_a_wrong_setting_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        TalkConfig(**wrong)
