"""Compare source and result of a ``--generic`` conversion. With the class's attention, all mechanisms, and one tower's at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..engines.common.call import AttentionCall
from ..inputs.common.running import all_finite
from ..inputs.plain import PlainKind
from ..mechanisms.common.base import Mechanism
from ..modeling.backend import BACKEND
from ..modeling.family.config import attention_implementation
from ..modeling.generic import set_implementation, towers_of
from ..reports import FAILED, PASSED, Check, Difference, equality
from .architectures import attached_mechanisms
from .model_loading import load_result, load_source
from .plan import ConversionPlan
from .seeded_inputs import TOKENS, run_inputs, seeded_inputs

LONGEST, LOGITS = 4096, 2**26
"""Maximum number of tokens, and of logits for them, of the text on which outputs are checked for NaN."""
NOT_COVERED = "the mechanism does not cover the input"


def check_generic(kind: PlainKind, plan: ConversionPlan, result: Path, inputs: Any, scratch: Path | None, given_text: bool) -> list[Check]:
    """Check the outputs of a ``--generic`` result. They equal the source's with the class's attention, and are finite with the mechanisms.
    If the position table of a time-series model was lengthened, the reference is the class at the new length, with the source's weights.

    `scratch`: if given, the weights stay in their files, see `load_source`.

    Raises:
        CheckpointError: the class takes inputs of an unknown kind.
    """
    source: Any = load_source(plan.source, plan.architecture, plan.cast, scratch)[0]
    if lengthened := plan.plain.lengthened:
        source = plan.plain.at_new_length(source, plan.positions)
    position_change = "" if lengthened else plan.position_change
    reference = "the class at that length, with the source's weights" if lengthened else "the source"
    seeded = seeded_inputs(source)
    implementation = attention_implementation(source.config)
    expected = run_inputs(source, seeded)
    del source
    model: Any = load_result(result, plan.architecture, plan.config, scratch=scratch)[0]
    with_mechanism, covered = _run_and_note_covers(model, seeded)
    longest = seeded_inputs(
        model, max(TOKENS, min(plan.new_length, LONGEST, LOGITS // getattr(model.config.get_text_config(), "vocab_size", 1)))
    )
    finite = all_finite(with_mechanism if _shapes(longest) == _shapes(seeded) else run_inputs(model, longest))
    parts = {name: towers_of(model)[name] if name else model for name in plan.parts}
    alone = {}
    for name, alone_part in parts.items() if plan.apart else ():
        for part in parts.values():
            set_implementation(part, BACKEND if part is alone_part else implementation, is_tower=True)
        alone[name] = _run_and_note_covers(model, seeded)
    set_implementation(model, implementation, is_tower=False)
    plain = run_inputs(model, seeded)

    def compare(name: str, measured: dict[str, Tensor], how: str, why: str) -> Check:
        detail = f"outputs for {_shapes(seeded)}, {how}: largest difference from {reference}"
        return equality(name, detail, Difference.of(expected, measured), {}, why)

    keeps_windows = any(plan.source.config.get(field) is not None for field in ("sliding_window", "layer_types"))

    def why_not_equal(of_tower: ConversionPlan, covered: bool) -> str:
        return ("" if lengthened else of_tower.position_change) or ("" if covered and not keeps_windows else NOT_COVERED)

    of_towers = []
    for name, (measured, covers) in alone.items():
        tower = plan.towers[name]
        mechanisms = " and ".join(dict.fromkeys(tower.attention.for_layer(layer)[0] for layer in range(tower.shape.layers)))
        how, why = f"{mechanisms} in the tower {name} alone", plan.position_change or why_not_equal(tower, covers)
        of_towers.append(compare(f"with the mechanism of the tower {name}", measured, how, why))
    return [
        compare("equal with the source's attention", plain, "the class's attention", position_change),
        *of_towers,
        compare("with the mechanism", with_mechanism, "long attention", why_not_equal(plan, covered)),
        Check("finite", PASSED if finite else FAILED, f"outputs for {_shapes(longest)} are {'' if finite else 'not '}finite"),
    ]


def _shapes(inputs: Mapping[str, Any]) -> str:
    """The names and shapes of tensors, for a report."""
    return ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items() if isinstance(value, Tensor))


def _run_and_note_covers(model: Any, inputs: Mapping[str, Any]) -> tuple[dict[str, Tensor], bool]:
    """The outputs of a model, and whether every mechanism that ran covered its input."""
    covered: list[bool] = []

    def note(mechanism: Mechanism, args: tuple[Tensor, Tensor, Tensor, AttentionCall]) -> None:
        _, k, _, call = args
        covered.append(mechanism.covers(k.shape[2], causal=call.causal))

    hooks = [mechanism.register_forward_pre_hook(note) for mechanism in attached_mechanisms(model).values()]
    outputs = run_inputs(model, inputs)
    for hook in hooks:
        hook.remove()
    return outputs, bool(covered) and all(covered)
