"""The declared reach: which outputs of each layer may depend on which of its input tokens, by the config."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..conversion.flops import with_storage
from ..engines.common.call import UNBOUNDED, AttentionCall, MaskMod
from ..engines.common.grid import Grid
from ..errors import checkpoint_errors
from ..inputs.common.base import kind_of_model
from ..loading import new_model
from ..mechanisms import Mechanism
from ..mechanisms.common.exact import for_length
from ..mechanisms.common.masked import MaskedMechanism
from ..mechanisms.common.on_grid import on_grid
from ..mechanisms.common.ordered import token_order
from ..mechanisms.common.registry import mechanism_from
from ..modeling.attach.attention_sites import AttentionSite, attention_sites
from ..modeling.attach.token_globals import token_rule
from ..modeling.family.config import LongConfig
from ..modeling.family.sliding_window import FULL, SLIDING, base_attention, own_windows
from ..modeling.generic import enable_long_attention
from .numbered_inputs import AuditInputs, Mixing

PAIRS_IN_MEMORY = 1 << 22
"""Maximum (output, token) pairs in memory at a time, over all heads."""
UNKNOWN = "not determined by the config"


@dataclass(frozen=True, eq=False)
class Reach(ABC):
    """Which outputs of a text of ``length`` tokens may depend on which of its tokens.

    name: the mechanism with its options.
    certain: whether an output depends on every token on which it may depend. False if keys are selected by content.
    causal: whether an output depends on no later token.
    back, ahead: maximum distance in tokens from an output to an earlier or later token on which it may depend, except hubs.
    hubs: ``(length,)`` bool, the global tokens: tokens that attend to all tokens, or to which all tokens attend.
    """

    name: str
    length: int
    certain: bool
    causal: bool
    back: int
    ahead: int
    hubs: Tensor

    @abstractmethod
    def influence(self, tokens: Tensor) -> Tensor:
        """Influence of ``tokens (length,)`` bool on each output if all allowed weights are equal: ``(length,)`` float64."""

    @property
    def apart(self) -> int | None:
        """Number of independent (output, token) pairs, in which the output may not depend on the token; ``None`` if unknown."""
        return None


@dataclass(frozen=True, eq=False)
class LayerReach(Reach):
    """The reach of one layer.

    mask: allowed pairs within ``back`` and ``ahead``, for each of ``heads`` heads; ``None`` if all are allowed.
    """

    mask: MaskMod | None = None
    heads: int = 1

    @classmethod
    def unknown(cls, length: int) -> LayerReach:
        """A reach in which any output may depend on any token."""
        return cls(UNKNOWN, length, False, False, length, length, torch.zeros(length, dtype=torch.bool))

    def pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Whether the outputs at ``rows (R,)`` may depend on the tokens at ``columns (C,)``: ``(R, C)`` bool."""
        distance = rows[:, None] - columns
        if self.mask is None:
            seen = (distance <= self.back) & (-distance <= self.ahead)
        else:
            b, h = torch.zeros(1, 1, 1, 1, dtype=torch.long), torch.arange(self.heads).view(1, -1, 1, 1)
            seen = self.mask(b, h, rows.view(1, 1, -1, 1), columns.view(1, 1, 1, -1))
            seen = seen.expand(1, -1, len(rows), len(columns))[0].any(0)
        return seen & (distance >= 0) if self.causal else seen

    def blocks(self, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows, columns and :meth:`pairs` of each block of outputs. Columns are the members of ``tokens (length,)`` in reach."""
        members, start = tokens.nonzero()[:, 0], 0
        rows_per_block = max(1, min(PAIRS_IN_MEMORY // max(1, self.heads * len(members)), self.back + self.ahead + 1))
        while start < self.length:
            stop = min(self.length, start + rows_per_block)
            columns = members
            if not self.hubs[start:stop].any():
                columns = members[(members >= start - self.back) & (members < stop + self.ahead) | self.hubs[members]]
            rows = torch.arange(start, stop)
            yield rows, columns, self.pairs(rows, columns)
            start = stop

    @functools.cached_property
    def counts(self) -> Tensor:
        """Number of tokens on which each output may depend, ``(length,)``."""
        if self._everything:
            return torch.arange(1, self.length + 1) if self.causal else torch.full((self.length,), self.length)
        return torch.cat([pairs.sum(-1) for _, _, pairs in self.blocks(torch.ones(self.length, dtype=torch.bool))])

    @property
    def apart(self) -> int:
        return self.length**2 - int(self.counts.sum())

    @property
    def _everything(self) -> bool:
        furthest = self.length - 1
        return self.mask is None and self.back >= furthest and (self.causal or self.ahead >= furthest)

    def influence(self, tokens: Tensor) -> Tensor:
        tokens = tokens.double()
        if self._everything:
            return tokens + (tokens.cumsum(0) if self.causal else tokens.sum()) / self.counts
        sums = [pairs.double() @ tokens[columns] for _, columns, pairs in self.blocks(tokens > 0)]
        return tokens + torch.cat(sums) / self.counts.clamp(min=1)


class StackReach(Reach):
    """The reach of all layers together.

    inputs: ``(length,)`` bool, the tokens that depend on the input, unlike class tokens; ``None`` for all.
    """

    def __init__(self, layers: Sequence[LayerReach], inputs: Tensor | None = None) -> None:
        super().__init__(
            "",
            layers[0].length,
            certain=all(layer.certain for layer in layers),
            causal=all(layer.causal for layer in layers),
            back=sum(layer.back for layer in layers),
            ahead=sum(layer.ahead for layer in layers),
            hubs=torch.stack([layer.hubs for layer in layers]).any(0),
        )
        self.layers, self.inputs = layers, inputs

    def influence(self, tokens: Tensor) -> Tensor:
        tokens = tokens if self.inputs is None else tokens & self.inputs
        for layer in self.layers:
            tokens = layer.influence(tokens)
        return tokens


def convolution_width(config: Any) -> int:
    """Width in tokens of DeBERTa-v2's convolution next to its first layer; 0 without one."""
    is_nystromformer = hasattr(config, "num_landmarks")  # its field of the same name belongs to the mechanism
    return 0 if is_nystromformer else int(getattr(config, "conv_kernel_size", 0))


class DeclaredReach:
    """The declared reach of every layer of a model's encoder, or of its decoder if it has no encoder.

    Args:
        config: config of a transformers model, long or not.
        stack: the model's :func:`text_stack`.
        ids: ``(N,)``, token ids.
        leading, trailing: number of special tokens before and after ``ids``. Their ids do not matter.
        inputs: for images or sound, the inputs whose patches or frames the ids stand for.
    Raises:
        CheckpointError: no model can be built from the config, or its windows are not numbers of tokens.
    """

    def __init__(
        self, config: Any, stack: Any, ids: Tensor, leading: int = 0, trailing: int = 0, inputs: AuditInputs | None = None
    ) -> None:
        self.inputs = inputs
        row = torch.cat([ids.new_full((leading,), -1), ids, ids.new_full((trailing,), -1)])[None]
        self.length = row.shape[1]
        self._nowhere = torch.zeros(self.length, dtype=torch.bool)
        self._built: dict[object, LayerReach] = {}
        sites = [site for site in attention_sites(stack) if not site.cross]
        self.names = [site.name for site in sites]
        self.outside: list[LayerReach] = []
        """Reaches of operations between tokens outside of the modules ``names``."""
        self.before: list[LayerReach] = []
        """Reaches of operations between tokens before the first layer."""
        self.inside: list[LayerReach] = []
        """Reaches of operations between tokens in every layer, after its attention."""
        if inputs is not None:
            overlap = [self._overlap(inputs.grid, inputs.overlap)] if any(inputs.overlap) else []
            self.before = [*overlap, *(self._of_mixing(mixing) for mixing in inputs.before or ())]
            self.inside = [self._of_mixing(mixing) for mixing in inputs.inside or ()]
        text = getattr(stack, "config", config).get_text_config()
        windows = named_windows(text)
        if getattr(config, "long_attention", None) is not None:
            self.layers = self._long(config, sites, row)
        elif not sites and windows is not None:
            self.layers = [self._of_site(self._mechanism("window", {"window": width}), False, None) for width in windows]
        else:
            self.layers = self._stock(text, sites)
        if not self.reaches_output:
            self.outside.append(LayerReach.unknown(self.length))
        if len(self.layers) != getattr(text, "num_hidden_layers", 0):  # other layers mix tokens in other ways
            self.outside.append(LayerReach.unknown(self.length))

    @property
    def reaches_output(self) -> bool:
        """Whether the reach of all layers together is known."""
        return self.inputs is None or self.inputs.before is not None

    def of_stack(self) -> StackReach:
        """The reach of all layers together."""
        layers = [reach for layer in self.layers for reach in (layer, *self.inside)]
        prefix = None if self.inputs is None else self.inputs.prefix
        return StackReach([*self.before, *layers, *self.outside], None if prefix is None else ~prefix)

    def of_modules(self, names: Sequence[str]) -> list[LayerReach]:
        """The reach of each module, in the order of their calls. It is the reach of the attention inside the module."""
        if not self.names and len(self.layers) == len(names):  # known by their numbers only
            return self.layers
        reaches = []
        for number, name in enumerate(names):
            inside = [reach for site, reach in zip(self.names, self.layers, strict=False) if f"{site}.".startswith(f"{name}.")]
            calls = names[:number].count(name)
            reaches.append(inside[min(calls, len(inside) - 1)] if inside else LayerReach.unknown(self.length))
        return reaches

    def _long(self, config: Any, sites: Sequence[AttentionSite], row: Tensor) -> list[LayerReach]:
        """The reaches of the mechanisms at ``sites``, for token ids ``row (1, N)``."""
        mechanisms = [site.mechanism for site in sites]
        holder: Any = nn.ModuleList(mechanism for mechanism in mechanisms if isinstance(mechanism, Mechanism))
        holder.config = config
        rule = token_rule(holder) if len(holder) else None
        chosen = None if rule is None else rule.mask(row, torch.ones_like(row, dtype=torch.bool))
        if self.inputs is None and (width := convolution_width(config)):
            convolution = LayerReach(f"convolution over {width} tokens", self.length, True, False, width // 2, width // 2, self._nowhere)
            self.outside.append(convolution)
        return [self._of_site(mechanism, site.decoding, chosen) for mechanism, site in zip(mechanisms, sites, strict=True)]

    def _of_site(self, mechanism: nn.Module, causal: bool, chosen: Tensor | None) -> LayerReach:
        if not isinstance(mechanism, Mechanism) or mechanism.traits.recursion is not None:
            return LayerReach.unknown(self.length)
        seeded = getattr(mechanism.options, "seed", None) is not None
        differs = seeded or mechanism.traits.needs_grid  # layers draw differently, or shift windows
        key = type(mechanism), mechanism.options, mechanism.layer if differs else 0, causal
        if key not in self._built:
            if self.inputs is not None and self.inputs.binds(mechanism):
                self._built[key] = self._on_grid(with_storage(mechanism), self.inputs.grid)
            else:
                self._built[key] = self._of_mechanism(mechanism, causal, chosen)
        return self._built[key]

    def _of_mixing(self, mixing: Mixing) -> LayerReach:
        return LayerReach(mixing.name, self.length, True, False, mixing.back, mixing.ahead, self._nowhere)

    def _overlap(self, grid: Grid, overlap: Sequence[int]) -> LayerReach:
        """The reach of overlapping patches: a patch includes the first pixels of the next ones."""

        def reads(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
            visible: Any = (row >= grid.prefix) & (column >= grid.prefix)
            for of_row, of_column, patches in zip(grid.places(row), grid.places(column), overlap, strict=True):
                visible = visible & (of_column - of_row >= 0) & (of_column - of_row <= patches)
            return visible | (row == column)

        ahead = sum(patches * math.prod(grid.sizes[axis + 1 :]) for axis, patches in enumerate(overlap))
        return LayerReach("patches that overlap", self.length, True, False, 0, ahead, self._nowhere, reads)

    @torch.no_grad()
    def _on_grid(self, mechanism: Mechanism, grid: Grid) -> LayerReach:
        """The reach on a grid or with a token order. Unknown unless a mask defines the mechanism."""
        name = " ".join([mechanism.name, *mechanism.options.changed()])
        bound, order = on_grid(mechanism, grid), mechanism.options.order
        if not isinstance(bound, MaskedMechanism) or not bound.mask_is_reach or bound.traits.takes_globals:
            return replace(LayerReach.unknown(self.length), name=name)
        mask = bound.mask_mod(False, None)
        if order is not None:
            index = token_order(grid, order, torch.device("cpu"))
            place = torch.zeros(self.length, dtype=torch.long)
            place[index[index >= 0]] = (index >= 0).nonzero()[:, 0]
            mask = _in_order(mask, place)
        prefix = torch.arange(self.length) < grid.prefix
        reach = LayerReach(name, self.length, True, False, self.length, self.length, prefix, mask, mechanism.num_heads)
        back = ahead = 0
        for rows, columns, pairs in reach.blocks(~prefix):
            distance = (rows[:, None] - columns).masked_fill(~pairs | prefix[rows][:, None], 0)
            back, ahead = max(back, int(distance.max())), max(ahead, -int(distance.min()))
        return replace(reach, back=back, ahead=ahead)

    @torch.no_grad()
    def _of_mechanism(self, mechanism: Mechanism, causal: bool, chosen: Tensor | None) -> LayerReach:
        """The reach by a mechanism's mask if the mask defines the mechanism, else by its locality."""
        name = " ".join([mechanism.name, *mechanism.options.changed()])
        mechanism = with_storage(for_length(mechanism, self.length, causal))
        call = AttentionCall(causal=causal, global_mask=chosen if mechanism.traits.takes_globals else None)
        tokens = mechanism.resolve_globals(torch.empty(1, 1, self.length, 1), call)
        local = mechanism.locality(causal)
        masked = isinstance(mechanism, MaskedMechanism) and mechanism.mask_is_reach
        if local is None or local.beside == "others" or (tokens is not None and not masked):
            back, ahead = self.length, 0 if causal else self.length
        else:
            back, ahead = local.back, local.ahead
        mask = mechanism.mask_mod(causal, tokens) if isinstance(mechanism, MaskedMechanism) and masked else None
        if mechanism.covers(UNBOUNDED, causal):
            mask = None
        hubs = self._nowhere if tokens is None or not masked else tokens[0]
        return LayerReach(name, self.length, masked, causal, back, ahead, hubs, mask, mechanism.num_heads)

    def _stock(self, config: Any, sites: Sequence[AttentionSite]) -> list[LayerReach]:
        """The reaches of layers on transformers' AttentionInterface, from the windows in a transformers config."""
        if self.inputs is not None:
            return [self._of_site(self._mechanism("full", {}), False, None) for site in sites]
        kinds = config.__dict__.get("layer_types") or [FULL] * getattr(config, "num_hidden_layers", 0)
        reaches = []
        for site in sites:
            widths = own_windows(config, site.decoding) if hasattr(config, "num_hidden_layers") else []
            known = site.layer < min(len(kinds), len(widths)) and kinds[site.layer] in (FULL, SLIDING)
            mechanism = self._mechanism(*base_attention(widths).for_layer(site.layer))
            reaches.append(self._of_site(mechanism, site.decoding, None) if known else LayerReach.unknown(self.length))
        return reaches

    def _mechanism(self, name: str, options: Mapping[str, Any]) -> Mechanism:
        return mechanism_from(name, options, num_heads=1, head_dim=8, max_length=self.length)


def _in_order(mask: MaskMod, place: Tensor) -> MaskMod:
    """``mask`` for reordered tokens: token n is at ``place[n]``."""
    return lambda b, h, q_idx, kv_idx: mask(b, h, place[q_idx], place[kv_idx])


def named_windows(config: Any) -> list[int] | None:
    """Window widths per layer of encoders with built-in windows (Longformer, LED, LongT5); ``None`` for others."""
    layers = getattr(config, "num_hidden_layers", 0)
    widths = (
        2 * config.local_radius if getattr(config, "encoder_attention_type", None) == "local" else getattr(config, "attention_window", None)
    )
    return [widths] * layers if isinstance(widths, int) else None if widths is None else list(widths)


def text_stack(config: Any, model: nn.Module | None = None) -> Any:
    """The model of a config on the meta device, or its encoder if it has one.

    model: a model in memory with this config. It is used instead, unless the config names mechanisms.
    Raises:
        CheckpointError: no model can be built from the config.
    """
    from transformers import AutoModel

    chosen = getattr(config, "long_attention", None)
    base: Any = None if model is None else base_of(model)
    if base is None or chosen is not None:
        with torch.device("meta"), checkpoint_errors("No model can be built from this config"):
            plain = base is not None and not isinstance(config, LongConfig)  # a tower may have no Auto class
            base = type(base)(copy.deepcopy(config)) if plain else new_model(AutoModel, copy.deepcopy(config))  # building writes into it
            if chosen is not None and not isinstance(config, LongConfig):
                enable_long_attention(base, chosen)
    return encoder_of(base)


def base_of(model: nn.Module) -> Any:
    """The model without its head. For DINOv3, not its ``base_model``, a submodule that takes no input."""
    base = getattr(model, "base_model", model)
    reads_input = getattr(model, "main_input_name", None) in inspect.signature(base.forward).parameters
    return base if reads_input or not hasattr(model, "main_input_name") else model


def encoder_of(base: Any) -> Any:
    """The submodule that takes a model's input: the encoder, if there is one."""
    if (kind := kind_of_model(base.config)) is not None:
        return kind.stack(base)
    return base.get_encoder() if base.config.is_encoder_decoder else base
