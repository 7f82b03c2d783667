"""Small models of images and their inputs, for the tests of every family with a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_longattn.families import FAMILIES
from hf_longattn.modeling.attach.attention_sites import attention_sites, layer_mechanisms
from scripts.dev.tools.small_models import Shape, small_image_config

BASES = [name for name in FAMILIES if FAMILIES[name].spec.reads == "grid"]
HEADS = [(base, head) for base in BASES for head in FAMILIES[base].model_classes]
SHAPE = Shape(layers=4, inner=64)
PATCH, SIDE = 4, 8
"""Pixels of a patch, and patches along each axis of the image for which the small models are made."""


def saved(base: str, head: str, folder: Path, **values: Any) -> Any:
    """A small model of the base, saved in ``folder``, in whose outputs positions and biases by distance show."""
    torch.manual_seed(0)
    config = small_image_config(base, SHAPE, **values)
    model: Any = FAMILIES[base].base_class(head)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias_table" in name or "rpb" in name or "register_tokens" in name:
                nn.init.normal_(parameter)
            # attention of an untrained model hardly shows in its outputs
            elif parameter.ndim == 2 and parameter.requires_grad:
                parameter.mul_(4)
    model.save_pretrained(folder)
    return model


def long_model(base: str, head: str, folder: Path, **config: Any) -> Any:
    return FAMILIES[base].model_class(head).from_pretrained(folder, **config).eval()


def inputs_of(base: str, size: tuple[int, int] = (32, 32), batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Images of this many pixels, as the base reads them."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(batch, 3, *size, generator=generator)
    return {"pixel_values": pixels}


def reads(base: str, head: str, size: tuple[int, int]) -> bool:
    """Whether the base's head reads images of this size."""
    return size[0] == size[1] or head not in FAMILIES[base].spec.square


def resized(base: str, size: tuple[int, int]) -> dict[str, bool]:
    """What the base must be told for images of this size."""
    other = FAMILIES[base].spec.interpolates and size != (PATCH * SIDE, PATCH * SIDE)
    return {"interpolate_pos_encoding": True} if other else {}


def base_model(base: str) -> str:
    """The model class of the base without a head."""
    return FAMILIES[base].base_model_name


def tensors(outputs: Any) -> list[Tensor]:
    """The tensors of an output, those in tuples as well."""
    values = [value if isinstance(value, tuple) else (value,) for value in outputs.to_tuple()]
    return [tensor for value in values for tensor in value if isinstance(tensor, Tensor)]


@contextmanager
def seeing(model: nn.Module, *visible: Tensor) -> Iterator[None]:
    """A base whose attention module of layer i sees the pairs ``visible[i]`` (N, N) or ``(B, 1, N, N)``, by a dense
    mask."""

    def restrict(mask: Tensor) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            term = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
            allowed = mask if mask.dim() == 4 else mask[None, None]
            if isinstance(term, Tensor) and term.dtype != torch.bool:
                term = term.masked_fill(~allowed, torch.finfo(term.dtype).min)
            else:
                term = allowed if term is None else allowed & term
            return args[:1], {**kwargs, "attention_mask": term}

        return hook

    with ExitStack() as hooks:
        for site in attention_sites(model):
            hook = restrict(visible[site.layer % len(visible)])
            hooks.enter_context(site.module.register_forward_pre_hook(hook, with_kwargs=True))
        yield


def defined(model: Any, grid: Any) -> list[Tensor]:
    """What every layer of a Long model with a mechanism on a grid sees there, ``(N, N)`` bool each."""
    index = torch.arange(grid.length)
    zero = torch.zeros((), dtype=torch.long)
    masks = [
        mechanism.mask_on(grid)(zero, zero, index[:, None], index)
        for mechanism in layer_mechanisms(model)
        if mechanism.capabilities.needs_grid
    ]
    return [torch.as_tensor(mask).broadcast_to(grid.length, grid.length) for mask in masks]
