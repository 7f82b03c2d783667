"""Load configs, tokenizers, processors and models that a user names, from a folder or the Hub.

No other file calls ``from_pretrained`` on user input. transformers and huggingface_hub load the files; this module
adds limits and messages. A checkpoint's Python code never runs. Pickled weights are read only if the caller allows
them, and only as tensors. A tokenizer with rules that could fill the memory is refused. Every refusal is a
:class:`CheckpointError` of one sentence.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors, snapshot_download
from safetensors import safe_open
from torch.nn.modules import activation
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, dynamic_module_utils
from transformers.utils import cached_file

from .errors import CheckpointError, HubError, LongAttentionError, checkpoint_errors, in_a_line, listed, shortened
from .files import (
    HUB_ID,
    MODULES,
    PICKLED_WEIGHTS,
    SMALL_FILES,
    check_checkpoint,
    check_config,
    read_json_object,
    sentence_modules,
)
from .names import warn_missing

NO_CODE = {"trust_remote_code": False}
"""Arguments of every call of ``from_pretrained`` and ``from_config``."""
LOADING = threading.RLock()
"""A lock that is held while transformers builds a model, which is not safe in threads.

For all threads, ``from_pretrained`` sets torch's default dtype, and replaces ``PreTrainedModel.tie_weights``,
``torch.linspace`` and functions of ``torch.nn.init``. Two overlapping loads would mix dtypes, leave weights untied,
and leave the replacements in place for good.
"""
MOST_GROWTH = 32
"""Maximum output bytes per input byte for the rules of a tokenizer.json. Unicode's compatibility normalisation reaches
11, for the character U+FDFA."""
MOST_SPECIAL = 500
"""Maximum special tokens around a text."""
SAMPLE = "Ünïcode \ufdfa 字 a.b, 1's\n"
"""A text for measuring how much a tokenizer's rules expand."""
TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}\b")
"""A token for access to the Hub."""


# Finding the folder of a checkpoint.


def fetch_model(
    model: str | Path, revision: str | None = None, token: str | bool | None = None, *, weights: Iterable[str] = ()
) -> Path:
    """The folder of a checkpoint. From a Hub repository, the small files (:data:`SMALL_FILES`) are downloaded.

    This is a separate step because without a connection, transformers would try for half a minute.

    Args:
        model: a folder, or a Hub repository id.
        revision: branch, tag or commit of a Hub repository.
        token: access token for a Hub repository.
        weights: glob patterns of further files to download.

    Raises:
        CheckpointError: no such folder or repository, no model in it, no access, or no connection.
    """
    name = str(model)
    folder = Path(model).expanduser()
    if not folder.exists() and not HUB_ID.fullmatch(name):
        raise CheckpointError(f"There is no folder {name!r}; give a checkpoint folder or a Hub repository id.")
    if revision is not None and folder.exists():
        raise CheckpointError(
            f"{name!r} is on this machine, and --revision is for a repository of the Hub; leave --revision out."
        )
    if folder.is_file():
        raise CheckpointError(f"{name!r} is a file; give the folder of a checkpoint, or a Hub repository id.")
    if not folder.is_dir():
        with translated_errors(name, token, CheckpointError):
            small = [*SMALL_FILES, *(f"*/{pattern}" for pattern in SMALL_FILES)]  # also in the folders of modules
            folder = Path(snapshot_download(name, revision=revision, token=token, allow_patterns=[*small, *weights]))
    if not any(os.path.lexists(folder / file) for file in ("config.json", MODULES)):
        refuse_adapter(folder, name)
        raise CheckpointError(
            f"{name!r} has no config.json, so it is not a checkpoint of transformers; give another folder."
        )
    check_checkpoint(folder)
    return folder


def refuse_adapter(folder: Path, name: str) -> None:
    """Raise :class:`CheckpointError` for a folder with an adapter of peft."""
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{name!r} holds an adapter, not a model; merge it first: load its base with transformers, and type "
            f"peft.PeftModel.from_pretrained(base, {name!r}).merge_and_unload().save_pretrained('merged')."
        )


