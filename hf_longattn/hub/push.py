"""Upload a saved model to the Hub in one commit, with its card and the file for `trust_remote_code`.

`longattn push`, trainings and ``model.push_to_hub`` all call :func:`push_model`.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from safetensors import safe_open
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from ..errors import CheckpointError, HubError, checkpoint_errors, in_one_line, listed, visible
from ..files import (
    LARGEST_CARD,
    MODEL_FILES,
    MODULES,
    SIDECAR_FOLDERS,
    TOKENIZER_CONFIG,
    WEIGHTS,
    belongs,
    check_files,
    is_generic,
    read_text,
    sentence_modules,
    write_text,
)
from ..loading import TOKEN, read_config, translated_errors
from ..modeling.family.definition import module_name
from ..modeling.family.registration import auto_classes, mapped_names
from ..modeling.generic import class_problem
from ..names import logger
from .card import REMOTE_CODE, from_source, model_card, next_step, read_card, read_report

FOLDERS = ("onnx", "openvino", *SIDECAR_FOLDERS)
"""Folders of a model whose files are uploaded, besides those that ``modules.json`` names."""
IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")
"""Endings of the names of pictures, which are uploaded if the card names them."""
CODE = re.compile(r'"(?:[^"]*--)?(\w+)\.\w+"|^\s*from\s+\.(\w+)', re.MULTILINE)
"""The name of a Python module in a config (``"module.Class"``), or in a relative import (``from .module``)."""
SHORTEST_SECRET = 20
"""Minimum characters of the user's access token for which files are searched for it. A shorter token may be a word."""
MOST_LISTED = 20
"""Maximum number of files that are named as left out."""
SCANNED = 2**20
"""Bytes of a file that are read and searched for tokens at a time."""
NAMED = re.compile(r'<!-- hf_longattn: [^"\n<]*("(?:[^"\\\n]|\\.)*")')
"""The HTML comment of ``card.md`` in front of a card's code, up to the model's name in quotes, which is a JSON
string."""
EMPTY_CARD = "This model card has been automatically generated"
"""Text in the placeholder card that transformers writes for a repository without a card."""


@dataclass(frozen=True)
class PushReport:
    """A finished upload, or a dry run."""

    repo: str
    url: str
    revision: str
    commit: str  # empty after a dry run
    private: bool
    files: tuple[str, ...]  # in the commit
    left_out: tuple[str, ...]  # files of the folder that were not uploaded
    # where the repository's card is from: "the folder's", "written" for a new card, or "the repository's" for its old
    # card; empty after a dry run of a folder without a card
    card: str


