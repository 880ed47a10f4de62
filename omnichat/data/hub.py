"""What is asked of the Hugging Face hub, and its errors as one line each."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from omnichat.utils.errors import UserError

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_repo(key: str, repo: str) -> str:
    """Return the id. Raises UserError, naming the key, unless it is ORGANISATION/NAME."""
    if not _REPO.fullmatch(repo) or len(repo) > 96 or ".." in repo or "--" in repo:
        raise UserError(f"{key}={repo!r} is no id of the hub; write ORGANISATION/NAME")
    return repo


def download(repo: str, revision: str | None) -> Path:
    """The folder of a data set of the hub, in the hub's own cache. Its code, if it has any, is not run.

    Raises:
        UserError: no such data set, no right to it, no way to the hub.
    """
    with hub_errors(repo):
        return Path(huggingface_hub.snapshot_download(check_repo("hub:", repo), repo_type="dataset", revision=revision))


def login(instead: str) -> str:
    """The token of the hub's own login, or of HF_TOKEN. Raises UserError, which says what to do `instead`."""
    token = huggingface_hub.get_token()
    if token is None:
        raise UserError(f"no login of the hub: run `hf auth login`, or set HF_TOKEN; {instead}")
    return token


def upload(
    folder: Path,
    repo: str,
    kind: str,
    *,
    token: str,
    private: bool,
    message: str,
    delete: Sequence[str],
    revision: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload a folder to a repository of the hub, which is made if it is not there, and return its address.

    Args:
        kind: dataset | model.
        private: only its owners may see it. A public one that is there already is refused, then.
        message: of the commit.
        delete: patterns of files of an older form, which go.
        revision: branch, made if it is not there; None = main.
        endpoint: of another hub than Hugging Face's; None = HF_ENDPOINT, or that.

    Raises:
        UserError: no right, no way to the hub, or a public repository where a private one is asked for.
    """
    api = huggingface_hub.HfApi(endpoint=endpoint, token=token)
    with hub_errors(repo):
        address = str(api.create_repo(repo, repo_type=kind, private=private, exist_ok=True))
        if private and not api.repo_info(repo, repo_type=kind).private:
            raise UserError(f"{repo}: is there and is public; private=false says that it may be")
        if revision is not None:
            api.create_branch(repo, branch=revision, repo_type=kind, exist_ok=True)
        api.upload_folder(  # in several commits where it is large; called again, it goes on where it was stopped
            repo_id=repo,
            folder_path=folder,
            repo_type=kind,
            revision=revision,
            commit_message=message,
            delete_patterns=list(delete),
        )
    return address if revision is None else f"{address}/tree/{revision}"


@contextlib.contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Turn what the hub's client raises into a UserError of one line."""
    try:
        yield
    except GatedRepoError:
        raise UserError(f"{repo}: its owner must grant access first; ask for it on the hub's page") from None
    except RepositoryNotFoundError:
        raise UserError(f"{repo}: not on the hub, or not yours to see; log in with `hf auth login`") from None
    except RevisionNotFoundError:
        raise UserError(f"{repo}: the hub has no such revision of it") from None
    except LocalTokenNotFoundError:
        raise UserError("no login of the hub; log in with `hf auth login`, then try again") from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError):
        raise UserError(f"{repo}: the hub cannot be reached, or HF_HUB_OFFLINE forbids it") from None
    except HFValidationError as error:
        raise UserError(f"{repo}: {_first_line(error)}") from None
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else None
        if code in (401, 403):
            raise UserError(f"{repo}: the hub refuses ({code}); log in with `hf auth login` as one who may") from None
        raise UserError(f"{repo}: the hub answers {code}: {_first_line(error)}") from None
    except (HTTPError, ConnectionError) as error:
        raise UserError(f"{repo}: the hub cannot be reached: {_first_line(error)}") from None
    except UserError:
        raise
    except ValueError as error:  # what the client checks by itself, such as the card's header
        raise UserError(f"{repo}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
