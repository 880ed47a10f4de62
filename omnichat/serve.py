"""`omnichat serve`: a trained model behind a small HTTP API."""

from __future__ import annotations

import contextlib
import shlex

from omnichat.chat.address import address_of, listen
from omnichat.chat.base import Talker
from omnichat.chat.server.dialogues import cache_mb
from omnichat.chat.speaking import ReplyVoice
from omnichat.config import ServeRun
from omnichat.synthesis.base import Voice
from omnichat.talk import open_talker
from omnichat.utils.extras import of_extra
from omnichat.utils.log import get_logger
from omnichat.utils.parts import build_part

log = get_logger(__name__)


def run(config: ServeRun) -> None:
    """Serve until SIGINT or SIGTERM."""
    with of_extra("omnichat serve", "serve", "fastapi", "starlette", "uvicorn"):
        from omnichat.chat.server.app import make_app
        from omnichat.chat.server.serving import serve
    token = config.token()
    voice = None if config.voice is None else build_part(config.voice, "voice", Voice)
    if voice is not None:
        ReplyVoice(voice, config.speaker)  # a wrong speaker is told before the model is loaded, as a taken port is
    with contextlib.closing(listen(config.host, config.port)) as listening:
        talker = open_talker(config.run, config)
        app = make_app(talker, config, token, voice, config.speaker)
        told = greeting(talker, config, address_of(listening))
        serve(app, listening, config.limits.drain_sec, lambda: print(told, flush=True))
    print(f"next: omnichat chat run={shlex.quote(config.run)}")


def greeting(talker: Talker, config: ServeRun, address: str) -> str:
    """Where the server is, how it is asked, and what it keeps in memory."""
    limits = config.limits
    if config.token_env is not None:
        header, key, who = f' -H "Authorization: Bearer ${config.token_env}"', f"os.environ[{config.token_env!r}]", ""
    else:
        header, key, who = "", '"none"', ", nobody is asked for a token"
    url = f"{address}/v1"
    post = f"curl -sS {url}/chat/completions -H 'Content-Type: application/json'{header} -d @-"
    if talker.model.hears or talker.transcribe is not None:
        body = '{"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": %s}]}]}'
        body = body % '{"data": "%s", "format": "wav"}'
        ask = f"printf '{body}' \"$(base64 < hello.wav | tr -d '\\n')\" | {post}"
    else:
        ask = f'echo \'{{"messages": [{{"role": "user", "content": "Good morning."}}]}}\' | {post}'
    lines = [
        f"{talker.name} (input {talker.processor.chat.config.input}) answers at {url}{who}; Ctrl-C ends",
        f"  python: OpenAI(base_url={url!r}, api_key={key})",
    ]
    size = cache_mb(talker, limits.sessions * (limits.max_prompt_tokens + limits.max_new_tokens))
    if size:
        lines.append(f"  {limits.sessions} dialogues are kept, in at most {size:,.0f} MB of keys and values")
    return "\n".join([*lines, f"next: {ask}"])