def push_model(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    remote_code: bool = False,
    dry_run: bool = False,
    leave_out: Collection[str] = (),
    contents: Mapping[str, Any] = MappingProxyType({}),
    **commit: Any,
) -> PushReport:
    """Upload a saved model in one commit. Other files of the repository do not change.

    Only files that belong to a model are uploaded: configs, tokenizer, weights, card, licence, the folders of modules,
    graphs, code that the config names, and pictures that the card names. They are first listed on standard error.

    After a broken connection, call the function again: large files that have arrived are not sent again. A link is
    followed if its target is inside the folder. In a snapshot of the Hub cache, the target may be anywhere in the
    cached repository. Any other link is refused.

    Args:
        folder: a saved model.
        repo_id: ``NAME`` or ``USER/NAME``. The repository is created if it does not exist.
        private: create a private repository. An existing public repository is refused.
        revision: a branch. It is created from the main branch if it does not exist.
        token: a Hub token with write access. By default, it is from HF_TOKEN or `hf auth login`.
        commit_message: message of the commit. By default, it names the folder.
        remote_code: add the file for `trust_remote_code`, see :func:`hf_longattn.hub.write_remote_code`.
        dry_run: list the files, and upload nothing. No token is needed.
        leave_out: glob patterns of further files and folders that are not uploaded.
        contents: arguments of :func:`hf_longattn.hub.model_card`, for the case that neither the folder nor the
            repository has a card.
        commit: further arguments of ``HfApi.create_commit``.

    Raises:
        CheckpointError: the folder is not a saved model, or contains an unreadable file or a link that leads
            elsewhere.
        HubError: no access, no connection, or a file that contains a Hub token.
    """
    # the files, and what is wrong with them
    path = saved_model(folder)
    files, left_out = chosen_files(path, leave_out)
    problem = class_problem(str(path), path, read_config(path))
    if problem:
        logger.warning(problem)
    refuse_tokens(path, files, token)

    # list them
    code = remote_code_files(path) if remote_code else {}
    sizes = {file: (path / file).stat().st_size for file in files}
    sizes |= {file: len(text.encode()) for file, text in code.items()}
    files = sorted(sizes)
    begin = "Would upload" if dry_run else "Uploading"
    lines = [f"{begin} {len(sizes)} files, {sum(sizes.values()):,} bytes, from {path} to {repo_id}:"]
    lines += [f"{sizes[file]:>18,}  {in_one_line(file)}" for file in files]
    if "README.md" not in sizes:
        lines.append("A card is written if the repository has none.")
    if left_out:
        lines.append(f"Left out: {in_one_line(listed(left_out, MOST_LISTED))}; `hf upload` sends a single file.")
    print(visible("\n".join(lines)), file=sys.stderr)
    branch = revision or "main"
    if dry_run:
        card = "the folder's" if "README.md" in files else ""
        return PushReport(repo_id, "", branch, "", private, tuple(files), tuple(left_out), card)

    # the repository, its branch and its card
    name = check_login(repo_id, token, private=private)
    api = HfApi(token=token)
    if remote_code:
        write_remote_code(path)
    has_card = (path / "README.md").is_file()
    changed: dict[str, bytes] = {}  # files that are sent with other contents than in the folder
    if has_card:
        changed["README.md"] = card_for_repository(path, name).encode()
        with translated_errors(repo_id, token):
            read_card(path / "README.md").validate(repo_type="model")  # before the repository is created
    with translated_errors(repo_id, token):
        api.create_repo(name, private=private or None, exist_ok=True)
        is_private = bool(api.model_info(name).private)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        card = "the folder's"
        if not has_card:
            exists = api.file_exists(name, "README.md", revision=revision)
            card = "the repository's" if exists else "written"
    if card == "written":
        changed["README.md"] = str(model_card(path, name=name, **contents)).encode()

    # one commit; HfApi.upload_folder could not send a changed card
    sent = sorted({*files, *changed})
    added = [CommitOperationAdd(file, changed.get(file, path / file)) for file in sent]
    with translated_errors(repo_id, token):
        message = commit_message or f"Upload {path.resolve().name}"
        done = api.create_commit(name, added, commit_message=message, revision=revision, **commit)
    return PushReport(name, f"{api.endpoint}/{name}", branch, done.oid, is_private, tuple(sent), tuple(left_out), card)


def check_login(repo_id: str, token: str | bool | None = None, *, private: bool = False) -> str:
    """Check whether an upload is possible. Trainings call this before they begin.

    Args:
        repo_id: ``NAME`` or ``USER/NAME``.
        token: a Hub token; ``False`` for none. By default, it is from HF_TOKEN or `hf auth login`.
        private: whether the repository must not be public.

    Returns:
        The full name of the repository, ``USER/NAME``.

    Raises:
        HubError: the user is not logged in to the Hub, or ``private`` is set and the repository exists and is public.
    """
    access_token: str | None = None
    if isinstance(token, str):
        access_token = token
    elif token is not False:
        access_token = get_token()
    if access_token and not access_token.isascii():
        raise HubError(f"The token for {repo_id!r} has characters that no token of the Hub has; copy it again.")
    if not access_token:
        raise HubError(
            f"{repo_id!r} needs a token; log in with `hf auth login`, set HF_TOKEN, or add --token (trainings: "
            "--hub-token)."
        )
    with translated_errors(repo_id, token):
        api = HfApi(token=token)
        user = api.whoami()["name"]
        name = repo_id
        if "/" not in repo_id:
            name = f"{user}/{repo_id}"
        if private and api.repo_exists(name) and not api.model_info(name).private:
            raise HubError(
                f"{name!r} is public, but it was to be private, so nothing was uploaded; make it private on the Hub "
                "first."
            )
    return name


def saved_model(folder: str | Path) -> Path:
    """The path of a saved model's folder. Raises :class:`CheckpointError` if it has no weights or no config."""
    path = Path(folder).expanduser()
    has_weights = path.is_dir() and any(belongs(file.name, WEIGHTS) for file in path.iterdir())
    if not has_weights or not (path / "config.json").exists():
        missing = "config.json" if has_weights else "weights, such as model.safetensors"
        raise CheckpointError(f"{str(path)!r} has no {missing}; give the folder of a saved model.")
    return path


