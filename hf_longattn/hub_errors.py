"""Translate errors of the Hub and its connection into one sentence, without tokens."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, errors, get_token, snapshot_download
from huggingface_hub.errors import HTTPError  # of the HTTP library in use: raised bare when there is no connection

from .errors import CheckpointError, HubError, LongAttentionError, in_a_line

TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}\b")
"""A Hub token."""
DESCRIBED = ("config.json", "modules.json", "adapter_config.json")
"""The files that identify a saved model of transformers, sentence-transformers or peft. One is enough."""
SMALL_FILES = (*DESCRIBED, "config_sentence_transformers.json", "*sentence_*_config.json", "*/config.json")
"""Patterns of the files that are checked before a model is loaded."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
NO_FOLDER = "There is no folder {!r}; give a checkpoint folder or a Hub repository id."
LOG_IN = "log in with `hf auth login`, or give a token with --token (of a training: --hub-token) or HF_TOKEN"


@dataclass(frozen=True)
class Operation:
    """The messages for an operation on the Hub; ``{}`` is the repository's name in quotes.

    error: the class of the errors raised.
    invalid: the name is not a valid repository id.
    missing: there is no such repository, or it is not visible.
    offline: HF_HUB_OFFLINE is set.
    forbidden: the token lacks the permission.
    broken: there is no connection.
    retry: why the same command can be run again.
    """

    error: type[LongAttentionError]
    invalid: str
    missing: str
    offline: str
    forbidden: str
    broken: str
    retry: str


DOWNLOAD = Operation(
    CheckpointError,
    invalid="{} is neither a folder nor a Hub repository id; give an existing folder, or NAME or USER/NAME of a repository.",
    missing=f"{{}} is neither a folder nor a repository on the Hub that you can read; check the name, or {LOG_IN}.",
    offline="{} is not a folder, and it cannot be downloaded because HF_HUB_OFFLINE is set; unset it.",
    forbidden="Your token may not read {}; create one that may at {endpoint}/settings/tokens.",
    broken="{} is not a folder, and it cannot be downloaded from {endpoint} ({kind}); run the same command again: {retry}.",
    retry="files that have arrived are not downloaded again",
)
UPLOAD = Operation(
    HubError,
    invalid="{} is not a valid Hub repository id; give NAME or USER/NAME, of letters, digits, '-', '_' and '.'.",
    missing=f"{{}} is not a repository on the Hub that you can see with your token; check the name, or {LOG_IN}.",
    offline="HF_HUB_OFFLINE is set, so nothing can be pushed to the Hub; unset it.",
    forbidden="Your token may not write to {}; name a repository of your own account, or create a token with write access at "
    "{endpoint}/settings/tokens.",
    broken="The connection to {endpoint} broke ({kind}); run the same command again: {retry}.",
    retry="large files that have arrived are not uploaded again",
)


def redacted(text: str, token: str | bool | None = None) -> str:
    """``text`` with the given token, and anything that looks like one, masked."""
    hidden = TOKEN.sub("hf_***", text)
    return hidden.replace(token, "hf_***") if isinstance(token, str) and token else hidden


@contextlib.contextmanager
def translated_errors(repo_id: str, token: str | bool | None = None, operation: Operation = UPLOAD) -> Iterator[None]:
    """Raise errors of the Hub as the operation's error class, in one sentence."""
    try:
        yield
    except LongAttentionError:
        raise
    except Exception as error:  # an unexpected response can make the client raise anything
        local = next((cause for cause in _chain(error) if isinstance(cause, OSError) and cause.filename is not None), None)
        if local is not None and _response(error) is None and not is_broken_connection(error):  # the error of a local file
            raise CheckpointError(f"{str(local.filename)!r}: {local.strerror or type(local).__name__}.") from error
        sentence = redacted(" ".join(_sentence(repo_id, error, operation).split()), token)
        raise operation.error(sentence) from (None if sentence == str(error) else _clean(error, token))


def check_name(name: str) -> None:
    """Refuse a name that is neither an existing path nor a valid Hub repository id. Nothing is downloaded.

    Raises:
        CheckpointError: there is no such folder.
    """
    if not Path(name).exists() and not HUB_ID.fullmatch(name):
        raise CheckpointError(NO_FOLDER.format(name))


def check_token(repo_id: str, token: str | bool | None = None) -> None:
    """Refuse an upload without a token, before slow imports or work.

    Raises:
        HubError: no token is given, set in HF_TOKEN, or stored by `hf auth login`; or the token has characters that no token has.
    """
    known = token if isinstance(token, str) else None if token is False else get_token()
    if not known:
        raise HubError(f"{repo_id!r} needs a token; {LOG_IN}.")
    if not (known.isascii() and known.isprintable() and " " not in known):
        raise HubError(f"The token has characters that no token has; copy it again from {constants.ENDPOINT}/settings/tokens.")


