"""Write a smaller checkpoint: 8 or 4 bits per weight, bf16, or without the heads, feed-forward units or weights that matter least.

Quantisation is torchao's with transformers' own config, so that ``from_pretrained`` loads the result wherever torchao is installed. The
importance of a head or unit is what its removal would cost to first order: the sum over documents of |Σ activation · gradient of the loss|
(Michel et al. 2019, equation 2; Molchanov et al. 2017, Taylor expansion). What is written is read again, compared with the model that it
was made from, and measured: loss at the short and at the long length, time, size.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from ..conversion.folders import short_name, write_folder
from ..conversion.model_loading import quiet_libraries
from ..conversion.report import versions
from ..conversion.sources.base import ResultInfo, Source, open_source
from ..conversion.sources.peft import refuse_adapter
from ..conversion.text import load_tokenizer, verification_text
from ..data.masking import masked_tokens
from ..data.tokenization import IGNORED, between, special_ids
from ..errors import CheckpointError, LengthError, OptionError, check_extra, checkpoint_errors, nearest, needs_extra
from ..mechanisms.common.base import Mechanism
from ..modeling.attention_sites import attention_sites
from ..modeling.config import LongConfig
from ..modeling.family import CAUSAL_LANGUAGE_MODELS, longest_input
from ..modeling.pruning import KEPT_HEADS, Heads, cut, heads_of
from ..modeling.quantised import warn_of_overflow
from ..reading import check_config, is_generic, named_class
from ..staging import check_destination, destination_path

REPORT = "compression_report.json"
SHORT, LONG = 512, 4096
"""Lengths at which the loss is measured, where the model and the text are long enough."""
INT4 = "int4"
"""torch's dtype, which its type stubs lack."""
LEAST = 16
"""Tokens of a text that a loss can be measured on."""
WITHOUT_TOKENIZER = SimpleNamespace(mask_token_id=0, all_special_ids=[])
"""What masks seeded token ids."""
TOLERANCE = 1e-4
"""Largest difference of outputs, relative to the largest, between a pruned model and its source without what was pruned."""
INNER = ("intermediate_size", "ffn_dim", "n_inner", "hidden_dim", "d_ff")
"""What configs call the width of the feed-forward layers."""


@dataclass(frozen=True)
class CompressionConfig:
    """Settings of a compression.

    method: a name in :data:`METHODS`.
    share: of heads, feed-forward units or weights to prune.
    group_size: weights that share a scale, for int4.
    text: a file in UTF-8, for importance and losses; ``None`` = built-in English text.
    length: of the long inputs; ``None`` = 4,096 or as many as model and text have.
    documents: pieces of the text that importance and losses are measured on.
    seed: of masked tokens.
    """

    method: str
    share: float = 0.25
    group_size: int = 32
    text: str | Path | None = None
    length: int | None = None
    documents: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise OptionError(
                f"There is no method {self.method!r}; choose one of {', '.join(METHODS)}.{nearest(str(self.method), METHODS)}"
            )
        if not 0 < self.share < 1:
            raise OptionError(f"The share to prune is {self.share}, but must be above 0 and below 1, for example --share 0.25.")
        for name, least, most in (("group_size", 1, 2**20), ("documents", 1, 1000), ("length", LEAST, 2**24), ("seed", 0, 2**31 - 1)):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise OptionError(f"--{name.replace('_', '-')} is {value}, but must be from {least} to {most:,}.")


@dataclass(frozen=True)
class CompressionReport:
    """A finished compression.

    measured: "before" and "after", each with ``loss`` (length -> nats per token, and its standard error), ``seconds`` of one pass at the
        longest length, and ``bytes`` of the weights.
    difference: of the outputs of what was read again: from those of the model that was written (quantised, bf16), or of the source without
        what was pruned; relative to the largest.
    pruned: what is missing, by layer.
    """

    destination: Path
    config: dict[str, Any]
    measured: dict[str, dict[str, Any]]
    difference: float
    pruned: dict[str, Any]
    text: str
    files: tuple[str, ...]
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, as in compression_report.json."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "destination"}

    def rows(self) -> list[tuple[str, ...]]:
        """What was measured, before and after."""
        before, after = self.measured["before"], self.measured["after"]
        rows: list[tuple[str, ...]] = [
            (f"loss at {int(length):,} tokens, nats", *map(_with_error, (loss, after["loss"][length])))
            for length, loss in before["loss"].items()
        ]
        seconds, sizes = (tuple(f"{one[key] / scale:,.{digits}f}" for one in (before, after)) for key, scale, digits in UNITS)
        return [*rows, ("one pass, seconds", *seconds), ("weights, MB", *sizes)]

    def table(self) -> str:
        """The same in Markdown, for a card."""
        cells: list[tuple[str, ...]] = [("", "before", "after"), ("---", "---", "---"), *self.rows()]
        measured = "\n".join(f"| {' | '.join(row)} |" for row in cells)
        return f"Measured on {self.text}:\n\n{measured}"