def no_weights(name: str, folder: Path | None = None) -> str:
    """The message for a checkpoint without readable weights. It depends on the other files of weights in the folder.

    Args:
        name: folder or Hub repository id, as typed by the user.
        folder: the folder, or the cached folder of the repository. Without it, ``name`` is taken as a folder.
    """
    folder = Path(name).expanduser() if folder is None else folder
    tensors = [file.name for file in folder.glob("*.safetensors")]
    if tensors:
        return (
            f"{name!r} has neither model.safetensors nor all files of its index, but {listed(tensors)}; load it in a "
            "program of yours (with variant='fp16' if the names have fp16 in them), and save it by save_pretrained."
        )
    return (
        f"{name!r} has no weights, or holds its weights only as pickle ({PICKLED_WEIGHTS}), a format that can carry "
        "code; give a folder with model.safetensors or all files of its index, or add --allow-pickle "
        "(allow_pickle=True) to longattn convert, which then reads only the tensors in it."
    )


# Turning errors of the Hub and of loading into one sentence.


@contextlib.contextmanager
def translated_errors(
    repo_id: str, token: str | bool | None = None, raised: type[LongAttentionError] = HubError
) -> Iterator[None]:
    """Turn any error of the Hub's libraries into one sentence, without access tokens.

    Args:
        repo_id: the repository, for the message.
        token: the access token, which is removed from the message.
        raised: class of the error: HubError for an upload, CheckpointError for a download.
    """
    try:
        yield
    except LongAttentionError:
        raise
    except Exception as error:  # an unexpected response can raise any error
        # the error and its causes: one of a local file, one with the server's answer, one with the server's address
        answer = None
        address = ""
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError) and cause.filename is not None:
                raise CheckpointError(f"{str(cause.filename)!r}: {cause.strerror or type(cause).__name__}.") from error
            if answer is None and isinstance(cause, errors.HfHubHTTPError):
                answer = cause
            address = address or _server(cause)
            cause = cause.__cause__ or cause.__context__
        reason = in_a_line(answer or error)
        if answer is None:  # there was no connection, and the message names no address
            reason += address
        failure = "is not a folder, and it cannot be downloaded"
        if raised is HubError:
            failure = "cannot be uploaded"
        sentence = TOKEN.sub("hf_***", f"{repo_id!r} {failure}: {reason}.")
        if isinstance(token, str) and token:
            sentence = sentence.replace(token, "hf_***")
        raise raised(sentence) from None  # the traceback could show the token


def _server(error: BaseException) -> str:
    """Scheme and name of the server in an error of the HTTP library, such as " (https://huggingface.co)".

    The path of the address is left out, since it may hold a secret. Other errors give an empty text.
    """
    with contextlib.suppress(AttributeError, RuntimeError):  # the error has no request
        url: Any = error.request.url  # type: ignore[attr-defined]
        return f" ({url.scheme}://{url.netloc.decode()})"
    return ""


@contextlib.contextmanager
def without_questions() -> Iterator[None]:
    """Within the context, transformers refuses a checkpoint's code without asking whether to run it.

    :data:`NO_CODE` alone is not enough, because models that load inner models do not pass ``trust_remote_code`` on.
    """
    seconds = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # seconds to wait for an answer
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds


@contextlib.contextmanager
def loading_errors(name: object, what: str = "") -> Iterator[None]:
    """Within the context, a checkpoint's code is refused, and any error of loading becomes one sentence.

    Args:
        name: a folder or a Hub repository id.
        what: the part that is loaded, such as "tokenizer". By default, the whole checkpoint.
    """
    subject = repr(str(name))
    if what:
        subject = f"The {what} of {subject}"
    try:
        with LOADING, without_questions(), checkpoint_errors(f"{subject} cannot be loaded"):
            yield
    except CheckpointError as error:
        cause = str(error.__cause__)
        if "trust_remote_code" in cause:
            raise CheckpointError(
                f"{subject} needs its own Python code, which this package never runs; give a checkpoint whose "
                "model_type and classes transformers has, or load it in a program of yours and save it as one."
            ) from error
        if isinstance(error.__cause__, OSError) and "file named" in cause and "safetensors" in cause:
            raise CheckpointError(no_weights(str(name))) from error
        raise