def check_revision(name: str, revision: str | None) -> None:
    """Refuse a revision for a model that is not on the Hub.

    Raises:
        CheckpointError: ``name`` is a folder or a file.
    """
    if revision is not None and Path(name).expanduser().exists():
        raise CheckpointError(f"{name!r} is on this machine, and --revision is for a repository of the Hub; leave --revision out.")


def check_saved_model(name: str, revision: str | None = None, token: str | bool | None = None) -> Path:
    """Refuse a name that transformers cannot load, before it tries. Without a connection, it would try for half a minute.

    Returns:
        The folder with the model's :data:`SMALL_FILES`.

    Raises:
        CheckpointError: neither the folder of a saved model, nor a repository on the Hub that can be read.
    """
    check_revision(name, revision)
    path = Path(name)
    if path.is_dir():
        if not any((path / file).is_file() for file in DESCRIBED):
            raise CheckpointError(f"{name!r} has no config.json; give the folder of a saved model, or a Hub repository id.")
        return path
    if path.exists():
        raise CheckpointError(f"{name!r} is a file; give the folder of a saved model, or a Hub repository id.")
    check_name(name)
    with translated_errors(name, token, DOWNLOAD):
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=list(SMALL_FILES)))


def is_broken_connection(error: BaseException) -> bool:
    """Whether the connection to the Hub broke, rather than the Hub refusing."""
    return any(_broken(cause) for cause in _chain(error)) and _response(error) is None


def _broken(error: BaseException) -> bool:
    if isinstance(error, errors.OfflineModeIsEnabled):
        return False
    return isinstance(error, (HTTPError, ConnectionError)) and not isinstance(error, errors.HfHubHTTPError)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _response(error: BaseException) -> Any:
    return next((response for cause in _chain(error) if (response := getattr(cause, "response", None)) is not None), None)


def _clean(error: BaseException, token: str | bool | None) -> BaseException | None:
    """The error to raise ours from; ``None`` if its text contains a token."""
    texts = [str(cause) for cause in _chain(error)]
    return error if all(text == redacted(text, token) for text in texts) else None


def _sentence(repo_id: str, error: BaseException, operation: Operation) -> str:
    chain = list(_chain(error))
    response = _response(error)
    if any(isinstance(cause, errors.HFValidationError) for cause in chain):
        return operation.invalid.format(repr(repo_id))
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in chain):
        return operation.offline.format(repr(repo_id))
    if any(isinstance(cause, errors.LocalTokenNotFoundError) for cause in chain):
        return f"There is no Hub token on this machine; {LOG_IN}."
    if any(isinstance(cause, errors.GatedRepoError) for cause in chain):
        return f"{repo_id!r} is gated: accept its conditions on the Hub and {LOG_IN}."
    if any(isinstance(cause, errors.RevisionNotFoundError) for cause in chain):
        return f"{repo_id!r} has no such revision; omit --revision to use the main branch."
    if any(isinstance(cause, errors.RepositoryNotFoundError) for cause in chain):
        return operation.missing.format(repr(repo_id))
    if response is not None:
        return _refused(repo_id, response, error, operation)
    if is_broken_connection(error):
        kind = next(type(cause).__name__ for cause in chain if _broken(cause))
        return operation.broken.format(repr(repo_id), endpoint=constants.ENDPOINT, kind=kind, retry=operation.retry)
    if not isinstance(error, OSError | ValueError | RuntimeError) or isinstance(error, UnicodeError):
        kind = type(error).__name__
        return f"{constants.ENDPOINT} does not answer like the Hub ({kind}: {in_a_line(error)}); check HF_ENDPOINT and your proxy."
    return f"The request to the Hub for {repo_id!r} failed: {in_a_line(error)}."


def _refused(repo_id: str, response: Any, error: BaseException, operation: Operation) -> str:
    status = response.status_code
    said = response.headers.get("x-error-message") or ""
    if status == 400 and "does not exist" in said:
        return (
            f"A large file did not arrive in the Hub's storage, so {repo_id!r} was not changed ({said.rstrip('.')}); run the same command"
            " again, and from another network if it fails again: a proxy may be redirecting uploads."
        )
    if status == 400:
        return f"The Hub rejected the upload to {repo_id!r}: {said or error}"
    if status == 401 and "Invalid credentials" in said:
        return f"The Hub does not know this token; {LOG_IN}."
    if status == 401:
        return f"{repo_id!r} needs a token; {LOG_IN}."
    if status == 403:
        return operation.forbidden.format(repr(repo_id), endpoint=constants.ENDPOINT)
    if status == 404:
        return operation.missing.format(repr(repo_id))
    retry = "" if status < 429 else f"; run the same command again later: {operation.retry}"
    return f"The Hub answered {status} for {repo_id!r}{': ' + said if said else ''}{retry}."
