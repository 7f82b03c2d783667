"""Audit the reach of tokens in a running model: replace tokens, and compare which outputs change with the config.

If an engine, an export or a server drops a window, neither shapes nor the speed on short inputs show it. An audit does: if the config lets
no layer connect a token to an output, replacing that token must not change a bit of the output. Conversely, if a server cuts its input
off, outputs do not change although they should.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..configuration import LongAttentionConfig
from ..conversion.model_loading import class_named, quiet_libraries
from ..conversion.pooling import sentence_pooling
from ..conversion.sources.folder import read_config
from ..conversion.sources.hub import fetch_model
from ..conversion.tensor_names import check_complete
from ..errors import CheckpointError, LengthError, OptionError, check_extra
from ..export.onnx import LONG_CONFIG
from ..inputs.common.base import kind_of_model
from ..inputs.text import load_tokenizer
from ..loading import load_part, load_weights, loading_errors
from ..modeling.attach.patch_places import packs_images
from ..modeling.family.definition import known_family, model_name
from ..modeling.family.validation import known_length
from ..modeling.generic import attention_of_towers, mark_generic, towers_of
from ..reading import named_class
from .declared import DeclaredReach, text_stack
from .numbered_inputs import LONGEST, SHORTEST, AuditInputs, inputs_of_kind
from .replacing import MAX_RUN_SETS, Embedding, Measurement, Settings, measure, measure_embedding
from .server import ServerTarget, single_words
from .targets import (
    EMBEDDING,
    AuditTarget,
    GraphTarget,
    LayerChanges,
    ModelTarget,
    TokenChanges,
    ordinary_ids,
)  # fmt: skip
from .verdict import CUT_OFF, ReachAudit, TowersAudit, audited

DEFAULT_LENGTH = 2048
OUTPUT_RUNS = 4
"""Maximum sets of runs for the output of a model whose layers were measured."""


@quiet_libraries()
def audit_reach(
    model: str | Path | nn.Module,
    *,
    onnx: str | Path | None = None,
    url: str | None = None,
    length: int | None = None,
    exhaustive: bool = False,
    tolerance: float = 0.0,
    attn_implementation: str | None = None,
    timeout: float = 60.0,
    revision: str | None = None,
    token: str | bool | None = None,
) -> ReachAudit | TowersAudit:
    """Compare the measured reach of a model, an ONNX file or an embedding server with what the config of ``model`` says.

    Sets of tokens (patches of an image, frames of a sound) are replaced. Outputs must change if the config lets them depend on a token of
    the set, and must not change otherwise. What is measured:

    - PyTorch model: every layer separately, by replacing its input states; then the model's output;
    - graph: the output; server: the embedding, and the longest text that it takes. Both need no weights;
    - audio model: the attention of every layer, and the output if the family declares its convolutions. It is called without a mask.

    By default, some 25 runs detect a window that is one key too narrow or too wide, and all dependence on tokens far out of reach.
    ``audit.tested`` is the fraction tested of the pairs that must be independent.

    Args:
        model: a checkpoint of transformers, long or not (a folder or a Hub repository id), or a model in memory.
        onnx: a graph that should compute the same as ``model``.
        url: an embedding server that should compute the same: a route of OpenAI's requests (``…/v1/embeddings``), of
            text-embeddings-inference's (``…/embed``) or Cohere's (``…/v2/embed``). ``…?model=NAME`` names one of its models; a key is read
            from the variable ``HF_LONGATTN_SERVER_KEY``. ``model`` must have a tokenizer.
        length: number of tokens, or frames of a sound. By default the model's maximum, but at most 2,048 except for a server.
        exhaustive: test every pair of an output and a token. This takes some 2·b runs for windows of b tokens, or one per token.
        tolerance: largest change that counts as none, relative to the largest change; 0 compares bits. The int8 graphs of
            :func:`export_checkpoint` need some 0.05, since a scale depends on all tokens. Only a reach that is too wide is then detected.
        attn_implementation: transformers' attention implementation, instead of the checkpoint's.
        timeout: seconds to wait for each answer of the server.
        revision, token: revision of the Hub repository, and access token.
    Returns:
        The audit, or one audit per tower if towers have their own mechanisms. ``audit.agrees`` is the verdict.
    Raises:
        LengthError: the length exceeds the model's maximum, or is too small.
        OptionError: contradicting arguments, or a model, graph or server that cannot be run.
        CheckpointError: the model or its tokenizer cannot be loaded, or lacks weights.
    """
    if onnx is not None and url is not None:
        raise OptionError("An audit looks at an ONNX file or at a server, not at both; leave out --onnx or --url.")
    if not 0 <= tolerance < 1:
        raise OptionError(f"tolerance is {tolerance}, but it is a share of the largest change: from 0 to less than 1, for example 0.01.")
    if not timeout > 0:
        raise OptionError(f"timeout is {timeout:g} seconds, but a server needs more than 0 to answer, for example 60.")
    in_memory = isinstance(model, nn.Module)
    if attn_implementation is not None and (in_memory or onnx is not None or url is not None):
        raise OptionError(
            "An attention implementation is chosen when a checkpoint is loaded, but here none is; leave --attn-implementation out."
        )
    if onnx is not None:
        check_extra("onnx", "onnxruntime")
    weights = onnx is None and url is None
    if isinstance(model, nn.Module):
        loaded, config = model, model.config
        name = model_name(model)
        folder = Path(name) if Path(name).is_dir() else None
    else:
        name = str(model)
        folder = fetch_model(name, revision, token, weights=weights)
        loaded, config = _load(folder, name, weights, attn_implementation)
    if weights and (towers := attention_of_towers(config)):
        settings: dict[str, Any] = {"length": length, "exhaustive": exhaustive, "tolerance": tolerance}
        return _audit_towers(loaded, towers, settings)
    tokenizer = None if folder is None else load_tokenizer(folder)
    stack = text_stack(config, loaded)
    inputs = inputs_of(config, length=length, url=url)
    if inputs is not None:
        tokens, words = inputs.length, inputs.numbers
    else:
        tokens = _length(name, length, known_length(config, tokenizer, stack), longest_by_default=url is not None)
        words = single_words(tokenizer, name) if url is not None else ordinary_ids(config, tokenizer)
    server = None if url is None else ServerTarget(url, tokenizer, words, Path(name).name if Path(name).is_dir() else name, timeout)
    generator = torch.Generator().manual_seed(0)
    ids = words[torch.randint(len(words), (tokens,), generator=generator)]
    target: AuditTarget
    if server is not None:
        target, ids = server, server.accepted(ids[: tokens - server.leading - server.trailing])
    else:
        target = GraphTarget(Path(onnx), inputs) if onnx is not None else ModelTarget(loaded, inputs)
    declared = DeclaredReach(config, stack, ids, target.leading, target.trailing, inputs)
    rows = _pooled_rows(folder) if url is not None else None

    started = time.monotonic()
    limits = Settings(tolerance, exhaustive)
    parts = _measured(target, declared, ids, words, rows, generator, limits)
    result = audited(name, target, declared, parts, time.monotonic() - started, limits)
    if server is not None and CUT_OFF in result.stages[0].problem:
        return replace(result, notes=tuple(filter(None, [server.when_strict(ids)])))
    return result


def _audit_towers(model: Any, attentions: Mapping[str, LongAttentionConfig], settings: Mapping[str, Any]) -> TowersAudit:
    """Audit every tower with mechanisms as a separate model.

    Raises:
        OptionError: no tower can be audited.
    """
    audits, notes = {}, []
    for name, attention in attentions.items():
        tower = copy.copy(towers_of(model)[name])  # shares the modules, but not the config
        tower.config = copy.deepcopy(tower.config)
        mark_generic(tower.config, attention)
        if packs_images(tower):
            notes.append(
                f"The tower {name} packs images of different sizes, which are not audited; look at hf_longattn.explain(model, inputs)."
            )
            continue
        of_tower = {**settings, "length": None} if inputs_of(tower.config, length=None, url=None) is not None else settings
        audit = audit_reach(tower, **of_tower)
        assert isinstance(audit, ReachAudit)
        audits[name] = replace(audit, model=f"{model_name(model)}, tower {name}")
    if not audits:
        raise OptionError(" ".join(notes))
    return TowersAudit(audits, tuple(notes))


def inputs_of(config: Any, *, length: int | None, url: str | None) -> AuditInputs | None:
    """The image or sound inputs of a model; ``None`` for text.

    Raises:
        LengthError, OptionError: the length does not fit the model, or the model cannot be audited.
    """
    kind = kind_of_model(config)
    if kind is None or (inputs := inputs_of_kind(kind, config, length, DEFAULT_LENGTH)) is None:
        return None
    if url is not None:
        raise OptionError(f"Servers of embeddings take texts, not {kind.nouns}; leave --url out, or give the model's graph: --onnx FILE.")
    return inputs


@torch.no_grad()
def _measured(
    target: AuditTarget, declared: DeclaredReach, ids: Tensor, words: Tensor, rows: list[int] | None, generator: torch.Generator,
    settings: Settings,
) -> list[Measurement | Embedding]:  # fmt: skip
    """Measure every layer of a PyTorch model, and then the output."""
    parts: list[Measurement | Embedding] = []
    if isinstance(target, ModelTarget):
        layers = LayerChanges(target, ids, generator)
        if layers.stages:
            parts.append(measure(layers, declared.of_modules(layers.names), settings))
        if parts and not declared.reaches_output:
            return parts
    output = TokenChanges(target, ids, words, generator)
    exhaustive = settings.exhaustive and not parts
    for_output = replace(settings, exhaustive=exhaustive, runs=OUTPUT_RUNS if parts else MAX_RUN_SETS, layers=False)
    if output.stages == [EMBEDDING]:
        parts.append(measure_embedding(output, declared.of_stack(), rows, target.leading, len(ids), for_output))
    else:
        parts.append(measure(output, [declared.of_stack()], for_output))
    return parts


def _length(name: str, length: int | None, longest: int | None, longest_by_default: bool) -> int:
    """Number of tokens to audit: ``length``, or by default the model's maximum or :data:`DEFAULT_LENGTH`."""
    most = min(longest or LONGEST, LONGEST)
    tokens = length if length is not None else most if longest_by_default else min(most, DEFAULT_LENGTH)
    if not SHORTEST <= tokens <= most:
        raise LengthError(f"An audit takes {SHORTEST} to {most:,} tokens of {name!r}, not {tokens:,}; give --length {most}.")
    return tokens


