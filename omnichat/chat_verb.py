"""`omnichat chat`: talk to a trained model by recordings, by words or by microphone."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from omnichat.chat.base import Answer
from omnichat.chat.listening import Microphone, turns_from, turns_of
from omnichat.chat.record import ChatRecord
from omnichat.chat.session import Session
from omnichat.chat.speaking import ReplyVoice
from omnichat.config import ChatRun
from omnichat.model.pretrained.conversation import Said, read_sound
from omnichat.synthesis.base import Voice
from omnichat.talk import open_talker
from omnichat.utils.errors import UserError
from omnichat.utils.files import check_writable
from omnichat.utils.log import get_logger
from omnichat.utils.parts import build_part

log = get_logger(__name__)
_SOUNDS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff")
_HELP = "a path of a recording, or words; /new begins a dialogue, /again asks once more, an empty line or /quit ends"


def run(config: ChatRun) -> None:
    """Answer the recordings of `audio`, or hold a session with whoever types or speaks."""
    given = [] if config.audio is None else [config.audio] if isinstance(config.audio, str) else list(config.audio)
    for path in given:
        if not Path(path).expanduser().is_file():
            raise UserError(f"audio={path}: no such file")
    voice = None if config.voice is None else ReplyVoice(build_part(config.voice, "voice", Voice), config.speaker)
    mic = None if not config.mic else Microphone(None if config.mic is True else config.mic)
    talker = open_talker(config.run, config)
    out = Path(config.out) if config.out is not None else Path("chats") / Path(talker.name).name
    check_writable(out.parent, "out")
    session = Session(talker, config.decoding, config.system_prompt, config.keep_cache)
    record = ChatRecord(out, session, voice)
    log.info("%s: input %s; %s", talker.name, talker.processor.chat.config.input, talker.facts.get("checkpoint", ""))
    if given or config.words is not None:
        for said in _given(config, given):
            _exchange(session, record, said)
    elif mic is not None:
        _listen(config, session, record, mic)
    else:
        _type(config, session, record)
    if not session.answers:
        print("nothing was said")
        return
    print(f"dialogue: {record.path}\nnext: omnichat web run={shlex.quote(config.run)}")


def _given(config: ChatRun, paths: list[str]) -> Iterator[Said]:
    """The turns that the command line names."""
    if not paths:
        yield Said("user", None, config.words or "")
    for path in paths:
        sound = read_sound(Path(path).expanduser())
        if not config.split:
            yield Said("user", sound, config.words or "")
            continue
        turns = turns_of(sound, config.vad)
        if not turns:
            raise UserError(f"audio={path}: no speech is found in it; see vad.threshold, or set split=false")
        yield from (Said("user", turn) for turn in turns)


def _type(config: ChatRun, session: Session, record: ChatRecord) -> None:
    """A session with whoever types: paths and words, a line each, until the end of the input."""
    print(_HELP)
    while True:
        if sys.stdin.isatty():
            print("you> ", end="", flush=True)
        line = sys.stdin.readline()
        words = line.strip()
        if not line or words in ("", "/quit"):
            return
        if words == "/new":
            session.reset()
            record.begin()
            print("a new dialogue")
            continue
        if words == "/again":
            if not session.turns:
                print("nothing was said yet")
                continue
            said = session.turns[-2]
            session.say(session.turns[:-2])
            record.take_back()
        elif re.fullmatch(r"/\w*", words):  # an unknown command; a path goes on
            print(_HELP)
            continue
        try:
            if words != "/again":
                path = Path(os.path.expanduser(words))  # unlike Path's own it takes "~hm" as it is
                is_sound = path.suffix.lower() in _SOUNDS
                said = Said("user", read_sound(path)) if is_sound else Said("user", None, words)
            _exchange(session, record, said)
        except UserError as error:  # of this turn; the dialogue goes on
            print(f"error: {error}", file=sys.stderr)


def _listen(config: ChatRun, session: Session, record: ChatRecord, mic: Microphone) -> None:
    """A session with whoever speaks: a pause ends a turn, Ctrl-C the session."""
    mic.clear()  # of what it heard while the model was loaded
    print("listening; speak, and pause to be answered; Ctrl-C ends")
    try:
        for turn in turns_from(mic, config.vad):
            print(f"you> ({turn.seconds:.1f} s)")
            _exchange(session, record, Said("user", turn))
            mic.clear()
    except KeyboardInterrupt:
        print()
    finally:
        mic.close()


def _exchange(session: Session, record: ChatRecord, said: Said) -> None:
    """One turn and its reply, printed as it comes."""
    for piece in session.stream(said):
        print(piece, end="", flush=True)
    print()
    answer = session.answers[-1]
    spoken = record.keep(session.turns[-2], answer)  # with the words that a recogniser heard
    print(f"  {figures(answer)}" + (f"; spoken: {spoken}" if spoken is not None else ""))


def figures(answer: Answer) -> str:
    """What a reply cost, for people."""
    rest = max(1e-9, answer.seconds - answer.first_token_sec)
    rate = (answer.tokens - 1) / rest if answer.tokens > 1 else 0.0
    kept = f", {answer.kept_tokens} of them kept" if answer.kept_tokens else ""
    cut = "" if answer.complete else "; cut off"
    return (
        f"first token after {answer.first_token_sec:.2f} s, {rate:.1f} tokens/s; "
        f"{answer.prompt_tokens} positions read{kept}{cut}"
    )
