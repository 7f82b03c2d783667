"""Load what a user names: configs, tokenizers, processors and models, from a folder or the Hub.

No other file calls ``from_pretrained`` on user input. transformers and huggingface_hub do the work; this file adds
limits and messages. A checkpoint's Python code never runs, whatever standard input contains. Pickled weights are read
only if the caller allows it, and only as tensors. A tokenizer with rules that could fill the memory is refused. Every
refusal is a :class:`CheckpointError` of one sentence.
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
"""Arguments of every load."""
LOADING = threading.RLock()
"""Held while transformers builds a model. transformers is not safe in threads there: ``from_pretrained`` sets torch's
default dtype, and replaces ``PreTrainedModel.tie_weights``, ``torch.linspace`` and ``torch.nn.init``'s functions for
all threads. Two overlapping loads would mix dtypes, leave weights untied, and restore the replaced functions for good.
"""
MOST_GROWTH = 32
"""Maximum output bytes per input byte for the rules of a tokenizer.json. Unicode's compatibility forms reach 11
(U+FDFA)."""
MOST_SPECIAL = 500
"""Maximum special tokens around a text."""
SAMPLE = "Ünïcode \ufdfa 字 a.b, 1's\n"
TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}\b")


# Where a checkpoint is.


def fetch_model(
    model: str | Path, revision: str | None = None, token: str | bool | None = None, *, weights: Iterable[str] = ()
) -> Path:
    """The folder ``model``, or the cached folder of a Hub repository with its :data:`SMALL_FILES`.

    Without a connection, transformers would try for half a minute.

    Args:
        revision, token: of a Hub repository.
        weights: patterns of further files to download.

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
            small = [*SMALL_FILES, *(f"*/{pattern}" for pattern in SMALL_FILES)]  # and those of modules
            folder = Path(snapshot_download(name, revision=revision, token=token, allow_patterns=[*small, *weights]))
    if not any(os.path.lexists(folder / file) for file in ("config.json", MODULES)):
        refuse_adapter(folder, name)
        raise CheckpointError(
            f"{name!r} has no config.json, so it is not a checkpoint of transformers; give another folder."
        )
    check_checkpoint(folder)
    return folder


def refuse_adapter(folder: Path, name: str) -> None:
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{name!r} holds an adapter, not a model; merge it first: load its base with transformers, and type "
            f"peft.PeftModel.from_pretrained(base, {name!r}).merge_and_unload().save_pretrained('merged')."
        )


def no_weights(name: str, folder: Path | None = None) -> str:
    """The message for a folder or repository without model.safetensors, which may have weights in other files.

    Args:
        folder: the folder, or the cached folder of the repository. ``None`` if it is unknown.
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
        "(allow_pickle=True) to longattn convert, which then reads the tensors in it, and nothing else."
    )


# Errors of the Hub and of loading, each in one sentence.


@contextlib.contextmanager
def translated_errors(
    repo_id: str, token: str | bool | None = None, raised: type[LongAttentionError] = HubError
) -> Iterator[None]:
    """Raise errors of the Hub in one sentence without tokens.

    Args:
        raised: class of the errors: HubError for an upload, CheckpointError for a download.
    """
    try:
        yield
    except LongAttentionError:
        raise
    except Exception as error:  # an unexpected response can raise any error
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
            chain.append(cause)
        local = next((cause for cause in chain if isinstance(cause, OSError) and cause.filename is not None), None)
        if local is not None:
            raise CheckpointError(f"{str(local.filename)!r}: {local.strerror or type(local).__name__}.") from error
        answer = next((cause for cause in chain if isinstance(cause, errors.HfHubHTTPError)), None)
        reason = in_a_line(answer or error)
        if answer is None:  # no connection: the reason names no address
            reason += next(filter(None, map(_server, chain)), "")
        failure = "is not a folder, and it cannot be downloaded"
        if raised is HubError:
            failure = "cannot be uploaded"
        sentence = TOKEN.sub("hf_***", f"{repo_id!r} {failure}: {reason}.")
        if isinstance(token, str) and token:
            sentence = sentence.replace(token, "hf_***")
        raise raised(sentence) from None  # the traceback could show the token


def _server(error: BaseException) -> str:
    """The server that an error of the HTTP library is about, in parentheses and without the path, which may hold a
    secret. Empty for other errors."""
    with contextlib.suppress(AttributeError, RuntimeError):  # an error without a request
        url: Any = error.request.url  # type: ignore[attr-defined]
        return f" ({url.scheme}://{url.netloc.decode()})"
    return ""


@contextlib.contextmanager
def without_questions() -> Iterator[None]:
    """Within the context, transformers refuses a checkpoint's code at once, and does not ask whether to run it.

    :data:`NO_CODE` would not do alone: models that load inner models do not pass ``trust_remote_code`` on.
    """
    seconds = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds


@contextlib.contextmanager
def loading_errors(name: object, what: str = "") -> Iterator[None]:
    """Refuse a checkpoint's code, and turn any error of loading it into one sentence.

    Args:
        name: a folder or a Hub repository id.
        what: the part that is loaded, such as "tokenizer"; default: the whole checkpoint.
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
    """The config.json of a checkpoint folder. Inner configs lose ``auto_map``, since transformers would offer to run
    its code."""
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
    """A part of a checkpoint other than its weights.

    Args:
        loader: ``AutoTokenizer``, ``AutoImageProcessor``, ``AutoConfig`` or another class with ``from_pretrained``.
        name: a folder or a Hub repository id.
        what: the part's name in a message, such as "tokenizer".
        arguments: of ``from_pretrained``.
    """
    with loading_errors(name, what):
        part = loader.from_pretrained(name, **NO_CODE, **arguments)
    if isinstance(tokenizer := getattr(part, "tokenizer", part), PreTrainedTokenizerBase):
        check_tokenizer(tokenizer, str(name))
    return part


