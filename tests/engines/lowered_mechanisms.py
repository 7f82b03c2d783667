"""Every mechanism of the registry on a pretended H100: ``python -m tests.engines.lowered_mechanisms`` prints a JSON
line for each.

A mechanism runs on tensors that claim to be on a GPU (:mod:`.mixed_devices`), in every condition. What it asks of
flex_attention is noted, with the tensors of its masks and score terms, and lowered afterwards
(:mod:`.pretended_h100`): each kind of call once in a process.
"""

from __future__ import annotations

import copy
import json
import sys
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from hf_longattn import list_mechanisms, mechanism_info
from hf_longattn.engines.byte_cache import BYTE_CACHE
from hf_longattn.engines.cuda import flex, flex_kernel
from hf_longattn.engines.dispatch import observe
from hf_longattn.mechanisms.common.capabilities import reads_grid

from . import device_layers, mixed_devices, pretended_h100
from .mixed_devices import BATCH, OnCuda, build
from .pretended_h100 import Generated, Lowered, fake_tensors, started

LENGTH, COLUMNS = 2048, 32
"""Tokens, and the columns of a grid of them."""
CONDITIONS: dict[str, dict[str, Any]] = {
    "D = 64": {},
    "D = 80": {"head_dim": 80},
    "D = 128": {"head_dim": 128},
    "D = 256": {"head_dim": 256},
    "padding": {"padded": True},
    "documents": {"documents": True},
    "grouped heads": {"kv_heads": 2},
    "padding, grouped heads, D = 128": {"padded": True, "kv_heads": 2, "head_dim": 128},
    "gradients": {"grad": True},
}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def arguments_of(name: str, padded: bool = False, documents: bool = False, **sizes: Any) -> dict[str, Any]:
    """The arguments of :func:`.mixed_devices.attempt` in a condition."""
    places, on_grid = torch.arange(LENGTH), reads_grid(build(name))
    if padded:
        sizes["padding_mask"] = places < torch.tensor([[LENGTH], [LENGTH - 150]])
    if documents:
        sizes["documents"] = (places // (LENGTH // 2 if on_grid else 1300)).expand(BATCH, -1).contiguous()
    if on_grid:
        sizes["grid"] = (LENGTH // COLUMNS // (1 + documents), COLUMNS)
    return {"length": LENGTH, **sizes}


class Calls:
    """The calls of flex_attention that mechanisms make, each kind of them once, and what becomes of it."""

    def __init__(self, kernels: list[Generated], make: dict[str, Callable[..., Tensor]]) -> None:
        self.kernels, self.make = kernels, make
        self.failures: dict[Hashable, str] = {}
        self.asked: dict[Hashable, Callable[[], Any]] = {}

    def __call__(self, kind: Hashable, q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Any:
        """In place of the kernel."""
        with torch.no_grad():
            self.asked[kind, flex_kernel._variant(q, k, v, **settings)] = lambda: (kind, (q, k, v), settings)
        return device_layers.fused_flex(kind, q, k, v, **settings)

    def lowered(self) -> dict[Hashable, str]:
        """Why each of the calls asked for since the last time has no kernel, "" where it has one."""
        asked, self.asked = self.asked, {}
        for key, call in asked.items():
            if key not in self.failures:
                self.failures[key] = self.lower(*call())
        return {key: self.failures[key] for key in asked}

    def lower(self, kind: Hashable, tensors: tuple[Tensor, ...], settings: dict[str, Any]) -> str:
        torch._dynamo.reset()
        self.kernels.clear()
        flex_kernel._kernels.clear()
        BYTE_CACHE.clear()
        learning = any(x.requires_grad for x in tensors)
        try:
            with mock.patch.multiple(torch, **self.make), fake_tensors(), torch.set_grad_enabled(learning):
                fakes, settings = faked((tensors, settings), {})
                flex_kernel.fused_flex(kind, *fakes, **settings)
        except Lowered:
            fused = sum(kernel.name.startswith("triton_tem") for kernel in self.kernels)
            return "" if fused == 1 + learning else f"{fused} fused kernels"
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:500]
        return "nothing was lowered"


def faked(value: Any, made: dict[int, tuple[Any, Any]]) -> Any:
    """``value`` with a fake tensor on CUDA wherever a tensor claims to be there: in closures, containers and fields,
    too."""
    if id(value) not in made:
        made[id(value)] = value, _faked(value, made)
    return made[id(value)][1]


def _faked(value: Any, made: dict[int, tuple[Any, Any]]) -> Any:
    if isinstance(value, OnCuda):
        sizes = value.shape, value.stride()
        return torch.empty_strided(*sizes, dtype=value.dtype, device="cuda", requires_grad=value.requires_grad)
    if isinstance(value, types.FunctionType):
        cells = tuple(types.CellType(faked(cell.cell_contents, made)) for cell in value.__closure__ or ())
        function = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
        function.__kwdefaults__ = value.__kwdefaults__
        return function
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, faked(value.__self__, made))
    if isinstance(value, tuple | list):
        parts = [faked(part, made) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return {key: faked(part, made) for key, part in value.items()}
    if isinstance(value, Tensor | torch.nn.Module | type) or not type(value).__module__.startswith(
        ("hf_longattn", "torch.nn.attention")
    ):
        return value
    new = copy.copy(value)
    for name, part in vars(value).items() if hasattr(value, "__dict__") else ():
        object.__setattr__(new, name, faked(part, made))
    return new


def cells_of(name: str, calls: Calls) -> Iterator[dict[str, Any]]:
    """A result for each form and condition, in fp32 as well where PyTorch's flash-attention operator takes the calls
    in half precision."""
    form = mechanism_info(name).causal
    for causal in [False, True] if form == "both" else [bool(form)]:
        for condition, settings in CONDITIONS.items():
            for number, (precision, dtype) in enumerate(DTYPES.items()):
                cell: dict[str, Any] = {
                    "form": "causal" if causal else "both ways",
                    "condition": condition,
                    "dtype": precision,
                }
                paths: list[str] = []
                try:
                    with observe(lambda _, choice: paths.append(choice.path)):  # noqa: B023
                        mixed_devices.attempt(name, causal, dtype=dtype, **arguments_of(name, **settings))
                    failures = calls.lowered()
                    cell |= {
                        "paths": sorted(set(paths)),
                        "kernels": len(failures),
                        "failures": sorted(filter(None, failures.values())),
                    }
                except Exception as error:
                    calls.lowered()
                    cell |= {
                        "paths": sorted(set(paths)),
                        "kernels": 0,
                        "failures": [f"{type(error).__name__}: {error}"[:500]],
                    }
                yield cell
                if number == 0 and ("flash" not in paths or cell["kernels"]):
                    break


def main() -> None:
    """Run the mechanisms named on the command line, or all, in a process of their own."""
    if not started(__spec__.name):
        return
    kernels = pretended_h100.pretend()
    calls = Calls(kernels, {name: getattr(torch, name) for name in ("tensor", "as_tensor")})
    device_layers.pretend()
    flex.fused_flex = calls  # type: ignore[assignment]
    for name in sys.argv[1:] or list_mechanisms():
        BYTE_CACHE.clear()
        print(json.dumps({"mechanism": name, "cells": list(cells_of(name, calls))}), flush=True)


if __name__ == "__main__":
    main()
