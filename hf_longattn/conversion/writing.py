"""Write the weights and the config of a result. Each tensor is computed when it is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..checks import MEASURED, Check
from ..data.english import verification_text
from ..data.tokenization import special_ids
from ..engines.common.call import AttentionCall
from ..engines.common.dense import repeat_heads
from ..errors import CheckpointError, OptionError
from ..inputs.text import VerificationText, excerpt, load_tokenizer
from ..mechanisms.common.base import Mechanism
from ..mechanisms.common.registry import mechanism_from
from ..mechanisms.common.traits import FitsActivations
from ..modeling.attach.attention_sites import attention_sites
from ..modeling.generic import enable_long_attention
from ..positions.tables import extend_table
from .architectures import attached_mechanisms, attached_memory
from .model_loading import load_source
from .plan import ConversionPlan
from .plan_tensors import ResultPlan, TensorPlan
from .report import StageProgress
from .tensor_files import WEIGHTS, OutputTensor, read_tensor, split_by_size, write_json, write_weights

SEED = 0
"""Seed of the initial values of added parameters."""


def write_result(plan: ResultPlan, folder: Path, added: Mapping[str, Tensor], *, progress: StageProgress | None = None) -> list[str]:
    """Write a result's weights and config into an empty folder. Returns the names of the files.

    Args:
        plan: what is written. folder: the empty folder.
        added: values of the mechanisms' parameters.
        progress: called as progress("write", bytes so far, bytes in all).
    """
    advance = None if progress is None else partial(progress, "write")
    files = write_weights(folder, files_of(plan, added), advance)
    write_json(folder / "config.json", json.loads(plan.config.to_json_string()))
    return [*files, "config.json"]


def files_of(plan: ResultPlan, added: Mapping[str, Tensor]) -> dict[str, list[OutputTensor]]:
    """The weight files of the result. As in the source, or shards of the requested size."""
    outputs = {
        tensor.name: OutputTensor(
            tensor.name, tensor.dtype, tensor.new_shape,
            partial(added[tensor.name].to, tensor.dtype) if tensor.action == "added" else partial(source_values, tensor, plan),
            tensor.streamed,
        )
        for tensor in plan.tensors
        if tensor.new_shape is not None
    }  # fmt: skip
    if plan.max_shard_size is not None:
        return split_by_size(list(outputs.values()), plan.max_shard_size)
    files: dict[str, list[OutputTensor]] = {}
    for tensor in plan.tensors:
        if tensor.name in outputs and tensor.header is not None and tensor.new_shape is not None:
            files.setdefault(tensor.header.file.name, []).append(outputs[tensor.name])
    new = [outputs[tensor.name] for tensor in plan.tensors if tensor.action == "added"]
    files.setdefault(next(reversed(files), WEIGHTS), []).extend(new)
    return files


def source_values(tensor: TensorPlan, plan: ResultPlan) -> Tensor:
    """The result's values of a tensor that comes from the source."""
    assert tensor.header is not None
    values = read_tensor(tensor.header)
    if tensor.change is not None:
        values = tensor.change(values)
    if tensor.action in ("extended", "averaged") and tensor.new_shape is not None:
        values = extend_table(values, tensor.new_shape[0], offset=tensor.offset, strategy=plan.position_rule(tensor.name))
    return values.to(tensor.dtype)


def added_values(plan: ConversionPlan) -> dict[str, Tensor]:
    """Initial values of the mechanisms' parameters and of memory tokens, the same on every run."""
    if not any(tensor.action == "added" for tensor in plan.tensors):
        return {}
    generator = torch.Generator().manual_seed(SEED)
    memory = {name: tokens.drawn(generator) for name, tokens in attached_memory(plan.skeleton).items()}
    return named_values({**built_mechanisms(plan), **memory})