def load_padding_tokenizer(name: str | Path, config: Any) -> Any:
    """The tokenizer of a text model with this config, for training and batches; see :func:`fit_tokenizer`."""
    return fit_tokenizer(load_part(AutoTokenizer, name), config, name)


def fit_tokenizer(tokenizer: Any, config: Any, name: str | Path) -> Any:
    """The tokenizer; without a padding token, it pads with its end token. Refuses one without words, or with ids
    beyond the model."""
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
    """Refuse a tokenizer with ids beyond the model's table of token embeddings. A table with more rows is usual.

    Placeholders of images and sounds are not counted, because only processors write them. (Gemma 3's text models have
    no row for ``image_token``.)
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(rows, int):
        return
    usual = PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES
    named = tokenizer.special_tokens_map
    placeholders = set(named.values()) - {named.get(role) for role in usual}
    beyond = {
        number: token
        for token, number in tokenizer.get_vocab().items()
        if number >= rows and token not in placeholders
    }
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:  # its template may have ids of its own
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
    """``tokenizer(*texts, **options)``. Its errors, for example of a regular expression that takes too long, become
    one sentence."""
    with checkpoint_errors("The tokenizer is damaged, or does not fit the text"):
        return tokenizer(*texts, **options)


def check_tokenizer(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer with rules that expand a text enormously.

    A token takes about 200 bytes, so a few rules could fill the memory with the tokens of a short text. Each rule is
    run on a sample and on the output of the earlier rules. A match of a regular expression counts as one byte.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    with checkpoint_errors(f"The tokenizer.json of {name!r} is damaged"):
        steps = [*_steps(backend.normalizer), *_steps(backend.pre_tokenizer)]
        starts = [(SAMPLE, SAMPLE, 0)]  # a text, the same after some rules, and the number of the next rule
        for following, (_, rule) in enumerate(steps, 1):
            if rule["type"] == "Replace":
                starts.append((rule["pattern"].get("String", ""), rule["content"], following))
            elif rule["type"] == "Prepend":
                starts.append(("", rule["prepend"], following))
            elif rule["type"] == "Precompiled" and rule["precompiled_charsmap"]:
                # the size of a trie, the trie, texts that end in a zero
                charsmap = base64.b64decode(rule["precompiled_charsmap"])
                texts = charsmap[4 + int.from_bytes(charsmap[:4], "little") :].split(b"\0")
                starts.append(("\ufdfa", max(texts, key=len).decode(errors="replace"), following))
        expands = backend.num_special_tokens_to_add(False) > MOST_SPECIAL
        for before, text, first in starts:
            size = max(1, len(before.encode()))
            for step, _ in steps[first:]:
                if len(text.encode()) > MOST_GROWTH * size:
                    break  # the next step could fill the memory
                if hasattr(step, "normalize_str"):
                    text = step.normalize_str(text)
                else:
                    text = "".join(piece for piece, _ in step.pre_tokenize_str(text))
            expands |= len(text.encode()) > MOST_GROWTH * size
        templates = [rule.get(form) or [] for _, rule in _steps(backend.post_processor) for form in ("single", "pair")]
        for template in templates:
            texts = [piece["Sequence"]["id"] for piece in template if "Sequence" in piece]
            expands |= len(texts) > len(set(texts))
    if expands:
        raise CheckpointError(
            f"The tokenizer.json of {name!r} makes a text more than {MOST_GROWTH} times as long, or repeats it; give "
            "a checkpoint with another tokenizer."
        )


def _steps(part: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The steps of a tokenizer part, each with its rule in tokenizer.json. None for a part in Python, which no file
    can contain."""
    if type(part).__name__ == "Sequence":
        for inner in part:
            yield from _steps(inner)
    elif part is not None and type(part).__name__ not in ("Normalizer", "PreTokenizer"):
        yield part, json.loads(part.__getstate__())


