"""The attention that the layers of a stock model declare, and its cost.

A stock model is a model of transformers without mechanisms. It is built from its config on the meta device, without
weights, and reads a few tokens there. Its attention modules call a function that records their arguments and computes
nothing. Windows, sinks and score caps are therefore those of the model's own code. Costs are estimated for
transformers and for ``attn_implementation="longattn"``.
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
"""Number of tokens that a model reads in this run, and number for the decoder of an encoder-decoder. They differ, so
that a recorded call shows from which text its queries and keys are. CLIP's text tower reads at most 77."""
FP32 = 4
"""Bytes of a score, and of an entry of a mask that is added to scores."""


@dataclasses.dataclass(frozen=True)
class DeclaredAttention:
    """The attention that a module declares in its call.

    Attributes:
        heads: number of query heads.
        queries, keys: numbers of queries and keys in the recorded call. :data:`TOKENS` and :data:`DECODED` stand for
            the length of a text.
        left, right: a query sees the keys from ``query - left`` to ``query + right``; ``None`` = no bound.
        chunk: number of tokens of a chunk. A query sees only keys in its chunk; ``None`` = no chunks.
        softcap: the bound of the scores; ``None`` = no bound.
        sinks: whether the softmax has an additional column, the attention sink.
        bias: whether a position bias is added to the scores.
        pairs: other masks of pairs of a query and a key. "by the model": the model makes a mask tensor. "by rules":
            blocks of tokens are visible. "": there is no such mask.
        cached: number of values that a decode cache stores for a token: its keys and values.
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
        """The attention in words, such as "a window of 512 tokens, itself the last, sinks"."""
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
        """The attention that the arguments of an attention function declare."""
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
        """Numbers of queries, of keys, and of keys in reach of a query, for texts of ``length`` tokens."""
        queries, keys = (length if count in (TOKENS, DECODED) else count for count in (self.queries, self.keys))
        reach = self.chunk or UNBOUNDED
        if self.left is not None:
            own = int(self.right == 0)  # a causal window includes the query itself
            reach = min(reach, self.left + own)
        return queries, keys, reach

    def path(self, length: int) -> str:
        """How the engines of this package compute texts of ``length`` tokens on a CPU, in words."""
        _, keys, reach = self._pairs(length)
        if self.bias or self.softcap is not None or self.pairs == "by the model":
            return "pairs, in blocks of queries"
        if self.pairs:
            return "visible blocks of 64 × 64"
        if keys <= reach:
            return "full attention, fused"
        return "windows (cpu-band)" if self.chunk is None else "chunks"

    def stock_bytes(self, length: int, implementation: str) -> int:
        """Estimated bytes of mask and scores of a layer in transformers, for one text in fp32.

        Nq and Nk are the numbers of queries and keys, and H of heads.

        Eager attention has the scores ``H·Nq·Nk``, their softmax, and a mask ``Nq·Nk`` unless everything is visible.
        SDPA needs nothing for full and for causal attention. For another mask, it has the mask ``Nq·Nk`` as bool and a
        copy in fp32. For a position bias, it has ``H·Nq·Nk`` numbers.
        """
        queries, keys, reach = self._pairs(length)
        pairs = queries * keys
        has_mask = reach <= keys or bool(self.pairs)
        if implementation != "sdpa":
            tensors = 2 * self.heads + int(has_mask or self.right == 0)
            return FP32 * pairs * tensors
        if self.bias:
            return FP32 * self.heads * pairs
        if not has_mask:
            return 0
        return (1 + FP32) * pairs

    def longattn_bytes(self, length: int) -> int:
        """Estimated bytes of mask and scores of a layer in the engines of this package on a CPU, for one text in fp32.

        - Full and causal attention, which run in SDPA: nothing.
        - A position bias, or a mask by the model: as in SDPA.
        - A mask by rules: a mask of at most :data:`BLOCK_PAIRS` pairs at a time.
        - A score cap: four copies of the scores of a block.
        - Chunks: the mask of one chunk.
        - A window: the mask of one block.
        """
        queries, keys, reach = self._pairs(length)
        pairs = queries * keys
        if self.bias or self.pairs == "by the model":
            return self.stock_bytes(length, "sdpa")
        if self.pairs:
            return (1 + FP32) * min(pairs, BLOCK_PAIRS)
        left, right = (keys if bound is None else min(bound, keys) for bound in (self.left, self.right))
        if self.softcap is not None:
            smallest_block = self.heads * FEWEST_ROWS * min(keys, FEWEST_ROWS + left + right)
            return 4 * FP32 * min(self.heads * pairs, max(BLOCK_PAIRS // 16, smallest_block))
        if keys <= reach:
            return 0
        if self.chunk is not None:
            return (1 + FP32) * self.chunk**2
        plan = band_plan(queries, keys, keys - queries, left, right, torch.float32, torch.get_num_threads())
        return FP32 * max(group.block * group.width for group in plan.groups)


@dataclasses.dataclass(frozen=True)
class StockInspection:
    """A stock model, or one of its towers (the stacks of a model of several inputs, such as CLIP).

    Attributes:
        class_name, model_type: name of the model's class, and its ``model_type``.
        parameters: number of parameters.
        implementation: the default attention implementation in transformers, "sdpa" or "eager".
        flash: whether flash-attention can run on GPUs.
        element_bytes: bytes of a weight in the checkpoint's dtype.
        layers: names of attention modules and what they declare, in the order of the calls. Empty for a model with
            several towers.
        why_not: why ``longattn`` does not run, or why the layers could not be read; "" otherwise.
        towers: name of a tower -> its inspection, if there are several towers.
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
        """Module name without the layer's number, and attention -> numbers of the layers that share both."""
        groups: dict[tuple[str, DeclaredAttention], list[int]] = {}
        for name, layer in self.layers:
            shared_name = re.sub(r"\.\d+\.", ".", name, count=1)
            numbers = groups.setdefault((shared_name, layer), [])
            number = re.search(r"\.(\d+)\.", name)
            numbers.append(int(number[1]) if number else len(numbers))
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
        """Whether every layer is causal self-attention, so that the model can decode with a cache."""
        return bool(self.layers) and all(layer.right == 0 and layer.queries == layer.keys for _, layer in self.layers)

    @property
    def declares(self) -> bool:
        """Whether a layer declares more than full or causal attention, which SDPA computes without a mask."""
        for _, layer in self.layers:
            has_bounds = {layer.left, layer.chunk, layer.softcap} != {None}
            if has_bounds or layer.sinks or layer.bias or layer.pairs:
                return True
        return False

    @property
    def packs(self) -> bool:
        """Whether :func:`hf_longattn.unpad` can pack texts, by what the layers declare."""
        return bool(self.layers) and not any(layer.bias or layer.pairs for _, layer in self.layers)

    def verdict(self) -> str:
        """The effect of ``attn_implementation="longattn"``, in words."""
        if self.why_not:
            return self.why_not
        if self.declares:
            return "computes what the layers declare, windows without an N×N mask"
        return "runs as sdpa does"

    def cache_bytes(self, length: int, most: int | None = None) -> int:
        """Bytes of the decode cache after ``length`` tokens of one text, in the checkpoint's dtype.

        ``most`` is the maximum number of tokens in a layer without a window; ``None`` = no maximum.
        """
        values = 0
        for _, layer in self.layers:
            tokens = length
            if layer.chunk is not None:
                tokens = min(length, layer.chunk)
            elif layer.left is not None:
                tokens = min(length, layer.left + 1)
            elif most is not None:
                tokens = min(length, most)
            values += layer.cached * tokens
        return values * self.element_bytes

    def memory(self, lengths: Sequence[int]) -> list[tuple[int, int, int]]:
        """Each length in tokens, with the bytes of the largest layer in transformers and in the engines.

        If the model reads no text, there is only the length of its input.
        """
        layers = {layer for _, layer in self.layers}
        if not layers:
            return []
        if not any({TOKENS, DECODED} & {layer.queries, layer.keys} for layer in layers):
            lengths = [max(layer.queries for layer in layers)]
        rows = []
        for length in lengths:
            stock = max(layer.stock_bytes(length, self.implementation) for layer in layers)
            longattn = max(layer.longattn_bytes(length) for layer in layers)
            rows.append((length, stock, longattn))
        return rows

    def to_dict(self, lengths: Sequence[int]) -> dict[str, Any]:
        """The facts as a dictionary for JSON, with the memory for ``lengths`` in tokens."""
        layers = [{"module": name, **dataclasses.asdict(layer)} for name, layer in self.layers]
        memory = [
            {"length": length, "transformers_bytes": stock, "longattn_bytes": longattn}
            for length, stock, longattn in self.memory(lengths)
        ]
        towers = {name: tower.to_dict(lengths) for name, tower in self.towers.items()}
        return {**vars(self), "layers": layers, "memory": memory, "towers": towers}