def named_values(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of modules by their names in the result."""
    return {f"{prefix}.{name}": value for prefix, module in modules.items() for name, value in module.state_dict().items()}


def built_mechanisms(plan: ConversionPlan) -> dict[str, Mechanism]:
    """Every mechanism of the result by its name, with initialised parameters."""
    mechanisms, generator = {}, torch.Generator().manual_seed(SEED)
    for prefix, planned in attached_mechanisms(plan.skeleton).items():
        mechanisms[prefix] = mechanism_from(
            planned.name,
            planned.options.to_dict(),
            num_heads=planned.num_heads,
            head_dim=planned.head_dim,
            hidden_size=planned.hidden_size,
            max_length=planned.max_length,
            generator=generator,
        )
        mechanisms[prefix].layer = planned.layer
    return mechanisms


# Parameters of mechanisms initialised from what the source computes on a text, not at random.

MAX_CAPTURED_TOKENS = 1024
"""Maximum tokens per sequence, since the attention matrix of every head is computed."""
SEQUENCES = 17
"""Maximum number of sequences: sixteen to initialise from, and the last to measure the error on."""


def check_can_initialise(plan: ConversionPlan) -> None:
    """Refuse a result without a mechanism that can be initialised from text. Or a source that cannot be run with full attention."""
    added = attached_mechanisms(plan.skeleton).values()
    if not any(mechanism.traits.fits_activations for mechanism in added):
        raise OptionError(f"Mechanism {plan.attention.mechanism!r} has no parameters to initialise from text; leave --init-from-text out.")
    shared = any(site.shared for site in attention_sites(plan.skeleton))
    if plan.architecture.converter is not None or plan.decoder is not None or shared:
        raise CheckpointError(
            f"init_from_text does not support a {plan.architecture.source_class}, only models of one stack with full attention and without "
            "shared layers; leave --init-from-text out."
        )


def initial_values(plan: ConversionPlan, file: str | Path) -> tuple[dict[str, Tensor], list[Check]]:
    """The mechanisms' parameters by name, initialised from the text in ``file``.

    The source runs on sequences of the text with full attention. Each mechanism is given the queries, keys and values of its layer for all
    but the last sequence. On the last one, its error relative to full attention is measured, with random and with initialised parameters.

    Raises:
        OptionError, CheckpointError: see :func:`check_can_initialise`; or the text is too short, or there is no tokenizer.
    """
    check_can_initialise(plan)
    ids = _sequences(plan, file)
    measured = _activations(plan, ids)
    mechanisms, at_random = built_mechanisms(plan), built_mechanisms(plan)
    owners: dict[tuple[Any, ...], list[str]] = {}
    for prefix, mechanism in mechanisms.items():
        alone = () if mechanism.traits.shared_by_layers else (prefix,)
        owners.setdefault((type(mechanism), mechanism.options, *alone), []).append(prefix)
    before, after = [], []
    for prefixes in owners.values():
        first = mechanisms[prefixes[0]]
        q, k, v = torch.cat([measured[prefix][:, :-1] for prefix in prefixes], 1)
        done = isinstance(first, FitsActivations) and first.init_from_activations(q, k, v, causal=plan.shape.causal)
        for prefix in prefixes if done else ():
            last = measured[prefix][:, -1:]
            before.append(_error(at_random[prefix], last, plan.shape.causal))
            after.append(_error(first, last, plan.shape.causal))
    count, length = ids.shape
    mean = [sum(errors) / max(1, len(errors)) for errors in (before, after)]
    detail = (
        f"{len(after)} layers from {count - 1} sequences of {length} tokens of {Path(file).name}: error of the attention's output on "
        f"another, relative to full attention, {mean[1]:.2f} instead of {mean[0]:.2f} at random"
    )
    return named_values(mechanisms), [Check("initialised from text", MEASURED, detail, {"random": before, "from_text": after})]


def _sequences(plan: ConversionPlan, file: str | Path) -> Tensor:
    """``(S, N)`` ids of the text, each sequence between the tokenizer's special tokens."""
    content, origin = verification_text(file)
    tokenizer = load_tokenizer(plan.source.folder)
    if tokenizer is None:
        raise CheckpointError(f"{plan.source.name!r} has no tokenizer to read {origin!r} with; leave --init-from-text out.")
    opening, closing = special_ids(tokenizer)
    length = min(plan.old_length, MAX_CAPTURED_TOKENS)
    inner = length - len(opening) - len(closing)
    text = VerificationText(excerpt(content, SEQUENCES * length), origin, tokenizer, plan.config.vocab_size)
    count = min(SEQUENCES, (text.real_tokens() - len(opening) - len(closing)) // inner)
    if count < 3:
        raise CheckpointError(
            f"{origin!r} has {text.real_tokens()} tokens, but init_from_text needs at least {3 * inner}; give a longer text."
        )
    ids = text.tokens(len(opening) + count * inner)[0, len(opening) :].view(count, inner)
    ends = [torch.tensor(part, dtype=ids.dtype).expand(count, -1) for part in (opening, closing)]
    return torch.cat([ends[0], ids, ends[1]], 1)


@torch.inference_mode()
def _activations(plan: ConversionPlan, ids: Tensor) -> dict[str, Tensor]:
    """Queries, keys and values ``(3, S, H, N, D)`` of the source's layers. By the name of each mechanism of the result."""
    source: Any = load_source(plan.source, plan.architecture, plan.config.dtype)[0]
    enable_long_attention(source, {"mechanism": "full"})
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, Tensor, Tensor, AttentionCall]) -> None:
            q, k, v, _ = args
            seen.setdefault(name, []).append(torch.stack([q, repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])]))

        return hook

    for site in attention_sites(source):
        attached: Any = site.mechanism
        attached.register_forward_pre_hook(keep(site.mechanism_name))
    for sequence in ids.split(1):
        source.base_model(input_ids=sequence)
    return {name: torch.cat(parts, 1) for name, parts in seen.items()}


@torch.no_grad()
def _error(mechanism: Mechanism, measured: Tensor, causal: bool) -> float:
    q, k, v = measured
    full = scaled_dot_product_attention(q, k, v, is_causal=causal)
    return float((mechanism(q, k, v, AttentionCall(causal=causal)) - full).norm() / full.norm())
