"""Attention with fewer heads in some layers: removes heads, and builds models with pruned layers.

``kept_heads`` in a Long config maps pruned layers to their number of heads, ``{"0": 7, "3": 2}``. With grouped
queries, it counts key-value heads, each with its group of query heads.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..loading import LOADING
from ..mechanisms.common.base import Mechanism
from .attach.attachment import HEAD_COUNTS, HEAD_DIMS, first_number
from .attach.attention_sites import AttentionSite, attention_projections, self_attention

KEPT_HEADS = "kept_heads"
"""The field of a Long config with the number of heads of pruned layers."""
QUERY_COUNTS = (*HEAD_COUNTS, "n_head")
"""Attributes of attention modules with the number of query heads."""
KEY_COUNTS = ("num_key_value_heads", "num_kv_heads")
"""Attributes with the number of key-value heads."""
WIDTHS = ("all_head_size",)
"""Attributes with the width of all query heads together."""


@dataclass(frozen=True)
class Heads:
    """The heads of one layer, with their query, key, value and output projections.

    projections: the query, key and value projections.
    count: number of key-value heads.
    queries: number of query heads per key-value head.
    width: features of a head.
    columns: inputs of the output projection per key-value head, ``queries * width``.
    """

    site: AttentionSite
    projections: tuple[nn.Linear, nn.Linear, nn.Linear]
    output: nn.Linear
    count: int
    queries: int
    width: int
    columns: int

    def keep(self, heads: Sequence[int]) -> None:
        """Remove all key-value heads except ``heads``, with their query heads, in place."""
        index = torch.tensor(sorted(heads))
        columns = self.columns
        for layer, width in zip(self.projections, (columns, self.width, self.width), strict=True):
            cut(layer, spread(index, width), 0)
        cut(self.output, spread(index, columns), 1)
        # the module's attributes
        module: Any = self.site.module
        counts = dict.fromkeys(QUERY_COUNTS, len(index) * self.queries)
        counts |= dict.fromkeys(KEY_COUNTS, len(index)) | dict.fromkeys(WIDTHS, len(index) * columns)
        for name, value in counts.items():
            # mechanisms read the first of the names, so it is set even if the module does not have it
            if isinstance(getattr(module, name, None), int) or name == QUERY_COUNTS[0]:
                setattr(module, name, value)
        # the mechanism's tensors
        mechanism = getattr(module, "long_attention", None)
        if isinstance(mechanism, Mechanism):
            tensors = {**dict(mechanism.named_parameters()), **dict(mechanism.named_buffers())}
            for name in mechanism.per_head_tensors or ():
                tensors[name].data = tensors[name].data[spread(index, self.queries)].clone()

    def check(self) -> None:
        """Raise :class:`OptionError` if no heads can be removed from the layer, because a norm spans all heads, or
        because the mechanism's parameters cannot be divided by heads."""
        mechanism = getattr(self.site.module, "long_attention", None)
        # a norm with a vector as wide as all heads normalises them together
        widths = {layer.out_features for layer in self.projections} - {self.width}
        for name, module in self.site.module.named_children():
            if module in (*self.projections, self.output, mechanism):
                continue
            if any(values.dim() == 1 and len(values) in widths for values in module.parameters()):
                raise OptionError(
                    f"{type(self.site.module).__name__} normalises all heads together ({name}), so none can be cut "
                    "out; choose --method bf16."
                )
        if not isinstance(mechanism, Mechanism):
            return
        problem = ""
        if mechanism.relative is not None and mechanism.relative.differs_by_head:
            problem = "relative positions that differ by head"
        elif mechanism.per_head_tensors is None and [*mechanism.parameters()]:
            problem = "parameters that are not laid out by heads"
        if problem:
            raise OptionError(
                f"Mechanism {mechanism.name!r} has {problem}, so no heads can be cut out; choose --method int8."
            )


def spread(index: Tensor, width: int) -> Tensor:
    """The indices of all entries of some units, such as heads. Unit ``i`` consists of the ``width`` entries from
    ``i * width`` on.

    index: the units.
    """
    return (index[:, None] * width + torch.arange(width)).flatten()


@torch.no_grad()
def cut(layer: nn.Linear, index: Tensor, dim: int) -> None:
    """Remove all outputs (``dim=0``) or inputs (``dim=1``) of a linear layer except those in ``index``, in place."""
    layer.weight = nn.Parameter(
        layer.weight.index_select(dim, index.to(layer.weight.device)), layer.weight.requires_grad
    )
    if dim == 0 and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.index_select(0, index.to(layer.bias.device)), layer.bias.requires_grad)
    layer.out_features, layer.in_features = layer.weight.shape


def heads_of(model: nn.Module) -> list[Heads]:
    """The heads of every self-attention in ``model``.

    Raises:
        OptionError: a layer does not have four linear projections, so its heads cannot be removed.
    """
    layers = []
    for site in self_attention(model):
        projections: list[Any] = [model.get_submodule(name) for name in attention_projections(model, site.name)]
        widths = (getattr(site.module, name, None) for name in HEAD_DIMS)
        width = next((width for width in widths if isinstance(width, int)), None)
        if len(projections) != 4 or type(projections[3]) is not nn.Linear or not width or site.shared:
            raise OptionError(
                f"The heads of {type(site.module).__name__} cannot be cut out, since queries, keys, values and "
                "outputs are not projected by four linear layers; choose --method bf16."
            )
        query, key, value, output = projections
        count = key.out_features // width
        queries = query.out_features // key.out_features
        layers.append(Heads(site, (query, key, value), output, count, queries, width, queries * width))
    return layers


def cut_as_configured(model: Any) -> None:
    """Remove heads from a new model, so that each layer has the number of heads in ``config.kept_heads``.

    Raises:
        OptionError: ``kept_heads`` is not a mapping from layers to possible numbers of heads.
    """
    counts = getattr(model.config, KEPT_HEADS)
    if not isinstance(counts, Mapping) or not all(
        str(layer).isdigit() and isinstance(count, int) for layer, count in counts.items()
    ):
        raise OptionError(
            f"{KEPT_HEADS} is {counts!r}, but must be a mapping of layers to numbers of heads, for example {{'0': 8}}."
        )
    layers = {str(heads.site.layer): heads for heads in heads_of(model)}
    for layer, count in counts.items():
        heads = layers.get(str(layer))
        before = first_number(model, (*KEY_COUNTS, *QUERY_COUNTS))  # the number of heads without pruning
        if heads is None or not 1 <= count <= (before or heads.count):
            raise OptionError(f"{KEPT_HEADS} gives layer {layer} {count} heads, which this model cannot have.")
        if count < heads.count:
            heads.keep(range(count))


def whole_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Name of every tensor that pruning has made smaller -> its shape before."""
    if not getattr(model.config, KEPT_HEADS, None):
        return {}
    # the shapes of a model without pruning
    config = copy.deepcopy(model.config)
    setattr(config, KEPT_HEADS, None)
    with LOADING, torch.device("meta"):
        whole = type(model)(config).state_dict()
    pruned = model.state_dict()
    return {
        name: tuple(values.shape)
        for name, values in whole.items()
        if name in pruned and pruned[name].shape != values.shape
    }