def push_loaded(folder: str | Path, repo_id: str, source: str, **arguments: Any) -> str:
    """Upload the files of ``model.save_pretrained``, for ``model.push_to_hub``. Returns the address of the commit.

    Args:
        folder: a saved model. The placeholder card of transformers in it is replaced by a card of this package. Any
            other card stays.
        repo_id: ``NAME`` or ``USER/NAME``.
        source: the folder or Hub name from which the model was loaded. Its card gives licence, language, data sets and
            tags.
        arguments: further arguments of :func:`push_model`.
    """
    readme = Path(folder) / "README.md"
    contents = {}
    if readme.is_file() and EMPTY_CARD in read_text(readme, LARGEST_CARD):
        contents = {"tags": read_card(readme).data.get("tags"), **from_source(source)}
        readme.unlink()
    report = push_model(folder, repo_id, contents=contents, **arguments)
    return f"{report.url}/commit/{report.commit}"


def chosen_files(folder: Path, leave_out: Collection[str]) -> tuple[list[str], list[str]]:
    """The files of a folder to upload, and all its other files, as relative paths.

    leave_out: glob patterns for the names of files and folders that are not uploaded.
    """
    # folders with files of a model
    homes = {PurePosixPath(home) for home in (*FOLDERS, *(module["path"] for module in sentence_modules(folder)))}
    homes.discard(PurePosixPath("."))
    card = ""
    if (folder / "README.md").is_file():
        card = read_text(folder / "README.md", LARGEST_CARD)
    code = code_files(folder)
    uploaded: list[str] = []
    left_out: list[str] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()):
        inside = PurePosixPath(path.relative_to(folder).as_posix())
        chosen = str(inside) in code
        if len(inside.parts) == 1 or homes.intersection(inside.parents):
            chosen = chosen or belongs(inside.name, MODEL_FILES)
        if inside.suffix.lower() in IMAGES and not any(part.startswith(".") for part in inside.parts):
            chosen = chosen or str(inside) in card
        if chosen and not any(fnmatch.fnmatch(part, pattern) for part in inside.parts for pattern in leave_out):
            check_files(folder, [path], hard_links=path.suffix == ".safetensors")
            if path.suffix == ".safetensors":
                with checkpoint_errors(f"{str(path)!r} is no file of weights"), safe_open(path, "pt"):
                    pass
            uploaded.append(str(inside))
        elif not path.is_dir():
            left_out.append(str(inside))
    return uploaded, left_out


def code_files(folder: Path) -> set[str]:
    """Names of the Python files that a model's configs name, and of the files that they import."""
    configs = ("config.json", TOKENIZER_CONFIG, MODULES, "processor_config.json", "preprocessor_config.json")
    to_read = [folder / name for name in configs if (folder / name).is_file()]
    names = set[str]()
    while to_read:
        for match in CODE.finditer(read_text(to_read.pop())):
            file = folder / f"{match[1] or match[2]}.py"
            if file.is_file() and file.name not in names:
                names.add(file.name)
                to_read.append(file)
    return names


def refuse_tokens(folder: Path, files: Collection[str], token: str | bool | None) -> None:
    """Refuse files that contain the user's token, or text that looks like a token of the Hub.

    Raises:
        HubError: a file contains a token.
    """
    own_token = token if isinstance(token, str) else get_token() or ""
    secret = re.compile(TOKEN.pattern.encode())
    if len(own_token) >= SHORTEST_SECRET and not own_token.isalpha():
        escaped = re.escape(own_token.encode(errors="surrogatepass"))
        secret = re.compile(rb"%b|(?<!\w)%b(?!\w)" % (secret.pattern, escaped))
    # a fast test that saves most searches with the regular expression
    starts = (b"hf_", b"api_org_", own_token.encode(errors="surrogatepass")[:SHORTEST_SECRET])
    for path in (folder / file for file in files):
        with open(path, "rb") as opened:
            content = b""
            while block := opened.read(SCANNED):
                content = content[-256:] + block  # a token may begin in the block before
                if not any(start and start in content for start in starts):
                    continue
                tokens = (match[0] for match in secret.finditer(content))
                # all tokens of the Hub have at least 30 characters; shorter text may be an identifier
                if any(len(text) >= 30 or text.decode(errors="replace") == own_token for text in tokens):
                    raise HubError(
                        f"{str(path)!r} contains what looks like a Hub token, so nothing was uploaded; remove it."
                    )


