"""Upload a saved model to the Hub in one commit. With a card that tells others how to load it."""

from __future__ import annotations

import codecs
import fnmatch
import json
import mmap
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo, get_token

from ..errors import CheckpointError, HubError
from ..files import PREDICTIONS, check_link, homes_of, read_text, without_folders
from ..loading import TOKEN, check_token, is_broken_connection, translated_errors
from .card import model_card, read_config, read_report, with_name
from .metadata import read_card
from .remote_code import write_remote_code
from .usage import next_step, remote_usage

LEFT_OUT = (
    ".*", "checkpoint-*", "checkpoints", "stage1", "converted", "runs", "training_args.bin", "optimizer.*", "scheduler.pt", "scaler.pt",
    "rng_state*", "__pycache__", *PREDICTIONS,
)  # fmt: skip
"""Patterns of files that are not uploaded, since they belong to a training run. ``training_args.bin`` is a pickle that may contain a
Hub token, and predictions quote the data."""
WEIGHTS = ("*.safetensors", "*.bin", "*.onnx", "*.pt2")
RECORDS = ("*_report.json", "training_log.json", "distillation_log.jsonl", "trainer_state.json", "*_results.json")
"""Reports and logs, which name files and folders of the machine that wrote them."""
NOT_SCANNED = (*WEIGHTS, "*.onnx.data")
"""Files that are not searched for Hub tokens."""
TOKEN_BYTES = re.compile(TOKEN.pattern.encode())
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""Byte order marks of UTF-16, the encoding of logs that PowerShell writes."""
ATTEMPTS = 3


@dataclass(frozen=True)
class PushReport:
    """A finished upload. files: in the commit. left_out: files of the folder that were not uploaded. card: which card the repository has,
    ``"the folder's"``, a newly ``"written"`` one, or ``"the repository's"``, which is unchanged."""

    repo: str
    url: str
    revision: str
    commit: str
    private: bool
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    card: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def push_model(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    remote_code: bool = False,
    log: Callable[[str], None] | None = None,
) -> PushReport:
    """Upload a saved model in one commit. Other files of the repository stay.

    After a broken connection the upload is retried. Large files that have arrived are not sent again, not even by a later call.

    A link is followed if its target is inside the folder or, in a snapshot of the Hub cache, inside the cached repository. Any other link
    is refused, since it would upload a file that is not part of the model.

    Args:
        folder: a saved model.
        repo_id: ``NAME`` or ``USER/NAME``; created if it does not exist.
        private: create a private repository. An existing public repository is refused.
        revision: a branch; created from the main branch if it does not exist.
        token: a Hub token with write access; by default from HF_TOKEN or `hf auth login`.
        remote_code: write the file for `trust_remote_code` first, see :func:`hf_longattn.hub.write_remote_code`.
        log: called with a message when a broken connection is retried.

    Raises:
        CheckpointError: the folder is not a saved model, names code that is missing, or contains an unreadable file or a link that leads
            elsewhere.
        HubError: no access, no connection, or a file that contains a Hub token.
    """
    place = Path(folder).expanduser()
    if not (place / "config.json").exists():
        raise CheckpointError(f"{str(place)!r} has no config.json; give the folder of a saved model.")
    if not any(path for pattern in WEIGHTS for path in place.glob(pattern) if path.name not in LEFT_OUT):
        raise CheckpointError(f"{str(place)!r} has no weights, such as model.safetensors; give the folder of a saved model.")
    check_token(repo_id, token)
    if remote_code:
        write_remote_code(place)
    named = {where for where in (read_config(place).get("auto_map") or {}).values() if isinstance(where, str) and "--" not in where}
    for file in sorted(f"{where.partition('.')[0]}.py" for where in named):
        if not (place / file).is_file():
            raise CheckpointError(
                f"config.json, under auto_map, names {file}, which is not in {str(place)!r}; add --remote-code to write it, or remove "
                "auto_map from config.json."
            )
    files, left_out = _files(place)
    _refuse_tokens(place, files, token)
    api = HfApi(token=token)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _push(api, place, repo_id, files, left_out, private, revision, commit_message or f"Upload {place.resolve().name}")
        except HubError as error:
            if attempt == ATTEMPTS or error.__cause__ is None or not is_broken_connection(error.__cause__):
                raise
            if log is not None:
                log(f"The connection to {api.endpoint} broke; retrying ({attempt + 1} of {ATTEMPTS}).")
            time.sleep(attempt)
    raise AssertionError("the last attempt returns or raises")


def check_login(repo_id: str, token: str | bool | None = None, *, private: bool = False) -> None:
    """Check whether an upload is possible, before starting the work that produces its files.

    Raises:
        HubError: the user is not logged in to the Hub, or ``private`` is set and the repository exists and is public.
    """
    with translated_errors(repo_id, token):
        api = HfApi(token=token)
        user = api.whoami()["name"]
        name = repo_id if "/" in repo_id else f"{user}/{repo_id}"
        if private and api.repo_exists(name):
            _refuse_public(api.model_info(name))


def _refuse_public(info: ModelInfo) -> None:
    if not info.private:
        raise HubError(f"{info.id!r} is public, but it was to be private, so nothing was uploaded; make it private on the Hub first.")


def _push(
    api: HfApi,
    place: Path,
    repo_id: str,
    files: list[str],
    left_out: list[str],
    private: bool,
    revision: str | None,
    message: str,
) -> PushReport:
    with translated_errors(repo_id, api.token):
        if (place / "README.md").is_file():
            read_card(place / "README.md").validate(repo_type="model")  # before a repository is created for it
        _records(place, files, repo_id)  # damaged files are refused before that, too
        name = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        info = api.model_info(name)
        if private:
            _refuse_public(info)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        has_card = "README.md" in files or api.file_exists(name, "README.md", revision=revision)
    text, card = _card(place, name, has_card)
    changed = _records(place, files, name) | ({"README.md": text} if text is not None else {})
    sent = tuple(sorted({*files, *changed}))
    added = [CommitOperationAdd(file, changed[file].encode() if file in changed else place / file) for file in sent]
    with translated_errors(repo_id, api.token):  # upload_folder would split a large folder into several commits
        commit = api.create_commit(name, added, commit_message=message, revision=revision)
    return PushReport(name, f"{api.endpoint}/{name}", revision or "main", commit.oid, bool(info.private), sent, tuple(left_out), card)


def _files(place: Path) -> tuple[list[str], list[str]]:
    """Relative paths of the files to upload, and of all other files."""
    uploaded: list[str] = []
    left_out: list[str] = []
    homes = homes_of(place)
    for path in sorted(path for path in place.rglob("*") if path.is_symlink() or not path.is_dir()):
        inside = path.relative_to(place)
        out = any(fnmatch.fnmatch(part, pattern) for part in inside.parts for pattern in LEFT_OUT)
        if not out:
            check_link(path, homes)
        if not path.is_dir():
            (uploaded if path.is_file() and not out else left_out).append(inside.as_posix())
    return uploaded, left_out


def _refuse_tokens(place: Path, files: list[str], token: str | bool | None) -> None:
    known = token if isinstance(token, str) else get_token()
    for file in files:
        path = place / file
        if any(fnmatch.fnmatch(path.name, pattern) for pattern in NOT_SCANNED):
            continue
        try:
            if not path.stat().st_size:
                continue
            with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                content = mapped[:].decode("utf-16", errors="replace").encode() if mapped[:2] in UTF_16 else mapped
                is_known = bool(known and content.find(known.encode()) >= 0)
                found = is_known or any(len(match[0]) >= 30 for match in TOKEN_BYTES.finditer(content))
        except OSError as error:
            raise CheckpointError(f"{str(path)!r} cannot be read: {error.strerror}; check its permissions.") from error
        if found:
            raise HubError(f"{str(path)!r} contains what looks like a Hub token, so nothing was uploaded; remove it.")


def _card(place: Path, name: str, has_card: bool) -> tuple[str | None, str]:
    """Text of the card to upload or ``None``, and :attr:`PushReport.card`. has_card: whether the folder or the repository has a card."""
    readme = place / "README.md"
    if not readme.is_file():
        return (None, "the repository's") if has_card else (str(model_card(place, name=name)), "written")
    metadata = read_card(readme).data.to_dict()
    text, config = with_name(read_text(readme), place, name), read_config(place)
    if config.get("auto_map") and "trust_remote_code" not in text:
        text = f"{text.rstrip()}\n\n{remote_usage(place, config, name, metadata)}\n"
    return text, "the folder's"


def _records(place: Path, files: list[str], name: str) -> dict[str, str]:
    """Path -> text of a report or log to upload in its place, with the repository's name. Without folders of this machine."""
    read_report(place)  # refuses a report that no conversion wrote
    changed = {}
    for file in files:
        if any(fnmatch.fnmatch(Path(file).name, pattern) for pattern in RECORDS):
            text, lines = read_text(place / file), file.endswith(".jsonl")
            try:
                values = [json.loads(line) for line in (text.splitlines() if lines else [text]) if line.strip()]
            except ValueError as error:
                raise CheckpointError(f"{str(place / file)!r} is damaged; restore it, or delete it.") from error
            changed[file] = ""
            for value in values:
                public = without_folders(value)
                if isinstance(value, dict) and isinstance(step := value.get("next_step"), dict) and step:
                    public["train_command"] = next_step(without_folders(step), name)
                changed[file] += json.dumps(public, indent=None if lines else 2, ensure_ascii=False) + "\n"
    return changed