# Configs, tokenizers and processors.


def read_config(folder: Path) -> dict[str, Any]:
    """The values of a checkpoint's config.json. The field ``auto_map``, which names code, is removed from all inner
    configs, since transformers would offer to run it."""
    values = read_json_object(folder / "config.json")
    check_config(values)
    inner = list(values.values())
    while inner:
        part = inner.pop()
        if isinstance(part, dict):
            part.pop("auto_map", None)
            inner += part.values()
        elif isinstance(part, list):
            inner += part
    return values


def load_config(name: str | Path) -> Any:
    fetch_model(name)
    return load_part(AutoConfig, name)


def label_fields(labels: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: number for number, label in enumerate(labels)}}


def load_part(loader: Any, name: str | Path, what: str = "", **arguments: Any) -> Any:
    """Load a part of a checkpoint other than its weights, such as the tokenizer or the config.

    Args:
        loader: ``AutoTokenizer``, ``AutoImageProcessor``, ``AutoConfig`` or another class with ``from_pretrained``.
        name: a folder or a Hub repository id.
        what: the part's name in a message, such as "tokenizer".
        arguments: further arguments of ``from_pretrained``.
    """
    with loading_errors(name, what):
        part = loader.from_pretrained(name, **NO_CODE, **arguments)
    tokenizer = getattr(part, "tokenizer", part)  # a processor has a tokenizer
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        check_tokenizer(tokenizer, str(name))
    return part


def load_padding_tokenizer(name: str | Path, config: Any) -> Any:
    """The tokenizer of a text model with this config, for training and batches; see :func:`fit_tokenizer`."""
    return fit_tokenizer(load_part(AutoTokenizer, name), config, name)