UNITS = (("seconds", 1, 2), ("bytes", 1e6, 1))
"""Key of a measurement, what it is divided by, and digits after the point."""


def _with_error(loss: Mapping[str, Any]) -> str:
    return f"{loss['loss']:.3f}" + f" ± {loss['loss_se']:.3f}" * (loss["documents"] > 1)


@dataclass
class CompressionInput:
    """The model to compress, and what it is measured on."""

    folder: Path
    model: Any
    ids: Tensor
    tokenizer: Any
    config: CompressionConfig
    dtype: torch.dtype = torch.float32
    """Of the weights in the source's files; those of a pruned model are written in it."""

    def load(self, folder: Path, **arguments: Any) -> Any:
        """A model of the same class."""
        with _quiet():
            return type(self.model).from_pretrained(folder, local_files_only=True, use_safetensors=True, **arguments).eval()


@dataclass
class Compressed:
    """What a method has made.

    model: to be saved.
    expected: computes what it must compute after it was read again.
    dtype: to save it in; ``None`` as it is.
    """

    model: Any
    expected: Any
    dtype: torch.dtype | None = None
    pruned: dict[str, Any] = dataclasses.field(default_factory=dict)


# ---- quantisation


def _quantised(source: CompressionInput, config: Callable[[Any], Any]) -> Compressed:
    with needs_extra("compress"), _quiet():
        from torchao import quantization
    from transformers import TorchAoConfig

    model = source.model
    check_linear_layers(model)
    outside = {name for name, module in model.named_children() if module is not model.base_model}
    left = [r".*long_attention", *sorted(outside)]
    chosen = TorchAoConfig(config(quantization), modules_to_not_convert=left)
    with checkpoint_errors(f"torchao cannot quantise {type(model).__name__}"):
        quantised = source.load(source.folder, quantization_config=chosen, dtype=torch.bfloat16)
    return Compressed(quantised, quantised)


def check_linear_layers(model: Any) -> None:
    """Refuse a model of which torchao would quantise nothing, and say nothing.

    Raises:
        OptionError: its layers are no ``nn.Linear`` (those of GPT-2 are transformers' ``Conv1D``).
    """
    layers = (name for name, module in model.base_model.named_modules() if isinstance(module, nn.Linear))
    if not any("long_attention" not in name for name in layers):
        raise OptionError(
            f"{type(model).__name__} has no nn.Linear layers, which torchao quantises (GPT-2 has Conv1D); choose --method bf16 or "
            "magnitude."
        )


def int8(source: CompressionInput) -> Compressed:
    """8-bit weights, and inputs rounded to 8 bits when they are seen, one scale per token (torchao)."""
    compressed = _quantised(source, lambda ao: ao.Int8DynamicActivationInt8WeightConfig())
    warn_of_overflow(compressed.model)  # loading it was quiet
    return compressed


def int8_weight_only(source: CompressionInput) -> Compressed:
    """8-bit weights; products are computed in bf16 (torchao)."""
    return _quantised(source, lambda ao: ao.Int8WeightOnlyConfig())


def int4_weight_only(source: CompressionInput) -> Compressed:
    """4-bit weights with one scale per group, kept in one byte each, as torchao keeps them without a GPU; products in bf16."""
    size = source.config.group_size
    for name, module in source.model.base_model.named_modules():
        if isinstance(module, nn.Linear) and module.in_features % size:
            raise OptionError(
                f"{name!r} has {module.in_features} inputs, which groups of {size} do not divide; choose another --group-size, for example "
                f"{math.gcd(module.in_features, 32)}."
            )
    return _quantised(source, lambda ao: ao.IntxWeightOnlyConfig(weight_dtype=getattr(torch, INT4), granularity=ao.PerGroup(size)))