@quiet_libraries()
def inspect_stock(
    model: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> StockInspection:
    """Describe the attention that every layer of a stock model declares.

    Only the config of the checkpoint is read, and no code in it is run.

    Args:
        model: a folder with a config.json, or a Hub name.

    Raises:
        CheckpointError: there is no config, or transformers cannot build a model from it.
    """
    values = open_source(model, revision, token, weights=False).config
    model_class: Any = class_of(values)
    if model_class is None:
        model_type, version = values.get("model_type"), transformers.__version__
        raise CheckpointError(
            f"{str(model)!r} is a {model_type!r} model, and transformers {version} has no class for it; give another "
            "model."
        )
    with checkpoint_errors(f"The config.json of {str(model)!r} makes no model"), LOADING, torch.device("meta"):
        values = {
            name: value
            for name, value in values.items()
            if name not in ("auto_map", "quantization_config", "compression_config")
        }
        stock = model_class(AutoConfig.for_model(**values))
        stock = stock.to(torch.bfloat16).eval()  # a mixture of experts runs on the meta device only in bf16
    return _inspect(stock)


def _inspect(model: Any, *, is_tower: bool = False) -> StockInspection:
    """Record what the attention modules of a model, or of its towers, declare in a run on the meta device."""
    # Facts, and towers
    result = StockInspection(
        type(model).__name__,
        model.config.model_type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        element_bytes=element_bytes(model.config),
        implementation=attention_implementation(model.config) or "eager",
        flash=bool(model._supports_flash_attn),
    )
    if not getattr(model.config, "is_encoder_decoder", False):
        towers = {name: _inspect(tower, is_tower=True) for name, tower in towers_of(model).items()}
        if towers:
            return dataclasses.replace(result, towers=towers)

    # A run with a function that records its arguments
    stack = without_head(model)
    layers: list[tuple[str, DeclaredAttention]] = []
    why_not = ""
    names = {id(module): name for name, module in stack.named_modules()}

    def record(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        mechanism_of(module, kwargs)  # raises an error for arguments that longattn does not compute
        layers.append((names[id(module)], DeclaredAttention.of(query, key, value, attention_mask, kwargs)))
        return query.new_empty(*query.transpose(1, 2).shape[:3], value.shape[-1]), None  # (B, N, H, D), no weights

    ALL_ATTENTION_FUNCTIONS[BACKEND] = record  # hides the registered function until it is deleted
    try:
        set_implementation(stack, BACKEND, is_tower=is_tower)
        with torch.no_grad(), torch.device("meta"), _RealTokens():
            stack(**_inputs(stack))
        if not layers:
            why_not = f"no effect: {type(model).__name__} has no attention on transformers' AttentionInterface"
    except LongAttentionError as error:
        why_not = f"refused: {error}"
    except Exception as error:  # the forward pass of any architecture may raise any error
        why_not = (
            f"not read, since {type(stack).__name__} needs other inputs or the values of weights ({in_a_line(error)})"
        )
    finally:
        del ALL_ATTENTION_FUNCTIONS[BACKEND]
    if why_not:
        return dataclasses.replace(result, why_not=why_not)
    return dataclasses.replace(result, layers=layers)


def _inputs(stack: Any) -> dict[str, Any]:
    """Inputs for a stack: a short text, an image of the config's size, or a second of sound."""
    config, parameters = stack.config, inspect.signature(stack.forward).parameters
    size = getattr(config, "image_size", None) or 224
    if isinstance(size, int):
        size = (size, size)
    shapes = {
        "input_ids": (TOKENS,),
        "pixel_values": (getattr(config, "num_channels", 3), *size),
        "input_values": (16000,),
        "input_features": (getattr(config, "num_mel_bins", 80), 2 * getattr(config, "max_source_positions", 1500)),
    }
    known = [name for name in (stack.main_input_name, *shapes) if name in parameters and name in shapes]
    if not known:
        raise TypeError(f"it takes {', '.join(parameters)}")
    name = known[0]
    dtype = torch.long if name == "input_ids" else torch.bfloat16
    inputs: dict[str, Any] = {name: torch.zeros(1, *shapes[name], dtype=dtype)}
    if "decoder_input_ids" in parameters:
        inputs["decoder_input_ids"] = torch.zeros(1, DECODED, dtype=torch.long)
    if "use_cache" in parameters:
        inputs["use_cache"] = False
    return inputs


class _RealTokens(TorchFunctionMode):
    """Within the context, code that asks for the values of a meta tensor gets an answer, although there are no values.

    The answers are as if all tokens were equal, real and not special.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer a question for values, or call the function."""
        name = getattr(function, "__name__", "")
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.is_meta:
            if name == "nonzero":
                index = torch.empty(0, first.ndim, dtype=torch.long, device="meta")
                return index.unbind(1) if (kwargs or {}).get("as_tuple") else index
            if name in ("__bool__", "__int__", "__index__", "__float__", "item"):
                # Conditions are true, and numbers are 1. Only the result of any() is false, because models use it to
                # look for exceptions, such as padding.
                return not getattr(first, "is_any", False)
            if name == "__contains__":
                return False
        result = function(*args, **(kwargs or {}))
        if name == "any" and isinstance(result, Tensor):
            result.is_any = True  # type: ignore[attr-defined]
        return result
