"""Send a saved model to the Hub: its files in one commit, with a card that says how a stranger loads it."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token

from ..errors import CheckpointError, HubError
from ..hub_errors import TOKEN, is_broken_connection, translated_errors
from ..reading import check_link, homes_of, read_json_object, read_text
from .card import REPORT, model_card, read_config, read_report
from .inheritance import read_card
from .remote_code import bundle_remote_code
from .usage import ADAPTER, remote_usage

__all__ = ["PushReport", "check_login", "push_model"]

LEFT_OUT = (".*", "checkpoint-*", "runs", "training_args.bin", "optimizer.*", "scheduler.pt", "scaler.pt", "rng_state*", "__pycache__")
"""What belongs to a training run and not to its model; ``training_args.bin`` is a pickle that may hold a token."""
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
TEXTS = (".json", ".md", ".txt", ".py", ".jinja", ".yaml", ".yml", ".jsonl")
LOADED = (
    r'(?:from_pretrained|SentenceTransformer|load_generic)\((?:model, )?"([^"\n]+)"',
    r"fine-tune (.+) with (?:transformers|sentence-transformers)' ",
)
"""Where a card names the model: in the code that loads it, in what trains it."""
ATTEMPTS = 3


@dataclass(frozen=True)
class PushReport:
    """What was sent: the files of the commit, those of the folder that were left out, and what became of the card
    (``"the folder's"``, ``"written"``, or ``"the repository's"``, which stays as it is)."""

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
    user_code: bool = False,
    log: Callable[[str], None] | None = None,
) -> PushReport:
    """Upload a saved model. Files of the repository that the folder does not have stay.

    A connection that breaks is tried again, and large files that have arrived are not sent a second time, now or when it is called
    again.

    A link in the folder is followed where it leads to a file inside the folder or, in a snapshot of the Hub's cache, to one of the same
    repository; any other is refused, since it would send a file that is no part of the model.

    Args:
        folder: a saved model.
        repo_id: ``NAME`` or ``USER/NAME``; made when it does not exist.
        private: make it private. Refused when the repository exists and is public.
        revision: a branch; made from the main one when it does not exist.
        token: with write access; ``None`` takes HF_TOKEN or that of `hf auth login`.
        commit_message: of the one commit.
        remote_code, user_code: bundle the model's code first, see :func:`hf_longattn.hub.bundle_remote_code`.
        log: told when a connection broke and is tried again.

    Raises:
        CheckpointError: the folder is no saved model, names code that it does not have, or holds a file that cannot be read or a link that
            leads elsewhere.
        HubError: no access, no connection, or a file that holds a token.
        RemoteCodeError: code that may not be bundled without saying so.
    """
    place = Path(folder).expanduser()
    _check_folder(place)
    if remote_code:
        bundle_remote_code(place, user_code=user_code)
    _check_code(place)
    files, left_out = _files(place)
    _refuse_tokens(place, files, token)
    api = HfApi(token=token)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _push(api, place, repo_id, files, left_out, private, revision, commit_message or f"Upload {place.resolve().name}", token)
        except HubError as error:
            if attempt == ATTEMPTS or error.__cause__ is None or not is_broken_connection(error.__cause__):
                raise
            if log is not None:
                log(f"The connection to {api.endpoint} broke; trying again ({attempt + 1} of {ATTEMPTS}).")
            time.sleep(attempt)
    raise AssertionError("the last attempt returns or raises")


def check_login(repo_id: str, token: str | bool | None = None) -> None:
    """Raise :class:`HubError` when nobody is logged in to the Hub, before the work that is to be sent there."""
    with translated_errors(repo_id, token):
        HfApi(token=token).whoami()


def _push(
    api: HfApi,
    place: Path,
    repo_id: str,
    files: list[str],
    left_out: list[str],
    private: bool,
    revision: str | None,
    message: str,
    token: str | bool | None,
) -> PushReport:
    with translated_errors(repo_id, token):
        name = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        info = api.model_info(name)
        if private and not info.private:
            raise HubError(
                f"{name!r} is public already, but --private was asked for, so nothing was sent; make it private on the Hub first."
            )
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        described = "README.md" in files or api.file_exists(name, "README.md", revision=revision)
    text, card = _card(place, name, described)
    with translated_errors(repo_id, token):
        changed = {**_adapter(place, name), **_conversion(place, name), **({"README.md": text} if text is not None else {})}
        operations = [CommitOperationAdd(path, place / path) for path in files if path not in ("README.md", *changed)]
        operations += [CommitOperationAdd(path, content.encode()) for path, content in changed.items()]
        commit = api.create_commit(name, operations, commit_message=message, revision=revision)
    sent = tuple(sorted(operation.path_in_repo for operation in operations))
    url = f"{api.endpoint}/{name}"
    return PushReport(name, url, revision or "main", commit.oid, bool(info.private), sent, tuple(left_out), card)


def _check_folder(place: Path) -> None:
    if not (place / "config.json").exists():
        raise CheckpointError(f"{str(place)!r} has no config.json; give the folder of a saved model.")
    if not any(path for pattern in WEIGHTS for path in place.glob(pattern) if path.name not in LEFT_OUT):
        raise CheckpointError(f"{str(place)!r} has no weights, such as model.safetensors; give the folder of a saved model.")


def _check_code(place: Path) -> None:
    """A config that names code which is not there could not be loaded by anyone without this package."""
    named = read_config(place).get("auto_map") or {}
    here = {f"{where.split('.')[0]}.py" for where in named.values() if isinstance(where, str) and "--" not in where}
    if missing := sorted(file for file in here if not (place / file).is_file()):
        raise CheckpointError(
            f"config.json names {missing[0]} under auto_map, which is not in {str(place)!r}; add --remote-code to write it, "
            "or take auto_map out of config.json."
        )


def _files(place: Path) -> tuple[list[str], list[str]]:
    """Relative paths of what is sent, and of what is not."""
    kept: list[str] = []
    left_out: list[str] = []
    homes = homes_of(place)
    for path in sorted(path for path in place.rglob("*") if path.is_symlink() or not path.is_dir()):
        inside = path.relative_to(place)
        out = any(fnmatch.fnmatch(part, pattern) for part in inside.parts for pattern in LEFT_OUT)
        if not out and path.is_symlink():
            check_link(path, homes)
        if not path.is_dir():
            (kept if path.is_file() and not out else left_out).append(inside.as_posix())
    return kept, left_out


def _refuse_tokens(place: Path, files: list[str], token: str | bool | None) -> None:
    known = token if isinstance(token, str) else get_token()
    for file in files:
        path = place / file
        if path.suffix not in TEXTS:
            continue
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise CheckpointError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
        if (known and known in text) or any(len(found) >= 30 for found in TOKEN.findall(text)):
            raise HubError(f"{str(path)!r} holds what looks like a Hub token, so nothing was sent; take it out.")


def _card(place: Path, name: str, described: bool) -> tuple[str | None, str]:
    """The text of the card to send, if any, and which one it is; `described`: whether the folder or the repository has one."""
    readme = place / "README.md"
    if readme.is_file():
        return _for_repository(readme, place, name), "the folder's"
    if described:
        return None, "the repository's"
    return str(model_card(place, name=name)), "written"


def _adapter(place: Path, name: str) -> dict[str, str]:
    """The config of a PEFT adapter that was converted with the model, on the repository instead of the folder; by its path."""
    file = place / ADAPTER
    if not file.is_file():
        return {}
    config = read_json_object(file)
    base = Path(str(config.get("base_model_name_or_path"))).expanduser()
    ours = base.is_absolute() and (base.name == place.resolve().name or base.resolve() == place.resolve())
    return {ADAPTER.as_posix(): json.dumps({**config, "base_model_name_or_path": name}, indent=2) + "\n"} if ours else {}


def _conversion(place: Path, name: str) -> dict[str, str]:
    """The report of a conversion, with the repository's name and the source's in place of this machine's folders; by its path."""
    report = read_report(place)
    if not report:
        return {}
    command, source = report.get("train_command"), (report.get("plan") or {}).get("source")
    if command:
        report["train_command"] = _typed_for(name, command)
    if source and Path(source).is_absolute():
        report["plan"] = {**report["plan"], "source": Path(source).name}
    return {REPORT: json.dumps(report, indent=2, ensure_ascii=False) + "\n"}


