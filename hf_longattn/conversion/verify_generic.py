"""Run source and result of a conversion with ``--generic``, and compare what they return; of several towers, each alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..backend import BACKEND
from ..engines.common.call import AttentionCall
from ..errors import CheckpointError
from ..mechanisms.common.base import Mechanism
from ..modeling.generic import MECHANISM_NAME_PART, load_generic, load_generic_with, stacks_of, towers_of
from ..private_apis import attention_implementation
from .architectures import attached_mechanisms
from .model_loading import load_plain, seeded_pages, weights_in_files
from .plan import ConversionPlan
from .report import FAILED, PASSED, Check, equality
from .sources.base import open_source
from .verify_outputs import all_finite, difference

TOKENS = 48
SAMPLES = 4000
"""Audio samples for Wav2Vec2 and similar models."""
GRIDS = ((1, 4, 6), (1, 2, 4))
"""Frames, height and width of pictures of different sizes, in patches of the language model."""
IMAGE_TOKEN, VIDEO_TOKEN = "image_token_id", "video_token_id"
"""The config's fields with the tokens in place of which a language model reads pictures."""
NOT_COVERED = "the mechanism does not cover the input"


def check_generic(plan: ConversionPlan, result: Path, scratch: Path | None = None) -> list[Check]:
    """For an architecture without a family: outputs are equal with the class's attention, and finite with the mechanisms.

    `scratch`: if given, the weights stay in their files, see `load_source`, except those of the mechanisms.

    Raises:
        CheckpointError: the class takes inputs of an unknown kind.
    """
    source: Any = load_plain(plan.source, plan.architecture, plan.cast, scratch)
    inputs = seeded_inputs(source)
    implementation = attention_implementation(source.config)
    expected = run_inputs(source, inputs)
    del source
    model: Any = nn.Module.float(load_generic(result)) if scratch is None else _from_files(result, scratch)
    with_mechanism, covered = _run_and_note_covers(model, inputs)
    parts = {name: towers_of(model)[name] for name in plan.towers} or {"": model}
    alone = {}
    for name, tower in parts.items() if len(parts) > 1 else ():
        _set_implementation((part for part in parts.values() if part is not tower), implementation)
        alone[name] = _run_and_note_covers(model, inputs)
        _set_implementation(parts.values(), BACKEND)
    _set_implementation([model], implementation)
    plain = run_inputs(model, inputs)
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())

    def compare(name: str, measured: dict[str, Tensor], how: str, why: str) -> Check:
        largest, relative = difference(expected, measured)
        detail = f"outputs for {shapes}, {how}: largest difference from the source {largest:.1e}"
        return equality(name, detail, relative, {"max_abs_difference": largest}, why)

    def why_not_equal(of_tower: ConversionPlan, covered: bool) -> str:
        return of_tower.position_change or ("" if covered and not _own_windows(plan.source.config) else NOT_COVERED)

    finite = all_finite(with_mechanism)
    return [
        compare("equal with the source's attention", plain, "the class's attention", plan.position_change),
        *(
            compare(
                f"with the mechanism of the tower {name}",
                measured,
                f"{plan.towers[name].attention.mechanism} in the tower {name} alone",
                plan.position_change or why_not_equal(plan.towers[name], covered_alone),
            )
            for name, (measured, covered_alone) in alone.items()
        ),
        compare("with the mechanism", with_mechanism, "long attention", why_not_equal(plan, covered)),
        Check("finite", PASSED if finite else FAILED, f"outputs for {shapes} are {'' if finite else 'not '}finite"),
    ]


def _run_and_note_covers(model: Any, inputs: Mapping[str, Any]) -> tuple[dict[str, Tensor], bool]:
    """The outputs of a model, and whether every mechanism that ran covered its input."""
    seen: dict[str, bool] = {}
    hooks = [mechanism.register_forward_pre_hook(_note_covers(name, seen)) for name, mechanism in attached_mechanisms(model).items()]
    outputs = run_inputs(model, inputs)
    for hook in hooks:
        hook.remove()
    return outputs, bool(seen) and all(seen.values())


def _note_covers(name: str, seen: dict[str, bool]) -> Any:
    def hook(mechanism: Mechanism, args: tuple[Tensor, Tensor, Tensor, AttentionCall]) -> None:
        _, k, _, call = args
        seen[name] = seen.get(name, True) and mechanism.covers(k.shape[2], causal=call.causal)

    return hook


def _set_implementation(parts: Iterable[nn.Module], implementation: str | None) -> None:
    """The attention implementation of parts of a model, each of which may have configs of its own."""
    for part in parts:
        for stack in stacks_of(part):
            stack.set_attn_implementation(implementation)


