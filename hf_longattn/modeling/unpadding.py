"""Layers of an encoder that compute the real tokens of a padded batch, and no padding.

The first layer removes padding, and the last layer inserts it again. Embeddings, poolers, heads, pipelines and
trainers see the padded batch as before. Between the first layer and the last, the hidden states are one row with the
real tokens of all texts, and the mask keeps the texts apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
import transformers.masking_utils as masking
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import output_capturing

from ..engines.batch import Batch, PassCache, cached_on, for_one_pass, in_graph
from ..errors import BackendError, InputError
from ..memory.decode_cache import find_cache
from ..names import BACKEND, require, warn_missing
from .attach.attention_sites import attention_sites
from .backend import weights_requested
from .declared import DeclaredMask
from .family.long_config import attention_implementation
from .generic import enable_long_attention, stacks_of
from .inference import evaluating, without_cache

PASS_TOKENS = 8192
"""Tokens that a layer computes at once, unless one text is longer. Untuned."""
WORTH_PACKING = 0.95
"""Maximum share of real tokens in a batch whose padding is removed. Untuned."""
TRIAL_TOKENS = 24
"""Length, in tokens, of the longest text on which :func:`unpad` compares a model with and without padding."""
TOLERANCE = 1e-4
"""Maximum difference of float32 hidden states with and without padding, relative to the largest hidden state."""
MASK = "attention_mask"
"""Name of the argument by which layers get the mask from :func:`longattn_mask`."""

Model = TypeVar("Model")
_padded: ContextVar[bool] = ContextVar("padded", default=False)
"""Whether unpadded layers compute padding as well, for a comparison."""


class RealTokens(PassCache):
    """The T real tokens of a padded batch ``(B, N)``, as one row, and the arguments of layers for that row.

    The row is divided into groups of whole texts, and a layer computes one group at a time.

    index: ``(T,)``, the index of each real token in the flattened batch.
    groups: ``(start, stop, texts)`` for each group: its tokens ``start … stop - 1`` of the row, and the number of each
        token's text, ``(1, stop - start)``.
    """

    def __init__(self, shape: tuple[int, int], index: Tensor, lengths: list[int]) -> None:
        """Divide texts of these ``lengths`` into groups. ``shape``: ``(B, N)``."""
        self.shape, self.index = shape, index
        self.groups: list[tuple[int, int, Tensor]] = []
        start = 0
        while lengths:
            # as many of the next texts as fit into PASS_TOKENS, but at least one
            count = 1
            size = lengths[0]
            while count < len(lengths) and size + lengths[count] <= PASS_TOKENS:
                size += lengths[count]
                count += 1
            numbers = torch.arange(count, device=index.device)
            texts = numbers.repeat_interleave(torch.tensor(lengths[:count], device=index.device))[None]
            self.groups.append((start, start + size, texts))
            start += size
            lengths = lengths[count:]

    @classmethod
    def of(cls, mask: Tensor, causal: bool) -> RealTokens | None:
        """The real tokens of a batch with the padding mask ``(B, N)``, True = real.

        ``None`` if padding has to stay: nearly all tokens are real; a text has padding inside; or an encoder
        (``causal`` is False) has padding before a text, where its pooler reads."""
        batch = Batch(mask)
        spans = batch.sequences
        lengths = [span.length for span in spans]
        if batch.has_holes or not 0 < sum(lengths) <= WORTH_PACKING * mask.numel():
            return None
        if not causal and any(span.start for span in spans):
            return None
        return cls((mask.shape[0], mask.shape[1]), mask.flatten().nonzero()[:, 0], lengths)

    def packed(self, x: Tensor) -> Tensor:
        """The real tokens of ``x (B, N, …)`` as one row, ``(1, T, …)``."""
        return x.flatten(0, 1).index_select(0, self.index)[None]

    def padded(self, x: Tensor) -> Tensor:
        """The row ``x (1, T, …)`` as a padded batch ``(B, N, …)``, with zeros at padding."""
        batch, length = self.shape
        return x.new_zeros(batch * length, *x.shape[2:]).index_copy(0, self.index, x[0]).unflatten(0, self.shape)

    def parts(self, value: Any) -> list[Any]:
        """The ``value`` of a layer's argument for each group. A tensor with an axis of tokens is divided, and every
        group gets all other values.

        Raises:
            InputError: a tensor has values for pairs of tokens.
        """
        batch, length = self.shape
        if isinstance(value, tuple | list):
            return [type(value)(parts) for parts in zip(*map(self.parts, value), strict=True)]
        if not isinstance(value, Tensor) or length not in value.shape:
            return [value for _ in self.groups]
        if value.dim() == 4 and value.shape[1:3] == (1, length):  # (B, 1, N, …), with an axis for heads
            return [part[:, None] for part in self.parts(value[:, 0])]
        if value.dim() == 2 and value.shape[0] == length:  # (N, …), the same for every text
            return [part[0] for part in self.parts(value[None])]
        if value.shape[0] not in (1, batch) or value.dim() < 2 or value.shape[1] != length:
            raise InputError(
                f"its layers take a tensor {tuple(value.shape)} for texts of {length} tokens, which is not of single "
                "tokens"
            )
        # a tensor (1, N, …), such as rotations, holds for every text
        row = value[:, self.index % length] if len(value) == 1 else self.packed(value)
        return [row[:, start:stop] for start, stop, _ in self.groups]

    def masks(self, mask: DeclaredMask | Tensor) -> list[DeclaredMask | Tensor]:
        """The mask of each group, made from the batch's ``mask``. Texts are documents, and there is no padding."""
        masks: list[DeclaredMask | Tensor] = []
        for start, stop, texts in self.groups:
            if isinstance(mask, Tensor):  # mechanisms read documents from the batch under 0, and not from the mask
                all_real = torch.ones_like(texts, dtype=torch.bool)
                masks.append(for_one_pass(all_real, {0: Batch(None, texts)}))
            else:
                same_text = masking.packed_sequence_mask_function(texts)
                row = {"batch_size": 1, "q_length": stop - start, "kv_length": stop - start, MASK: None}
                visible = masking.and_masks(same_text, mask.arguments["mask_function"])
                masks.append(DeclaredMask(**{**mask.arguments, **row, "mask_function": visible}))
        return masks


