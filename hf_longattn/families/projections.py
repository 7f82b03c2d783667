"""The query, key, value and output projections of an attention module, wherever its architecture keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

SEPARATE = {"query": ("query", "q_proj", "q_lin"), "key": ("key", "k_proj", "k_lin"), "value": ("value", "v_proj", "v_lin")}
FUSED = ("c_attn",)
"""One Conv1D (its weight is (in, out)) whose output is queries, keys and values side by side: GPT-2."""

OUTPUT = ("o_proj", "out_proj", "c_proj", "out_lin", "Wo", "dense")
BESIDE = "output.dense"
"""BERT and its kin keep the output projection beside the attention module, not in it."""


@dataclass(frozen=True)
class OwnParameter:
    """A parameter of the layer, or the part of a fused one, in the layout of ``nn.Linear``.

    name: of the parameter below the attention module.
    part: which third of a fused one, or ``None``.
    """

    name: str
    part: int | None = None

    def __call__(self, parameter: Tensor) -> Tensor:
        if self.part is None:
            return parameter
        return parameter.chunk(3, dim=-1)[self.part].transpose(0, -1).contiguous()


def own_projections(attention: nn.Module) -> dict[str, OwnParameter]:
    """ "query.weight", "query.bias", "key.weight" … -> where the module has it; a projection without bias has no such entry."""
    found: dict[str, OwnParameter] = {}
    for kind, names in SEPARATE.items():
        linear = next((name for name in names if isinstance(getattr(attention, name, None), nn.Linear)), None)
        if linear is not None:
            found |= {f"{kind}.{own}": OwnParameter(f"{linear}.{own}") for own, _ in getattr(attention, linear).named_parameters()}
    for fused in (name for name in FUSED if isinstance(getattr(attention, name, None), nn.Module)):
        for part, kind in enumerate(SEPARATE):
            found |= {f"{kind}.{own}": OwnParameter(f"{fused}.{own}", part) for own in ("weight", "bias")}
    return found


def copied_parameters(attention: nn.Module, copies: Mapping[str, str]) -> dict[str, OwnParameter]:
    """A mechanism's parameter name -> the layer's own parameter that it begins as, for ``Mechanism.copies``."""
    own = own_projections(attention)
    return {name: own[wanted] for name, wanted in copies.items() if wanted in own}


def attention_projections(model: nn.Module, attention: str) -> list[str]:
    """The names below ``model`` of the q, k, v and output projections of its module ``attention``; none when its query's is not known."""
    module = model.get_submodule(attention)
    inner = dict.fromkeys(own.name.rpartition(".")[0] for own in own_projections(module).values())
    names = [f"{attention}.{name}" for name in inner]
    output = next((f"{attention}.{name}" for name in OUTPUT if isinstance(getattr(module, name, None), nn.Module)), None)
    if output is None:
        beside = f"{attention.rpartition('.')[0]}.{BESIDE}".removeprefix(".")
        output = beside if beside in dict(model.named_modules()) else None
    return names and [*names, *([output] if output else [])]