def _words(command: str) -> list[str]:
    """Of a training command; empty where it is none, but a sentence that says what to do."""
    try:
        words = shlex.split(command)
    except ValueError:  # an apostrophe
        return []
    return words if "--model" in words[:-1] else []


def _trained(command: str) -> str:
    """The model of a training command; empty where there is none."""
    words = _words(command)
    return words[words.index("--model") + 1] if words else ""


def _typed_for(name: str, command: str) -> str:
    """A training command with `name` in place of its model, and of the folder beside it that is written; or a sentence about it with the
    name in it."""
    words, model = _words(command), _trained(command)
    if not words:
        generic = re.subn(r"load_generic\(.*?\)", lambda _: f"load_generic({name!r})", command)
        return generic[0] if generic[1] else re.sub(r"(?<=^fine-tune )\S.*?(?= with )", lambda _: name, command)
    for index, word in enumerate(words):
        if word == model:
            words[index] = name
        elif index and words[index - 1] == "--output" and word.startswith(f"{model}-"):
            words[index] = name + word[len(model) :]
    return shlex.join(words)


def _for_repository(readme: Path, place: Path, name: str) -> str:
    """A card written for the folder, wherever that was then, with the repository's name where it says what to load."""
    text, called = read_text(readme), read_card(readme).data.get("model_name")

    def same(path: str) -> bool:
        there = Path(path).expanduser()
        return there.name == called or (there.is_dir() and there.resolve() == place.resolve())

    def named(found: re.Match[str]) -> str:
        return found[0].replace(found[1], name) if same(found[1]) else found[0]

    def typed(found: re.Match[str]) -> str:
        trained = _trained(found[0])
        return _typed_for(name, found[0]) if trained and same(trained) else found[0]

    for loaded in LOADED:
        text = re.sub(loaded, named, text)
    text = re.sub(r"^python scripts/.* --model .*$", typed, text, flags=re.MULTILINE)
    config = read_config(place)
    if config.get("auto_map") and "trust_remote_code" not in text:
        text = f"{text.rstrip()}\n\n{remote_usage(place, config, name)}"
    return text
