"""Run source and result on the same inputs and compare their outputs."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engines.call import AttentionCall
from ..errors import CheckpointError
from ..mechanisms.base import Mechanism
from ..modeling.generic import OWN, load_generic, load_generic_with
from ..modeling.sliding_window import keeps_window, own_windows
from ..private_apis import attention_implementation
from .architectures import attached_mechanisms
from .flops import cost_at, layer_mechanisms
from .model_loading import load_plain, load_result, load_source, newly_initialised, outputs, weights_in_files
from .plan import ConversionPlan
from .plan_tensors import ResultPlan
from .report import FAILED, NEEDS_TRAINING, PASSED, SKIPPED, TOLERANCE, Check
from .sources import open_source
from .text import VerificationText
from .verify_long_models import compare_with_original

FLOPS_AT_NEW_LENGTH = 4e12
"""Arithmetic spent on the checks at the new length: about a minute on two cores. BERT-base at 4,096 tokens fits."""

FLOPS_AT_OLD_LENGTH = 1e12
PADDING = 37
"""Tokens of padding in the padding check: not a multiple of any block size."""

LOGITS_FROM_FILES = 6.4e7
"""Bytes of the logits at the old length, of which four copies are in memory, for models that run from their files; more if a quarter of the
largest tensor is more."""

DECODED = 32
"""Decoder tokens of an encoder-decoder in the checks at the new length."""


@dataclass(frozen=True)
class Lengths:
    """The lengths in tokens at which a conversion is checked."""

    covered: int  # the longest up to `old` at which every layer equals the source's; 0 if there is none
    old: int
    new: int


def choose_lengths(plan: ConversionPlan, *, from_files: bool = False) -> Lengths:
    """The old and the new length, or shorter ones if a large model would take too long, or its logits too much memory."""
    layers = layer_mechanisms(plan.attention, plan.shape, plan.new_length)

    def affordable(length: int, passes: int, limit: float) -> int:
        while length > 64 and passes * cost_at(length, plan.shape, layers).total_flops > limit:
            length = max(64, length // 2)
        return length

    decoder = [] if plan.decoder is None else layer_mechanisms(plan.config.decoder_attention, plan.decoder_shape, plan.decoder.new)

    windows = own_windows(plan.architecture.source_config) if plan.decoder is None else [None] * len(layers)

    def same(number: int, width: int | None, length: int) -> bool:
        if keeps_window(plan.attention, number, width):
            return True
        return _covers(layers[number], length, plan.shape.causal) and (width is None or length <= width)

    def covered(length: int) -> bool:
        own = all(same(number, width, length) for number, width in enumerate(windows))
        return own and all(_covers(layer, length, True) for layer in decoder)

    old = affordable(plan.old_length, 3, FLOPS_AT_OLD_LENGTH)
    skeleton: Any = plan.architecture.skeleton(plan.config) if from_files else None
    if from_files and skeleton.get_output_embeddings() is not None:
        old = min(old, length_from_files(plan))
    low, high = 0, old  # covers() is monotonic in the length
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if covered(middle) else (low, middle - 1)
    return Lengths(low, old, affordable(plan.new_length, 4, FLOPS_AT_NEW_LENGTH))


def _covers(layer: Mechanism, length: int, causal: bool) -> bool:
    """Whether a layer is full attention at this length, without memory tokens."""
    return layer.covers(length, causal) and (layer.recursion is None or not layer.recursion.memory)


def length_from_files(plan: ResultPlan) -> int:
    """Number of tokens whose logits take little memory compared with the largest tensor."""
    limit = max(LOGITS_FROM_FILES, plan.largest_tensor)  # a quarter of its bytes in fp32
    return max(64, int(limit / (4 * plan.config.vocab_size)))


def check_outputs(plan: ConversionPlan, result: Path, text: VerificationText, lengths: Lengths, scratch: Path | None = None) -> list[Check]:
    """All checks of outputs; the two models are never in memory together.

    Args:
        plan: of the conversion.
        result: the written folder.
        text: what to run on.
        lengths: from `choose_lengths`.
        scratch: if given, the weights stay in their files, see `load_source`.
    """
    if plan.architecture.converter is not None:
        checks, model = compare_with_original(plan, result, text, lengths.old, scratch)
        return checks + _check_new(plan, model.base_model, text, lengths.new)
    cast = plan.config.dtype if any(t.header and t.dtype != t.header.dtype for t in plan.tensors) else None
    model, missing = load_source(plan.source, plan.architecture, cast, scratch)
    chance = newly_initialised(missing, model)
    at = sorted({lengths.old, lengths.covered} - {0})
    limit = _decoder_limit(plan)
    expected = {length: outputs(_part(model, chance), text.tokens(length), decoder_tokens=limit) for length in at}
    del model

    model, _ = load_result(result, plan.architecture, plan.config, scratch=scratch)
    part = _part(model, chance)
    what = "hidden states (the source has no weights for its head)" if chance else "outputs"
    checks = _compare_old(plan, model, part, text, lengths, expected, what)
    checks += _check_new(plan, model.base_model, text, lengths.new)
    return checks


def _decoder_limit(plan: ConversionPlan) -> int | None:
    """Maximum length of the source's decoder in an encoder-decoder; `None` for heads that read the whole text in it."""
    return None if plan.decoder is None or plan.architecture.decoder_reads_text else plan.decoder.old