def bf16(source: CompressionInput) -> Compressed:
    """All weights in bf16."""
    rounded = source.load(source.folder, dtype=torch.bfloat16)
    return Compressed(rounded, rounded)


# ---- pruning


def prune_heads(source: CompressionInput) -> Compressed:
    """Without the least important heads of all layers together; every layer keeps one."""
    model = source.model
    if not isinstance(model.config, LongConfig):
        raise OptionError(
            f"{type(model).__name__} has no config for layers with different numbers of heads; convert it first (longattn convert), or "
            "choose --method magnitude."
        )
    layers = heads_of(model)
    if len({id(heads.site.module) for heads in layers}) < model.config.num_hidden_layers:
        raise OptionError(f"The layers of {type(model).__name__} share one attention module, so no heads can be cut out of one layer.")
    total = sum(heads.count for heads in layers)
    wanted = round(source.config.share * total)
    if total == len(layers):
        raise OptionError(f"Every layer of {type(model).__name__} has one head for keys and values, so none can be cut out.")
    for heads in layers:
        heads.check()
    if wanted > total - len(layers):
        most = (total - len(layers)) / total
        raise OptionError(
            f"A share of {source.config.share} of {total} heads would leave a layer without any; give --share "
            f"{math.floor(most * 100) / 100} or less."
        )
    if wanted == 0:
        raise OptionError(f"A share of {source.config.share} rounds to none of {total} heads; give a larger --share.")
    scores = importance(source, {heads.output: heads.columns for heads in layers})
    ranked = sorted((float(score), layer, head) for layer, heads in enumerate(layers) for head, score in enumerate(scores[heads.output]))
    removed: dict[int, set[int]] = {layer: set() for layer in range(len(layers))}
    for _, layer, head in ranked:
        if wanted and len(removed[layer]) < layers[layer].count - 1:
            removed[layer].add(head)
            wanted -= 1
    expected = copy.deepcopy(model)
    for heads, pruned_heads in zip(heads_of(expected), removed.values(), strict=True):
        _silence(heads.output, pruned_heads, heads.columns)
    counts = dict(getattr(model.config, KEPT_HEADS, None) or {})
    for heads, pruned_heads in zip(layers, removed.values(), strict=True):
        if pruned_heads:
            _keep(heads, pruned_heads, counts)
    setattr(model.config, KEPT_HEADS, counts)
    pruned = {str(heads.site.layer): sorted(pruned_heads) for heads, pruned_heads in zip(layers, removed.values(), strict=True)}
    return Compressed(model, expected, source.dtype, pruned)


def _keep(heads: Heads, pruned: set[int], counts: dict[str, int]) -> None:
    heads.keep([head for head in range(heads.count) if head not in pruned])
    counts[str(heads.site.layer)] = heads.count - len(pruned)


def prune_ffn(source: CompressionInput) -> Compressed:
    """Without the least important units of the feed-forward layers; the same number in every layer, which the config holds."""
    model = source.model
    field = next((name for name in INNER if isinstance(getattr(model.config, name, None), int)), None)
    if field is None or model.config.is_encoder_decoder:
        raise OptionError(f"The config of {type(model).__name__} has no single width of feed-forward layers, so it cannot be pruned.")
    inner: int = getattr(model.config, field)
    wanted = inner - round(source.config.share * inner)
    if not 0 < wanted < inner:
        raise OptionError(f"A share of {source.config.share} of {inner} units leaves {wanted}; give another --share.")
    blocks = list(_feed_forward(model, inner))
    scores = importance(source, {down: 1 for _, down in blocks})
    expected = copy.deepcopy(model)
    removed = {}
    for number, ((ups, down), (_, silent)) in enumerate(zip(blocks, list(_feed_forward(expected, inner)), strict=True)):
        units = scores[down].topk(wanted).indices.sort().values
        gone = set(range(inner)) - set(units.tolist())
        _silence(silent, gone, 1)
        removed[str(number)] = len(gone)
        for up in ups:
            cut(up, units, 0)
        cut(down, units, 1)
    setattr(model.config, field, wanted)
    return Compressed(model, expected, source.dtype, removed)