def _load(folder: Path, name: str, weights: bool, attention: str | None) -> tuple[Any, Any]:
    """The model in fp32 (``None`` without ``weights``), and its config."""
    from transformers import AutoConfig, AutoModel

    values = read_config(folder)
    quantised = bool(values.get("quantization_config"))
    source: dict[str, Any] = {"local_files_only": True}
    if attention is not None:
        source["attn_implementation"] = attention
    with loading_errors(name):
        if not weights:
            exported = folder / LONG_CONFIG  # a graph's folder, whose config.json is for programs that know the base only
            return None, load_part(AutoConfig, exported if exported.is_file() else folder, **source)
        try:
            # transformers cannot load the base of quantised weights without its head
            loader = class_named(named_class(values, "AutoModel")) if quantised else None
            loaded, info = load_weights(loader or AutoModel, folder, dtype=torch.float32, output_loading_info=True, **source)
        except Exception as error:
            if not quantised:
                raise
            raise CheckpointError(
                f"{name!r} holds quantised weights, which transformers cannot load here; audit the checkpoint that it was made from."
            ) from error
    check_complete(set(info["missing_keys"]), loaded, name, known_family(loaded.config))
    return loaded, loaded.config


def _pooled_rows(folder: Path | None) -> list[int] | None:
    """The output rows from which sentence-transformers pools an embedding; ``None`` for all or if unknown."""
    pooling = None if folder is None else sentence_pooling(folder)
    rows = {"cls": 0, "lasttoken": -1}
    return [rows[mode] for mode in pooling.modes] if pooling is not None and set(pooling.modes) <= set(rows) else None