# Models.


def load_weights(loader: Any, name: str | Path | None, *, allow_pickle: bool = False, **arguments: Any) -> Any:
    """Call ``loader.from_pretrained`` without running code, and return its result.

    Args:
        loader: a model class, or an Auto class of models.
        name: a folder or a Hub repository id; ``None`` if ``arguments`` give config and state_dict.
        allow_pickle: read tensors of .bin files where there are no safetensors.
        arguments: of ``from_pretrained``.
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
    """The argument ``revision`` for the newest commit of a Hub repository; no argument for a folder.

    For a branch without safetensors, transformers would request their conversion with the user's token.
    """
    return {} if Path(name).expanduser().is_dir() else {"revision": fetch_model(name).name}


def new_model(loader: Any, config: Any, **arguments: Any) -> Any:
    with loading_errors(getattr(config, "name_or_path", "") or type(config).__name__):
        return loader.from_config(config, **NO_CODE, **arguments)


def load_model(loader: Any, name: str | Path, *, complete: bool = False, **arguments: Any) -> Any:
    """A model from :func:`load_weights`, in float32 unless ``arguments`` name another dtype.

    complete: refuse checkpoints that lack weights (for use without training).
    """
    options = {"dtype": torch.float32, "ignore_mismatched_sizes": complete, **arguments}
    model, info = load_weights(loader, name, output_loading_info=True, **options)
    if complete:
        check_complete(model, info, str(name))
    return model


def check_complete(
    model: Any, info: Mapping[str, Any], name: str, advice: str = "give a checkpoint that was saved with its head"
) -> None:
    """Refuse a model with new weights, unless they are tied to others.

    Args:
        info: the loading info from ``from_pretrained(output_loading_info=True)``.
        name: name of the checkpoint.
        advice: what the user can do, for the message.
    """
    resized = (key for key, *_ in info["mismatched_keys"])
    new = {"": {*info["missing_keys"]} - {*tied_weights(model)}, " of this size": {*resized}}
    lost = [f"{listed(key.rpartition('.')[0] or key for key in keys)}{which}" for which, keys in new.items() if keys]
    if lost:
        raise CheckpointError(f"{name!r} lacks weights of {type(model).__name__}: {' and '.join(lost)}; {advice}.")


# Tensors of the files: each is read by the model's class, or left out for a reason.

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""The file of the weights, or of the names of their shards. transformers reads one of them."""
COMPUTED = re.compile(
    r"(^|\.)(position_ids|token_type_ids|\w*inv_freq|masked_bias|relative_position_index|num_batches_tracked)$"
    r"|\.(attn|attention|self_attn)\.bias$"
)
"""Buffers that old versions of transformers saved, and that models compute."""
LAYER = re.compile(r"\.\d+\.")
"""Part of the name of a tensor in one of several layers."""


def weight_files(folder: Path) -> list[Path]:
    """The files from which transformers loads a model of this folder."""
    single, index = (folder / file for file in WEIGHTS)
    if single.is_file():
        return [single]
    if index.is_file():
        return [folder / file for file in sorted({*map(str, read_json_object(index)["weight_map"].values())})]
    return sorted(folder.glob(PICKLED_WEIGHTS))


