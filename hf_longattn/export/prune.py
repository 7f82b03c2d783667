"""Prune the least important attention heads of a model.

The importance of a head is a first-order estimate of how the loss changes if the head is removed. It is the sum over
documents of |Σ activation · gradient of the loss| (Michel et al. 2019, equation 2; Molchanov et al. 2017, Taylor
expansion).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..modeling.family.long_config import LongConfig
from ..modeling.pruning import KEPT_HEADS, Heads, heads_of
from .compression_input import SHORT_LENGTH, CompressionInput, predicts_tokens


@dataclass
class Compressed:
    """The result of a compression method.

    Attributes:
        model: the compressed model, which is saved.
        expected: a model whose outputs the saved files must reproduce.
        dtype: the dtype in which ``model`` is saved; ``None`` = its own.
        pruned: number of a layer -> numbers of its removed heads.
        is_changed: function that gets the name of a written tensor whose dtype or shape differs from the source, and
            returns whether the tensor counts as changed.
    """

    model: Any
    expected: Any
    dtype: torch.dtype | None = None
    pruned: dict[str, Any] = field(default_factory=dict)
    is_changed: Callable[[str], bool] = lambda name: True


def prune_heads(source: CompressionInput) -> Compressed:
    """Remove the least important heads of all layers. Every layer keeps at least one head.

    Raises:
        OptionError: the model cannot lose heads, or its importance cannot be measured.
    """
    model, share = source.model, source.config.share
    if not isinstance(model.config, LongConfig):
        raise OptionError(
            f"{type(model).__name__} has no config for layers with different numbers of heads; convert it first "
            "(longattn convert), or choose --method bf16."
        )

    # Choose the heads: removed[layer] are the numbers of the removed heads.
    layers = heads_of(model)
    count = heads_to_remove(model, layers, share)
    scores = importance(source, layers)
    ranked = sorted((float(score), layer, head) for layer, row in enumerate(scores) for head, score in enumerate(row))
    removed: list[set[int]] = [set() for _ in layers]
    for _, layer, head in ranked:
        if count and len(removed[layer]) < layers[layer].count - 1:
            removed[layer].add(head)
            count -= 1

    # The expected outputs are those of the model in which these heads are multiplied by 0.
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for heads, removed_heads in zip(heads_of(expected), removed, strict=True):
            for head in removed_heads:
                heads.output.weight[:, head * heads.columns : (head + 1) * heads.columns] = 0

    # Remove the heads.
    kept_counts = dict(getattr(model.config, KEPT_HEADS, None) or {})
    pruned = {}
    for heads, removed_heads in zip(layers, removed, strict=True):
        layer_name = str(heads.site.layer)
        pruned[layer_name] = sorted(removed_heads)
        if removed_heads:
            heads.keep([head for head in range(heads.count) if head not in removed_heads])
            kept_counts[layer_name] = heads.count - len(removed_heads)
    setattr(model.config, KEPT_HEADS, kept_counts)
    return Compressed(model, expected, source.dtype, pruned)


def heads_to_remove(model: Any, layers: Sequence[Heads], share: float) -> int:
    """Number of heads to remove: ``share`` of all heads.

    Raises:
        OptionError: no head of this model can be removed, the share is less than a head, or a layer would have none.
    """
    name = type(model).__name__
    if len({id(heads.site.module) for heads in layers}) < model.config.num_hidden_layers:
        raise OptionError(
            f"The layers of {name} share one attention module, so no head can be cut out of a single layer; choose "
            "--method bf16."
        )
    total = sum(heads.count for heads in layers)
    if total == len(layers):
        raise OptionError(
            f"Every layer of {name} has one head for keys and values, so no head can be cut out; choose --method bf16."
        )
    for heads in layers:
        heads.check()
    count = round(share * total)
    if count > total - len(layers):
        most = math.floor((total - len(layers)) / total * 100) / 100
        raise OptionError(
            f"A share of {share} of {total} heads would leave a layer without any; give --share {most} or less."
        )
    if count == 0:
        raise OptionError(f"A share of {share} rounds to none of {total} heads; give a larger --share.")
    return count


def importance(source: CompressionInput, layers: Sequence[Heads]) -> list[Tensor]:
    """Importance of the heads of each layer, ``(heads,)``.

    It is the sum over documents of |Σ input of the output projection · its gradient|, where Σ is over the tokens and
    the channels of a head.

    Raises:
        OptionError: the model has no masked or causal loss on text, or is an encoder-decoder.
    """
    model = source.model
    if not predicts_tokens(model):
        problem = "predicts no tokens; prune the language model before it gets another head, or choose --method bf16"
        if model.config.is_encoder_decoder:
            problem = "is an encoder-decoder; choose --method bf16"
        raise OptionError(
            "The importance of heads is measured by a masked or causal loss on text, and "
            f"{type(model).__name__} {problem}."
        )
    scores = [torch.zeros(heads.count) for heads in layers]
    inputs: dict[nn.Module, Tensor] = {}

    def remember(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs[module] = args[0]

    handles = [heads.output.register_forward_pre_hook(remember) for heads in layers]
    try:
        for piece in source.pieces(min(SHORT_LENGTH, source.long_length())):
            with torch.enable_grad():
                loss = source.loss(model, piece)
            activations = [inputs[heads.output] for heads in layers]
            gradients = torch.autograd.grad(loss, activations)
            for score, activation, gradient in zip(scores, activations, gradients, strict=True):
                by_channel = (activation.detach() * gradient).flatten(0, -2).sum(0)
                score += by_channel.reshape(len(score), -1).sum(1).abs()
    finally:
        for handle in handles:
            handle.remove()
    return scores
