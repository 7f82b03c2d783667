"""What the Hub, or the way to it, says no with: one sentence for a user, in which no token stands."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from huggingface_hub import constants, errors
from huggingface_hub.errors import HTTPError  # of the HTTP library in use: raised bare when there is no connection

from .errors import CheckpointError, HubError, LongAttentionError, in_a_line

__all__ = ["READING", "SENDING", "TOKEN", "explained", "is_broken_connection", "without_tokens"]

TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}\b")
"""How the Hub's tokens look."""
LOG_IN = "log in with `hf auth login`, or give a token with --token or HF_TOKEN"


@dataclass(frozen=True)
class Errand:
    """What was wanted of the Hub; sentences about it are completed with the repository's name, in quotes.

    error: what a refusal becomes.
    unnamed: this is no name that a repository can have.
    missing: nothing of that name can be seen.
    offline: HF_HUB_OFFLINE is set.
    forbidden: the token that was given does not do.
    broken: there is no way to the Hub.
    again: why the same command may be run again.
    """

    error: type[LongAttentionError]
    unnamed: str
    missing: str
    offline: str
    forbidden: str
    broken: str
    again: str


READING = Errand(
    CheckpointError,
    unnamed="{} is neither a folder nor a Hub repository id; give a folder that exists, or NAME or USER/NAME of a repository.",
    missing=f"{{}} is neither a folder here nor a repository on the Hub that you can read; check the name, or {LOG_IN}.",
    offline="{} is not a folder here, and the Hub cannot be reached for it, since HF_HUB_OFFLINE is set; unset it.",
    forbidden="Your token may not read {}; make one that may at {endpoint}/settings/tokens.",
    broken="{} is not a folder here, and the Hub cannot be reached for it at {endpoint} ({kind}); run the same command again: {again}.",
    again="files that have arrived are not fetched a second time",
)
SENDING = Errand(
    HubError,
    unnamed="{} is no repository id of the Hub; give NAME or USER/NAME, of letters, digits, '-', '_' and '.'.",
    missing=f"{{}} is no repository of the Hub that you can see with this token, if any; check the name, or {LOG_IN}.",
    offline="HF_HUB_OFFLINE is set, so nothing can be sent to the Hub; unset it.",
    forbidden="Your token may not write to {}; make one with write access at {endpoint}/settings/tokens.",
    broken="The connection to {endpoint} broke ({kind}); run the same command again: {again}.",
    again="large files that have arrived are not sent a second time",
)


def without_tokens(text: str, token: str | bool | None = None) -> str:
    """``text`` with what looks like a token, and the given one, taken out."""
    hidden = TOKEN.sub("hf_***", text)
    return hidden.replace(token, "hf_***") if isinstance(token, str) and token else hidden


@contextlib.contextmanager
def explained(repo_id: str, token: str | bool | None = None, errand: Errand = SENDING) -> Iterator[None]:
    """Turn errors of calls to the Hub about a repository into the errand's, :class:`HubError` where something was to be sent."""
    try:
        yield
    except LongAttentionError:
        raise
    except Exception as error:  # an unexpected answer can make the client raise anything
        local = _local(error)
        if local is not None:
            raise CheckpointError(f"{str(local.filename)!r}: {local.strerror or type(local).__name__}.") from error
        sentence = without_tokens(" ".join(_sentence(repo_id, error, errand).split()), token)
        raise errand.error(sentence) from (None if sentence == str(error) else _clean(error, token))


def is_broken_connection(error: BaseException) -> bool:
    """Whether the way to the Hub broke, and not the Hub said no."""
    return any(_broken(one) for one in _chain(error)) and _response(error) is None


def _broken(error: BaseException) -> bool:
    if isinstance(error, errors.OfflineModeIsEnabled):
        return False
    return isinstance(error, (HTTPError, ConnectionError)) and not isinstance(error, errors.HfHubHTTPError)


def _local(error: BaseException) -> OSError | None:
    """The error of a local file, which has nothing to do with the Hub."""
    if _response(error) is not None or is_broken_connection(error):
        return None
    return next((one for one in _chain(error) if isinstance(one, OSError) and one.filename is not None), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _response(error: BaseException) -> Any:
    return next((response for one in _chain(error) if (response := getattr(one, "response", None)) is not None), None)


def _clean(error: BaseException, token: str | bool | None) -> BaseException | None:
    """The error as the cause of ours, unless a token could be read in it."""
    texts = [str(one) for one in _chain(error)]
    return error if all(text == without_tokens(text, token) for text in texts) else None


def _sentence(repo_id: str, error: BaseException, errand: Errand) -> str:
    chain = list(_chain(error))
    response = _response(error)
    if any(isinstance(one, errors.HFValidationError) for one in chain):
        return errand.unnamed.format(repr(repo_id))
    if any(isinstance(one, errors.OfflineModeIsEnabled) for one in chain):
        return errand.offline.format(repr(repo_id))
    if any(isinstance(one, errors.LocalTokenNotFoundError) for one in chain):
        return f"There is no Hub token on this machine; {LOG_IN}."
    if any(isinstance(one, errors.GatedRepoError) for one in chain):
        return f"{repo_id!r} is gated: accept its conditions on the Hub and {LOG_IN}."
    if any(isinstance(one, errors.RevisionNotFoundError) for one in chain):
        return f"{repo_id!r} has no such revision; leave --revision out for the main branch."
    if any(isinstance(one, errors.RepositoryNotFoundError) for one in chain):
        return errand.missing.format(repr(repo_id))
    if response is not None:
        return _refused(repo_id, response, error, errand)
    if is_broken_connection(error):
        kind = next(type(one).__name__ for one in chain if _broken(one))
        return errand.broken.format(repr(repo_id), endpoint=constants.ENDPOINT, kind=kind, again=errand.again)
    if not isinstance(error, OSError | ValueError | RuntimeError) or isinstance(error, UnicodeError):
        kind = type(error).__name__
        return f"{constants.ENDPOINT} did not answer as the Hub does ({kind}: {in_a_line(error)}); check HF_ENDPOINT and your proxy."  # type: ignore[arg-type]
    return f"The Hub could not be used for {repo_id!r}: {in_a_line(error)}."


def _refused(repo_id: str, response: Any, error: BaseException, errand: Errand) -> str:
    status = response.status_code
    said = response.headers.get("x-error-message") or ""
    if status == 400 and "does not exist" in said:
        return (
            f"A large file did not arrive in the Hub's storage, so nothing was put into {repo_id!r} ({said.rstrip('.')}): is there a proxy"
            " that redirects uploads? Run the same command again, from another network if this happens again."
        )
    if status == 400:
        return f"The Hub did not take what was sent to {repo_id!r}: {said or error}"
    if status == 401 and "Invalid credentials" in said:
        return f"The Hub does not know the token that was given; {LOG_IN}."
    if status == 401:
        return f"{repo_id!r} needs a token; {LOG_IN}."
    if status == 403:
        return errand.forbidden.format(repr(repo_id), endpoint=constants.ENDPOINT)
    if status == 404:
        return errand.missing.format(repr(repo_id))
    again = "" if status < 429 else f"; run the same command again later: {errand.again}"
    return f"The Hub answered {status} for {repo_id!r}{': ' + said if said else ''}{again}."