def _part(model: Any, chance: bool) -> Any:
    return model.base_model if chance else model


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> tuple[float, float]:
    """(largest absolute difference, the same relative to the largest value but at least 1)."""
    largest = float(torch.stack([(a[name] - b[name]).abs_().max() for name in a]).max())  # NaN in any of them gives NaN
    scale = max(1.0, *(float(value.abs().max()) for value in a.values()))
    return largest, largest / scale


def _compare_old(
    plan: ConversionPlan,
    model: Any,
    part: nn.Module,
    text: VerificationText,
    lengths: Lengths,
    expected: dict[int, dict[str, Tensor]],
    what: str,
) -> list[Check]:
    def compare(name: str, length: int, how: str, must: bool, why: str) -> Check:
        ids = text.tokens(length)
        largest, relative = difference(expected[length], outputs(part, ids, decoder_tokens=_decoder_limit(plan)))
        values = {
            "length": length,
            "tokens": ids.numel(),
            "outputs": sorted(expected[length]),
            "max_abs_difference": largest,
            "relative_difference": relative,
            "tolerance": TOLERANCE,
        }
        found = f"{what} at {length} tokens, {how}: largest difference from the source {largest:.1e}"
        if relative <= TOLERANCE:
            return Check(name, PASSED, f"{found}, equal", values)
        if must:
            return Check(name, FAILED, f"{found}, but they must be equal", values)
        return Check(name, NEEDS_TRAINING, f"{found}: not exact, needs training, since {why}", values)

    exact, position_change = plan.positions_exact, plan.position_change
    checks = []
    if lengths.covered:
        name = "equal where the mechanism covers the input"
        checks.append(compare(name, lengths.covered, "long attention", exact, position_change))
    if lengths.covered < lengths.old:
        model.use_base_attention()
        name = "equal at the old length with full attention"
        checks.append(compare(name, lengths.old, "full attention instead of the mechanism", exact, position_change))
        model.set_attn_implementation(attention_implementation(plan.config) or "longattn")
        covers = f"covers inputs up to {lengths.covered} tokens" if lengths.covered else "is full attention at no length"
        why = " and ".join(filter(None, [position_change, f"the mechanism {covers}"]))
        checks.append(compare("at the old length", lengths.old, "long attention", False, why))
    return checks


