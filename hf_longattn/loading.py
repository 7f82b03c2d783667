"""Load the configs, tokenizers, processors and models that a user names. No other file calls ``from_pretrained`` on them.

A checkpoint's Python code never runs, whatever standard input contains. Pickled weights are read only if the caller allows it.
"""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import json
import logging as std_logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants, errors, get_token, snapshot_download
from huggingface_hub.errors import HTTPError  # of the HTTP library in use: raised bare when there is no connection
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, dynamic_module_utils
from transformers.utils import cached_file, logging

from .errors import CheckpointError, HubError, LongAttentionError, checkpoint_errors, in_a_line, listed, rust_panics
from .files import (
    GRAPHS,
    HUB_ID,
    SENTENCE_LIMIT,
    TOKENIZER_CONFIG,
    TOKENIZER_LIMIT,
    TRANSFORMER_SETTINGS,
    read_json_object,
    sentence_modules,
)
from .names import LOGGER

PICKLED_WEIGHTS = "pytorch_model*.bin"
POOLER = re.compile(r"(^|\.)pooler\.")
"""Weights that no embedding uses: sentence-transformers pools the last hidden states itself. Many encoders are saved without them."""
REPORTERS = ("transformers.modeling_utils", "transformers.utils.loading_report")
"""Loggers of transformers' LOAD REPORT."""
NO_CODE = {"trust_remote_code": False}
"""Passed in every call. Models that load inner models do not pass it on; see :func:`guarded`."""
NO_CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"
"""The environment variable that stops transformers from requesting a conversion of pickled weights."""
MOST_GROWTH = 32
"""Maximum bytes that the rules of a tokenizer.json make of one byte. Unicode's compatibility forms make 11 of one (U+FDFA)."""
SAMPLE = "Ünïcode \ufdfa 字 a.b, 1's\n"
"""Text that rules for all characters change."""
logger = logging.get_logger(LOGGER)


@contextlib.contextmanager
def loading_errors(name: object, what: str = "", revision: str | None = None, token: str | bool | None = None) -> Iterator[None]:
    """Refuse a checkpoint's code, and turn any error of loading it into one sentence.

    Args:
        name: a folder or a Hub repository id.
        what: the part that is loaded, such as "tokenizer"; default: the whole checkpoint.
        revision, token: of the repository.

    Raises:
        CheckpointError: with that sentence. A LongAttentionError is raised unchanged.
    """
    try:
        with guarded(), rust_panics():
            yield
    except LongAttentionError:
        raise
    except Exception as error:
        subject = f"The {what} of {str(name)!r}" if what else repr(str(name))
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{subject} needs its own Python code, which this package never runs; give a checkpoint whose model_type and "
                "classes transformers has, or load it in a program of yours and save it as one."
            ) from error
        if isinstance(error, OSError) and "safetensors" in str(error) and has_pickles(str(name), revision, token):
            raise CheckpointError(only_pickles(str(name))) from error
        if isinstance(error, OSError) and "no file named" in str(error) and not what:
            graph = any(Path(str(name), file).is_file() for file in GRAPHS.values())
            which = "the one that its graph was exported from" if graph else "all files of its index"
            raise CheckpointError(f"{subject} has no weights; give a folder with model.safetensors, or {which}.") from error
        if isinstance(error, ModuleNotFoundError) and str(error.name).startswith("transformers.models."):  # a search for a class
            raise CheckpointError(
                f"{subject} names a processor that transformers does not have; correct processor_class in its processor_config.json and "
                "tokenizer_config.json."
            ) from error
        raise CheckpointError(f"{subject} cannot be loaded: {in_a_line(error)}.") from error


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Stop transformers from asking whether code may run, and from requesting a conversion of weights.

    The question would come on standard input. The request would send the user's token to a service of the Hub.
    """
    seconds, converts = dynamic_module_utils.TIME_OUT_REMOTE_CODE, os.environ.get(NO_CONVERSION)
    dynamic_module_utils.TIME_OUT_REMOTE_CODE, os.environ[NO_CONVERSION] = 0, "1"
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds
        del os.environ[NO_CONVERSION]
        os.environ.update({} if converts is None else {NO_CONVERSION: converts})


def has_pickles(name: str, revision: str | None = None, token: str | bool | None = None) -> bool:
    """Whether a folder or a Hub repository has torch's .bin files."""
    if Path(name).is_dir():
        return any(Path(name).glob(PICKLED_WEIGHTS))
    with translated_errors(name, token, DOWNLOAD):
        return any(fnmatch.fnmatch(file, PICKLED_WEIGHTS) for file in HfApi(token=token).list_repo_files(name, revision=revision))


