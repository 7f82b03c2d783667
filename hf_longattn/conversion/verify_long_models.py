"""Compare a converted long model (Longformer, BigBird …) with transformers' model: hidden states, logits and gradients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .disk_offload import available_memory
from .flops import layer_mechanisms
from .long_models import CheckpointConverter, Probe
from .model_loading import load_result, load_source, newly_initialised
from .plan import ConversionPlan
from .report import FAILED, NEEDS_TRAINING, PASSED, SKIPPED, TOLERANCE, Check
from .text import VerificationText


@dataclass(frozen=True)
class Difference:
    """The difference of one output between result and source, over the rows of real tokens."""

    name: str
    absolute: float
    relative: float  # to the source's largest value, but at least 1


def compare_with_original(
    plan: ConversionPlan, result: Path, text: VerificationText, length: int, scratch: Path | None = None
) -> tuple[list[Check], Any]:
    """Compare source and result on the converter's probes, and the gradients of one step on the last of them.

    Args:
        plan: of the conversion.
        result: the written folder.
        text: what to run on.
        length: in tokens, at most what the source takes.
        scratch: if given, the weights stay in their files (see `load_source`), and gradients are not compared.

    Returns:
        One check for each probe and one for the gradients, and the loaded result. The two models are never in memory together.
    """
    architecture = plan.architecture
    converter = architecture.converter
    assert converter is not None
    cast = plan.config.dtype if any(t.header and t.dtype != t.header.dtype for t in plan.tensors) else None
    attention_takes_globals = any(one.takes_globals for one in layer_mechanisms(plan.attention, plan.shape, plan.new_length))

    def probes_of(length: int) -> list[Probe]:
        made = converter.probes(architecture.original_config, architecture.source_class, text, length)
        return [probe for probe in made if attention_takes_globals or "global_attention_mask" not in probe.inputs]

    probes, step = probes_of(length), probes_of(min(length, GRADIENT_LENGTH))[-1]
    why_not = why_no_gradients(plan) or ("" if scratch is None else "the models were run from their files")
    model, missing = load_source(plan.source, architecture, cast, scratch)
    chance = newly_initialised(missing, model)
    part = model.base_model if chance else model
    expected = [probe_outputs(part, probe.inputs) for probe in probes]
    wanted = {} if why_not else gradients(part, _for_part(part, step.inputs), step)
    del model, part
    model, _ = load_result(result, architecture, plan.config, scratch=scratch)
    part = model.base_model if chance else model
    checks = []
    for probe, outputs in zip(probes, expected, strict=True):
        found = probe_outputs(part, {**probe.inputs, **probe.result_inputs})
        checks.append(_check(plan, probe, compared(outputs, found, probe), length, chance))
    if why_not:
        return [*checks, skipped(why_not)], model
    found = gradients(part, _for_part(part, {**step.inputs, **step.result_inputs}), step)
    checks.append(check_gradients(plan, converter, wanted, found))
    return checks, model


def probe_outputs(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of one forward pass by name, with the hidden states of every layer, without caches and attentions."""
    inputs = _for_part(model, inputs)
    with torch.no_grad():
        returned = model(**inputs, output_hidden_states=True, return_dict=True)
    found: dict[str, Tensor] = {}
    for name, value in returned.items():
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, tuple) and name.endswith("hidden_states"):
            found |= {f"{name}[{layer}]": state for layer, state in enumerate(value)}
    return found


