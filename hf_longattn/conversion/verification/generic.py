"""Run a source without a family and its result on the same inputs, of whatever kind the class takes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError
from ...families.generic import OWN, load_generic, load_generic_with
from ...mechanisms import Mechanism
from ..architectures.base import attached_mechanisms
from ..planning.plan import ConversionPlan
from ..report import FAILED, NEEDS_TRAINING, PASSED, Check
from ..running.loading import load_plain, weights_in_files
from ..sources.opening import open_source
from .outputs import TOLERANCE, difference

__all__ = ["check_generic"]

TOKENS = 48
NOT_COVERED = "the mechanism does not cover the input"
SAMPLES = 4000
"""Of a sound, as Wav2Vec2 takes it."""


def check_generic(plan: ConversionPlan, result: Path, scratch: Path | None = None) -> list[Check]:
    """The written folder gives what the source gives with the source's own attention, and what the mechanisms make of it.

    `scratch`: a folder by which the weights of both stay in their files, see `load_source`; those of the mechanisms are in memory.

    Raises:
        CheckpointError: nothing is known that the class could be given.
    """
    cast = plan.config.dtype if any(t.header and t.dtype != t.header.torch_dtype for t in plan.tensors) else None
    source: Any = load_plain(plan.source, plan.architecture, cast, scratch)
    inputs = seeded_inputs(source)
    own = source.config._attn_implementation
    expected = _run(source, inputs)
    del source
    model: Any = nn.Module.float(load_generic(result)) if scratch is None else _from_files(result, scratch)
    seen: dict[str, bool] = {}
    for name, mechanism in attached_mechanisms(model).items():
        mechanism.register_forward_pre_hook(_note_covers(name, seen), with_kwargs=True)
    found = _run(model, inputs)
    windows = plan.source.config.get("sliding_window") is not None or plan.source.config.get("layer_types") is not None
    covered = bool(seen) and all(seen.values()) and not windows
    for submodel in [module for module in model.modules() if hasattr(module, "set_attn_implementation")]:
        submodel.set_attn_implementation(own)
    plain = _run(model, inputs)
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
    finite = all(bool(value.isfinite().all()) for value in found.values())
    return [
        _compare("equal with the source's own attention", expected, plain, shapes, "the class's own attention", plan.moved),
        _compare("with the mechanism", expected, found, shapes, "long attention", plan.moved or ("" if covered else NOT_COVERED)),
        Check("finite", PASSED if finite else FAILED, f"outputs for {shapes} are {'' if finite else 'not '}finite"),
    ]


def _from_files(result: Path, scratch: Path) -> Any:
    weights = weights_in_files(open_source(result).tensors, scratch)

    def load(model_class: Any, config: Any) -> tuple[Any, Any]:
        loading = weights.loading(model_class)
        model, info = loading.from_pretrained(result, config=config, dtype=torch.float32, output_loading_info=True)
        weights.give_to(model, in_memory=OWN)
        return model, info

    return load_generic_with(load, result, str(result))


def seeded_inputs(model: Any) -> dict[str, Tensor]:
    """Inputs for one forward pass: token ids, an image, the features or the samples of a sound, as the class takes them."""
    taken = inspect.signature(type(model).forward).parameters
    text, vision = model.config.get_text_config(), getattr(model.config, "vision_config", model.config)
    random = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}
    if "pixel_values" in taken:
        size = vision.image_size
        height, width = (size, size) if isinstance(size, int) else size
        found["pixel_values"] = torch.randn(1, vision.num_channels, height, width, generator=random)
    if "input_features" in taken:
        found["input_features"] = torch.randn(1, model.config.num_mel_bins, 2 * model.config.max_source_positions, generator=random)
    if "input_values" in taken:
        found["input_values"] = torch.randn(1, SAMPLES, generator=random)
    if "input_ids" in taken:
        length = min(TOKENS, getattr(text, "max_position_embeddings", None) or TOKENS)
        found["input_ids"] = torch.randint(min(5, text.vocab_size - 1), text.vocab_size, (1, length), generator=random)
    if "decoder_input_ids" in taken and model.config.is_encoder_decoder:
        found["decoder_input_ids"] = torch.randint(min(5, text.vocab_size - 1), text.vocab_size, (1, 8), generator=random)
    if not found:
        raise CheckpointError(
            f"Nothing is known that a {type(model).__name__} could be given to verify it; look at its result yourself and add --no-verify."
        )
    return found


def _run(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        returned = model(**inputs, return_dict=True)
    return {name: value for name, value in returned.items() if isinstance(value, Tensor) and value.is_floating_point()}


def _note_covers(name: str, seen: dict[str, bool]) -> Any:
    def hook(mechanism: Mechanism, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        covers = mechanism.covers(args[1].shape[2], causal=bool(kwargs.get("causal")))
        seen[name] = seen.get(name, True) and covers

    return hook


def _compare(name: str, expected: dict[str, Tensor], found: dict[str, Tensor], shapes: str, how: str, why: str) -> Check:
    """``why`` they may differ; empty where they must be equal."""
    largest, relative = difference(expected, found)
    values = {"max_abs_difference": largest, "relative_difference": relative}
    detail = f"outputs for {shapes}, {how}: largest difference from the source {largest:.1e}"
    if relative <= TOLERANCE:
        return Check(name, PASSED, f"{detail}, equal", values)
    if not why:
        return Check(name, FAILED, f"{detail}, but they must be equal", values)
    return Check(name, NEEDS_TRAINING, f"{detail}: not exact, needs training, since {why}", values)