@dataclass(eq=False)
class UnpaddedLayer:
    """The ``forward`` of a layer that computes no padding. It is set as an attribute of the layer.

    ends: whether this layer returns a padded batch.
    own: the layer's previous attribute ``forward``, if it had one; a hook of accelerate, for example.
    """

    layer: nn.Module
    ends: bool
    own: Callable[..., Any] | None

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(type(self.layer).forward.__get__(self.layer))

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's outputs. The hidden states, its first argument, are a padded batch ``(B, N, d)``, or one row
        ``(1, T, d)`` of real tokens from the layer before."""
        forward = self.own or type(self.layer).forward.__get__(self.layer)
        call = self.__signature__.bind(*args, **kwargs)
        mask = call.arguments.get(MASK, call.kwargs.get(MASK))
        tokens = None if _padded.get() or in_graph() else _real_tokens(mask)
        if tokens is None:
            return forward(*args, **kwargs)
        hidden, *others = call.args
        is_packed = hidden.shape[:2] == (1, len(tokens.index))  # by the layer before
        if _needs_padding(mask, {**call.arguments, **call.kwargs}):
            return forward(tokens.padded(hidden) if is_packed else hidden, *others, **call.kwargs)

        def by_group(value: Any) -> list[Any]:
            """The value of an argument for each group. Layers share these values, unless they need gradients."""
            if value is mask:
                return tokens.cached("masks", lambda: tokens.masks(mask))
            if isinstance(value, Tensor) and value.requires_grad:
                return tokens.parts(value)
            # the cache also keeps the value, so that no new object gets its id
            return tokens.cached(id(value), lambda: (value, tokens.parts(value)))[1]

        # run the layer on one group after another
        row = hidden if is_packed else tokens.packed(hidden)
        positional = [by_group(value) for value in others]
        named = {name: by_group(value) for name, value in call.kwargs.items()}
        outputs = []
        for number, (start, stop, _) in enumerate(tokens.groups):
            values = [groups[number] for groups in positional]
            keywords = {name: groups[number] for name, groups in named.items()}
            outputs.append(forward(row[:, start:stop], *values, **keywords))
        # join the hidden states, which layers return alone or as the first of a tuple
        returns_tensor = isinstance(outputs[0], Tensor)
        if returns_tensor:
            further = ()
            joined = torch.cat(outputs, 1)
        else:
            further = outputs[0][1:]
            joined = torch.cat([output[0] for output in outputs], 1)
            if any(isinstance(value, Tensor) for value in further):
                raise InputError("its layers return more than hidden states")
        if self.ends or _collects_states():
            joined = tokens.padded(joined)
        return joined if returns_tensor else (joined, *further)


def _real_tokens(mask: Any) -> RealTokens | None:
    """The real tokens of the batch with this mask, found once for all layers. ``None`` if padding stays."""
    if isinstance(mask, DeclaredMask):
        padding = mask.padding
        if padding is None or mask.queries != mask.keys or mask.first_query != 0:
            return None
        return mask.cached("real tokens", lambda: RealTokens.of(padding.expand(mask.shape[0], -1), mask.right == 0))
    if not isinstance(mask, Tensor) or mask.dim() != 2 or not hasattr(mask, "_long_attention"):
        return None
    return cached_on(mask, "real tokens", lambda: RealTokens.of(mask != 0, causal=False))


def _needs_padding(mask: Any, arguments: dict[str, Any]) -> bool:
    """Whether layers must compute padding in a call: it has a cache, returns attention weights, or has a mask that
    depends on the place of a text in its row."""
    if find_cache(arguments.values()) is not None or weights_requested(arguments):
        return True
    return isinstance(mask, DeclaredMask) and (not mask.exact or bool(mask._labels))


def _collects_states() -> bool:
    """Whether transformers collects hidden states from the layers of the running model."""
    active = getattr(output_capturing, "_active_collector", None)
    if active is None:
        warn_missing("attentions_collected")
        return True
    return "hidden_states" in (active.get() or {})


def unpad(model: Model) -> Model:
    """Let the layers of a text encoder compute real tokens alone, in place.

        model = hf_longattn.unpad(SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2"))

    A batch is padded to its longest text, and layers compute padding like text. After ``unpad``, they compute one row
    with the real tokens of all texts. Embeddings, poolers and heads get padded tensors as before, in which only the
    values at padding may differ. The model runs with ``attn_implementation="longattn"``. Before ``unpad`` returns, it
    compares the outputs for three short texts with and without padding.

    Batches without padding, calls with a cache and calls that return attention weights run as before, and so do graphs
    for export. ``torch.compile`` compiles the model except its layers.

    Args:
        model: a model of transformers, or an object that contains one: a pipeline, a SentenceTransformer, a
            CrossEncoder.

    Returns:
        The same object.

    Raises:
        BackendError: the model has no text encoder on transformers' AttentionInterface, or its outputs change without
            padding.
    """
    require("record_outputs")
    network: Any = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    if not isinstance(network, nn.Module):
        raise BackendError(
            f"unpad takes a model of transformers, a pipeline, a SentenceTransformer or a CrossEncoder, but got a "
            f"{type(model).__name__}."
        )
    stacks = _stacks(network)
    if not stacks:
        raise BackendError(
            f"{type(model).__name__} has no text encoder on transformers' AttentionInterface, so its padding stays; "
            "sort texts by length, so that batches have little of it."
        )
    before = _state(network)
    inside: set[nn.Module] = set()
    try:
        # set the attention implementation of the outermost models, which set it in the models inside
        for part in stacks_of(network):
            if part not in inside:
                inside.update(part.modules())
                if attention_implementation(part.config) != BACKEND:
                    enable_long_attention(part)
        for body, layers in stacks.items():
            forwards = [vars(layer).get("forward") for layer in layers]
            forwards = [forward.own if isinstance(forward, UnpaddedLayer) else forward for forward in forwards]
            problem = ""
            # The last layer returns padded states. If a model reads states between its layers, all layers do.
            for ends in (layers[-1:], layers):
                for layer, forward in zip(layers, forwards, strict=True):
                    layer.forward = UnpaddedLayer(layer, layer in ends, forward)
                problem = _problem(body, layers[0])
                if not problem:
                    break
            if problem:
                raise BackendError(
                    f"{type(body).__name__} cannot run without padding: {problem}. Sort texts by length, so that "
                    "batches have little of it."
                )
    except BackendError:
        _restore(before)
        raise
    return model


State = tuple[list[tuple[nn.Module, Any]], list[tuple[PreTrainedModel, str | None]]]
"""The attribute ``forward`` of each module (``None`` for the method of its class), and the attention implementation of
each model."""


def _state(network: nn.Module) -> State:
    """The state of ``network`` that :func:`unpad` changes."""
    return (
        [(module, vars(module).get("forward")) for module in network.modules()],
        [(model, attention_implementation(model.config)) for model in stacks_of(network)],
    )


def _restore(state: State) -> None:
    """Set forwards and attention implementations to those in ``state``."""
    forwards, implementations = state
    for module, forward in forwards:
        vars(module).pop("forward", None)
        if forward is not None:
            module.forward = forward
    for model, implementation in implementations:
        if attention_implementation(model.config) != implementation:
            model.set_attn_implementation(implementation)


@contextmanager
def unpadded(network: nn.Module) -> Iterator[None]:
    """Context in which the layers of ``network`` compute no padding. If :func:`unpad` refuses the model, its layers
    compute padding as before."""
    before = _state(network)
    try:
        with suppress(BackendError):
            unpad(network)
        yield
    finally:
        _restore(before)


def _stacks(network: nn.Module) -> dict[PreTrainedModel, list[nn.Module]]:
    """The layers of each text encoder in ``network``, in order."""
    modules = dict(network.named_modules())
    stacks: dict[PreTrainedModel, list[nn.Module]] = {}
    decoders = set()
    for site in attention_sites(network):
        # the modules around the attention module, from the outermost to itself
        path = site.name.split(".")
        around = [modules[".".join(path[:depth])] for depth in range(len(path) + 1)]
        depths = [depth for depth, part in enumerate(around) if isinstance(part, PreTrainedModel)]
        if not depths:
            continue
        # the innermost model has the layer, which is an item of a ModuleList
        body: Any = around[depths[-1]]
        items = [child for part, child in pairwise(around[depths[-1] :]) if isinstance(part, nn.ModuleList)]
        if site.cross:
            decoders.add(body)
        elif items and "input_ids" in inspect.signature(body.forward).parameters:
            layers = stacks.setdefault(body, [])
            if items[-1] not in layers:
                layers.append(items[-1])
    return {body: layers for body, layers in stacks.items() if body not in decoders}


def _problem(body: PreTrainedModel, layer: nn.Module) -> str:
    """Why an encoder cannot run without padding, from its outputs for three short texts. Empty if they do not change.

    Args:
        body: the encoder, whose layers are :class:`UnpaddedLayer`.
        layer: its first layer.
    """
    if any(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in body.modules()):
        return "batch norm counts padding in training"
    # three texts of different lengths
    devices = (x.device for x in body.parameters() if not x.is_meta)  # offloaded weights are on the meta device
    device = next(devices, torch.device("cpu"))
    # a position table may have two rows that are not positions
    longest = min(TRIAL_TOKENS, (getattr(body.config, "max_position_embeddings", None) or TRIAL_TOKENS + 2) - 2)
    lengths = torch.tensor([longest, longest // 2, longest // 3], device=device)
    real = torch.arange(longest, device=device) < lengths[:, None]
    # the first ids of a vocabulary are often special
    vocabulary = getattr(body.config, "vocab_size", None) or 25
    first = min(5, vocabulary - 1)
    ids = torch.arange(3 * longest, device=device).view(3, -1) % min(20, vocabulary - first) + first
    padding_id = getattr(body.config, "pad_token_id", None)
    ids = torch.where(real, ids, padding_id or 0)
    arguments = {"input_ids": ids, MASK: real.long(), "return_dict": True, **without_cache(body)}
    if not body._can_record_outputs:
        # its forward stores states between layers by itself; compare these, too
        arguments["output_hidden_states"] = True
    # rows of the tensors inside the first layer: 1 without padding
    rows: set[int] = set()

    def note_rows(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim() == 3]
        rows.update(map(len, tensors))

    hooks = [
        part.register_forward_pre_hook(note_rows, with_kwargs=True) for part in layer.modules() if part is not layer
    ]
    try:
        with evaluating(body), torch.no_grad():
            unpadded = body(**arguments)
            for hook in hooks:
                hook.remove()
            token = _padded.set(True)
            try:
                padded = body(**arguments)
            finally:
                _padded.reset(token)
    except (InputError, BackendError) as error:
        return str(error).rstrip(".")
    except Exception as error:
        return f"it fails on three short texts ({type(error).__name__}: {f'{error} '.splitlines()[0]:.200})"
    finally:
        for hook in hooks:
            hook.remove()
    if rows != {1}:  # the layer has computed the padded batch
        return "its layers do not get the mask of the batch"
    if getattr(padded, "last_hidden_state", None) is None:
        return "its outputs have no last_hidden_state to compare"
    return _change(unpadded, padded, real)


def _change(unpadded: Any, padded: Any, real: Tensor) -> str:
    """How the outputs for the ``real`` tokens ``(B, N)`` of a batch differ; empty if they do not.

    unpadded, padded: the outputs of a model whose layers compute real tokens alone, and padding as well.
    """
    pairs = [(unpadded.last_hidden_state, padded.last_hidden_state)]
    pairs += zip(unpadded.get("hidden_states") or (), padded.get("hidden_states") or (), strict=True)
    if any(ours.shape != expected.shape for ours, expected in pairs):
        return "it reads hidden states between its layers"
    pairs = [(ours[real], expected[real]) for ours, expected in pairs]
    if getattr(padded, "pooler_output", None) is not None:
        pairs.append((unpadded.pooler_output, padded.pooler_output))
    for ours, expected in pairs:
        bound = max(TOLERANCE, 8 * torch.finfo(expected.dtype).eps) * expected.abs().max()
        difference = (ours - expected).abs().max()
        if not difference <= bound:  # also for NaN
            return f"its outputs change by {difference:.2g}"
    return ""