def _feed_forward(model: nn.Module, inner: int) -> Iterator[tuple[list[nn.Linear], nn.Linear]]:
    """The layers into and out of every feed-forward block.

    Raises:
        OptionError: they are not found, or are laid out otherwise.
    """
    attention = {id(one) for site in attention_sites(model) for one in site.module.modules()}
    linears = [module for module in model.modules() if type(module) is nn.Linear and id(module) not in attention]
    ups: list[nn.Linear] = []
    blocks = 0
    for module in linears:
        if module.out_features == inner and module.in_features != inner:
            ups.append(module)
        elif module.in_features == inner and ups:
            yield ups, module
            ups, blocks = [], blocks + 1
    if not blocks or ups or blocks != getattr(model, "config").num_hidden_layers:  # noqa: B009 - a model of transformers
        raise OptionError(
            f"The feed-forward layers of {type(model).__name__} are not linear layers into and out of {inner} units in each of its layers, "
            "so they cannot be pruned; choose another method, for example int8."
        )


@torch.no_grad()
def _silence(layer: nn.Linear, gone: set[int], width: int) -> None:
    """Let a layer ignore some units of its input."""
    for unit in gone:
        layer.weight[:, unit * width : (unit + 1) * width] = 0


def magnitude(source: CompressionInput) -> Compressed:
    """The smallest weights of all linear layers become zeros (torch.nn.utils.prune); the file keeps its size."""
    model = source.model
    left = {id(one) for mechanism in model.modules() if isinstance(mechanism, Mechanism) for one in mechanism.modules()}
    layers = [(one, "weight") for one in model.base_model.modules() if isinstance(one, nn.Linear | Conv1D) and id(one) not in left]
    if not layers:
        raise OptionError(f"{type(model).__name__} has no linear layers, so it cannot be pruned by magnitude; choose --method bf16.")
    prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=source.config.share)
    for layer, name in layers:
        prune.remove(layer, name)
    zeros = {str(number): int((layer.weight == 0).sum()) for number, (layer, _) in enumerate(layers)}
    return Compressed(model, model, source.dtype, zeros)


METHODS: dict[str, Callable[[CompressionInput], Compressed]] = {
    "int8": int8,
    "int8-weight-only": int8_weight_only,
    "int4-weight-only": int4_weight_only,
    "bf16": bf16,
    "prune-heads": prune_heads,
    "prune-ffn": prune_ffn,
    "magnitude": magnitude,
}
BY_TORCHAO = ("int8", "int8-weight-only", "int4-weight-only")
"""Methods that need torchao."""


# ---- importance and losses


