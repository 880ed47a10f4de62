"""The command `omnichat`: verbs, each a Hydra app; one-line errors and exit code 2 for a user's mistake."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from omnichat import __version__
from omnichat.utils.errors import UserError
from omnichat.utils.log import setup_logging

VERBS = {
    "synthesize": "make a small ShareChatX: scripts, voices, scenes, checks",
    "prepare": "turn a released corpus (DailyTalk, ...) into a corpus folder",
    "data": "check a corpus, count what is in it, put it onto the hub",
    "browse": "look at a corpus and listen to it, as a web page",
    "cache": "run the frozen experts once over the corpora",
    "lr-find": "find learning rates for a run by a short sweep",
    "train": "train OmniChat on a mixture of corpora",
    "runs": "list runs: state, step, best dev loss, command",
    "evaluate": "decode held-out replies and score them",
    "score": "every metric from predictions files, ours or another system's, with tests",
    "judge": "have a language model grade predictions, 1 to 5",
    "speak": "speak predictions aloud: word error rate, sound quality",
    "baseline": "let another system answer held-out turns, and score it like a run",
    "chat": "talk to a trained model: recordings, words or the microphone",
    "serve": "a trained model behind an HTTP API, as OpenAI's chat completions",
    "export": "save a trained model for others, with its card; onto the hub",
    "report": "one HTML page from run folders",
    "web": "talk to trained models on a web page",
    "bench": "measure how fast training is, switch by switch",
    "inspect": "print one training sequence, coloured by role and supervision",
}
_FILES = {
    "cache": "cache_features",
    "chat": "chat_verb",
    "data": "data_verb",
    "inspect": "inspect_sequence",
    "lr-find": "lr_find",
}
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)  # not ours to mend
_NO_HOME = "Could not determine home directory."  # what pathlib says of "~name" where nobody has that name


class Ended(BaseException):
    """An expected end, on its way past Hydra, which would report an Exception on lines of its own."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)  # both: it may be pickled on its way from a job of a sweep
        self.code, self.message = code, message


_SHORT: dict[str, tuple[str, dict[str, str]]] = {  # verb -> the setting that may stand alone, and what flags mean
    "browse": ("data", {}),
    "cache": ("action", {"--dry-run": "dry_run=true"}),
    "data": ("action", {"--full": "verify=full", "--json": "json=true"}),
    "web": ("run", {}),
    "runs": ("runs", {"--long": "command=true", "--all": "all=true", "--json": "json=true"}),
}


def main() -> None:
    """Entry point of the console script."""
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # `omnichat train --help | head`: who reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left may go, without a trace
        code = 128 + signal.SIGPIPE
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run `omnichat <arguments>` and return the exit code: 0, or 2 for a mistake in what the user gave."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        print(f"omnichat {__version__}")
        return 0
    verb, overrides = arguments[0], _overrides(arguments[0], arguments[1:])
    if verb not in VERBS:
        return _fail("omnichat", f"no verb {verb!r}; choose one of: {', '.join(VERBS)}")
    setup_logging()
    quieten()
    from omnichat.config import composed_keys, explain  # after --help: these import torch

    try:
        _run_verb(verb, overrides)
    except Ended as end:
        if end.code == 2:
            return _fail(f"omnichat {verb}", end.message)
        print(f"omnichat {verb}: {end.message}", file=sys.stderr)
        return end.code
    except (HydraException, OmegaConfBaseException) as error:
        return _fail(f"omnichat {verb}", explain(error, composed_keys(verb, overrides)))
    except ValueError as error:
        if not str(error).startswith("Config group override must"):
            raise
        return _fail(f"omnichat {verb}", f"{error}; name a file of the group, see omnichat {verb} --help")
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:  # Hydra's argument parser has said what is wrong with an option
        return end.code if isinstance(end.code, int) else 2
    return 0


