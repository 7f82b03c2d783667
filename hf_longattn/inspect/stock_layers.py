"""Attention declared by the layers of a stock model, and its cost in transformers and with
``attn_implementation="longattn"``.

The model is built from its config on the meta device, without weights, and reads a few tokens there. Its attention
modules call a function that records their arguments instead of attending. Windows, sinks and score caps therefore come
from the model's own code.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..conversion.architecture import class_of
from ..conversion.load import quiet_libraries
from ..conversion.source import open_source
from ..engines.call import UNBOUNDED
from ..engines.cpu.band import band_plan
from ..errors import CheckpointError, LongAttentionError, checkpoint_errors, in_a_line
from ..loading import LOADING
from ..modeling.backend import BACKEND, mechanism_of
from ..modeling.costs import element_bytes
from ..modeling.declared import BLOCK_PAIRS, FEWEST_ROWS, DeclaredMask
from ..modeling.family.definition import without_head
from ..modeling.family.long_config import attention_implementation
from ..modeling.generic import set_implementation, towers_of
from ..modeling.keywords import SINKS

TOKENS, DECODED = 40, 41
"""Tokens that a model, and the decoder of an encoder-decoder, read in this run. CLIP's text tower reads at most 77."""
FP32 = 4
"""Bytes of a score, and of an entry of a mask that is added to scores."""