def only_pickles(name: str) -> str:
    """The message for a folder or repository whose weights are .bin files."""
    return (
        f"{name!r} holds its weights only as pickle ({PICKLED_WEIGHTS}), a format that can carry code; add --allow-pickle "
        "(allow_pickle=True) to longattn convert, which then reads the tensors in it, and nothing else. For other commands, load it with "
        "transformers and write it again with save_pretrained."
    )


def check_loadable(name: str | Path, revision: str | None = None, token: str | bool | None = None) -> Path:
    """Refuse a name that transformers' Auto classes cannot load on its own.

    Returns:
        The folder with its small files.

    Raises:
        CheckpointError: neither a folder nor a repository, or an adapter without its model.
    """
    folder = check_saved_model(str(name), revision, token)
    if not (folder / "config.json").is_file():
        refuse_adapter(folder, str(name))
    return folder


def refuse_adapter(folder: Path, name: str) -> None:
    """Refuse a folder of a PEFT adapter.

    Raises:
        CheckpointError: the folder has an adapter_config.json. The message says how to merge the adapter.
    """
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{name!r} holds an adapter, not a model; merge it first: load its base with transformers, and type peft.PeftModel."
            f"from_pretrained(base, {name!r}).merge_and_unload().save_pretrained('merged')."
        )


def load_config(name: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> Any:
    """The config of a checkpoint.

    Args:
        name: a folder or a Hub repository id.

    Raises:
        CheckpointError: there is no such checkpoint, or its config cannot be loaded.
    """
    check_loadable(name, revision, token)
    return load_part(AutoConfig, name, revision=revision, token=token)


def load_part(loader: Any, name: str | Path, what: str = "", **arguments: Any) -> Any:
    """A part of a checkpoint other than its weights.

    Args:
        loader: ``AutoTokenizer``, ``AutoImageProcessor``, ``AutoConfig`` or another class with ``from_pretrained``.
        name: a folder or a Hub repository id.
        what: the part's name in a message, such as "tokenizer".
        arguments: of ``from_pretrained``.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    with loading_errors(name, what):
        part = loader.from_pretrained(name, **NO_CODE, **arguments)
    if isinstance(tokenizer := getattr(part, "tokenizer", part), PreTrainedTokenizerBase):
        check_tokenizer(tokenizer, str(name))
    return part


def load_padding_tokenizer(name: str | Path, config: Any) -> Any:
    """The tokenizer of a text model, for training and batches; see :func:`fit_tokenizer`.

    Args:
        name: a folder or a Hub repository id.
        config: of its model.
    """
    tokenizer = load_part(AutoTokenizer, name)
    fit_tokenizer(tokenizer, config, name)
    return tokenizer


def fit_tokenizer(tokenizer: Any, config: Any, name: str | Path) -> None:
    """Let a tokenizer without a padding token pad with its end token.

    Raises:
        CheckpointError: the tokenizer has neither token, or the model's table is too small for it.
    """
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise CheckpointError(
            f"The tokenizer of {str(name)!r} has neither a padding nor an end token; give it one (tokenizer.pad_token = ...)."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_token_ids(tokenizer, config, name)


def check_token_ids(tokenizer: Any, config: Any, name: str | Path) -> None:
    """Refuse a tokenizer with ids beyond the model's table of token embeddings. A table with more rows is usual.

    Placeholders of images and sounds are not counted: a processor writes them, and no text does (Gemma 3, whose models of texts have no
    row for its ``image_token``).

    Raises:
        CheckpointError: the table is too small.
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(rows, int):
        return
    usual, named = PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES, tokenizer.special_tokens_map
    placeholders = set(named.values()) - {named.get(role) for role in usual}
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if number >= rows and token not in placeholders}
    if beyond:
        raise CheckpointError(
            f"The tokenizer of {str(name)!r} gives token ids up to {max(beyond)} ({beyond[max(beyond)]!r}), but its model has {rows} "
            f"embeddings; enlarge the model with resize_token_embeddings({max(beyond) + 1}) and save it, or give it a tokenizer without "
            "these tokens, if this one belongs to another model."
        )