def _overrides(verb: str, words: list[str]) -> list[str]:
    """Hydra overrides from the words after a verb: some verbs take one setting by itself, and short flags."""
    bare, flags = _SHORT.get(verb, ("", {}))
    plain = [flags.get(word, word) for word in words]
    # A bare word after an option is the option's value; `~key` is Hydra's way to leave a key out, `~/x` is a path.
    return [
        f"{bare}={word}"
        if bare and re.fullmatch(r"(~/)?[\w./][\w./~-]*", word) and not previous.startswith("-")
        else word
        for previous, word in pairwise(["", *plain])
    ]


def _run_verb(verb: str, overrides: list[str]) -> None:
    from omnichat.config import SCHEMAS, config_folder, typed
    from omnichat.sweep import failures, in_sweep, run_job, sweep_folder, told

    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors reach us instead of being printed with a trace
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    function: Callable[[Any], None] = importlib.import_module(f"omnichat.{_FILES.get(verb, verb)}").run

    def work(tree: DictConfig) -> None:
        with expected_ends(tree):
            function(typed(tree, SCHEMAS[verb]))

    def task(tree: DictConfig) -> None:
        if not in_sweep():
            sys.argv = [f"omnichat {verb}", *overrides]
            return work(tree)
        setup_logging()  # a launcher may have started a process for this job
        quieten()
        run_job(verb, lambda: work(tree))

    sweep = sweep_folder(overrides)  # whether it is one Hydra knows once it has composed: -m, or hydra.mode somewhere
    before, old = told(sweep), sys.argv
    marks = (
        n for n, word in enumerate(overrides) if word.startswith("~") or ("=" in word and not word.startswith("-"))
    )
    at = next(marks, len(overrides))  # beside the others: argparse takes them in one piece only
    sys.argv = [f"omnichat {verb}", *overrides[:at], f"hydra.sweep.dir={sweep}", *overrides[at:]]
    try:
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=verb)(task)()
    finally:
        sys.argv = old
        GlobalHydra.instance().clear()
    if failed := failures(sweep, before):
        lines = [f"job {job['job']} ({' '.join(job['overrides'])}): {job['message']}" for job in failed]
        code = 2 if all(job["code"] == 2 for job in failed) else 1
        raise Ended(code, f"{len(failed)} jobs of the sweep failed, the others are done. {' | '.join(lines)}")


@contextlib.contextmanager
def expected_ends(tree: DictConfig | None = None) -> Iterator[None]:
    """Turn what may well happen into `Ended`, with exit code and one line; `tree` is the config, to name a key."""
    from omnichat.training.processes import ProcessFailure
    from omnichat.training.trainer import Stopped

    try:
        yield
    except UserError as error:
        raise Ended(2, str(error)) from None
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise Ended(2, f"{error.filename or 'writing a file'}: {error.strerror}") from None
    except RuntimeError as error:
        if str(error) != _NO_HOME:
            raise
        settings = {} if tree is None else OmegaConf.to_container(tree)
        where = "; ".join(_homeless(settings)) or "a path begins with ~ and a name"
        raise Ended(2, f"{where}: no user of that name has a home folder here; write the whole path") from None
    except Stopped as stopped:
        raise Ended(128 + stopped.by, str(stopped)) from None
    except ProcessFailure as failure:
        raise Ended(1, str(failure)) from None


def _homeless(tree: Any, key: str = "") -> Iterator[str]:
    """key=value of every setting that begins with the home folder of nobody."""
    if isinstance(tree, dict | list):
        for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _homeless(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, str) and tree.startswith("~") and os.path.expanduser(tree) == tree:
        yield f"{key}={tree}"


def quieten() -> None:
    """Silence what libraries say about themselves; our own lines and every error stay."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _fail(who: str, message: str) -> int:
    print(f"{who}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  omnichat {verb:<{width}}  {text}" for verb, text in VERBS.items())
    return (
        f"omnichat {__version__}: builds spoken-dialogue corpora, trains OmniChat on them, and shows what it learnt\n\n"
        f"{verbs}\n\n"
        "Each verb takes Hydra overrides (key=value) and explains itself: omnichat train --help\n"
        "The whole way in one go: make demo"
    )


if __name__ == "__main__":
    main()