def importance(source: CompressionInput, readers: Mapping[nn.Linear, int]) -> dict[nn.Linear, Tensor]:
    """What units are worth: for each layer that reads units of so many inputs, the sum over documents of |Σ input · gradient|.

    Raises:
        OptionError: the model predicts no tokens, so that there is no loss.
    """
    model = source.model
    if not predicts_tokens(model):
        if model.config.is_encoder_decoder:
            why = "is an encoder-decoder; choose --method magnitude."
        else:
            why = "predicts no tokens; prune the language model before it gets another head, or choose --method magnitude."
        raise OptionError(
            f"The importance of heads and units is measured by a masked or causal loss on text, and {type(model).__name__} {why}"
        )
    scores = {layer: torch.zeros(layer.in_features // width) for layer, width in readers.items()}
    seen: dict[nn.Linear, list[Tensor]] = {layer: [] for layer in readers}

    def remember(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        read = args[0].detach().requires_grad_(True) if not args[0].requires_grad else args[0]
        seen[module].append(read)  # type: ignore[index]
        return (read, *args[1:])

    handles = [layer.register_forward_pre_hook(remember) for layer in readers]
    try:
        for piece in pieces(source, min(SHORT, _longest(source))):
            with torch.enable_grad():
                loss = loss_on(source, model, piece)
            tensors = [one for inputs in seen.values() for one in inputs]
            grads = iter(torch.autograd.grad(loss, tensors, allow_unused=True))
            for layer, width in readers.items():
                for read in seen[layer]:
                    grad = next(grads)
                    if grad is not None:
                        worth = (read.detach() * grad).reshape(-1, layer.in_features).sum(0)
                        scores[layer] += worth.reshape(-1, width).sum(1).abs()
                seen[layer].clear()
    finally:
        for handle in handles:
            handle.remove()
    return scores


def predicts_tokens(model: Any) -> bool:
    """Whether it is a masked or causal language model."""
    return type(model).__name__.endswith(("ForMaskedLM", *CAUSAL_LANGUAGE_MODELS)) and not model.config.is_encoder_decoder


def pieces(source: CompressionInput, length: int) -> list[Tensor]:
    """Pieces ``(1, length)`` of the text, spread over it, each with the special tokens of a text."""
    ids, count = source.ids[0], source.config.documents
    last = len(ids) - length
    starts = sorted({round(number * last / (count - 1)) for number in range(count)}) if count > 1 else [0]
    special = ([], []) if source.tokenizer is None else special_ids(source.tokenizer)
    return [between(ids[None, start : start + length], *special) for start in starts]


def loss_on(source: CompressionInput, model: Any, ids: Tensor) -> Tensor:
    """Nats per token: of 15 % that are masked, or of every next one."""
    if type(model).__name__.endswith("ForMaskedLM"):
        has_mask = getattr(source.tokenizer, "mask_token_id", None) is not None
        shown, labels = masked_tokens(ids, source.tokenizer if has_mask else WITHOUT_TOKENIZER, source.config.seed)
        logits, chosen = model(input_ids=shown).logits, labels != IGNORED
        return nn.functional.cross_entropy(logits[chosen].float(), labels[chosen])
    logits = model(input_ids=ids, use_cache=False).logits
    return nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:])


@torch.no_grad()
def measure(source: CompressionInput, model: Any, folder: Path, lengths: Sequence[int]) -> dict[str, Any]:
    """Losses, seconds of a pass and bytes of weights."""
    losses: dict[str, Any] = {"loss": {}}
    for length in lengths:
        if not predicts_tokens(model):
            break
        values = [float(loss_on(source, model, piece)) for piece in pieces(source, length)]
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        losses["loss"][str(length)] = {"loss": statistics.fmean(values), "loss_se": error, "documents": len(values)}
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        _outputs(model, source.ids[:, : lengths[-1]])
        seconds.append(time.perf_counter() - started)
    return {**losses, "seconds": min(seconds), "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors"))}


def _outputs(model: Any, ids: Tensor) -> Tensor:
    more = {"decoder_input_ids": ids[:, :16]} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **more)[0]


# ---- the command


def compress_checkpoint(
    source: str | Path,
    destination: str | Path,
    config: CompressionConfig | None = None,
    *,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    **settings: Any,
) -> CompressionReport:
    """Write a smaller checkpoint of a model, and measure what it costs.

        hf_longattn.compress_checkpoint("longformer-base", "longformer-int8", method="int8")

    Args:
        source: a Long model or one of transformers, with safetensors files: its folder, or a Hub repository id.
        destination: a folder that does not exist.
        config: the settings; or give them by name, as ``method="prune-heads", share=0.25``.
        overwrite: replace an existing destination.
        revision, token: of a Hub repository.

    Raises:
        OptionError: unknown or impossible settings.
        CheckpointError: the source cannot be loaded, is quantised already, or the result does not compute what it should.
        ExportError: the source has an adapter that is not merged.
        LengthError: the text is shorter than ``length``.
        MissingExtraError: torchao is not installed.
        DestinationExistsError: the destination exists.
    """
    chosen = CompressionConfig(**settings) if config is None else dataclasses.replace(config, **settings)
    if chosen.method in BY_TORCHAO:
        check_extra("compress")
    target = destination_path(destination)
    with quiet_libraries():
        opened = open_source(source, revision=revision, token=token)
    check_destination(target, *opened.protected, overwrite=overwrite)
    refuse_adapter(opened)
    inputs, text = _loaded(opened, chosen)
    longest = _longest(inputs)
    lengths = sorted({min(SHORT, longest), longest})
    before = measure(inputs, inputs.model, opened.folder, lengths)
    compressed = METHODS[chosen.method](inputs)

    def write(stage: Path) -> list[str]:
        saved = compressed.model if compressed.dtype is None else copy.deepcopy(compressed.model).to(compressed.dtype)
        with _quiet():
            saved.save_pretrained(stage)
        return sorted(path.name for path in stage.iterdir())

    def measured(stage: Path, files: tuple[str, ...]) -> CompressionReport:
        with checkpoint_errors(f"What was written for {type(inputs.model).__name__} cannot be read again, so nothing was kept"):
            again = inputs.load(stage, **({} if compressed.dtype is None else {"dtype": torch.float32}))
            # at the greatest length, since a short input may be within every head's blocks
            difference = _difference(again, compressed.expected, inputs.ids[:, : lengths[-1]])
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"What was written computes something else ({difference:.1e} of the largest output), so nothing was kept: "
                f"{type(inputs.model).__name__} with this mechanism cannot be compressed by {chosen.method!r}."
            )
        after = measure(inputs, again, stage, lengths)
        values = {name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(chosen).items()}
        return CompressionReport(target, values, {"before": before, "after": after}, difference, compressed.pruned, text, files, versions())

    most = longest_input(inputs.model.config)
    called, name = short_name(opened), type(inputs.model).__name__
    return write_folder(
        opened,
        ResultInfo(target, name, type(inputs.model).__module__, most or 0),
        weights=write,
        report=measured,
        report_file=REPORT,
        introduction=f"`{called}` (`{name}`), compressed by `longattn compress --method {chosen.method}`.",
        card=lambda report: {"measured": report.table()},
        needed_bytes=opened.total_bytes + 2**20,
        overwrite=overwrite,
    )