def fit_tokenizer(tokenizer: Any, config: Any, name: str | Path) -> Any:
    """Check that a tokenizer fits its model, and return it. A tokenizer without a padding token gets its end token.

    Raises:
        CheckpointError: the tokenizer has no words or cannot pad, or it gives ids that the model does not have.
    """
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes one for a folder without a tokenizer
        raise CheckpointError(
            f"The tokenizer of {str(name)!r} has no words; give a checkpoint with the files of its tokenizer."
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise CheckpointError(
                f"The tokenizer of {str(name)!r} has neither a padding nor an end token; give it one "
                "(tokenizer.pad_token = ...)."
            )
        tokenizer.pad_token = tokenizer.eos_token
    check_token_ids(tokenizer, config, name)
    return tokenizer


def check_token_ids(tokenizer: Any, config: Any, name: str | Path) -> None:
    """Refuse a tokenizer with ids beyond the model's table of token embeddings. The table may have more rows than the
    tokenizer has ids.

    Placeholder tokens for images and sounds may be beyond the table, because only processors write them. Gemma 3's
    text models, for example, have no row for ``image_token``.
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(rows, int):
        return
    special = tokenizer.special_tokens_map  # role, such as "pad_token" or "image_token" -> token
    text_roles = PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES
    placeholders = set(special.values()) - {special.get(role) for role in text_roles}
    beyond = {  # token id -> token
        number: token
        for token, number in tokenizer.get_vocab().items()
        if number >= rows and token not in placeholders
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # its template around a text may have ids that are not in the vocabulary
        with checkpoint_errors(f"The tokenizer.json of {str(name)!r} is damaged"):
            around = {*backend.encode("").ids, *backend.encode("", "").ids}
        beyond |= {number: "around each text" for number in around - {*beyond} if number >= rows}
    if beyond:
        raise CheckpointError(
            f"The tokenizer of {str(name)!r} gives token ids up to {max(beyond)} ({beyond[max(beyond)]!r}), but its "
            f"model has {rows} embeddings; enlarge the model with resize_token_embeddings({max(beyond) + 1}) and save "
            "it, or give it a tokenizer without these tokens, if this one belongs to another model."
        )


def call_tokenizer(tokenizer: Any, *texts: Any, **options: Any) -> Any:
    """Call ``tokenizer(*texts, **options)``. An error of the tokenizer becomes one sentence. A regular expression that
    takes too long raises an error, for example."""
    with checkpoint_errors("The tokenizer is damaged, or does not fit the text"):
        return tokenizer(*texts, **options)


def check_tokenizer(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer with rules that make a text much longer.

    A token takes about 200 bytes, so a few such rules could fill the memory with the tokens of a short text. All rules
    run one after the other on a sample. A rule that inserts text also starts with the longest text that it inserts,
    which then goes through the later rules.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    with checkpoint_errors(f"The tokenizer.json of {name!r} is damaged"):
        steps = [*_steps(backend.normalizer), *_steps(backend.pre_tokenizer)]
        starts = [(SAMPLE, SAMPLE, 0)]  # a text, its form after some rules, and the index of the next rule
        for following, (_, rule) in enumerate(steps, 1):
            if rule["type"] == "Replace":
                # a match of a regular expression counts as one byte
                starts.append((rule["pattern"].get("String", ""), rule["content"], following))
            elif rule["type"] == "Prepend":
                starts.append(("", rule["prepend"], following))
            elif rule["type"] == "Precompiled" and rule["precompiled_charsmap"]:
                # 4 bytes with the size of a trie, the trie, and replacement texts that end in a zero
                charsmap = base64.b64decode(rule["precompiled_charsmap"])
                texts = charsmap[4 + int.from_bytes(charsmap[:4], "little") :].split(b"\0")
                starts.append(("\ufdfa", max(texts, key=len).decode(errors="replace"), following))

        expands = backend.num_special_tokens_to_add(False) > MOST_SPECIAL
        for before, text, following in starts:
            limit = MOST_GROWTH * max(1, len(before.encode()))
            for step, _ in steps[following:]:
                if len(text.encode()) > limit:
                    break  # the next step could fill the memory
                if hasattr(step, "normalize_str"):
                    text = step.normalize_str(text)
                else:
                    text = "".join(piece for piece, _ in step.pre_tokenize_str(text))
            expands |= len(text.encode()) > limit

        # a template of the post-processor must not repeat a text
        templates = [rule.get(form) or [] for _, rule in _steps(backend.post_processor) for form in ("single", "pair")]
        for template in templates:
            inserted = [piece["Sequence"]["id"] for piece in template if "Sequence" in piece]
            expands |= len(inserted) > len(set(inserted))
    if expands:
        raise CheckpointError(
            f"The tokenizer.json of {name!r} makes a text more than {MOST_GROWTH} times as long, or repeats it; give "
            "a checkpoint with another tokenizer."
        )


def _steps(part: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Each step of a tokenizer's part, such as its normalizer, with the step's rule as in tokenizer.json.

    A step that is written in Python is skipped, because no file can contain it.
    """
    if type(part).__name__ == "Sequence":
        for inner in part:
            yield from _steps(inner)
    elif part is not None and type(part).__name__ not in ("Normalizer", "PreTokenizer"):
        yield part, json.loads(part.__getstate__())


# Models.


def load_weights(loader: Any, name: str | Path | None, *, allow_pickle: bool = False, **arguments: Any) -> Any:
    """Load a model by ``loader.from_pretrained``, without running a checkpoint's code.

    Args:
        loader: a model class, or an Auto class of models.
        name: a folder or a Hub repository id; ``None`` if ``arguments`` have a config and a state_dict.
        allow_pickle: read the tensors of .bin files if there are no safetensors.
        arguments: further arguments of ``from_pretrained``.
    """
    commit = {} if name is None else commit_of(name)
    with LOADING if name is None else loading_errors(name):
        return loader.from_pretrained(
            name,
            **NO_CODE,
            use_safetensors=None if allow_pickle else True,
            weights_only=True,
            **commit,
            **arguments,
        )


def commit_of(name: str | Path) -> dict[str, str]:
    """The argument ``revision`` of ``from_pretrained`` for a Hub repository's newest commit. Empty for a folder.

    A branch would not do: if it has no safetensors, transformers would request a conversion with the user's token.
    """
    return {} if Path(name).expanduser().is_dir() else {"revision": fetch_model(name).name}


def new_model(loader: Any, config: Any, **arguments: Any) -> Any:
    with loading_errors(getattr(config, "name_or_path", "") or type(config).__name__):
        return loader.from_config(config, **NO_CODE, **arguments)


def load_model(loader: Any, name: str | Path, *, complete: bool = False, **arguments: Any) -> Any:
    """Load a model in float32, or in the ``dtype`` in ``arguments``.

    Args:
        loader, name, arguments: as for :func:`load_weights`.
        complete: refuse a checkpoint that lacks weights. A model that is not trained first needs all of them.
    """
    options = {"dtype": torch.float32, "ignore_mismatched_sizes": complete, **arguments}
    model, info = load_weights(loader, name, output_loading_info=True, **options)
    if complete:
        check_complete(model, info, str(name))
    return model


def check_complete(
    model: Any, info: Mapping[str, Any], name: str, advice: str = "give a checkpoint that was saved with its head"
) -> None:
    """Refuse a model with weights that the checkpoint does not have. Weights that are tied to others may be missing.

    Args:
        info: the loading info from ``from_pretrained(output_loading_info=True)``.
        name: name of the checkpoint.
        advice: what the user can do, for the message.
    """
    resized = (key for key, *_ in info["mismatched_keys"])
    new = {"": {*info["missing_keys"]} - {*tied_weights(model)}, " of this size": {*resized}}
    lacking = []
    for suffix, keys in new.items():
        if keys:
            lacking.append(listed(key.rpartition(".")[0] or key for key in keys) + suffix)
    if lacking:
        raise CheckpointError(f"{name!r} lacks weights of {type(model).__name__}: {' and '.join(lacking)}; {advice}.")


# The tensors in the files of a checkpoint, and those that the model's class does not read.

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""The file with all weights, and the file with the names of its shards. transformers reads one of them."""
COMPUTED = re.compile(
    r"(^|\.)(position_ids|token_type_ids|\w*inv_freq|masked_bias|relative_position_index|num_batches_tracked)$"
    r"|\.(attn|attention|self_attn)\.bias$"
)
"""Names of buffers that old versions of transformers saved. Models compute them now."""
LAYER = re.compile(r"\.\d+\.")
"""The number of a layer in the name of a tensor, such as ``.11.``."""


def weight_files(folder: Path) -> list[Path]:
    """The files from which transformers loads a model of this folder."""
    single, index = (folder / file for file in WEIGHTS)
    if single.is_file():
        return [single]
    if index.is_file():
        return [folder / file for file in sorted({*map(str, read_json_object(index)["weight_map"].values())})]
    return sorted(folder.glob(PICKLED_WEIGHTS))


def stored_tensors(folder: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each tensor in the files of a model. Pickles are read as tensors only.

    Args:
        folder: the checkpoint.
        name: the checkpoint as typed by the user, for messages.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    with checkpoint_errors(f"The weights of {name!r} cannot be read"):
        for file in weight_files(folder):
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as tensors:
                    shapes |= {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
            else:
                state = torch.load(file, map_location="cpu", weights_only=True)
                shapes |= {key: tuple(value.shape) for key, value in state.items()}
    return shapes


def unread_tensors(model_class: Any, folder: Path, stored: Iterable[str], **settings: Any) -> dict[str, str]:
    """The tensors in a checkpoint's files that a model class does not read. No weights are loaded into memory.

    Args:
        model_class: the class that loads the checkpoint.
        folder: the checkpoint.
        stored: names of the tensors in the files.
        settings: further arguments of :func:`load_weights`, such as ``config``.
    Returns:
        Name of each tensor that is not read -> the reason, as a phrase.
    """
    with without_load_report():
        model, info = load_weights(
            model_class,
            folder,
            local_files_only=True,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **settings,
        )
    prefix = f"{model.base_model_prefix}."
    known = model.state_dict().keys()
    patterns = [*ignored_weights(model), COMPUTED]
    unread = {*info["unexpected_keys"]}
    # transformers does not report the tensors that it ignores by their names
    for tensor in {*stored} - unread:
        names = {tensor, prefix + tensor, tensor.removeprefix(prefix)}
        if not names & known and any(pattern.search(tensor) for pattern in patterns):
            unread.add(tensor)
    return {
        tensor: "computed by the model" if COMPUTED.search(tensor) else f"not in {type(model).__name__}"
        for tensor in sorted(unread)
    }


def ignored_weights(model: Any) -> list[re.Pattern[str]]:
    """Patterns for the names of tensors that transformers does not read and does not report."""
    if not hasattr(model, "_keys_to_ignore_on_load_unexpected"):
        warn_missing("unread_weights")
        return []
    return [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]


def lost_head(name: str, folder: Path, base: Any, *, allow_pickle: bool, config: Any) -> set[str]:
    """Names of the modules of a head whose weights a checkpoint has, and that would be lost without the head.

    A module counts if it has a matrix that ``base`` does not read. Modules inside numbered layers, buffers that models
    compute, and tables that are tied to the embeddings do not count.

    Args:
        name: the checkpoint as typed by the user, for messages.
        folder: the checkpoint.
        base: the model's class without a head.
    """
    stored = stored_tensors(folder, name)
    text_config = config.get_text_config()
    lost = set()
    for tensor in unread_tensors(base, folder, stored, allow_pickle=allow_pickle, config=config):
        shape = stored.get(tensor, ())
        tied = text_config.tie_word_embeddings and shape[:1] == (getattr(text_config, "vocab_size", None),)
        if len(shape) > 1 and not (tied or COMPUTED.search(tensor) or LAYER.search(tensor)):
            lost.add(tensor.rpartition(".")[0] or tensor)
    return lost


def tied_weights(model: Any) -> Mapping[str, str]:
    """Name of a tied weight -> name of the weight to which it is tied."""
    return getattr(model, "all_tied_weights_keys", None) or {}


@contextlib.contextmanager
def without_load_report() -> Iterator[None]:
    """Within the context, transformers does not log its report about missing and unexpected weights."""

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def has_token_vectors(name: str) -> bool:
    """Whether a MultiVectorEncoder of sentence-transformers was saved as this checkpoint."""
    return any(entry["type"].endswith(".MultiVectorMask") for entry in sentence_modules(fetch_model(name)))


ACTIVATIONS = {
    "torch.nn.Identity",
    "torch.nn.modules.linear.Identity",
    *(f"{place}.{name}" for place in ("torch.nn", "torch.nn.modules.activation") for name in activation.__all__),
}
"""The activation functions that the files of a sentence encoder or reranker may name."""


def check_activations(folder: Path, modules: Iterable[Mapping[str, Any]]) -> None:
    """Refuse a sentence encoder or reranker if it names a torch object that is no activation function.

    sentence-transformers would import and call any name that begins with "torch.".
    """
    for file in (folder / "config.json", *(folder / module["path"] / "config.json" for module in modules)):
        values = read_json_object(file) if file.is_file() else {}
        inner = values.get("sentence_transformers")
        names = [values.get("activation_function"), values.get("sbert_ce_default_activation_function")]
        if isinstance(inner, dict):
            names.append(inner.get("activation_fn"))
        for name in names:
            if isinstance(name, str) and name.startswith("torch.") and name not in ACTIVATIONS:
                raise CheckpointError(
                    f"{str(file)!r} names {shortened(name)!r} as an activation function; expected one of torch.nn, "
                    "such as torch.nn.Tanh."
                )


def load_sentence_model(loader: Any, name: str, *, complete: bool = False, **arguments: Any) -> Any:
    """Load a model of sentence-transformers in float32.

    Args:
        loader: ``SentenceTransformer``, ``CrossEncoder`` or ``MultiVectorEncoder``. If another class saved the folder,
            a ``MultiVectorEncoder`` is built from the token states, without the random projection that
            sentence-transformers would add.
        name: a folder or a Hub repository id.
        complete: refuse a checkpoint that lacks weights. A model that is not trained first needs all of them.
        arguments: further arguments of the loader. With ``num_labels``, a new head replaces a head of another size.
    """
    folder = fetch_model(name)
    modules = sentence_modules(folder)
    check_activations(folder, modules)
    weights = {
        "dtype": torch.float32,
        "use_safetensors": True,
        "ignore_mismatched_sizes": "num_labels" in arguments,
    }
    with loading_errors(name), without_load_report():
        refuse_pickled_modules(name, modules)
        options = {"model_kwargs": weights, **NO_CODE, **commit_of(name), **arguments}
        if loader.__name__ == "MultiVectorEncoder" and not has_token_vectors(name):
            model = _from_token_states(loader, name, options, arguments)
        else:
            model = loader(name, **options)
    network = model.transformers_model
    tokenizer = getattr(model, "tokenizer", None)
    if network is None:
        return model
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        check_tokenizer(tokenizer, name)
        if network.main_input_name == "input_ids":
            fit_tokenizer(tokenizer, network.config, name)
            if network.config.pad_token_id is None:
                network.config.pad_token_id = tokenizer.pad_token_id
    if complete:
        check_sentence_weights(network, name, modules, with_pooler=loader.__name__ == "CrossEncoder")
    return model


def refuse_pickled_modules(name: str, modules: Iterable[Mapping[str, Any]]) -> None:
    """Refuse a module that has its weights only in a pickle, which sentence-transformers would read.

    The transformer is not checked here, since it is loaded with ``use_safetensors``.
    """
    for module in modules:
        if module["type"].endswith(".Transformer"):
            continue
        files = (f"{module['path']}/{file}" for file in ("model.safetensors", "pytorch_model.bin"))
        safe, pickled = (cached_file(name, file, _raise_exceptions_for_missing_entries=False) for file in files)
        if pickled and not safe:
            raise CheckpointError(no_weights(f"{name}/{module['path']}"))


def _from_token_states(loader: Any, name: str, options: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    """A MultiVectorEncoder that returns the normalised token states of a sentence encoder, without a projection.

    Args:
        loader: the class ``MultiVectorEncoder``.
        name: folder or Hub repository id of the sentence encoder.
        options: arguments for loading the sentence encoder.
        arguments: further arguments of ``loader``.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    single = SentenceTransformer(name, **options)
    prompts = {task: prompt for task, prompt in single.prompts.items() if prompt}
    modules = [single[0], MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    return loader(modules=modules, prompts=prompts or None, **arguments)


def check_sentence_weights(
    network: Any, name: str, modules: Iterable[Mapping[str, Any]], *, with_pooler: bool
) -> None:
    """Refuse a sentence encoder if its checkpoint lacks weights of its transformer.

    The loader of sentence-transformers does not report new weights, so the checkpoint is opened a second time.

    Args:
        network: the transformer, as loaded.
        modules: the modules of :func:`~hf_longattn.files.sentence_modules`.
        with_pooler: whether the weights of the pooler are needed. Many encoders are saved without them, because
            sentence-transformers pools the last hidden states itself.
    """
    folder = next((entry["path"] for entry in modules if entry["type"].endswith(".Transformer")), "")
    with without_load_report():
        again, info = load_weights(
            type(network),
            name,
            device_map="meta",  # reads the names only, so there is no second copy of the weights
            config=network.config,
            subfolder=folder,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    missing = {key for key in info["missing_keys"] if with_pooler or ".pooler." not in f".{key}"}
    check_complete(again, {**info, "missing_keys": missing}, name, "give a checkpoint that was saved with all of them")
