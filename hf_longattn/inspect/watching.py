"""Watch the attention of a model while it runs: queries, keys and all other arguments of its mechanisms.

A mechanism is a module, so a forward pre-hook can read its arguments: queries and keys after norms and rotations, the
scale, the score cap and biases. A model of transformers without mechanisms gets some while it is watched. They compute
its own attention, full or with sliding windows, so that its output does not change. No attention weights are stored,
and no N×N tensor is built.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..configuration import LongAttentionConfig
from ..engines.call import AttentionCall
from ..engines.token_grid import Grid
from ..errors import BackendError, InputError
from ..mechanisms import Mechanism
from ..mechanisms.common.registry import mechanism_from
from ..mechanisms.common.shared_options import full_of
from ..modeling.attach.attachment import attach_mechanisms
from ..modeling.attach.attention_sites import AttentionSite, layer_mechanisms, self_attention
from ..modeling.attach.memory_tokens import recursion_of
from ..modeling.backend import BACKEND
from ..modeling.classes import check_interface
from ..modeling.family.definition import known_family, without_head
from ..modeling.family.grid_spec import INTERPOLATE_ARGUMENT, PIXELS
from ..modeling.family.long_config import attention_implementation, keeps_own_attention
from ..modeling.family.plain_spec import text_tower
from ..modeling.family.registration import MULTIMODAL_TYPE
from ..modeling.family.sliding_window import FULL, SLIDING, base_attention, own_windows
from ..modeling.generic import stacks_of, towers_of
from ..modeling.grids import grid_spec
from ..modeling.inference import evaluating, without_cache
from ..positions.relative import SinkPositions
from .layer_attention import LayerAttention

See = Callable[[int, LayerAttention], None]
"""A function ``see(number, attention)`` that is called for every self-attention layer, in the order of the layers."""


def watched_stack(model: nn.Module) -> PreTrainedModel:
    """The stack of layers of ``model`` that reads the text: the encoder, or the decoder if there is no encoder.

    The stack has no head, because logits would need more memory than everything else.

    Raises:
        BackendError: the model is not from transformers, reads no text, or its attention cannot be watched.
    """
    _check_text(model, model)
    stack = watched_layers(model)
    _check_text(model, stack)
    return stack


def _check_text(model: nn.Module, stack: nn.Module) -> None:
    """Raise :class:`BackendError` if ``stack``, a part of ``model``, does not read texts."""
    main_input: Any = getattr(stack, "main_input_name", "input_ids")
    if main_input != "input_ids":
        family = known_family(stack.config)
        nouns = main_input if family is None else family.spec.nouns
        raise BackendError(
            f"{type(model).__name__} reads {nouns}, but attention is measured on texts alone; `longattn search` "
            "measures what mechanisms keep of it, and hf_longattn.explain(model, inputs) says what runs."
        )


def tower_of_texts(model: nn.Module) -> tuple[Any, str]:
    """The tower of ``model`` that reads texts, and its name. If there is no such tower, the model and ""."""
    # A multimodal model of this package has no towers, but one backbone for all inputs.
    if not isinstance(model, PreTrainedModel) or model.config.model_type == MULTIMODAL_TYPE:
        return model, ""
    towers = towers_of(model)
    name = text_tower(model.config, towers)
    if name not in towers:
        return model, ""
    return towers[name], name


def watched_layers(model: nn.Module) -> PreTrainedModel:
    """The stack of layers of ``model`` to watch, as in :func:`watched_stack`, for inputs of any kind.

    Raises:
        BackendError: the model is not from transformers, or its attention cannot be watched.
    """
    if not isinstance(model, PreTrainedModel):
        raise BackendError(
            f"A {type(model).__name__} is not a model of transformers; load one with AutoModel.from_pretrained."
        )
    family = known_family(model.config)
    stack: Any = without_head(model)
    if getattr(model.config, "is_encoder_decoder", False):
        stack = model.get_encoder()
    if not isinstance(stack, PreTrainedModel):
        raise BackendError(f"{type(model).__name__} has no stack of layers that could be watched; give another model.")

    # Can a model without mechanisms get some? Can a model with mechanisms be watched?
    if not layer_mechanisms(stack):
        if family is not None and family.spec.timed:
            long_class = family.model_classes.get(type(model).__name__, "its Long class")
            raise BackendError(
                f"The attention of {type(model).__name__} can only be watched in {long_class}; load that class, with "
                'long_attention={"mechanism": "full"} for its present attention.'
            )
        check_interface(type(stack))
        others = set(stack.config.get_text_config().__dict__.get("layer_types") or ()) - {FULL, SLIDING}
        if others:
            raise BackendError(
                f"{type(stack).__name__} has layers of {sorted(others)[0]!r}, whose keys no mechanism describes; full "
                "attention and sliding windows can be diagnosed."
            )
    elif recursion_of(stack) is not None:
        raise BackendError(
            f"{type(model).__name__} reads its text segment by segment, so no layer has the attention of a whole "
            "text; diagnose the checkpoint that it was made from."
        )
    return stack


def watched_inputs(
    model: nn.Module, inputs: Tensor | Mapping[str, Tensor]
) -> tuple[PreTrainedModel, Any, Grid | None, int]:
    """What is needed to watch a model on one input of any kind.

    Args:
        inputs: token ids ``(N,)``, or the processor's output for an image or a sound.

    Returns:
        The stack to watch, its arguments, the grid of an image's tokens (``None`` for texts and sounds), and the
        number of tokens.

    Raises:
        BackendError: as in :func:`watched_stack`, or the model does not read images on one grid of patches.
        InputError: the size of the image does not fit.
    """
    # A text
    if isinstance(inputs, Tensor):
        return watched_stack(model), inputs, None, len(inputs)

    # A sound
    family = known_family(getattr(model, "config", None))
    stack = watched_layers(model)
    if family is not None and family.spec.timed:
        spec = family.spec
        return stack, inputs, None, spec.frames(stack.config, spec.as_input(inputs[spec.input]).shape[1])

    # An image
    image_spec = grid_spec(stack)
    grid = image_spec.of_size(stack.config, tuple(inputs[PIXELS].shape[-2:]))
    arguments: dict[str, Any] = dict(inputs)
    if image_spec.interpolates:
        arguments[INTERPOLATE_ARGUMENT] = True
    return stack, arguments, grid, grid.length


def watch(stack: PreTrainedModel, inputs: Any, see: See) -> None:
    """Run a forward pass of ``stack`` without gradients, which calls ``see`` for each layer before its attention.

    The attention that ``see`` gets is a softmax over all keys that the base model's own attention sees.

    Args:
        stack: a stack from :func:`watched_stack`.
        inputs: token ids ``(N,)``, which are read without a cache, or the arguments of the stack by name.
    """
    if isinstance(inputs, Tensor):
        inputs = {"input_ids": inputs[None], **without_cache(stack)}
    arguments = dict(inputs)
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            arguments[name] = value.to(stack.device)
    with evaluating(stack), with_mechanisms(stack), torch.no_grad():
        base = _base_attention(stack)
        layer_numbers = itertools.count()  # counted as they run, because ALBERT's layers share one module

        def hook(site: AttentionSite, mechanism: Any, args: tuple[Tensor, Tensor, Tensor, AttentionCall]) -> None:
            """Before the attention of a layer: call ``see``."""
            q, k, _, call = args
            if q.shape[2] != k.shape[2] or len(q) != 1:
                raise InputError(
                    "Attention is watched while a model reads one whole text; pass it without a cache, one text at a "
                    "time."
                )
            name, options = base.for_layer(site.layer)
            within = None
            if name != "full":
                window = mechanism_from(
                    name, options, num_heads=q.shape[1], head_dim=q.shape[-1], max_length=q.shape[2]
                )
                within = window.attended_keys(q, k, call.replace(global_mask=None))
            relative = mechanism.relative
            if isinstance(relative, SinkPositions):  # full attention does not move the positions of sinks
                relative = None
            see(next(layer_numbers), LayerAttention(q, k, call, relative, within, site.name, mechanism.name))

        handles = []
        try:
            for site in self_attention(stack):
                if not isinstance(site.mechanism, Mechanism):
                    raise BackendError(
                        f"{site.name} of {type(stack).__name__} has no mechanism, so its attention cannot be watched."
                    )
                for mechanism in filter(None, (site.mechanism, full_of(site.mechanism))):
                    handles.append(mechanism.register_forward_pre_hook(functools.partial(hook, site), prepend=True))
            stack(**arguments)
        finally:
            for handle in handles:
                handle.remove()


def is_causal(stack: PreTrainedModel) -> bool:
    """Whether a self-attention layer of the stack is causal."""
    return any(site.causal for site in self_attention(stack))


def _base_attention(stack: PreTrainedModel) -> LongAttentionConfig:
    """The attention of the base model: full attention, or a sliding window in layers that have one."""
    config = stack.config.get_text_config()
    if not isinstance(getattr(config, "num_hidden_layers", None), int):
        return LongAttentionConfig("full")
    return base_attention(own_windows(config))


@contextlib.contextmanager
def with_mechanisms(stack: PreTrainedModel) -> Iterator[None]:
    """Within the context, a model without mechanisms computes its own attention by mechanisms.

    A model that already has mechanisms is not changed.
    """
    if layer_mechanisms(stack):
        for site in self_attention(stack):
            if keeps_own_attention(site.module):
                raise BackendError(
                    f"{type(stack).__name__} attends by {attention_implementation(site.module.config)!r}, not by its "
                    f"mechanisms; call model.set_attn_implementation({BACKEND!r}) first."
                )
        yield
        return
    before = [(part, attention_implementation(part.config)) for part in stacks_of(stack)]
    sites = attach_mechanisms(stack, _base_attention(stack))
    try:
        for part, _ in before:
            part.set_attn_implementation(BACKEND)
        for site in sites:
            if keeps_own_attention(site.module):
                raise BackendError(
                    f"{type(stack).__name__} keeps its own attention in {site.name}, so it cannot be watched."
                )
        yield
    finally:
        for part, name in before:
            part.set_attn_implementation(name or "eager")
        for site in sites:
            if hasattr(site.module, "long_attention"):
                del site.module.long_attention