@torch.no_grad()
def _difference(model: Any, expected: Any, ids: Tensor) -> float:
    ours, theirs = _outputs(model, ids).float(), _outputs(expected, ids).float()
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _loaded(source: Source, config: CompressionConfig) -> tuple[CompressionInput, str]:
    """The model in fp32, the text as tokens, and where the text comes from."""
    import transformers

    import hf_longattn

    if is_generic(source.config):
        raise CheckpointError(f"{source.name!r} holds a model without a Long class, which cannot be compressed here.")
    if source.config.get("quantization_config") is not None:
        raise CheckpointError(f"{source.name!r} holds quantised weights already; give the checkpoint that it was made from.")
    if source.loading != {"use_safetensors": True}:
        raise CheckpointError(f"{source.name!r} is not a folder of safetensors files; load it and save it with save_pretrained first.")
    check_config(source.config, source.name)
    class_name = named_class(source.config, "")
    model_class: Any = getattr(hf_longattn if class_name.startswith("Long") else transformers, class_name or " ", None)
    if model_class is None:
        raise CheckpointError(f"The config.json of {source.name!r} names no class of hf_longattn or transformers, but {class_name!r}.")
    with checkpoint_errors(f"{source.name!r} cannot be loaded"), _quiet():
        model = model_class.from_pretrained(source.folder, dtype=torch.float32, local_files_only=True, use_safetensors=True).eval()
    tokenizer = load_tokenizer(source.folder)
    text, origin = verification_text(config.text)
    if tokenizer is None:
        ids = torch.randint(5, model.config.vocab_size, (1, LONG * 4), generator=torch.Generator().manual_seed(config.seed))
        origin = "seeded token ids, since the model has no tokenizer"
    else:
        ids = torch.tensor([tokenizer(text, truncation=False, verbose=False)["input_ids"]])
    if ids.shape[1] < LEAST:
        raise LengthError(f"The text {origin!r} has {ids.shape[1]} tokens, but at least {LEAST} are needed; give a longer one with --text.")
    named_dtype = getattr(torch, str(source.config.get("dtype") or source.config.get("torch_dtype")), torch.float32)
    return CompressionInput(source.folder, model, ids, tokenizer, config, named_dtype), origin


def _longest(source: CompressionInput) -> int:
    """The long length.

    Raises:
        LengthError: it is asked for, and model or text is shorter.
    """
    most = longest_input(source.model.config) or LONG
    tokens = source.ids.shape[1]
    length = source.config.length
    if length is None:
        return min(LONG, most, tokens)
    if length > most:
        raise LengthError(f"--length is {length}, but the model takes {most} tokens; give at most {most}.")
    if length > tokens:
        raise LengthError(f"--length is {length}, but the text has {tokens} tokens; give a longer text with --text, or a smaller --length.")
    return length


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, and without torchao's words on its kernels for other devices."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with quiet_libraries():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