@dataclasses.dataclass(frozen=True)
class DeclaredAttention:
    """The attention that one module declares.

    queries, keys: numbers of tokens in the recorded call; :data:`TOKENS` and :data:`DECODED` mean the length of a
        text.
    left, right: the visible keys, from ``query - left`` to ``query + right``; ``None`` without a bound.
    chunk: tokens of a chunk; other chunks are hidden. softcap: the bound of the scores.
    sinks, bias: whether the softmax has one more column, and whether a position bias is added to the scores.
    cached: numbers that a decode cache stores of one token: its keys and values.
    pairs: other masks over pairs of tokens: "by the model" if it makes a mask itself, "by rules" for blocks of tokens.
    """

    heads: int
    queries: int
    keys: int
    left: int | None = None
    right: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sinks: bool = False
    bias: bool = False
    pairs: str = ""
    cached: int = 0

    def __str__(self) -> str:
        left, right = self.left, self.right
        if self.keys != self.queries:
            seen = "all keys of another sequence"
        elif self.pairs == "by the model":
            seen = "what a mask of the model shows"
        elif self.chunk is not None:
            seen = f"{'earlier ' if right == 0 else ''}tokens of the same chunk of {self.chunk:,}"
        elif left is None:
            seen = "all tokens" if right is None else "all earlier tokens"
        elif right == 0:
            seen = f"a window of {left + 1:,} tokens, itself the last"
        else:
            seen = f"{left:,} tokens before and {right:,} after"
            if left == right:
                seen = f"a window of {left:,} tokens on either side"
        parts = [seen]
        if self.sinks:
            parts.append("sinks")
        if self.softcap is not None:
            parts.append(f"scores capped at {self.softcap:g}")
        if self.bias:
            parts.append("a position bias")
        if self.pairs == "by rules":
            parts.append("blocks of tokens")
        return ", ".join(parts)

    @classmethod
    def of(cls, query: Tensor, key: Tensor, value: Tensor, mask: Any, kwargs: Mapping[str, Any]) -> DeclaredAttention:
        declared: dict[str, Any] = {}
        if isinstance(mask, DeclaredMask):
            declared = {"chunk": mask.chunk, "pairs": "" if mask.exact else "by rules"}
            for name, bound in (("left", mask.left), ("right", mask.right)):
                if bound < UNBOUNDED:
                    declared[name] = bound
        elif mask is not None:
            declared["pairs"] = "by the model"
        return cls(
            heads=query.shape[1],
            queries=query.shape[2],
            keys=key.shape[2],
            softcap=kwargs.get("softcap"),
            sinks=kwargs.get(SINKS) is not None,
            bias=kwargs.get("position_bias") is not None,
            cached=key.shape[1] * key.shape[3] + value.shape[1] * value.shape[3],
            **declared,
        )

    def _pairs(self, length: int) -> tuple[int, int, int]:
        """Queries, keys and keys in reach of a query, for texts of ``length`` tokens."""
        queries, keys = (length if count in (TOKENS, DECODED) else count for count in (self.queries, self.keys))
        reach = self.chunk or UNBOUNDED
        if self.left is not None:
            reach = min(reach, self.left + (self.right == 0))
        return queries, keys, reach

    def path(self, length: int) -> str:
        """How the engines on a CPU compute texts of ``length`` tokens, in words."""
        _, keys, reach = self._pairs(length)
        if self.bias or self.softcap is not None or self.pairs == "by the model":
            return "pairs, in blocks of queries"
        if self.pairs:
            return "visible blocks of 64 × 64"
        if keys <= reach:
            return "full attention, fused"
        return "windows (cpu-band)" if self.chunk is None else "chunks"

    def stock_bytes(self, length: int, implementation: str) -> int:
        """Estimated bytes of mask and scores in transformers, for one text in fp32.

        Eager: the scores ``H·Nq·Nk`` and their softmax, and a mask ``Nq·Nk`` unless everything is visible. SDPA:
        nothing for a plain causal or full layer; for other masks ``Nq·Nk`` bool and the copy in fp32 that SDPA makes;
        for a position bias ``H·Nq·Nk``.
        """
        queries, keys, reach = self._pairs(length)
        pairs, masked = queries * keys, reach <= keys or bool(self.pairs)
        if implementation != "sdpa":
            return FP32 * pairs * (2 * self.heads + (masked or self.right == 0))
        if self.bias:
            return FP32 * self.heads * pairs
        return (1 + FP32) * pairs * masked

    def longattn_bytes(self, length: int) -> int:
        """Estimated bytes of mask and scores in the engines on a CPU, for one text in fp32.

        Nothing where SDPA runs. A window: the mask of one block. A chunk: its own mask. A score cap: four copies of a
        block of scores.
        A position bias or a mask by the model: as SDPA. A mask by rules: at most :data:`BLOCK_PAIRS` pairs at once.
        """
        queries, keys, reach = self._pairs(length)
        pairs = queries * keys
        if self.bias or self.pairs == "by the model":
            return self.stock_bytes(length, "sdpa")
        if self.pairs:
            return (1 + FP32) * min(pairs, BLOCK_PAIRS)
        left, right = (keys if bound is None else min(bound, keys) for bound in (self.left, self.right))
        if self.softcap is not None:
            fewest = self.heads * FEWEST_ROWS * min(keys, FEWEST_ROWS + left + right)
            return 4 * FP32 * min(self.heads * pairs, max(BLOCK_PAIRS // 16, fewest))
        if keys <= reach:
            return 0
        if self.chunk is not None:
            return (1 + FP32) * self.chunk**2
        plan = band_plan(queries, keys, keys - queries, left, right, torch.float32, torch.get_num_threads())
        return FP32 * max(group.block * group.width for group in plan.groups)


@dataclasses.dataclass(frozen=True)
class StockInspection:
    """A stock model, or one of its towers.

    implementation: transformers' default implementation, "sdpa" or "eager". flash: whether flash-attention can run on
        GPUs.
    element_bytes: bytes of a weight in the checkpoint's dtype.
    layers: names of attention modules and their declarations, in the order of the calls; empty for a model with
        several towers.
    why_not: why ``longattn`` does not run, or why the layers were not read; else empty.
    """

    class_name: str
    model_type: str
    parameters: int
    implementation: str
    flash: bool
    element_bytes: int = FP32
    layers: Sequence[tuple[str, DeclaredAttention]] = ()
    why_not: str = ""
    towers: Mapping[str, StockInspection] = dataclasses.field(default_factory=dict)

    def groups(self) -> dict[tuple[str, DeclaredAttention], list[int]]:
        """The layers with equal attention: name of the modules without the layer's number, and attention -> numbers of
        the layers."""
        groups: dict[tuple[str, DeclaredAttention], list[int]] = {}
        for name, layer in self.layers:
            number = re.search(r"\.(\d+)\.", name)
            same = groups.setdefault((re.sub(r"\.\d+\.", ".", name, count=1), layer), [])
            same.append(int(number[1]) if number else len(same))
        return groups

    @property
    def text(self) -> StockInspection:
        """The tower that reads text, or the model itself."""
        for tower in self.towers.values():
            if any(layer.queries == TOKENS for _, layer in tower.layers):
                return tower
        return self

    @property
    def decodes(self) -> bool:
        """Whether every layer sees earlier tokens of its own text alone."""
        return bool(self.layers) and all(layer.right == 0 and layer.queries == layer.keys for _, layer in self.layers)

    @property
    def declares(self) -> bool:
        """Whether a layer is more than full or causal attention, which SDPA computes without a mask."""
        return any(
            {layer.left, layer.chunk, layer.softcap} != {None} or layer.sinks or layer.bias or layer.pairs
            for _, layer in self.layers
        )

    @property
    def packs(self) -> bool:
        """Whether the layers' declarations let :func:`hf_longattn.unpad` pack texts."""
        return bool(self.layers) and not any(layer.bias or layer.pairs for _, layer in self.layers)

    def verdict(self) -> str:
        """Effect of ``attn_implementation="longattn"``, in words."""
        if self.why_not:
            return self.why_not
        if self.declares:
            return "computes what the layers declare, windows without an N×N mask"
        return "runs as sdpa does"

    def cache_bytes(self, length: int, most: int | None = None) -> int:
        """Bytes of the decode cache after ``length`` tokens of one text, in the checkpoint's dtype.

        most: maximum tokens in a layer without a window.
        """
        tokens = 0
        for _, layer in self.layers:
            reach = most
            if layer.left is not None or layer.chunk is not None:
                reach = layer.chunk or layer.left + 1  # type: ignore[operator]
            tokens += layer.cached * min(length, reach or length)
        return tokens * self.element_bytes

    def memory(self, lengths: Sequence[int]) -> list[tuple[int, int, int]]:
        """Length in tokens, and bytes of the largest layer in transformers and in the engines. Inputs other than text
        have one length."""
        layers = {layer for _, layer in self.layers}
        if not layers:
            return []
        if not any({TOKENS, DECODED} & {layer.queries, layer.keys} for layer in layers):
            lengths = [max(layer.queries for layer in layers)]
        return [
            (
                n,
                max(layer.stock_bytes(n, self.implementation) for layer in layers),
                max(layer.longattn_bytes(n) for layer in layers),
            )
            for n in lengths
        ]

    def to_dict(self, lengths: Sequence[int]) -> dict[str, Any]:
        """JSON-serialisable form."""
        layers = [{"module": name, **dataclasses.asdict(layer)} for name, layer in self.layers]
        memory = [
            {"length": n, "transformers_bytes": stock, "longattn_bytes": ours}
            for n, stock, ours in self.memory(lengths)
        ]
        towers = {name: tower.to_dict(lengths) for name, tower in self.towers.items()}
        return {**vars(self), "layers": layers, "memory": memory, "towers": towers}


@quiet_libraries()
def inspect_stock(
    model: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> StockInspection:
    """Describe the attention that every layer of a stock model declares. Reads only its config, and runs no code of
    the checkpoint.

    Args:
        model: a folder with a config.json, or a Hub repository id.
    Raises:
        CheckpointError: there is no config, or transformers cannot build a model from it.
    """
    values = open_source(model, revision, token, weights=False).config
    model_class: Any = class_of(values)
    if model_class is None:
        model_type, version = values.get("model_type"), transformers.__version__
        raise CheckpointError(
            f"{str(model)!r} is a {model_type!r} model, and transformers {version} has no class for it; give another."
        )
    with checkpoint_errors(f"The config.json of {str(model)!r} makes no model"), LOADING, torch.device("meta"):
        values = {
            name: value
            for name, value in values.items()
            if name not in ("auto_map", "quantization_config", "compression_config")
        }
        stock = model_class(AutoConfig.for_model(**values)).to(torch.bfloat16).eval()  # experts need bf16 here
    return _inspect(stock)


def _inspect(model: Any, *, is_tower: bool = False) -> StockInspection:
    """Record what the attention modules of a model, or of its towers, declare in a run on the meta device."""
    result = StockInspection(
        type(model).__name__,
        model.config.model_type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        element_bytes=element_bytes(model.config),
        implementation=attention_implementation(model.config) or "eager",
        flash=bool(model._supports_flash_attn),
    )
    if not getattr(model.config, "is_encoder_decoder", False) and (towers := towers_of(model)):
        return dataclasses.replace(
            result, towers={name: _inspect(tower, is_tower=True) for name, tower in towers.items()}
        )
    stack = without_head(model)
    layers: list[tuple[str, DeclaredAttention]] = []
    why_not = ""
    names = {id(module): name for name, module in stack.named_modules()}

    def record(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        mechanism_of(module, kwargs)  # refuses what would not be computed
        layers.append((names[id(module)], DeclaredAttention.of(query, key, value, attention_mask, kwargs)))
        return query.new_empty(*query.transpose(1, 2).shape[:3], value.shape[-1]), None

    ALL_ATTENTION_FUNCTIONS[BACKEND] = record  # temporarily replaces the registered function
    try:
        set_implementation(stack, BACKEND, is_tower=is_tower)
        with torch.no_grad(), torch.device("meta"), _RealTokens():
            stack(**_inputs(stack))
        if not layers:
            why_not = f"no effect: {type(model).__name__} has no attention on transformers' AttentionInterface"
    except LongAttentionError as error:
        why_not = f"refused: {error}"
    except Exception as error:  # a forward pass of any architecture
        why_not = (
            f"not read, since {type(stack).__name__} needs other inputs or the values of weights ({in_a_line(error)})"
        )
    finally:
        del ALL_ATTENTION_FUNCTIONS[BACKEND]
    if why_not:
        return dataclasses.replace(result, why_not=why_not)
    return dataclasses.replace(result, layers=layers)


def _inputs(stack: Any) -> dict[str, Any]:
    """A short text, an image of the config's size, or a second of sound, on the meta device."""
    config, takes = stack.config, inspect.signature(stack.forward).parameters
    size = getattr(config, "image_size", None) or 224
    if isinstance(size, int):
        size = (size, size)
    shapes = {
        "input_ids": (TOKENS,),
        "pixel_values": (getattr(config, "num_channels", 3), *size),
        "input_values": (16000,),
        "input_features": (getattr(config, "num_mel_bins", 80), 2 * getattr(config, "max_source_positions", 1500)),
    }
    name = next((name for name in (stack.main_input_name, *shapes) if name in takes and name in shapes), None)
    if name is None:
        raise TypeError(f"it takes {', '.join(takes)}")
    inputs: dict[str, Any] = {
        name: torch.zeros(1, *shapes[name], dtype=torch.long if name == "input_ids" else torch.bfloat16)
    }
    if "decoder_input_ids" in takes:
        inputs["decoder_input_ids"] = torch.zeros(1, DECODED, dtype=torch.long)
    if "use_cache" in takes:
        inputs["use_cache"] = False
    return inputs


class _RealTokens(TorchFunctionMode):
    """Answers value-dependent questions on the meta device as if all tokens were equal, real and not special."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.is_meta:
            if name == "nonzero":
                index = torch.empty(0, first.ndim, dtype=torch.long, device="meta")
                return index.unbind(1) if (kwargs or {}).get("as_tuple") else index
            if name in ("__bool__", "__int__", "__index__", "__float__", "item"):
                # Conditions are true, numbers are 1. Only any() is false: it looks for exceptions; there are none.
                return not getattr(first, "of_any", False)
            if name == "__contains__":
                return False
        result = function(*args, **(kwargs or {}))
        if name == "any" and isinstance(result, Tensor):
            result.of_any = True  # type: ignore[attr-defined]
        return result