def stored_tensors(folder: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor in the files of a model. Pickles are read as tensors only."""
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
    """Name of each tensor that a class does not read from a folder -> the reason. No weights are kept in memory.

    Args:
        stored: names of the tensors in the files.
        settings: further arguments of :func:`load_weights`, such as ``config``.
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
    for tensor in {*stored} - unread:
        names = {tensor, prefix + tensor, tensor.removeprefix(prefix)}
        if not names & known and any(pattern.search(tensor) for pattern in patterns):
            unread.add(tensor)
    return {
        tensor: "computed by the model" if COMPUTED.search(tensor) else f"not in {type(model).__name__}"
        for tensor in sorted(unread)
    }


def ignored_weights(model: Any) -> list[re.Pattern[str]]:
    """Patterns of tensors that transformers leaves out without a word."""
    if not hasattr(model, "_keys_to_ignore_on_load_unexpected"):
        warn_missing("unread_weights")
        return []
    return [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]


def lost_head(name: str, folder: Path, base: Any, *, allow_pickle: bool, config: Any) -> set[str]:
    """Names of the modules with matrices in a checkpoint's files that its class without a head, ``base``, does not
    read.

    Layers do not count, nor do buffers that models compute and tables that are tied to the embeddings.
    """
    stored = stored_tensors(folder, name)
    text = config.get_text_config()
    lost = set()
    for tensor in unread_tensors(base, folder, stored, allow_pickle=allow_pickle, config=config):
        shape = stored.get(tensor, ())
        tied = text.tie_word_embeddings and shape[:1] == (getattr(text, "vocab_size", None),)
        if len(shape) > 1 and not (tied or COMPUTED.search(tensor) or LAYER.search(tensor)):
            lost.add(tensor.rpartition(".")[0] or tensor)
    return lost


def tied_weights(model: Any) -> Mapping[str, str]:
    """Name of a tied weight -> name of the weight that it shares."""
    return getattr(model, "all_tied_weights_keys", None) or {}


@contextlib.contextmanager
def without_load_report() -> Iterator[None]:
    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def has_token_vectors(name: str) -> bool:
    return any(entry["type"].endswith(".MultiVectorMask") for entry in sentence_modules(fetch_model(name)))


ACTIVATIONS = {
    "torch.nn.Identity",
    "torch.nn.modules.linear.Identity",
    *(f"{place}.{name}" for place in ("torch.nn", "torch.nn.modules.activation") for name in activation.__all__),
}
"""Names under which the files of a sentence encoder or reranker may name an activation function of torch."""


def check_activations(folder: Path, modules: Iterable[Mapping[str, Any]]) -> None:
    """Refuse a sentence encoder or reranker whose files name something else in torch as an activation function.

    sentence-transformers imports and calls whatever begins with "torch.".
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
    """A model of sentence-transformers in float32.

    Args:
        loader: ``SentenceTransformer``, ``CrossEncoder`` or ``MultiVectorEncoder``. If another class saved the folder,
            ``MultiVectorEncoder`` uses the token states, without the random projection that it would add.
        name: a folder or a Hub repository id.
        complete: refuse checkpoints that lack weights (for use without training).
        arguments: more arguments of the loader. With ``num_labels``, a head of another size is replaced by a new one.
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
    """Refuse modules after the transformer whose weights are in a pickle only; sentence-transformers would read it."""
    for module in modules:
        if module["type"].endswith(".Transformer"):
            continue
        files = (f"{module['path']}/{file}" for file in ("model.safetensors", "pytorch_model.bin"))
        safe, pickled = (cached_file(name, file, _raise_exceptions_for_missing_entries=False) for file in files)
        if pickled and not safe:
            raise CheckpointError(no_weights(f"{name}/{module['path']}"))


def _from_token_states(loader: Any, name: str, options: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    """A MultiVectorEncoder of the token states of another sentence encoder, without a projection."""
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
    """Refuse a sentence encoder without all weights of its transformer. Its loader does not say which are new.

    Many encoders are saved without the pooler, because sentence-transformers pools the last hidden states itself.
    """
    folder = next((entry["path"] for entry in modules if entry["type"].endswith(".Transformer")), "")
    with without_load_report():
        again, info = load_weights(
            type(network),
            name,
            device_map="meta",  # keeps no second copy of the weights
            config=network.config,
            subfolder=folder,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    missing = {key for key in info["missing_keys"] if with_pooler or ".pooler." not in f".{key}"}
    check_complete(again, {**info, "missing_keys": missing}, name, "give a checkpoint that was saved with all of them")