def call_tokenizer(tokenizer: Any, *texts: Any, **options: Any) -> Any:
    """The result of ``tokenizer(*texts, **options)``.

    Raises:
        CheckpointError: the tokenizer fails, for example at a regular expression that takes too long.
    """
    with checkpoint_errors("The tokenizer is damaged, or does not fit the text"):
        return tokenizer(*texts, **options)


def check_ids(largest: int, rows: int) -> None:
    """Refuse a token id beyond the rows of a model's table of token embeddings.

    Raises:
        CheckpointError: the tokenizer belongs to another model.
    """
    if largest >= rows:
        raise CheckpointError(
            f"A text has the token id {largest:,}, but the model has {rows:,} token embeddings; the tokenizer belongs to another model."
        )


def check_tokenizer(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer that makes far more of a text than it has, or without a sensible maximum length.

    A token takes about 200 bytes of memory, so a few rules could fill it with the tokens of a short text.

    Args:
        tokenizer: just loaded.
        name: of its checkpoint.

    Raises:
        CheckpointError: naming the file and the rule or field.
    """
    longest = getattr(tokenizer, "model_max_length", 1)
    is_count = (type(longest) is int and longest >= 1) or (type(longest) is float and longest > 1e20)  # 1e30 stands for no limit
    if not is_count:
        raise CheckpointError(
            f"The tokenizer_config.json of {name!r} says model_max_length={longest!r:.60}, which must be a whole number of 1 or more; "
            "correct it."
        )
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
        return
    file = f"The tokenizer.json of {name!r}"
    with checkpoint_errors(f"{file} is damaged"):
        if (special := backend.num_special_tokens_to_add(False)) >= longest:
            files = (path for path in Path(name).rglob(TRANSFORMER_SETTINGS) if read_json_object(path).get(SENTENCE_LIMIT) == longest)
            setting = next((f"{SENTENCE_LIMIT} in {path.name}" for path in files), f"{TOKENIZER_LIMIT} in {TOKENIZER_CONFIG}")
            raise CheckpointError(
                f"The checkpoint {name!r} reads {longest:,} tokens ({setting}) and its tokenizer.json puts {special:,} special tokens "
                "around a text, which leaves none for the text; correct the one that is wrong."
            )
        for rule in _rules(backend.post_processor, "processors"):
            for template in (rule.get("single") or [], rule.get("pair") or []):
                texts = [piece["Sequence"]["id"] for piece in template if "Sequence" in piece]
                if len(texts) > len(set(texts)):
                    raise CheckpointError(f"{file} repeats every text in a template; correct it.")
        parts = (
            ("normalizers", normalizers.Sequence, backend.normalizer),
            ("pretokenizers", pre_tokenizers.Sequence, backend.pre_tokenizer),
        )
        steps: list[tuple[str, Any, Any]] = [(key, kind([]), rule) for key, kind, part in parts for rule in _rules(part, key)]
        for key, alone, rule in steps:
            alone.__setstate__(json.dumps({"type": "Sequence", key: [rule]}).encode())
        starts = [(before, after, place) for place, (_, _, rule) in enumerate(steps, 1) for before, after in _replacements(rule)]
        for before, text, first in [(SAMPLE, SAMPLE, 0), *starts]:
            most = MOST_GROWTH * max(1, len(before.encode()))
            for key, alone, _ in steps[first:]:
                if len(text.encode()) <= most:  # what later rules make of a longer text could fill the memory
                    text = alone.normalize_str(text) if key == "normalizers" else "".join(part for part, _ in alone.pre_tokenize_str(text))
            if len(text.encode()) > most:
                raise CheckpointError(
                    f"{file} makes a text more than {MOST_GROWTH} times as long; give a checkpoint with another tokenizer."
                )


def _rules(part: Any, key: str) -> Iterator[dict[str, Any]]:
    """The rules of a part of a tokenizer, as in tokenizer.json. None for a part in Python, which no file can bring."""
    try:
        waiting = [] if part is None else [json.loads(part.__getstate__())]
    except Exception:  # tokenizers raises it for a part in Python
        return
    while waiting:
        rule = waiting.pop(0)
        if rule["type"] == "Sequence":
            waiting = [*rule[key], *waiting]
        else:
            yield rule


def _replacements(rule: dict[str, Any]) -> list[tuple[str, str]]:
    """What a rule replaces, and by what. A match of a regular expression counts as one byte."""
    if rule["type"] == "Replace":
        return [(rule["pattern"].get("String", ""), rule["content"])]
    if rule["type"] == "Prepend":
        return [("", rule["prepend"])]
    if rule["type"] == "Precompiled" and rule["precompiled_charsmap"]:  # the size of a trie, the trie, and texts that end in a zero byte
        charsmap = base64.b64decode(rule["precompiled_charsmap"])
        return [("\ufdfa", max(charsmap[4 + int.from_bytes(charsmap[:4], "little") :].split(b"\0"), key=len).decode(errors="replace"))]
    return []


def load_weights(loader: Any, name: str | Path | None, *, allow_pickle: bool = False, **arguments: Any) -> Any:
    """Call ``loader.from_pretrained`` without running code, and return its result.

    Args:
        loader: a model class, or an Auto class of models.
        name: a folder or a Hub repository id; ``None`` if ``arguments`` give config and state_dict.
        allow_pickle: read tensors of .bin files where there are no safetensors.
        arguments: of ``from_pretrained``.

    Raises:
        CheckpointError: it cannot be loaded, or has only pickled weights.
    """
    safely = {**NO_CODE, "use_safetensors": None if allow_pickle else True, "weights_only": True}
    if name is None:
        return loader.from_pretrained(name, **safely, **arguments)
    with loading_errors(name, revision=arguments.get("revision"), token=arguments.get("token")):
        return loader.from_pretrained(name, **safely, **arguments)


def load_model(loader: Any, name: str | Path, *, complete: bool = False, elsewhere: tuple[str, ...] = (), **arguments: Any) -> Any:
    """A model, in float32 unless ``arguments`` name another dtype.

    New or unused weights give a warning of one sentence, in place of transformers' LOAD REPORT.

    Args:
        loader: a model class, or an Auto class of models.
        name: a folder or a Hub repository id.
        complete: whether new weights are an error, because nothing will be trained.
        elsewhere: prefixes of weights that are loaded in another way.
        arguments: of ``from_pretrained``.

    Raises:
        CheckpointError: it cannot be loaded, has only pickled weights or, if ``complete``, lacks weights.
    """
    options = {"dtype": torch.float32, "output_loading_info": True, **({"ignore_mismatched_sizes": True} if complete else {}), **arguments}
    with without_load_report():
        model, info = load_weights(loader, name, **options)
    if complete:
        check_complete(model, info, str(name))
    if int(os.environ.get("RANK", "0")) == 0 and (sentence := load_report(info, elsewhere, model.base_model_prefix)):
        logger.warning(f"{name}: {sentence}.")
    return model


def check_complete(model: Any, info: Mapping[str, Any], name: str, advice: str = "give a checkpoint that was saved with its head") -> None:
    """Refuse a model with new weights.

    Args:
        info: of ``from_pretrained(output_loading_info=True)``.
        name: of its checkpoint.
        advice: what to type, unless `longattn train multitask` wrote the checkpoint.

    Raises:
        CheckpointError: with the names of the modules.
    """
    missing = {*info["missing_keys"]} - {*tied_weights(model)}
    lost = [listed([key.rpartition(".")[0] or key for key in missing])] if missing else []
    lost += [f"{listed([key.rpartition('.')[0] for key, *_ in info['mismatched_keys']])} of this size"] if info["mismatched_keys"] else []
    if lost:
        if heads := getattr(model.config, "multitask_heads", None):
            tasks = " ".join(f"{head}={fields['kind']}:DATA" for head, fields in heads.items())
            advice = f"it has heads of `longattn train multitask`, so type longattn evaluate multitask --model {name} --tasks {tasks}"
        raise CheckpointError(f"{name!r} lacks weights of {type(model).__name__}: {' and '.join(lost)}; {advice}.")


def new_model(loader: Any, config: Any, **arguments: Any) -> Any:
    """A model of an Auto class with random weights."""
    with loading_errors(getattr(config, "name_or_path", "") or type(config).__name__):
        return loader.from_config(config, **NO_CODE, **arguments)


def load_sentence_model(loader: Any, name: str, *, complete: bool = False, **arguments: Any) -> Any:
    """A model of sentence-transformers in float32.

    Args:
        loader: ``SentenceTransformer``, ``CrossEncoder`` or ``MultiVectorEncoder``. The last uses the token states if another
            class saved the folder. The random projection that it would add is left out.
        name: a folder or a Hub repository id.
        complete: whether new weights are an error, because nothing will be trained.
        arguments: of the loader. With ``num_labels``, a head of another size is replaced by a new one.

    Raises:
        CheckpointError: it cannot be loaded, has only pickled weights or, if ``complete``, lacks weights.
    """
    listed_modules = sentence_modules(check_loadable(name))
    with loading_errors(name), without_load_report():
        for module in listed_modules:
            if not module["type"].endswith(".Transformer"):
                files = (f"{module['path']}/{file}" for file in ("model.safetensors", "pytorch_model.bin"))
                safe, pickled = (cached_file(name, file, _raise_exceptions_for_missing_entries=False) for file in files)
                if pickled and not safe:
                    raise CheckpointError(only_pickles(f"{name}/{module['path']}"))
        weights = {"dtype": torch.float32, "use_safetensors": True, "ignore_mismatched_sizes": "num_labels" in arguments}
        options = {"model_kwargs": weights, **NO_CODE, **arguments}
        if loader.__name__ == "MultiVectorEncoder" and not has_token_vectors(name):
            from sentence_transformers import SentenceTransformer
            from sentence_transformers.base.modules import Normalize
            from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

            single = SentenceTransformer(name, **options)
            prompts = {task: prompt for task, prompt in single.prompts.items() if prompt}
            modules = [single[0], MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
            model = loader(modules=modules, prompts=prompts or None, **arguments)
        else:
            model = loader(name, **options)
    _check_sentence_model(model, name)
    network = model.transformers_model
    if network is not None and network.main_input_name == "input_ids":
        fit_tokenizer(model.tokenizer, network.config, name)
        if network.config.pad_token_id is None:
            network.config.pad_token_id = model.tokenizer.pad_token_id
    if complete and network is not None:  # the loader does not say which weights are new
        folder = next((entry["path"] for entry in listed_modules if entry["type"].endswith(".Transformer")), "")
        options = {"config": network.config, "subfolder": folder, "output_loading_info": True, "ignore_mismatched_sizes": True}
        with without_load_report():
            again, info = load_weights(type(network), name, **options)
        if loader.__name__ == "CrossEncoder":
            check_complete(again, info, name)
        else:
            read = {key for key in info["missing_keys"] if not POOLER.search(key)}
            check_complete(again, {**info, "missing_keys": read}, name, "give a checkpoint that was saved with all of them")
    return model


def _check_sentence_model(model: Any, name: str) -> None:
    """Refuse a model of sentence-transformers without a vector or without room for a text.

    Raises:
        CheckpointError: no module makes one vector of a text, or special tokens and a prompt are as long as the model reads.
    """
    network, kinds = model.transformers_model, [type(module).__name__ for module in model]
    if network is not None and not hasattr(model, "tokenizer"):
        raise CheckpointError(f"{name!r} begins with {kinds[0]}; give a model whose first module is its Transformer.")
    if network is None or not isinstance(model.tokenizer, PreTrainedTokenizerBase):
        return
    if model.model_type == "SentenceTransformer" and model[0].module_output_name == "token_embeddings" and "Pooling" not in kinds:
        raise CheckpointError(
            f"{name!r} has no module that makes one vector of a text ({', '.join(kinds)}); save it again with a Pooling module."
        )
    check_tokenizer(model.tokenizer, name)
    tables = [
        table for key, table in network.named_modules() if isinstance(table, torch.nn.Embedding) and key.endswith("position_embeddings")
    ]
    rows = min((table.num_embeddings - (-1 if table.padding_idx is None else table.padding_idx) - 1 for table in tables), default=None)
    if rows and model.max_seq_length and model.max_seq_length > rows:
        logger.warning(f"{name}: max_seq_length is {model.max_seq_length:,}, but the model has {rows:,} positions; texts are cut there.")
        model.max_seq_length = rows
    for task, prompt in {"": "", **model.prompts}.items():
        count, longest = len(call_tokenizer(model.tokenizer, prompt, verbose=False)["input_ids"]), model.max_seq_length
        if longest and count >= longest:
            what = f"The prompt {task!r} of {name!r} has {count:,} tokens" if prompt else f"{name!r} has {count:,} special tokens"
            raise CheckpointError(
                f"{what}, and the model reads {longest:,}, which leaves none for a text; shorten the prompt, or raise max_seq_length."
            )


def has_token_vectors(name: str) -> bool:
    """Whether a folder or repository was saved by sentence-transformers' ``MultiVectorEncoder``."""
    return any(entry["type"].endswith(".MultiVectorMask") for entry in sentence_modules(check_saved_model(name)))


def tied_weights(model: Any) -> Mapping[str, str]:
    """Name of a tied weight -> name of the weight that it shares."""
    return getattr(model, "all_tied_weights_keys", None) or {}


def load_report(info: Mapping[str, Any], elsewhere: tuple[str, ...] = (), base: str = "") -> str:
    """The loading info of ``from_pretrained`` in words; "" if everything was loaded.

    Args:
        elsewhere: prefixes of weights that are loaded in another way.
        base: the name of the base model within the model, such as "bert". It is cut off the names of unused weights.
    """
    new = [key.rpartition(".")[0] for key in info["missing_keys"]]
    resized = [key[0].rpartition(".")[0] for key in info["mismatched_keys"]]
    unused = [key.removeprefix(f"{base}.").partition(".")[0] for key in info["unexpected_keys"] if not key.startswith(elsewhere or "\0")]
    parts = [f"{listed(new)} {_are(new)} new and trained from random values"] if new else []
    reason = "it is" if len(set(resized)) == 1 else "they are"
    parts += [f"{listed(resized)} {_are(resized)} new, since {reason} of another size there"] if resized else []
    parts += [f"{listed(unused)} {_are(unused)} not used by this task"] if unused else []
    return "; ".join(parts)


def _are(names: list[str]) -> str:
    return "is" if len(set(names)) == 1 else "are"


@contextlib.contextmanager
def without_load_report() -> Iterator[None]:
    """Suppress transformers' LOAD REPORT, a table of missing and unused weights."""

    def is_other(record: std_logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    loggers = [std_logging.getLogger(name) for name in REPORTERS]
    for log in loggers:
        log.addFilter(is_other)
    try:
        yield
    finally:
        for log in loggers:
            log.removeFilter(is_other)


# Translate errors of the Hub and its connection into one sentence, without tokens.

TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}\b")
"""A Hub token."""
DESCRIBED = ("config.json", "modules.json", "adapter_config.json")
"""The files that identify a saved model of transformers, sentence-transformers or peft. One is enough."""
SMALL_FILES = (*DESCRIBED, "config_sentence_transformers.json", "*sentence_*_config.json", "*/config.json")
"""Patterns of the files that are checked before a model is loaded."""
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