def _own_windows(config: Mapping[str, Any]) -> bool:
    """Whether the source's layers have windows."""
    return config.get("sliding_window") is not None or config.get("layer_types") is not None


def _from_files(result: Path, scratch: Path) -> Any:
    weights = weights_in_files(open_source(result).tensors, scratch)

    def load(model_class: Any, config: Any) -> tuple[Any, Any]:
        loading = weights.loading(model_class)
        model, info = loading.from_pretrained(result, config=config, dtype=torch.float32, output_loading_info=True)
        weights.give_to(model, in_memory=MECHANISM_NAME_PART)
        return model, info

    return load_generic_with(load, result, str(result))


def seeded_inputs(model: Any) -> dict[str, Tensor]:
    """Random inputs for one forward pass, as the class takes them: token ids, images, audio features or samples."""
    taken = inspect.signature(type(model).forward).parameters
    text, random = model.config.get_text_config(), torch.Generator().manual_seed(0)
    inputs: dict[str, Tensor] = {}
    if "pixel_values" in taken:
        inputs |= _seeded_pictures(model, random)
    if "input_features" in taken:
        inputs["input_features"] = torch.randn(1, model.config.num_mel_bins, 2 * model.config.max_source_positions, generator=random)
    if "input_values" in taken:
        inputs["input_values"] = torch.randn(1, SAMPLES, generator=random)
    if "input_ids" in taken:
        length = min(TOKENS, getattr(text, "max_position_embeddings", None) or TOKENS)
        ids = torch.randint(min(5, text.vocab_size - 1), text.vocab_size, (1, length), generator=random)
        inputs |= {"input_ids": ids, **seeded_pages(model.config, ids)}
        if getattr(model.config, IMAGE_TOKEN, None) is not None and inputs.keys() & {"pixel_values"}:
            inputs |= _with_image_tokens(model, inputs)
    if "decoder_input_ids" in taken and model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(min(5, text.vocab_size - 1), text.vocab_size, (1, 8), generator=random)
    if not inputs:
        raise CheckpointError(
            f"A {type(model).__name__} takes inputs of an unknown kind, so the result cannot be verified; add --no-verify."
        )
    return inputs


def _seeded_pictures(model: Any, random: Generator) -> dict[str, Tensor]:
    """Random pictures: one of the config's size, or two of different sizes where a tower takes them so."""
    taken = inspect.signature(type(model).forward).parameters
    vision = getattr(model.config, "vision_config", model.config)
    channels = next(getattr(vision, name) for name in ("num_channels", "in_channels") if hasattr(vision, name))
    if "image_grid_thw" in taken:  # rows of patches, those that become a token of the language model next to one another
        merge, patch = vision.spatial_merge_size, vision.patch_size
        grids = torch.tensor([(frames, height * merge, width * merge) for frames, height, width in GRIDS])
        patches = int(grids.prod(1).sum())
        pixels = torch.randn(patches, channels * vision.temporal_patch_size * patch * patch, generator=random)
        return {"pixel_values": pixels, "image_grid_thw": grids}
    tower = towers_of(model).get("vision")
    if tower is not None and "image_sizes" in inspect.signature(type(tower).forward).parameters and "image_sizes" in taken:
        sizes = torch.tensor([(height * vision.patch_size, width * vision.patch_size) for _, height, width in GRIDS])
        height, width = sizes.amax(0).tolist()
        return {"pixel_values": torch.randn(len(GRIDS), channels, height, width, generator=random), "image_sizes": sizes}
    size = vision.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return {"pixel_values": torch.randn(1, channels, height, width, generator=random)}


def _with_image_tokens(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``input_ids`` after as many image tokens for each picture as it has features, and a token of text after each picture."""
    image, taken = getattr(model.config, IMAGE_TOKEN), inspect.signature(type(model).forward).parameters
    with torch.no_grad():
        features = model.get_image_features(**{name: value for name, value in inputs.items() if name != "input_ids"}).pooler_output
    ids = inputs["input_ids"]
    special = torch.tensor([token for token in (image, getattr(model.config, VIDEO_TOKEN, None)) if token is not None])
    ids = torch.where(torch.isin(ids, special), ids.min(), ids)
    pictures = [part for of_picture in features for part in (ids.new_full((1, len(of_picture)), image), ids[:, :1])]
    ids = torch.cat([*pictures, ids], 1)
    return {"input_ids": ids, **({"mm_token_type_ids": (ids == image).int()} if "mm_token_type_ids" in taken else {})}


def run_inputs(model: Any, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """All floating-point tensors that one forward pass returns, by name."""
    with torch.no_grad():
        returned = model(**inputs, return_dict=True)
    return {name: value for name, value in returned.items() if isinstance(value, Tensor) and value.is_floating_point()}