def _check_new(plan: ConversionPlan, backbone: Any, text: VerificationText, length: int) -> list[Check]:
    """Check the hidden states at the new length: they are finite, and unchanged by padding."""
    ids = text.tokens(length)
    decoded = None if plan.decoder is None else min(plan.decoder.old, DECODED)
    short = max(1, length - PADDING)
    alone = ids[:, :short]
    takes_globals = any(getattr(layer, "takes_globals", False) for layer in layer_mechanisms(plan.attention, plan.shape, length))
    marked = torch.zeros_like(alone)
    marked[:, : min(short, 8)] = 1
    marked[:, short // 2] = 1

    places = "position_ids" in inspect.signature(type(backbone).forward).parameters
    sides = ("right", "left") if places else ("right",)  # without position_ids, left padding shifts the text

    def run(tokens: Tensor, mask: Tensor, marks: Tensor) -> dict[str, Tensor]:
        arguments: dict[str, Tensor] = {"attention_mask": mask}
        if places:
            arguments["position_ids"] = _positions(mask, plan)
        if takes_globals:
            arguments["global_attention_mask"] = marks
        found = outputs(backbone, tokens, decoder_tokens=decoded, **arguments)
        return {name: state for name, state in found.items() if name.endswith("last_hidden_state")}

    def pad(values: Tensor, fill: int) -> Tensor:
        gap = length - short
        padded = {"right": (0, gap), "left": (gap, 0)}
        return torch.cat([torch.nn.functional.pad(values, padded[side], value=fill) for side in sides])

    whole = outputs(backbone, ids, decoder_tokens=decoded)
    finite = all(bool(state.isfinite().all()) for name, state in whole.items() if name.endswith("last_hidden_state"))
    at = f"at {length} tokens" + ("" if length == plan.new_length else f" (of {plan.new_length}: a large model, shortened)")
    said = f"hidden states {at} are {'' if finite else 'not '}finite"
    checks = [Check("finite at the new length", PASSED if finite else FAILED, said, {"length": length, "tokens": ids.numel()})]
    if short == length:
        return [*checks, Check("padding changes nothing", SKIPPED, f"{length} tokens are too few for padding")]
    if not all(layer.ignores_padding for layer in layer_mechanisms(plan.attention, plan.shape, length)):
        return [
            *checks,
            Check("padding changes nothing", SKIPPED, "the mechanism's options count padding, for equality with another implementation"),
        ]
    unpadded = run(alone, torch.ones_like(alone), marked)
    fill = plan.config.pad_token_id if isinstance(plan.config.pad_token_id, int) and plan.config.pad_token_id >= 0 else 0
    padded = run(pad(alone, fill), pad(torch.ones_like(alone), 0), pad(marked, 0))
    differences = {}
    for row, side in enumerate(sides):
        rows = {name: state[row] for name, state in padded.items()}
        real = {name: state[-short:] if side == "left" else state[:short] for name, state in rows.items()}
        differences[side] = max(float((real[name] - state[0]).abs().max()) for name, state in unpadded.items())
    largest = max(differences.values())
    scale = max(1.0, *(float(state.abs().max()) for state in unpadded.values()))
    good = largest <= TOLERANCE * scale and all(bool(state.isfinite().all()) for state in padded.values())
    detail = (
        f"a text of {short} tokens alone, and padded to {length} on the {' and on the '.join(sides)}"
        f"{' with global tokens' if takes_globals else ''}: largest difference {largest:.1e}"
    )
    values = {**differences, "length": length, "tokens": short, "tolerance": TOLERANCE}
    return [*checks, Check("padding changes nothing", PASSED if good else FAILED, detail, values)]


def _positions(mask: Tensor, plan: ConversionPlan) -> Tensor:
    """Positions counted from the first real token; padding has the first position."""
    offset = max((table.first_id for table in plan.architecture.family.position_tables), default=0)
    return (mask.cumsum(-1) - 1).clamp(min=0) + offset


TOKENS = 48
NOT_COVERED = "the mechanism does not cover the input"
SAMPLES = 4000
"""Audio samples for Wav2Vec2 and similar models."""


def check_generic(plan: ConversionPlan, result: Path, scratch: Path | None = None) -> list[Check]:
    """For an architecture without a family: outputs are equal with the class's attention, and finite with the mechanisms.

    `scratch`: if given, the weights stay in their files, see `load_source`, except those of the mechanisms.

    Raises:
        CheckpointError: the class takes inputs of an unknown kind.
    """
    cast = plan.config.dtype if any(t.header and t.dtype != t.header.dtype for t in plan.tensors) else None
    source: Any = load_plain(plan.source, plan.architecture, cast, scratch)
    inputs = seeded_inputs(source)
    own = attention_implementation(source.config)
    expected = _run(source, inputs)
    del source
    model: Any = nn.Module.float(load_generic(result)) if scratch is None else _from_files(result, scratch)
    seen: dict[str, bool] = {}
    for name, mechanism in attached_mechanisms(model).items():
        mechanism.register_forward_pre_hook(_note_covers(name, seen))
    found = _run(model, inputs)
    windows = plan.source.config.get("sliding_window") is not None or plan.source.config.get("layer_types") is not None
    covered = bool(seen) and all(seen.values()) and not windows
    for submodel in [module for module in model.modules() if hasattr(module, "set_attn_implementation")]:
        submodel.set_attn_implementation(own)
    plain = _run(model, inputs)
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
    finite = all(bool(value.isfinite().all()) for value in found.values())
    return [
        _compare("equal with the source's attention", expected, plain, shapes, "the class's attention", plan.position_change),
        _compare("with the mechanism", expected, found, shapes, "long attention", plan.position_change or ("" if covered else NOT_COVERED)),
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
    """Random inputs for one forward pass, as the class takes them: token ids, an image, audio features or samples."""
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
            f"A {type(model).__name__} takes inputs of an unknown kind, so the result cannot be verified; add --no-verify."
        )
    return found


def _run(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        returned = model(**inputs, return_dict=True)
    return {name: value for name, value in returned.items() if isinstance(value, Tensor) and value.is_floating_point()}


def _note_covers(name: str, seen: dict[str, bool]) -> Any:
    def hook(mechanism: Mechanism, args: tuple[Tensor, Tensor, Tensor, AttentionCall]) -> None:
        _, k, _, call = args
        seen[name] = seen.get(name, True) and mechanism.covers(k.shape[2], causal=call.causal)

    return hook


def _compare(name: str, expected: dict[str, Tensor], found: dict[str, Tensor], shapes: str, how: str, why: str) -> Check:
    """``why``: they may differ; empty if they must be equal."""
    largest, relative = difference(expected, found)
    values = {"max_abs_difference": largest, "relative_difference": relative}
    detail = f"outputs for {shapes}, {how}: largest difference from the source {largest:.1e}"
    if relative <= TOLERANCE:
        return Check(name, PASSED, f"{detail}, equal", values)
    if not why:
        return Check(name, FAILED, f"{detail}, but they must be equal", values)
    return Check(name, NEEDS_TRAINING, f"{detail}: not exact, needs training, since {why}", values)