def card_for_repository(folder: Path, name: str) -> str:
    """The text of a folder's card, with the repository's name in place of the folder's.

    The name is in the title, the metadata, the command for a training, and the code. A card without the comment
    :data:`NAMED` keeps its code.
    """
    text = read_text(folder / "README.md", LARGEST_CARD)
    match = NAMED.search(text)
    if match:
        quoted = match[1]
        with checkpoint_errors(f"The name of the model in {str(folder / 'README.md')!r} cannot be replaced"):
            step = read_report(folder).get("next_step") or {}
            command = in_one_line(next_step(step, json.loads(quoted)))
            if command:
                text = text.replace(command, in_one_line(next_step(step, name)))
            text = text.replace(quoted, json.dumps(name))
    folder_name = re.escape(in_one_line(folder.resolve().name))
    title = name.rpartition("/")[2]
    text = re.sub(rf"^# {folder_name}$", f"# {title}", text, count=1, flags=re.MULTILINE)
    text = re.sub(rf"^(model_name: |- name: ){folder_name}$", rf'\g<1>"{title}"', text, count=1, flags=re.MULTILINE)
    if read_config(folder).get("auto_map") and "trust_remote_code" not in text:
        text = f"{text.rstrip()}\n\n{REMOTE_CODE}\n"
    return text


# The file for `trust_remote_code`.

FILE = '''\
"""The classes of this model, from the installed hf_longattn. Written by hf_longattn."""

try:
    from hf_longattn.families import {names}
except ModuleNotFoundError as error:
    if str(error.name).partition(".")[0] != "hf_longattn":
        raise
    raise ImportError(
        "This model needs hf_longattn; type: pip install . in a clone of the hf_longattn repository."
    ) from error
'''


def write_remote_code(folder: str | Path) -> list[str]:
    """Write a file that imports the classes of a saved Long model from this package.

        write_remote_code("my-long-bert")
        # in a program that does not import hf_longattn
        AutoModel.from_pretrained("my-long-bert", trust_remote_code=True)

    ``config.json`` names the classes of this file under ``auto_map``. hf_longattn must be installed where the model is
    loaded.

    Args:
        folder: a saved Long model. Its ``config.json`` changes, and the file of an earlier call is replaced.

    Returns:
        The names of the written files.

    Raises:
        CheckpointError: the model is not a Long model, the folder cannot be written, or hf_longattn did not write the
            existing file of this name.
    """
    contents = remote_code_files(Path(folder))
    for name, text in contents.items():
        write_text(Path(folder) / name, text)
    return list(contents)


def remote_code_files(path: Path) -> dict[str, str]:
    """Name -> text of the files that :func:`write_remote_code` writes into a folder. Raises the same errors."""
    values = read_config(path)
    model_type = str(values.get("model_type"))
    if not model_type.startswith("long_") or is_generic(values) or model_type not in CONFIG_MAPPING_NAMES:
        raise CheckpointError(
            f"{str(path)!r} holds a model of type {values.get('model_type')!r}, which needs no code of this "
            "package; omit --remote-code."
        )
    file = path / f"modeling_{module_name(model_type)}.py"
    first_line = FILE.partition("\n")[0].encode()
    if os.path.lexists(file) and not (file.is_file() and file.read_bytes().startswith(first_line)):
        raise CheckpointError(
            f"{str(file)!r} would be replaced, but hf_longattn did not write it; rename it or move it away."
        )
    classes = {"AutoConfig": CONFIG_MAPPING_NAMES[model_type]}
    for auto, table in auto_classes():
        names = mapped_names(table).get(model_type)
        if names:
            classes[auto] = names if isinstance(names, str) else names[0]
    values = {**values, "auto_map": {auto: f"{file.stem}.{name}" for auto, name in classes.items()}}
    return {
        file.name: FILE.format(names=", ".join(sorted({*classes.values()}))),
        "config.json": json.dumps(values, indent=2, ensure_ascii=False) + "\n",
    }