def _for_part(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs, with the choices of an example flattened for a model without a multiple-choice head."""
    if model.base_model is model and inputs["input_ids"].dim() == 3:
        return {name: value.flatten(0, 1) for name, value in inputs.items()}
    return inputs


def compared(wanted: dict[str, Tensor], found: dict[str, Tensor], probe: Probe) -> list[Difference]:
    """The differences of every output that both have, over the rows of real tokens."""
    differences = []
    for name in wanted.keys() & found.keys():
        a, b = wanted[name].float(), found[name].float()
        if a.shape != b.shape:
            continue
        a, b = probe.rows(name, a), probe.rows(name, b)
        absolute = float((a - b).abs().max())
        differences.append(Difference(name, absolute, absolute / max(1.0, float(a.abs().max()))))
    return sorted(differences, key=lambda one: one.name)


def _check(plan: ConversionPlan, probe: Probe, differences: list[Difference], length: int, chance: bool) -> Check:
    name = f"equal to the source, {probe.name}"
    if not differences:
        return Check(name, FAILED, "source and result have no output in common")
    worst = max(differences, key=lambda one: one.relative if one.relative == one.relative else float("inf"))
    layers = sum("hidden_states[" in one.name for one in differences)
    others = [one.name for one in differences if "hidden_states[" not in one.name]
    values: dict[str, Any] = {
        "length": length,
        "tokens": int(probe.real.sum()),
        "tolerance": TOLERANCE,
        "max_abs_difference": max(one.absolute for one in differences),
        "relative_difference": worst.relative,
        "outputs": {one.name: one.absolute for one in differences},
    }
    head = " (the source has no weights for its head)" if chance else ""
    found = (
        f"{', '.join([*others, f'{layers} hidden states'])}{head} of two texts of up to {length} tokens, {probe.name}: "
        f"largest difference from transformers' {plan.source.config['model_type']} {worst.absolute:.1e} ({worst.name})"
    )
    if worst.relative <= TOLERANCE:
        return Check(name, PASSED, f"{found}, equal", values)
    original = plan.architecture.original_attention()
    why = "the attention differs from the source's" if plan.attention != original else ""
    why = why or plan.position_change
    if why:
        return Check(name, NEEDS_TRAINING, f"{found}: not exact, needs training, since {why}", values)
    return Check(name, FAILED, f"{found}, but they must be equal", values)


GRADIENT_LENGTH = 192
"""Tokens of the training step: enough for windows, padding and global tokens to matter, few enough for a large model."""
NAME = "one step's gradients equal to the source's"


def why_no_gradients(plan: ConversionPlan) -> str | None:
    """Why the gradients of the two models are not compared; ``None`` if they are."""
    if plan.attention != plan.architecture.original_attention() or not plan.positions_exact:
        return "the result is not meant to be equal to the source"
    needed, available = 4 * plan.parameters * 3.5, available_memory()
    if needed > available:
        return f"a model and the gradients of two take {needed / 1e9:.1f} GB in fp32 and {available / 1e9:.1f} GB are free"
    return None


def gradients(model: Any, inputs: dict[str, Tensor], probe: Probe) -> dict[str, Tensor]:
    """Gradients of every parameter by name, of the mean sine of all outputs at real tokens, which needs no labels."""
    returned = model(**inputs, return_dict=True)
    terms = []
    for name, value in returned.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad:
            terms.append(probe.rows(name, value).float().sin().mean())
    model.zero_grad(set_to_none=True)
    torch.stack(terms).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def check_gradients(plan: ConversionPlan, converter: CheckpointConverter, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> Check:
    """Compare the source's gradients, renamed like its tensors, with those of the result.

    New rows of a position table, and parameters that only the result has, must have zero gradients.
    """
    expected: dict[str, Tensor] = {}
    for name, gradient in wanted.items():
        renaming = converter.rename(name, plan.architecture.original_config)
        if renaming.target is not None:
            expected[renaming.target] = gradient if renaming.change is None else renaming.change(gradient)
    scale = max((float(gradient.abs().max()) for gradient in expected.values()), default=0.0)
    worst, where = 0.0, "none"
    for name in sorted(expected.keys() | found.keys()):
        difference = _difference(expected.get(name), found.get(name))
        if not difference <= worst:  # true for NaN as well
            worst, where = difference, name
    values = {"length": GRADIENT_LENGTH, "compared": len(expected), "max_abs_difference": worst, "largest_gradient": scale}
    detail = (
        f"gradients of {len(expected)} parameters after one step at {GRADIENT_LENGTH} tokens or fewer: largest difference {worst:.1e} "
        f"({where}), largest gradient {scale:.1e}"
    )
    good = scale > 0 and worst <= TOLERANCE * scale
    return Check(NAME, PASSED if good else FAILED, f"{detail}, {'equal' if good else 'but they must be equal'}", values)


def skipped(why: str) -> Check:
    """The skipped check."""
    return Check(NAME, SKIPPED, why)


def _difference(a: Tensor | None, b: Tensor | None) -> float:
    if a is None or b is None:
        one = b if a is None else a
        return 0.0 if one is None else float(one.abs().max())
    if a.shape != b.shape and a.shape[1:] == b.shape[1:]:  # a table that was extended
        rows = min(len(a), len(b))
        return max(float((a[:rows] - b[:rows]).abs().max()), *(float(x[rows:].abs().max()) for x in (a, b) if len(x) > rows))
    return float((a - b).abs().max())
